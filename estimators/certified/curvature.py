"""Curvature of logit differences over balls, from an enclosure of the network.

For a fixed combination c of logits, `Hess(c.z) = sum_i U_i^T diag(lambda_i sigma''(u_i)) U_i`, where U_i is
the Jacobian of what enters activation i and lambda_i the derivative of c.z by what leaves it. Over a ball the
weights `h = lambda sigma''` range over intervals and the rows of U around their centres: a quadratic form
with interval weights, which `largest_eigenvalue` bounds. The gradient of c.z itself moves by `sum_i U_i(x)^T
((sigma' - sigma'(x)) lambda_i)`: exactly (products differ by telescoping), with lambda_i at the same point of
the ball and U_i at the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators.certified.enclosure import Bend, Enclosure, Interval, Rows
from estimators.certified.network import Affine, Network, Pointwise
from estimators.certified.operators import ROUNDING

_POWER_STEPS = 8


@dataclass(frozen=True)
class Weights:
    """Weights of the rows of all activations, stacked to M, for L combinations of logits.

    Attributes:
        low: Smallest h = lambda sigma'' over the ball, (n, L, M).
        high: Largest h.
        push: Bound on |(sigma' - sigma'(centre)) lambda|, (n, L, M).
    """

    low: Tensor
    high: Tensor
    push: Tensor


def backward_weights(network: Network, enclosure: Enclosure, seeds: Tensor) -> Weights:
    """Enclose lambda, sent back from the logits, and what it weighs in each activation.

    Args:
        network: The network.
        enclosure: Of the network over the balls, with finite bends.
        seeds: Combinations c of the logits, (n, L, K).
    """
    n, combinations = seeds.shape[:2]
    adjoints: list[Interval | None] = [None] * len(network.nodes)
    adjoints[-1] = (seeds.flatten(0, 1), seeds.flatten(0, 1))
    found: dict[int, Weights] = {}
    for index in range(len(network.nodes) - 1, 0, -1):
        node, adjoint = network.nodes[index], adjoints[index]
        assert adjoint is not None  # every node leads to the logits
        if isinstance(node, Affine):
            passed = _adjoint(node, adjoint)
        elif isinstance(node, Pointwise):
            bend = enclosure.bends[index]
            low, high = (end.reshape(n, combinations, -1) for end in adjoint)
            found[index] = _weigh(bend, (low, high))
            sent = _product((low, high), _spread(bend.slope))
            passed = (sent[0].reshape(adjoint[0].shape), sent[1].reshape(adjoint[0].shape))
        else:
            passed = adjoint
        for source in node.sources:
            before = adjoints[source]
            adjoints[source] = (
                passed if before is None else (before[0] + passed[0], before[1] + passed[1])
            )  # fmt: skip
        adjoints[index] = None
    ordered = [found[index] for index in sorted(found)]
    if not ordered:
        empty = seeds.new_zeros(n, combinations, 0)
        return Weights(empty, empty, empty)
    return Weights(
        *(torch.cat([getattr(one, part) for one in ordered], 2) for part in ("low", "high", "push"))
    )


def largest_eigenvalue(rows: Sequence[Rows], low: Tensor, high: Tensor) -> Tensor:
    """Upper bound on the largest eigenvalue of `sum_j c_j r_j r_j^T` over all weights and rows in range.

    With r = a + b for centre and deviation, `c (r.v)^2 <= (c_high + t |c|) (a.v)^2 + (|c| / t + c_high^+)
    (b.v)^2` for every t > 0. The first part is the largest eigenvalue of one matrix; the second is bounded by
    the norms of the deviations. Each group of rows has a t of its own; any positive t is valid.

    Args:
        rows: Groups of rows with R rows in all.
        low: Smallest weights, (n, R).
        high: Largest weights, (n, R).

    Returns:
        Shape (n,); exact up to rounding where weights and rows are points.
    """
    centre = torch.cat([group.centre for group in rows], 2)
    size = torch.maximum(high, -low)
    shifted, correction = [], high.new_zeros(len(high))
    start = 0
    for group in rows:
        part = slice(start, start := start + group.centre.shape[2])
        spread = _deviation(group, size[:, part])
        main = _top_singular(group.centre, size[:, part])
        ratio = (spread / main).where(main > 0, 1.0).where(spread > 0, 0.0)
        shifted.append(high[:, part] + ratio.unsqueeze(1) * size[:, part])
        correction = correction + (spread.square() / ratio).where(spread > 0, 0.0)
        correction = correction + _deviation(group, high[:, part].clamp_min(0.0)).square()
    matrix = (centre * torch.cat(shifted, 1).unsqueeze(1)) @ centre.mT
    top = torch.linalg.eigvalsh(matrix)[:, -1] + correction
    return top + ROUNDING * (torch.linalg.matrix_norm(matrix) + correction)


def gradient_shift(rows: Sequence[Rows], push: Tensor) -> Tensor:
    """Upper bound (n,) on `||sum_j t_j r_j||` over all `|t_j| <= push_j`, rows at their centres.

    With `t_j = sqrt(push_j / ||r_j||) s_j`, so `|s|^2 <= sum_j push_j ||r_j||`, it is the norm of the scaled
    rows times that of s; never worse than the triangle inequality.
    """
    centre = torch.cat([group.centre for group in rows], 2)
    length = centre.norm(dim=1)
    scaled = (push / length).where(length > 0, 0.0)
    matrix = (centre * scaled.unsqueeze(1)) @ centre.mT
    top = torch.linalg.eigvalsh(matrix)[:, -1].clamp_min(0.0)
    return (top * (push * length).sum(1)).sqrt() * (1 + ROUNDING)


def _adjoint(node: Affine, adjoint: Interval) -> Interval:
    low, high = adjoint
    middle = node.operator.adjoint((low + high) / 2)
    reach = node.operator.magnitude.adjoint((high - low) / 2)
    return middle - reach, middle + reach


def _weigh(bend: Bend, adjoint: Interval) -> Weights:
    low, high = _product(adjoint, _spread(bend.bend))
    push = torch.maximum(adjoint[1], -adjoint[0]) * bend.slope_change.unsqueeze(1)
    return Weights(low, high, push)


def _spread(interval: Interval) -> Interval:
    """The same for every combination of logits."""
    return interval[0].unsqueeze(1), interval[1].unsqueeze(1)


def _product(first: Interval, second: Interval) -> Interval:
    """Interval of the products of two intervals."""
    corners = torch.stack([one * other for one in first for other in second])
    return corners.amin(0), corners.amax(0)


def _deviation(group: Rows, weights: Tensor) -> Tensor:
    """Bound (n,) on `||diag(sqrt w) B||` for the deviations B of a group of rows."""
    whole = weights.amax(1).sqrt() * group.spectral
    return torch.minimum(whole, (weights * group.deviation.square()).sum(1).sqrt())


def _top_singular(centre: Tensor, weights: Tensor) -> Tensor:
    """Estimate (n,) of `||diag(sqrt w) A||` by power steps; from below, so only for choosing a parameter."""
    vector = torch.ones_like(centre[:, :, :1])
    value = vector.new_zeros(len(centre))
    for _ in range(_POWER_STEPS):
        vector = centre @ (weights.unsqueeze(2) * (centre.mT @ vector))
        value = vector.norm(dim=(1, 2))
        vector = vector / value.clamp_min(torch.finfo(value.dtype).tiny).reshape(-1, 1, 1)
    return value.sqrt()
