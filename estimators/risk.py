"""Rates and mean losses: the risks of Definition 3 and the effectiveness of Definition 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    Support,
    batched_logits,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    check_target,
)
from estimators.distribution import EVERYTHING, Distribution, Range
from estimators.losses import LossFunction, cross_entropy


def risk(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    support: Support = "finite",
    confidence: float = 0.95,
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Error rate eta = Pr(F(x) != y) of the model (TRS, Definition 3, section 4.1).

    Args:
        model: Network from (n, *shape) to logits (n, K); it predicts the largest logit.
        x: Inputs (n, *shape) in the model's dtype.
        y: True labels (n,).
        support: "finite": the rate over the given set, exact. "population": Clopper-Pearson interval, for
            points drawn independently.
        confidence: Of the interval in "population".
        batch_size: Samples evaluated at once.

    Returns:
        A probability, two-sided.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values, the support's name or the confidence do not fit.
    """
    about = Distribution(support, confidence)
    y = check_labels(y, x, check_inputs((model,), x, batch_size))
    return about.rate(batched_logits(model, x, batch_size).argmax(1) != y, "error rate")


def empirical_risk(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    loss_range: Range | None = None,
    support: Support = "finite",
    confidence: float = 0.95,
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Mean loss xi = E[l(x, y)] (TRS, Definition 3, section 4.1).

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        y: True labels (n,).
        loss_range: Certified range of the loss over the population's domain, such as
            `estimators.certified.loss_range` gives.
        support: "finite": the mean over the given set, exact up to rounding. "population": a betting interval
            from `loss_range`. Without it no distribution-free interval exists: of cross-entropy, which is not
            negative, the mean is then bounded from below only, of other losses not at all.
        confidence: Of the interval in "population".
        batch_size: Samples evaluated at once.

    Returns:
        A mean in the loss's unit, two-sided.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values, the support's name or the confidence do not fit, or a loss lies
            outside `loss_range`.
    """
    about = Distribution(support, confidence)
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes)
    check_loss(loss, model, x, classes)
    with torch.no_grad():
        losses = loss(batched_logits(model, x, batch_size), y).double()
    check_finite(losses, "the losses")
    return about.mean(losses, "mean loss", loss_range or known_range(loss))


def known_range(loss: LossFunction) -> Range:
    """What is known of a loss without looking at a model: cross-entropy is not negative."""
    return (0.0, math.inf) if loss is cross_entropy else EVERYTHING


def effectiveness(
    model: nn.Module,
    x_adv: Tensor,
    labels: Tensor | int,
    *,
    targeted: bool,
    support: Support = "finite",
    confidence: float = 0.95,
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Failure rate alpha = 1 - Pr(the attack succeeds) over all points (TRS, Definition 2, section 3).

    Success is F(x_adv) != y untargeted and F(x_adv) = y_t targeted. As defined, points that were
    misclassified without an attack count as successes.

    Args:
        model: The attacked model, (n, *shape) to logits (n, K).
        x_adv: Attacked inputs (n, *shape), one for every point of the data, in the model's dtype.
        labels: True labels (n,) untargeted; target labels, (n,) or one for all, targeted.
        targeted: Which of the two definitions.
        support: "finite": the rate over the given set, exact. "population": Clopper-Pearson interval, for
            points drawn independently.
        confidence: Of the interval in "population".
        batch_size: Samples evaluated at once.

    Returns:
        A probability of failure of the attack, two-sided; the smaller, the more effective the attack.

    Raises:
        TypeError: If x_adv is not floating-point or the labels are not integer.
        ValueError: If shapes, labels, values, the support's name or the confidence do not fit.
    """
    about = Distribution(support, confidence)
    wanted = check_target(labels, x_adv, check_inputs((model,), x_adv, batch_size))
    reached = batched_logits(model, x_adv, batch_size).argmax(1) == wanted
    if targeted:
        return about.rate(~reached, "targeted attack failure rate")
    return about.rate(reached, "untargeted attack failure rate")
