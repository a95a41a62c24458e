"""Measured once, used by every statement: losses, gradient norms and angles of N models, point by point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estimators.batching import (
    DEFAULT_BATCH,
    batched_logits,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    check_same_shape,
    check_target,
)
from estimators.gradients import gradient_directions
from estimators.losses import LossFunction, cross_entropy, label_losses
from estimators.sharing import in_batches
from estimators.similarity import cosines

# Attacks project onto the ball in float32, so ||x_adv - x|| may exceed eps by rounding.
_RADIUS_SLACK = 1e-4


@dataclass(frozen=True)
class LossTable:
    """Losses of N models at n points.

    Attributes:
        losses: At every label, (N, n, K) in float64.
        predictions: Labels of the largest logit, (N, n).
    """

    losses: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class CleanPoints(LossTable):
    """What N models say at n clean points, for every label.

    Attributes:
        y: True labels (n,).
        norms: l2 norms of the loss gradients, (N, n, K).
        cosines: Cosines between the loss gradients of two models, (N, N, n, K), NaN where one is zero.
        target: Target labels (n,), if any were given.
        margin_products: With targets: inner products (N, N, n) of the gradients of the margins
            m_i = l_i(x, y_t) - l_i(x, y).
        loss: The loss of all models.
    """

    y: Tensor
    norms: Tensor
    cosines: Tensor
    target: Tensor | None
    margin_products: Tensor | None
    loss: LossFunction

    @property
    def correct(self) -> Tensor:
        """Which models predict the true label, (N, n)."""
        return self.predictions == self.y


def measure_points(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    loss: LossFunction = cross_entropy,
    target: Tensor | int | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> CleanPoints:
    """Evaluate and differentiate every model's loss at every point and label, each once.

    Args:
        models: N networks from (n, *shape) to logits (n, K).
        x: Inputs (n, *shape) in the models' dtype.
        y: True labels (n,).
        loss: Per-sample loss of all models.
        target: Target label y_t, (n,) or one for all, if targeted statements are to be evaluated.
        batch_size: Pairs of a sample and a label treated at once.

    Raises:
        TypeError: If x is not floating-point or the labels are not integer.
        ValueError: If shapes, labels or values do not fit.
    """
    classes = check_inputs(tuple(models), x, batch_size)
    y = check_labels(y, x, classes)
    goal = None if target is None else check_target(target, x, classes)
    table = loss_table(models, loss, x, classes, batch_size)
    every_label = torch.arange(classes, device=x.device)

    def differentiated(x: Tensor, y: Tensor, *goal: Tensor) -> tuple[Tensor, ...]:
        labels = every_label.expand(len(x), -1)
        units, sizes = zip(*(gradient_directions(model, loss, x, labels) for model in models), strict=True)
        norms = torch.stack(sizes, 1)
        angles = torch.stack([torch.stack([cosines(one, other) for other in units], 1) for one in units], 1)
        if not goal:
            return norms, angles
        rows = torch.arange(len(x), device=x.device)
        slopes = torch.stack(
            [
                size[rows, goal[0], None] * unit[rows, goal[0]] - size[rows, y, None] * unit[rows, y]
                for unit, size in zip(units, sizes, strict=True)
            ]
        )
        return norms, angles, torch.einsum("ind,jnd->nij", slopes, slopes)

    # All labels of a sample stay in one batch, because margins join two of them.
    norms, angles, *products = in_batches(
        differentiated, max(1, batch_size // classes), x, y, *(() if goal is None else (goal,))
    )
    return CleanPoints(
        table.losses,
        table.predictions,
        y,
        norms.transpose(0, 1),
        angles.movedim(0, 2),
        goal,
        products[0].movedim(0, 2) if products else None,
        loss,
    )


def measure_attack(
    models: Sequence[nn.Module],
    x: Tensor,
    x_adv: Tensor,
    eps: float,
    *,
    loss: LossFunction = cross_entropy,
    batch_size: int = DEFAULT_BATCH,
) -> LossTable:
    """Evaluate every model at the attacked points.

    Args:
        models: N networks from (n, *shape) to logits (n, K).
        x: Clean inputs (n, *shape) in the models' dtype.
        x_adv: Attacked inputs (n, *shape) with ||x_adv - x||_2 <= eps.
        eps: l2 radius of the attack, positive.
        loss: Per-sample loss of all models.
        batch_size: Samples treated at once.

    Raises:
        TypeError: If inputs are not floating-point.
        ValueError: If shapes, values or eps do not fit, or an attack leaves the ball.
    """
    classes = check_inputs(tuple(models), x, batch_size)
    return loss_table(models, loss, check_attack(x, x_adv, eps), classes, batch_size)


def loss_table(
    models: Sequence[nn.Module], loss: LossFunction, x: Tensor, classes: int, batch_size: int
) -> LossTable:
    """Losses and predictions of every model, for inputs that are checked already.

    Raises:
        ValueError: If a loss is not per-sample, or not finite.
    """
    losses, predictions = [], []
    for model in models:
        check_loss(loss, model, x, classes)
        logits = batched_logits(model, x, batch_size)
        predictions.append(logits.argmax(1))
        with torch.no_grad():
            losses.append(torch.cat([label_losses(loss, part) for part in logits.split(batch_size)]).double())
        check_finite(losses[-1], "the losses")
    return LossTable(torch.stack(losses), torch.stack(predictions))


def check_attack(x: Tensor, x_adv: Tensor, eps: float) -> Tensor:
    """Check attacked inputs against their ball, for inputs x that are checked already.

    Returns:
        The attacked inputs in the dtype and on the device of x.

    Raises:
        TypeError: If they are not floating-point.
        ValueError: If the radius is not positive and finite, shapes differ, or an attack leaves the ball.
    """
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"expected a positive finite l2 radius eps, got {eps}")
    x_adv = check_same_shape(x_adv, x, "x_adv")
    longest = float(torch.linalg.vector_norm((x_adv - x).detach().flatten(1).double(), dim=1).max())
    if longest > eps * (1 + _RADIUS_SLACK):
        raise ValueError(f"expected attacks with ||x_adv - x||_2 <= eps = {eps:g}, got {longest:g}")
    return x_adv
