"""Smoothness at a finite scale: what a network with kinks still has where beta is infinite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.ascent import (
    CLIMBERS,
    PairSlopes,
    best_pairs,
    better_half,
    climb_pairs,
    in_ball,
    pair_slopes,
    project,
    unit,
)
from estimators.batching import check_inputs, check_labels, check_loss, double_copy
from estimators.gradients import describe_labels
from estimators.hessian import HESSIAN_BATCH
from estimators.losses import LossFunction
from estimators.sharing import pairs_in_batches

# Below this distance, for points of size 1, a quotient in float64 starts to show the gradients' rounding.
SMALLEST_SCALE = torch.finfo(torch.float64).eps ** 0.5


@dataclass(frozen=True)
class FiniteScaleSmoothness:
    """beta_h = sup of ||grad l(a) - grad l(b)|| / ||a - b|| over pairs at least h apart, for shrinking h.

    Attributes:
        estimate: At the smallest scale, over all samples' balls.
        scales: Distances h, l2, each half of the one before.
        values: Largest quotient seen at a distance of at least each scale; never decreasing. They double with
            every halving at a kink, and settle where the loss is smooth.
        per_sample: The last value in each sample's own ball, in the shape of y.
    """

    estimate: Estimate
    scales: tuple[float, ...]
    values: tuple[float, ...]
    per_sample: Tensor


def finite_scale_smoothness(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    scale: float,
    radius: float = 1.0,
    points: int = 4,
    steps: int = 5,
    seed: int = 0,
    batch_size: int = HESSIAN_BATCH,
) -> FiniteScaleSmoothness:
    """Smoothness at scale h, and at coarser ones: the largest gradient quotient of pairs at least h apart.

    Pairs run over the l2 ball around each sample. The constant is finite for every network with bounded
    gradients, ReLU networks included, and grows as 1/h there. It is not the beta of Definition 6, which is
    its limit for h -> 0 and what the theorems' hypothesis needs.

    The search starts from the best few of random pairs, half the radius to the radius apart, and climbs the
    quotient by moving both ends. Then each pair is halved, keeping the half with the larger quotient, and
    climbs again, down to distance h. Halving never lowers the quotient, and finds kinks, which neither
    gradients nor random pairs at distance h see. In float64, on a copy where the model is not.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        scale: Distance h, l2, at most the radius and at least 1.5e-8 times the size of the inputs.
        radius: l2 radius of the balls; both ends of a pair stay inside.
        points: Random pairs to start from.
        steps: Moves of the climb at every scale.
        seed: Of the random pairs.
        batch_size: Pairs treated at once.

    Returns:
        Loss per squared l2 distance: a lower bound on beta_h, and on beta, at each scale on the way.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values, counts, scale or radius do not fit.
    """
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    x = x.detach().double()
    _check_scale(x, scale, radius, points, steps)
    halvings = math.floor(math.log2(radius / scale))
    scales = tuple(scale * 2.0**power for power in range(halvings, -1, -1))

    model = double_copy(model)
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for _ in range(points):
        middle, direction = (in_ball(x, radius, generator).flatten(1) for _ in range(2))
        starts += list(_at_distance(torch.stack([middle + direction, middle - direction]), scales[0], radius))

    def search(labels: Tensor, centre: Tensor, *offsets: Tensor) -> tuple[Tensor]:
        evaluate = pair_slopes(model, loss, centre, labels, 0.0)
        pairs = torch.stack(offsets).reshape(points, 2, *offsets[0].shape)
        chosen = best_pairs(pairs, torch.stack([evaluate(pair)[0] for pair in pairs]), CLIMBERS)
        descents = [_descend(evaluate, pair, scales, radius, steps) for pair in chosen]
        return (torch.stack(descents).amax(0).T,)

    (found,) = pairs_in_batches(search, batch_size, y, x, *starts)
    seen = found.T.cummax(0).values
    text = (
        f"beta_h at scale h = {scale:g}, not beta: largest gradient quotient over pairs at least h apart, "
        f"by ascent and halving in l2 balls of radius {radius:g}, {len(x)} samples, {describe_labels(y)}, "
        "in torch.float64; a lower bound up to rounding"
    )
    values = seen.amax(1).tolist()
    estimate = Estimate.at_least(values[-1], text, samples=len(x), seed=seed)
    return FiniteScaleSmoothness(estimate, scales, tuple(values), seen[-1].reshape(y.shape))


def _descend(
    evaluate: PairSlopes, pairs: Tensor, scales: tuple[float, ...], radius: float, steps: int
) -> Tensor:
    """Largest quotients (scales, m) of the climbs at each scale."""
    found = []
    for scale in scales:
        if scale != scales[0]:
            pairs = better_half(evaluate, pairs)
        allowed = partial(_at_distance, distance=scale, radius=radius)
        seen, pairs = climb_pairs(evaluate, pairs, allowed, scale, steps)
        found.append(torch.stack(seen).amax(0))
    return torch.stack(found)


def _at_distance(pairs: Tensor, distance: float, radius: float) -> Tensor:
    """Pairs (2, m, d) with the same direction at the given distance, moved into the ball."""
    middle = project(pairs.mean(0), radius - distance / 2)
    half = distance / 2 * unit(pairs[0] - pairs[1])
    return torch.stack([middle + half, middle - half])


def _check_scale(x: Tensor, scale: float, radius: float, points: int, steps: int) -> None:
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"expected a positive finite radius, got {radius}")
    smallest = SMALLEST_SCALE * max(1.0, float(x.abs().max()))
    if not smallest <= scale <= radius:
        raise ValueError(f"expected a scale from {smallest:.2g} to the radius {radius:g}, got {scale}")
    if points < 1:
        raise ValueError(f"expected at least 1 point, got {points}")
    if steps < 1:
        raise ValueError(f"expected at least 1 step, got {steps}")
