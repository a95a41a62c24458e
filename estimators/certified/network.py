"""A model read as a graph of affine maps, activations and sums, for which certificates are derived."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from estimators.batching import double_copy, frozen
from estimators.certified import activations
from estimators.certified.activations import Curve
from estimators.certified.operators import (
    Convolution,
    Dense,
    LinearMap,
    Reshape,
    Scaling,
    densified,
    merge,
)

# torch's softplus is the identity beyond its threshold; above 45 the jump in the slope is below rounding.
_SOFTPLUS_THRESHOLD = 45.0


class UnsupportedLayer(ValueError):
    """A layer or an operation for which no certificate is implemented; the message names it."""


@dataclass(frozen=True)
class Input:
    """The input, of shape `shape` without the batch axis."""

    shape: tuple[int, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Affine:
    """`operator x + bias`, bias (*out_shape)."""

    source: int
    operator: LinearMap
    bias: Tensor

    @property
    def sources(self) -> tuple[int, ...]:
        """The earlier nodes that it takes."""
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Pointwise:
    """An activation of every entry."""

    source: int
    curve: Curve

    @property
    def sources(self) -> tuple[int, ...]:
        """The earlier nodes that it takes."""
        return (self.source,)


@dataclass(frozen=True)
class Sum:
    """The sum of two earlier nodes of one shape, the join of a residual block."""

    sources: tuple[int, int]


Node = Input | Affine | Pointwise | Sum


@dataclass(frozen=True, eq=False)
class Network:
    """A model in float64 as a directed graph without cycles.

    Attributes:
        nodes: In an order in which sources come first; the first is the input, the last gives the logits.
        shapes: Shape of each node's value, without the batch axis.
        notes: Where the graph is not literally the model, in words.
    """

    nodes: tuple[Node, ...]
    shapes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self.shapes[-1][0]

    @property
    def kinks(self) -> tuple[str, ...]:
        """Names of the activations whose slope jumps."""
        curves = [node.curve for node in self.nodes if isinstance(node, Pointwise)]
        return tuple(dict.fromkeys(curve.name for curve in curves if not curve.smooth))

    def values(self, x: Tensor) -> list[Tensor]:
        """Value of every node at inputs (n, *shape) in float64."""
        values: list[Tensor] = []
        for node in self.nodes:
            if isinstance(node, Input):
                values.append(x)
            elif isinstance(node, Affine):
                values.append(node.operator.apply(values[node.source]) + node.bias)
            elif isinstance(node, Pointwise):
                values.append(node.curve.value(values[node.source]))
            else:
                values.append(values[node.sources[0]] + values[node.sources[1]])
        return values


def read_network(model: nn.Module, x: Tensor) -> Network:
    """Read a feed-forward model as a `Network`, in float64 and in evaluation mode.

    Args:
        model: Module from (n, *shape) to logits (n, K), of layers that torch.fx can trace: Linear, Conv2d,
            AvgPool2d, BatchNorm, Flatten, Dropout, Identity; tanh, sigmoid, softplus, GELU, SiLU, ReLU and
            LeakyReLU as layers or functions; arithmetic with constants; sums of two branches.
        x: Inputs (n, *shape) in the model's dtype, against which the result is checked.

    Returns:
        The same function up to rounding. Adjacent affine layers are merged.

    Raises:
        UnsupportedLayer: If a layer or an operation is none of these; the message names it.
        ValueError: If the graph does not reproduce the model's logits at x.
    """
    exact = double_copy(model)
    with frozen(exact), torch.no_grad():
        points = x.detach().double()
        reader = _Reader(exact, points[:1].repeat(2, *[1] * (x.dim() - 1)))
        network = _pruned(reader.read(), reader.notes)
        probe = points[:16]
        expected, found = exact(probe), network.values(probe)[-1]
    if found.shape != expected.shape:
        raise UnsupportedLayer(f"expected logits {tuple(expected.shape)}, read {tuple(found.shape)}")
    error = float((expected - found).abs().max())
    if not error <= 1e-8 * (1 + float(expected.abs().max())):
        raise UnsupportedLayer(f"expected to reproduce the model's logits, got them wrong by {error:.2g}")
    return network


@dataclass(frozen=True)
class _Traced:
    """A value that depends on the input: the node that computes it, and its value on a sample batch."""

    index: int
    example: Tensor


class _Reader:
    """Walks a traced model once and writes its nodes down."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        # A lone layer is wrapped, so that it is seen as a layer and not as what its forward does.
        self.root = nn.Sequential(model) if not list(model.children()) else model
        self.example = example
        self.nodes: list[Node] = []
        self.notes: list[str] = []

    def read(self) -> list[Node]:
        try:
            graph = fx.Tracer().trace(self.root)
        except Exception as error:  # whatever a stranger's forward raises on symbols
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnsupportedLayer(
                f"expected a model that torch.fx can trace for a certificate: {reason}"
            ) from error
        known: dict[fx.Node, Any] = {}
        for step in graph.nodes:
            if step.op == "output":
                break
            known[step] = self._read_step(step, known)
        result = fx.node.map_arg(step.args[0], known.__getitem__)
        if not isinstance(result, _Traced) or result.example.dim() != 2:
            raise UnsupportedLayer("expected a model with logits (n, K) as its only output")
        if result.index != len(self.nodes) - 1:
            self._affine(result, Scaling(torch.ones_like(result.example[0])), result.example)
        return self.nodes

    def _read_step(self, step: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        if step.op == "placeholder":
            if self.nodes:
                raise UnsupportedLayer("expected a model with one input")
            return self._append(Input(tuple(self.example.shape[1:])), self.example)
        if step.op == "get_attr":
            return operator.attrgetter(str(step.target))(self.root)
        args = fx.node.map_arg(step.args, known.__getitem__)
        kwargs = fx.node.map_arg(step.kwargs, known.__getitem__)
        if step.op == "call_module":
            return self._layer(self.root.get_submodule(str(step.target)), *args)
        return self._operation(step.op, step.target, args, kwargs)

    def _layer(self, layer: nn.Module, source: Any, *rest: Any) -> _Traced:
        name = type(layer).__name__
        if rest or not isinstance(source, _Traced):
            raise UnsupportedLayer(f"no certificate for {name} with several inputs")
        if isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d):
            return source
        example = layer(source.example)
        shape = tuple(source.example.shape[1:])
        curve = self._curve(layer)
        if curve is not None:
            return self._append(Pointwise(source.index, curve), example)
        if isinstance(layer, nn.Flatten) and example.dim() == 2:
            return self._affine(source, Reshape(shape, example.shape[1:], example.device), example)
        if isinstance(layer, nn.Linear) and len(shape) == 1:
            return self._affine(source, Dense(layer.weight.data, shape, example.shape[1:]), example)
        if (
            isinstance(layer, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            padding = 0 if layer.padding == "valid" else layer.padding
            convolution = Convolution(
                layer.weight.data, shape, stride=_pair(layer.stride), padding=_pair(padding),
                dilation=_pair(layer.dilation), groups=layer.groups,
            )  # fmt: skip
            return self._affine(source, convolution, example)
        if isinstance(layer, nn.AvgPool2d):
            pooling = _pooling(shape, layer.kernel_size, layer.stride, layer.padding)
            if (
                not layer.ceil_mode
                and layer.divisor_override is None
                and (layer.count_include_pad or _pair(layer.padding) == (0, 0))
            ):
                return self._affine(source, pooling, example)
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return self._affine(source, _materialised(layer, shape, example), example)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is not None:
            factors = (layer.running_var + layer.eps).rsqrt()
            if layer.weight is not None:
                factors = factors * layer.weight.data
            return self._affine(source, Scaling(_per_channel(factors, shape)), example)
        raise UnsupportedLayer(f"no certificate for the layer {name}")

    def _operation(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        function: Callable[..., Any] = getattr(torch.Tensor, target) if kind == "call_method" else target
        examples = [item.example.clone() if isinstance(item, _Traced) else item for item in args]
        traced = [item for item in args if isinstance(item, _Traced)]
        if any(isinstance(item, _Traced) for item in kwargs.values()):
            raise UnsupportedLayer(f"no certificate for {name} with named inputs")
        result = function(*examples, **kwargs)
        if not traced or not isinstance(result, Tensor):
            return result  # a constant, or a size
        shape = tuple(traced[0].example.shape[1:])
        name = name.strip("_")
        if len(traced) == 2 and name in ("add", "iadd", "sub", "isub"):
            return self._sum(traced, result, sign=1.0 if "add" in name else -1.0)
        if len(traced) != 1:
            raise UnsupportedLayer(f"no certificate for the operation {name} of two computed values")
        if name in _LAYERS:
            return self._layer(_LAYERS[name](*examples[1:], **kwargs), traced[0])
        if name in ("flatten", "view", "reshape", "contiguous") and len(result) == 2:
            return self._affine(traced[0], Reshape(shape, result.shape[1:], result.device), result)
        if name in (
            "add",
            "iadd",
            "radd",
            "sub",
            "isub",
            "rsub",
            "mul",
            "imul",
            "rmul",
            "truediv",
            "itruediv",
            "div",
            "neg",
        ):
            if name in ("truediv", "itruediv", "div") and not isinstance(args[0], _Traced):
                raise UnsupportedLayer("no certificate for the division by a computed value")
            zeros, ones = torch.zeros_like(traced[0].example), torch.ones_like(traced[0].example)
            at = [
                function(*(point if isinstance(item, _Traced) else item for item in args), **kwargs)
                for point in (zeros, ones)
            ]
            if result.shape == traced[0].example.shape:
                return self._affine(traced[0], Scaling((at[1] - at[0])[0]), result)
        if name == "mean" and len(result) == 2 and result.dim() >= 2:
            linear = _materialised(lambda rows: function(rows, *examples[1:], **kwargs), shape, result)
            return self._affine(traced[0], linear, result)
        raise UnsupportedLayer(f"no certificate for the operation {name}")

    def _curve(self, layer: nn.Module) -> Curve | None:
        if isinstance(layer, nn.Softplus):
            if layer.threshold < _SOFTPLUS_THRESHOLD:
                jump = math.exp(-layer.threshold)
                self.notes.append(
                    f"softplus without torch's switch to the identity, where the slope jumps by {jump:.1g}"
                )
            return activations.softplus(float(layer.beta))
        if isinstance(layer, nn.GELU):
            if layer.approximate != "none":
                raise UnsupportedLayer(f"no certificate for GELU with approximate={layer.approximate!r}")
            return activations.gelu()
        if isinstance(layer, nn.LeakyReLU):
            return activations.leaky_relu(float(layer.negative_slope))
        for kind, make in _CURVES.items():
            if type(layer) is kind:
                return make()
        return None

    def _sum(self, traced: list[_Traced], example: Tensor, sign: float) -> _Traced:
        first, second = traced
        if first.example.shape != second.example.shape:
            raise UnsupportedLayer(
                f"no certificate for a sum of shapes {tuple(first.example.shape[1:])} and "
                f"{tuple(second.example.shape[1:])}"
            )
        if sign < 0:
            second = self._affine(second, Scaling(-torch.ones_like(second.example[0])), -second.example)
        return self._append(Sum((first.index, second.index)), example)

    def _affine(self, source: _Traced, linear: LinearMap, example: Tensor) -> _Traced:
        """An affine node; its bias is what its result has at zero, so it needs no case of its own."""
        bias = (example - linear.apply(source.example))[0]
        before = self.nodes[source.index]
        index = source.index
        if isinstance(before, Affine):
            bias = bias + linear.apply(before.bias.unsqueeze(0))[0]
            linear, index = merge(before.operator, linear), before.source
        return self._append(Affine(index, densified(linear), bias), example)

    def _append(self, node: Node, example: Tensor) -> _Traced:
        if not isinstance(example, Tensor) or len(example) != len(self.example):
            raise UnsupportedLayer("expected a model that keeps the batch axis first")
        self.nodes.append(node)
        return _Traced(len(self.nodes) - 1, example)


_CURVES: dict[type[nn.Module], Callable[[], Curve]] = {
    nn.Tanh: activations.tanh,
    nn.Sigmoid: activations.sigmoid,
    nn.SiLU: activations.silu,
    nn.ReLU: activations.leaky_relu,
}


_ARITHMETIC = ("add", "iadd", "sub", "isub", "rsub", "mul", "imul", "neg")
_DIVISIONS = ("truediv", "itruediv", "div")


def _dropout(*_: Any, **__: Any) -> nn.Module:
    return nn.Identity()


# Functions and methods that do what a layer does, by the layer's constructor with the same arguments.
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": lambda inplace=False: nn.ReLU(),
    "leaky_relu": nn.LeakyReLU,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "dropout": _dropout,
}


def _pruned(nodes: list[Node], notes: list[str]) -> Network:
    """The nodes that the last one depends on, renumbered."""
    needed = {len(nodes) - 1}
    for index in range(len(nodes) - 1, -1, -1):
        if index in needed:
            needed.update(nodes[index].sources)
    needed.add(0)
    place = {old: new for new, old in enumerate(sorted(needed))}
    kept: list[Node] = []
    shapes: list[tuple[int, ...]] = []
    for old in sorted(needed):
        node = nodes[old]
        if isinstance(node, Affine):
            node = Affine(place[node.source], node.operator, node.bias)
            shapes.append(node.operator.out_shape)
        elif isinstance(node, Pointwise):
            node = Pointwise(place[node.source], node.curve)
            shapes.append(shapes[node.source])
        elif isinstance(node, Sum):
            node = Sum((place[node.sources[0]], place[node.sources[1]]))
            shapes.append(shapes[node.sources[0]])
        else:
            shapes.append(node.shape)
        kept.append(node)
    return Network(tuple(kept), tuple(shapes), tuple(dict.fromkeys(notes)))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _per_channel(factors: Tensor, shape: tuple[int, ...]) -> Tensor:
    return factors.view(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()


def _pooling(shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any) -> Convolution:
    rows, columns = _pair(kernel)
    weight = torch.full((shape[0], 1, rows, columns), 1.0 / (rows * columns), dtype=torch.float64)
    return Convolution(
        weight, shape, stride=_pair(kernel if stride is None else stride), padding=_pair(padding),
        groups=shape[0],
    )  # fmt: skip


def _materialised(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], example: Tensor) -> Dense:
    """The matrix of a function known to be linear."""
    size = math.prod(shape)
    identity = torch.eye(size, dtype=example.dtype, device=example.device)
    weight = function(identity.reshape(size, *shape)).flatten(1).T.contiguous()
    return Dense(weight, shape, example.shape[1:])
