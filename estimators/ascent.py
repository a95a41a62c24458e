"""Searches for the largest curvature: Hessian norms at points, climbs of norms and of gradient quotients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from estimators.batching import check_finite, frozen
from estimators.gradients import differentiate
from estimators.hessian import Curvature, noise_vector, top_curvature
from estimators.losses import LossFunction
from estimators.sharing import pairs_in_batches

# Ascent may travel this many times its reach in total, enough to cross the ball.
_TRAVEL = 2.5

# The best few starts climb: the highest of them often sits below a lower peak.
CLIMBERS = 3

# The vector v held in the ascent of ||H(x) v|| follows by one power step per move, and afresh this often.
_REFRESH = 5

# A climb step costs a sample: one gradient, one Hessian product, one derivative of ||H v||^2.
_NORM_STEP = 3
# A pair's: two gradients, two derivatives of the quotient.
_PAIR_STEP = 4

# A pair that has climbed half of its steps shrinks to an eighth of its length and climbs the rest.
_HALVINGS = 3

Curve = Callable[[Tensor], Curvature]
Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
PairSlopes = Callable[[Tensor], tuple[Tensor, Tensor]]
Projection = Callable[[Tensor], Tensor]


class Trace(NamedTuple):
    """What a search saw as it went on, in T stages, for m rows (a sample and one of its labels each).

    Attributes:
        spent: Gradients and Hessian-vector products evaluated for each row up to each stage (T, m).
        best: Largest value seen in each row up to each stage (T, m).
    """

    spent: Tensor
    best: Tensor

    @classmethod
    def of(cls, spent: list[Tensor | int], seen: list[Tensor]) -> Trace:
        """The trace of what each stage alone spent and saw."""
        found = torch.stack(seen)
        costs = [torch.as_tensor(cost, device=found.device).expand(found.shape[1]) for cost in spent]
        return cls(torch.stack(costs).cumsum(0), found.cummax(0).values)


def _traced(search: Callable[..., Trace], batch_size: int, y: Tensor, *inputs: Tensor) -> Trace:
    """The trace of all rows, from a search that goes through as many stages in every batch."""

    def rows(*batch: Tensor) -> tuple[Tensor, Tensor]:
        trace = search(*batch)
        return trace.spent.T, trace.best.T

    spent, best = pairs_in_batches(rows, batch_size, y, *inputs)
    return Trace(spent.T, best.T)


def norms_at(
    model: nn.Module,
    loss: LossFunction,
    places: list[Tensor],
    y: Tensor,
    *,
    iterations: int,
    seed: int,
    batch_size: int,
) -> Trace:
    """Hessian norms at each of several places (n, *shape) of every sample, one place a stage."""
    noise = noise_vector(places[0], seed)

    def look(labels: Tensor, *parts: Tensor) -> Trace:
        found = [top_curvature(model, loss, part, labels, noise, iterations) for part in parts]
        return Trace.of([one.spent for one in found], [one.norms for one in found])

    return _traced(look, batch_size, y, *places)


def norm_ascent(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    points: int,
    steps: int,
    iterations: int,
    seed: int,
    batch_size: int,
) -> Trace:
    """The largest ||H v|| on the way up in each ball, from the best of the centre and random points."""
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.zeros_like(x), *(in_ball(x, radius, generator) for _ in range(points))]
    noise = noise_vector(x, seed)

    def climb(labels: Tensor, centre: Tensor, *offsets: Tensor) -> Trace:
        def curvature(offset: Tensor) -> Curvature:
            return top_curvature(model, loss, centre + offset, labels, noise, iterations)

        found = [curvature(offset) for offset in offsets]
        spent: list[Tensor | int] = [one.spent for one in found]
        seen = [one.norms for one in found]
        column = torch.arange(len(labels), device=x.device)
        for first in torch.stack(seen).topk(min(CLIMBERS, len(seen)), dim=0).indices:
            start = torch.stack(offsets)[first, column]
            vectors = torch.stack([one.vectors for one in found])[first, column]
            slopes = _image_slopes(model, loss, centre, labels)
            more_spent, more_seen = _climb_norms(slopes, curvature, start, vectors, radius, steps)
            spent += more_spent
            seen += more_seen
        return Trace.of(spent, seen)

    return _traced(climb, batch_size, y, x, *starts)


def quotient_ascent(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    closest: float,
    spread: float,
    points: int,
    steps: int,
    seed: int,
    batch_size: int,
) -> Trace:
    """The largest gradient quotient on the way up in each ball, from the best of random pairs.

    Pairs start within `spread` of each other; closer than `closest` they count as 0.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for _ in range(points):
        first = in_ball(x, radius, generator).flatten(1)
        near = first + in_ball(x, max(spread, closest), generator).flatten(1)
        starts += [first, project(near, radius)]

    def climb(labels: Tensor, centre: Tensor, *offsets: Tensor) -> Trace:
        evaluate = pair_slopes(model, loss, centre, labels, closest)
        pairs = torch.stack(offsets).reshape(points, 2, *offsets[0].shape)
        seen = [evaluate(pair)[0] for pair in pairs]
        spent: list[Tensor | int] = [_PAIR_STEP] * points
        inside = partial(project, radius=radius)
        for start in best_pairs(pairs, torch.stack(seen), CLIMBERS):
            climbed, chosen = climb_pairs(evaluate, start, inside, radius, steps - steps // 2)
            # Halving never lowers a quotient; far pairs see an average of the curvature between.
            for _ in range(_HALVINGS):
                chosen = better_half(evaluate, chosen)
            refined, _ = climb_pairs(evaluate, chosen, inside, radius / 2**_HALVINGS, steps // 2)
            seen += climbed + refined
            spent += [_PAIR_STEP] * len(climbed) + [(2 * _HALVINGS + 1) * _PAIR_STEP]
            spent += [_PAIR_STEP] * (len(refined) - 1)
        return Trace.of(spent, seen)

    return _traced(climb, batch_size, y, x, *starts)


def best_pairs(pairs: Tensor, quotients: Tensor, count: int = 1) -> list[Tensor]:
    """Each row's best few of pairs (p, 2, m, d) with quotients (p, m), the best first, each (2, m, d)."""
    column = torch.arange(quotients.shape[1], device=pairs.device)
    ranks = quotients.topk(min(count, len(quotients)), dim=0).indices
    return [pairs[first, :, column].transpose(0, 1) for first in ranks]


def better_half(evaluate: PairSlopes, pairs: Tensor) -> Tensor:
    """Of each pair (2, m, d) the half with the larger quotient, which is at least the whole pair's."""
    middle = pairs.mean(0)
    halves = torch.stack([torch.stack([pairs[0], middle]), torch.stack([middle, pairs[1]])])
    return best_pairs(halves, torch.stack([evaluate(half)[0] for half in halves]))[0]


def climb_pairs(
    evaluate: PairSlopes, offsets: Tensor, allowed: Projection, reach: float, steps: int
) -> tuple[list[Tensor], Tensor]:
    """Quotients (m,) at each step of a climb held in its set by `allowed`, and the best pairs (2, m, d)."""
    seen: list[Tensor] = []
    best, kept = offsets.new_full(offsets.shape[1:2], -1.0), offsets
    for step in range(steps + 1):
        quotients, uphill = evaluate(offsets)
        seen.append(quotients)
        kept = offsets.where((quotients > best).unsqueeze(1), kept)
        best = torch.maximum(best, quotients)
        if step < steps:
            offsets = allowed(offsets + _step_length(step, steps, reach) * unit(uphill))
    return seen, kept


def pair_slopes(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, closest: float) -> PairSlopes:
    """The map from offsets (2, m, d) to the pairs' quotients (m,) and the gradient of their logarithm.

    The quotient of a pair closer than `closest` counts as 0.
    """
    centres, labels = torch.cat([x, x]), torch.cat([y, y])

    def evaluate(offsets: Tensor) -> tuple[Tensor, Tensor]:
        with frozen(model):
            offsets = offsets.detach().requires_grad_(True)
            inputs = centres + offsets.reshape(centres.shape)
            rows = differentiate(loss(model(inputs), labels), offsets, create_graph=True)
            square = (rows[0] - rows[1]).square().sum(1)
            slope = differentiate(square, offsets)
        check_finite(slope, "the gradients")
        square, gap = square.detach(), (offsets[0] - offsets[1]).detach()
        length = gap.norm(dim=1)
        pull = gap / length.square().clamp_min(closest**2).unsqueeze(1)
        slope = slope / (2 * square.clamp_min(torch.finfo(square.dtype).tiny)).unsqueeze(1)
        quotients = (square.sqrt() / length).where(length >= closest, 0.0)
        return quotients, slope - torch.stack([pull, -pull])

    return evaluate


def in_ball(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Offsets in the shape of x, uniform in the l2 ball, the same for every device and batch size."""
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).flatten(1)
    share = torch.rand(len(x), 1, generator=generator, dtype=torch.float64) ** (1 / direction.shape[1])
    offset = radius * share * unit(direction)
    return offset.reshape(x.shape).to(device=x.device, dtype=x.dtype)


def unit(rows: Tensor) -> Tensor:
    """Rows scaled to l2 length 1 along the last axis; zero rows stay."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows / length.where(length > 0, 1.0)


def project(rows: Tensor, radius: float) -> Tensor:
    """Rows pulled back into the l2 ball along the last axis."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows * (radius / length.where(length > radius, radius)) if radius > 0 else torch.zeros_like(rows)


def _image_slopes(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor) -> Slopes:
    """The map from offsets and fixed vectors v (m, d) to H v and the gradient of ||H v||^2 in the offset."""

    def evaluate(offset: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        with frozen(model):
            offset = offset.detach().requires_grad_(True)
            gradient = differentiate(loss(model(x + offset), y), offset, create_graph=True)
            image = differentiate(gradient.flatten(1) * vectors, offset, create_graph=True)
            return image.detach().flatten(1), differentiate(image.square(), offset)

    return evaluate


def _climb_norms(
    slopes: Slopes, curvature: Curve, offset: Tensor, vectors: Tensor, radius: float, steps: int
) -> tuple[list[Tensor | int], list[Tensor]]:
    """What each step of the climb, and a last look at its end, spent and saw."""
    spent: list[Tensor | int] = []
    seen: list[Tensor] = []
    for step in range(steps):
        if step and step % _REFRESH == 0:
            refreshed = curvature(offset)
            vectors = refreshed.vectors
            spent.append(refreshed.spent)
            seen.append(refreshed.norms)
        image, uphill = slopes(offset, vectors)
        spent.append(_NORM_STEP)
        seen.append(image.norm(dim=1))
        vectors = unit(image)
        moved = offset.flatten(1) + _step_length(step, steps, radius) * unit(uphill.flatten(1))
        offset = project(moved, radius).reshape(offset.shape)
    end = curvature(offset)
    return [*spent, end.spent], [*seen, end.norms]


def _step_length(step: int, steps: int, reach: float) -> float:
    """Steps that shrink to nothing, so that the climb ends on the peak and not beside it."""
    return 2 * _TRAVEL * reach / steps * (1 - step / steps)
