"""Vanilla ensemble training: the mean of the members' cross-entropies, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import mean_cross_entropy


@dataclass(frozen=True)
class Vanilla(Parameters):
    """Ensemble cross-entropy: L_ECE of TRS, section 5.2."""

    name: ClassVar[str] = "vanilla"
    sample_mean: ClassVar[bool] = True

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean over members and samples of the cross-entropy."""
        logits = [step.logits(member, x) for member in members]
        cross_entropy = mean_cross_entropy(logits, y)
        return Loss(cross_entropy, {"cross_entropy": cross_entropy.detach()}, torch.stack(logits).detach())
