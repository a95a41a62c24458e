"""What a machine proof consists of: steps, each a formula whose negation the solver refutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sympy
import z3

DEFAULT_TIMEOUT = 60.0


class Verdict(StrEnum):
    """What the machine said about a formula."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Step:
    """Hypotheses over the reals and what is claimed to follow from them.

    Attributes:
        name: The step of the proof, in words.
        hypotheses: Formulas, all assumed.
        conclusion: The formula that is claimed to follow.
        nondegenerate: Further formulas that the witness of satisfiability must meet, so that it is not a
            corner case in which nothing happens (a perturbation of radius zero, say). The proof does not use
            them.
    """

    name: str
    hypotheses: Sequence[z3.BoolRef]
    conclusion: z3.BoolRef
    nondegenerate: Sequence[z3.BoolRef] = ()


@dataclass(frozen=True)
class Identity:
    """Two expressions claimed to be equal wherever both are defined; sympy reduces the difference to zero.

    Attributes:
        name: The step of the proof, in words.
        left: One side.
        right: The other side.
    """

    name: str
    left: sympy.Expr
    right: sympy.Expr


@dataclass(frozen=True)
class StepResult:
    """What the machine found for one step.

    Attributes:
        name: The step of the proof, in words.
        formula: The exact formula that was checked.
        engine: The program that checked it.
        verdict: Proved, refuted or unknown.
        seconds: Time taken, the search for a witness included.
        satisfiable: Whether values that meet the hypotheses were found: without them a proof is vacuous.
        witness: Those values.
        counterexample: Values that meet the hypotheses and break the conclusion, if refuted.
    """

    name: str
    formula: str
    engine: str
    verdict: Verdict
    seconds: float
    satisfiable: bool
    witness: Mapping[str, str]
    counterexample: Mapping[str, str] | None


Builder = Callable[[], Sequence[Step | Identity]]


def run(step: Step | Identity, timeout: float = DEFAULT_TIMEOUT) -> StepResult:
    """Check one step, within `timeout` seconds for each of the two questions put to the solver."""
    return _run_identity(step) if isinstance(step, Identity) else _run_step(step, timeout)


def _run_step(step: Step, timeout: float) -> StepResult:
    start = time.perf_counter()
    satisfied, witness = _models(step.hypotheses, step.nondegenerate, timeout)
    answer, counterexample = _models(step.hypotheses, [z3.Not(step.conclusion)], timeout)
    linear = _linear([*step.hypotheses, step.conclusion])
    verdict = Verdict.PROVED if answer == z3.unsat else Verdict.REFUTED
    if answer == z3.unknown:
        verdict = Verdict.UNKNOWN
    return StepResult(
        name=step.name,
        formula=f"{'; '.join(_flat(h) for h in step.hypotheses)} |- {_flat(step.conclusion)}",
        engine=f"z3 {z3.get_version_string()}, {'linear' if linear else 'nonlinear'} real arithmetic",
        verdict=verdict,
        seconds=time.perf_counter() - start,
        satisfiable=satisfied == z3.sat,
        witness=witness,
        counterexample=counterexample if verdict is Verdict.REFUTED else None,
    )


def _run_identity(step: Identity) -> StepResult:
    start = time.perf_counter()
    difference = sympy.simplify(sympy.together(step.left - step.right))
    return StepResult(
        name=step.name,
        formula=f"{step.left} = {step.right}",
        engine=f"sympy {sympy.__version__}, algebraic identity",
        verdict=_identity_verdict(difference),
        seconds=time.perf_counter() - start,
        satisfiable=True,
        witness={},
        counterexample=None,
    )


def _identity_verdict(difference: sympy.Expr) -> Verdict:
    if difference == 0:
        return Verdict.PROVED
    return Verdict.REFUTED if difference.is_zero is False else Verdict.UNKNOWN


def _models(
    hypotheses: Iterable[z3.BoolRef], extra: Iterable[z3.BoolRef], timeout: float
) -> tuple[z3.CheckSatResult, dict[str, str]]:
    """Whether hypotheses and extra constraints can hold together, and where."""
    formulas = [*hypotheses, *extra]
    solver = z3.SolverFor("QF_LRA" if _linear(formulas) else "QF_NRA")
    solver.set("timeout", int(1000 * timeout))
    solver.add(*formulas)
    answer = solver.check()
    if answer != z3.sat:
        return answer, {}
    model = solver.model()
    # Internal variables that z3 adds for division are not part of the statement.
    names = sorted(model.decls(), key=lambda declaration: declaration.name())
    return answer, {d.name(): str(model[d]) for d in names if d.arity() == 0 and "/0" not in d.name()}


def _flat(formula: z3.BoolRef) -> str:
    """The formula on one line, nothing left out."""
    z3.set_option(max_depth=1000, max_args=10000, max_lines=100000, max_width=100000, max_visited=10**7)
    return " ".join(str(formula).split())


def _linear(formulas: Iterable[z3.BoolRef]) -> bool:
    goal = z3.Goal()
    goal.add(*formulas)
    return bool(z3.Probe("is-qflra")(z3.Tactic("simplify")(goal)[0]))


def root(name: str, square: z3.ArithRef) -> tuple[z3.ArithRef, list[z3.BoolRef]]:
    """A square root as a fresh variable: non-negative, and its square is the argument."""
    variable = z3.Real(name)
    return variable, [variable >= 0, variable * variable == square]


def maximum(first: z3.ArithRef, second: z3.ArithRef | int) -> z3.ArithRef:
    """The larger of two numbers."""
    return z3.If(first >= second, first, second)


def minimum(first: z3.ArithRef, second: z3.ArithRef | int) -> z3.ArithRef:
    """The smaller of two numbers."""
    return z3.If(first <= second, first, second)
