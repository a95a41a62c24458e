"""Loss-gap constants of the theorems as printed: l_min (Theorems 3, 4) and c_F, c_G (Theorems 1, 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    check_same_shape,
    check_support,
    check_target,
)
from estimators.gradients import gradient_norms
from estimators.losses import LossFunction, label_losses

# Attacks project onto the ball in float32, so ||x_adv - x|| may exceed eps by rounding.
_RADIUS_SLACK = 1e-4


def minimum_loss(
    f: nn.Module,
    g: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | int | None = None,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """l_min of Theorem 3 (target given) or Theorem 4 (no target), as printed (TRS, section 4.4).

    Theorem 3: the smallest l_F(x, y_t) or l_G(x, y_t) over all points, those whose label is y_t included.
    Theorem 4: the smallest l_F(x, y') or l_G(x, y') over all points and all labels y' other than y.

    Args:
        f: First model, (n, *shape) to logits (n, K).
        g: Second model, with as many classes.
        loss: Per-sample loss of both models.
        x: Inputs (n, *shape) in the models' dtype.
        y: True labels (n,).
        target: Target label of Theorem 3, (n,) or one for all.
        support: "finite": the minimum over the given set, exact up to rounding. "population": a sample's
            minimum only bounds the infimum from above.
        batch_size: Samples evaluated at once.

    Returns:
        A loss: exact for "finite", (-inf, minimum] for "population".

    Raises:
        TypeError: If x is not floating-point or the labels are not integer.
        ValueError: If shapes, labels, values or the support's name do not fit.
    """
    check_support(support)
    classes = check_inputs((f, g), x, batch_size)
    y = check_labels(y, x, classes)
    chosen = nn.functional.one_hot(y, classes) == 0
    if target is not None:
        chosen = nn.functional.one_hot(check_target(target, x, classes), classes) == 1
    smallest = min(
        float(_label_losses(model, loss, x, classes, batch_size)[chosen].min()) for model in (f, g)
    )
    labels = "labels y' != y (Theorem 4)" if target is None else "the target label (Theorem 3)"
    seen = f"smallest loss of both models over {len(x)} points and {labels}"
    if support == "finite":
        return Estimate.exact(smallest, f"{seen}; exact for this finite set up to rounding", samples=len(x))
    return Estimate.at_most(
        smallest, f"{seen}; a sample's minimum, an upper bound for the population", samples=len(x)
    )


def targeted_constants(
    f: nn.Module,
    g: nn.Module,
    loss: LossFunction,
    x: Tensor,
    x_adv: Tensor,
    target: Tensor | int,
    *,
    beta: Estimate,
    eps: float,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Estimate, Estimate]:
    """c_F and c_G of Theorem 1 as printed (TRS, Theorem 1, section 4.3).

    c_F = max_x (min_y l_F(x^A, y) - l_F(x, y_t) + beta eps^2 / 2) / ||grad l_F(x, y_t)|| and
    c_G = min_x (min_y l_G(x^A, y) - l_G(x, y_t) - beta eps^2 / 2) / ||grad l_G(x, y_t)||, both minima over
    all labels. c_F increases and c_G decreases in beta, whose interval is carried through. A zero gradient
    makes a constant undefined; it is then reported as infinite on the side that voids the theorem.

    Args:
        f: Surrogate, (n, *shape) to logits (n, K).
        g: Target model, with as many classes.
        loss: Per-sample loss of both models.
        x: Clean inputs (n, *shape) in the models' dtype.
        x_adv: Attacked inputs (n, *shape) with ||x_adv - x||_2 <= eps.
        target: Target label y_t, (n,) or one for all.
        beta: Smoothness of both losses at the target label, on the attack's segments.
        eps: l2 radius of the attack, positive.
        support: "finite": exact given beta, up to rounding. "population": the extremes of a sample err to the
            inside, so c_F is only bounded from below and c_G from above.
        batch_size: Samples evaluated at once.

    Returns:
        c_F and c_G, lengths in the l2 norm of the inputs.

    Raises:
        TypeError: If the inputs are not floating-point or the labels are not integer.
        ValueError: If shapes, labels, values, eps or the support's name do not fit, or an attack leaves the
            ball.
    """
    classes, x_adv = _check_attack((f, g), x, x_adv, eps, support, batch_size)
    y_t = check_target(target, x, classes)
    every_label = torch.ones(len(x), classes, dtype=torch.bool, device=x.device)
    gaps = [_gaps(model, loss, x, x_adv, y_t, every_label, batch_size) for model in (f, g)]
    curvature = _half_square(beta, eps)
    return (
        _largest(gaps[0], curvature, f"c_F of Theorem 1 over {len(x)} points", support),
        _smallest(gaps[1], curvature, f"c_G of Theorem 1 over {len(x)} points", support),
    )


def untargeted_constants(
    f: nn.Module,
    g: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    *,
    beta: Estimate,
    eps: float,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Estimate, Estimate]:
    """c_F and c_G of Theorem 2 as printed (TRS, Theorem 2, section 4.3).

    c_F = min_(x,y) (min_{y' != y} l_F(x^A, y') - l_F(x, y) - beta eps^2 / 2) / ||grad l_F(x, y)|| and
    c_G = max_(x,y) (min_{y' != y} l_G(x^A, y') - l_G(x, y) + beta eps^2 / 2) / ||grad l_G(x, y)||. Here c_F
    decreases and c_G increases in beta. A zero gradient makes a constant undefined; it is then reported as
    infinite on the side that voids the theorem.

    Args:
        f: Surrogate, (n, *shape) to logits (n, K).
        g: Target model, with as many classes.
        loss: Per-sample loss of both models.
        x: Clean inputs (n, *shape) in the models' dtype.
        y: True labels (n,).
        x_adv: Attacked inputs (n, *shape) with ||x_adv - x||_2 <= eps.
        beta: Smoothness of both losses at the true label, on the attack's segments.
        eps: l2 radius of the attack, positive.
        support: "finite": exact given beta, up to rounding. "population": the extremes of a sample err to the
            inside, so c_F is only bounded from above and c_G from below.
        batch_size: Samples evaluated at once.

    Returns:
        c_F and c_G, lengths in the l2 norm of the inputs.

    Raises:
        TypeError: If the inputs are not floating-point or the labels are not integer.
        ValueError: If shapes, labels, values, eps or the support's name do not fit, or an attack leaves the
            ball.
    """
    classes, x_adv = _check_attack((f, g), x, x_adv, eps, support, batch_size)
    y = check_labels(y, x, classes)
    other_labels = nn.functional.one_hot(y, classes) == 0
    gaps = [_gaps(model, loss, x, x_adv, y, other_labels, batch_size) for model in (f, g)]
    curvature = _half_square(beta, eps)
    return (
        _smallest(gaps[0], curvature, f"c_F of Theorem 2 over {len(x)} points", support),
        _largest(gaps[1], curvature, f"c_G of Theorem 2 over {len(x)} points", support),
    )


@dataclass(frozen=True)
class _Gaps:
    """Loss gap min l(x^A, .) - l(x, label) and gradient norm at the points where the gradient is nonzero."""

    gap: Tensor
    norm: Tensor
    zeros: int

    def largest(self, shift: float) -> float:
        """Largest (gap + shift) / norm."""
        return float(((self.gap + shift) / self.norm).max()) if len(self.gap) else -math.inf

    def smallest(self, shift: float) -> float:
        """Smallest (gap - shift) / norm."""
        return float(((self.gap - shift) / self.norm).min()) if len(self.gap) else math.inf


def _gaps(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    x_adv: Tensor,
    labels: Tensor,
    allowed: Tensor,
    batch_size: int,
) -> _Gaps:
    classes = allowed.shape[1]
    attacked = _label_losses(model, loss, x_adv, classes, batch_size).where(allowed, math.inf).amin(1)
    clean = _label_losses(model, loss, x, classes, batch_size).gather(1, labels.unsqueeze(1)).squeeze(1)
    norm = gradient_norms(model, loss, x, labels, batch_size=batch_size)
    nonzero = norm > 0
    return _Gaps((attacked - clean)[nonzero], norm[nonzero], int((~nonzero).sum()))


def _label_losses(model: nn.Module, loss: LossFunction, x: Tensor, classes: int, batch_size: int) -> Tensor:
    """Losses (n, K) at every label, in float64."""
    check_loss(loss, model, x, classes)
    logits = batched_logits(model, x, batch_size)
    with torch.no_grad():
        losses = torch.cat([label_losses(loss, part) for part in logits.split(batch_size)]).double()
    check_finite(losses, "the losses")
    return losses


def _half_square(beta: Estimate, eps: float) -> Estimate:
    """The curvature term beta eps^2 / 2 with beta's interval, cut at 0 where an end is negative."""
    scale = eps * eps / 2
    return Estimate(
        max(beta.value, 0.0) * scale,
        max(beta.lower, 0.0) * scale,
        max(beta.upper, 0.0) * scale,
        failure_probability=beta.failure_probability,
        method=beta.method,
    )


