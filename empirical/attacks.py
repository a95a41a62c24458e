"""Gradient attacks with a fixed step: FGSM, BIM, PGD and MIM, in l2 and linf, untargeted and targeted.

One loop serves all four (TRS, section 6.1): from a start, step along a normalised gradient of the attack
loss and project back onto the perturbation ball and the pixel range. The methods differ in three things:

| method | start                    | direction                                              | steps |
|--------|--------------------------|--------------------------------------------------------|-------|
| fgsm   | clean image              | gradient                                               | 1     |
| bim    | clean image              | gradient                                               | any   |
| pgd    | uniform in the ball      | gradient                                               | any   |
| mim    | clean image              | running sum of l1-normalised gradients (momentum 1.0)  | any   |

The direction is scaled for the ball: its sign for linf, unit length for l2. (Section 6.1 prints BIM, PGD
and MIM without the sign; the works it cites for them have it.) A zero gradient gives a zero step and is
counted in the attack's health.

The attack is a function defined everywhere, on misclassified images too, as the probabilities of Definitions
2 and 7 need it. The images that it returns satisfy ||x_adv - x|| <= eps in the attack's norm for the tensors
as stored (rounding included, no tolerance) and stay inside the pixel range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.perturbation import Ball, normalised, sample_norms, spread, uniform_in_unit_ball
from estimators.batching import (
    DEFAULT_BATCH,
    batched_logits,
    check_finite,
    check_inputs,
    check_labels,
    check_target,
    frozen,
)

METHODS = ("fgsm", "bim", "pgd", "mim")
NORMS = ("linf", "l2")
FAILURE_POLICIES = ("best", "last", "clean")
MOMENTUM = 1.0

# A loss that falls by less than this share of itself has not fallen: float32 rounding of a saturated loss.
_LOSS_ROUNDING = 1e-6


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Best other logit minus the logit of the label, (n,): positive exactly where the label loses.

    A difference of logits, so that log-probabilities (an ensemble's output) serve as well as raw logits.
    """
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": _cross_entropy, "margin": margin_loss}


@dataclass(frozen=True)
class Attack:
    """What to run: one fixed-step gradient attack.

    Attributes:
        method: `fgsm`, `bim`, `pgd` or `mim`.
        norm: Norm of the perturbation ball, `linf` or `l2`.
        eps: Radius of the ball, in units of the input (pixels in [0, 1]).
        steps: Number of steps; `fgsm` always takes one.
        step_size: Length of a step in the attack's norm; None is eps / 5, as in TRS, section 6.1. `fgsm`
            always steps by eps.
        restarts: Number of random starts of `pgd`; the other methods are deterministic and take 1.
        on_failure: Which image stands for a sample.
            `best`: of all iterates of all restarts one that fools the model, if any does, and among equals
            the one of largest attack loss. `last`: the final iterate, as in textbooks; of several restarts
            the one whose final iterate is best in that order. `clean`: as `best` where the model is fooled,
            the clean image elsewhere (several libraries do so silently; it lowers measured transfer).
        seed: Seed of the random starts.
        loss: What is ascended: `ce` (cross-entropy) or `margin` (best other logit minus the label's).

    Raises:
        ValueError: If a name is unknown, a number is out of range, or a deterministic method gets restarts.
    """

    method: str = "pgd"
    norm: str = "linf"
    eps: float = 0.1
    steps: int = 50
    step_size: float | None = None
    restarts: int = 1
    on_failure: str = "best"
    seed: int = 0
    loss: str = "ce"

    def __post_init__(self) -> None:
        _check_name("method", self.method, METHODS)
        _check_name("norm", self.norm, NORMS)
        _check_name("on_failure", self.on_failure, FAILURE_POLICIES)
        _check_name("loss", self.loss, tuple(LOSSES))
        _check_positive("eps", self.eps)
        if self.step_size is not None:
            _check_positive("step_size", self.step_size)
        for name, least in (("steps", 1), ("restarts", 1), ("seed", 0)):
            _check_integer(name, getattr(self, name), least)
        if self.restarts > 1 and self.method != "pgd":
            raise ValueError(
                f"expected restarts = 1 for {self.method}, which has no random start, got {self.restarts}"
            )

    @property
    def schedule(self) -> tuple[int, float]:
        """Number of steps taken and the length of each, in the attack's norm."""
        if self.method == "fgsm":
            return 1, self.eps
        return self.steps, self.eps / 5 if self.step_size is None else self.step_size

    def __str__(self) -> str:
        steps = "" if self.method == "fgsm" else f"-{self.steps}"
        restarts = f" x{self.restarts}" if self.restarts > 1 else ""
        loss = "" if self.loss == "ce" else f" on {self.loss}"
        return f"{self.method.upper()}{steps}{restarts}{loss}, {self.norm} eps {self.eps:g}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Attack:
        """The attack that `to_json` described."""
        return cls(**fields)


