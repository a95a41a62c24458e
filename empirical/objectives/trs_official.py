"""TRS as the authors' published code computes it, with each deviation from the paper a switch of its own.

The code differs from the paper in the points below, each of which can be put on or off so that its effect
can be measured; all off is the paper's loss with `search="pair"`. Three more deviations are not part of the
loss and belong to the configuration: the learning rate falls every 40 epochs on every data set, the weight
decay is 1e-4, and Adam's epsilon 1e-7. The driver script of the code leaves the search out altogether: that
is Cos-l2. `reproduce deviations` measures what each of them does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.augmentation import Augmentation
from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import evaluation_mode, length, mean_cross_entropy
from empirical.objectives.search import Box, ascend
from empirical.objectives.trs import SEARCH_STEPS, Groups

# Published: steps of a third of the radius.
_COARSE_STEPS = 6
# What torch's cosine similarity puts under the lengths of vectors that are shorter.
_COSINE_FLOOR = 1e-8


@dataclass(frozen=True)
class TRSOfficial(Parameters):
    """The loss of the published code; `TRSOfficial.with_deviations(...)` puts on the named switches only.

    Attributes:
        lambda_a: Weight of the mean |cos|.
        lambda_b: Weight of the smoothness loss.
        delta_initial: Radius before the first epoch, in units of the input.
        delta_final: Radius after the last epoch.
        sum_cross_entropy: The members' cross-entropies are summed, not averaged.
        squared_norms: The smoothness loss, searched and minimised, has squared gradient norms.
        batch_gradient: Its gradients are those of the batch's mean loss: each sample's is divided by the
            size of the batch, and its squared norm by the square of that.
        floored_cosine: Cosines are taken of the gradients of the batch's mean loss and divided by lengths of
            at least 1e-8, so that they fade where a sample is fitted.
        half_batch: Only the second half of the batch is moved by the search; the first stays clean.
        joint_search: One search for all members, not one for each pair.
        coarse_search: Six steps of a third of the radius, not five of a quarter.
        random_start: The search starts at a random point of the ball, not at the sample.
        stale_gradients: The search never clears its input gradient: each step follows the sum of all so far.
        training_mode: Gradients and search see the members in training mode: batch statistics mix the
            samples, and the search moves the running statistics.
        previous_epoch: The radius is that of the epoch before, for epochs are counted from 0.
        flips: Each image of the batch is mirrored with probability 1/2, digits too.

    Raises:
        TypeError: If a weight or radius is not a number, or a switch not true or false.
        ValueError: If a weight or radius is negative or not finite.
    """

    name: ClassVar[str] = "trs-official"
    lambda_a: float = 0.5
    lambda_b: float = 0.1
    delta_initial: float = 0.05
    delta_final: float = 0.15
    sum_cross_entropy: bool = True
    squared_norms: bool = True
    batch_gradient: bool = True
    floored_cosine: bool = True
    half_batch: bool = True
    joint_search: bool = True
    coarse_search: bool = True
    random_start: bool = True
    stale_gradients: bool = True
    training_mode: bool = True
    previous_epoch: bool = True
    flips: bool = True

    def __post_init__(self) -> None:
        self.check_nonnegative("lambda_a", "lambda_b", "delta_initial", "delta_final")
        for name in DEVIATIONS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"{self.name}: expected true or false for {name}, got {getattr(self, name)!r}"
                )

    @classmethod
    def with_deviations(cls, *names: str, **weights: Any) -> TRSOfficial:
        """The loss with the named deviations and no others; without any, the paper's.

        Args:
            names: Switches to put on.
            weights: Weights and radii.

        Raises:
            ValueError: If there is no such switch.
        """
        if unknown := sorted(set(names) - set(DEVIATIONS)):
            raise ValueError(f"expected deviations among {', '.join(DEVIATIONS)}, got {', '.join(unknown)}")
        return cls(**weights, **{name: name in names for name in DEVIATIONS})

    def delta(self, step: Step) -> float:
        """Radius of the search in this epoch."""
        epoch = step.epoch - 1 if self.previous_epoch else step.epoch
        return self.delta_initial + (self.delta_final - self.delta_initial) * epoch / step.epochs

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Cross-entropy + ramp * (lambda_a * similarity + lambda_b * smoothness)."""
        if self.flips and x.dim() == 4:
            x = Augmentation(padding=0, flip=True)(x, step.generator)
        x = x.detach().requires_grad_()
        trained = [step.logits(member, x) for member in members]
        with self.mode(members):
            logits = trained if self.training_mode else [step.logits(member, x) for member in members]
            similar = self.similarity([_loss_gradients(each, x, y) for each in logits])
            smoothness = self.smoothness(members, x.detach(), y, step)
        cross_entropy = mean_cross_entropy(trained, y)
        terms = {
            "cross_entropy": cross_entropy.detach(),
            "similarity": similar.detach(),
            "smoothness": smoothness.detach(),
        }
        share = len(members) if self.sum_cross_entropy else 1
        regulariser = self.lambda_a * similar + self.lambda_b * smoothness
        return Loss(share * cross_entropy + step.ramp * regulariser, terms, torch.stack(trained).detach())

    def mode(self, members: nn.ModuleList) -> AbstractContextManager[None]:
        """The mode in which the members' gradients are taken."""
        return nullcontext() if self.training_mode else evaluation_mode(members)

    def similarity(self, gradients: list[Tensor]) -> Tensor:
        """|cos| of the members' loss gradients (n, d), mean over pairs and samples."""
        if self.floored_cosine:
            samples = len(gradients[0])
            lengths = [(length(each) / samples).clamp(min=_COSINE_FLOOR) * samples for each in gradients]
        else:
            lengths = [length(each) for each in gradients]
        pairs = combinations(range(len(gradients)), 2)
        return torch.stack(
            [
                ((gradients[f] * gradients[g]).sum(1).abs() / (lengths[f] * lengths[g])).mean()
                for f, g in pairs
            ]
        ).mean()

    def smoothness(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The sum of two members' gradient sizes at the points searched, mean over pairs and samples."""
        everyone = tuple(range(len(members)))
        groups: Groups = [everyone] if self.joint_search else list(combinations(everyone, 2))
        kept = len(x) // 2 if self.half_batch else 0
        found = self.search(members, groups, x[kept:], y[kept:], step)
        clean = x[:kept].expand(len(groups), *x[:kept].shape)
        points = torch.cat([clean, found], dim=1).requires_grad_()
        return 2 * self.size(members, groups, points, y, step) / (len(groups[0]) * len(groups) * len(y))

    def search(self, members: nn.ModuleList, groups: Groups, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Support points (G, n, *shape), one batch for each group of members."""
        delta = self.delta(step)
        box = Box.around(x, delta, step.pixel_range)
        start = torch.stack([box.random_start(delta, step) if self.random_start else box.x for _ in groups])
        total = torch.zeros_like(start)

        def slope(points: Tensor) -> Tensor:
            nonlocal total
            (gradient,) = torch.autograd.grad(self.size(members, groups, points, y, step), points)
            total = total + gradient if self.stale_gradients else gradient
            return total

        steps, share = (_COARSE_STEPS, 3) if self.coarse_search else (SEARCH_STEPS, 4)
        return ascend(box, start.detach().requires_grad_(), slope, steps=steps, size=delta / share)

    def size(self, members: nn.ModuleList, groups: Groups, points: Tensor, y: Tensor, step: Step) -> Tensor:
        """Sum over groups, their members and samples of the loss gradients' norms, or squares of these."""
        sums = []
        for index, member in enumerate(members):
            seen = torch.cat([x for x, group in zip(points, groups, strict=True) if index in group])
            labels = y.repeat(len(seen) // len(y))
            gradients = _loss_gradients(step.logits(member, seen), seen, labels)
            if self.batch_gradient:
                gradients = gradients / len(y)
            sizes = gradients.square().sum(1) if self.squared_norms else length(gradients)
            sums.append(sizes.sum())
        return torch.stack(sums).sum()


DEVIATIONS = tuple(each.name for each in fields(TRSOfficial) if each.default is True)


def _loss_gradients(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Gradients (n, d) of the batch's summed cross-entropy by its inputs, differentiable."""
    loss = functional.cross_entropy(logits, y, reduction="sum")
    return torch.autograd.grad(loss, x, create_graph=True)[0].flatten(1)
