"""Activation functions with their first two derivatives, and tight ranges of all three over intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Elementwise = Callable[[Tensor], Tensor]
Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Curve:
    """A smooth activation sigma, applied to every entry.

    Between neighbouring turning points a function is monotone, so its range over an interval is spanned by
    the two ends and the turning points inside. Ranges hold up to the rounding of one evaluation.

    Attributes:
        name: For messages.
        value: sigma.
        slope: sigma'.
        bend: sigma''.
        value_turns: Turning points of sigma, where sigma' changes its sign.
        slope_turns: Turning points of sigma'.
        bend_turns: Turning points of sigma''.
        slope_limits: Infimum and supremum of sigma' over the reals.
        bend_limits: Infimum and supremum of sigma'' over the reals.
        smooth: Whether sigma' is Lipschitz continuous.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    bend: Elementwise
    value_turns: tuple[float, ...]
    slope_turns: tuple[float, ...]
    bend_turns: tuple[float, ...]
    slope_limits: tuple[float, float]
    bend_limits: tuple[float, float]
    smooth: bool = True

    def value_range(self, low: Tensor, high: Tensor) -> Interval:
        """Smallest and largest sigma over [low, high], entry by entry."""
        return _range(self.value, self.value_turns, low, high)

    def slope_range(self, low: Tensor, high: Tensor) -> Interval:
        """Smallest and largest sigma' over [low, high]; at a kink, of all its generalised derivatives."""
        return _range(self.slope, self.slope_turns, low, high)

    def bend_range(self, low: Tensor, high: Tensor) -> Interval:
        """Smallest and largest sigma'' over [low, high]."""
        return _range(self.bend, self.bend_turns, low, high)


class Kinked(Curve):
    """ReLU or LeakyReLU: two slopes that meet at 0, where no second derivative exists.

    `bend` is the almost-everywhere second derivative 0; its limits are infinite, so that whatever takes them
    for a bound on the curvature comes out infinite.
    """

    def slope_range(self, low: Tensor, high: Tensor) -> Interval:
        """As for `Curve`: an interval that touches 0 has both slopes, and all between (Clarke)."""
        left, right = self.slope(low), self.slope(high)
        touches = (low <= 0) & (high >= 0)
        smallest, largest = self.slope_limits
        return (
            torch.minimum(left, right).where(~touches, smallest),
            torch.maximum(left, right).where(~touches, largest),
        )

    def bend_range(self, low: Tensor, high: Tensor) -> Interval:
        """As for `Curve`: infinite where the interval touches the kink."""
        touches = (low <= 0) & (high >= 0)
        flat = torch.zeros_like(low)
        return flat.where(~touches, -math.inf), flat.where(~touches, math.inf)


def tanh() -> Curve:
    """The hyperbolic tangent."""

    def slope(u: Tensor) -> Tensor:
        return 4 * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u)

    turn = 0.6584789484624084  # artanh(1 / sqrt 3), where tanh''' = 0
    peak = 4 / (3 * math.sqrt(3))
    return Curve(
        "tanh", torch.tanh, slope, lambda u: -2 * torch.tanh(u) * slope(u),
        (), (0.0,), (-turn, turn), (0.0, 1.0), (-peak, peak),
    )  # fmt: skip


def sigmoid() -> Curve:
    """The logistic function."""

    def slope(u: Tensor) -> Tensor:
        return torch.sigmoid(u) * torch.sigmoid(-u)

    turn = math.log(2 + math.sqrt(3))
    peak = 1 / (6 * math.sqrt(3))
    return Curve(
        "sigmoid", torch.sigmoid, slope, lambda u: -slope(u) * torch.tanh(u / 2),
        (), (0.0,), (-turn, turn), (0.0, 0.25), (-peak, peak),
    )  # fmt: skip


def softplus(sharpness: float = 1.0) -> Curve:
    """`log(1 + exp(B u)) / B` of sharpness B, exactly, without torch's switch to the identity."""

    def bend(u: Tensor) -> Tensor:
        return sharpness * torch.sigmoid(sharpness * u) * torch.sigmoid(-sharpness * u)

    return Curve(
        f"softplus({sharpness:g})",
        lambda u: torch.logaddexp(sharpness * u, torch.zeros_like(u)) / sharpness,
        lambda u: torch.sigmoid(sharpness * u),
        bend, (), (), (0.0,), (0.0, 1.0), (0.0, sharpness / 4),
    )  # fmt: skip


def gelu() -> Curve:
    """`u Phi(u)`, with the normal distribution function Phi (not its tanh approximation)."""

    def density(u: Tensor) -> Tensor:
        return torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)

    def cumulative(u: Tensor) -> Tensor:
        return torch.special.erfc(-u / math.sqrt(2)) / 2

    turn = math.sqrt(2)
    extreme = 2 * math.exp(-1) / math.sqrt(4 * math.pi)  # sqrt 2 times the density at sqrt 2
    tail = math.erfc(1.0) / 2
    return Curve(
        "gelu",
        lambda u: u * cumulative(u),
        lambda u: cumulative(u) + u * density(u),
        lambda u: density(u) * (2 - u.square()),
        (-0.7517915246935645,), (-turn, turn), (-2.0, 0.0, 2.0),
        (tail - extreme, 1 - tail + extreme),
        (-2 * math.exp(-2) / math.sqrt(2 * math.pi), 2 / math.sqrt(2 * math.pi)),
    )  # fmt: skip


def silu() -> Curve:
    """`u sigmoid(u)`."""

    def slope(u: Tensor) -> Tensor:
        return torch.sigmoid(u) * (1 + u * torch.sigmoid(-u))

    def bend(u: Tensor) -> Tensor:
        return torch.sigmoid(u) * torch.sigmoid(-u) * (2 - u * torch.tanh(u / 2))

    slope_turn, bend_turn = 2.3993572805154676, 3.4358409935351107
    ends = torch.tensor([-slope_turn, slope_turn, bend_turn], dtype=torch.float64)
    lowest, highest = slope(ends[:2]).tolist()
    return Curve(
        "silu", functional.silu, slope, bend,
        (-1.2784645427610738,), (-slope_turn, slope_turn), (-bend_turn, 0.0, bend_turn),
        (lowest, highest), (float(bend(ends[2])), 0.5),
    )  # fmt: skip


def leaky_relu(negative_slope: float = 0.0) -> Curve:
    """`u` above 0 and `negative_slope * u` below; ReLU for 0."""

    def slope(u: Tensor) -> Tensor:
        # Full tensors: scalars would be rounded to float32 first.
        return torch.where(u > 0, torch.ones_like(u), torch.full_like(u, negative_slope))

    return Kinked(
        "relu" if negative_slope == 0 else f"leaky_relu({negative_slope:g})",
        lambda u: torch.where(u > 0, u, negative_slope * u),
        slope, torch.zeros_like,
        () if negative_slope >= 0 else (0.0,), (), (),
        (min(negative_slope, 1.0), max(negative_slope, 1.0)),
        (-math.inf, math.inf), smooth=False,
    )  # fmt: skip


def _range(function: Elementwise, turns: tuple[float, ...], low: Tensor, high: Tensor) -> Interval:
    at_low, at_high = function(low), function(high)
    smallest, largest = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    for turn in turns:
        at_turn = function(low.new_tensor(turn))
        inside = (low <= turn) & (turn <= high)
        smallest = torch.minimum(smallest, at_turn).where(inside, smallest)
        largest = torch.maximum(largest, at_turn).where(inside, largest)
    return smallest, largest
