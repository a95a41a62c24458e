"""What decides transfer in the theory, of an ensemble's members: similarity, gradient size, smoothness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch

from bounds.estimate import Estimate
from empirical.data import Split
from empirical.ensemble import Ensemble
from estimators.certified.network import UnsupportedLayer
from estimators.losses import cross_entropy
from estimators.points import measure_points
from estimators.smoothness import smoothness


@dataclass(frozen=True)
class Geometry:
    """Loss gradients of the members at a set of points; cosines and norms are exact there, up to rounding.

    Attributes:
        mean_cosine: Mean |cos| of two members' gradients at the true label, over pairs and points: what TRS
            penalises.
        largest_cosine: Largest cosine of these (S of Definitions 4 and 5, from below).
        mean_norm: Mean l2 norm of the gradients at the true label, over members and points.
        largest_norm: Largest l2 norm of a gradient, at any label (B of Theorems 3 and 4, from below).
        sampled_beta: Largest spectral norm of a member's Hessian at the points and true labels (beta of
            Definition 6, from below).
        certified_beta: What beta cannot exceed, over all inputs; None where members have kinks or a layer has
            no certificate.
    """

    mean_cosine: float
    largest_cosine: float
    mean_norm: float
    largest_norm: float
    sampled_beta: float
    certified_beta: float | None

    def to_json(self) -> dict[str, float | None]:
        """A JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Geometry:
        """The geometry that `to_json` described."""
        return cls(**fields)


def measure_geometry(ensemble: Ensemble, data: Split) -> Geometry:
    """Differentiate every member's cross-entropy once and twice at every point.

    Args:
        ensemble: Members from (n, *shape) to logits (n, K), at least two.
        data: The points.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If shapes, labels or values do not fit, or no two members have a gradient at a point.
    """
    members = list(ensemble.members)
    points = measure_points(members, data.x, data.y)
    truth = points.y.unsqueeze(1)
    cosines = torch.stack(
        [points.cosines[pair].gather(1, truth) for pair in combinations(range(len(members)), 2)]
    )
    cosines = cosines[~cosines.isnan()]
    if not len(cosines):
        raise ValueError("expected a point at which two members have a gradient, got none")
    betas = [_smoothness(member, data) for member in members]
    certified = max(beta.upper for beta in betas)
    return Geometry(
        mean_cosine=float(cosines.abs().mean()),
        largest_cosine=float(cosines.max()),
        mean_norm=float(points.norms.gather(2, truth.expand(len(members), -1, -1)).mean()),
        largest_norm=float(points.norms.max()),
        sampled_beta=max(beta.lower for beta in betas),
        certified_beta=certified if math.isfinite(certified) else None,
    )


def _smoothness(member: torch.nn.Module, data: Split) -> Estimate:
    """Beta of a member: sampled at the points, certified over all inputs where there is a certificate."""
    try:
        return smoothness(member, cross_entropy, data.x, data.y, method="certified")
    except UnsupportedLayer:
        return smoothness(member, cross_entropy, data.x, data.y)