@dataclass(frozen=True)
class AttackHealth:
    """Signs that an attack did not work as meant.

    Attributes:
        zero_gradients: Share of all gradients taken (samples x steps x restarts) that were exactly zero.
        monotone_loss: Share of runs (samples x restarts) whose attack loss never fell from one iterate to the
            next, up to float rounding.
        unchanged: Share of returned images equal to the clean one.
        black: Share of returned images that are all zero where the clean one was not.
        out_of_range: Share of returned images with a pixel outside the pixel range.
        largest_norm: Largest ||x_adv - x|| in the attack's norm, computed in float64.
    """

    zero_gradients: float
    monotone_loss: float
    unchanged: float
    black: float
    out_of_range: float
    largest_norm: float

    def to_json(self) -> dict[str, float]:
        """A JSON-ready mapping of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, float]) -> AttackHealth:
        """The health that `to_json` described."""
        return cls(**fields)


@dataclass(frozen=True)
class AttackResult:
    """What an attack returned, and how it got there.

    Attributes:
        x_adv: Attacked images (n, *shape), dtype and device of the clean ones.
        success: (n,) bool: the attacked model misclassifies `x_adv` (untargeted; true as well where it
            misclassified the clean image and still does), or predicts the target (targeted).
        health: Signs that the attack did not work as meant.
        attack: The attack that was run, its failure policy included.
        target: (n,) target labels, or None for an untargeted attack.
    """

    x_adv: Tensor
    success: Tensor
    health: AttackHealth
    attack: Attack
    target: Tensor | None = None


def run_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    target: int | Tensor | None = None,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> AttackResult:
    """Attack every sample, leaving the model and the global random state as they were.

    Untargeted, the loss of the true label is maximised; targeted, the loss of the target is minimised (TRS,
    Definition 1, applied to misclassified samples too). The model runs in evaluation mode, each submodule
    gets its mode back, and no `.grad`, buffer or `requires_grad` flag is touched. Random starts are drawn for
    the whole set at once: `batch_size` changes the result only by the rounding of the model's arithmetic.

    Args:
        model: Maps (n, *shape) to logits or log-probabilities (n, K).
        x: Clean images (n, *shape), floating point.
        y: True labels (n,).
        attack: The attack to run.
        target: Target label, one for all or one per sample (n,); None for an untargeted attack. A target
            equal to the true label is allowed (the attack then strengthens the prediction).
        pixel_range: Smallest and largest valid value, or None for data without a range.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If `x` is not floating point, or labels are not integers.
        ValueError: If the set is empty, a shape does not fit, a value is not finite or outside the pixel
            range, a label is not one of the model's classes, or the model's loss is not finite.
    """
    classes = check_inputs((model,), x, batch_size)
    _check_pixels(x, pixel_range)
    y = check_labels(y, x, classes)
    labels = y if target is None else check_target(target, x, classes)
    goal = _Goal(labels, target is not None, LOSSES[attack.loss])
    with frozen(model):
        x_adv, zero_gradients, monotone_loss = _run_restarts(model, x, goal, attack, pixel_range, batch_size)
    success = goal.reached(predict(model, x_adv, batch_size=batch_size))
    health = AttackHealth(zero_gradients, monotone_loss, **_image_health(x, x_adv, attack.norm, pixel_range))
    return AttackResult(x_adv, success, health, attack, labels if goal.targeted else None)


def predict(model: nn.Module, x: Tensor, *, batch_size: int = DEFAULT_BATCH) -> Tensor:
    """Predicted labels (n,), the largest logit; in evaluation mode, which is undone afterwards."""
    return batched_logits(model, x, batch_size).argmax(1)


class _Goal(NamedTuple):
    """What the attacker wants of each sample: away from the true label, or towards a target."""

    labels: Tensor
    targeted: bool
    loss: Callable[[Tensor, Tensor], Tensor]

    def rows(self, rows: slice) -> _Goal:
        return self._replace(labels=self.labels[rows])

    def attack_loss(self, logits: Tensor) -> Tensor:
        """The (n,) loss that the attack ascends."""
        loss = self.loss(logits, self.labels)
        return -loss if self.targeted else loss

    def reached(self, predicted: Tensor) -> Tensor:
        return (predicted == self.labels) if self.targeted else (predicted != self.labels)


class _Iterates(NamedTuple):
    """A batch of iterates, one a sample, with the attack loss there and whether the model is fooled."""

    x: Tensor
    loss: Tensor
    fooled: Tensor


def _run_restarts(
    model: nn.Module,
    x: Tensor,
    goal: _Goal,
    attack: Attack,
    pixel_range: tuple[float, float] | None,
    batch_size: int,
) -> tuple[Tensor, float, float]:
    """Attacked images, the share of zero gradients and the share of runs with monotone loss."""
    generator = torch.Generator(x.device).manual_seed(attack.seed)
    kept: _Iterates | None = None
    zero_gradients = monotone = 0
    for _ in range(attack.restarts):
        start = x
        if attack.method == "pgd":
            start = x + attack.eps * uniform_in_unit_ball(x, attack.norm, generator)
        batches = []
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            ball = Ball(x[rows], attack.norm, attack.eps, pixel_range)
            iterates, zeros, rising = _ascend(model, ball, start[rows], goal.rows(rows), attack)
            batches.append(iterates)
            zero_gradients += zeros
            monotone += rising
        found = _Iterates(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        kept = found if kept is None else _better(kept, found)
    assert kept is not None
    x_adv = torch.where(spread(kept.fooled, x), kept.x, x) if attack.on_failure == "clean" else kept.x
    runs = attack.restarts * len(x)
    return x_adv, zero_gradients / (runs * attack.schedule[0]), monotone / runs


def _ascend(
    model: nn.Module, ball: Ball, start: Tensor, goal: _Goal, attack: Attack
) -> tuple[_Iterates, int, int]:
    """One restart on one batch: kept iterates, count of zero gradients, count of runs with monotone loss."""
    steps, step_size = attack.schedule
    here, gradient = _evaluate(model, ball.project(start), goal)
    check_finite(here.loss, "the attack loss")
    kept = here
    velocity = torch.zeros_like(gradient)
    zeros = torch.zeros_like(here.fooled, dtype=torch.long)
    monotone = torch.ones_like(here.fooled)
    for step in range(steps):
        zeros += gradient.flatten(1).eq(0).all(1)
        if attack.method == "mim":
            velocity = MOMENTUM * velocity + normalised(gradient, 1)
            gradient = velocity
        direction = gradient.sign() if attack.norm == "linf" else normalised(gradient, 2)
        point = ball.project(here.x + step_size * direction)
        there, gradient = _evaluate(model, point, goal, with_gradient=step < steps - 1)
        monotone &= there.loss >= here.loss - _LOSS_ROUNDING * here.loss.abs().clamp(min=1)
        # The start is no candidate: an attacked image is one that the attack moved.
        kept = there if step == 0 or attack.on_failure == "last" else _better(kept, there)
        here = there
    check_finite(here.loss, "the attack loss")
    return kept, int(zeros.sum()), int(monotone.sum())


def _evaluate(
    model: nn.Module, point: Tensor, goal: _Goal, *, with_gradient: bool = True
) -> tuple[_Iterates, Tensor]:
    """The iterates at `point` and the gradient of the attack loss there (empty unless asked for)."""
    with torch.set_grad_enabled(with_gradient):
        point = point.detach().requires_grad_(with_gradient)
        logits = model(point)
        loss = goal.attack_loss(logits)
    # Samples do not interact in evaluation mode, so the gradient of the sum holds every sample's gradient.
    # autograd.grad reaches the input alone: parameters keep their .grad.
    gradient = torch.autograd.grad(loss.sum(), point)[0] if with_gradient else point.new_empty(0)
    return _Iterates(point.detach(), loss.detach(), goal.reached(logits.argmax(1))), gradient


def _better(kept: _Iterates, found: _Iterates) -> _Iterates:
    """Per sample the iterate that fools the model; of two alike the one of larger loss; of equals the later.

    Where rounding makes the loss flat (tiny gradients), the later iterate went farther along its gradient.
    """
    wins = (found.fooled & ~kept.fooled) | ((found.fooled == kept.fooled) & (found.loss >= kept.loss))
    return _Iterates(
        torch.where(spread(wins, kept.x), found.x, kept.x),
        torch.where(wins, found.loss, kept.loss),
        torch.where(wins, found.fooled, kept.fooled),
    )


def _image_health(
    x: Tensor, x_adv: Tensor, norm: str, pixel_range: tuple[float, float] | None
) -> dict[str, float]:
    """The part of an attack's health that its images alone show."""
    clean, attacked = x.flatten(1), x_adv.flatten(1)
    black = attacked.eq(0).all(1) & ~clean.eq(0).all(1)
    outside = torch.zeros_like(black)
    if pixel_range is not None:
        outside = ((attacked < pixel_range[0]) | (attacked > pixel_range[1])).any(1)
    norms = sample_norms(attacked.double() - clean.double(), math.inf if norm == "linf" else 2)
    return {
        "unchanged": float(attacked.eq(clean).all(1).double().mean()),
        "black": float(black.double().mean()),
        "out_of_range": float(outside.double().mean()),
        "largest_norm": float(norms.max()),
    }


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"expected {field} to be one of {', '.join(known)}, got {value!r}")


def _check_positive(field: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected {field} to be a positive finite number, got {value}")


def _check_integer(field: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"expected {field} to be an integer of at least {least}, got {value}")


def _check_pixels(x: Tensor, pixel_range: tuple[float, float] | None) -> None:
    if pixel_range is None:
        return
    low, high = pixel_range
    if not low < high:
        raise ValueError(f"expected pixel_range (low, high) with low < high, got {pixel_range}")
    if x.min() < low or x.max() > high:
        raise ValueError(f"expected x inside pixel_range [{low}, {high}], got [{x.min():g}, {x.max():g}]")
