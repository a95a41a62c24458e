"""Evaluate a statement on measured quantities, and say what the number is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import product
from numbers import Real
from typing import Any

import numpy as np

from bounds.enclosure import Interval, enclose
from bounds.estimate import Estimate, json_number
from bounds.quantities import COMMON, Quantity
from bounds.registry import STATEMENTS
from bounds.statement import Hypothesis, Sense, Statement, Trend

Box = dict[str, tuple[float, float]]


class Status(StrEnum):
    """Whether a statement says anything here."""

    INFORMATIVE = "informative"
    VACUOUS = "vacuous"
    INAPPLICABLE = "inapplicable"


class Grade(StrEnum):
    """What stands behind a value.

    CERTIFIED: the guaranteed value is a proved bound. CONFIDENT: it is one except with `failure_probability`.
    HEURISTIC: there is no guaranteed value.
    """

    CERTIFIED = "certified"
    CONFIDENT = "confident"
    HEURISTIC = "heuristic"


@dataclass(frozen=True)
class BoundValue:
    """A statement evaluated on quantities.

    Attributes:
        statement: The statement.
        value: The formula at the point estimates, or None where a hypothesis fails there.
        guaranteed: Its worst end over all quantities inside their intervals (the smallest value of a lower
            bound, the largest of an upper bound), or None where there is no finite one.
        status: Of `value`: informative if it beats what is trivially known (0 for a lower bound on a
            probability, 1 for an upper one).
        unmet: The hypotheses that fail at the point estimates, in words with the numbers.
        grade: What stands behind `guaranteed`; heuristic where it is None.
        failure_probability: Probability that some interval misses its quantity: the sum over the quantities.
        terms: Additive pieces of `value`, by name; empty where inapplicable.
        gaps: Why there is no guaranteed value, in words.
    """

    statement: Statement
    value: float | None
    guaranteed: float | None
    status: Status
    unmet: tuple[str, ...]
    grade: Grade
    failure_probability: float
    terms: Mapping[str, float]
    gaps: tuple[str, ...] = ()
    trivial: float = field(default=0.0, repr=False)

    @property
    def guaranteed_status(self) -> Status:
        """Status of `guaranteed`: a value can be informative where its guaranteed end is vacuous."""
        if self.guaranteed is None:
            return Status.INAPPLICABLE
        return _status(self.statement, self.guaranteed, self.trivial)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping without NaN or infinity literals."""
        return {
            "statement": self.statement.id,
            "value": None if self.value is None else json_number(self.value),
            "guaranteed": None if self.guaranteed is None else json_number(self.guaranteed),
            "status": self.status.value,
            "guaranteed_status": self.guaranteed_status.value,
            "unmet": list(self.unmet),
            "grade": self.grade.value,
            "failure_probability": self.failure_probability,
            "terms": {name: json_number(term) for name, term in self.terms.items()},
            "gaps": list(self.gaps),
        }


def evaluate(statement: str | Statement, quantities: Mapping[str, float | Estimate]) -> BoundValue:
    """Evaluate a statement, hypotheses first, and carry the evidence through.

    A number is taken as exact. An `Estimate` counts with its whole interval, cut to the quantity's admissible
    range (a cosine seen only from one side still lies in [-1, 1]). The formula is never evaluated where a
    hypothesis fails: the result is then inapplicable and says which one and by what numbers.

    Args:
        statement: A `Statement`, or its id in `STATEMENTS`.
        quantities: For each of the statement's quantities a number or an `Estimate`. Quantities that only
            other statements use may be there and are ignored.

    Raises:
        ValueError: If the id or a name is unknown, a quantity is missing, NaN, or outside its range.
        TypeError: If a quantity is neither a number nor an `Estimate`.
    """
    statement = _resolve(statement)
    estimates = _validated(statement, quantities)
    point = {name: estimates[name].value for name in statement.names}
    used = [estimates[name] for name in statement.names]
    failure_probability = math.fsum(
        {id(estimate): estimate.failure_probability for estimate in used}.values()
    )
    failure_probability = min(failure_probability, 1.0)

    unmet = _infinite(statement, estimates) or _unmet(statement, point)
    if unmet:
        return BoundValue(
            statement, None, None, Status.INAPPLICABLE, unmet, Grade.HEURISTIC, failure_probability, {}, unmet
        )
    value = float(statement.formula(**point))
    trivial = statement.trivial_value(**point)
    guaranteed, gaps = _guaranteed(statement, _box(statement, estimates))
    if failure_probability >= 1.0:
        guaranteed, gaps = None, ("the failure probabilities add up to 1",)
    return BoundValue(
        statement,
        value,
        guaranteed,
        _status(statement, value, trivial),
        (),
        _grade(guaranteed, failure_probability),
        failure_probability,
        statement.term_values(**point),
        gaps,
        trivial,
    )


