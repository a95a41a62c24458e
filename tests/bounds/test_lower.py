"""Theorems 1 and 2, repaired and replaced: formulas, extremal families, and what V1 and V2 say of them."""

import math

import numpy as np
import pytest

from bounds import STATEMENTS, Status, evaluate

THEOREM_1, THEOREM_2 = STATEMENTS["theorem-1"], STATEMENTS["theorem-2"]
PERFECT = {"alpha": 0.0, "eta_F": 0.0, "eta_G": 0.0, "eps": 1.0}


def random_quantities(size, seed):
    rng = np.random.default_rng(seed)
    return {
        "alpha": rng.uniform(0, 1, size),
        "eta_F": rng.uniform(0, 0.3, size),
        "eta_G": rng.uniform(0, 0.3, size),
        "eps": rng.uniform(0.1, 2, size),
        "S_lower": rng.uniform(-1, 1, size),
        "c_F": rng.normal(0, 2, size),
        "c_G": rng.normal(0, 2, size),
    }


def test_theorem_1_is_the_printed_formula():
    q = random_quantities(1000, 0)
    a, e, denominator = q["alpha"], q["eps"], q["c_G"] + q["eps"]
    expected = (
        (1 - a)
        - (q["eta_F"] + q["eta_G"])
        - (e * (1 + a) + q["c_F"] * (1 - a)) / denominator
        - e * (1 - a) / denominator * np.sqrt(2 - 2 * q["S_lower"])
    )
    np.testing.assert_allclose(THEOREM_1.formula(**q), expected, rtol=1e-10)
    np.testing.assert_array_equal(THEOREM_1.applicable(**q), denominator > 0)


def test_theorem_2_is_the_printed_formula():
    q = random_quantities(1000, 1)
    a, e, denominator = q["alpha"], q["eps"], q["eps"] - q["c_G"]
    expected = (
        (1 - a)
        - (q["eta_F"] + q["eta_G"])
        - (e * (1 + a) - q["c_F"] * (1 - a)) / denominator
        - e * (1 - a) / denominator * np.sqrt(2 - 2 * q["S_lower"])
    )
    np.testing.assert_allclose(THEOREM_2.formula(**q), expected, rtol=1e-10)
    np.testing.assert_array_equal(THEOREM_2.applicable(**q), denominator > 0)


def test_theorem_2_family():
    """l_F = (x, .991 - x/1000), l_G = (x, .011 - x/1000), one step of +1: .98990 against a true rate of 1."""
    bound = evaluate("theorem-2", {**PERFECT, "S_lower": 1.0, "c_F": 0.99, "c_G": 0.01})
    assert bound.value == pytest.approx(0.98990, abs=1e-5)
    assert bound.value == pytest.approx(98 / 99, abs=1e-12)


def test_errata_are_blocked_and_their_printed_values_reproduced():
    """Errata 1 and 2: past a negative denominator the formulas claim 1 and 8/7; nothing transfers."""
    first = {**PERFECT, "S_lower": 1.0, "c_F": -1.0, "c_G": -7.0}
    second = {**PERFECT, "S_lower": 1.0, "c_F": 0.0, "c_G": 8.0}
    assert THEOREM_1.formula(**first) == 1.0
    assert THEOREM_2.formula(**second) == pytest.approx(8 / 7)
    assert evaluate("theorem-1", first).status is Status.INAPPLICABLE
    assert evaluate("theorem-2", second).status is Status.INAPPLICABLE


def test_positive_constant_does_not_make_the_bound_positive():
    """Erratum 8: C = 1 and k > 0, and yet the value is -1."""
    assert evaluate(
        "theorem-1", {**PERFECT, "S_lower": 0.5, "c_F": -1.0, "c_G": -0.5}
    ).value == pytest.approx(-1)


def test_repaired_theorem_1_reaches_one():
    """F = G affine in one dimension and a perfect attack: c_F = -eps, and c_G above it."""
    bound = evaluate("theorem-1-repaired", {**PERFECT, "S_lower": 1.0, "c_F": -1.0, "c_G": 0.5})
    assert bound.value == 1.0
    assert bound.statement.latex() == THEOREM_1.latex()


def test_v1_at_formula_level():
    """With Lemma 7's t >= c_G and c_G <= eps, the printed Theorem 1 is at most -(alpha + eta_F + eta_G)."""
    q = random_quantities(200_000, 2)
    t = q["c_F"] + q["eps"] * np.sqrt(2 - 2 * q["S_lower"])
    forced = (t >= q["c_G"]) & (np.abs(q["c_G"]) < q["eps"])
    assert forced.sum() > 10_000
    ceiling = -(q["alpha"] + q["eta_F"] + q["eta_G"])
    assert np.all((THEOREM_1(**q) - ceiling)[forced] <= 1e-9)


