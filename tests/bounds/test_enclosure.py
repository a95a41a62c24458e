"""Interval enclosures contain what they must and refuse what they do not know."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from bounds import STATEMENTS
from bounds import enclosure as module
from bounds.enclosure import Interval, UnsupportedExpressionError, enclose
from bounds.quantities import Range

x, y = sympy.symbols("x y", real=True)
numbers = st.floats(-1e6, 1e6, allow_nan=False)
CHECKS = 10_000
#: A repaired theorem can share its formula with the printed one: the same enclosure, checked once.
DISTINCT = {statement.expression: statement for statement in STATEMENTS.values()}


def draw(quantity, rng, size):
    """Random admissible numbers, with the ends of the range among them."""
    low, high = quantity.range.ends
    scale = np.exp(rng.normal(0, 2, size))
    match quantity.range:
        case Range.PROBABILITY | Range.COSINE:
            drawn = rng.uniform(low, high, size)
        case Range.NON_NEGATIVE:
            drawn = scale
        case Range.COUNT:
            return rng.integers(2, 9, size).astype(float)
        case Range.REAL:
            drawn = scale * rng.choice([-1, 1, 1], size)
    ends = [end for end in (low, high) if np.isfinite(end)] or [0.0]
    return np.where(rng.random(size) < 0.05, rng.choice(ends, size), drawn)


def boxes_with_points(statement, size, seed):
    """Boxes around admissible points, of every width down to none, each with one point in it."""
    rng = np.random.default_rng(seed)
    centres = {quantity.name: draw(quantity, rng, 120 * size) for quantity in statement.quantities}
    holds = np.flatnonzero(statement.applicable(**centres))[:size]
    assert len(holds) == size, f"only {len(holds)} admissible points for {statement.id}"
    boxes, points = {}, {}
    for quantity in statement.quantities:
        centre = centres[quantity.name][holds]
        width = rng.choice([0.0, 1e-15, 1e-6, 0.1, 1.0], size) * rng.random(size)
        low, high = np.clip([centre - width, centre + width], *quantity.range.ends)
        boxes[quantity.name] = (low, high)
        inside = np.clip(low + rng.random(size) * (high - low), low, high)
        points[quantity.name] = np.choose(rng.integers(0, 4, size), [low, high, inside, inside])
    return boxes, points


def misses(statement, size, seed=0):
    """How many of `size` points have their exact value outside the enclosure of their box."""
    boxes, points = boxes_with_points(statement, size, seed)
    image = enclose(statement.expression, boxes)
    exact = sympy.lambdify([q.symbol for q in statement.quantities], statement.expression, "mpmath")
    missed, checked = 0, 0
    columns = [points[name].tolist() for name in statement.names]
    lower, upper = np.broadcast_to(image.lower, size).tolist(), np.broadcast_to(image.upper, size).tolist()
    with mpmath.workdps(50):
        for low, high, *point in zip(lower, upper, *columns, strict=True):
            try:
                value = exact(*map(mpmath.mpf, point))
            except ZeroDivisionError:
                continue
            if isinstance(value, mpmath.mpc):
                continue  # outside the formula's domain: nothing to contain
            checked += 1
            missed += not low <= value <= high
    assert checked > 0.9 * size
    return missed


@pytest.mark.slow
@pytest.mark.parametrize("statement", DISTINCT.values(), ids=lambda statement: statement.id)
def test_no_miss_in_ten_thousand_checks(statement):
    assert misses(statement, CHECKS) == 0


@pytest.mark.parametrize("key", ["theorem-2", "refined-r3-untargeted", "lemma-7-angular", "refined-r8"])
def test_no_miss_in_a_few_checks(key):
    assert misses(STATEMENTS[key], 400, seed=1) == 0


@pytest.mark.parametrize("statement", DISTINCT.values(), ids=lambda statement: statement.id)
def test_reference_of_the_containment_check_is_right(statement):
    """The 50-digit evaluation above agrees with sympy's own arithmetic."""
    _, points = boxes_with_points(statement, 5, seed=2)
    exact = sympy.lambdify([q.symbol for q in statement.quantities], statement.expression, "mpmath")
    for i in range(5):
        point = [sympy.Rational(float(points[name][i])) for name in statement.names]
        symbols = [quantity.symbol for quantity in statement.quantities]
        theirs = statement.expression.subs(dict(zip(symbols, point, strict=True))).evalf(40)
        with mpmath.workdps(50):
            ours = exact(*(mpmath.mpf(number.p) / number.q for number in point))
            assert abs(ours - mpmath.mpf(str(theirs))) < 1e-30 * (1 + abs(ours))


def test_without_outward_rounding_there_are_misses(monkeypatch):
    """The containment check can fail: rounding to nearest alone is not enough."""
    monkeypatch.setattr(module, "_step", lambda number, towards: number)
    assert misses(STATEMENTS["theorem-3"], 400) > 0


