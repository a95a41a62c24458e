"""The TRS step in less work: the same numbers as the plain code, up to rounding, and a test holds them equal.

- **Rewritten networks**: see `empirical.rewriting`.
- **A narrow first layer.** Gradients by the input are A^T times those by a first dense layer's output: the
  search takes lengths with A A^T and multiplies by A^T once a step.
- **Search directions in closed form.** A loss gradient's length is s |d|, with d the margin's gradient and s
  the loss' slope, and its own gradient s (H u + (1 - s) |d| d), with H the margin's Hessian and u = d / |d|:
  one product with a Hessian, and no graph of lengths, slopes or weights.

Members on the left: tensors are (N, n, ...), member by member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.objectives.base import Step
from empirical.objectives.gradients import TINY, evaluation_mode, length, modes_differ
from empirical.objectives.search import Box, ascend
from empirical.rewriting import Network, as_it_is, split_members, together
from estimators.batching import frozen


@dataclass(frozen=True)
class MarginGradients:
    """Input gradients of the members' cross-entropies: `slope * direction`, as `LossGradients` of each.

    Attributes:
        direction: (N, n, d) gradients of the margins, flattened.
        slope: (N, n) derivatives of the losses by the margins.
    """

    direction: Tensor
    slope: Tensor


@dataclass(frozen=True)
class StackedClean:
    """`CleanHalf` of all members in one tensor.

    Attributes:
        x: (N, n, *shape) the batch once for each member, requiring a gradient.
        cross_entropy: Mean over members and samples, in training mode.
        logits: (N, n, K) in training mode, detached.
        gradients: At `x`, in evaluation mode, with their graph.
    """

    x: Tensor
    cross_entropy: Tensor
    logits: Tensor
    gradients: MarginGradients


def clean_half(members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> StackedClean:
    """As `gradients.clean_half`: the members on the clean batch, in one pass where the two modes agree."""
    x = x.detach().expand(len(members), *x.shape).contiguous().requires_grad_()
    trained = None
    if modes_differ(members):  # first, for it moves the running statistics
        trained = torch.stack([step.logits(member, x[0].detach()) for member in members])
    with evaluation_mode(members):
        logits = step.logits(together(members), x)
    trained = logits if trained is None else trained
    cross_entropy = functional.cross_entropy(trained.flatten(0, 1), y.repeat(len(members)))
    return StackedClean(x, cross_entropy, trained.detach(), _margin_gradients(logits, x, y))


def similarity_and_norms(
    members: nn.ModuleList, groups: Sequence[tuple[int, ...]], clean: StackedClean, y: Tensor, step: Step,
    delta: float, steps: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`gradients.similarity`, and `trs.norm_sum` at the support instances that `steps` steps find.

    Args:
        members: The ensemble's members.
        groups: Which members share a support instance, each member equally often.
        clean: The clean batch.
        y: (n,) labels.
        step: The current step.
        delta: Radius of the linf ball, which is cut with the pixel range.
        steps: Signed steps of delta / 4 each, the first of which starts at the clean batch.
    """
    with frozen(members):
        support = _find_support(members, groups, clean, y, step, delta, steps)
    points = _seen(support, groups, len(members)).requires_grad_()
    found = _margin_gradients(step.logits(together(members), points), points, _repeated(y, points))
    return _similarity(clean.gradients.direction), (found.slope * _length(found.direction)).sum()


def _find_support(
    members: nn.ModuleList, groups: Sequence[tuple[int, ...]], clean: StackedClean, y: Tensor, step: Step,
    delta: float, steps: int,
) -> Tensor:  # fmt: skip
    """Support instances (G, n, *shape); compare `trs.find_support`."""
    split = split_members(members)
    box = Box.around(clean.x[0], delta, step.pixel_range)

    def in_groups(slopes: Tensor) -> Tensor:
        """Sum (G, n, *shape) over each group of its members' slopes (N, g n, *shape)."""
        total = slopes.new_zeros(len(groups), *box.x.shape)
        for slope, rows in zip(slopes, _memberships(groups, len(members)), strict=True):
            total[rows] += slope.view(len(rows), *box.x.shape)
        return total

    def slope(support: Tensor) -> Tensor:
        points = _seen(support.detach(), groups, len(members))
        hidden = split.first(points).requires_grad_()
        gradients = _margin_gradients(step.logits(split.rest, hidden), hidden, _repeated(y, points))
        return in_groups(split.adjoint(_length_slope(gradients, hidden, split.gram)))

    at_clean = _length_slope(clean.gradients, clean.x, as_it_is, keep=True)
    first = torch.stack([at_clean[list(group)].sum(0) for group in groups])
    start = box.move(box.x.expand_as(first), first, delta / 4)
    return ascend(box, start, slope, steps=steps - 1, size=delta / 4)


def _memberships(groups: Sequence[tuple[int, ...]], members: int) -> list[list[int]]:
    return [[row for row, group in enumerate(groups) if index in group] for index in range(members)]


def _seen(support: Tensor, groups: Sequence[tuple[int, ...]], members: int) -> Tensor:
    """(N, g n, *shape): for each member the instances of all its groups."""
    return torch.stack([support[rows].flatten(0, 1) for rows in _memberships(groups, members)])


def _repeated(y: Tensor, points: Tensor) -> Tensor:
    return y.repeat(points.shape[1] // len(y))


def _margin_gradients(logits: Tensor, x: Tensor, y: Tensor) -> MarginGradients:
    """Compare `gradients.loss_gradients`: logits (N, n, K) of points x (N, n, *shape) with labels y (n,)."""
    own = functional.one_hot(y, logits.shape[-1]).bool()
    others = logits.masked_fill(own, -math.inf)
    margins = others.logsumexp(-1) - (logits * own).sum(-1)
    # The margin's derivative by the logits, written out: autograd makes more passes, the second time too.
    by_logits = others.softmax(-1) - own.to(logits.dtype)
    (direction,) = torch.autograd.grad(logits, x, by_logits, create_graph=True)
    return MarginGradients(direction.flatten(2), torch.sigmoid(margins))


def _length_slope(gradients: MarginGradients, x: Tensor, gram: Network, *, keep: bool = False) -> Tensor:
    """Gradient by x of the loss gradients' lengths, shaped like x; the graph is kept where asked.

    With another `gram` than the identity, x is what an affine map A makes of the input, `gram` is A A^T, and
    the lengths are those of the gradients by the input, A^T times those by x. What comes back is then to be
    multiplied by A^T.
    """
    direction, slope = gradients.direction.detach(), gradients.slope.detach()[..., None]
    pulled = gram(direction)
    size = ((direction * pulled).sum(-1, keepdim=True).clamp(min=0) + TINY).sqrt()
    (product,) = torch.autograd.grad(gradients.direction, x, pulled / size, retain_graph=keep)
    return (slope * (product.flatten(2) + (1 - slope) * size * direction)).view_as(x)


def _length(directions: Tensor) -> Tensor:
    return length(directions.flatten(0, 1)).view(directions.shape[:2])


def _similarity(directions: Tensor) -> Tensor:
    unit = directions / _length(directions)[..., None]
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device).unbind()
    return (unit[first] * unit[second]).sum(-1).abs().mean()
