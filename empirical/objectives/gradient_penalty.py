"""Cross-entropy with a penalty on squared gradient norms: members for which the printed theorems speak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import clean_half


@dataclass(frozen=True)
class GradientPenalty(Parameters):
    """Mean cross-entropy plus the mean squared l2 norm of each sample's loss gradient.

    Attributes:
        weight: Weight of the penalty.
        class_weights: For each member the weights of its classes in the cross-entropy, or none for equal
            ones. Unequal ones move the members' boundaries apart, which Theorem 2 asks for.

    Raises:
        TypeError: If the weight is not a number.
        ValueError: If a weight is negative or not finite.
    """

    name: ClassVar[str] = "gradient-penalty"
    weight: float = 0.1
    class_weights: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        self.check_nonnegative("weight")
        weights = tuple(tuple(map(float, each)) for each in self.class_weights)
        object.__setattr__(self, "class_weights", weights)
        if not all(0 <= each < float("inf") for member in weights for each in member):
            raise ValueError(f"{self.name}: expected class weights finite and >= 0, got {weights}")

    def check_fits(self, members: int, classes: int) -> None:
        """Raise ValueError unless there are weights for each member and class, or none at all."""
        shape = [len(each) for each in self.class_weights]
        if shape not in ([], [classes] * members):
            raise ValueError(
                f"{self.name}: expected {classes} class weights for each of {members} members, got {shape}"
            )

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Weighted cross-entropy + ramp * weight * penalty."""
        clean = clean_half(members, x, y, step)
        plain = clean.cross_entropy
        if self.class_weights:
            weights = x.new_tensor(self.class_weights)
            weighted = [
                functional.cross_entropy(logits, y, weight)
                for logits, weight in zip(clean.evaluated, weights, strict=True)
            ]
            plain = torch.stack(weighted).mean()
        penalty = torch.stack([gradient.norms.square().mean() for gradient in clean.gradients]).mean()
        terms = {"cross_entropy": plain.detach(), "penalty": penalty.detach()}
        return Loss(plain + step.ramp * self.weight * penalty, terms, clean.logits)
