"""TRS+AdvT: the regulariser of TRS on top of adversarial training (TRS, section 6.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from empirical.objectives import fast
from empirical.objectives.advt import adversarial_cross_entropy
from empirical.objectives.base import Loss, Step
from empirical.objectives.gradients import clean_half, evaluation_mode
from empirical.objectives.trs import TRS


@dataclass(frozen=True)
class TRSAdvT(TRS):
    """L_TRS + L_AdvT, with the same weight: the adversarial loss replaces the clean cross-entropy.

    Attributes:
        delta_adv: Radius of the adversarial points, in units of the input; a ramp lets it grow from 0.
        steps: Number of PGD steps, of delta_adv / 4 each.

    The other attributes, and what is raised, are those of TRS and of AdvT.
    """

    name: ClassVar[str] = "trs-advt"
    delta_adv: float = 0.15
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_nonnegative("delta_adv")
        self.check_positive_steps("steps")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean adversarial cross-entropy + ramp * (lambda_a * similarity + lambda_b * smoothness)."""
        # First, for it alone moves the running statistics: the graph of an evaluation-mode pass holds these
        # by reference, and would be differentiated with other ones than it was computed with.
        adversarial = adversarial_cross_entropy(members, x, y, step, self.delta_adv, self.steps)
        with evaluation_mode(members):
            clean = (fast.clean_half if step.fast else clean_half)(members, x, y, step)
        regulariser, terms = self.regulariser(members, clean, y, step)
        terms["adversarial_cross_entropy"] = adversarial.detach()
        return Loss(adversarial + step.ramp * regulariser, terms, clean.logits)
