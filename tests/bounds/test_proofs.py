"""Every proof proves, and no weakened constant is proved with it."""

from dataclasses import replace

import numpy as np
import pytest
import sympy
import z3

from bounds import STATEMENTS, Statement, prove
from bounds.proofs import PROOFS, Verdict, prove_all
from bounds.proofs.engine import Identity, Step, run
from bounds.proofs.translate import Translation
from bounds.upper import b, beta, half_angle, l_min, s_upper, xi_F, xi_G
from bounds.worlds import LabelShift

eps, rho, delta = sympy.symbols("eps rho delta", real=True)
alpha, c_F, c_G, s_lower = sympy.symbols("alpha c_F c_G S_lower", real=True)
cosine, d_y, c = sympy.symbols("cosine d_y c", real=True)


def mutant(name: str, expression: sympy.Expr) -> Statement:
    return replace(STATEMENTS[name], expression=expression)


def weaker(name: str, factor: str) -> Statement:
    return mutant(name, STATEMENTS[name].expression * sympy.Rational(factor))


def upper(name: str, denominator: sympy.Expr) -> Statement:
    return mutant(name, (xi_F + xi_G) / denominator)


@pytest.mark.slow
def test_each_proof_ends_as_expected_and_none_is_vacuous_or_unknown() -> None:
    """The whole set: the true are proved, the false refuted with a model, all hypotheses satisfiable."""
    proofs = prove_all()
    assert {name: proof.verdict for name, proof in proofs.items()} == {
        name: task.expected for name, task in PROOFS.items()
    }
    assert all(proof.satisfiable for proof in proofs.values())
    assert all(
        (proof.counterexample is None) == (proof.verdict is Verdict.PROVED) for proof in proofs.values()
    )
    assert sum(proof.seconds for proof in proofs.values()) < 300


def test_the_false_ones_are_the_known_five() -> None:
    """What is expected to be refuted is listed here, so that nothing turns false unnoticed."""
    assert {name for name, task in PROOFS.items() if task.expected is not Verdict.PROVED} == {
        "lemma-8",
        "implication-beta-lower-bare",
        "implication-radius-increasing",
        "implication-radius-decreasing",
        "implication-upper-across-zero",
    }


def test_every_statement_has_a_proof() -> None:
    """No statement is without a machine-checked part, and every proof is about a statement that exists."""
    assert set(STATEMENTS) <= set(PROOFS)
    assert {task.statement for task in PROOFS.values()} <= set(STATEMENTS)


def test_a_proof_says_what_was_proved() -> None:
    """Formula, engine, witness and scope are filled in."""
    proof = prove("lemma-7")
    assert proof.verdict is Verdict.PROVED
    assert proof.engine.startswith("z3 ")
    assert "nonlinear real arithmetic" in proof.engine
    assert "|-" in proof.formula
    assert "delta.x" in proof.formula
    assert proof.witness["Lemma 7"]["eps"] != "0"
    assert proof.seconds > 0
    assert "any dimension" in proof.scope


def test_lemma_8_is_refuted_at_delta_zero() -> None:
    """The solver's own counterexample to the printed Lemma 8 is the zero perturbation."""
    proof = prove("lemma-8")
    assert proof.verdict is Verdict.REFUTED
    assert proof.counterexample is not None
    assert proof.counterexample["delta.delta"] == "0"


