"""Theorems 3 and 4 and their refinements: formulas, extremal families, dominance."""

import math

import numpy as np
import pytest

from bounds import STATEMENTS, Status, evaluate

THEOREM_3, REPAIRED_3, R3 = (STATEMENTS[key] for key in ("theorem-3", "theorem-3-repaired", "refined-r3"))
REPAIRED_4, R3_UNTARGETED = STATEMENTS["theorem-4-repaired"], STATEMENTS["refined-r3-untargeted"]
PRINTED = [f"theorem-{n}{suffix}" for n in (3, 4) for suffix in ("", "-repaired")]


def random_quantities(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "xi_F": rng.uniform(0, 2, size),
        "xi_G": rng.uniform(0, 2, size),
        "l_min": rng.uniform(0, 9, size),
        "eps": rng.uniform(0, 1.5, size),
        "B": rng.uniform(0, 2, size),
        "S_upper": rng.choice([-1, 1, *rng.uniform(-1, 1, 50)], size),
        "beta": rng.uniform(0, 2, size),
    }


def half(q):
    return np.sqrt((1 + q["S_upper"]) / 2)


@pytest.mark.parametrize("key", PRINTED)
def test_theorems_3_and_4_are_the_printed_formula(key):
    q = random_quantities(1000)
    denominator = q["l_min"] - q["eps"] * q["B"] * (1 + half(q)) - q["beta"] * q["eps"] ** 2
    holds = denominator > 0
    np.testing.assert_array_equal(STATEMENTS[key].applicable(**q), holds)
    np.testing.assert_allclose(
        STATEMENTS[key](**q)[holds], ((q["xi_F"] + q["xi_G"]) / denominator)[holds], rtol=1e-9
    )


def test_r3_formula():
    q = random_quantities(1000)
    drop = 2 * q["eps"] * q["B"] * np.maximum(half(q), 0.5) + q["beta"] * q["eps"] ** 2
    holds = q["l_min"] > drop
    expected = (q["xi_F"] + q["xi_G"]) / (2 * (q["l_min"] - drop))
    np.testing.assert_array_equal(R3.applicable(**q), holds)
    np.testing.assert_allclose(R3(**q)[holds], expected[holds], rtol=1e-9)


def test_r3_untargeted_formula():
    q = random_quantities(1000)
    summed = q["eps"] * q["B"] * (1 + np.maximum(half(q), 0.5)) + q["beta"] * q["eps"] ** 2
    with np.errstate(divide="ignore"):
        by_sum = np.where(q["l_min"] > summed, (q["xi_F"] + q["xi_G"]) / (2 * (q["l_min"] - summed)), np.inf)
    expected = np.minimum(by_sum, REPAIRED_4(**q))
    holds = REPAIRED_4.applicable(**q)
    np.testing.assert_array_equal(R3_UNTARGETED.applicable(**q), holds)
    np.testing.assert_allclose(R3_UNTARGETED(**q)[holds], expected[holds], rtol=1e-9)


def test_dominance():
    """R3 <= half of the repaired Theorem 3; R3' <= the repaired Theorem 4, half of it from S = -1/2 on."""
    q = random_quantities(20_000)
    holds = REPAIRED_3.applicable(**q)
    assert np.all(R3(**q)[holds] <= REPAIRED_3(**q)[holds] / 2 * (1 + 1e-12))
    assert np.all(R3_UNTARGETED(**q)[holds] <= REPAIRED_4(**q)[holds] * (1 + 1e-12))
    similar = holds & (q["S_upper"] >= -0.5)
    np.testing.assert_allclose(R3_UNTARGETED(**q)[similar], REPAIRED_4(**q)[similar] / 2, rtol=1e-9)
    assert np.any(R3_UNTARGETED(**q)[holds] > REPAIRED_4(**q)[holds] / 2 * 1.01)
    assert np.all(R3(**q)[holds] <= R3_UNTARGETED(**q)[holds] * (1 + 1e-12))


