"""What a statement is: one expression, its quantities and hypotheses, and all that follows from them.

The formula is written once, as a sympy expression. Its numeric evaluator, its interval enclosure, its LaTeX
and its additive terms are derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, reduce
from typing import Any

import numpy as np
import sympy
from numpy.typing import NDArray
from sympy.core.relational import Relational, StrictGreaterThan, StrictLessThan
from sympy.printing.latex import LatexPrinter
from sympy.printing.numpy import NumPyPrinter

from bounds.enclosure import Interval, enclose
from bounds.quantities import Quantity

Floats = NDArray[np.float64]

#: Points evaluated at a time: the temporaries of a chunk stay in the processor's cache.
CHUNK = 8192


class Variant(StrEnum):
    """Whose formula it is."""

    PRINTED = "printed"
    REPAIRED = "repaired"
    REFINED = "refined"


class Sense(StrEnum):
    """What the expression says about its subject.

    LOWER: subject >= expression. UPPER: subject <= expression. IMPLICATION: under the premise (one of the
    hypotheses) the conclusion holds with a margin of at least the expression, so a positive expression is the
    conclusion.
    """

    LOWER = "lower bound"
    UPPER = "upper bound"
    IMPLICATION = "implication"


class Verdict(StrEnum):
    """What is known about a statement, its hypotheses granted."""

    TRUE = "true"
    VACUOUS = "true but never informative"
    FALSE = "false as printed"


class Trend(StrEnum):
    """How the expression moves with one quantity, the others fixed, wherever the hypotheses hold.

    EITHER: monotone in a direction that depends on the other quantities, so that its extremes over an
    interval are still at the ends.
    """

    INCREASING = "increasing"
    DECREASING = "decreasing"
    EITHER = "monotone, direction depends on the rest"


@dataclass(frozen=True)
class Hypothesis:
    """A condition that the proof needs.

    Attributes:
        words: The condition in words.
        predicate: The condition as a relation between quantities, or None where no number decides it.
        stated: Whether the paper states it (a repaired or refined statement states its own).
        erratum: Number of the erratum that shows the statement fail without it, if there is one.
    """

    words: str
    predicate: Relational | None = None
    stated: bool = True
    erratum: int | None = None

    @property
    def strict(self) -> bool:
        """Whether equality violates it."""
        return isinstance(self.predicate, StrictGreaterThan | StrictLessThan)

    @property
    def margin(self) -> sympy.Expr:
        """Positive (or zero, unless `strict`) exactly where the predicate holds.

        Raises:
            ValueError: If the hypothesis is not a checkable one.
        """
        if self.predicate is None:
            raise ValueError(f"expected a hypothesis with a predicate, got {self.words!r}")
        return self.predicate.gts - self.predicate.lts


@dataclass(frozen=True)
class Term:
    """One step from a trivial setting to the actual one, and the name of what the step adds.

    Attributes:
        name: What the increment is due to.
        neutral: The quantities still held at a neutral value after this step, with that value.
    """

    name: str
    neutral: Mapping[Quantity, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False, repr=False)
class Statement:
    """One theorem or lemma, as data.

    Attributes:
        id: Its key in `STATEMENTS`.
        title: Its name.
        variant: Printed, repaired or refined.
        sense: Whether the expression bounds its subject from below or above, or is an implication's margin.
        source: Number and section in the paper, or where the refinement starts from.
        claim: What it says, in words.
        subject: LaTeX of what the expression bounds.
        expression: The formula.
        quantities: Every quantity in the formula or a hypothesis; all must be given to evaluate it.
        hypotheses: What the proof needs.
        verdict: True, vacuous or false.
        reason: The verdict's reason.
        terms: Steps whose increments sum to the value; the last holds nothing back.
        trends: Proved monotonicity, quantity by quantity; valid where every hypothesis holds.
        background: Quantities that the hypotheses need without a number in the formula, such as the beta
            inside c_F; checked where given.
        trivial: What is known without the statement; a bound is informative if it beats this. By default 1
            for an upper bound (on a probability) and 0 for the others.
        strict: Whether the claim is a strict inequality.
        errata: Numbers of the errata about this statement.

    Raises:
        ValueError: If the parts do not fit together: a symbol without a quantity, a last term that holds a
            quantity back, an unknown name in `trends`.
    """

    id: str
    title: str
    variant: Variant
    sense: Sense
    source: str
    claim: str
    subject: str
    expression: sympy.Expr
    quantities: tuple[Quantity, ...]
    hypotheses: tuple[Hypothesis, ...]
    verdict: Verdict
    reason: str
    terms: tuple[Term, ...]
    trends: Mapping[str, Trend]
    background: tuple[Quantity, ...] = ()
    trivial: sympy.Expr | None = None
    strict: bool = False
    errata: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.trivial is None:
            object.__setattr__(self, "trivial", sympy.Integer(self.sense is Sense.UPPER))
        names = {quantity.name for quantity in self.quantities}
        used = set().union(*(map(str, part.free_symbols) for part in self._parts()))
        if used - names:
            raise ValueError(
                f"{self.id}: expected a quantity for every symbol, got none for {sorted(used - names)}"
            )
        if set(self.trends) - names:
            raise ValueError(
                f"{self.id}: expected trends of its quantities, got {sorted(set(self.trends) - names)}"
            )
        if not self.terms or self.terms[-1].neutral:
            raise ValueError(f"{self.id}: expected a last term that holds no quantity at a neutral value")

    def __repr__(self) -> str:
        return f"Statement({self.id!r})"

    def _parts(self) -> list[sympy.Basic]:
        return [
            sympy.sympify(self.expression),
            sympy.sympify(self.trivial),
            *(h.margin for h in self.checkable),
        ]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the quantities, in order."""
        return tuple(quantity.name for quantity in self.quantities)

    @property
    def checkable(self) -> tuple[Hypothesis, ...]:
        """The hypotheses that the quantities decide."""
        return tuple(hypothesis for hypothesis in self.hypotheses if hypothesis.predicate is not None)

    def latex(self) -> str:
        """The claim as LaTeX: subject, relation, formula."""
        relation = {Sense.LOWER: r"\ge", Sense.UPPER: r"\le", Sense.IMPLICATION: r"\ge"}[self.sense]
        if self.strict:
            relation = {r"\ge": ">", r"\le": "<"}[relation]
        return f"{self.subject} {relation} {self.latex_of(self.expression)}"

    def latex_of(self, expression: sympy.Basic) -> str:
        """LaTeX of an expression or relation in this statement's quantities, in the paper's symbols."""
        names = {quantity.symbol: quantity.latex for quantity in self.quantities}
        return str(_Latex({"symbol_names": names}).doprint(expression))

    def formula(self, **arrays: Any) -> Floats:
        """The bare formula over arrays, hypotheses unchecked: what the page prints, true or not.

        Args:
            arrays: For each quantity a number or an array; they broadcast together.

        Returns:
            The values, shape of the broadcast. NaN or infinite where the formula is undefined.

        Raises:
            ValueError: If a quantity is missing or unknown.
        """
        return self._chunked(self._formula, arrays)

    def __call__(self, **arrays: Any) -> Floats:
        """The formula over arrays where every checkable hypothesis holds, NaN where one fails.

        Args:
            arrays: For each quantity a number or an array; they broadcast together.

        Returns:
            The values, shape of the broadcast.

        Raises:
            ValueError: If a quantity is missing or unknown.
        """
        return self._chunked(self._gated, arrays)

    def evaluate_array(self, **arrays: Any) -> Floats:
        """The same as calling the statement."""
        return self(**arrays)

    def applicable(self, **arrays: Any) -> NDArray[np.bool_]:
        """Where every checkable hypothesis holds, over arrays that broadcast together.

        Raises:
            ValueError: If a quantity is missing or unknown.
        """
        return self._chunked(self._holds, arrays).astype(bool)

    def enclose(self, **intervals: Any) -> Interval:
        """Rigorous enclosure of the formula over a box, hypotheses unchecked.

        Args:
            intervals: For each quantity of the formula an `Interval`, a pair (lower, upper) or a number;
                arrays of ends give many boxes at once.

        Raises:
            UnsupportedExpressionError: If the formula holds an operation that cannot be enclosed.
            ValueError: If a quantity is missing, or an interval is empty or NaN.
        """
        return enclose(self.expression, intervals)

    def term_values(self, **numbers: float) -> dict[str, float]:
        """The additive terms at one point; they sum to the formula's value up to rounding."""
        partial = list(map(float, self._at(self._stages, numbers)))
        values: dict[str, float] = {}
        previous = 0.0
        for term, total in zip(self.terms, partial, strict=True):
            # A total that overflowed to infinity cannot be undone by a later increment.
            increment = total - previous if math.isfinite(previous) else 0.0
            values[term.name] = values.get(term.name, 0.0) + increment
            previous = total
        return values

    def contradicted_by(self, measured: float, value: float, *, tolerance: float = 0.0) -> bool:
        """Whether a measured subject breaks the claim that the expression has this value.

        Args:
            measured: The true subject: a rate, or the margin of an implication's conclusion.
            value: The expression's value.
            tolerance: Slack for rounding in both, >= 0; a strict claim is then held to its weak form.
        """
        slack = value - measured if self.sense is Sense.UPPER else measured - value
        return slack <= 0.0 if self.strict and tolerance == 0.0 else slack < -tolerance

    def margins(self, **numbers: float) -> tuple[float, ...]:
        """The margins of the checkable hypotheses at one point, in order."""
        return tuple(map(float, self._at(self._margins, numbers)))

    def trivial_value(self, **numbers: float) -> float:
        """What is known about the subject at one point without the statement."""
        return float(self._at(self._trivial, numbers))

    def _at(self, function: Callable[..., Any], numbers: Mapping[str, float]) -> Any:
        with np.errstate(all="ignore"):
            return function(*(np.float64(numbers[name]) for name in self.names))

    @cached_property
    def _trivial(self) -> Callable[..., Any]:
        return self._compile(self.trivial)

    @cached_property
    def _formula(self) -> Callable[..., Any]:
        return self._compile(self.expression)

    @cached_property
    def _margins(self) -> Callable[..., Any]:
        return self._compile([hypothesis.margin for hypothesis in self.checkable])

    @cached_property
    def _value_and_margins(self) -> Callable[..., Any]:
        return self._compile([self.expression, *(hypothesis.margin for hypothesis in self.checkable)])

    @cached_property
    def _stages(self) -> Callable[..., Any]:
        def held(term: Term) -> sympy.Expr:
            neutral = {quantity.symbol: value for quantity, value in term.neutral.items()}
            return self.expression.subs(neutral, simultaneous=True)

        return self._compile([held(term) for term in self.terms])

    def _all_hold(self, margins: Sequence[Any]) -> Any:
        holds = [
            margin > 0 if hypothesis.strict else margin >= 0
            for hypothesis, margin in zip(self.checkable, margins, strict=True)
        ]
        return reduce(np.logical_and, holds, np.True_)

    def _holds(self, *values: Any) -> Any:
        return self._all_hold(self._margins(*values))

    def _gated(self, *values: Any) -> Any:
        value, *margins = self._value_and_margins(*values)
        return np.where(self._all_hold(margins), value, np.nan)

    def _compile(self, expressions: Any) -> Callable[..., Any]:
        symbols = [quantity.symbol for quantity in self.quantities]
        function: Callable[..., Any] = sympy.lambdify(
            symbols, expressions, modules="numpy", printer=_Printer, cse=True
        )
        return function

    def _chunked(self, function: Callable[..., Any], arrays: Mapping[str, Any]) -> Floats:
        """Apply a compiled function to broadcast arrays, chunk by chunk."""
        expect_names(self.id, self.names, arrays)
        values = [np.asarray(arrays[name], dtype=float) for name in self.names]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        size = math.prod(shape)
        # A number stays a number: only true arrays are cut into chunks.
        flat = [value if value.ndim == 0 else np.broadcast_to(value, shape).reshape(-1) for value in values]
        result = np.empty(size)
        with np.errstate(all="ignore"):
            for start in range(0, size, CHUNK):
                part = slice(start, start + CHUNK)
                result[part] = function(*(value if value.ndim == 0 else value[part] for value in flat))
        return result.reshape(shape)


