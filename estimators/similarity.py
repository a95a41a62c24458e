"""Loss gradient similarity of two models: Definitions 4 and 5."""

from __future__ import annotations

import math

from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    Support,
    check_inputs,
    check_labels,
    check_loss,
)
from estimators.distribution import Distribution
from estimators.gradients import describe_labels, gradient_directions, samples_at_once
from estimators.losses import LossFunction, cross_entropy
from estimators.sharing import in_batches


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
    about = Distribution(support)
    classes = check_inputs((f, g), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    for model in (f, g):
        check_loss(loss, model, x, classes)

    def angles(x: Tensor, y: Tensor) -> tuple[Tensor]:
        (of_f, _), (of_g, _) = (gradient_directions(model, loss, x, y) for model in (f, g))
        return (cosines(of_f, of_g),)

    found = in_batches(angles, samples_at_once(batch_size, y), x, y)[0]
    return cosine_extremes(found, about, f"over {len(x)} points, {describe_labels(y)}", len(x))


def cosines(units_f: Tensor, units_g: Tensor) -> Tensor:
    """Cosines of rows (..., d) of length 1 or 0, NaN where one of the two is zero, (...)."""
    defined = units_f.any(-1) & units_g.any(-1)
    return (units_f * units_g).sum(-1).clamp(-1.0, 1.0).where(defined, math.nan)


def cosine_extremes(found: Tensor, about: Distribution, seen: str, samples: int) -> tuple[Estimate, Estimate]:
    """Infimum and supremum of cosines, the undefined ones (NaN) left out and counted.

    Args:
        found: Cosines at the points (and labels).
        about: The distribution of the points.
        seen: What they were taken over, in words.
        samples: Number of points.

    Raises:
        ValueError: If no cosine is defined.
    """
    defined = found[~found.isnan()]
    zeros = found.numel() - len(defined)
    if len(defined) == 0:
        raise ValueError(f"expected a nonzero gradient pair, got a zero gradient in all {zeros} pairs")
    if zeros:
        # A zero gradient adds nothing to the sums in the proofs of Theorems 3 and 4; c_F, c_G divide by it.
        seen += (
            f"; undefined and left out at {zeros} of {found.numel()} pairs with a zero gradient, "
            "which Theorems 3 and 4 may do and which voids Theorems 1 and 2"
        )
    return (
        about.infimum(defined, f"smallest cosine {seen}", floor=-1.0, samples=samples),
        about.supremum(defined, f"largest cosine {seen}", ceiling=1.0, samples=samples),
    )
