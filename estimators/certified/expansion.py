"""A network over balls as its expansion at the centre plus a remainder that is quadratic in the activations.

At every activation write `sigma(u0 + t) = sigma(u0) + s t + rho(t)` with a fixed slope s. Sent back through
the network with these slopes, a functional f of any node (a unit, or a difference of two logits) becomes

    f(x + d) = f(x) + g.d + sum_k lambda_k rho_k(t_k),

exactly: g is what the slopes make of the gradient, lambda_k the derivative of f by what leaves activation k,
both **at the centre**, and t_k the true displacement of what enters it. Where sigma is smooth, s is its slope
and `rho = q t^2 / 2` with q between bounds on the mean second derivative; at a kink s is the slope of the
chord and rho an interval. So a margin is bounded below by an affine function, or by a quadratic one whose
matrix is `sum_k w_k r_k r_k^T` over the units' gradients r_k. Displacements come from the same expansion of
the units themselves, layer by layer. All of it holds in l2 and in linf alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from bounds.certificate import Norm
from estimators.certified.network import Affine, Input, Network, Pointwise
from estimators.certified.operators import ROUNDING, LinearMap
from estimators.certified.remainder import Interval, Layer, after, remainder, spectral_bound

# A layer's gradients are held where it has no more than this many numbers a sample,
ROW_ENTRIES = 1 << 18
# A second layer that is larger gets the lengths of them where that takes no more numbers than this; sums of a
# few thousand products in float32 are off by less than this share of the sum of their sizes.
_FORWARD_ENTRIES = 1 << 23
_FORWARD_ERROR = 1e-3


@dataclass(frozen=True, eq=False)
class Expansion:
    """A network over the balls of one radius.

    Attributes:
        network: The network.
        logits: At the centres, (n, K).
        layers: Its activations, by the index of their node.
        reaches: How far each entry of each node can move, (n, *shape).
        spreads: How far each node can move in l2, (n,).
        radius: Of the balls.
        norm: Of the balls.
    """

    network: Network
    logits: Tensor
    layers: dict[int, Layer]
    reaches: Sequence[Tensor] = field(repr=False)
    spreads: Sequence[Tensor] = field(repr=False)
    radius: float
    norm: Norm

    def functionals(self, seeds: Tensor) -> Functionals:
        """Combinations of the logits, with weights (n, L, K)."""
        adjoints, gradients = _send_back(self.network, len(self.network.nodes) - 1, seeds, self.layers)
        values = (seeds * self.logits.unsqueeze(1)).sum(2)
        return Functionals(self, values, gradients, adjoints, self._moves(seeds))

    def _moves(self, seeds: Tensor) -> Tensor:
        """How far combinations of the logits can move, (n, L), from how far what they are made of can."""
        at, rows = len(self.network.nodes) - 1, seeds
        last = self.network.nodes[at]
        if isinstance(last, Affine):
            at, rows = last.source, last.operator.adjoint(seeds.flatten(0, 1)).reshape(*seeds.shape[:2], -1)
        apart = (rows.abs() @ self.reaches[at].flatten(1).unsqueeze(2)).squeeze(2)
        return torch.minimum(apart, rows.norm(dim=2) * self.spreads[at].unsqueeze(1)) * (1 + ROUNDING)


@dataclass(frozen=True, eq=False)
class Functionals:
    """L combinations f of the logits for each sample, expanded.

    Attributes:
        expansion: Of the network.
        values: f at the centre, (n, L).
        gradients: g, (n, L, d).
        adjoints: lambda at each activation, (n, L, M), by the index of its node.
        moves: Bounds on `|f - f(x)|` in the ball from the movements of the last layer alone, (n, L): what a
            local Lipschitz constant gives.
    """

    expansion: Expansion
    values: Tensor
    gradients: Tensor
    adjoints: dict[int, Tensor] = field(repr=False)
    moves: Tensor

    @cached_property
    def swings(self) -> dict[int, Interval]:
        """What each activation contributes to `fall` and to `rise`."""
        return {index: layer.swing(self.adjoints[index]) for index, layer in self.expansion.layers.items()}

    @property
    def fall(self) -> Tensor:
        """Bound (n, L) on how far f falls below `f(x) + g.d` in the ball."""
        return sum((swing[0] for swing in self.swings.values()), torch.zeros_like(self.values)) * (
            1 + ROUNDING
        )

    @property
    def rise(self) -> Tensor:
        """Bound (n, L) on how far f rises above `f(x) + g.d` in the ball."""
        return sum((swing[1] for swing in self.swings.values()), torch.zeros_like(self.values)) * (
            1 + ROUNDING
        )

    def refined_fall(self, samples: Tensor, labels: Tensor) -> Tensor:
        """`fall` (m,) of some functionals, each layer looked at closer."""
        total = self.values.new_zeros(len(samples))
        for index, layer in self.expansion.layers.items():
            adjoint = self.adjoints[index][samples, labels]
            closer = layer.refined_fall(adjoint, samples)
            total = total + torch.minimum(self.swings[index][0][samples, labels], closer)
        return total * (1 + ROUNDING)


def expand(network: Network, x: Tensor, radius: float, norm: Norm) -> Expansion:
    """Expand a network over the balls of that radius.

    Args:
        network: The network.
        x: Centres (n, *shape), float64.
        radius: Radius, at least 0.
        norm: Of the balls.
    """
    values = network.values(x)
    size = math.prod(x.shape[1:])
    spread = radius if norm == "l2" else radius * math.sqrt(size)
    # How far each entry of a node, and the node as a whole in l2, can move.
    reaches = [torch.full_like(x, radius)]
    spreads = [x.new_full((len(x),), spread)]
    layers: dict[int, Layer] = {}
    for index, node in enumerate(network.nodes):
        if isinstance(node, Input):
            continue
        if isinstance(node, Affine):
            reach, whole = reaches[node.source], spreads[node.source]
            norms = node.operator.row_norms
            reach = torch.minimum(node.operator.magnitude.apply(reach), norms * _each(whole, norms))
            whole = node.operator.norm * whole
        elif isinstance(node, Pointwise):
            layer = _layer(network, values, node, reaches, spreads, layers, radius, norm)
            layers[index] = layer
            shape = values[index].shape
            reach, steepest = after(node.curve, values[node.source], layer.reach.reshape(shape))
            whole = layer.widest(steepest.flatten(1))
        else:
            reach = reaches[node.sources[0]] + reaches[node.sources[1]]
            whole = spreads[node.sources[0]] + spreads[node.sources[1]]
        reaches.append(reach)
        spreads.append(torch.minimum(whole, reach.flatten(1).norm(dim=1)))
    return Expansion(network, values[-1], layers, reaches, spreads, radius, norm)


def dual_norm(rows: Tensor, norm: Norm, dim: int) -> Tensor:
    """How far a unit step in the norm can move rows: their l2 norm in l2, their l1 norm in linf."""
    return torch.linalg.vector_norm(rows, ord=2 if norm == "l2" else 1, dim=dim)


def _layer(
    network: Network,
    values: Sequence[Tensor],
    node: Pointwise,
    reaches: Sequence[Tensor],
    spreads: Sequence[Tensor],
    layers: dict[int, Layer],
    radius: float,
    norm: Norm,
) -> Layer:
    before = values[node.source].flatten(1)
    units = before.shape[1]
    reach, spread = reaches[node.source].flatten(1), spreads[node.source]
    inputs = values[0][0].numel()
    large = norm == "l2" and any(
        inputs * values[index][0].numel() > ROW_ENTRIES
        for index, other in enumerate(network.nodes)
        if isinstance(other, Pointwise)
    )
    rows, error, error_norm = None, torch.zeros_like(before), torch.zeros_like(spread)
    if inputs * units > ROW_ENTRIES:
        known = _second_reach(network, node, layers, radius) if norm == "l2" else None
        reach = reach if known is None else torch.minimum(reach, known)
    else:
        rows, error, error_norm = _sent_back(network, node.source, before, layers, large=large)
    if rows is not None:
        error = torch.minimum(error, error_norm.unsqueeze(1)) * (1 + ROUNDING)
        error_norm = torch.minimum(error_norm, error.norm(dim=1)) * (1 + ROUNDING)
        reach = torch.minimum(reach, radius * dual_norm(rows, norm, 1) + error)
        if large:
            spread = torch.minimum(spread, radius * spectral_bound(rows) + error_norm)
    reach = reach * (1 + ROUNDING)
    spread = torch.minimum(spread * (1 + ROUNDING), reach.norm(dim=1))
    slope, bend, rho = remainder(node.curve, before, reach)
    affine = network.nodes[node.source]
    operator = affine.operator if isinstance(affine, Affine) else None
    entering = spreads[affine.source] if isinstance(affine, Affine) else spread
    size = radius if norm == "l2" else None
    return Layer(rows, error, error_norm, reach, spread, slope, bend, rho, size, large, operator, entering)


def _second_reach(
    network: Network, node: Pointwise, layers: dict[int, Layer], radius: float
) -> Tensor | None:
    """How far the units (n, M) of a second layer that is too large for its rows can move, in l2.

    The lengths of the rows come from forward products in float32, whose rounding is charged; what the first
    activation leaves beyond its slopes is bounded in norm.
    """
    affine = network.nodes[node.source]
    first = network.nodes[affine.source] if isinstance(affine, Affine) else None
    start = network.nodes[first.source] if isinstance(first, Pointwise) else None
    units = math.prod(network.shapes[node.source])
    if not isinstance(start, Affine) or start.source or not isinstance(affine, Affine):
        return None
    inputs, inside = math.prod(start.operator.in_shape), start.operator.out_shape
    if inputs * max(units, math.prod(inside)) > _FORWARD_ENTRIES:
        return None
    layer = layers[affine.source]
    columns = _merged_columns(start.operator, affine.operator)
    slopes = layer.slope.float().reshape(-1, 1, *inside)
    lengths = []
    for some in slopes.split(max(1, _FORWARD_ENTRIES // columns.numel())):
        tangents = affine.operator.single.apply((columns * some).flatten(0, 1))
        lengths.append(tangents.reshape(len(some), len(columns), -1).square().sum(1).sqrt().double())
    size = start.operator.row_norms.norm() * layer.slope.abs().amax(1, keepdim=True)
    norms = affine.operator.row_norms.flatten()
    charged = torch.cat(lengths) * (1 + _FORWARD_ERROR) + _FORWARD_ERROR * norms * size
    return radius * charged + norms * layer.remainder_norm.unsqueeze(1)


@lru_cache(maxsize=16)
def _merged_columns(first: LinearMap, second: LinearMap) -> Tensor:
    """Columns of a map in float32, (G, *out_shape), added up where their images under a second share no unit.

    The squares of such a sum, sent through the second map with any weights between, are the sums of squares.
    """
    size = math.prod(first.in_shape)
    units = torch.eye(size, dtype=torch.float64, device=first.row_norms.device).reshape(size, *first.in_shape)
    reached = second.magnitude.apply(first.magnitude.apply(units)).flatten(1) > 0
    taken, columns = reached.new_zeros(0, reached.shape[1]), units.new_zeros(0, *first.out_shape)
    for column, unit in zip(first.apply(units), reached, strict=True):
        free = torch.nonzero(~(taken & unit).any(1))
        if len(free):
            taken[free[0, 0]] |= unit
            columns[free[0, 0]] += column
        else:
            taken, columns = torch.cat([taken, unit[None]]), torch.cat([columns, column[None]])
    return columns.float()


def _sent_back(
    network: Network, source: int, before: Tensor, layers: dict[int, Layer], *, large: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, d, M) and errors (n, M) and (n,) of the units of a node, from their own expansions."""
    n, units = before.shape
    # Before the first activation the units are affine, and the same for every sample.
    seeds = torch.eye(units, dtype=before.dtype, device=before.device).expand(n if layers else 1, -1, -1)
    adjoints, gradients = _send_back(network, source, seeds, layers)
    error, error_norm = torch.zeros_like(before), before.new_zeros(n)
    for index, adjoint in adjoints.items():
        error = error + torch.maximum(*layers[index].swing(adjoint))
        if large:
            error_norm = error_norm + spectral_bound(adjoint) * layers[index].remainder_norm
    return gradients.mT, error, error_norm if large else error.norm(dim=1)


