"""Rigorous interval enclosures of sympy expressions, vectorised, with outward rounding.

The walker knows a short list of operations and refuses every other: an enclosure that is silently wrong is
worse than none. Each floating-point operation is followed by a step to the next number outwards, so the
interval that comes out contains the exact real value of the expression at every point of the box that goes
in. A function that is undefined on part of its argument's interval (a square root of negative numbers) is
enclosed over the part where it is defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
import sympy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Lower and upper ends, inside the walker.
Ends = tuple[Floats, Floats]


class UnsupportedExpressionError(TypeError):
    """The expression holds an operation whose enclosure is not known."""


@dataclass(frozen=True)
class Interval:
    """Closed intervals `[lower, upper]`, one for each element; ends may be infinite.

    Attributes:
        lower: Lower ends, shape (n,) or ().
        upper: Upper ends, the same shape.

    Raises:
        ValueError: If an end is NaN or a lower end exceeds its upper end.
    """

    lower: Floats
    upper: Floats

    def __post_init__(self) -> None:
        lower, upper = np.broadcast_arrays(np.asarray(self.lower, float), np.asarray(self.upper, float))
        if not np.all(lower <= upper):  # also catches NaN
            raise ValueError(f"expected lower <= upper, got [{lower}, {upper}]")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @classmethod
    def of(cls, ends: Any) -> Interval:
        """An interval from an `Interval`, a pair (lower, upper), or a number or array taken as exact."""
        if isinstance(ends, Interval):
            return ends
        lower, upper = ends if isinstance(ends, tuple) else (ends, ends)
        return cls(lower, upper)

    def contains(self, number: Any) -> NDArray[np.bool_]:
        """Whether each number lies in its interval."""
        return np.asarray((self.lower <= number) & (number <= self.upper))


def enclose(expression: sympy.Expr, intervals: Mapping[str, Any]) -> Interval:
    """Enclose the values of an expression over a box.

    Args:
        expression: Built from symbols, numbers, sums, products, integer and half-integer powers, Min, Max,
            Abs, exp and log.
        intervals: For each symbol's name an `Interval`, a pair (lower, upper) or a number; arrays give many
            boxes at once.

    Returns:
        An interval (or an array of them) that contains the expression's exact value at every point of the box
        at which it is defined.

    Raises:
        UnsupportedExpressionError: If the expression holds an operation outside the list.
        ValueError: If a symbol has no interval, an interval is empty or NaN, or the expression is defined
            nowhere on a box.
    """
    box = {name: Interval.of(ends) for name, ends in intervals.items()}
    missing = sorted(str(symbol) for symbol in expression.free_symbols if str(symbol) not in box)
    if missing:
        raise ValueError(f"expected an interval for every symbol, got none for {', '.join(missing)}")
    ends = {name: (interval.lower, interval.upper) for name, interval in box.items()}
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        return Interval(*_walk(expression, ends))


def _walk(node: sympy.Basic, box: Mapping[str, Ends]) -> Ends:
    """The enclosure of one node of the expression tree."""
    if isinstance(node, sympy.Symbol):
        return box[node.name]
    if isinstance(node, sympy.Rational | sympy.Float):
        return _number(sympy.Rational(node))
    if isinstance(node, sympy.Pow):
        return _power(_walk(node.base, box), node)
    rule = _RULES.get(node.func)
    if rule is None:
        raise UnsupportedExpressionError(
            f"expected sums, products, integer and half powers, Min, Max, Abs, exp or log; "
            f"got {node.func.__name__} in {node}"
        )
    arguments = [_walk(argument, box) for argument in node.args]
    return rule(arguments[0]) if len(arguments) == 1 else reduce(rule, arguments)


def _step(number: Any, towards: float) -> Any:
    """The next float in a direction: what makes a rounded result a bound."""
    return np.nextafter(number, towards)


def _outward(lower: Any, upper: Any) -> Ends:
    return _step(lower, -np.inf), _step(upper, np.inf)


@cache
def _number(number: sympy.Rational) -> Ends:
    """A rational number: exact where a float holds it, else the two floats around it."""
    nearest = np.asarray(int(number.p) / int(number.q), dtype=float)
    return (nearest, nearest) if sympy.Rational(float(nearest)) == number else _outward(nearest, nearest)


def _add(a: Ends, b: Ends) -> Ends:
    return _sum(a[0], b[0], -np.inf), _sum(a[1], b[1], np.inf)


def _sum(x: Floats, y: Floats, towards: float) -> Floats:
    """A bound on x + y: the nearest float where the sum is exact, else one step `towards`."""
    total = x + y
    of_y = total - x
    error = (x - (total - of_y)) + (y - of_y)  # exact by Knuth's two-sum, NaN after an overflow
    return np.where(error == 0, total, _step(total, towards))


def _multiply(a: Ends, b: Ends) -> Ends:
    """The smallest and largest product of ends; exact for factors 0, 1 and -1.

    Zero times an infinite end is zero: the end only stands for unbounded finite numbers.
    """
    al, au, bl, bu = np.broadcast_arrays(*a, *b)
    x, y = np.stack([al, al, au, au]), np.stack([bl, bu, bl, bu])
    zero = (x == 0) | (y == 0)
    exact = zero | (np.abs(x) == 1) | (np.abs(y) == 1)
    nearest = np.where(zero, 0.0, x * y)
    low, high = _outward(nearest, nearest)
    return np.where(exact, nearest, low).min(axis=0), np.where(exact, nearest, high).max(axis=0)


def _reciprocal(a: Ends) -> Ends:
    lower, upper = a
    straddles = (lower < 0) & (upper > 0) | (lower == 0) & (upper == 0)
    # 1 / [0, u] reaches down to 1 / u and 1 / [l, 0] up to 1 / l; both signs inside: the whole line.
    low = np.where(straddles | (upper == 0), -np.inf, _step(1.0 / upper, -np.inf))
    high = np.where(straddles | (lower == 0), np.inf, _step(1.0 / lower, np.inf))
    return low, high


def _square_root(a: Ends) -> Ends:
    lower, upper = a
    if np.any(upper < 0):
        raise ValueError(f"expected a square root of numbers >= 0, got one of [{lower}, {upper}]")
    low, high = _outward(np.sqrt(np.maximum(lower, 0.0)), np.sqrt(upper))
    return np.maximum(low, 0.0), high


def _power(base: Ends, node: sympy.Pow) -> Ends:
    """Integer and half-integer powers by repeated multiplication."""
    doubled = 2 * node.exp
    if not doubled.is_Integer:
        raise UnsupportedExpressionError(f"expected an integer or half-integer power, got {node}")
    halves = abs(int(doubled))
    power = _whole_power(_square_root(base), halves) if halves % 2 else _whole_power(base, halves // 2)
    return power if doubled > 0 else _reciprocal(power)


def _whole_power(base: Ends, exponent: int) -> Ends:
    if exponent % 2 == 0:
        base = _absolute(base)  # an even power only sees |x|: [-1, 2]^2 is [0, 4], not [-2, 4]
    return reduce(_multiply, [base] * exponent)


def _absolute(a: Ends) -> Ends:
    lower, upper = np.abs(a[0]), np.abs(a[1])
    across = (a[0] <= 0) & (a[1] >= 0)
    return np.where(across, 0.0, np.minimum(lower, upper)), np.maximum(lower, upper)


def _minimum(a: Ends, b: Ends) -> Ends:
    return np.minimum(a[0], b[0]), np.minimum(a[1], b[1])


def _maximum(a: Ends, b: Ends) -> Ends:
    return np.maximum(a[0], b[0]), np.maximum(a[1], b[1])


def _loosened(lower: Floats, upper: Floats) -> Ends:
    """Eight steps outwards: numpy's exp and log are within four units in the last place, not half of one."""
    for _ in range(8):
        lower, upper = _outward(lower, upper)
    return lower, upper


def _exponential(a: Ends) -> Ends:
    low, high = _loosened(np.exp(a[0]), np.exp(a[1]))
    return np.maximum(low, 0.0), high


def _logarithm(a: Ends) -> Ends:
    if np.any(a[1] <= 0):
        raise ValueError(f"expected a logarithm of numbers > 0, got one of [{a[0]}, {a[1]}]")
    return _loosened(np.log(np.maximum(a[0], 0.0)), np.log(a[1]))


_RULES: Mapping[Any, Any] = {
    sympy.Add: _add,
    sympy.Mul: _multiply,
    sympy.Min: _minimum,
    sympy.Max: _maximum,
    sympy.Abs: _absolute,
    sympy.exp: _exponential,
    sympy.log: _logarithm,
}
