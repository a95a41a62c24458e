"""The smoothness constant beta of Definition 6: sampled from below, certified from above where possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    batches,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    check_same_shape,
    frozen,
)
from estimators.certified.linear import linear_softmax_smoothness
from estimators.gradients import describe_labels, differentiate
from estimators.hessian import KRYLOV_SIZE, check_iterations, starting_vector, top_curvature
from estimators.kinks import kinks, traced_kinks
from estimators.losses import LossFunction

Method = Literal["hessian", "quotient", "ascent", "segment", "certified"]

# Ascent may travel this many radii in total, enough to cross the ball.
_TRAVEL = 2.5

# The vector v held in the ascent of ||H(x) v|| follows by one power step per move, and afresh this often.
_REFRESH = 5

# Pairs start this close, as a share of the radius: distant ones only see an average of the curvature between.
_PAIR_SPREAD = 0.2


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
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Smoothness beta of the loss (TRS, Definition 6, section 4.1) over the union of l2 balls around x.

    All methods but the last look at points and are lower bounds on the supremum, up to rounding in the dtype
    of x; they differ in where they look:

    - "hessian": Hessian spectral norms at x and, for a positive radius, at `points` random points per ball.
    - "ascent": Hessian norms along gradient ascent of ||H(x) v|| in the ball, v a top eigenvector that
      follows, from the best of x and `points` random points.
    - "quotient": ||grad l(a) - grad l(b)|| / ||a - b|| along ascent over pairs a, b in the ball, from the
      best of `points` random pairs.
    - "segment": Hessian norms at x, at `x_end` and between, `points` in all: the set that a theorem about
      this one attack needs.
    - "certified": a certain upper bound, over all inputs, beside the sampled "hessian" one. So far for linear
      softmax only.

    Where the model has kinks (ReLU, max-pooling) no finite beta exists: the value and the upper end are then
    infinite, and the lower end keeps what was sampled of the almost-everywhere Hessian or of the quotients.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        radius: l2 radius of the balls; positive for "ascent" and "quotient", 0 for "segment".
        method: One of the above.
        x_end: Other ends of the segments, (n, *shape), for "segment" alone.
        iterations: Hessian products per spectral norm (Krylov size).
        points: Random points (for "quotient", pairs) per ball, or points per segment.
        steps: Moves of an ascent.
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
    classes = check_inputs((model,), x, batch_size)
    x, y = x.detach(), check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    _check_method(method, radius, x_end, points, steps)
    check_iterations(iterations)

    largest_norm = partial(
        _largest_norm, model, loss, y, iterations=iterations, seed=seed, batch_size=batch_size
    )
    if method == "certified":
        upper = linear_softmax_smoothness(model, loss, x)
        text = (
            "certified over all inputs: max ||w_k - w_l||^2 / 4 of linear softmax, inflated by 1e-9; "
            f"lower end: Hessian norms at {len(x)} points"
        )
        lower = min(largest_norm(x), upper)
        return Estimate(upper, lower, upper, method=text, samples=len(x), seed=seed)
    balls = f"l2 balls of radius {radius:g}"
    if method == "segment":
        assert x_end is not None  # _check_method has seen to it
        x_end = check_same_shape(x_end, x, "x_end")
        seen = max(largest_norm(torch.lerp(x, x_end, float(t))) for t in torch.linspace(0, 1, points))
        how = f"Hessian norms at {points} points of each segment"
    elif method == "ascent":
        seen = _norm_ascent(
            model, loss, x, y, radius=radius, points=points, steps=steps, iterations=iterations,
            seed=seed, batch_size=batch_size,
        )  # fmt: skip
        how = f"Hessian norms along {steps} ascent steps from the best of {points + 1} points in {balls}"
    elif method == "quotient":
        seen = _quotient_ascent(
            model, loss, x, y, radius=radius, points=points, steps=steps, seed=seed, batch_size=batch_size
        )
        how = f"gradient quotients along {steps} ascent steps from the best of {points} pairs in {balls}"
    else:
        seen, how = largest_norm(x), "Hessian norms at the points given"
        if radius > 0:
            generator = torch.Generator().manual_seed(seed)
            drawn = [largest_norm(x + _in_ball(x, radius, generator)) for _ in range(points)]
            seen, how = max(seen, *drawn), f"{how} and at {points} random points in each of the {balls}"
    how = f"{how}, {len(x)} samples, {describe_labels(y)}, in {x.dtype}"
    kinked = kinks(model) or traced_kinks(lambda: _forward(model, loss, x[:1], y[:1].flatten()[:1]))
    if kinked:
        why = f"infinite: no Lipschitz gradient because of {', '.join(kinked)}; lower end: largest of {how}"
        return Estimate(math.inf, seen, math.inf, method=why, samples=len(x), seed=seed)
    return Estimate.at_least(
        seen, f"largest of {how}; a lower bound up to rounding", samples=len(x), seed=seed
    )


def _largest_norm(
    model: nn.Module,
    loss: LossFunction,
    y: Tensor,
    x: Tensor,
    *,
    iterations: int,
    seed: int,
    batch_size: int,
) -> float:
    start = starting_vector(x, seed)
    return max(
        float(top_curvature(model, loss, part, labels, start, iterations)[0].max())
        for labels, part in batches(y, batch_size, x)
    )


def _check_method(method: str, radius: float, x_end: Tensor | None, points: int, steps: int) -> None:
    if method not in get_args(Method):
        raise ValueError(f"expected a method among {', '.join(get_args(Method))}, got {method!r}")
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


def _forward(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor) -> Tensor:
    with frozen(model):
        return loss(model(x), y)


def _in_ball(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Offsets in the shape of x, uniform in the l2 ball, the same for every device and batch size."""
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).flatten(1)
    share = torch.rand(len(x), 1, generator=generator, dtype=torch.float64) ** (1 / direction.shape[1])
    offset = radius * share * direction / direction.norm(dim=1, keepdim=True)
    return offset.reshape(x.shape).to(device=x.device, dtype=x.dtype)


