"""DVERGE: members trained on each other's non-robust features (Yang et al. 2020; TRS, section 6.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.attacks.perturbation import normalised
from empirical.models import activation_layers
from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.search import Box, ascend
from empirical.objectives.vanilla import Vanilla
from estimators.batching import frozen

_MOMENTUM = 1.0


@dataclass(frozen=True)
class DVERGE(Parameters):
    """Each member learns inputs that look like one sample and have another's features for another member.

    For a source (x_s, y_s) and a target x, member j's distilled input is the point of the linf ball around
    x_s whose features under member j are nearest to those of x. Every other member learns to call it y_s.
    The targets are the batch in a random order. The features are those of one layer, drawn anew each epoch:
    the input of one of the activation layers, or the logits.

    DVERGE starts from trained members: the first of its two stages is vanilla training, with the whole of the
    epochs and the schedule, the second is this loss.

    Attributes:
        distill_eps: Radius of the ball, in units of the input.
        steps: Number of signed steps, with momentum, of distill_eps / 10 each.

    Raises:
        TypeError: If the radius is not a number.
        ValueError: If it is negative or not finite, or the steps are not a whole number >= 1.
    """

    name: ClassVar[str] = "dverge"
    distill_eps: float = 0.3
    steps: int = 10

    def __post_init__(self) -> None:
        self.check_nonnegative("distill_eps")
        self.check_positive_steps("steps")

    def stages(self, members: int) -> int:
        """Vanilla training, then cross-adversarial training."""
        return 2

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Sum over ordered pairs (i, j) of member i's cross-entropy on what was distilled from member j."""
        if step.stage == 0:
            return Vanilla()(members, x, y, step)
        targets = x[torch.randperm(len(x), generator=step.generator).to(x.device)]
        with frozen(members):
            distilled = [self.distil(member, x, targets, step) for member in members]
            with torch.no_grad():
                logits = torch.stack([step.logits(member, x) for member in members])
        losses = []
        for index, member in enumerate(members):
            others = distilled[:index] + distilled[index + 1 :]
            learned = step.logits(member, torch.cat(others))
            losses.append(len(others) * functional.cross_entropy(learned, y.repeat(len(others))))
        total = torch.stack(losses).sum()
        return Loss(total, {"distilled_cross_entropy": total.detach()}, logits)

    def distil(self, member: nn.Module, source: Tensor, target: Tensor, step: Step) -> Tensor:
        """Points (n, *shape) near `source` with the features of `target` for a member that is frozen."""
        box = Box.around(source, self.distill_eps, step.pixel_range)
        layer = int(step.epoch_draw * (len(activation_layers(member)) + 1))
        with torch.no_grad():
            wanted = features(member, target, layer, step)
        momentum = torch.zeros_like(source)

        def slope(point: Tensor) -> Tensor:
            nonlocal momentum
            distance = feature_distance(features(member, point, layer, step), wanted).sum()
            (gradient,) = torch.autograd.grad(-distance, point)
            momentum = _MOMENTUM * momentum + normalised(gradient, 1)
            return momentum

        start = box.x.clone().requires_grad_()
        return ascend(box, start, slope, steps=self.steps, size=self.distill_eps / 10)


def features(member: nn.Module, x: Tensor, layer: int, step: Step) -> Tensor:
    """Features (n, *) of a batch: what enters activation number `layer`, or past the last the logits."""
    layers = activation_layers(member)
    if layer >= len(layers):
        return step.logits(member, x)
    with _inputs_of(layers[layer]) as seen:
        step.logits(member, x)
    return seen[0].to(x.dtype)


def feature_distance(f: Tensor, g: Tensor) -> Tensor:
    """(n,) mean squared differences of two batches of features."""
    return (f - g).flatten(1).square().mean(1)


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
