"""What a comparison says of an ensemble before any attack: accuracy, smoothness, gradients, angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

import estimators
from bounds import Estimate
from empirical.attacks import predict
from empirical.data import Split
from estimators.certified.network import Network, UnsupportedLayer, read_network
from estimators.certified.whole_space import whole_space_bounds
from estimators.distribution import Distribution
from estimators.points import CleanPoints
from estimators.similarity import cosine_extremes

# Certifying beta over all inputs takes seconds up to this size of the Jacobians, and minutes beyond.
_WHOLE_SPACE_ENTRIES = 2_000_000


def accuracy(model: nn.Module, data: Split, confidence: float) -> Estimate:
    """Rate of right predictions, with its Clopper-Pearson interval."""
    correct = int((predict(model, data.x) == data.y).sum())
    return Estimate.proportion(correct, len(data), confidence=confidence)


def readable_network(member: nn.Module, x: Tensor) -> Network | None:
    """The member as certificates read it, None where a layer has none."""
    try:
        return read_network(member, x)
    except UnsupportedLayer:
        return None


def benign_summary(
    members: Sequence[nn.Module], networks: Sequence[Network | None], data: Split, points: CleanPoints
) -> dict[str, Any]:
    """Smoothness, gradient norms and cosines over the set, of all members, of each and of each pair.

    Cosines are those of the loss gradients at the true label; gradient norms run over all labels; smoothness
    is Definition 6's beta, sampled on the set from below and certified over all inputs from above.
    """
    brackets = [_bracket(member, network, data) for member, network in zip(members, networks, strict=True)]
    couples = list(combinations(range(len(members)), 2))
    at_truth = [points.cosines[pair].gather(1, points.y.unsqueeze(1)) for pair in couples]
    low, high = cosine_extremes(
        torch.stack(at_truth), Distribution("finite"), "over all pairs", len(points.y)
    )
    return {
        "similarity_lower": low.value,
        "similarity_upper": high.value,
        "gradient_norm": float(points.norms.max()),
        "smoothness": Estimate.largest(brackets).to_json(),
        "members": [
            {"gradient_norm": float(norms.max()), "smoothness": bracket.to_json()}
            for norms, bracket in zip(points.norms, brackets, strict=True)
        ],
        "pairs": [_pair_summary(pair, cosines) for pair, cosines in zip(couples, at_truth, strict=True)],
    }


def _pair_summary(pair: tuple[int, int], cosines: Tensor) -> dict[str, Any]:
    """Extremes and mean over the set; None where a gradient is zero at every point."""
    cosines = cosines[~cosines.isnan()]
    low, high, mean = (
        (float(cosines.min()), float(cosines.max()), float(cosines.abs().mean()))
        if len(cosines)
        else (None, None, None)
    )
    return {
        "models": list(pair),
        "similarity_lower": low,
        "similarity_upper": high,
        "mean_absolute_cosine": mean,
    }


def _bracket(member: nn.Module, network: Network | None, data: Split) -> Estimate:
    """Definition 6's beta: sampled on the set from below, certified over all inputs from above."""
    sampled = estimators.smoothness(member, estimators.cross_entropy, data.x, data.y)
    if network is None:
        return sampled
    if _jacobian_entries(network) > _WHOLE_SPACE_ENTRIES:
        return replace(sampled, method=f"{sampled.method}; too large to certify within a comparison")
    certified = float(whole_space_bounds(network).smoothness.max())
    method = f"{sampled.method}; upper end certified over all inputs, up to rounding"
    return replace(sampled, value=certified, upper=certified, method=method)


def _jacobian_entries(network: Network) -> int:
    return math.prod(network.shapes[0]) * sum(math.prod(shape) for shape in network.shapes)