@pytest.mark.parametrize(
    "unknown",
    [sympy.sin(x), sympy.Piecewise((x, x > 0), (0, True)), x ** sympy.Rational(1, 3), x**y, sympy.pi + x],
)
def test_unknown_operations_are_refused(unknown):
    with pytest.raises(UnsupportedExpressionError):
        enclose(unknown, {"x": (1.0, 2.0), "y": (1.0, 2.0)})


def test_refusal_names_the_function():
    with pytest.raises(UnsupportedExpressionError, match=r"got cos in cos\(x\)"):
        enclose(1 + sympy.cos(x), {"x": 1.0})


ELEMENTARY = [
    (x + y, lambda a, b: a + b),
    (x - y, lambda a, b: a - b),
    (x * y, lambda a, b: a * b),
    (x**2, lambda a, b: a**2),
    (x**3, lambda a, b: a**3),
    (x / 3, lambda a, b: a / 3),
    (1 / x, lambda a, b: 1 / a if a else None),
    (x**-2, lambda a, b: 1 / a**2 if a else None),
    (sympy.Min(x, y), min),
    (sympy.Max(x, y), max),
    (sympy.Abs(x), lambda a, b: abs(a)),
]


@given(a=numbers, b=numbers, c=numbers, d=numbers, t=st.floats(0, 1), u=st.floats(0, 1))
def test_elementary_operations_contain_every_point(a, b, c, d, t, u):
    box = {"x": (min(a, b), max(a, b)), "y": (min(c, d), max(c, d))}
    point = [
        Fraction(min(max(low + share * (high - low), low), high))
        for (low, high), share in zip(box.values(), (t, u), strict=True)
    ]
    for expression, function in ELEMENTARY:
        exact, (low, high) = function(*point), ends(expression, **box)
        if exact is not None:
            assert low == -np.inf or Fraction(low) <= exact, expression
            assert high == np.inf or exact <= Fraction(high), expression


@pytest.mark.parametrize("low", [-3.0, 1e-3, 0.5, 700.0])
def test_exp_and_log_contain_the_exact_value(low):
    for share in np.linspace(0, 1, 50):
        number = low + share
        image = enclose(sympy.exp(x), {"x": number})
        with mpmath.workdps(40):
            assert image.lower <= mpmath.exp(mpmath.mpf(number)) <= image.upper
            if number > 0:
                image = enclose(sympy.log(x), {"x": number})
                assert image.lower <= mpmath.log(mpmath.mpf(number)) <= image.upper


def ends(expression, **box):
    image = enclose(expression, box)
    return float(image.lower), float(image.upper)


def test_even_powers_see_the_absolute_value():
    assert ends(x**2, x=(-1.0, 2.0)) == pytest.approx((0, 4))


def test_reciprocal_across_and_at_zero():
    assert ends(1 / x, x=(-1.0, 2.0)) == (-np.inf, np.inf)
    assert ends(1 / x, x=(0.0, 2.0)) == pytest.approx((0.5, np.inf))
    assert ends(1 / x, x=(-2.0, 0.0)) == pytest.approx((-np.inf, -0.5))
    assert ends(1 / x, x=0.0) == (-np.inf, np.inf)


def test_infinite_ends_stand_for_unbounded_finite_numbers():
    assert ends(x * y, x=(0.0, 0.0), y=(1.0, np.inf)) == (0.0, 0.0)
    assert ends(x + y, x=(0.0, 1.0), y=(1.0, np.inf)) == (1.0, np.inf)


def test_exact_operations_stay_exact():
    """Exact sums and factors of one do not widen: the border of a hypothesis stays sharp."""
    assert ends(x - y, x=0.3, y=0.3) == (0.0, 0.0)
    assert ends(1 + x, x=-1.0) == (0.0, 0.0)
    assert ends(x / 2 + y / 2, x=0.1, y=0.2)[0] < 0.15 <= ends(x / 2 + y / 2, x=0.1, y=0.2)[1]


def test_partial_domains():
    assert ends(sympy.sqrt(x), x=(-1.0, 4.0)) == pytest.approx((0, 2))
    with pytest.raises(ValueError, match="square root of numbers >= 0"):
        enclose(sympy.sqrt(x), {"x": (-2.0, -1.0)})
    with pytest.raises(ValueError, match="logarithm of numbers > 0"):
        enclose(sympy.log(x), {"x": (-2.0, 0.0)})


def test_numbers_in_the_formula_are_enclosed_not_rounded():
    low, high = ends(sympy.Rational(1, 10) + 0 * x, x=0.0)
    assert sympy.Rational(low) <= sympy.Rational(1, 10) <= sympy.Rational(high)
    assert low < high
    assert ends(sympy.Float(0.5) * x, x=1.0) == (0.5, 0.5)


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match="got none for y"):
        enclose(x + y, {"x": 1.0})
    with pytest.raises(ValueError, match="lower <= upper"):
        enclose(x, {"x": (2.0, 1.0)})
    with pytest.raises(ValueError, match="lower <= upper"):
        enclose(x, {"x": np.nan})


def test_membership():
    assert Interval.of((np.array([0.0, 1.0]), np.array([1.0, 2.0]))).contains(0.5).tolist() == [True, False]