def _resolve(statement: str | Statement) -> Statement:
    if isinstance(statement, Statement):
        return statement
    if statement not in STATEMENTS:
        raise ValueError(f"expected one of the statements {', '.join(STATEMENTS)}; got {statement!r}")
    return STATEMENTS[statement]


def _validated(statement: Statement, quantities: Mapping[str, float | Estimate]) -> dict[str, Estimate]:
    """Every given quantity as an `Estimate` whose value is admissible."""
    own = {quantity.name: quantity for quantity in (*statement.background, *statement.quantities)}
    missing = [name for name in statement.names if name not in quantities]
    if missing:
        raise ValueError(
            f"{statement.id}: missing {', '.join(missing)}; expected {', '.join(statement.names)}"
        )
    foreign = [name for name in quantities if name not in own]
    unknown = [name for name in foreign if name not in _names()] if foreign else []
    if unknown:
        raise ValueError(
            f"{statement.id}: unknown {', '.join(unknown)}; expected {', '.join(statement.names)}"
        )
    return {name: _estimate(statement.id, own[name], quantities[name]) for name in own if name in quantities}


@cache
def _names() -> frozenset[str]:
    """The quantities of all statements."""
    return frozenset(COMMON).union(*(statement.names for statement in STATEMENTS.values()))


def _estimate(statement: str, quantity: Quantity, given: float | Estimate) -> Estimate:
    if not isinstance(given, Estimate):
        if not isinstance(given, Real) or isinstance(given, bool):
            raise TypeError(
                f"{statement}: expected a number or an Estimate for {quantity.name}, got {given!r}"
            )
        if math.isnan(given):
            raise ValueError(f"{statement}: expected {quantity.range.value} for {quantity.name}, got NaN")
        given = Estimate.exact(float(given))
    if not quantity.range.admits(given.value):
        raise ValueError(
            f"{statement}: expected {quantity.range.value} for {quantity.name}, got {given.value}"
        )
    return given


