"""The search finds what is false, passes over what does not apply, and never contradicts what is true."""

from dataclasses import replace

import numpy as np
import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounds import STATEMENTS, Hypothesis, Statement
from bounds.check import Finding, Outcome, Search, attack, check, extremal_cases, worlds_for
from bounds.claims import ClaimError, reading_of
from bounds.directions import Directions, best_common_step
from bounds.quantities import EPS, RHO, XI_F, Quantity, Range
from bounds.strategies import attacked_worlds, directions, label_shifts, world_sweeps
from bounds.upper import b, beta, eps, half_angle, l_min, xi_F, xi_G

rho, delta, cosine = sympy.symbols("rho delta cosine", real=True)


def mutant(name: str, expression: sympy.Expr) -> Statement:
    return replace(STATEMENTS[name], expression=expression)


def search_alone(statement: Statement, examples: int = 150) -> Finding:
    """The drawn worlds without the families."""
    search = Search(statement)
    search.run(worlds_for(search.reading), examples, None)
    return search.finding()


def test_hypothesis_finds_lemma_8_and_shrinks_it_to_delta_zero() -> None:
    """No family is shown to it: the drawn vectors alone lead to the zero perturbation in one dimension."""
    finding = search_alone(STATEMENTS["lemma-8"])
    assert finding.outcome is Outcome.FALSIFIED
    assert finding.counterexample is not None
    assert finding.counterexample.case.delta.tolist() == [0.0]
    assert finding.counterexample.value == finding.counterexample.measured == 0.0
    assert not finding.contradicts_us


@pytest.mark.parametrize("random_seed", [1, 2, 3])
def test_lemma_8_falls_under_other_seeds(random_seed: int) -> None:
    """The discovery does not hang on the default draws."""
    finding = attack(STATEMENTS["lemma-8"], random_seed=random_seed)
    assert finding.counterexample is not None
    assert finding.counterexample.quantities["delta_norm"] == 0.0


def test_printed_theorem_1_comes_out_vacuous() -> None:
    """Never positive over thousands of worlds that meet its hypotheses, and proved so."""
    (finding,) = check([STATEMENTS["theorem-1"]])
    assert finding.outcome is Outcome.VACUOUS
    assert finding.met > 1000
    assert finding.informative == 0
    assert finding.vacuity is not None


def test_the_repaired_theorem_1_is_not_vacuous() -> None:
    """The same worlds let the repaired one speak."""
    finding = attack(STATEMENTS["theorem-1-repaired"], examples=60)
    assert finding.outcome is Outcome.SURVIVED
    assert finding.informative > 0


@pytest.mark.parametrize(
    "statement",
    [
        mutant("theorem-3", (xi_F + xi_G) / (l_min - eps * b * (1 + half_angle) - beta * eps**2 / 2)),
        mutant("theorem-4", (xi_F + xi_G) / (l_min - eps * b * (1 + half_angle) / 2 - beta * eps**2 / 4)),
        mutant("theorem-3", STATEMENTS["theorem-3"].expression / 4),
        mutant("refined-r5", STATEMENTS["refined-r5"].expression / 2),
        mutant("lemma-5", eps + rho),
        mutant("lemma-8-repaired", STATEMENTS["lemma-8-repaired"].expression * sympy.Rational(9, 10)),
        mutant("lemma-7", STATEMENTS["lemma-7"].expression + eps * sympy.sqrt(2 - 2 * cosine) / 8),
    ],
    ids=["beta/2", "eps/2", "quarter", "R5/2", "eps + rho", "0.9 h", "7/8 of the turn"],
)
@pytest.mark.slow
def test_the_search_alone_falsifies_mutants(statement: Statement) -> None:
    """Wrong constants are found by drawn worlds, at the default budget."""
    finding = search_alone(statement)
    assert finding.outcome is Outcome.FALSIFIED
    assert finding.contradicts_us
    found = finding.counterexample
    assert found is not None
    assert statement.contradicted_by(found.measured, found.value, tolerance=1e-9)


@pytest.mark.parametrize(
    "statement",
    [
        mutant("theorem-4", STATEMENTS["theorem-4"].expression / 2),
        mutant("refined-r3", (xi_F + xi_G) / (2 * (l_min - 2 * eps * b * half_angle - beta * eps**2))),
        mutant("refined-r3", STATEMENTS["refined-r3"].expression * sympy.Rational(99, 100)),
        mutant("theorem-6", delta + 3 * eps + rho),
        mutant("theorem-6-def2", delta + eps + rho),
        mutant("theorem-6-mixed", delta + 2 * eps + rho),
        mutant("theorem-6-transfer", 1 - delta - 3 * eps - rho),
        mutant("refined-r8", STATEMENTS["refined-r8"].expression * sympy.Rational(99, 100)),
    ],
    ids=lambda statement: f"{statement.id}: {statement.expression}",
)
def test_the_families_falsify_mutants(statement: Statement) -> None:
    """What only extremal worlds tell apart is told apart, with next to no drawing."""
    assert attack(statement, examples=1).outcome is Outcome.FALSIFIED


