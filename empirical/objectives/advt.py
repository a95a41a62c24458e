"""AdvT: adversarial training of the ensemble (TRS, section 6.2, "TRS with adversarial training")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.ensemble import Vote
from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import mean_cross_entropy
from empirical.objectives.search import Box, ascend
from estimators.batching import frozen
from estimators.losses import margin


@dataclass(frozen=True)
class AdvT(Parameters):
    """Training on worst points of the linf ball around each sample instead of the samples.

    TRS trains "an ensemble model" and bounds the perturbation, no more. Here the points are searched
    against the ensemble (the mean of the softmax outputs) by PGD from a random start, and each member learns
    them: the mean of the members' cross-entropies is minimised, which is at least the ensemble's own.

    Attributes:
        delta_adv: Radius of the ball, in units of the input; a ramp lets it grow from 0.
        steps: Number of PGD steps, of delta_adv / 4 each.

    Raises:
        TypeError: If the radius is not a number.
        ValueError: If it is negative or not finite, or the steps are not a whole number >= 1.
    """

    name: ClassVar[str] = "advt"
    sample_mean: ClassVar[bool] = True
    delta_adv: float = 0.15
    steps: int = 10

    def __post_init__(self) -> None:
        self.check_nonnegative("delta_adv")
        self.check_positive_steps("steps")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean over members and samples of the cross-entropy at the worst points found."""
        adversarial = adversarial_cross_entropy(members, x, y, step, self.delta_adv, self.steps)
        with frozen(members), torch.no_grad():
            logits = torch.stack([step.logits(member, x) for member in members])
        return Loss(adversarial, {"adversarial_cross_entropy": adversarial.detach()}, logits)


def adversarial_cross_entropy(
    members: nn.ModuleList, x: Tensor, y: Tensor, step: Step, radius: float, steps: int
) -> Tensor:
    """Mean cross-entropy of the members at points that PGD found against the ensemble."""
    points = attacked(members, x, y, step, step.ramp * radius, steps)
    return mean_cross_entropy([step.logits(member, points) for member in members], y)


def attacked(members: nn.ModuleList, x: Tensor, y: Tensor, step: Step, radius: float, steps: int) -> Tensor:
    """Points (n, *shape) of the ball in which the ensemble's cross-entropy is large: PGD, its last iterates.

    The cross-entropy's margin is climbed, whose gradient has the same signs and does not vanish where the
    ensemble is sure.
    """
    box = Box.around(x, radius, step.pixel_range)

    def slope(point: Tensor) -> Tensor:
        votes = Vote().log_probabilities(torch.stack([step.logits(member, point) for member in members]))
        return torch.autograd.grad(margin(votes, y).sum(), point)[0]

    with frozen(members):
        return ascend(box, box.random_start(radius, step), slope, steps=steps, size=radius / 4)
