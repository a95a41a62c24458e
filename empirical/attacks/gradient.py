"""Gradient attacks in a ball: FGSM, BIM, PGD, MIM and Auto-PGD, in l2 and linf, untargeted and targeted.

From a start, step along a normalised gradient of the attack loss and project back onto the perturbation ball
and the pixel range (TRS, section 6.1). The methods differ in three things:

| method | start                    | direction                                              | step size   |
|--------|--------------------------|--------------------------------------------------------|-------------|
| fgsm   | clean image              | gradient                                               | eps, once   |
| bim    | clean image              | gradient                                               | fixed       |
| pgd    | uniform in the ball      | gradient                                               | fixed       |
| mim    | clean image              | running sum of l1-normalised gradients (momentum 1.0)  | fixed       |
| apgd   | random, on the surface   | gradient, with momentum of the iterates                | from 2 eps, |
|        |                          |                                                        | adaptive    |

The direction is scaled for the ball: its sign for linf, unit length for l2. (Section 6.1 prints BIM, PGD
and MIM without the sign; the works it cites for them have it.) A zero gradient gives a zero step and is
counted in the attack's health.

The attack is a function defined everywhere, on misclassified images too, as the probabilities of Definitions
2 and 7 need it. The images that it returns satisfy ||x_adv - x|| <= eps in the attack's norm for the tensors
as stored (rounding included, no tolerance) and stay inside the pixel range.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empirical.attacks.auto_pgd import adaptive_steps
from empirical.attacks.base import (
    LOSSES,
    Goal,
    Iterates,
    Perturbed,
    PixelRange,
    better,
    check_integer,
    check_name,
    check_positive,
    evaluate,
    not_fallen,
)
from empirical.attacks.perturbation import (
    ORDERS,
    Ball,
    choose,
    direction_of_ascent,
    is_zero,
    normalised,
    uniform_in_unit_ball,
)
from empirical.pullback import WithPullback, with_pullback
from estimators.batching import check_finite
from estimators.sharing import in_batches

METHODS = ("fgsm", "bim", "pgd", "mim", "apgd")
NORMS = ("linf", "l2")
FAILURE_POLICIES = ("best", "any", "last", "clean")
MOMENTUM = 1.0
_WITH_RANDOM_START = ("pgd", "apgd")


@dataclass(frozen=True)
class Attack:
    """What to run: one gradient attack in a ball.

    Attributes:
        method: `fgsm`, `bim`, `pgd`, `mim` or `apgd`.
        norm: Norm of the perturbation ball, `linf` or `l2`.
        eps: Radius of the ball, in units of the input (pixels in [0, 1]).
        steps: Number of steps; `fgsm` always takes one.
        step_size: Length of a step in the attack's norm; None is eps / 5, as in TRS, section 6.1. `fgsm`
            always steps by eps, and `apgd` chooses its own: it takes None alone.
        restarts: Number of random starts of `pgd` and `apgd`; the others are deterministic and take 1.
        on_failure: Which image stands for a sample.
            `best`: of all iterates of all restarts one that fools the model, if any does, and among equals
            the one of largest attack loss. `any`: as `best` where no iterate fools the model, else any that
            does: a sample that is fooled is attacked no further (by `apgd`: from no further start). The same
            samples are fooled, so that this is enough for robust accuracy; the images are weaker, and health
            is that of the steps and runs that were made. `last`: the final iterate, as in textbooks; of
            several restarts the one whose final iterate is best in that order. `clean`: as `best` where the
            model is fooled, the clean image elsewhere (several libraries do so silently; it lowers measured
            transfer).
        seed: Seed of the random starts.
        loss: What is ascended: `ce` (cross-entropy), `margin` (best other logit minus the label's, Carlini
            and Wagner's) or `dlr` (that difference over the largest minus the third largest logit).

    Raises:
        ValueError: If a name is unknown, a number is out of range, a deterministic method gets restarts or
            `apgd` a step size.
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
        check_name("method", self.method, METHODS)
        check_name("norm", self.norm, NORMS)
        check_name("on_failure", self.on_failure, FAILURE_POLICIES)
        check_name("loss", self.loss, tuple(LOSSES))
        check_positive("eps", self.eps)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
            if self.method == "apgd":
                raise ValueError(
                    f"expected step_size = None for apgd, which adapts its steps, got {self.step_size}"
                )
        for name, least in (("steps", 1), ("restarts", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        if self.restarts > 1 and self.method not in _WITH_RANDOM_START:
            raise ValueError(
                f"expected restarts = 1 for {self.method}, which has no random start, got {self.restarts}"
            )

    @property
    def schedule(self) -> tuple[int, float]:
        """Number of steps taken and the length of each, for `apgd` of the first, in the attack's norm."""
        if self.method == "fgsm":
            return 1, self.eps
        if self.method == "apgd":
            return self.steps, 2 * self.eps
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

    def check(self, classes: int, targeted: bool, pixel_range: PixelRange) -> None:
        """Refuse the ratio loss on fewer classes than it is defined for.

        Raises:
            ValueError: If there are.
        """
        least = 4 if targeted else 3
        if self.loss == "dlr" and classes < least:
            kind = "targeted" if targeted else "untargeted"
            raise ValueError(f"expected at least {least} classes for the {kind} dlr loss, got {classes}")

    def perturb(
        self, model: nn.Module, x: Tensor, goal: Goal, pixel_range: PixelRange, batch_size: int
    ) -> Perturbed:
        """Run all restarts on checked samples x; `run_attack` is the way in for users."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        network = with_pullback(model)
        kept: Iterates | None = None
        zero_gradients = taken = monotone = runs = 0

        def ascend(x: Tensor, start: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            ball = Ball(x, self.norm, self.eps, pixel_range)
            iterates, *health = _ascend(network, ball, start, goal._replace(labels=labels), self)
            return *iterates, *health

        for _ in range(self.restarts):
            start = x
            if self.method in _WITH_RANDOM_START:
                offset = uniform_in_unit_ball(x, self.norm, generator)
                if self.method == "apgd":
                    offset = normalised(offset, ORDERS[self.norm])
                start = x + self.eps * offset
            rows = torch.arange(len(x), device=x.device)
            if kept is not None and self.on_failure == "any":
                rows = (~kept.fooled).nonzero().squeeze(1)
                if not len(rows):
                    break
            given = (each.index_select(0, rows) for each in (x, start, goal.labels))
            *iterates, zeros, rising, counted = in_batches(ascend, batch_size, *given)
            zero_gradients += int(zeros.sum())
            taken += int(counted.sum())
            monotone += int(rising.sum())
            runs += len(rows)
            found = Iterates(*iterates)
            if kept is None:
                kept = found
            else:
                kept.improve(rows, found)
        assert kept is not None
        x_adv = choose(kept.fooled, kept.x, x) if self.on_failure == "clean" else kept.x
        return Perturbed(x_adv, zero_gradients / taken, monotone / runs)


def _ascend(
    network: WithPullback, ball: Ball, start: Tensor, goal: Goal, attack: Attack
) -> tuple[Iterates, Tensor, Tensor, Tensor]:
    """One restart on one batch.

    Returns:
        Kept iterates, zero gradients (n,), whether the loss never fell (n,), gradients taken (n,).
    """
    if attack.method == "apgd":
        kept, last, zeros, rising = adaptive_steps(network, ball, start, goal, attack.loss, *attack.schedule)
        kept = last if attack.on_failure == "last" else kept
        return kept, zeros, rising, torch.full_like(zeros, attack.steps)
    if attack.on_failure == "any":
        return _until_fooled(network, ball, start, goal, attack)
    return _fixed_steps(network, ball, start, goal, attack)


def _fixed_steps(
    network: WithPullback, ball: Ball, start: Tensor, goal: Goal, attack: Attack
) -> tuple[Iterates, Tensor, Tensor, Tensor]:
    """As `_ascend`, with steps of one length."""
    steps, step_size = attack.schedule
    here, gradient = evaluate(network, ball.project(start), goal, attack.loss)
    check_finite(here.loss, "the attack loss")
    kept, losses, zeros = here, [here.loss], []
    velocity = torch.zeros_like(gradient)
    for step in range(steps):
        direction, velocity, zero = _direction(gradient, velocity, attack)
        zeros.append(zero)
        point = ball.step(here.x, direction, step_size)
        here, gradient = evaluate(network, point, goal, attack.loss, with_gradient=step < steps - 1)
        losses.append(here.loss)
        if step == 0:  # the start is no candidate: an attacked image is one that the attack moved
            kept = here
        elif attack.on_failure != "last":
            kept = better(kept, here)
    check_finite(here.loss, "the attack loss")
    track = torch.stack(losses)
    monotone = not_fallen(track[:-1], track[1:]).all(0)
    kept = here if attack.on_failure == "last" else kept
    return kept, torch.stack(zeros).sum(0), monotone, torch.full_like(goal.labels, steps)


def _until_fooled(
    network: WithPullback, ball: Ball, start: Tensor, goal: Goal, attack: Attack
) -> tuple[Iterates, Tensor, Tensor, Tensor]:
    """As `_fixed_steps`, but a sample whose iterate fools the model takes no further step."""
    steps, step_size = attack.schedule
    here, gradient = evaluate(network, ball.project(start), goal, attack.loss)
    check_finite(here.loss, "the attack loss")
    kept, rows = here, torch.arange(len(start), device=start.device)
    zeros, taken = torch.zeros_like(goal.labels), torch.zeros_like(goal.labels)
    monotone = torch.ones_like(here.fooled)
    velocity = torch.zeros_like(gradient)
    for step in range(steps):
        direction, velocity, zero = _direction(gradient, velocity, attack)
        point = ball.step(here.x, direction, step_size)
        there, gradient = evaluate(network, point, goal, attack.loss, with_gradient=step < steps - 1)
        zeros[rows] += zero
        taken[rows] += 1
        monotone[rows] &= not_fallen(here.loss, there.loss)
        here = there
        if step == 0:  # the start is no candidate
            kept = here.clone()
        else:
            kept.improve(rows, here)
        check_finite(here.loss, "the attack loss")
        stay = (~here.fooled).nonzero().squeeze(1)
        if not len(stay) or step == steps - 1:
            break
        if len(stay) < len(rows):
            rows, ball, goal, here = rows[stay], ball.at(stay), goal.at(stay), here.at(stay)
            gradient, velocity = gradient.index_select(0, stay), velocity.index_select(0, stay)
    return kept, zeros, monotone, taken


def _direction(gradient: Tensor, velocity: Tensor, attack: Attack) -> tuple[Tensor, Tensor, Tensor]:
    """Where the next step goes, the velocity, and where the gradient is zero (n,)."""
    if attack.method == "mim":
        gradient = normalised(gradient, 1)
        velocity = MOMENTUM * velocity + gradient
        return direction_of_ascent(velocity, attack.norm), velocity, is_zero(gradient)
    direction = direction_of_ascent(gradient, attack.norm)
    return direction, velocity, is_zero(direction)
