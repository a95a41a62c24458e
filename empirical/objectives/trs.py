"""TRS: Transferability Reduced Smooth ensemble training (TRS, sections 5.1 and 5.2, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.objectives import fast
from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import (
    CleanHalf,
    clean_half,
    evaluation_mode,
    loss_gradients,
    similarity,
)
from empirical.objectives.search import Box, ascend
from estimators.batching import frozen

SEARCHES = ("pair", "joint")
SEARCH_STEPS = 5  # of delta / 4 each (TRS, section 6.1)

# Members that share a support instance: the pairs of the ensemble, or all members at once.
Groups = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class TRS(Parameters):
    """Gradient diversity and smoothness in a neighbourhood, by a min-max search.

    The smoothness loss of a pair is the maximum of ||grad l_F||_2 + ||grad l_G||_2 over the linf ball of
    radius delta around each sample; the search, signed-gradient ascent from the sample, finds a lower bound
    on it. The radius grows linearly with the epoch (Algorithm 1, line 1) and reaches delta_final in the
    last one.

    Attributes:
        lambda_a: Weight of the mean |cos| between the members' loss gradients.
        lambda_b: Weight of the smoothness loss.
        delta_initial: Radius before the first epoch (delta_0), in units of the input.
        delta_final: Radius in the last epoch (delta_M).
        search: `pair`, one support instance per pair of members (the paper), or `joint`, one for all members:
            then the sum of all norms is ascended. N - 1 times less work, and for N = 2 the same.

    Raises:
        TypeError: If a weight or radius is not a number.
        ValueError: If one is negative or not finite, or the search is unknown.
    """

    name: ClassVar[str] = "trs"
    sample_mean: ClassVar[bool] = True
    lambda_a: float = 0.5
    lambda_b: float = 0.1
    delta_initial: float = 0.05
    delta_final: float = 0.15
    search: str = "pair"

    def __post_init__(self) -> None:
        self.check_nonnegative("lambda_a", "lambda_b", "delta_initial", "delta_final")
        if self.search not in SEARCHES:
            raise ValueError(
                f"{self.name}: expected search one of {', '.join(SEARCHES)}, got {self.search!r}"
            )

    def delta(self, step: Step) -> float:
        """Radius of the search in this epoch: Algorithm 1, line 1."""
        return self.delta_initial + (self.delta_final - self.delta_initial) * step.epoch / step.epochs

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + ramp * (lambda_a * similarity + lambda_b * smoothness)."""
        clean = (fast.clean_half if step.fast else clean_half)(members, x, y, step)
        regulariser, terms = self.regulariser(members, clean, y, step)
        return Loss(clean.cross_entropy + step.ramp * regulariser, terms, clean.logits)

    def regulariser(
        self, members: nn.ModuleList, clean: CleanHalf | fast.StackedClean, y: Tensor, step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_TRS of section 5.1, mean over pairs and samples, with the terms for the record."""
        groups, delta = self.groups(len(members)), self.delta(step)
        with evaluation_mode(members):
            if isinstance(clean, fast.StackedClean):
                similar, norms = fast.similarity_and_norms(
                    members, groups, clean, y, step, delta, SEARCH_STEPS
                )
            else:
                similar = similarity(clean.gradients)
                support = find_support(members, groups, clean, y, step, delta)
                norms = norm_sum(members, groups, support, y, step)
        # Over the pairs inside a group, the mean of the sum of two norms is twice the mean norm.
        smoothness = 2 * norms / (len(groups[0]) * len(groups) * len(y))
        terms = {
            "cross_entropy": clean.cross_entropy.detach(),
            "similarity": similar.detach(),
            "smoothness": smoothness.detach(),
        }
        return self.lambda_a * similar + self.lambda_b * smoothness, terms

    def groups(self, members: int) -> Groups:
        """Which members share a support instance."""
        return list(combinations(range(members), 2)) if self.search == "pair" else [tuple(range(members))]


def norm_sum(members: nn.ModuleList, groups: Groups, support: Tensor, y: Tensor, step: Step) -> Tensor:
    """Sum over groups, their members and samples of the loss gradients' l2 norms at the support instances.

    Each member sees the instances of all its groups in one batch.

    Args:
        members: The ensemble's members, in evaluation mode.
        groups: Which members share a support instance.
        support: (G, n, *shape), one batch of instances per group, requiring a gradient.
        y: (n,) labels.
        step: The current step.
    """
    sums = []
    for index, member in enumerate(members):
        points = torch.cat([x for x, group in zip(support, groups, strict=True) if index in group])
        labels = y.repeat(len(points) // len(y))
        sums.append(loss_gradients(step.logits(member, points), points, labels).norms.sum())
    return torch.stack(sums).sum()


def find_support(
    members: nn.ModuleList, groups: Groups, clean: CleanHalf, y: Tensor, step: Step, delta: float
) -> Tensor:
    """Support instances (G, n, *shape): signed-gradient ascent of the sum of the norms in each group.

    Gradients are taken by the inputs only. The first step starts at the clean batch, whose loss gradients are
    known already: one more backward pass for each member gives it.

    Args:
        members: The ensemble's members, in evaluation mode.
        groups: Which members share a support instance.
        clean: The clean batch.
        y: (n,) labels.
        step: The current step.
        delta: Radius of the linf ball, which is cut with the pixel range.
    """
    box = Box.around(clean.x, delta, step.pixel_range)
    slopes = [
        torch.autograd.grad(gradient.norms.sum(), clean.x, retain_graph=True)[0]
        for gradient in clean.gradients
    ]
    first = torch.stack([torch.stack([slopes[index] for index in group]).sum(0) for group in groups])

    def slope(support: Tensor) -> Tensor:
        return torch.autograd.grad(norm_sum(members, groups, support, y, step), support)[0]

    size = delta / 4
    with frozen(members):
        start = box.move(box.x.expand_as(first), first, size)
        return ascend(box, start, slope, steps=SEARCH_STEPS - 1, size=size).requires_grad_()
