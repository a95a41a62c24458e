"""The inner side of the sandwich: perturbations that must fool all models, known from the benign point alone.

Refined result R7. Let `kappa_i^+` be an upper curvature of the margin: `m_i(x + d) <= m_i + d.g_i +
kappa_i^+ ||d||^2 / 2` on the ball, in the norm of the ball. A step d with `m_i + d.g_i + kappa_i^+ ||d||^2 /
2 < 0` for every model i fools them all, whatever the models do elsewhere. Together with `bounds.certificate`:
must transfer <= strongest joint attack <= not certified, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.certificate import Norm, _curvature_cost, _finite, _problem
from bounds.dual import Bools, Floats, l2_witness, linf_witness

Indices = NDArray[np.intp]

_MACHINE = float(np.finfo(np.float64).eps)
# The crossing is overshot by this fraction of the margins, so that it survives rounding.
_OVERSHOOT = 1e-9
_DESCENT_STEPS = 20


@dataclass(frozen=True)
class MustTransfer:
    """Steps that fool every model, with proof from the benign point.

    Attributes:
        guaranteed: Shape (n,): True where `direction` is proved to fool all models.
        direction: Shape (n, d), norm at most the radius: the step to try on the models themselves; where
            nothing is guaranteed it is the most promising one.
    """

    guaranteed: Bools
    direction: Floats


def must_transfer(
    margins: ArrayLike, gradients: ArrayLike, curvature: ArrayLike, radius: float, norm: Norm = "l2"
) -> MustTransfer:
    """Find a step in the ball that provably drives all N margins below zero (R7).

    In l2 the smallest step that crosses every margin after curvature is found exactly, so for affine margins
    nothing is missed; the steps against each single gradient are tried as well. In linf only sign steps are
    tried: sound, not complete.

    Args:
        margins: Loss margins at x, shape (n, N). For a targeted attack the margins of y_t against every other
            label of every model may be stacked along N.
        gradients: Gradients of the margins at x, shape (n, N, d).
        curvature: Upper curvature kappa^+ of the margins over the ball, in the norm of the ball, scalar or
            broadcastable to (n, N); may be negative.
        radius: Radius of the ball.
        norm: "l2" or "linf".

    Returns:
        Verdict and step of every sample.

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative or the norm unknown.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm)
    best = np.full(len(margins), np.inf)
    direction = np.zeros((len(margins), gradients.shape[2]))
    for step in _candidate_steps(margins, gradients, curvature, radius, norm):
        height = _worst_margin(step, margins, gradients, curvature, norm)
        better = height < best
        best = np.where(better, height, best)
        direction[better] = step[better]
    return MustTransfer(best < 0, direction)


@dataclass(frozen=True)
class Curvature:
    """Symmetric matrices Q_i for N margins of n samples, by what they make of a step.

    Attributes:
        push: Maps samples (m,), in ascending order, and a step (m, d) of each to `Q_i d`, (m, N, d).
        sizes: Bounds (n, N) on the norms of the Q_i; d units in the last place of them bound the rounding of
            `push` for a step of length 1.
        dips: Bounds (n, N) on how far below zero an eigenvalue of Q_i is.
    """

    push: Callable[[Indices, Floats], Floats]
    sizes: Floats
    dips: Floats


