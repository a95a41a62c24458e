"""Certified ranges over l2 balls for models: margin curvature, gradient norms, cosines of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from estimators.batching import DEFAULT_BATCH
from estimators.certified.ball import BallBounds, ball_bounds, read_checked
from estimators.certified.operators import ROUNDING


def margin_curvature(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, *, batch_size: int = DEFAULT_BATCH
) -> tuple[Tensor, Tensor]:
    """Lower and upper curvature of the margins m^k = z_y - z_k over the l2 balls of a radius.

    `m^k(x + d) >= m^k + d.grad m^k - kappa_k ||d||^2 / 2`, and at most the same with `+ kappa_plus_k`, for
    all `||d|| <= radius`. This is what `bounds.certify_untargeted` and `bounds.must_transfer` take.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,).
        radius: l2 radius of the balls, at least 0.
        batch_size: Samples treated at once.

    Returns:
        kappa and kappa_plus, each (n, K), float64, logits per squared l2 distance: upper bounds on the
        largest eigenvalues of -Hess m^k and Hess m^k over the ball, up to rounding. Exact for radius 0.
        Infinite where the ball may touch a kink.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels or the radius do not fit, or a layer is not supported.
    """
    bounds = ball_bounds(*read_checked(model, x, y), radius, batch_size=batch_size)
    return bounds.kappa, bounds.kappa_plus


def certified_gradient_range(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, *, batch_size: int = DEFAULT_BATCH
) -> tuple[Tensor, Tensor]:
    """Range of the norm of the gradient of cross-entropy over the l2 balls of a radius.

    The largest upper end bounds the gradient magnitude B of TRS, Theorems 3 and 4, section 4.4, over the
    union of the balls.

    Args:
        model: Network from (n, *shape) to logits (n, K); kinks are allowed (all Clarke gradients).
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,).
        radius: l2 radius of the balls, at least 0.
        batch_size: Samples treated at once.

    Returns:
        Lower and upper bounds (n,), float64, loss per l2 distance, up to rounding.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels or the radius do not fit, or a layer is not supported.
    """
    bounds = ball_bounds(*read_checked(model, x, y), radius, batch_size=batch_size)
    return bounds.gradient_low, bounds.gradient_high


def cosine_range(
    f: nn.Module, g: nn.Module, x: Tensor, y: Tensor, radius: float, *, batch_size: int = DEFAULT_BATCH
) -> tuple[Tensor, Tensor]:
    """Range of the cosine of two models' cross-entropy gradients over the l2 balls of a radius.

    The gradient of cross-entropy has the direction of grad M, M = log sum_{k != y} exp(z_k - z_y) (see
    `estimators.certified.cross_entropy`). If grad M moves by at most r < ||grad M(x)||, it turns by at most
    arcsin(r / ||grad M(x)||); the angle of the two models changes by at most the sum of both.

    Args:
        f: First model, (n, *shape) to logits (n, K).
        g: Second model, with as many classes.
        x: Centres (n, *shape) in the models' dtype.
        y: Labels (n,): the true ones for TRS, Theorems 2 to 4, the target for Theorem 1.
        radius: l2 radius of the balls, at least 0.
        batch_size: Samples treated at once.

    Returns:
        Lower and upper bounds (n,), float64, within [-1, 1], up to rounding; [-1, 1] where nothing is known.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, classes, labels or the radius do not fit, or a layer is not supported.
    """
    first, second = (
        ball_bounds(*read_checked(model, x, y), radius, batch_size=batch_size) for model in (f, g)
    )
    return cosines_between(first, second)


def cosines_between(first: BallBounds, second: BallBounds) -> tuple[Tensor, Tensor]:
    """`cosine_range` from the bounds of two models over the same balls at the same labels.

    Raises:
        ValueError: If the models have different numbers of classes.
    """
    if first.margins.shape != second.margins.shape:
        raise ValueError(
            "expected models with the same number of classes, got "
            f"{first.margins.shape[1]} and {second.margins.shape[1]}"
        )
    angle = _angle(first.loss_direction, second.loss_direction)
    turn = sum(_turn(bounds.loss_direction.norm(dim=1), bounds.loss_deviation) for bounds in (first, second))
    low = torch.cos((angle + turn).clamp_max(math.pi)) - ROUNDING
    high = torch.cos((angle - turn).clamp_min(0.0)) + ROUNDING
    return low.clamp_min(-1.0), high.clamp_max(1.0)


def _angle(first: Tensor, second: Tensor) -> Tensor:
    """Angles (n,) between rows, accurate near 0 and pi too (Kahan)."""
    first, second = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) for rows in (first, second))
    return 2 * torch.atan2((first - second).norm(dim=1), (first + second).norm(dim=1))


def _turn(length: Tensor, deviation: Tensor) -> Tensor:
    """Largest angle between a vector of that length and any one no farther from it than the deviation."""
    quotient = deviation / length.clamp_min(1e-300)
    return torch.asin(quotient.clamp_max(1.0)).where(quotient < 1, math.pi)
