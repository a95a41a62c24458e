"""Attacks that minimise a penalised distance, by foolbox behind one adapter: CW in l2 and elastic-net EAD.

Both look for a small perturbation that fools the model, with a fixed weight c of the attack loss and no ball:

    minimise over x'  ||x' - x||_2^2 [+ beta ||x' - x||_1] + c max(shortfall, 0),
    shortfall = logit of the label - best other logit + confidence     (targeted: the other way round)

(TRS, section 6.1, CW and EAD). The shortfall is a difference of logits, so that an ensemble's
log-probabilities serve as well as raw logits. Nothing here is random.

What the adapter mends: where the library fails, it returns an all-zero image; here the clean image stands
there, and the attack's description says so (`on_failure`). It stops early by the loss of the whole batch,
which lets samples interact; here it does not stop early. It leaves gradients on parameters unless they are
frozen, may move the model to another device, leaves the pixel range by rounding, and cannot be imported
where there is no git.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from empirical.attacks.base import (
    Goal,
    Perturbed,
    PixelRange,
    check_integer,
    check_name,
    check_positive,
    not_fallen,
)
from empirical.attacks.perturbation import spread
from estimators.sharing import in_batches

RULES = {"elastic": "EN", "l1": "L1"}
SHRINKAGES = ("printed", "exact")


@dataclass(frozen=True)
class PenaltyAttack:
    """What the penalised attacks have in common. A failure leaves the clean image.

    Attributes:
        c: Weight of the attack loss.
        steps: Number of steps.
        step_size: Adam's learning rate (CW), or the first step of a square-root decay (EAD).
        confidence: By how much the winning logit has to win before the attack is content (kappa).

    Raises:
        ValueError: If a name is unknown or a number is out of range.
    """

    method: ClassVar[str]
    norm: ClassVar[str]
    on_failure: ClassVar[str] = "clean"
    seed: ClassVar[int | None] = None

    c: float = 1.0
    steps: int = 1000
    step_size: float = 0.01
    confidence: float = 0.1

    def __post_init__(self) -> None:
        for name in ("c", "step_size"):
            check_positive(name, getattr(self, name))
        check_integer("steps", self.steps, 1)
        if self.confidence != 0:
            check_positive("confidence", self.confidence)

    def __str__(self) -> str:
        return f"{self.method.upper()}-{self.steps}, c {self.c:g}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of the method, what it does on failure, and the fields."""
        return {"method": self.method, "on_failure": self.on_failure, **asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PenaltyAttack:
        """The attack that `to_json` described."""
        return cls(**{name: value for name, value in fields.items() if name not in ("method", "on_failure")})

    def check(self, classes: int, targeted: bool, pixel_range: PixelRange) -> None:
        """Refuse data without a pixel range, and a missing library, before any work.

        Raises:
            ValueError: If there is no pixel range, into which these attacks map their search space.
            ImportError: If foolbox is not installed.
        """
        if pixel_range is None:
            raise ValueError(f"expected a pixel_range for {self.method}, which searches inside it, got None")
        _foolbox()

    def perturb(
        self, model: nn.Module, x: Tensor, goal: Goal, pixel_range: PixelRange, batch_size: int
    ) -> Perturbed:
        """Run on checked samples x; `empirical.attacks.run.run_attack` is the way in for users."""
        assert pixel_range is not None

        def attacked(x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            watched = _Watched(model, x, goal._replace(labels=labels), self)
            return self._run(watched, pixel_range), watched.zero_gradients, watched.monotone

        x_adv, zeros, monotone = in_batches(attacked, batch_size, x, goal.labels)
        runs = len(x)
        return Perturbed(x_adv, int(zeros.sum()) / (runs * self.steps), int(monotone.sum()) / runs)

    def _run(self, watched: _Watched, pixel_range: tuple[float, float]) -> Tensor:
        """Attacked images of one batch, the clean ones where the attack failed."""
        foolbox, x, labels = _foolbox(), watched.x, watched.goal.labels
        criteria = foolbox.criteria
        criterion = (
            criteria.TargetedMisclassification(labels)
            if watched.goal.targeted
            else criteria.Misclassification(labels)
        )
        # The device is named because the library would choose a GPU by itself and move the model there.
        library_model = foolbox.PyTorchModel(watched.eval(), bounds=pixel_range, device=x.device)
        found, call = torch.zeros(len(x), dtype=torch.bool, device=x.device), type(criterion).__call__

        # The library's own word on each iterate. Its all-zero image is no sign: it may fool the model too.
        class Recorded(type(criterion)):  # type: ignore[misc]
            def __call__(self, perturbed: Any, outputs: Any) -> Any:
                fooled = call(self, perturbed, outputs)
                found.logical_or_(fooled.raw)
                return fooled

        x_adv = self._library_attack(foolbox).run(library_model, x, Recorded(labels)).detach()
        return torch.where(spread(found, x), x_adv.clamp(*pixel_range), x)

    def distance(self, delta: Tensor) -> Tensor:
        """The (n,) distance that is minimised, of perturbations (n, *shape)."""
        return delta.flatten(1).square().sum(1)

    def _library_attack(self, foolbox: Any) -> Any:
        raise NotImplementedError

    @property
    def _settings(self) -> dict[str, Any]:
        """Fixed c, all steps, under the library's names."""
        return {
            "binary_search_steps": 1,
            "steps": self.steps,
            "confidence": self.confidence,
            "initial_const": self.c,
            "abort_early": False,
        }


@dataclass(frozen=True)
class CarliniWagner(PenaltyAttack):
    """The l2 attack of Carlini and Wagner (2017): Adam in the space of arctanh pixels.

    Of all iterates that fool the model with the confidence asked for, the closest in l2 is returned.
    """

    method = "cw"
    norm = "l2"

    def _library_attack(self, foolbox: Any) -> Any:
        return foolbox.attacks.L2CarliniWagnerAttack(stepsize=self.step_size, **self._settings)


@dataclass(frozen=True)
class ElasticNet(PenaltyAttack):
    """The elastic-net attack of Chen et al. (2018): accelerated proximal gradient steps.

    Attributes:
        beta: Weight of the l1 distance.
        rule: Which of the iterates that fool the model is returned: the closest in the `elastic` distance or
            in `l1`.
        shrinkage: By how much a step shrinks each pixel's perturbation. `printed`: by beta, as the
            publication prints it and libraries do it, which weighs the l1 distance by beta / step_size or
            more. `exact`: by beta * step_size, the proximal step of the objective (exact at the first step;
            as steps shrink and this does not, the weight of l1 grows from beta). The elastic rule then
            weighs the l1 distance by beta * step_size.
    """

    method = "ead"
    norm = "l1"

    beta: float = 0.01
    rule: str = "elastic"
    shrinkage: str = "printed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("beta", self.beta)
        check_name("rule", self.rule, tuple(RULES))
        check_name("shrinkage", self.shrinkage, SHRINKAGES)

    def distance(self, delta: Tensor) -> Tensor:
        """The (n,) elastic-net distance of perturbations (n, *shape)."""
        return super().distance(delta) + self.beta * delta.flatten(1).abs().sum(1)

    def _library_attack(self, foolbox: Any) -> Any:
        return foolbox.attacks.EADAttack(
            initial_stepsize=self.step_size,
            regularization=self.beta * (self.step_size if self.shrinkage == "exact" else 1.0),
            decision_rule=RULES[self.rule],
            **self._settings,
        )


class _Watched(nn.Module):
    """The attacked model for one batch, which keeps account of the attack's health as it is called.

    Attributes:
        zero_gradients: (n,) how many gradients of the attack loss were zero before it was content.
        monotone: (n,) bool, whether the objective has never risen.
    """

    def __init__(self, model: nn.Module, x: Tensor, goal: Goal, attack: PenaltyAttack) -> None:
        super().__init__()
        self.model = model
        self.x = x
        self.goal = goal
        self.attack = attack
        self.zero_gradients = torch.zeros_like(goal.labels)
        self.monotone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._objective: Tensor | None = None

    def forward(self, point: Tensor) -> Tensor:
        if not point.requires_grad:  # a look at an iterate, not a step
            output: Tensor = self.model(point)
            return output
        seen = point.view_as(point)  # a tensor of its own, whose gradient is that of the attack loss alone
        logits: Tensor = self.model(seen)
        shortfall = self.attack.confidence - self.goal.attack_loss("margin", logits.detach())
        unmet = shortfall > 0
        seen.register_hook(lambda gradient: self._count_zeros(gradient, unmet))
        objective = self.attack.distance(point.detach() - self.x) + self.attack.c * shortfall.clamp(min=0)
        if self._objective is not None:
            self.monotone &= not_fallen(-self._objective, -objective)
        self._objective = objective
        return logits

    def _count_zeros(self, gradient: Tensor, unmet: Tensor) -> None:
        self.zero_gradients += gradient.flatten(1).eq(0).all(1) & unmet


def _foolbox() -> Any:
    """The library, imported on first use.

    Raises:
        ImportError: If it is not installed.
    """
    # Part of it clones model zoos with git and refuses to be imported where there is no git.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import foolbox
    except ModuleNotFoundError as error:
        raise ImportError(
            f"expected foolbox for the attacks cw and ead, got {error}: pip install 'transferbounds[attacks]'"
        ) from error
    return foolbox
