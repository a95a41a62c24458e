"""What all attacks share: the attacker's goal, the losses it ascends, one evaluated iterate, and checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.attacks.perturbation import choose
from empirical.pullback import WithPullback

PixelRange = tuple[float, float] | None

# A loss that falls by less than this share of itself has not fallen: float32 rounding of a saturated loss.
LOSS_ROUNDING = 1e-6
# Keeps the ratio of logits finite where the three largest are equal.
_DLR_FLOOR = 1e-12


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Best other logit minus the logit of the label, (n,): positive exactly where the label loses.

    The loss of Carlini and Wagner without its cut. A difference of logits, so that log-probabilities (an
    ensemble's output) serve as well as raw logits.
    """
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def dlr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (n,): the margin loss over the largest minus the third largest logit.

    Neither a shift nor a scaling of the logits changes it (Croce and Hein 2020, equation 6), so that
    log-probabilities serve as well as raw logits. Where the label is third it is constant and has no gradient
    (the model is fooled by then). It needs at least three classes.
    """
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, labels) / (top[:, 0] - top[:, 2] + _DLR_FLOOR)


def targeted_dlr_loss(logits: Tensor, target: Tensor) -> Tensor:
    """As `dlr_loss`, over the largest minus the mean of the third and fourth largest logit, (n,).

    The ratio of the untargeted loss is constant where the target is third. Croce and Hein (2020, equation 7)
    print the true label's logit where this has the best other one, which is the same until the model is
    fooled. It needs at least four classes.
    """
    top = logits.topk(4, dim=1).values
    return margin_loss(logits, target) / (top[:, 0] - top[:, 2:].mean(1) + _DLR_FLOOR)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample, (n,)."""
    return functional.cross_entropy(logits, labels, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin_loss,
    "dlr": dlr_loss,
}
TARGETED_LOSSES = {**LOSSES, "dlr": targeted_dlr_loss}


class Goal(NamedTuple):
    """What the attacker wants of each sample: away from the true label, or towards a target."""

    labels: Tensor
    targeted: bool

    def at(self, rows: Tensor) -> Goal:
        """The goal for the samples with these numbers."""
        return self._replace(labels=self.labels[rows])

    def attack_loss(self, loss: str, logits: Tensor) -> Tensor:
        """The (n,) loss of that name which the attack ascends: of the true label up, of a target down."""
        if self.targeted:
            return -TARGETED_LOSSES[loss](logits, self.labels)
        return LOSSES[loss](logits, self.labels)

    def loss_and_slope(self, loss: str, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The attack loss (n,) and, where gradients are enabled, its gradient by the logits (n, K)."""
        if not torch.is_grad_enabled():
            return self.attack_loss(loss, logits), logits.new_empty(0)
        if loss == "ce":  # what autograd computes, without its graph
            log_p = functional.log_softmax(logits, 1)
            sign = 1.0 if self.targeted else -1.0
            labels = self.labels[:, None]
            chosen = torch.zeros_like(log_p).scatter_(1, labels, sign)
            slope = torch.ops.aten._log_softmax_backward_data(chosen, log_p, 1, log_p.dtype)
            return sign * log_p.gather(1, labels).squeeze(1), slope
        leaf = logits.detach().requires_grad_()
        losses = self.attack_loss(loss, leaf)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    def reached(self, predicted: Tensor) -> Tensor:
        """Where predicted labels (n,) are what the attacker wants, (n,) bool."""
        return (predicted == self.labels) if self.targeted else (predicted != self.labels)


class Iterates(NamedTuple):
    """A batch of iterates, one a sample, with the attack loss there and whether the model is fooled."""

    x: Tensor
    loss: Tensor
    fooled: Tensor

    def clone(self) -> Iterates:
        """A copy in memory of its own."""
        return Iterates(*(each.clone() for each in self))

    def at(self, rows: Tensor) -> Iterates:
        """The iterates of the samples with these numbers."""
        return Iterates(*(each.index_select(0, rows) for each in self))

    def improve(self, rows: Tensor, found: Iterates) -> None:
        """Put those `found` for the samples with these numbers in place of these, where they are `better`."""
        for each, new in zip(self, better(self.at(rows), found), strict=True):
            each.index_copy_(0, rows, new)

    def where(self, rows: Tensor, others: Iterates) -> Iterates:
        """These iterates in the `rows` (n,) bool, the `others` elsewhere."""
        return Iterates(
            choose(rows, self.x, others.x),
            torch.where(rows, self.loss, others.loss),
            torch.where(rows, self.fooled, others.fooled),
        )


class Perturbed(NamedTuple):
    """Images that an attack made, the share of zero gradients and the share of runs with monotone loss."""

    x_adv: Tensor
    zero_gradients: float
    monotone_loss: float


class AttackMethod(Protocol):
    """An attack with its settings: what `empirical.attacks.run.run_attack` runs."""

    @property
    def norm(self) -> str:
        """Norm in which the size of its perturbations is reported: "linf", "l2" or "l1"."""
        ...

    @property
    def seed(self) -> int | None:
        """Seed of its random choices, None if it makes none."""
        ...

    def check(self, classes: int, targeted: bool, pixel_range: PixelRange) -> None:
        """Refuse, before any work, a number of classes, a goal or a pixel range that it cannot serve."""

    def perturb(
        self, model: nn.Module, x: Tensor, goal: Goal, pixel_range: PixelRange, batch_size: int
    ) -> Perturbed:
        """Attack checked samples x on a frozen model in evaluation mode."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields, the method's name under "method"."""
        ...


def evaluate(
    network: WithPullback, point: Tensor, goal: Goal, loss: str, *, with_gradient: bool = True
) -> tuple[Iterates, Tensor]:
    """The iterates at `point` and the gradient of the attack loss there (empty unless asked for)."""
    with torch.set_grad_enabled(with_gradient):
        logits, pullback = network(point)
        # Samples do not interact in evaluation mode: the sum's gradient holds every sample's gradient.
        losses, by_logits = goal.loss_and_slope(loss, logits)
        gradient = pullback(by_logits) if with_gradient else point.new_empty(0)
    return Iterates(point, losses, goal.reached(logits.argmax(1))), gradient


def better(kept: Iterates, found: Iterates) -> Iterates:
    """Per sample the iterate that fools the model; of two alike the one of larger loss; of equals the later.

    Where rounding makes the loss flat (tiny gradients), the later iterate went farther along its gradient.
    The images found go into the memory of those kept.
    """
    wins = (found.fooled & ~kept.fooled) | ((found.fooled == kept.fooled) & (found.loss >= kept.loss))
    choose(wins, found.x, kept.x, out=kept.x)
    return Iterates(kept.x, torch.where(wins, found.loss, kept.loss), kept.fooled | found.fooled)


def not_fallen(before: Tensor, after: Tensor) -> Tensor:
    """Where losses (..., n) have not fallen, up to float rounding."""
    return after >= before - LOSS_ROUNDING * before.abs().clamp(min=1)


def check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        raise ValueError(f"expected {field} to be one of {', '.join(known)}, got {value!r}")


def check_positive(field: str, value: float) -> None:
    """Refuse what is not a positive finite number.

    Raises:
        ValueError: If it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected {field} to be a positive finite number, got {value}")


def check_integer(field: str, value: int, least: int) -> None:
    """Refuse what is not an integer of at least `least`.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"expected {field} to be an integer of at least {least}, got {value}")
