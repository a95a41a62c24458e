"""Attack a statement: search for a world in which it is false.

Each statement meets the extremal families, then worlds drawn by Hypothesis, which climbs towards small slack
(or, where the hypotheses are not met, towards meeting them) and shrinks what falsifies the statement.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import sympy
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from bounds import families, strategies
from bounds.claims import Case, Reading, reading_of
from bounds.directions import Directions, best_common_step
from bounds.proofs import PROOFS, Proof, prove
from bounds.proofs import Verdict as ProofVerdict
from bounds.registry import STATEMENTS
from bounds.statement import Sense, Statement, Verdict

#: Rounding forgiven to a weak inequality, relative to 1 + |value|; a strict hypothesis must hold by as much.
TOLERANCE = 1e-9
#: Examples drawn for one statement by default.
EXAMPLES = 150


class Outcome(StrEnum):
    """What the search found."""

    SURVIVED = "survived"
    FALSIFIED = "falsified"
    VACUOUS = "vacuous"
    UNREACHED = "unreached"


@dataclass(frozen=True)
class Counterexample:
    """Where a statement fails.

    Attributes:
        quantities: What the statement was given.
        value: What it says.
        measured: What is true.
        case: The world, in full.
    """

    quantities: Mapping[str, float]
    value: float
    measured: float
    case: Case


@dataclass(frozen=True)
class Finding:
    """The result of attacking one statement.

    Attributes:
        statement: The statement.
        examples: Worlds tried, the extremal families included and shrinking excluded.
        met: How many of them met the hypotheses.
        informative: In how many the statement then said more than is trivially known.
        slack: Smallest gap found between the bound and the truth, NaN where no hypotheses were met. Below
            zero by more than rounding where the statement is falsified.
        counterexample: The minimal one, if any.
        proof: The machine proof, if it was run.
        vacuity: The proof that the statement is never informative, if it was run.
    """

    statement: Statement
    examples: int
    met: int
    informative: int
    slack: float
    counterexample: Counterexample | None = None
    proof: Proof | None = None
    vacuity: Proof | None = None

    @property
    def outcome(self) -> Outcome:
        """What the search found; vacuous only with a proof of it."""
        refuted = self.proof is not None and self.proof.verdict is ProofVerdict.REFUTED
        if self.counterexample is not None or refuted:
            return Outcome.FALSIFIED
        if self.vacuity is not None and self.vacuity.verdict is ProofVerdict.PROVED and not self.informative:
            return Outcome.VACUOUS
        return Outcome.SURVIVED if self.met else Outcome.UNREACHED

    @property
    def contradicts_us(self) -> bool:
        """Whether a statement that is called true was falsified."""
        return self.outcome is Outcome.FALSIFIED and self.statement.verdict is not Verdict.FALSE


@dataclass(frozen=True)
class _Trial:
    """One statement in one world whose hypotheses hold."""

    quantities: Mapping[str, float]
    value: float
    measured: float
    slack: float
    informative: bool
    falsified: bool


class _Falsified(Exception):
    """Tells Hypothesis to shrink."""


class Search:
    """One statement's attack, and what it has seen."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.reading: Reading = reading_of(statement)
        self.examples = self.met = self.informative = 0
        self.slack = math.inf
        self.counterexample: Counterexample | None = None

    def examine(self, case: Case) -> float:
        """Try one world and return a score to climb: larger is closer to falsifying the statement.

        Raises:
            _Falsified: If the statement fails there.
        """
        shrinking = self.counterexample is not None
        self.examples += not shrinking
        numbers = self.reading.quantities(case)
        numbers = {name: float(numbers[name]) for name in self.statement.names}
        if not all(map(math.isfinite, numbers.values())):
            return -3.0
        shortfall = _shortfall(self.statement, numbers)
        if shortfall > 0.0:
            return -1.0 - math.tanh(shortfall)
        trial = _trial(self.statement, numbers, float(self.reading.subject(case)))
        if trial is None:
            return -3.0
        if not shrinking:
            self.met += 1
            self.informative += trial.informative
            self.slack = min(self.slack, trial.slack)
        if trial.falsified:
            self.counterexample = Counterexample(numbers, trial.value, trial.measured, case)
            raise _Falsified
        return float(_scores(self.statement.sense, trial.value, trial.measured))

    def worst(self, case: Case) -> Case:
        """Of a batch of worlds the one nearest to a violation, the others counted; else the case itself."""
        if not (isinstance(case, strategies.AttackedWorld) and case.world.probability.ndim > 1):
            return case
        numbers = self.reading.quantities(case)
        values = self.statement(**{name: numbers[name] for name in self.statement.names})
        measured = np.asarray(self.reading.subject(case))
        met = np.isfinite(values)
        score = np.where(met, _scores(self.statement.sense, values, measured), -np.inf)
        best = int(score.argmax())
        if self.counterexample is None:
            self.examples += len(score) - 1
            self.met += int(met.sum()) - int(met[best])
            self.informative += int(self._informative(values).sum()) - int(self._informative(values[best]))
        return case.pick(best)

    def _informative(self, value: Any) -> Any:
        """Whether a value beats what is known anyway, where that is a number; False where it is NaN."""
        known = sympy.sympify(self.statement.trivial)
        if not known.is_number:
            return np.zeros_like(value, dtype=bool)
        trivial = float(known)
        gain = trivial - value if self.statement.sense is Sense.UPPER else value - trivial
        return gain > TOLERANCE

    def run(self, cases: st.SearchStrategy[Any], examples: int, random_seed: int | None) -> None:
        """Draw worlds until the statement fails or the budget is spent; keep the smallest counterexample."""

        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            derandomize=random_seed is None,
            phases=(Phase.generate, Phase.target, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
        )
        @given(cases)
        def attack(case: Any) -> None:
            target(self.examine(self.worst(case)))

        with suppress(_Falsified), warnings.catch_warnings():
            # It writes out what fails, which for a batch is long, and nobody reads it.
            warnings.simplefilter("ignore", HypothesisWarning)
            (attack if random_seed is None else seed(random_seed)(attack))()

    def visit(self, cases: list[Case]) -> None:
        """Try given worlds, passing over those that are not about the statement's quantities."""
        for case in cases:
            try:
                self.examine(case)
            except _Falsified:
                return
            except ValueError:
                self.examples -= 1

    def finding(self) -> Finding:
        """What has been seen so far."""
        slack = self.slack if self.met else math.nan
        return Finding(self.statement, self.examples, self.met, self.informative, slack, self.counterexample)


