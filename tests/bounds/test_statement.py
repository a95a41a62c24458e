"""What follows from a definition: evaluation over arrays, hypotheses, terms, trends, LaTeX."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sympy

import bounds
from bounds import STATEMENTS, Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict
from bounds.quantities import Range
from bounds.statement import CHUNK
from bounds.upper import THEOREM_3

ROOT = Path(__file__).resolve().parents[2]
THEOREMS = ("theorem-1", "theorem-2", "theorem-3", "theorem-4", "lemma-5", "theorem-6", "lemma-7", "lemma-8")
REPAIRED = (*(f"theorem-{n}-repaired" for n in (1, 3, 4)), "lemma-7-mirror", "lemma-8-repaired")
READINGS = (
    "theorem-6-def2",
    "theorem-6-mixed",
    "lemma-7-angular",
    "refined-r3-untargeted",
    "refined-cantelli",
)
IDS = (*THEOREMS, *REPAIRED, *READINGS, *(f"refined-r{n}" for n in range(2, 9)))
every_statement = pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)


def draw(quantity, rng, size):
    """Random admissible numbers, with the ends of the range among them."""
    match quantity.range:
        case Range.PROBABILITY:
            numbers = rng.uniform(0, 1, size)
        case Range.COSINE:
            numbers = rng.uniform(-1, 1, size)
        case Range.NON_NEGATIVE:
            numbers = rng.uniform(0, 1.5, size)
        case Range.COUNT:
            return rng.integers(2, 9, size).astype(float)
        case Range.REAL:
            return rng.normal(0.5, 2.0, size)
    ends = [end for end in quantity.range.ends if np.isfinite(end)]
    return np.where(rng.random(size) < 0.1, rng.choice(ends, size), numbers)


def admissible(statement, size, seed=0):
    """Random points at which every checkable hypothesis holds: name -> array."""
    rng = np.random.default_rng(seed)
    points = {quantity.name: draw(quantity, rng, 60 * size) for quantity in statement.quantities}
    holds = statement.applicable(**points)
    assert holds.sum() >= size, f"only {holds.sum()} admissible points for {statement.id}"
    return {name: numbers[holds][:size] for name, numbers in points.items()}


def test_every_promised_statement_is_there():
    assert set(IDS) <= set(STATEMENTS)
    assert all(statement.id == key for key, statement in STATEMENTS.items())


def test_importing_the_package_is_light():
    """No solver and no deep-learning library comes with it; proofs, errata and certificates on first use."""
    code = (
        "import sys, bounds; heavy = {'z3', 'torch', 'matplotlib'} & set(sys.modules); "
        "bounds.ERRATA, bounds.prove, bounds.transfer_certificate, bounds.worlds; sys.exit(len(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="'bounds' has no attribute 'theorem'"):
        _ = bounds.theorem


def test_committed_speed_reaches_ten_million_points_a_second():
    result = json.loads((ROOT / "benchmarks" / "results" / "bounds_speed.json").read_text(encoding="utf-8"))
    assert set(result["statements"]) == set(STATEMENTS)
    for rates in result["statements"].values():
        assert min(rates.values()) > 10e6


def test_statements_cannot_be_changed():
    with pytest.raises(TypeError):
        STATEMENTS["theorem-1"] = None
    with pytest.raises(AttributeError):
        STATEMENTS["theorem-1"].expression = sympy.S.One


def test_false_and_vacuous_as_printed():
    verdicts = {key: statement.verdict for key, statement in STATEMENTS.items()}
    assert verdicts.pop("theorem-1") is Verdict.VACUOUS
    assert verdicts.pop("lemma-8") is Verdict.FALSE
    assert set(verdicts.values()) == {Verdict.TRUE}


@every_statement
def test_definition_is_documented(statement):
    assert statement.claim.endswith(".")
    assert statement.reason.endswith(".")
    assert "TRS" in statement.source or statement.variant is Variant.REFINED
    assert all(quantity.meaning and quantity.latex for quantity in statement.quantities)
    assert any(hypothesis.predicate is None for hypothesis in statement.hypotheses)


@every_statement
def test_terms_sum_to_the_value(statement):
    points = admissible(statement, 200)
    values = statement(**points)
    for i, value in enumerate(values):
        terms = statement.term_values(**{name: numbers[i] for name, numbers in points.items()})
        size = max(1.0, *(abs(term) for term in terms.values()))
        assert sum(terms.values()) == pytest.approx(value, abs=1e-12 * size)


@every_statement
def test_trends_are_true(statement):
    """Each declared direction holds between random pairs of admissible points that differ in one quantity."""
    points = admissible(statement, 1500)
    rng = np.random.default_rng(1)
    base = statement(**points)
    for quantity in statement.quantities:
        trend = statement.trends.get(quantity.name)
        if trend is None:
            continue
        moved = {**points, quantity.name: draw(quantity, rng, len(base))}
        step = np.sign(moved[quantity.name] - points[quantity.name])
        rise = (statement(**moved) - base) * step
        rise = rise[np.isfinite(rise)]
        slack = 1e-9 * (1 + np.nanmax(np.abs(base)))
        assert len(rise) > 100
        if trend is Trend.INCREASING:
            assert rise.min() >= -slack, quantity.name
        elif trend is Trend.DECREASING:
            assert rise.max() <= slack, quantity.name
        else:
            middle = {**points, quantity.name: (moved[quantity.name] + points[quantity.name]) / 2}
            between, other = statement(**middle), statement(**moved)
            known = np.isfinite(between) & np.isfinite(other)
            low, high = np.minimum(base, other)[known], np.maximum(base, other)[known]
            tolerance = 1e-9 * (1 + np.abs(low) + np.abs(high))
            assert np.all((low - tolerance <= between[known]) & (between[known] <= high + tolerance))


@every_statement
def test_gated_values_are_the_formula_or_nan(statement):
    rng = np.random.default_rng(2)
    points = {quantity.name: draw(quantity, rng, 500) for quantity in statement.quantities}
    holds = statement.applicable(**points)
    gated, bare = statement(**points), statement.formula(**points)
    np.testing.assert_allclose(gated[holds], bare[holds], rtol=1e-12, atol=1e-12)
    assert np.isnan(gated[~holds]).all()
    assert np.isfinite(gated[holds]).all()


@every_statement
def test_array_values_agree_with_exact_arithmetic(statement):
    points = admissible(statement, 10, seed=3)
    values = statement(**points)
    for i, value in enumerate(values):
        numbers = {q.symbol: sympy.Rational(float(points[q.name][i])) for q in statement.quantities}
        assert value == pytest.approx(float(statement.expression.subs(numbers).evalf(30)), rel=1e-9, abs=1e-9)


def test_arrays_broadcast_and_cross_chunks():
    beta = np.linspace(0, 1, CHUNK + 7)
    fixed = {"xi_F": 0.1, "xi_G": 0.2, "l_min": 5.0, "B": 1.0, "S_upper": 0.0}
    values = THEOREM_3(**fixed, eps=np.array([[0.1], [0.2]]), beta=beta)
    assert values.shape == (2, CHUNK + 7)
    expected = 0.3 / (5 - 0.2 * (1 + np.sqrt(0.5)) - beta * 0.2**2)
    np.testing.assert_allclose(values[1], expected, rtol=1e-14)
    assert THEOREM_3.evaluate_array(**fixed, eps=0.1, beta=0.0).shape == ()


def test_gate_blocks_what_the_bare_formula_gets_wrong():
    """Erratum 3: a negative denominator makes the printed bound -1."""
    numbers = {"xi_F": 1.0, "xi_G": 1.0, "l_min": 2.0, "eps": 1.0, "B": 2.0, "S_upper": 1.0, "beta": 0.0}
    assert THEOREM_3.formula(**numbers) == -1.0
    assert np.isnan(THEOREM_3(**numbers))
    assert not THEOREM_3.applicable(**numbers)


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="missing xi_G, l_min"):
        THEOREM_3(xi_F=1, eps=1, B=1, S_upper=0, beta=0)
    with pytest.raises(ValueError, match="unknown gamma"):
        STATEMENTS["lemma-5"](eps=0.1, rho=0.1, gamma=1)


def test_contradiction_by_sense():
    upper, lower = STATEMENTS["lemma-5"], STATEMENTS["theorem-6-transfer"]
    implication, strict = STATEMENTS["lemma-7"], STATEMENTS["lemma-8"]
    assert upper.contradicted_by(0.4, 0.3)
    assert not upper.contradicted_by(0.3, 0.3)
    assert not upper.contradicted_by(0.4, 0.3, tolerance=0.2)
    assert lower.contradicted_by(0.2, 0.3)
    assert not lower.contradicted_by(0.4, 0.3)
    assert implication.contradicted_by(0.2, 0.3)
    assert strict.contradicted_by(0.0, 0.0)
    assert not strict.contradicted_by(-0.1, 0.0)


def test_latex_reads_like_the_paper():
    assert STATEMENTS["theorem-3"].latex() == (
        r"\Pr(T_r(\mathcal F, \mathcal G, x, y_t) = 1) \le \frac{\xi_{\mathcal F} + \xi_{\mathcal G}}"
        r"{\ell_{\min} - \beta \epsilon^{2} - B \epsilon \left(1 + \sqrt{\frac{1 + \overline{S}}{2}}\right)}"
    )
    assert STATEMENTS["theorem-6"].latex().endswith(r"\le \delta + \rho + 4 \epsilon")
    assert " < " in STATEMENTS["lemma-8"].latex()
    assert r" \le " in STATEMENTS["lemma-8-repaired"].latex()


def test_terms_survive_an_overflow():
    """A denominator of almost zero sends the value to infinity, and the terms still sum to it."""
    terms = STATEMENTS["theorem-3"].term_values(
        xi_F=1e308, xi_G=1.0, l_min=1.5, eps=1.0, B=1.0, S_upper=-1.0, beta=0.5 - 1e-16
    )
    assert sum(terms.values()) == np.inf


def parts(**changes):
    x = STATEMENTS["refined-r2"].quantities[0]
    return {
        "id": "mine", "title": "Mine", "variant": Variant.REFINED, "sense": Sense.UPPER, "source": "me",
        "claim": "c.", "subject": "s", "expression": x.symbol, "quantities": (x,), "hypotheses": (),
        "verdict": Verdict.TRUE, "reason": "r.", "terms": (Term("all"),), "trends": {}, **changes,
    }  # fmt: skip


def test_a_definition_of_ones_own():
    mine = Statement(**parts())
    assert mine(uncertified_rate=0.25) == 0.25
    assert mine.trivial == 1
    assert Statement(**parts(sense=Sense.LOWER)).trivial == 0


def test_representation_is_short():
    assert repr(THEOREM_3) == "Statement('theorem-3')"


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mine: expected a quantity for every symbol, got none for \['z'\]"):
        Statement(**parts(expression=sympy.Symbol("z", real=True)))
    with pytest.raises(ValueError, match="got none for"):
        Statement(**parts(hypotheses=(Hypothesis("z", sympy.Symbol("z", real=True) > 0),)))
    with pytest.raises(ValueError, match="expected trends of its quantities"):
        Statement(**parts(trends={"z": Trend.INCREASING}))
    x = STATEMENTS["refined-r2"].quantities[0]
    with pytest.raises(ValueError, match="last term that holds no quantity"):
        Statement(**parts(terms=(Term("all", {x: 0}),)))
    with pytest.raises(ValueError, match="expected a hypothesis with a predicate"):
        _ = Hypothesis("words only").margin