@pytest.mark.parametrize("s", [-0.5, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_sharp_family_of_theorem_3(s, beta):
    """Loss L - r* + tau at the true label, L at the target, always transfers: R3 is 1, printed 2."""
    drop, tau = 2 * math.sqrt((1 + s) / 2) + beta, 1e-9
    q = {
        "l_min": 10.0,
        "eps": 1.0,
        "B": 1.0,
        "S_upper": s,
        "beta": beta,
        "xi_F": 10 - drop + tau,
        "xi_G": 10 - drop + tau,
    }
    assert R3(**q) == pytest.approx(1.0, abs=1e-6)
    assert R3(**q) >= 1.0
    assert 2.0 <= THEOREM_3(**q) <= 2.4


@pytest.mark.parametrize(("s", "printed"), [(-1.0, 0.2), (0.0, 0.2071), (0.9, 0.2006)])
def test_non_vacuous_family_of_theorem_3(s, printed):
    """A tenth of the points as in the sharp family, the rest without loss: R3 = .1, the true rate."""
    drop = 2 * max(math.sqrt((1 + s) / 2), 0.5)
    q = {"l_min": 10.0, "eps": 1.0, "B": 1.0, "S_upper": s, "beta": 0.0, "xi_F": 0.1 * (10 - drop)}
    q["xi_G"] = q["xi_F"]
    assert evaluate("refined-r3", q).value == pytest.approx(0.1, abs=1e-12)
    assert evaluate("theorem-3", q).value == pytest.approx(printed, abs=5e-5)
    assert evaluate("theorem-3", q).status is Status.INFORMATIVE


@pytest.mark.parametrize("s", [-0.5, 0.0, 1.0])
def test_half_family_of_theorem_4(s):
    drop = 1 + math.sqrt((1 + s) / 2)
    q = {"l_min": 10.0, "eps": 1.0, "B": 1.0, "S_upper": s, "beta": 0.0, "xi_F": 10 - drop, "xi_G": 10 - drop}
    assert evaluate("theorem-4", q).value == pytest.approx(2.0, abs=1e-12)
    assert evaluate("refined-r3-untargeted", q).value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("e", [1e-3, 1e-6])
def test_three_labels_with_opposite_gradients(e):
    """Theorem 4 is sharp there: 1 + 4e against a true rate of 1; half of it is no bound, R3' is."""
    q = {"xi_F": 1 + 2 * e, "xi_G": 2 * e, "l_min": 2.0, "eps": 1.0, "B": 1.0, "S_upper": -1.0, "beta": 0.0}
    assert evaluate("theorem-4", q).value == pytest.approx(1 + 4 * e, abs=1e-12)
    assert evaluate("refined-r3-untargeted", q).value >= 1.0


def test_errata_3_and_4_are_blocked():
    third = {"xi_F": 1.0, "xi_G": 1.0, "l_min": 2.0, "eps": 1.0, "B": 2.0, "S_upper": 1.0, "beta": 0.0}
    fourth = {"xi_F": -47.0, "xi_G": -47.0, "l_min": 3.4, "eps": 1.0, "B": 1.0, "S_upper": 1.0, "beta": 0.0}
    for quantities, printed in ((third, -1.0), (fourth, -470 / 7)):
        assert STATEMENTS["theorem-4"].formula(**quantities) == pytest.approx(printed)
        assert evaluate("theorem-4", quantities).status is Status.INAPPLICABLE


def test_r4_formula_and_its_agreement_with_r3():
    q = {
        "xi_F": 0.2,
        "xi_G": 0.3,
        "l_min_F": 4.0,
        "l_min_G": 5.0,
        "eps": 0.5,
        "mixed_gradient": 1.5,
        "beta": 0.4,
    }
    expected = (0.25 * 0.2 + 0.75 * 0.3) / (0.25 * 4 + 0.75 * 5 - 0.5 * 1.5 - 0.4 * 0.25)
    assert evaluate("refined-r4", {**q, "weight": 0.25}).value == pytest.approx(expected, rel=1e-14)
    s, same = 0.3, {"xi_F": 0.2, "xi_G": 0.3, "eps": 0.5, "beta": 0.4}
    worst = 2 * math.sqrt((1 + s) / 2)  # half of the largest sum of two margin gradients with B = 1
    mixed = evaluate(
        "refined-r4", {**same, "weight": 0.5, "l_min_F": 4.0, "l_min_G": 4.0, "mixed_gradient": worst}
    )
    assert mixed.value == pytest.approx(
        evaluate("refined-r3", {**same, "l_min": 4.0, "B": 1.0, "S_upper": s}).value
    )


def test_r4_with_all_weight_on_one_model_bounds_its_robust_error():
    q = {
        "weight": 1.0,
        "xi_F": 0.2,
        "xi_G": 9.0,
        "l_min_F": 4.0,
        "l_min_G": -9.0,
        "eps": 0.0,
        "mixed_gradient": 1.0,
        "beta": 0.0,
    }
    assert evaluate("refined-r4", q).value == pytest.approx(0.2 / 4)


def test_cantelli_formula():
    q = {
        "right_rate": 0.9,
        "margin_mean": 12.0,
        "margin_deviation": 1.5,
        "eps": 0.5,
        "B": 2.0,
        "S_upper": 0.28,
        "beta": 1.0,
    }
    rest = 12 - 2 * (2 * 0.5 * 2 * 0.8 + 0.25)
    assert evaluate("refined-cantelli", q).value == pytest.approx(0.9 * 2.25 / (2.25 + rest**2), rel=1e-13)
    opposite = evaluate("refined-cantelli", {**q, "S_upper": -1.0}).value
    rest = 12 - 2 * (2 * 0.5 * 2 * 0.5 + 0.25)
    assert opposite == pytest.approx(0.9 * 2.25 / (2.25 + rest**2), rel=1e-13)
    assert evaluate("refined-cantelli", {**q, "margin_mean": 3.6}).status is Status.INAPPLICABLE
    assert evaluate("refined-cantelli", {**q, "margin_deviation": 0.0}).value == 0.0


def test_cantelli_holds_for_random_margins():
    """Pr(sum of margins <= 2 r*) on random finite distributions never exceeds it."""
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(500):
        margins = rng.choice([rng.normal(2, 2, 6), rng.exponential(2, 6)])
        q = {"right_rate": 1.0, "margin_mean": margins.mean(), "margin_deviation": margins.std(), "B": 1.0}
        q |= {"eps": rng.uniform(0, 0.3), "S_upper": rng.uniform(-1, 1), "beta": rng.uniform(0, 1)}
        bound = evaluate("refined-cantelli", q)
        if bound.value is not None:
            drop = 2 * q["eps"] * max(math.sqrt((1 + q["S_upper"]) / 2), 0.5) + q["beta"] * q["eps"] ** 2
            assert (margins <= 2 * drop).mean() <= bound.value + 1e-12
            checked += 1
    assert checked > 200


@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_r5_is_attained_by_orthogonal_gradients(count):
    """N orthogonal unit gradients sum to sqrt(N): a step along the sum costs 2 eps / sqrt(N) each."""
    drop = 2 / math.sqrt(count)
    q = {
        "N": count,
        "xi_sum": count * (5 - drop),
        "l_min": 5.0,
        "eps": 1.0,
        "B": 1.0,
        "S_upper": 0.0,
        "beta": 0.0,
    }
    assert evaluate("refined-r5", q).value == pytest.approx(1.0, rel=1e-12)
    assert evaluate("refined-r5", {**q, "S_upper": -0.9}).value == pytest.approx(1.0, rel=1e-12)


def test_r5_formula_and_its_agreement_with_r3_for_two_models():
    q = {"l_min": 6.0, "eps": 0.5, "B": 1.5, "S_upper": 0.4, "beta": 0.7}
    three = 2 * 0.5 * 1.5 * math.sqrt((1 + 2 * 0.4) / 3) + 0.7 * 0.25
    assert evaluate("refined-r5", {**q, "N": 3, "xi_sum": 0.9}).value == pytest.approx(
        0.9 / (3 * (6 - three))
    )
    pair = evaluate("refined-r3", {**q, "xi_F": 0.3, "xi_G": 0.2}).value
    assert evaluate("refined-r5", {**q, "N": 2, "xi_sum": 0.5}).value == pytest.approx(pair)


def test_uncertified_rate_is_its_own_bound():
    assert evaluate("refined-r2", {"uncertified_rate": 0.3}).guaranteed == 0.3
    assert evaluate("refined-r2", {"uncertified_rate": 1.0}).status is Status.VACUOUS


def test_terms_name_what_each_factor_adds():
    """At opposite gradients similarity adds nothing, at beta 0 smoothness adds nothing, and so on."""
    q = {"xi_F": 0.1, "xi_G": 0.1, "l_min": 5.0, "eps": 1.0, "B": 1.0, "S_upper": 0.5, "beta": 0.5}
    terms = evaluate("theorem-3", q).terms
    assert list(terms) == ["risks", "gradient size", "similarity", "smoothness"]
    assert all(term > 0 for term in terms.values())
    assert terms["risks"] == pytest.approx(0.2 / 5)
    assert evaluate("theorem-3", {**q, "S_upper": -1.0}).terms["similarity"] == 0
    assert evaluate("theorem-3", {**q, "beta": 0.0}).terms["smoothness"] == 0
    assert evaluate("theorem-3", {**q, "B": 0.0}).terms["gradient size"] == 0


def test_r4_r5_and_cantelli_apply_exactly_where_their_proofs_do():
    rng = np.random.default_rng(6)
    q = random_quantities(4000, seed=7)
    ball = {name: q[name] for name in ("eps", "B", "S_upper", "beta")}
    curved = q["beta"] * q["eps"] ** 2

    weight, l_f, l_g, mixed = rng.random(4000), rng.uniform(-1, 4, 4000), rng.uniform(-1, 4, 4000), q["B"]
    applicable = STATEMENTS["refined-r4"].applicable(
        weight=weight, l_min_F=l_f, l_min_G=l_g, mixed_gradient=mixed,
        **{name: q[name] for name in ("xi_F", "xi_G", "eps", "beta")},
    )  # fmt: skip
    np.testing.assert_array_equal(applicable, weight * l_f + (1 - weight) * l_g > q["eps"] * mixed + curved)

    drop = 2 * q["eps"] * q["B"] * np.maximum(half(q), 0.5) + curved
    applicable = STATEMENTS["refined-cantelli"].applicable(
        right_rate=0.5, margin_mean=q["l_min"], margin_deviation=1.0, **ball
    )
    np.testing.assert_array_equal(applicable, q["l_min"] > 2 * drop)

    count = rng.integers(2, 9, 4000)
    spread = np.sqrt((1 + (count - 1) * np.maximum(q["S_upper"], 0)) / count)
    applicable = STATEMENTS["refined-r5"].applicable(N=count, xi_sum=q["xi_F"], l_min=q["l_min"], **ball)
    np.testing.assert_array_equal(applicable, q["l_min"] > 2 * q["eps"] * q["B"] * spread + curved)
