"""What every node of a network can do on l2 balls around the samples: values, Jacobians, slopes, bends.

One forward pass carries, for every node u with Jacobian U,

- an interval for each entry of u: interval arithmetic, cut with `|u_j - u_j(x)| <= eps sup ||grad u_j||`,
- the Jacobian U(x) at the centre, exactly,
- how far U moves from there: for each row in l2, and as a whole in the spectral norm.

Through an activation with slopes s (centre s_c, `|s - s_c| <= D`) the Jacobian moves by `(s - s_c) U(x) + s
(U - U(x))`; both norms follow, and the smaller consequence is kept after every affine map. At a kink the
slopes range over all generalised derivatives, so the rows contain every Clarke gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from estimators.certified.network import Affine, Input, Network, Pointwise
from estimators.certified.operators import LinearMap

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rows:
    """Rows of Jacobians over the ball: r_j(x') = r_j + a deviation.

    Attributes:
        centre: r_j at the centre, one in each column, (n, d, R).
        deviation: Bounds on the l2 norm of each row's deviation, (n, R).
        spectral: Bounds on the spectral norm of all the rows' deviation together, (n,).
    """

    centre: Tensor
    deviation: Tensor
    spectral: Tensor


@dataclass(frozen=True)
class Bend:
    """An activation over the ball, entries flattened to M.

    Attributes:
        rows: Jacobian of what enters the activation.
        slope: Range of sigma', each (n, M).
        slope_change: Bound on |sigma' - sigma'(centre)|, (n, M).
        bend: Range of sigma'', each (n, M); zero where there is none because a kink is near.
    """

    rows: Rows
    slope: Interval
    slope_change: Tensor
    bend: Interval


@dataclass(frozen=True)
class Enclosure:
    """A network over l2 balls of one radius.

    Attributes:
        logits: At the centres, (n, K).
        logit_rows: Jacobian of the logits.
        bends: The activation at each `Pointwise` node, by the node's index.
        kinked: Where the ball may touch a kink, (n,): no curvature is finite there.
    """

    logits: Tensor
    logit_rows: Rows
    bends: dict[int, Bend]
    kinked: Tensor

    @property
    def rows(self) -> list[Rows]:
        """The rows of all activations, a group for each."""
        return [self.bends[index].rows for index in sorted(self.bends)]


@dataclass(frozen=True)
class _State:
    """A node over the ball: value, interval, Jacobian (n * d, *shape), its rows' and spectral deviation."""

    value: Tensor
    low: Tensor
    high: Tensor
    jacobian: Tensor
    deviation: Tensor
    spectral: Tensor

    def rows(self) -> Rows:
        n = len(self.value)
        return Rows(
            self.jacobian.reshape(n, len(self.jacobian) // n, -1), self.deviation.flatten(1), self.spectral
        )


def enclose(network: Network, x: Tensor, radius: float) -> Enclosure:
    """Enclose every node of a network over the balls of that radius.

    Memory grows with n times the input size times the number of units.

    Args:
        network: The network.
        x: Centres (n, *shape), float64.
        radius: l2 radius, at least 0.
    """
    states: list[_State] = []
    bends: dict[int, Bend] = {}
    kinked = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for index, node in enumerate(network.nodes):
        if isinstance(node, Input):
            states.append(_input(x, radius))
        elif isinstance(node, Affine):
            states.append(_cut(_affine(states[node.source], node.operator, node.bias), radius))
        elif isinstance(node, Pointwise):
            state, bend = _activation(states[node.source], node)
            states.append(state)
            rough = (bend.bend[1] - bend.bend[0]).isinf()
            kinked |= rough.any(1)
            low, high = (end.masked_fill(rough, 0.0) for end in bend.bend)
            bends[index] = replace(bend, bend=(low, high))
        else:
            states.append(_cut(_sum(*(states[source] for source in node.sources)), radius))
    last = states[-1]
    return Enclosure(last.value, last.rows(), bends, kinked)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Spectral norms (n,) of matrices (n, a, b), from the smaller Gram matrix."""
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    gram = matrices @ matrices.mT
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0.0).sqrt()


def _input(x: Tensor, radius: float) -> _State:
    n, size = len(x), math.prod(x.shape[1:])
    identity = torch.eye(size, dtype=x.dtype, device=x.device).reshape(1, size, *x.shape[1:])
    jacobian = identity.expand(n, *identity.shape[1:]).reshape(n * size, *x.shape[1:])
    return _State(x, x - radius, x + radius, jacobian, torch.zeros_like(x), x.new_zeros(n))


def _affine(state: _State, linear: LinearMap, bias: Tensor) -> _State:
    middle, reach = (state.high + state.low) / 2, (state.high - state.low) / 2
    middle, reach = linear.apply(middle) + bias, linear.magnitude.apply(reach)
    deviation = torch.minimum(
        linear.magnitude.apply(state.deviation), linear.row_norms * _each(state.spectral, linear.row_norms)
    )
    return _State(
        linear.apply(state.value) + bias, middle - reach, middle + reach, linear.apply(state.jacobian),
        deviation, linear.norm * state.spectral,
    )  # fmt: skip


def _sum(first: _State, second: _State) -> _State:
    return _State(
        first.value + second.value, first.low + second.low, first.high + second.high,
        first.jacobian + second.jacobian, first.deviation + second.deviation,
        first.spectral + second.spectral,
    )  # fmt: skip


def _cut(state: _State, radius: float) -> _State:
    """The same with its interval cut to what the rows of the Jacobian allow over the radius."""
    rows = state.rows()
    reach = radius * (rows.centre.norm(dim=1).reshape(state.value.shape) + state.deviation)
    low = torch.maximum(state.low, state.value - reach)
    high = torch.minimum(state.high, state.value + reach)
    spectral = torch.minimum(state.spectral, rows.deviation.norm(dim=1))
    # The centre belongs to the interval, whatever was rounded.
    return _State(
        state.value, torch.minimum(low, state.value), torch.maximum(high, state.value), state.jacobian,
        state.deviation, spectral,
    )  # fmt: skip


def _activation(state: _State, node: Pointwise) -> tuple[_State, Bend]:
    curve, rows = node.curve, state.rows()
    slope_low, slope_high = curve.slope_range(state.low, state.high)
    slope = curve.slope(state.value)
    change = torch.maximum(slope_high - slope, slope - slope_low)
    largest = torch.maximum(slope_high, -slope_low)
    value_low, value_high = curve.value_range(state.low, state.high)
    row_norms = rows.centre.norm(dim=1).reshape(state.value.shape)
    scaled = rows.centre * change.flatten(1).unsqueeze(1)
    after = _State(
        curve.value(state.value), value_low, value_high, _scale(state.jacobian, slope),
        change * row_norms + largest * state.deviation,
        spectral_norm(scaled) + largest.flatten(1).amax(1) * state.spectral,
    )  # fmt: skip
    low, high = curve.bend_range(state.low, state.high)
    bend = Bend(
        rows, (slope_low.flatten(1), slope_high.flatten(1)), change.flatten(1),
        (low.flatten(1), high.flatten(1)),
    )  # fmt: skip
    return after, bend


def _scale(jacobian: Tensor, slope: Tensor) -> Tensor:
    n = len(slope)
    return (jacobian.reshape(n, -1, *slope.shape[1:]) * slope.unsqueeze(1)).reshape(jacobian.shape)


def _each(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * like.dim())
