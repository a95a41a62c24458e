"""Curvature of the loss margins along given attacks: what the certificates ask of kappa for these pairs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

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
from estimators.losses import LossFunction, cross_entropy, label_losses
from estimators.sharing import in_batches


def margin_remainder(
    model: nn.Module,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    *,
    loss: LossFunction = cross_entropy,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Second-order remainder q of each margin m^k = l(., k) - l(., y) along given pairs, with its sign.

    `m(x_end) = m(x) + d.grad m(x) + q ||d||^2 / 2` with d = x_end - x. So for a certificate on these pairs
    alone (the refinement of TRS, Theorems 3 and 4, section 4.4, by one certificate a point) the lower
    curvature kappa = -q and the upper one kappa^+ = q are exact; for the ball both are lower bounds of the
    constants that hold for every step. Computed in float64; for tiny steps rounding dominates.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        x: Inputs (n, *shape) in the model's dtype.
        x_end: The points to which the margins are expanded, (n, *shape).
        y: True labels (n,).
        loss: Per-sample loss; the margins of cross-entropy are differences of logits.
        batch_size: Pairs treated at once.

    Returns:
        Margin per squared l2 distance, (n, K) in float64; 0 at k = y and for pairs that do not move.

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels or values do not fit.
    """
    classes = check_inputs((model,), x, batch_size)
    x_end = check_same_shape(x_end, x, "x_end")
    y = check_labels(y, x, classes)
    check_loss(loss, model, x, classes)
    exact_model = double_copy(model)
    with frozen(exact_model):
        (left,) = in_batches(partial(_left, exact_model, loss), batch_size, x.detach(), x_end.detach())
    check_finite(left, "the margins' remainders")
    square = (x_end.double() - x.detach().double()).flatten(1).square().sum(1, keepdim=True)
    quotient = (2 * left / square.where(square > 0, 1.0)).where(square > 0, 0.0)
    return quotient - quotient.gather(1, y.unsqueeze(1))


def _left(model: nn.Module, loss: LossFunction, start: Tensor, end: Tensor) -> tuple[Tensor]:
    """What the first-order expansion leaves of the loss at each label, up to a common term, (m, K)."""
    start, end = start.double(), end.double()
    point = start.detach().requires_grad_(True)
    at_start, at_end = (
        -model(inputs) if loss is cross_entropy else label_losses(loss, model(inputs))
        for inputs in (point, end)
    )
    # The derivative along d of all labels at once: differentiate w -> d . grad (w . l) in w.
    weights = torch.ones_like(at_start, requires_grad=True)
    (pulled,) = torch.autograd.grad(
        (weights * at_start).sum(), point, create_graph=True, materialize_grads=True
    )
    along = (pulled * (end - start)).sum()
    (change,) = torch.autograd.grad(along, weights, materialize_grads=True)
    return ((at_end - at_start - change).detach(),)
