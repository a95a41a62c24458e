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
from estimators.certified.network import Affine, Input, Network, Node, Pointwise
from estimators.certified.operators import ROUNDING, LinearMap

Interval = tuple[Tensor, Tensor]

# The mean second derivative is bounded over this many nested intervals: with one it would be the supremum.
_SHELLS = 8
# Schur's test runs so many steps, in float32, on layers of at most so many units.
_POWER_STEPS = 4
_TESTED_UNITS = 5000
_SINGLE = 1e-3
# Differences of values of an activation are off by less than this share of them.
_CANCELLED = 1e-14
# A layer's gradients are held where it has no more than this many numbers a sample,
ROW_ENTRIES = 1 << 18
# and passed on from the layer before rather than sent back where that would take more numbers than this,
_SENT_ENTRIES = 1 << 18
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
        operator: The affine map that gives what enters it; None where a sum does.
        entering: Bound on the l2 norm of how far the argument of that map moves, (n,).
    """

    rows: Tensor | None
    error: Tensor
    reach: Tensor
    spread: Tensor
    slope: Tensor
    bend: Interval | None
    remainder: Interval
    radius: float | None
    operator: LinearMap | None
    entering: Tensor

    @cached_property
    def squared_gram(self) -> Tensor | None:
        """Squares of the inner products of the rows, (n, M, M) or (1, M, M)."""
        if self.rows is None or self.radius is None or self.rows.shape[2] > _GRAM_UNITS:
            return None
        return (self.rows.mT @ self.rows).square()

    def swing(self, adjoint: Tensor) -> Interval:
        """Upper bounds (n, R) on `-sum_k lambda_k rho_k` and on its opposite, for lambda (n, R, M)."""
        low, high = self.remainder
        size = adjoint.abs()
        # Positive and negative parts of lambda apart are halves of |lambda| + lambda and |lambda| - lambda.
        apart, lean = (
            (part @ ends.unsqueeze(2)).squeeze(2) / 2
            for part, ends in ((size, high - low), (adjoint, high + low))
        )
        # What cancels in the difference is below the rounding of the sum.
        apart = apart * (1 + ROUNDING)
        if self.bend is None:
            return apart - lean, apart + lean
        largest = (size * torch.maximum(self.bend[1], -self.bend[0]).unsqueeze(1)).amax(2)
        whole = largest * self.spread.square().unsqueeze(1) / 2
        fall, rise = torch.minimum(apart - lean, whole), torch.minimum(apart + lean, whole)
        if self.squared_gram is not None:
            fall = torch.minimum(fall, self._frobenius(adjoint) / 2)
            rise = torch.minimum(rise, self._frobenius(-adjoint) / 2)
        return fall, rise

    def refined_fall(self, adjoint: Tensor, samples: Tensor) -> Tensor:
        """The same (m,) for one adjoint (m, M) of each of some samples (m,), where the rows are not held.

        With t = A a for the affine map A and |a| at most `entering`, `sum_k w_k t_k^2` is at most |a|^2 times
        the largest eigenvalue of `diag(sqrt w) A A^T diag(sqrt w)`, which Schur's test bounds.
        """
        if self.bend is None or self.operator is None or math.prod(self.operator.out_shape) > _TESTED_UNITS:
            return adjoint.new_full((len(adjoint),), math.inf)
        low, high = (adjoint * end[samples] for end in self.bend)
        weights = -torch.minimum(low, high).clamp_max(0)
        return largest_scaled(weights, self.operator.absolute_gram) * self.entering[samples].square() / 2

    def _frobenius(self, adjoint: Tensor) -> Tensor:
        """Upper bound (n, R) on `-sum_k lambda_k q_k t_k^2`, in l2.

        The norm of a matrix is at most its Frobenius norm, here of the rows scaled with the weights.
        """
        assert self.bend is not None
        assert self.squared_gram is not None
        assert self.radius is not None
        weights = -torch.minimum(*(adjoint * end.unsqueeze(1) for end in self.bend)).clamp_max(0)
        size = ((weights @ self.squared_gram) * weights).sum(2).clamp_min(0).sqrt()
        wrong = (weights @ self.error.square().unsqueeze(2)).squeeze(2)
        return (self.radius * size.sqrt() + wrong.sqrt()).square()


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
        """`fall` (m,) of some functionals, with the layers whose gradients are not held looked at closer."""
        total = self.values.new_zeros(len(samples))
        for index, layer in self.expansion.layers.items():
            part = self.swings[index][0][samples, labels]
            if layer.rows is None:
                adjoint = self.adjoints[index][samples, labels]
                part = torch.minimum(part, layer.refined_fall(adjoint, samples))
            total = total + part
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
    return Expansion(network, values[-1], layers, reaches, spreads, radius, norm)


def dual_norm(rows: Tensor, norm: Norm, dim: int) -> Tensor:
    """How far a unit step in the norm can move rows: their l2 norm in l2, their l1 norm in linf."""
    return torch.linalg.vector_norm(rows, ord=2 if norm == "l2" else 1, dim=dim)


def largest_scaled(weights: Tensor, gram: Tensor) -> Tensor:
    """Upper bound (m,) on the largest eigenvalue of `diag(sqrt w) G diag(sqrt w)` for weights w >= 0 (m, M).

    It is that of G diag(w), so at most `max_k (|G| w v)_k / v_k` over w_k > 0 for every positive v (Schur's
    test, or Collatz and Wielandt); a few power steps make v nearly the best.

    Args:
        weights: (m, M).
        gram: |G|, (M, M), in float32; sums of its positive terms are off by less than `_SINGLE` of them.
    """
    single = weights.to(gram.dtype)
    scale = single.amax(1, keepdim=True)
    single = single / scale.clamp_min(torch.finfo(gram.dtype).tiny)
    vector = torch.ones_like(single)
    best = weights.new_full((len(weights),), math.inf)
    for _ in range(_POWER_STEPS):
        image = (single * vector) @ gram
        ratio = (image / vector).where(single > 0, 0.0).amax(1)
        best = torch.minimum(best, ratio.to(weights.dtype))
        # Entries that decay to zero would spoil the quotient; any positive vector will do.
        vector = (image / image.amax(1, keepdim=True)).clamp_min(1e-6).nan_to_num(1.0)
    return best * scale.squeeze(1).to(weights.dtype) * (1 + _SINGLE)


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
    earlier = _held_before(network, node, layers)
    if values[0][0].numel() * units > ROW_ENTRIES:
        pass
    elif earlier is not None and units * sum(one.slope.shape[1] for one in layers.values()) > _SENT_ENTRIES:
        rows, error = _passed_on(network.nodes[node.source], earlier)
        reach = torch.minimum(reach, radius * dual_norm(rows, norm, 1) + error)
    else:
        seeds = torch.eye(units, dtype=before.dtype, device=before.device)
        # Before the first activation the units are affine, and the same for every sample.
        seeds = seeds.expand(n if layers else 1, -1, -1)
        adjoints, gradients = _send_back(network, node.source, seeds, layers)
        rows = gradients.mT
        for at, adjoint in adjoints.items():
            error = error + torch.maximum(*layers[at].swing(adjoint))
        error = error * (1 + ROUNDING)
        reach = torch.minimum(reach, radius * dual_norm(gradients, norm, 2) + error)
    reach = reach * (1 + ROUNDING)
    spread = torch.minimum(spread * (1 + ROUNDING), reach.norm(dim=1))
    slope, bend, remainder = _remainder(node.curve, before, reach)
    affine = network.nodes[node.source]
    operator = affine.operator if isinstance(affine, Affine) else None
    entering = spreads[affine.source] if isinstance(affine, Affine) else spread
    return Layer(
        rows,
        error,
        reach,
        spread,
        slope,
        bend,
        remainder,
        radius if norm == "l2" else None,
        operator,
        entering,
    )


def _held_before(network: Network, node: Pointwise, layers: dict[int, Layer]) -> Layer | None:
    """The activation right before, through one affine map, if its gradients are held."""
    affine = network.nodes[node.source]
    layer = layers.get(affine.source) if isinstance(affine, Affine) else None
    return layer if layer is not None and layer.rows is not None else None


def _passed_on(affine: Node, layer: Layer) -> tuple[Tensor, Tensor]:
    """Rows and errors behind an activation and an affine map, from those before: cheaper, and looser."""
    assert isinstance(affine, Affine)
    assert layer.rows is not None
    scaled = (layer.rows * layer.slope.unsqueeze(1)).mT
    n, _, dimension = scaled.shape
    inside = affine.operator.in_shape
    rows = affine.operator.apply(scaled.mT.reshape(n * dimension, *inside)).reshape(n, dimension, -1)
    low, high = layer.remainder
    error = layer.slope.abs() * layer.error + torch.maximum(high, -low)
    error = affine.operator.magnitude.apply(error.reshape(n, *inside)).flatten(1)
    return rows, error * (1 + ROUNDING)


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
