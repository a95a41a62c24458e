"""Rates and mean losses: the risks of Definition 3 and the effectiveness of Definition 2."""

from __future__ import annotations

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
    check_support,
    check_target,
)
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
    _check_statistics(support, confidence)
    y = check_labels(y, x, check_inputs((model,), x, batch_size))
    wrong = batched_logits(model, x, batch_size).argmax(1) != y
    return _rate(wrong, "error rate", support, confidence)


def empirical_risk(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Mean loss xi = E[l(x, y)] (TRS, Definition 3, section 4.1).

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        y: True labels (n,).
        support: "finite": the mean over the given set, exact up to rounding. "population": a mean of
            unbounded losses has no distribution-free interval, so the ends are the loss's own range.
        batch_size: Samples evaluated at once.

    Returns:
        A mean in the loss's unit: exact for "finite"; for "population" [0, inf] for cross-entropy and
        (-inf, inf) for other losses.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the support's name do not fit.
    """
    check_support(support)
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes)
    check_loss(loss, model, x, classes)
    with torch.no_grad():
        losses = loss(batched_logits(model, x, batch_size), y).double()
    check_finite(losses, "the losses")
    mean = float(losses.mean())
    if support == "finite":
        method = f"mean loss over {len(x)} points; exact for this finite set up to rounding"
        return Estimate.exact(mean, method, samples=len(x))
    method = (
        f"mean loss over {len(x)} points; a loss without a known upper end has no distribution-free interval"
    )
    lowest = 0.0 if loss is cross_entropy else -torch.inf
    return Estimate(mean, lowest, torch.inf, method=method, samples=len(x))


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
    _check_statistics(support, confidence)
    wanted = check_target(labels, x_adv, check_inputs((model,), x_adv, batch_size))
    reached = batched_logits(model, x_adv, batch_size).argmax(1) == wanted
    if targeted:
        return _rate(~reached, "targeted attack failure rate", support, confidence)
    return _rate(reached, "untargeted attack failure rate", support, confidence)


def _check_statistics(support: str, confidence: float) -> None:
    check_support(support)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")


def _rate(events: Tensor, name: str, support: str, confidence: float) -> Estimate:
    count, trials = int(events.sum()), len(events)
    method = f"{name}: {count} of {trials} points"
    if support == "finite":
        return Estimate.exact(count / trials, f"{method}; exact for this finite set", samples=trials)
    return Estimate.proportion(
        count, trials, confidence=confidence, method=f"{method}; Clopper-Pearson at {confidence:g}"
    )
