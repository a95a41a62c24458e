"""Cos-only: gradient diversity without smoothness (TRS, section 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import clean_half, similarity


@dataclass(frozen=True)
class CosOnly(Parameters):
    """TRS with lambda_b = 0.

    Attributes:
        lambda_a: Weight of the mean |cos| between the members' loss gradients.

    Raises:
        TypeError: If the weight is not a number.
        ValueError: If it is negative or not finite.
    """

    name: ClassVar[str] = "cos-only"
    sample_mean: ClassVar[bool] = True
    lambda_a: float = 0.5

    def __post_init__(self) -> None:
        self.check_nonnegative("lambda_a")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + ramp * lambda_a * similarity."""
        clean = clean_half(members, x, y, step)
        similar = similarity(clean.gradients)
        terms = {"cross_entropy": clean.cross_entropy.detach(), "similarity": similar.detach()}
        return Loss(clean.cross_entropy + step.ramp * self.lambda_a * similar, terms, clean.logits)
