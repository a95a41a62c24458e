"""The smoothness constant beta of Definition 6: sampled from below, certified from above where possible."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.ascent import Trace, in_ball, norm_ascent, norms_at, quotient_ascent
from estimators.batching import check_inputs, check_labels, check_loss, check_same_shape, frozen
from estimators.certified.smoothness import certified_smoothness
from estimators.gradients import describe_labels
from estimators.hessian import HESSIAN_BATCH, KRYLOV_SIZE, check_iterations
from estimators.kinks import kinks, traced_jumps, traced_kinks
from estimators.losses import LossFunction

Sampling = Literal["hessian", "quotient", "ascent", "segment"]
Method = Literal["hessian", "quotient", "ascent", "segment", "certified"]

# Pairs start this close, as a share of the radius: distant ones only see an average of the curvature between.
_PAIR_SPREAD = 0.2


@dataclass(frozen=True)
class Convergence:
    """How the largest value seen over all samples grew with the work.

    Attributes:
        budget: Gradients and Hessian-vector products evaluated so far, per sample and label, on average.
            Increasing; the last entry is the whole cost.
        best: Largest value seen by then, loss per squared l2 distance. Never decreasing.
    """

    budget: tuple[float, ...]
    best: tuple[float, ...]


@dataclass(frozen=True)
class SampledSmoothness:
    """What a sampling method found.

    Attributes:
        estimate: Of beta over the union of all samples' sets, as `smoothness` returns it.
        convergence: How it was approached.
        per_sample: Largest value seen in each sample's own set, in the shape of y: (n,) or (n, L). Lower
            bounds; where the network has kinks, of a constant that does not exist.
    """

    estimate: Estimate
    convergence: Convergence
    per_sample: Tensor


def smoothness(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = 0.0,
    method: Method = "hessian",
    x_end: Tensor | None = None,
    iterations: int = KRYLOV_SIZE,
    points: int = 4,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = HESSIAN_BATCH,
) -> Estimate:
    """Smoothness beta of the loss (TRS, Definition 6, section 4.1) over the union of l2 balls around x.

    All methods but the last look at points and are lower bounds on the supremum, up to rounding in the dtype
    of x; they differ in where they look:

    - "hessian": Hessian spectral norms at x and, for a positive radius, at `points` random points per ball.
    - "ascent": Hessian norms along gradient ascent of ||H(x) v|| in the ball, v a top eigenvector that
      follows, from the best three of x and `points` random points.
    - "quotient": ||grad l(a) - grad l(b)|| / ||a - b|| along ascent over pairs a, b in the ball, from the
      best three of `points` random pairs; half-way the pairs shrink to their best eighth.
    - "segment": Hessian norms at x, at `x_end` and between, `points` in all: the set that a theorem about
      this one attack needs.
    - "certified": an upper bound that holds in the balls, or with radius 0 over all inputs, up to float64
      rounding, beside the sampled "hessian" one; for cross-entropy and layers that
      `estimators.certified.read_network` knows.

    `sampled_smoothness` returns the record of the search and each sample's own value as well.

    Where the model has kinks (ReLU, max-pooling) no finite beta exists: the value and the upper end are then
    infinite, and the lower end keeps what was sampled of the almost-everywhere Hessian or of the quotients.
    `finite_scale_smoothness` measures what such a model still has.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        radius: l2 radius of the balls; positive for "ascent" and "quotient", 0 for "segment".
        method: One of the above.
        x_end: Other ends of the segments, (n, *shape), for "segment" alone.
        iterations: Most Hessian products in one Krylov space, per spectral norm.
        points: Random points (for "quotient", pairs) per ball, or points per segment.
        steps: Moves of each ascent.
        seed: Of the starting vectors and random points.
        batch_size: Points treated at once.

    Returns:
        Loss per squared l2 distance. Sampled: [value, inf]. Certified: [sampled, certified], valued at the
        certified end. With kinks: value inf, [sampled, inf].

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels, values, counts, radius or method do not fit; if "certified" does not
            support a layer or the loss; or if a radius is too small for quotients in the dtype of x.
    """
    if method not in get_args(Method):
        raise ValueError(f"expected a method among {', '.join(get_args(Method))}, got {method!r}")
    search = partial(
        sampled_smoothness, model, loss, x, y, x_end=x_end, iterations=iterations, points=points, steps=steps,
        seed=seed, batch_size=batch_size,
    )  # fmt: skip
    if method == "certified":
        return _certified(model, loss, x, y, radius, search(radius=radius))
    return search(method=method, radius=radius).estimate


def sampled_smoothness(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = 0.0,
    method: Sampling = "hessian",
    x_end: Tensor | None = None,
    iterations: int = KRYLOV_SIZE,
    points: int = 4,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = HESSIAN_BATCH,
) -> SampledSmoothness:
    """`smoothness` by a sampling method, with the record of the search and each sample's own value.

    Args:
        model: As for `smoothness`, like all that follows.
        loss: Per-sample loss.
        x: Centres (n, *shape).
        y: Labels (n,) or (n, L).
        radius: l2 radius of the balls.
        method: "hessian", "quotient", "ascent" or "segment".
        x_end: Other ends of the segments.
        iterations: Most Hessian products in one Krylov space.
        points: Random points or pairs per ball, or points per segment.
        steps: Moves of an ascent.
        seed: Of the starting vectors and random points.
        batch_size: Points treated at once.

    Returns:
        The estimate, its convergence, and the largest value of each sample.

    Raises:
        TypeError: As `smoothness` does.
        ValueError: As `smoothness` does.
    """
    classes = check_inputs((model,), x, batch_size)
    x, y = x.detach(), check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    _check_method(method, radius, x_end, points, steps)
    check_iterations(iterations)

    norms = partial(norms_at, model, loss, y=y, iterations=iterations, seed=seed, batch_size=batch_size)
    balls = f"l2 balls of radius {radius:g}"
    if method == "segment":
        assert x_end is not None  # _check_method has seen to it
        x_end = check_same_shape(x_end, x, "x_end")
        trace = norms([torch.lerp(x, x_end, float(t)) for t in torch.linspace(0, 1, points)])
        how = f"Hessian norms at {points} points of each segment"
    elif method == "ascent":
        trace = norm_ascent(
            model, loss, x, y, radius=radius, points=points, steps=steps, iterations=iterations,
            seed=seed, batch_size=batch_size,
        )  # fmt: skip
        how = f"Hessian norms along {steps} ascent steps from the best of {points + 1} points each in {balls}"
    elif method == "quotient":
        trace = quotient_ascent(
            model, loss, x, y, radius=radius, closest=_closest_pair(x, radius), spread=_PAIR_SPREAD * radius,
            points=points, steps=steps, seed=seed, batch_size=batch_size,
        )  # fmt: skip
        how = f"gradient quotients along {steps} ascent steps from the best of {points} pairs in {balls}"
    elif radius > 0:
        generator = torch.Generator().manual_seed(seed)
        trace = norms([x, *(x + in_ball(x, radius, generator) for _ in range(points))])
        how = f"Hessian norms at the points given and at {points} random points in each of the {balls}"
    else:
        trace, how = norms([x]), "Hessian norms at the points given"
    how = f"{how}, {len(x)} samples, {describe_labels(y)}, in {x.dtype}"
    return _summary(model, loss, x, y, trace, how, seed)


def _summary(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, trace: Trace, how: str, seed: int
) -> SampledSmoothness:
    budget = trace.spent.double().mean(1).tolist()
    best = trace.best.amax(1).tolist()

    def forward() -> Tensor:
        with frozen(model):
            return loss(model(x[:1]), y[:1].flatten()[:1])

    kinked = kinks(model) or traced_kinks(forward)
    jumps = "".join(f"; {jump}" for jump in traced_jumps(forward))
    if kinked:
        why = f"infinite: no Lipschitz gradient because of {', '.join(kinked)}; lower end: largest of {how}"
        estimate = Estimate(math.inf, best[-1], math.inf, method=why + jumps, samples=len(x), seed=seed)
    else:
        text = f"largest of {how}; a lower bound up to rounding{jumps}"
        estimate = Estimate.at_least(best[-1], text, samples=len(x), seed=seed)
    convergence = Convergence(tuple(budget), tuple(best))
    return SampledSmoothness(estimate, convergence, trace.best[-1].reshape(y.shape))


def _certified(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, radius: float, sampled: SampledSmoothness
) -> Estimate:
    seen = sampled.estimate
    if math.isinf(seen.value):
        return seen
    everywhere = radius == 0
    upper = float(certified_smoothness(model, loss, x, y, radius=math.inf if everywhere else radius).max())
    where = "all inputs" if everywhere else f"l2 balls of radius {radius:g}"
    method = f"certified over {where}, up to float64 rounding; lower end: {seen.method}"
    # A sample in float32 may lie above a tight certificate by its own rounding.
    return replace(seen, value=upper, lower=min(seen.lower, upper), upper=upper, method=method)


def _closest_pair(x: Tensor, radius: float) -> float:
    """Closer pairs measure the rounding of the gradients rather than their change."""
    rounding = torch.finfo(x.dtype).eps ** 0.5 * max(1.0, float(x.abs().max()))
    closest = max(1e-3 * radius, rounding)
    if closest > radius:
        raise ValueError(
            f"expected a radius of at least {closest:.2g} for quotients in {x.dtype}, got {radius:g}"
        )
    return closest


def _check_method(method: str, radius: float, x_end: Tensor | None, points: int, steps: int) -> None:
    if method not in get_args(Sampling):
        raise ValueError(f"expected a method among {', '.join(get_args(Sampling))}, got {method!r}")
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"expected a finite radius of at least 0, got {radius}")
    if method in ("ascent", "quotient") and radius == 0:
        raise ValueError(f"expected a positive radius for method {method!r}, got 0")
    if method == "segment" and radius > 0:
        raise ValueError(f"expected radius 0 for method 'segment', got {radius}")
    if (method == "segment") != (x_end is not None):
        given = "none" if x_end is None else "one"
        raise ValueError(f"expected x_end for method 'segment' and for no other, got {given} for {method!r}")
    if points < 2:
        raise ValueError(f"expected at least 2 points, got {points}")
    if steps < 1:
        raise ValueError(f"expected at least 1 step, got {steps}")