def _infinite(statement: Statement, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
    """The quantities that are infinite: no statement holds for those."""
    words = []
    for quantity in (*statement.quantities, *statement.background):
        estimate = estimates.get(quantity.name)
        if estimate is not None and math.isinf(estimate.value):
            how = f" ({estimate.method})" if estimate.method not in ("", "exact") else ""
            sign = "-" if estimate.value < 0 else ""
            words.append(f"{quantity.name} is {sign}infinite{how}: the statement needs a finite one")
    return tuple(words)


def _unmet(statement: Statement, point: Mapping[str, float]) -> tuple[str, ...]:
    """The hypotheses that fail at a point, in words with the numbers."""
    return tuple(
        _in_words(hypothesis, margin, point)
        for hypothesis, margin in zip(statement.checkable, statement.margins(**point), strict=True)
        if not (margin > 0 if hypothesis.strict else margin >= 0)
    )


def _in_words(hypothesis: Hypothesis, margin: float, point: Mapping[str, float]) -> str:
    assert hypothesis.predicate is not None
    names = sorted(map(str, hypothesis.predicate.free_symbols))
    numbers = ", ".join(f"{name} = {point[name]:.6g}" for name in names)
    needed = "> 0" if hypothesis.strict else ">= 0"
    return f"{hypothesis.words}: the margin is {margin:.6g}, needed {needed} ({numbers})"


def _status(statement: Statement, value: float, trivial: float) -> Status:
    better = value < trivial if statement.sense is Sense.UPPER else value > trivial
    return Status.INFORMATIVE if better else Status.VACUOUS


def _grade(guaranteed: float | None, failure_probability: float) -> Grade:
    if guaranteed is None:
        return Grade.HEURISTIC
    return Grade.CERTIFIED if failure_probability == 0.0 else Grade.CONFIDENT


def _box(statement: Statement, estimates: Mapping[str, Estimate]) -> Box:
    """Each quantity's interval, cut to what the quantity can be."""
    box = {}
    for quantity in statement.quantities:
        least, most = quantity.range.ends
        estimate = estimates[quantity.name]
        box[quantity.name] = (max(estimate.lower, least), min(estimate.upper, most))
    return box


def _guaranteed(statement: Statement, box: Box) -> tuple[float | None, tuple[str, ...]]:
    """The worst value over a box, and why there is none where there is none."""
    empty = tuple(
        f"the interval of {name} lies outside its range" for name, (low, high) in box.items() if low > high
    )
    if empty:
        return None, empty
    gaps = _unbounded_ends(statement, box) or _doubtful(statement, box)
    if gaps:
        return None, gaps
    image = enclose(statement.expression, _worst_corners(statement, box))
    worst = float(image.upper.max() if statement.sense is Sense.UPPER else image.lower.min())
    if math.isinf(worst):
        return None, ("the enclosure over the intervals is unbounded",)
    return worst, ()


def _worst_end(statement: Statement, name: str) -> int | None:
    """Index of the interval's end at which the bound is weakest; None where no single end is."""
    trend = statement.trends.get(name)
    if trend not in (Trend.INCREASING, Trend.DECREASING):
        return None
    return int((trend is Trend.INCREASING) == (statement.sense is Sense.UPPER))


def _unbounded_ends(statement: Statement, box: Box) -> tuple[str, ...]:
    """The infinite ends that the worst case would need."""
    in_formula = {symbol.name for symbol in statement.expression.free_symbols}
    gaps = []
    for name in statement.names:
        if name not in in_formula:
            continue
        end = _worst_end(statement, name)
        for which in (0, 1) if end is None else (end,):
            if math.isinf(box[name][which]):
                gaps.append(f"{name} has no {('lower', 'upper')[which]} end")
    return tuple(gaps)


def _doubtful(statement: Statement, box: Box) -> tuple[str, ...]:
    """The hypotheses that are not sure to hold everywhere in a box."""
    gaps = []
    for hypothesis in statement.checkable:
        low = float(enclose(hypothesis.margin, box).lower)
        if not (low > 0 if hypothesis.strict else low >= 0):
            gaps.append(f"{hypothesis.words}: may fail within the intervals (margin down to {low:.6g})")
    return tuple(gaps)


def _worst_corners(statement: Statement, box: Box) -> dict[str, Interval]:
    """Boxes, as arrays of ends, that hold the worst case.

    A quantity with a known direction sits at its worst end; one whose direction depends on the others takes
    both ends in turn; the rest keep their whole interval.
    """
    choices: list[list[tuple[float, float]]] = []
    for name, (low, high) in box.items():
        end = _worst_end(statement, name)
        if end is not None:
            choices.append([(box[name][end],) * 2])
        elif statement.trends.get(name) is Trend.EITHER and low < high:
            choices.append([(low, low), (high, high)])
        else:
            choices.append([(low, high)])
    corners = np.array(list(product(*choices)))
    return {name: Interval(corners[:, i, 0], corners[:, i, 1]) for i, name in enumerate(box)}