def _shortfall(statement: Statement, numbers: Mapping[str, float]) -> float:
    """By how much the checkable hypotheses are missed, 0 where they all hold."""
    needed = [TOLERANCE if hypothesis.strict else 0.0 for hypothesis in statement.checkable]
    pairs = zip(statement.margins(**numbers), needed, strict=True)
    return max((need - margin for margin, need in pairs if not margin >= need), default=0.0)


def _trial(statement: Statement, numbers: Mapping[str, float], measured: float) -> _Trial | None:
    value = float(statement.formula(**numbers))
    if not math.isfinite(value):
        return None
    trivial = statement.trivial_value(**numbers)
    upper = statement.sense is Sense.UPPER
    slack, gain = (value - measured, trivial - value) if upper else (measured - value, value - trivial)
    tolerance = 0.0 if statement.strict else TOLERANCE * (1.0 + abs(value))
    falsified = statement.contradicted_by(measured, value, tolerance=tolerance)
    return _Trial(numbers, value, measured, slack, gain > TOLERANCE, falsified)


def _scores(sense: Sense, value: Any, measured: Any) -> Any:
    """Closeness to a violation, above -1, where the hypotheses hold.

    A bound of zero on a rate of zero is tight and no danger to any statement. So what is climbed is first
    whether there is something to violate (a rate above zero, a lower bound above zero), then the slack.
    """
    if sense is Sense.UPPER:
        return np.where(measured <= 0.0, -0.9, -0.5 * np.tanh(value - measured))
    slack = -0.5 * np.tanh(measured - value)
    return slack if sense is Sense.IMPLICATION else np.where(value <= 0.0, -0.5 + 0.4 * np.tanh(value), slack)


