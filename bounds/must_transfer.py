"""The inner side of the sandwich: perturbations that must fool all models, known from the benign point alone.

Refined result R7. Let `kappa_i^+` be an upper curvature of the margin: `m_i(x + d) <= m_i + d.g_i +
kappa_i^+ ||d||^2 / 2` on the ball, in the norm of the ball. A step d with `m_i + d.g_i + kappa_i^+ ||d||^2 /
2 < 0` for every model i fools them all, whatever the models do elsewhere. Together with `bounds.certificate`:
must transfer <= strongest joint attack <= not certified, sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bounds.certificate import Norm, _curvature_cost, _finite, _label_choices, _problem
from bounds.dual import Bools, Floats, l2_witness, linf_witness

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


def must_transfer_curved(
    margins: ArrayLike, gradients: ArrayLike, matrices: ArrayLike, radius: float, start: ArrayLike
) -> MustTransfer:
    """R7 in l2 with curvature matrices: `m_i(x + d) <= m_i + d.g_i + d^T Q_i d / 2` on the ball.

    The step is found by projected descent of the worst of these bounds, and judged by them alone.

    Args:
        margins: Upper bounds on the margins at x, shape (n, N).
        gradients: Gradients of the margins at x, shape (n, N, d).
        matrices: Symmetric matrices Q_i, shape (n, N, d, d).
        radius: Radius of the l2 ball.
        start: Steps inside the ball to begin with, shape (n, d).

    Returns:
        Verdict and step of every sample.

    Raises:
        ValueError: If shapes disagree, a number is NaN or the radius is negative.
    """
    margins, gradients, _ = _problem(margins, gradients, 0.0, radius, "l2")
    matrices, step = _finite("matrices", matrices, 4), _finite("start", start, 2)
    n, models, dimension = gradients.shape
    if matrices.shape != (n, models, dimension, dimension) or step.shape != (n, dimension):
        raise ValueError(
            f"expected matrices (n, N, d, d) and steps (n, d) for gradients of shape {gradients.shape}, "
            f"got {matrices.shape} and {step.shape}"
        )
    best, direction = np.full(n, np.inf), step.copy()
    size = np.abs(margins) + np.linalg.norm(gradients, axis=2) * radius
    size = size + np.linalg.norm(matrices, axis=(2, 3)) * radius**2
    for turn in range(_DESCENT_STEPS + 1):
        pushed = (matrices @ step[:, None, :, None])[..., 0]
        heights = margins + ((gradients + pushed / 2) * step[:, None]).sum(2)
        worst = (heights + _MACHINE * (dimension + 8) * size).max(axis=1)
        direction[worst < best] = step[worst < best]
        best = np.minimum(best, worst)
        spread = np.abs(heights).mean(axis=1, keepdims=True) + np.finfo(float).tiny
        share = np.exp(3.0 * (heights - heights.max(axis=1, keepdims=True)) / spread)
        slope = ((share / share.sum(axis=1, keepdims=True))[:, :, None] * (gradients + pushed)).sum(axis=1)
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        pace = 0.5 * radius * (1.0 - turn / (_DESCENT_STEPS + 1))
        step = _clipped(
            step - pace * np.divide(slope, length, out=np.zeros_like(slope), where=length > 0), radius
        )
    return MustTransfer(best < 0, direction)


def must_transfer_untargeted(
    margins: ArrayLike, gradients: ArrayLike, curvature: ArrayLike, radius: float, norm: Norm = "l2"
) -> MustTransfer:
    """Find a step that provably makes all N models wrong, each into a label of its own (R7).

    Args:
        margins: Loss margins towards each of the L wrong labels, shape (n, N, L).
        gradients: Their gradients, shape (n, N, L, d).
        curvature: Upper curvature in the norm of the ball, scalar or broadcastable to (n, N, L).
        radius: Radius of the ball.
        norm: "l2" or "linf".

    Returns:
        Verdict and step of every sample; the first choice of labels that is guaranteed wins.

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative or the norm unknown.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm, labels=True)
    n, models, labels = margins.shape
    guaranteed, direction = np.zeros(n, dtype=bool), np.zeros((n, gradients.shape[-1]))
    model = np.arange(models)
    for choice in _label_choices(models, labels, models):
        pick = (np.flatnonzero(~guaranteed)[:, None], model, choice)
        found = must_transfer(margins[pick], gradients[pick], curvature[pick], radius, norm)
        direction[pick[0][:, 0]] = found.direction
        guaranteed[pick[0][:, 0]] = found.guaranteed
    return MustTransfer(guaranteed, direction)


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
