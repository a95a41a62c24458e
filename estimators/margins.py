"""Loss-gap constants of the theorems: l_min (Theorems 3, 4) and c_F, c_G (Theorems 1, 2; repaired 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels, check_target
from estimators.distribution import Distribution
from estimators.gradients import gradient_norms
from estimators.losses import LossFunction
from estimators.points import check_attack, loss_table


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
    about = Distribution(support)
    classes = check_inputs((f, g), x, batch_size)
    wrong = ~is_label(check_labels(y, x, classes), classes)
    if target is not None:
        wrong = is_label(check_target(target, x, classes), classes)
    losses = loss_table((f, g), loss, x, classes, batch_size).losses
    labels = "labels y' != y (Theorem 4)" if target is None else "the target label (Theorem 3)"
    seen = f"smallest loss of both models over {len(x)} points and {labels}"
    return about.infimum(losses[:, wrong], seen, samples=len(x))


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
    repaired: bool = False,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Estimate, Estimate]:
    """c_F and c_G of Theorem 1, as printed or repaired (TRS, Theorem 1, section 4.3).

    c_F = max_x (min_y l_F(x^A, y) - l_F(x, y_t) + beta eps^2 / 2) / ||grad l_F(x, y_t)|| and
    c_G = min_x (min_y l_G(x^A, y) - l_G(x, y_t) - beta eps^2 / 2) / ||grad l_G(x, y_t)||, both minima over
    all labels. Repaired, the minimum in c_G is over y != y_t; c_G is then no smaller, and the theorem not
    vacuous. c_F increases and c_G decreases in beta, whose interval is carried through. A zero gradient makes
    a constant undefined; it is then reported as infinite on the side that voids the theorem.

    Args:
        f: Surrogate, (n, *shape) to logits (n, K).
        g: Target model, with as many classes.
        loss: Per-sample loss of both models.
        x: Clean inputs (n, *shape) in the models' dtype.
        x_adv: Attacked inputs (n, *shape) with ||x_adv - x||_2 <= eps.
        target: Target label y_t, (n,) or one for all.
        beta: Smoothness of both losses at the target label, on the attack's segments.
        eps: l2 radius of the attack, positive.
        repaired: Whether c_G is the one of the repaired theorem.
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
    classes = check_inputs((f, g), x, batch_size)
    label = check_target(target, x, classes)
    every_label = torch.ones(len(x), classes, dtype=torch.bool, device=x.device)
    compared = every_label, ~is_label(label, classes) if repaired else every_label
    of_f, of_g = _measured_gaps((f, g), loss, x, x_adv, label, compared, eps, batch_size)
    about, bend = Distribution(support), half_square(beta, eps)
    number = "1, repaired" if repaired else "1"
    return (
        of_f.extreme(1, bend, f"c_F of Theorem {number}", about),
        of_g.extreme(-1, bend, f"c_G of Theorem {number}", about),
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
    """c_F and c_G of Theorem 2 (TRS, Theorem 2, section 4.3).

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
    classes = check_inputs((f, g), x, batch_size)
    label = check_labels(y, x, classes)
    others = ~is_label(label, classes)
    of_f, of_g = _measured_gaps((f, g), loss, x, x_adv, label, (others, others), eps, batch_size)
    about, bend = Distribution(support), half_square(beta, eps)
    return (
        of_f.extreme(-1, bend, "c_F of Theorem 2", about),
        of_g.extreme(1, bend, "c_G of Theorem 2", about),
    )


def is_label(y: Tensor, classes: int) -> Tensor:
    """Which of the labels is y's, (n, K) bool."""
    return nn.functional.one_hot(y, classes) == 1


def half_square(beta: Estimate, eps: float) -> Estimate:
    """The curvature term beta eps^2 / 2 with beta's interval, cut at 0 where an end is negative."""
    scale = eps * eps / 2
    return Estimate(
        max(beta.value, 0.0) * scale,
        max(beta.lower, 0.0) * scale,
        max(beta.upper, 0.0) * scale,
        failure_probability=beta.failure_probability,
        method=beta.method,
    )


@dataclass(frozen=True)
class LossGaps:
    """What the f and g of the proofs of Theorems 1 and 2 consist of, point by point.

    Attributes:
        gap: min over the compared labels k of l(x^A, k), minus l(x, label), (n,).
        norm: ||grad l(x, label)||, (n,).
    """

    gap: Tensor
    norm: Tensor

    @classmethod
    def between(
        cls, attacked: Tensor, clean: Tensor, norms: Tensor, label: Tensor, compared: Tensor
    ) -> LossGaps:
        """From one model's attacked and clean losses and gradient norms (n, K), and the labels compared."""
        at_label = label.unsqueeze(1)
        lowest = attacked.where(compared, math.inf).amin(1)
        return cls(lowest - clean.gather(1, at_label).squeeze(1), norms.gather(1, at_label).squeeze(1))

    def quotients(self, sign: int, bend: float) -> Tensor:
        """The f or g, (gap + sign bend) / norm, (n,); infinite without a gradient, on the voiding side."""
        zero = self.norm == 0
        return ((self.gap + sign * bend) / self.norm.where(~zero, 1.0)).where(~zero, sign * math.inf)

    def extreme(self, sign: int, bend: Estimate, name: str, about: Distribution) -> Estimate:
        """Supremum (sign 1) or infimum (sign -1) of the quotients, with the ends of the curvature term.

        One zero gradient leaves the constant undefined, and the theorem without a bound: the value and the
        outer end are then infinite. So is the outer end for a population, where a sample errs to the inside.
        """
        defined = self.norm > 0
        zeros = int((~defined).sum())

        def over_defined(curvature: float) -> float:
            values = sign * self.quotients(sign, curvature)[defined]
            return sign * (float(values.max()) if len(values) else -math.inf)

        inner, outer = over_defined(bend.lower), over_defined(bend.upper)
        if zeros or about.support == "population":
            outer = sign * math.inf
        method = f"{name} over {len(self.gap)} points, a {'maximum' if sign > 0 else 'minimum'}"
        if zeros:
            method += f"; undefined (reported as infinite): zero gradient at {zeros} points"
        method += (
            "; exact for this finite set given beta"
            if about.support == "finite"
            else "; a sample's extreme, one-sided for the population"
        )
        return Estimate(
            sign * math.inf if zeros else over_defined(bend.value),
            min(inner, outer),
            max(inner, outer),
            failure_probability=bend.failure_probability,
            method=f"{method}; beta: {bend.method}" if bend.method else method,
            samples=len(self.gap),
        )


def _measured_gaps(
    models: tuple[nn.Module, nn.Module],
    loss: LossFunction,
    x: Tensor,
    x_adv: Tensor,
    label: Tensor,
    compared: tuple[Tensor, Tensor],
    eps: float,
    batch_size: int,
) -> list[LossGaps]:
    """Loss gaps of two models, each with its own compared labels (n, K)."""
    x_adv = check_attack(x, x_adv, eps)
    classes = compared[0].shape[1]
    clean = loss_table(models, loss, x, classes, batch_size).losses
    attacked = loss_table(models, loss, x_adv, classes, batch_size).losses
    gaps = []
    for index, model in enumerate(models):
        norms = gradient_norms(model, loss, x, label, batch_size=batch_size).unsqueeze(1).expand(-1, classes)
        gaps.append(LossGaps.between(attacked[index], clean[index], norms, label, compared[index]))
    return gaps