def _send_back(
    network: Network, start: int, seeds: Tensor, layers: dict[int, Layer]
) -> tuple[dict[int, Tensor], Tensor]:
    """Send functionals of a node, seeds (n, R, M), back to the input with the layers' slopes.

    Returns:
        lambda at each activation on the way, (n, R, M), and the gradients (n, R, d).
    """
    n, functionals = seeds.shape[:2]
    adjoints: list[Tensor | None] = [None] * (start + 1)
    adjoints[start] = seeds.reshape(-1, *network.shapes[start])
    found: dict[int, Tensor] = {}
    for index in range(start, 0, -1):
        node, adjoint = network.nodes[index], adjoints[index]
        if adjoint is None:
            continue
        if isinstance(node, Affine):
            passed = node.operator.adjoint(adjoint)
        elif isinstance(node, Pointwise):
            found[index] = adjoint.reshape(n, functionals, -1)
            passed = (found[index] * layers[index].slope.unsqueeze(1)).reshape(adjoint.shape)
        else:
            passed = adjoint
        for source in node.sources:
            before = adjoints[source]
            adjoints[source] = passed if before is None else before + passed
        adjoints[index] = None
    arrived = adjoints[0]
    assert arrived is not None  # every node depends on the input
    return found, arrived.reshape(n, functionals, -1)


def _each(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * like.dim())
