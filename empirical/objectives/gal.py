"""GAL: gradient alignment loss (Kariyappa and Qureshi 2019), as TRS, section 6.1 compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import LossGradients, clean_half, cosine


@dataclass(frozen=True)
class GAL(Parameters):
    """Loss gradients that point apart: the signed cosine is lowered, not its absolute value as in TRS.

    GAL's own paper trains with leaky ReLU of slope 0.1 and noise on the inputs; TRS compares all methods on
    one architecture. So the noise is 0 here unless asked for, and the activation is the model's choice
    (`leaky_relu(0.1)`).

    Attributes:
        weight: Weight of the alignment (lambda of GAL).
        noise: Standard deviation of Gaussian noise added to a random half of the samples, in units of the
            input; 0.045 in GAL's paper.

    Raises:
        TypeError: If a parameter is not a number.
        ValueError: If one is negative or not finite.
    """

    name: ClassVar[str] = "gal"
    sample_mean: ClassVar[bool] = True
    weight: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        self.check_nonnegative("weight", "noise")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + ramp * weight * alignment."""
        clean = clean_half(members, self.noisy(x, step), y, step)
        aligned = alignment(clean.gradients)
        terms = {"cross_entropy": clean.cross_entropy.detach(), "alignment": aligned.detach()}
        return Loss(clean.cross_entropy + step.ramp * self.weight * aligned, terms, clean.logits)

    def noisy(self, x: Tensor, step: Step) -> Tensor:
        """The batch with noise on a random half of its samples; as GAL's, it may leave the pixel range."""
        if not self.noise:
            return x
        noise = step.draw(torch.randn, x.shape).to(x)
        chosen = step.draw(torch.rand, x.shape[:1]).to(x) < 0.5
        return x + self.noise * noise * chosen.view(-1, *[1] * (x.dim() - 1))


def alignment(gradients: tuple[LossGradients, ...]) -> Tensor:
    """Log of the sum over pairs of exp(cos), mean over samples; log(N (N - 1) / 2) if all are orthogonal."""
    cosines = torch.stack([cosine(f, g) for f, g in combinations(gradients, 2)])
    return cosines.logsumexp(0).mean()
