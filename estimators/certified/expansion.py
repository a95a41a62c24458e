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
from functools import cached_property

import torch
from torch import Tensor

from bounds.certificate import Norm
from estimators.certified.activations import Curve
from estimators.certified.network import Affine, Input, Network, Pointwise
from estimators.certified.operators import ROUNDING

Interval = tuple[Tensor, Tensor]

# The mean second derivative is bounded over this many nested intervals: with one it would be the supremum.
_SHELLS = 8
# Differences of values of an activation are off by less than this share of them.
_CANCELLED = 1e-14
# A layer's gradients are held where it has no more than this many numbers a sample,
ROW_ENTRIES = 1 << 18
# and the inner products of its units where it has no more units than this.
_GRAM_UNITS = 1024


@dataclass(frozen=True, eq=False)
class Layer:
    """An activation over the balls, its M entries flattened.

    Attributes:
        rows: Gradients r_k of what enters it at the centre, (n, d, M); (1, d, M) where they are the same for
            every sample; None where they would be too many.
        error: Bounds on `|t_k - r_k.d|`, (n, M).
        reach: Bounds on `|t_k|`, (n, M).
        spread: Bound on the l2 norm of all t_k together, (n,).
        slope: The slopes s, (n, M).
        bend: Range of q, each (n, M); None at a kink.
        remainder: Range of rho, each (n, M).
        radius: l2 radius of the balls; None for linf.
    """

    rows: Tensor | None
    error: Tensor
    reach: Tensor
    spread: Tensor
    slope: Tensor
    bend: Interval | None
    remainder: Interval
    radius: float | None

    @cached_property
    def squared_gram(self) -> Tensor | None:
        """Squares of the inner products of the rows, (n, M, M) or (1, M, M)."""
        if self.rows is None or self.radius is None or self.rows.shape[2] > _GRAM_UNITS:
            return None
        return (self.rows.mT @ self.rows).square()

    def fall(self, adjoint: Tensor) -> Tensor:
        """Upper bound on `-sum_k lambda_k rho_k`, for adjoints lambda (n, R, M): shape (n, R)."""
        low, high = (end.unsqueeze(1) for end in self.remainder)
        apart = -(adjoint.clamp_min(0) * low + adjoint.clamp_max(0) * high).sum(2)
        if self.bend is None:
            return apart
        return torch.minimum(apart, self.square(-self.weights(adjoint).clamp_max(0)) / 2)

    def weights(self, adjoint: Tensor) -> Tensor:
        """The smallest `lambda q` for adjoints (n, R, M), of a smooth activation."""
        assert self.bend is not None
        return torch.minimum(*(adjoint * end.unsqueeze(1) for end in self.bend))

    def square(self, weights: Tensor) -> Tensor:
        """Upper bound on `sum_k w_k t_k^2` for weights w >= 0 of shape (n, R, M): shape (n, R)."""
        best = weights.amax(2) * self.spread.square().unsqueeze(1)
        if self.squared_gram is None or self.radius is None:
            return best
        # The norm of a matrix is at most its Frobenius norm, here of the rows scaled with the weights.
        size = ((weights @ self.squared_gram) * weights).sum(2).clamp_min(0).sqrt()
        wrong = (weights * self.error.square().unsqueeze(1)).sum(2)
        return torch.minimum(best, (self.radius * size.sqrt() + wrong.sqrt()).square())


@dataclass(frozen=True, eq=False)
class Expansion:
    """A network over the balls of one radius.

    Attributes:
        network: The network.
        logits: At the centres, (n, K).
        layers: Its activations, by the index of their node.
        radius: Of the balls.
        norm: Of the balls.
    """

    network: Network
    logits: Tensor
    layers: dict[int, Layer]
    radius: float
    norm: Norm

    def functionals(self, seeds: Tensor) -> Functionals:
        """Combinations of the logits, with weights (n, L, K)."""
        adjoints, gradients = _send_back(self.network, len(self.network.nodes) - 1, seeds, self.layers)
        values = (seeds * self.logits.unsqueeze(1)).sum(2)
        return Functionals(self, values, gradients, adjoints)


