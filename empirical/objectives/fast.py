"""The TRS step in less work: the same numbers as the plain code, up to rounding, and a test holds them equal.

- **All members in one tensor.** Dense members become one batched product a layer; others are looped over, and
  only what follows their logits is shared.
- **Folded networks.** In evaluation mode batch normalisation is an affine map, and is folded into the
  convolution before it: neither a pass of its own nor a double backward through it is left.
- **Mirrored kernels.** The gradient of a convolution by an input of few channels, which oneDNN computes
  slowly, is a convolution itself.
- **A narrow first layer.** Gradients by the input are A^T times those by a first dense layer's output: the
  search takes lengths with A A^T and multiplies by A^T once a step.
- **Search directions in closed form.** A loss gradient's length is s |d|, with d the margin's gradient and s
  the loss' slope, and its own gradient s (H u + (1 - s) |d| d), with H the margin's Hessian and u = d / |d|:
  one product with a Hessian, and no graph of lengths, slopes or weights.

Members on the left: tensors are (N, n, ...), member by member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from empirical.models import Normalize, ResidualSum, is_activation
from empirical.objectives.base import Step
from empirical.objectives.gradients import TINY, evaluation_mode, length, modes_differ
from empirical.objectives.search import Box, ascend
from estimators.batching import frozen

Network = Callable[[Tensor], Tensor]

# With so few input channels a mirrored kernel is faster.
_FEW_CHANNELS = 2


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

    at_clean = _length_slope(clean.gradients, clean.x, _as_it_is, keep=True)
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
    first, second = torch.triu_indices(len(unit), len(unit), 1).unbind()
    return (unit[first] * unit[second]).sum(-1).abs().mean()


def together(members: nn.ModuleList) -> Network:
    """The members' evaluation-mode functions as one, (N, n, *shape) to (N, n, K), by their weights too."""
    if chains := _dense_chains(members):
        return _in_a_row([_dense(layers) for layers in zip(*chains, strict=True)])
    networks = [folded(member) for member in members]
    return lambda x: torch.stack([network(part) for network, part in zip(networks, x, strict=True)])


@dataclass(frozen=True)
class Split:
    """The members' functions as `rest` after an affine `first`, with matrix A, or the identity.

    Gradients by the input are A^T times those by the hidden layer: where that is the narrower one, a search
    can stay there most of the time.

    Attributes:
        first: (N, n, *shape) to hidden layers (N, n, *), without a graph.
        rest: Hidden layers to logits (N, n, K).
        gram: Multiplies flat vectors (N, n, h) by A A^T.
        adjoint: Multiplies hidden gradients by A^T, to (N, n, *shape).
    """

    first: Network
    rest: Network
    gram: Network
    adjoint: Network


def _as_it_is(x: Tensor) -> Tensor:
    return x


def split_members(members: nn.ModuleList) -> Split:
    """`together`, cut after the first dense layer where that one narrows."""
    chains = _dense_chains(members)
    head = [type(layer) for layer in chains[0][:3]] if chains else []
    if head != [Normalize, nn.Flatten, nn.Linear] or 2 * chains[0][2].out_features > chains[0][2].in_features:
        return Split(Tensor.detach, together(members), _as_it_is, _as_it_is)
    layers = [_dense(each) for each in zip(*chains, strict=True)]
    matrix = torch.stack([(chain[2].weight / _flat_std(chain)).detach() for chain in chains])
    gram = matrix @ matrix.mT

    def first(x: Tensor) -> Tensor:
        with torch.no_grad():
            return _in_a_row(layers[:3])(x)

    return Split(first, _in_a_row(layers[3:]), lambda v: v @ gram, lambda v: v @ matrix)


