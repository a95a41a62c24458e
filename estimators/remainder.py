"""The exact Taylor remainder constant of a given attack: all that the theorems' proofs ask of beta."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    check_same_shape,
    double_copy,
    frozen,
)
from estimators.gradients import describe_labels, differentiate
from estimators.losses import LossFunction
from estimators.sharing import pairs_in_batches

# Allowance for the rounding of the loss and of the first-order term, in float64 units of the terms' sizes.
_ROUNDING_UNITS = 64


def remainder(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    *,
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Largest 2 |l(x_end) - l(x) - (x_end - x).grad l(x)| / ||x_end - x||^2 over given pairs and labels.

    This is what the proofs use of beta for one given attack, with x_end = A(x): Theorem 1 in Eq. 6 and 7
    (label y_t), Theorem 2 in their counterparts behind Eq. 13 and 14 (label y), Theorems 3 and 4 in Eq. 20
    and 21 and in the expansion before Eq. 26 (labels y and y_t or y') (TRS, appendices B and C). Replacing
    beta by this number keeps those lines true for these pairs, even for a network with kinks, where beta is
    infinite; it is not the smoothness of Definition 6, and it says nothing about another attack.

    Computed in float64, on a copy where the model is not float64. For tiny steps the quotient is dominated by
    rounding, for which the interval leaves 64 units of the sizes of the terms on both sides.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        x_end: The points to which the loss is expanded, (n, *shape).
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        batch_size: Pairs treated at once.

    Returns:
        Loss per squared l2 distance: two-sided, for this finite set. Pairs that do not move count as 0.

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels or values do not fit.
    """
    classes = check_inputs((model,), x, batch_size)
    x_end = check_same_shape(x_end, x, "x_end")
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    exact_model = double_copy(model)
    quotient, allowance = pairs_in_batches(
        partial(_quotients, exact_model, loss), batch_size, y, x.detach(), x_end.detach()
    )
    still = int((x_end == x).flatten(1).all(1).sum())
    method = (
        f"exact Taylor remainder of {len(x)} given pairs, {describe_labels(y)}, in float64; "
        "holds for these pairs only"
    )
    if still:
        method += f"; {still} pairs do not move"
    return Estimate(
        float(quotient.max()),
        float((quotient - allowance).clamp_min(0.0).max()),
        float((quotient + allowance).max()),
        method=method,
        samples=len(x),
    )


def _quotients(
    model: nn.Module, loss: LossFunction, labels: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Remainder quotients (m,) and what rounding may add to or take from them, both 0 for pairs at rest."""
    start, end = start.double(), end.double()
    with frozen(model):
        point = start.detach().requires_grad_(True)
        logits = model(point)
        at_start = loss(logits, labels)
        gradient = differentiate(at_start, point).flatten(1)
        with torch.no_grad():
            logits_end = model(end)
            at_end = loss(logits_end, labels)
            at_start = at_start.detach()
            step = (end - start).flatten(1)
            terms = step * gradient
            left = at_end - at_start - terms.sum(1)
            size = at_start.abs() + at_end.abs() + terms.abs().sum(1)
            size += logits.detach().abs().amax(1) + logits_end.abs().amax(1)
    check_finite(left, "the Taylor remainders")
    moved = step.any(1)
    square = step.square().sum(1).where(moved, 1.0)
    units = _ROUNDING_UNITS * torch.finfo(left.dtype).eps
    quotient = (2 * left.abs() / square).where(moved, 0.0)
    return quotient, (2 * units * size / square).where(moved, 0.0)