def expect_names(statement: str, expected: Sequence[str], given: Mapping[str, Any]) -> None:
    """Check that exactly the expected names are given.

    Raises:
        ValueError: Naming the missing or the unknown ones.
    """
    missing = [name for name in expected if name not in given]
    if missing:
        raise ValueError(f"{statement}: missing {', '.join(missing)}; expected {', '.join(expected)}")
    unknown = [name for name in given if name not in expected]
    if unknown:
        raise ValueError(f"{statement}: unknown {', '.join(unknown)}; expected {', '.join(expected)}")


class _Latex(LatexPrinter):
    """LaTeX in the order that a paper prints: numbers, what is added, what is taken away."""

    def _print_Add(self, expr: sympy.Add, order: Any = None) -> str:
        if any(term.as_coeff_Mul()[0].q != 1 for term in expr.args):  # (1 + S) / 2, not 1 / 2 + S / 2
            numerator, denominator = sympy.together(expr).as_numer_denom()
            return rf"\frac{{{self._print(numerator)}}}{{{self._print(denominator)}}}"
        terms = sorted(expr.args, key=_print_rank)
        printed = [self._print(term) for term in terms]
        return " ".join([printed[0], *(_signed(term) for term in printed[1:])])


def _print_rank(term: sympy.Expr) -> tuple[bool, bool, int, str]:
    return term.could_extract_minus_sign(), not term.is_number, term.count_ops(), str(term)


def _signed(term: str) -> str:
    return f"- {term[1:].strip()}" if term.startswith("-") else f"+ {term}"


class _Printer(NumPyPrinter):
    """NumPy code in which Min and Max broadcast (sympy's own stacks the arguments, which must then agree)."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__({"fully_qualified_modules": False, **(settings or {})})

    def _print_Min(self, node: sympy.Min) -> str:
        return self._nested("minimum", node.args)

    def _print_Max(self, node: sympy.Max) -> str:
        return self._nested("maximum", node.args)

    def _nested(self, function: str, arguments: Sequence[sympy.Expr]) -> str:
        name = self._module_format(f"numpy.{function}")
        return reduce(lambda left, right: f"{name}({left}, {right})", map(self._print, arguments))