@dataclass(frozen=True, eq=False)
class Functionals:
    """L combinations f of the logits for each sample, expanded.

    Attributes:
        expansion: Of the network.
        values: f at the centre, (n, L).
        gradients: g, (n, L, d).
        adjoints: lambda at each activation, (n, L, M), by the index of its node.
    """

    expansion: Expansion
    values: Tensor
    gradients: Tensor
    adjoints: dict[int, Tensor] = field(repr=False)

    def fall(self, sign: float = 1.0) -> Tensor:
        """Bound (n, L) on how far f falls below `f(x) + g.d` in the ball; with sign -1, how far it rises."""
        total = torch.zeros_like(self.values)
        for index, layer in self.expansion.layers.items():
            total = total + layer.fall(sign * self.adjoints[index])
        return total * (1 + ROUNDING)

    @property
    def has_matrices(self) -> bool:
        """Whether the quadratic bound is at hand: all activations smooth, all their gradients held."""
        layers = self.expansion.layers.values()
        return all(layer.bend is not None and layer.rows is not None for layer in layers)

    def quadratic(self, samples: Tensor, labels: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
        """Matrices Q and constants c with `f(x + d) >= f(x) + g.d - d^T Q d / 2 - c` in the ball.

        Q is symmetric and may be indefinite: where the second derivative is known to be positive, it helps.

        Args:
            samples: Which samples, (m,).
            labels: Which functional of each, (m,).
            sign: With -1: of -f, so that f is bounded above.

        Returns:
            Q (m, d, d) and c (m,).
        """
        dimension = self.gradients.shape[2]
        matrix = self.gradients.new_zeros(len(samples), dimension, dimension)
        constant = self.gradients.new_zeros(len(samples))
        for index, layer in self.expansion.layers.items():
            assert layer.bend is not None
            assert layer.rows is not None
            adjoint = sign * self.adjoints[index][samples, labels]
            weights = torch.minimum(adjoint * layer.bend[0][samples], adjoint * layer.bend[1][samples])
            size, error = weights.abs(), layer.error[samples]
            rows = layer.rows if len(layer.rows) == 1 else layer.rows[samples]
            wrong = (size * error.square()).sum(1)
            length = layer.rows.norm(dim=1)[0 if len(layer.rows) == 1 else samples]
            whole = (size * length.square()).sum(1) * self.expansion.radius**2
            # w (r.d + e)^2 >= (w - b |w|) (r.d)^2 - |w| (1 / b -+ 1) e^2 for every b > 0, - for w > 0.
            balance = (4 * wrong / whole).sqrt().where((wrong > 0) & (whole > 0), 0.0)
            lost = size * (1 / balance.unsqueeze(1) - weights.sign()) * error.square()
            constant = constant + lost.where(wrong.unsqueeze(1) > 0, 0.0).clamp_min(0).sum(1) / 2
            matrix = matrix - (rows * (weights - balance.unsqueeze(1) * size).unsqueeze(1)) @ rows.mT
        return (matrix + matrix.mT) / 2, constant * (1 + ROUNDING)


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
            reach, steepest = _after(node.curve, values[node.source], layer.reach.reshape(shape))
            whole = steepest * layer.spread
        else:
            reach = reaches[node.sources[0]] + reaches[node.sources[1]]
            whole = spreads[node.sources[0]] + spreads[node.sources[1]]
        reaches.append(reach)
        spreads.append(torch.minimum(whole, reach.flatten(1).norm(dim=1)))
    return Expansion(network, values[-1], layers, radius, norm)


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
    n, units = before.shape
    reach, spread = reaches[node.source].flatten(1), spreads[node.source]
    rows, error = None, torch.zeros_like(before)
    if values[0][0].numel() * units <= ROW_ENTRIES:
        seeds = torch.eye(units, dtype=before.dtype, device=before.device)
        # Before the first activation the units are affine, and the same for every sample.
        seeds = seeds.expand(n if layers else 1, -1, -1)
        adjoints, gradients = _send_back(network, node.source, seeds, layers)
        rows = gradients.mT
        for at, adjoint in adjoints.items():
            error = error + torch.maximum(layers[at].fall(adjoint), layers[at].fall(-adjoint))
        error = error * (1 + ROUNDING)
        reach = torch.minimum(reach, radius * dual_norm(gradients, norm, 2) + error)
    reach = reach * (1 + ROUNDING)
    spread = torch.minimum(spread * (1 + ROUNDING), reach.norm(dim=1))
    slope, bend, remainder = _remainder(node.curve, before, reach)
    return Layer(
        rows, error, reach, spread, slope, bend, remainder, radius if norm == "l2" else None
    )  # fmt: skip


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


def _after(curve: Curve, value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """How far an activation's entries can move, and (n,) the steepest slope among them."""
    low, high = curve.value_range(value - reach, value + reach)
    centre = curve.value(value)
    flat, steep = curve.slope_range(value - reach, value + reach)
    moved = torch.maximum(high - centre, centre - low)
    return moved * (1 + ROUNDING), torch.maximum(steep, -flat).flatten(1).amax(1)


def _remainder(curve: Curve, value: Tensor, reach: Tensor) -> tuple[Tensor, Interval | None, Interval]:
    """Slopes s, the range of q if there is one, and the range of rho, for entries (n, M)."""
    ends = value - reach, value + reach
    moved = [curve.value(end) - curve.value(value) for end in ends]
    if curve.smooth:
        low, high = mean_bend(curve, value, reach)
        slope, half = curve.slope(value), reach.square() / 2
        # Where sigma is convex or concave all over, rho is extreme at an end or, with value 0, at the centre.
        over = curve.bend_range(*ends)
        bent = (over[0] >= 0) | (over[1] <= 0)
        apart = torch.stack([moved[0] + slope * reach, moved[1] - slope * reach])
        allowance = ROUNDING * apart.abs().amax(0) + _CANCELLED * (1 + value.abs() + reach)
        least = torch.maximum(low * half, apart.amin(0) - allowance).where(bent, low * half)
        most = torch.minimum(high * half, apart.amax(0) + allowance).where(bent, high * half)
        return slope, (low, high), (least.clamp_max(0), most.clamp_min(0))
    crosses = (ends[0] < 0) & (ends[1] > 0)
    slope = ((moved[1] - moved[0]) / (2 * reach)).where(crosses, curve.slope(value))
    # Piecewise linear: the extremes are at the ends, at the kink and, with value 0, at the centre.
    at_kink = (slope * value - curve.value(value)).where(crosses, 0.0)
    apart = torch.stack([moved[0] + slope * reach, moved[1] - slope * reach, at_kink])
    allowance = ROUNDING * (value.abs() + reach)
    low, high = apart.amin(0).clamp_max(0) - allowance, apart.amax(0).clamp_min(0) + allowance
    return slope, None, (low.where(crosses, 0.0), high.where(crosses, 0.0))


def mean_bend(curve: Curve, value: Tensor, reach: Tensor) -> Interval:
    """Range of `q(t) = 2 (sigma(u + t) - sigma(u) - sigma'(u) t) / t^2` over |t| <= reach.

    q is the mean of sigma'' along [u, u + t] with weight 2 (1 - s) at u + s t: over nested intervals the
    supremum of sigma'' grows, and the weights of the shells between them are known. Each side apart.
    """
    shares = torch.linspace(0, 1, _SHELLS + 1, dtype=value.dtype)
    weights = (2 * shares - shares.square()).diff().tolist()
    sides = []
    for side in (-1, 1):
        low = high = torch.zeros_like(value)
        for share, weight in zip(shares[1:].tolist(), weights, strict=True):
            far = value + side * share * reach
            shell = curve.bend_range(torch.minimum(value, far), torch.maximum(value, far))
            low, high = low + weight * shell[0], high + weight * shell[1]
        sides.append((low, high))
    low, high = torch.minimum(sides[0][0], sides[1][0]), torch.maximum(sides[0][1], sides[1][1])
    allowance = ROUNDING * torch.maximum(high.abs(), low.abs())
    return low - allowance, high + allowance


def _each(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * like.dim())
