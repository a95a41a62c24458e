"""From sympy to the solver, so that what is proved is the very formula that the statement holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import sympy
import z3
from sympy.core.relational import Relational

from bounds.proofs.engine import maximum, minimum
from bounds.statement import Statement


@dataclass
class Translation:
    """Turns expressions into solver terms, a root becoming a variable with what defines it.

    Attributes:
        conditions: What defines the roots met so far: hypotheses of every step that uses a translated term.
    """

    conditions: list[z3.BoolRef] = field(default_factory=list)
    _roots: dict[str, z3.ArithRef] = field(default_factory=dict)

    def term(self, expression: sympy.Expr) -> z3.ArithRef:
        """The solver's term for sums, products, integer and half-integer powers, Min, Max and Abs.

        A quotient is the solver's own, so a step must assume a denominator that is not zero.

        Raises:
            TypeError: If the expression holds anything else.
        """
        if isinstance(expression, sympy.Symbol):
            return z3.Real(expression.name)
        if isinstance(expression, sympy.Rational):
            return z3.Q(int(expression.p), int(expression.q))
        if isinstance(expression, sympy.Pow):
            return self._power(expression)
        if isinstance(expression, sympy.Abs):
            inside = self.term(expression.args[0])
            return maximum(inside, -inside)
        operations = {
            sympy.Add: lambda a, b: a + b,
            sympy.Mul: lambda a, b: a * b,
            sympy.Max: maximum,
            sympy.Min: minimum,
        }
        if expression.func not in operations:
            raise TypeError(
                f"expected sums, products, powers, Min or Max, got {expression.func} in {expression}"
            )
        return reduce(operations[expression.func], map(self.term, expression.args))

    def _power(self, expression: sympy.Pow) -> z3.ArithRef:
        base, exponent = expression.base, expression.exp
        if not (exponent.is_Rational and exponent.q in (1, 2)):
            raise TypeError(f"expected an integer or half-integer power, got {expression}")
        factor = self.term(base) if exponent.q == 1 else self._root(base)
        power = reduce(lambda a, b: a * b, [factor] * abs(int(exponent.p)))
        return power if exponent > 0 else 1 / power

    def _root(self, base: sympy.Expr) -> z3.ArithRef:
        name = f"sqrt({base})"
        if name not in self._roots:
            variable = z3.Real(name)
            self.conditions += [variable >= 0, variable * variable == self.term(base)]
            self._roots[name] = variable
        return self._roots[name]

    def formula(self, relation: Relational) -> z3.BoolRef:
        """The solver's formula for an inequality between two expressions."""
        greater, lesser = self.term(relation.gts), self.term(relation.lts)
        return greater > lesser if isinstance(relation, sympy.StrictGreaterThan | sympy.StrictLessThan) else (
            greater >= lesser
        )  # fmt: skip


@dataclass(frozen=True)
class Stated:
    """A statement as the solver sees it.

    Attributes:
        bound: Its expression.
        hypotheses: Its checkable hypotheses, the ranges of its quantities, and what defines the roots.
        translation: Where further expressions in the same quantities can be translated.
    """

    bound: z3.ArithRef
    hypotheses: list[z3.BoolRef]
    translation: Translation


def stated(statement: Statement) -> Stated:
    """A statement's own expression and hypotheses as solver terms.

    Raises:
        TypeError: If an expression holds an operation that the solver has no term for.
    """
    translation = Translation()
    bound = translation.term(sympy.sympify(statement.expression))
    predicates = [translation.formula(h.predicate) for h in statement.checkable if h.predicate is not None]
    ranges = []
    for quantity in statement.quantities:
        lower, upper = quantity.range.ends
        variable = z3.Real(quantity.name)
        ranges += [variable >= z3.RealVal(lower)] if lower > float("-inf") else []
        ranges += [variable <= z3.RealVal(upper)] if upper < float("inf") else []
    return Stated(bound, [*ranges, *predicates, *translation.conditions], translation)