def worlds_for(reading: Reading) -> st.SearchStrategy[Any]:
    """The worlds in which a reading's quantities exist."""
    subject = reading.subject_of
    if subject == "lemma-5" or subject.startswith("theorem-6"):
        return strategies.label_shifts()
    if subject.startswith("lemma-") or subject == "refined-r8":
        return strategies.directions()
    models = 3 if subject == "refined-r5" else 2
    return strategies.world_sweeps(models=models)


def extremal_cases() -> list[Case]:
    """The families in which statements are attained or nearly broken, a few members of each."""
    cosines = (-0.5, 0.0, 0.5, 0.9, 1.0)
    readings = ("theorem-6", "theorem-6-def2", "theorem-6-mixed", "theorem-6-transfer")
    pairs = [((1.0, 0.0), (0.0, 2.0)), ((1.0, 0.0), (2.0, 1.0)), ((1.0, 0.0), (-1.0, 1.0))]
    return [
        *(families.theorem_3_sharp(cosine, beta=beta) for cosine in cosines for beta in (0.0, 0.5)),
        *(families.theorem_3_sharp(cosine, rate=0.1) for cosine in cosines),
        families.theorem_3_opposed(),
        *(families.theorem_4_half(cosine) for cosine in cosines),
        families.theorem_4_three_labels(),
        families.theorem_1_repaired_attained(),
        families.theorem_2_nearly_one(),
        *(families.r5_attained(models) for models in (2, 3, 5)),
        families.lemma_5_attained(),
        *(families.theorem_6_attained(reading) for reading in readings),
        families.theorem_6_swap(),
        *(
            Directions(best_common_step(g, h, 1.0), np.array(g), np.array(h), similarity=cosine)
            for g, h in pairs
            for cosine in cosines
        ),
    ]


def attack(statement: Statement, *, examples: int = EXAMPLES, random_seed: int | None = None) -> Finding:
    """Search for a world in which a statement is false.

    Args:
        statement: One of `STATEMENTS`, or any other.
        examples: Worlds to draw, besides the extremal families.
        random_seed: Seed of the search; None for the same worlds every time.

    Returns:
        The finding, without any proof.

    Raises:
        ClaimError: If the statement's quantities are none that a world has.
    """
    search = Search(statement)
    # A family's counterexample is kept only if the search, which shrinks, finds none.
    search.visit(extremal_cases())
    found, search.counterexample = search.counterexample, None
    search.run(worlds_for(search.reading), examples, random_seed)
    search.counterexample = search.counterexample or found
    return search.finding()


def check(
    statements: list[Statement],
    *,
    examples: int = EXAMPLES,
    random_seed: int | None = None,
    all_proofs: bool = False,
) -> Iterator[Finding]:
    """Attack statements one by one, with the machine proofs of those that are ours.

    Args:
        statements: What to attack.
        examples: Worlds to draw for each.
        random_seed: Seed of the search; None for the same worlds every time.
        all_proofs: Run the slower proofs as well.

    Raises:
        ClaimError: If a statement's quantities are none that a world has.
    """
    for statement in statements:
        finding = attack(statement, examples=examples, random_seed=random_seed)
        if STATEMENTS.get(statement.id) is statement:
            finding = _with_proofs(finding, all_proofs)
        yield finding


def _with_proofs(finding: Finding, all_proofs: bool) -> Finding:
    name = finding.statement.id
    wanted = [key for key in (name, f"{name}-vacuous") if key in PROOFS]
    proofs = {key: prove(key) for key in wanted if all_proofs or not PROOFS[key].slow}
    fields = {**vars(finding), "proof": proofs.get(name), "vacuity": proofs.get(f"{name}-vacuous")}
    return Finding(**fields)
