"""Cos-l2: TRS with the gradient norms taken at the data points themselves, without a search (section 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import clean_half, gradient_size, similarity


@dataclass(frozen=True)
class CosL2(Parameters):
    """TRS with the maximum over the ball replaced by the value at its centre.

    Attributes:
        lambda_a: Weight of the mean |cos| between the members' loss gradients.
        lambda_b: Weight of the mean of ||grad l_F||_2 + ||grad l_G||_2 at the data points.

    Raises:
        TypeError: If a weight is not a number.
        ValueError: If one is negative or not finite.
    """

    name: ClassVar[str] = "cos-l2"
    sample_mean: ClassVar[bool] = True
    lambda_a: float = 0.5
    lambda_b: float = 0.1

    def __post_init__(self) -> None:
        self.check_nonnegative("lambda_a", "lambda_b")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + ramp * (lambda_a * similarity + lambda_b * gradient size)."""
        clean = clean_half(members, x, y, step)
        similar = similarity(clean.gradients)
        smoothness = gradient_size(clean.gradients)
        terms = {
            "cross_entropy": clean.cross_entropy.detach(),
            "similarity": similar.detach(),
            "smoothness": smoothness.detach(),
        }
        regulariser = self.lambda_a * similar + self.lambda_b * smoothness
        return Loss(clean.cross_entropy + step.ramp * regulariser, terms, clean.logits)
