"""The published TRS training step, as its authors' code computes it: what `training_step.py` compares with.

Every pass of the published loop is here, in its order and with its calls: the members in training mode; all
input gradients by `autograd.grad(..., create_graph=True)` of the batch's mean loss; a search whose every step
ends in `.backward()`, which computes (and then throws away) gradients for all weights beside those of the
inputs and never clears the latter; the clean points evaluated once for the cosines and again for the
gradient sizes. `Search` has the settings in which the code and the paper differ, so that the same loop can be
timed at the work that another implementation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, autograd, nn


@dataclass(frozen=True)
class Search:
    """How the points are found at which gradient sizes are taken.

    Attributes:
        steps: Number of signed steps.
        share: A step is the radius over this.
        moved: Share of the batch that is searched; the rest stays clean.
        pairs: One search for each pair of members, not one for all.
        random_start: Start at a random point of the ball, not at the sample.
    """

    steps: int = 6
    share: float = 3.0
    moved: float = 0.5
    pairs: bool = False
    random_start: bool = True


CODE = Search()
PAPER = Search(steps=5, share=4.0, moved=1.0, pairs=True, random_start=False)
JOINT = Search(steps=5, share=4.0, moved=1.0, pairs=False, random_start=False)


def published_loss(
    members: Sequence[nn.Module], x: Tensor, y: Tensor, radius: float, weights: tuple[float, float],
    search: Search = CODE,
) -> Tensor:  # fmt: skip
    """Sum of cross-entropies + weights[0] * mean |cos| + weights[1] * size of the loss gradients, squared.

    The published code is written for three members; the means over pairs here are its own for three.

    Args:
        members: In training mode.
        x: (n, *shape) in [0, 1].
        y: (n,) labels.
        radius: Of the linf ball.
        weights: Of similarity and of smoothness.
        search: Settings of the search.
    """
    criterion = nn.CrossEntropyLoss()
    x = x.detach().requires_grad_()
    gradients, cross_entropy = [], torch.zeros(())
    for member in members:
        loss = criterion(member(x), y)
        gradients.append(autograd.grad(loss, x, create_graph=True)[0].flatten(1))
        cross_entropy = cross_entropy + loss
    similarity = torch.stack([_cosine(f, g) for f, g in combinations(gradients, 2)]).mean()
    clean = int(len(x) * (1 - search.moved))
    groups = list(combinations(members, 2)) if search.pairs else [tuple(members)]
    smoothness = torch.zeros(())
    for group in groups:
        found = _search(group, x[clean:].detach(), y[clean:], radius, search)
        points = torch.cat([x[:clean].detach(), found]).requires_grad_()
        for member in group:
            loss = criterion(member(points), y)
            gradient = autograd.grad(loss, points, create_graph=True)[0].flatten(1)
            smoothness = smoothness + _magnitude(gradient)
    smoothness = smoothness / (len(groups) * len(groups[0]))
    return cross_entropy + weights[0] * similarity + weights[1] * smoothness


def _search(group: Sequence[nn.Module], x: Tensor, y: Tensor, radius: float, search: Search) -> Tensor:
    criterion = nn.CrossEntropyLoss()
    noise = torch.zeros_like(x)
    if search.random_start:
        noise.uniform_(-radius, radius)
    adversarial = torch.clamp(x + noise, 0, 1).requires_grad_()
    for _ in range(search.steps):
        size = torch.zeros(())
        for member in group:
            loss = criterion(member(adversarial), y)
            gradient = autograd.grad(loss, adversarial, create_graph=True)[0].flatten(1)
            size = size + _magnitude(gradient)
        (size / len(group)).backward()
        assert adversarial.grad is not None
        sign = adversarial.grad.data.sign()
        with torch.no_grad():
            adversarial.data = adversarial.data + radius / search.share * sign
            adversarial.data = torch.max(torch.min(adversarial.data, x + radius), x - radius)
            adversarial.data = torch.clamp(adversarial.data, 0.0, 1.0)
    adversarial.grad = None
    return adversarial.detach()


def _cosine(f: Tensor, g: Tensor) -> Tensor:
    return torch.abs(nn.functional.cosine_similarity(f, g)).mean()


def _magnitude(gradient: Tensor) -> Tensor:
    """Twice the mean squared length of a batch's gradients."""
    return (2 * (gradient**2).sum(1)).mean()


def published_step(
    members: nn.ModuleList, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, radius: float,
    weights: tuple[float, float], search: Search = CODE,
) -> float:  # fmt: skip
    """One step of training; returns the loss before it."""
    loss = published_loss(list(members), x, y, radius, weights, search)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