def _norm_ascent(
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
) -> float:
    """Largest ||H v|| seen while climbing it in each ball, from the best of the centre and random points."""
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.zeros_like(x), *(_in_ball(x, radius, generator) for _ in range(points))]
    krylov_start = starting_vector(x, seed)
    best = 0.0
    for labels, centre, *offsets in batches(y, batch_size, x, *starts):

        def curvature(
            offset: Tensor, centre: Tensor = centre, labels: Tensor = labels
        ) -> tuple[Tensor, Tensor]:
            return top_curvature(model, loss, centre + offset, labels, krylov_start, iterations)

        sizes = torch.stack([curvature(offset)[0] for offset in offsets])
        chosen = torch.stack(offsets)[sizes.argmax(0), torch.arange(len(labels), device=x.device)]
        climbed = _climb_norms(_image_slopes(model, loss, centre, labels), curvature, chosen, radius, steps)
        best = max(best, float(sizes.max()), climbed)
    return best


def _image_slopes(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The map from offsets and fixed vectors v (m, d) to H v and the gradient of ||H v||^2 in the offset."""

    def evaluate(offset: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        with frozen(model):
            offset = offset.detach().requires_grad_(True)
            gradient = differentiate(loss(model(x + offset), y), offset, create_graph=True)
            image = differentiate(gradient.flatten(1) * vectors, offset, create_graph=True)
            return image.detach().flatten(1), differentiate(image.square(), offset)

    return evaluate


def _climb_norms(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    curvature: Callable[[Tensor], tuple[Tensor, Tensor]],
    offset: Tensor,
    radius: float,
    steps: int,
) -> float:
    best = 0.0
    vectors = torch.zeros_like(offset.flatten(1))
    for step in range(steps):
        if step % _REFRESH == 0:
            sizes, vectors = curvature(offset)
            best = max(best, float(sizes.max()))
        image, uphill = evaluate(offset, vectors)
        best = max(best, float(image.norm(dim=1).max()))
        vectors = _unit(image)
        moved = offset.flatten(1) + _step_length(step, steps, radius) * _unit(uphill.flatten(1))
        offset = _project(moved, radius).reshape(offset.shape)
    return max(best, float(curvature(offset)[0].max()))


def _quotient_ascent(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    points: int,
    steps: int,
    seed: int,
    batch_size: int,
) -> float:
    """Largest gradient quotient seen while climbing it in each ball, from the best of random pairs."""
    # Closer pairs measure the rounding of the gradients rather than their change.
    rounding = torch.finfo(x.dtype).eps ** 0.5 * max(1.0, float(x.detach().abs().max()))
    closest = max(1e-3 * radius, rounding)
    if closest > radius:
        raise ValueError(
            f"expected a radius of at least {closest:.2g} for quotients in {x.dtype}, got {radius:g}"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for _ in range(points):
        first = _in_ball(x, radius, generator).flatten(1)
        near = first + _in_ball(x, max(_PAIR_SPREAD * radius, closest), generator).flatten(1)
        starts += [first, _project(near, radius)]
    best = 0.0
    for labels, centre, *offsets in batches(y, batch_size, x, *starts):
        evaluate = _pair_slopes(model, loss, centre, labels, closest)
        pairs = torch.stack(offsets).reshape(points, 2, *offsets[0].shape)
        first = torch.stack([evaluate(pair)[0] for pair in pairs]).argmax(0)
        chosen = pairs[first, :, torch.arange(len(labels), device=x.device)].transpose(0, 1)
        best = max(best, _climb_quotients(evaluate, chosen, radius, steps))
    return best


def _pair_slopes(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, closest: float
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
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


def _climb_quotients(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], offsets: Tensor, radius: float, steps: int
) -> float:
    best = 0.0
    for step in range(steps):
        quotients, uphill = evaluate(offsets)
        best = max(best, float(quotients.max()))
        offsets = _project(offsets + _step_length(step, steps, radius) * _unit(uphill), radius)
    return max(best, float(evaluate(offsets)[0].max()))


def _step_length(step: int, steps: int, radius: float) -> float:
    """Steps that shrink to nothing, so that the climb ends on the peak and not beside it."""
    return 2 * _TRAVEL * radius / steps * (1 - step / steps)


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to l2 length 1 along the last axis; zero rows stay."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows / length.where(length > 0, 1.0)


def _project(rows: Tensor, radius: float) -> Tensor:
    """Rows pulled back into the l2 ball along the last axis."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows * (radius / length.where(length > radius, radius))
