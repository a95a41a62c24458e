"""Loss gradient similarity of two models: Definitions 4 and 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    Support,
    check_inputs,
    check_labels,
    check_loss,
    check_support,
)
from estimators.gradients import describe_labels, unit_gradients
from estimators.losses import LossFunction, cross_entropy


def gradient_similarity(
    f: nn.Module,
    g: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossFunction = cross_entropy,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Estimate, Estimate]:
    """Infimum and supremum of the cosine of two loss gradients (TRS, Definitions 4 and 5, section 4.1).

    The cosine of two cross-entropy gradients equals that of the margins' gradients and is computed there,
    because p - e_y rounds to zero at confident points. Where a gradient is exactly zero the definitions say
    nothing: such points are left out and their number is given in `method`.

    Args:
        f: First model, (n, *shape) to logits (n, K).
        g: Second model, with as many classes.
        x: Inputs (n, *shape) in the models' dtype.
        y: Labels (n,), or (n, L). Theorem 1 needs the target label, Theorems 2 to 4 the true one.
        loss: Per-sample loss of both models.
        support: "finite": the extremes over the given set are exact (up to rounding). "population": a
            sample's extremes err to the inside; only the range of a cosine, [-1, 1], bounds the other side.
        batch_size: Samples differentiated at once.

    Returns:
        The infimum and the supremum: exact for "finite", [-1, minimum] and [maximum, 1] for "population".

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the support's name do not fit, or if every pair of gradients
            has a zero among the two.
    """
    check_support(support)
    classes = check_inputs((f, g), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    for model in (f, g):
        check_loss(loss, model, x, classes)
    cosines, zeros = _cosines(f, g, x, y, loss, batch_size)
    if len(cosines) == 0:
        raise ValueError(f"expected a nonzero gradient pair, got a zero gradient in all {zeros} pairs")
    low, high = float(cosines.min()), float(cosines.max())
    seen = f"over {len(x)} points, {describe_labels(y)}"
    if zeros:
        seen += f"; undefined and left out at {zeros} of {y.numel()} pairs with a zero gradient"
    if support == "finite":
        exact = f"cosine {seen}; exact for this finite set up to rounding"
        return (
            Estimate.exact(low, f"smallest {exact}", samples=len(x)),
            Estimate.exact(high, f"largest {exact}", samples=len(x)),
        )
    side = (
        "a sample's extreme, which errs to the inside for the population; the other end is a cosine's range"
    )
    return (
        Estimate(low, -1.0, low, method=f"smallest cosine {seen}; {side}", samples=len(x)),
        Estimate(high, high, 1.0, method=f"largest cosine {seen}; {side}", samples=len(x)),
    )


def _cosines(
    f: nn.Module, g: nn.Module, x: Tensor, y: Tensor, loss: LossFunction, batch_size: int
) -> tuple[Tensor, int]:
    """The defined cosines in float64, and the number of undefined ones."""
    found, zeros = [], 0
    pairs = zip(
        unit_gradients(f, loss, x, y, batch_size=batch_size),
        unit_gradients(g, loss, x, y, batch_size=batch_size),
        strict=True,
    )
    for of_f, of_g in pairs:
        defined = of_f.any(1) & of_g.any(1)
        zeros += int((~defined).sum())
        found.append((of_f * of_g).sum(1)[defined].clamp(-1.0, 1.0))
    return torch.cat(found), zeros