def test_theorem_1_is_proved_vacuous() -> None:
    """V1 holds for the printed formula; with the repaired reading of c_G the step at one point would not."""
    assert prove("theorem-1-vacuous").verdict is Verdict.PROVED
    larger = mutant("theorem-1", STATEMENTS["theorem-1"].expression + alpha)
    claimed = PROOFS["theorem-1-vacuous"].steps(larger)[-1]
    assert run(claimed).verdict is Verdict.REFUTED


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("lemma-5", eps + rho),
        ("lemma-5", 2 * eps + rho / 2),
        ("theorem-6", delta + 3 * eps + rho),
        ("theorem-6", delta + 4 * eps),
        ("theorem-6-def2", delta + eps + rho),
        ("theorem-6-mixed", delta + 2 * eps + rho),
        ("theorem-6-transfer", 1 - delta - 3 * eps - rho),
        ("theorem-6-transfer", 1 - delta / 2 - 4 * eps - rho),
        ("lemma-7", d_y - c - eps * sympy.sqrt(2 - 2 * cosine) / 2),
        ("lemma-7-mirror", c - d_y - eps * (1 - cosine)),
    ],
)
def test_weakened_constants_are_refuted(name: str, expression: sympy.Expr) -> None:
    """A formula that claims more than the statement is not proved by the statement's steps."""
    assert prove(mutant(name, expression)).verdict is Verdict.REFUTED


def drop(factor: sympy.Expr, curved: sympy.Expr) -> sympy.Expr:
    return eps * b * factor + curved * eps**2


SHARP = sympy.Max(half_angle, sympy.Rational(1, 2))


@pytest.mark.parametrize(
    "statement",
    [
        upper("theorem-3", l_min - drop(sympy.Integer(1), beta)),
        upper("theorem-3", l_min - drop(1 + s_upper, beta)),
        upper("theorem-4", l_min - drop(1 + half_angle, beta / 2)),
        upper("theorem-4", l_min - drop((1 + half_angle) / 2, beta / 4)),
        upper("refined-r3", 2 * (l_min - drop(2 * half_angle, beta))),
        upper("refined-r3", 2 * (l_min - drop(2 * SHARP, beta / 2))),
        upper("refined-r3-untargeted", 2 * (l_min - drop(1 + half_angle, beta))),
        weaker("theorem-3", "1/4"),
        weaker("theorem-4-repaired", "1/2"),
        weaker("refined-r4", "9/10"),
        weaker("refined-cantelli", "9/10"),
        weaker("refined-r5", "9/10"),
        weaker("refined-r8", "9/10"),
        weaker("lemma-8-repaired", "9/10"),
        weaker("lemma-7-angular", "11/10"),
        mutant("theorem-1", STATEMENTS["theorem-1"].expression + alpha),
        mutant("theorem-2", STATEMENTS["theorem-2"].expression + alpha),
        mutant("refined-r6", STATEMENTS["refined-r6"].expression + alpha),
    ],
    ids=lambda statement: f"{statement.id}: {statement.expression}",
)
def test_weakened_bounds_are_refuted(statement: Statement) -> None:
    """Without h, with S for h, half of beta or eps, or a smaller factor, the steps no longer reach it."""
    assert prove(statement).verdict is Verdict.REFUTED


@pytest.mark.parametrize(("name", "lowered"), [("theorem-6", delta + 3 * eps + rho), ("lemma-5", eps + rho)])
def test_a_refuting_joint_law_is_that_of_a_map(name: str, lowered: sympy.Expr) -> None:
    """The solver's model over label types becomes a finite world whose attack breaks the mutant."""
    model = prove(mutant(name, lowered)).steps[0].counterexample
    assert model is not None
    world = _as_map({key[1:]: value for key, value in model.items() if key.startswith("p")})
    numbers = world.quantities(name)
    mutated = float(lowered.subs({sympy.Symbol(key, real=True): value for key, value in numbers.items()}))
    assert world.subject(name) > mutated + 1e-9
    assert world.subject(name) <= float(STATEMENTS[name].formula(**numbers)) + 1e-9