def _flat_std(chain: Sequence[Any]) -> Tensor:
    """(d,) standard deviations by which a chain's first layer divides the flat input of its third."""
    std = chain[0].std.flatten()
    return std.repeat_interleave(chain[2].in_features // len(std))


def _dense_chains(members: nn.ModuleList) -> list[list[Any]]:
    """The members' layers, if they are dense chains of one layout, else nothing."""
    chains = [list(member) if _is_chain(member) else [] for member in members]
    alike = all(chains) and all(map(_is_dense, chains)) and len(set(map(_layout, chains))) == 1
    return chains if alike else []


def _is_dense(chain: Sequence[nn.Module]) -> bool:
    return all(
        isinstance(layer, Normalize | nn.Flatten | nn.Linear) or is_activation(layer) for layer in chain
    )


def _layout(chain: Sequence[nn.Module]) -> str:
    """What two chains must share to be computed as one: kinds, sizes and settings of their layers."""
    weights = [tuple(tensor.shape) for layer in chain for tensor in (*layer.parameters(), *layer.buffers())]
    return f"{[repr(layer) for layer in chain]} {weights}"


def _dense(layers: Sequence[Any]) -> Network:
    """One layer of all members, on (N, n, ...)."""
    layer = layers[0]
    if isinstance(layer, nn.Linear):
        weight = torch.stack([each.weight for each in layers]).mT
        if layer.bias is None:
            return lambda x: torch.bmm(x, weight)
        bias = torch.stack([each.bias for each in layers])[:, None]
        return lambda x: torch.baddbmm(bias, x, weight)
    if isinstance(layer, Normalize):
        mean = torch.stack([each.mean for each in layers])[:, None]
        std = torch.stack([each.std for each in layers])[:, None]
        return lambda x: (x - mean) / std
    if isinstance(layer, nn.Flatten):
        return lambda x: x.flatten(2)
    activation: Network = layer
    return activation


def folded(module: nn.Module) -> Network:
    """The evaluation-mode function of a module, differentiable in its weights.

    Chains (`nn.Sequential`) and residual sums are rewritten; a module of any other kind is returned as it is.
    """
    if type(module) is ResidualSum:
        body, shortcut = folded(module.body), folded(module.shortcut)
        return lambda x: body(x) + shortcut(x)
    if not _is_chain(module):
        return module
    layers: list[Network] = []
    rest = list(module)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            norm = rest.pop(0) if rest and isinstance(rest[0], nn.BatchNorm2d) else None
            layers.append(_convolution(layer, norm))
        else:
            layers.append(folded(layer))
    return _in_a_row(layers)


def _is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _in_a_row(layers: Sequence[Network]) -> Network:
    def network(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return network


def _convolution(layer: Any, norm: Any) -> Network:
    """A convolution, with the batch normalisation after it folded in."""
    weight, bias = layer.weight, layer.bias
    if norm is not None:
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        weight, bias = weight * scale[:, None, None, None], shift
    mirrored = _mirrored_padding(layer)

    def network(x: Tensor) -> Tensor:
        if mirrored is not None and not torch.is_autocast_enabled(x.device.type):
            return _MirroredConvolution.apply(x, weight, bias, layer.padding, mirrored)
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    return network


def _mirrored_padding(layer: nn.Conv2d) -> tuple[int, ...] | None:
    """Padding of the mirrored convolution, or None where there is none or it does not pay."""
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    pays = layer.in_channels <= _FEW_CHANNELS and layer.weight.device.type == "cpu"
    if not (plain and pays) or isinstance(layer.padding, str):
        return None
    padding = tuple(size - 1 - pad for size, pad in zip(layer.kernel_size, layer.padding, strict=True))
    return padding if min(padding) >= 0 else None


class _MirroredConvolution(torch.autograd.Function):
    """A convolution of stride 1 whose gradient by its input is the convolution with the mirrored kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, mirrored: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.paddings = (padding, mirrored)
        return functional.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        padding, mirrored = ctx.paddings
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            kernel = weight.flip(2, 3).transpose(0, 1)
            by_x = _MirroredConvolution.apply(gradient, kernel, None, mirrored, padding)
        if ctx.needs_input_grad[1]:
            by_weight = conv2d_weight(x, weight.shape, gradient, 1, padding)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 2, 3))
        return by_x, by_weight, by_bias, None, None