def test_v2_at_formula_level():
    """Theorem 2 is positive only where R6 applies, and R6 is then at least as large.

    In a real world c_F <= eps: some point is fooled, and there f(x) <= delta . u_F.
    """
    q = random_quantities(200_000, 3)
    q["c_F"] = np.minimum(q["c_F"], q["eps"])
    value, refined = THEOREM_2(**q), STATEMENTS["refined-r6"](**q)
    positive = value > 0
    assert positive.sum() > 1000
    assert np.all(refined[positive] >= value[positive] - 1e-12)
    s = q["c_F"] - q["eps"] * np.sqrt(2 - 2 * q["S_lower"])
    np.testing.assert_array_equal(np.isfinite(refined), (s > q["c_G"]) | (q["c_G"] < -q["eps"]))
    np.testing.assert_allclose(
        refined[positive], (1 - q["alpha"] - q["eta_F"] - q["eta_G"])[positive], atol=1e-15
    )


def affine_world(rng):
    """Random affine losses on random atoms in the plane: values and gradients by (model, atom, label)."""
    atoms, labels = rng.integers(1, 6), rng.integers(2, 4)
    values = rng.normal(0, 1, (2, atoms, labels))
    gradients = np.repeat(rng.normal(0, 1, (1, atoms, labels, 2)), 2, axis=0)
    gradients[1] += rng.choice([0.0, 0.1, 1.0]) * rng.normal(0, 1, gradients[1].shape)
    steps = rng.normal(0, 1, (atoms, 2))
    steps /= np.maximum(1.0, np.linalg.norm(steps, axis=1, keepdims=True))
    attacked = values + np.einsum("malk,ak->mal", gradients, steps)
    return values, gradients, attacked


def cosines(gradients):
    """Cosine of the two models' gradients, shape (atoms,), from gradients (2, atoms, 2)."""
    lengths = np.linalg.norm(gradients, axis=-1)
    return np.clip((gradients[0] * gradients[1]).sum(-1) / lengths.prod(0), -1, 1), lengths


def targeted_quantities(world, label, target, *, others_only):
    values, gradients, attacked = world
    cosine, lengths = cosines(gradients[:, :, target])
    others = np.delete(attacked[1], target, axis=-1) if others_only else attacked[1]
    c_F = ((attacked[0].min(-1) - values[0, :, target]) / lengths[0]).max()
    c_G = ((others.min(-1) - values[1, :, target]) / lengths[1]).min()
    right = values.argmin(-1) == label
    fooled = attacked.argmin(-1) == target
    quantities = {
        "alpha": 1 - fooled[0].mean(),
        "eta_F": 1 - right[0].mean(),
        "eta_G": 1 - right[1].mean(),
        "eps": 1.0,
        "S_lower": cosine.min(),
        "c_F": c_F,
        "c_G": c_G,
    }
    return quantities, (right.all(0) & fooled.all(0)).mean()


def untargeted_quantities(world, label):
    values, gradients, attacked = world
    cosine, lengths = cosines(gradients[:, :, label])
    gap = (np.delete(attacked, label, axis=-1).min(-1) - values[:, :, label]) / lengths
    right = values.argmin(-1) == label
    fooled = attacked.argmin(-1) != label
    quantities = {
        "alpha": 1 - fooled[0].mean(),
        "eta_F": 1 - right[0].mean(),
        "eta_G": 1 - right[1].mean(),
        "eps": 1.0,
        "S_lower": cosine.min(),
        "c_F": gap[0].min(),
        "c_G": gap[1].max(),
    }
    return quantities, (right.all(0) & fooled.all(0)).mean(), (fooled[0] & ~fooled[1]).any()


@pytest.mark.slow
def test_theorem_1_on_affine_worlds():
    """Printed: true and never positive. Repaired: true, never below, and sometimes positive."""
    rng = np.random.default_rng(4)
    positive = 0
    for _ in range(4000):
        world = affine_world(rng)
        printed, transfer = targeted_quantities(world, 0, 1, others_only=False)
        repaired, _ = targeted_quantities(world, 0, 1, others_only=True)
        value, mended = THEOREM_1(**printed), STATEMENTS["theorem-1-repaired"](**repaired)
        if math.isfinite(value):
            risks = printed["alpha"] + printed["eta_F"] + printed["eta_G"]
            assert value <= (0 if printed["alpha"] == 1 else -risks) + 1e-9
            assert mended >= value - 1e-9
        if math.isfinite(mended):
            assert transfer >= mended - 1e-9
            positive += mended > 0
    assert positive >= 3


@pytest.mark.slow
def test_theorem_2_on_affine_worlds():
    """True, and positive only where every point that fools F fools G."""
    rng = np.random.default_rng(5)
    positive = 0
    for _ in range(4000):
        quantities, transfer, lost = untargeted_quantities(affine_world(rng), 0)
        value, refined = THEOREM_2(**quantities), STATEMENTS["refined-r6"](**quantities)
        if math.isfinite(value):
            assert transfer >= value - 1e-9
            positive += value > 0
            assert not (value > 0 and lost)
        if math.isfinite(refined):
            assert transfer >= refined - 1e-9
            assert not lost
    assert positive >= 3


def test_rates_are_their_own_bounds():
    assert evaluate("refined-r6-pointwise", {"linked_rate": 0.3}).guaranteed == 0.3
    assert evaluate("refined-r7", {"must_transfer_rate": 0.2}).value == 0.2
