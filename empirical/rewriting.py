"""The same evaluation-mode functions of networks, computed with less work.

- **All members in one tensor.** Dense members become one batched product a layer; others are looped over, and
  only what follows their logits is shared.
- **Folded networks.** In evaluation mode batch normalisation is an affine map, and is folded into the
  convolution before it: neither a pass of its own nor a backward through it is left.
- **Quick first convolutions**: see `estimators.convolution`.
- **Pooling first.** A (leaky) ReLU keeps the order, so maxima are pooled before it: it has less to do.

Values and derivatives, by inputs and weights, are those of the modules up to rounding. A function made here
holds the weights as they were when it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from empirical.models import Normalize, ResidualSum, is_activation
from estimators.convolution import convolve

Network = Callable[[Tensor], Tensor]


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


def as_it_is(x: Tensor) -> Tensor:
    """The identity."""
    return x


def split_members(members: nn.ModuleList) -> Split:
    """`together`, cut after the first dense layer where that one narrows."""
    chains = _dense_chains(members)
    head = [type(layer) for layer in chains[0][:3]] if chains else []
    if head != [Normalize, nn.Flatten, nn.Linear] or 2 * chains[0][2].out_features > chains[0][2].in_features:
        return Split(Tensor.detach, together(members), as_it_is, as_it_is)
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
    chains = [dense_chain(member) for member in members]
    return chains if all(chains) and len(set(map(_layout, chains))) == 1 else []


def dense_chain(module: nn.Module) -> list[Any]:
    """The layers of a chain of normalisation, flattening, dense layers and activations, else nothing."""
    layers = list(module) if _is_chain(module) else []
    plain = (
        is_bare(layer) and (type(layer) in (Normalize, nn.Flatten, nn.Linear) or is_activation(layer))
        for layer in layers
    )
    return layers if all(plain) else []


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
    if type(module) is ResidualSum and is_bare(module):
        body, shortcut = folded(module.body), folded(module.shortcut)
        return lambda x: body(x) + shortcut(x)
    if not _is_chain(module):
        return module
    layers: list[Network] = []
    rest = list(module)
    while rest:
        layer = rest.pop(0)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and is_bare(layer):
            follows = bool(rest) and type(rest[0]) is nn.BatchNorm2d and is_bare(rest[0])
            norm = rest.pop(0) if follows else None
            layers.append(_convolution(layer, norm))
        elif rest and _keeps_order(layer) and _pools_maxima(rest[0]):
            layers += [rest.pop(0), layer]
        else:
            layers.append(folded(layer))
    return _in_a_row(layers)


def _is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain and is_bare(module)


def is_bare(module: nn.Module) -> bool:
    """Whether a call of the module is its forward pass and no more: hooks can change weights and outputs."""
    return not (module._forward_hooks or module._forward_pre_hooks)


def _keeps_order(layer: nn.Module) -> bool:
    rectifies = type(layer) is nn.ReLU or (type(layer) is nn.LeakyReLU and layer.negative_slope >= 0)
    return rectifies and is_bare(layer)


def _pools_maxima(layer: nn.Module) -> bool:
    return type(layer) is nn.MaxPool2d and not layer.return_indices and is_bare(layer)


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
    return lambda x: convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