def test_hypotheses_that_are_never_met_say_nothing() -> None:
    """An unmet claim is not sold as a survivor."""
    theorem = STATEMENTS["theorem-3"]
    never = Hypothesis("the radius is negative", EPS.symbol < 0)
    finding = attack(replace(theorem, id="never", hypotheses=(*theorem.hypotheses, never)), examples=5)
    assert finding.outcome is Outcome.UNREACHED
    assert np.isnan(finding.slack)


def test_the_default_draws_are_fixed_and_a_seed_changes_them() -> None:
    """Without a seed two runs agree; another seed draws other worlds."""
    first, second = (attack(STATEMENTS["theorem-3"], examples=20) for _ in range(2))
    other = attack(STATEMENTS["theorem-3"], examples=20, random_seed=1)
    assert (first.met, first.slack) == (second.met, second.slack)
    assert other.met != first.met


def test_a_statement_is_read_as_what_it_is() -> None:
    """Ours by itself; a variation by subject and quantities; a new subject as untargeted transfer."""
    repaired = STATEMENTS["theorem-3-repaired"]
    assert reading_of(repaired).subject_of == "theorem-3-repaired"
    assert reading_of(replace(repaired, id="mine")).quantities_of == ("theorem-3-repaired",)
    assert reading_of(replace(repaired, id="mine", subject="mine")).subject_of == "theorem-4"
    printed_risk = tuple(XI_F if q.name == "xi_F" else q for q in repaired.quantities)
    assert (
        reading_of(replace(repaired, id="mine", quantities=printed_risk)).subject_of == "theorem-3-repaired"
    )
    shift = replace(STATEMENTS["theorem-6"], id="mine", subject="mine")
    assert reading_of(shift).subject_of == "theorem-6-def2"
    assert RHO in shift.quantities


def test_an_unknown_quantity_is_an_error_that_names_it() -> None:
    """There is no world in which it could be computed."""
    unknown = Quantity("temperature", Range.REAL, "of the room", "T")
    theorem = STATEMENTS["theorem-3"]
    with pytest.raises(ClaimError, match="temperature"):
        reading_of(replace(theorem, id="mine", quantities=(*theorem.quantities, unknown)))


@settings(suppress_health_check=list(HealthCheck), max_examples=30)
@given(world_sweeps(), st.integers(0, 47), st.sampled_from(["theorem-1", "theorem-4-repaired", "refined-r2"]))
def test_a_batch_agrees_with_its_worlds(batch, index, statement) -> None:
    """Quantities and rate of a picked world are the batch's at that place."""
    one, many = batch.pick(index).quantities(statement), batch.quantities(statement)
    for name, value in one.items():
        np.testing.assert_allclose(value, np.broadcast_to(many[name], 48)[index], atol=1e-12)
    assert batch.pick(index).subject(statement) == pytest.approx(batch.subject(statement)[index])


@settings(suppress_health_check=list(HealthCheck), max_examples=30)
@given(attacked_worlds())
def test_drawn_worlds_are_within_the_rules(case) -> None:
    """Nonnegative losses, perturbations inside the ball."""
    assert (case.world.value >= 0).all()
    assert (np.linalg.norm(case.perturbation, axis=-1) <= case.eps * (1 + 1e-12)).all()


@given(label_shifts())
def test_drawn_label_maps_obey_lemma_5(case) -> None:
    """The strategies serve in ordinary tests, too."""
    numbers = case.quantities("lemma-5")
    assert case.subject("lemma-5") <= 2 * numbers["eps"] + numbers["rho"] + 1e-12


@given(directions())
def test_the_best_common_step_is_best(case) -> None:
    """No drawn perturbation does better along both vectors than the constructed one of its length."""
    length = float(np.linalg.norm(case.delta))
    best = best_common_step(case.first, case.second, length)
    assert case.subject("refined-r8") <= replace(case, delta=best).subject("refined-r8") + 1e-9


def test_directions_refuse_what_has_no_direction() -> None:
    """A zero vector and a statement about something else are errors."""
    with pytest.raises(ValueError, match="zero"):
        Directions([1.0], [0.0], [1.0])
    case = Directions([1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="theorem-3"):
        case.quantities("theorem-3")
    with pytest.raises(ValueError, match="theorem-3"):
        case.subject("theorem-3")


def test_the_families_are_about_something() -> None:
    """Each extremal case has the quantities of at least one statement."""
    for case in extremal_cases():
        usable = []
        for name in STATEMENTS:
            try:
                usable.append(case.quantities(name))
            except ValueError:
                continue
        assert usable, case