def must_transfer_curved(
    margins: ArrayLike, gradients: ArrayLike, curvature: Curvature, radius: float, start: ArrayLike
) -> MustTransfer:
    """R7 in l2 with curvature matrices: `m_i(x + d) <= m_i + d.g_i + d^T Q_i d / 2` on the ball.

    The step is found by projected descent of the worst of these bounds, and judged by them alone. A sample
    leaves once its step is found, or once the tangent of a weighted sum of its bounds shows that there is
    none.

    Args:
        margins: Upper bounds on the margins at x, shape (n, N).
        gradients: Gradients of the margins at x, shape (n, N, d).
        curvature: The matrices Q_i.
        radius: Radius of the l2 ball.
        start: Steps inside the ball to begin with, shape (n, d).

    Returns:
        Verdict and step of every sample.

    Raises:
        ValueError: If shapes disagree, a number is NaN or the radius is negative.
    """
    margins, gradients, _ = _problem(margins, gradients, 0.0, radius, "l2")
    step = _finite("start", start, 2).copy()
    n, models, dimension = gradients.shape
    shapes = step.shape, curvature.sizes.shape, curvature.dips.shape
    if shapes != ((n, dimension), (n, models), (n, models)):
        raise ValueError(
            f"expected steps (n, d), sizes and dips (n, N) for gradients of shape {gradients.shape}, "
            f"got {', '.join(map(str, shapes))}"
        )
    best, direction, open_ = np.full(n, np.inf), step.copy(), np.arange(n)
    scale = np.abs(margins) + np.linalg.norm(gradients, axis=2) * radius + curvature.sizes * radius**2
    rounding = _MACHINE * (dimension + 8) * scale
    for turn in range(_DESCENT_STEPS + 1):
        if not len(open_):
            break
        here = step[open_]
        pushed = curvature.push(open_, here)
        heights = margins[open_] + ((gradients[open_] + pushed / 2) * here[:, None]).sum(2)
        worst = (heights + rounding[open_]).max(axis=1)
        better = worst < best[open_]
        best[open_[better]], direction[open_[better]] = worst[better], here[better]
        spread = np.abs(heights).mean(axis=1, keepdims=True) + np.finfo(float).tiny
        share = np.exp(3.0 * (heights - heights.max(axis=1, keepdims=True)) / spread)
        share /= share.sum(axis=1, keepdims=True)
        slope = (share[:, :, None] * (gradients[open_] + pushed)).sum(axis=1)
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        # The weighted sum lies above its tangent, but for its dips; two points of the ball are 2 eps apart.
        lowest = (share * (heights - rounding[open_] - 2 * curvature.dips[open_] * radius**2)).sum(axis=1)
        hopeless = lowest - (slope * here).sum(axis=1) - radius * length[:, 0] > 0
        pace = 0.5 * radius * (1.0 - turn / (_DESCENT_STEPS + 1))
        step[open_] = _clipped(
            here - pace * np.divide(slope, length, out=np.zeros_like(slope), where=length > 0), radius
        )
        open_ = open_[(worst >= 0) & ~hopeless]
    return MustTransfer(best < 0, direction)


def _candidate_steps(
    margins: Floats, gradients: Floats, curvature: Floats, radius: float, norm: Norm
) -> Iterator[Floats]:
    """Steps worth trying, each of shape (n, d) and inside the ball."""
    yield np.zeros((len(margins), gradients.shape[2]))
    needed = margins + _curvature_cost(curvature, radius)
    needed = needed + _OVERSHOOT * np.abs(margins).max(axis=1, keepdims=True)
    if norm == "linf":
        weights = linf_witness(needed, gradients, radius)
        for weight in (
            weights,
            *np.broadcast_to(np.eye(margins.shape[1])[:, None], (margins.shape[1], *margins.shape)),
        ):
            yield -radius * np.sign(np.einsum("ni,nid->nd", weight, gradients))
        return
    weights = l2_witness(needed, gradients @ gradients.swapaxes(-1, -2), np.inf)
    combined = -np.einsum("ni,nid->nd", weights, gradients)
    square = np.einsum("nd,nd->n", combined, combined)
    pull = np.maximum(np.einsum("ni,ni->n", weights, needed), 0.0)
    length = np.divide(pull, square, out=np.zeros_like(pull), where=square > 0)
    yield _clipped(length[:, None] * combined, radius)
    for step in (combined, *(-gradients[:, i] for i in range(margins.shape[1]))):
        size = np.linalg.norm(step, axis=1, keepdims=True)
        yield _clipped(radius * np.divide(step, size, out=np.zeros_like(step), where=size > 0), radius)


def _clipped(steps: Floats, radius: float) -> Floats:
    """Steps pulled back into the closed l2 ball, a rounding error inside it."""
    size = np.linalg.norm(steps, axis=1, keepdims=True)
    limit = radius * (1.0 - 16 * _MACHINE)
    return np.where(size > limit, steps * (limit / np.where(size > 0, size, 1.0)), steps)


def _worst_margin(steps: Floats, margins: Floats, gradients: Floats, curvature: Floats, norm: Norm) -> Floats:
    """Upper bound on the largest margin after the step, rounding included, shape (n,)."""
    order = 2 if norm == "l2" else np.inf
    square = np.linalg.norm(steps, ord=order, axis=1)[:, None] ** 2
    # An unknown (infinite) curvature leaves only the empty step, whose margin is known.
    cost = np.where(square > 0, curvature * np.where(square > 0, square, 1.0) / 2.0, 0.0)
    change = np.einsum("nd,nid->ni", steps, gradients)
    size = np.abs(margins) + np.einsum("nd,nid->ni", np.abs(steps), np.abs(gradients)) + np.abs(cost)
    return (margins + change + cost + _MACHINE * (gradients.shape[2] + 6) * size).max(axis=1)