def _as_map(law: dict[str, str]) -> LabelShift:
    """Equally likely inputs; those moved to a type are spread evenly over its inputs, adding no shift."""
    masses = {kind: sympy.Rational(mass) for kind, mass in law.items() if sympy.Rational(mass) > 0}
    inputs = int(sympy.ilcm(*(mass.q for mass in masses.values())))
    kinds = [kind for kind, mass in masses.items() for _ in range(int(mass * inputs))]
    labels = np.array([[int(label) for label in kind] for kind in kinds])
    f, g, truth = labels[:, 0], labels[:, 1], labels[:, 2]
    # A type that inputs are only moved to gets an input of probability zero.
    missing = {tuple(row[3:]) for row in labels} - set(zip(f, g, strict=True))
    extra = np.array([(*move, move[0]) for move in missing], dtype=int).reshape(-1, 3)
    f, g, truth = (np.append(old, new) for old, new in zip((f, g, truth), extra.T, strict=True))
    attack, used = np.zeros(inputs, dtype=int), dict.fromkeys({tuple(row[3:]) for row in labels}, 0)
    for index, row in enumerate(labels):
        places = np.flatnonzero((f == row[3]) & (g == row[4]))
        attack[index] = places[used[tuple(row[3:])] % places.size]
        used[tuple(row[3:])] += 1
    weight = np.append(np.full(inputs, 1.0 / inputs), np.zeros(len(extra)))
    return LabelShift(weight, truth, f, g, np.append(attack, np.zeros(len(extra), dtype=int)))


def test_contradictory_hypotheses_are_reported() -> None:
    """A proof from hypotheses that cannot hold is flagged, not sold."""
    x = z3.Real("x")
    result = run(Step("empty", [x > 1, x < 0], x == 5))
    assert result.verdict is Verdict.PROVED
    assert not result.satisfiable


def test_what_takes_too_long_is_unknown() -> None:
    """A question that the solver cannot answer in time is neither proved nor refuted."""
    x, y, z = z3.Ints("x y z")
    cubes = Step("sum of cubes", [], x * x * x + y * y * y + z * z * z != 114)
    assert run(cubes, timeout=0.2).verdict is Verdict.UNKNOWN


def test_identities_are_told_apart() -> None:
    """An identity is proved, a constant difference refuted, an undecided one unknown."""
    x = sympy.Symbol("x", real=True)
    assert run(Identity("yes", (x + 1) ** 2, x**2 + 2 * x + 1)).verdict is Verdict.PROVED
    assert run(Identity("no", x + 1, x)).verdict is Verdict.REFUTED
    assert run(Identity("who knows", x**2, x)).verdict is Verdict.UNKNOWN


def test_the_translation_refuses_what_it_does_not_know() -> None:
    """An operation without a solver term is an error, not an approximation."""
    with pytest.raises(TypeError, match="expected sums"):
        Translation().term(sympy.exp(eps))
    with pytest.raises(TypeError, match="half-integer power"):
        Translation().term(eps ** sympy.Rational(1, 3))


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_the_translation_agrees_with_the_numbers(name: str) -> None:
    """At a rational point the solver's value of a statement's formula is the numeric one."""
    statement = STATEMENTS[name]
    point = {"eps": "1/4", "N": "3", "a": "1/2", "b": "1", "l_min": "4", "l_min_F": "4", "l_min_G": "3"}
    point |= {"c_F": "-1/8", "c_G": "1/8", "d_y": "1/8", "margin_mean": "5", "S_upper": "1/8", "c": "-1"}
    point = {name: point.get(name, "1/16") for name in statement.names}
    translation = Translation()
    value = z3.Real("value")
    term = translation.term(sympy.sympify(statement.expression))
    solver = z3.Solver()
    solver.add(value == term, *translation.conditions)
    solver.add(*(z3.Real(key) == z3.RealVal(number) for key, number in point.items()))
    assert solver.check() == z3.sat
    found = solver.model()[value]
    number = found.approx(20).as_fraction() if z3.is_algebraic_value(found) else found.as_fraction()
    numeric = statement.formula(**{key: float(sympy.Rational(n)) for key, n in point.items()})
    assert float(number) == pytest.approx(float(numeric), abs=1e-12)


def test_an_unknown_id_is_an_error_that_names_it() -> None:
    """There is no proof of what is not there."""
    with pytest.raises(ValueError, match="theorem-99"):
        prove("theorem-99")