def _largest(gaps: _Gaps, curvature: Estimate, name: str, support: str) -> Estimate:
    """Supremum of (gap + curvature) / norm: increasing in the curvature; a sample's maximum errs low."""
    void = gaps.zeros > 0
    open_above = void or support == "population"
    return Estimate(
        math.inf if void else gaps.largest(curvature.value),
        gaps.largest(curvature.lower),
        math.inf if open_above else gaps.largest(curvature.upper),
        failure_probability=curvature.failure_probability,
        method=_describe(f"{name}, a maximum", gaps, curvature, support),
        samples=len(gaps.gap) + gaps.zeros,
    )


def _smallest(gaps: _Gaps, curvature: Estimate, name: str, support: str) -> Estimate:
    """Infimum of (gap - curvature) / norm: decreasing in the curvature; a sample's minimum errs high."""
    void = gaps.zeros > 0
    open_below = void or support == "population"
    return Estimate(
        -math.inf if void else gaps.smallest(curvature.value),
        -math.inf if open_below else gaps.smallest(curvature.upper),
        gaps.smallest(curvature.lower),
        failure_probability=curvature.failure_probability,
        method=_describe(f"{name}, a minimum", gaps, curvature, support),
        samples=len(gaps.gap) + gaps.zeros,
    )


def _describe(name: str, gaps: _Gaps, curvature: Estimate, support: str) -> str:
    text = f"{name} as printed"
    if gaps.zeros:
        text += f"; undefined (reported as infinite): zero gradient at {gaps.zeros} points"
    text += (
        "; exact for this finite set given beta"
        if support == "finite"
        else "; a sample's extreme, one-sided for the population"
    )
    return f"{text}; beta: {curvature.method}" if curvature.method else text


def _check_attack(
    models: tuple[nn.Module, ...], x: Tensor, x_adv: Tensor, eps: float, support: str, batch_size: int
) -> tuple[int, Tensor]:
    check_support(support)
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"expected a positive finite l2 radius eps, got {eps}")
    classes = check_inputs(models, x, batch_size)
    x_adv = check_same_shape(x_adv, x, "x_adv")
    longest = float(torch.linalg.vector_norm((x_adv - x).detach().flatten(1).double(), dim=1).max())
    if longest > eps * (1 + _RADIUS_SLACK):
        raise ValueError(f"expected attacks with ||x_adv - x||_2 <= eps = {eps:g}, got {longest:g}")
    return classes, x_adv
