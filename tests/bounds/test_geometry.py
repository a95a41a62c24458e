"""Lemmas 7 and 8 and their sharp forms, on real vectors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from bounds import STATEMENTS, Status, evaluate

LEMMA_7, MIRROR, ANGULAR = (STATEMENTS[key] for key in ("lemma-7", "lemma-7-mirror", "lemma-7-angular"))
LEMMA_8, REPAIRED_8, R8 = (STATEMENTS[key] for key in ("lemma-8", "lemma-8-repaired", "refined-r8"))


def unit(rng, size, dimension):
    vectors = rng.normal(0, 1, (size, dimension))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(seed, size=20_000, dimension=3):
    """Unit x and y at all angles; delta of norm at most eps, often on the sphere and in their plane."""
    rng = np.random.default_rng(seed)
    x = unit(rng, size, dimension)
    y = unit(rng, size, dimension) + rng.choice([0, 3, -3], (size, 1)) * x
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    eps = rng.uniform(0.1, 2, size)
    mixed = rng.normal(0, 1, (size, 1)) * x + rng.normal(0, 1, (size, 1)) * y
    delta = np.where(rng.random((size, 1)) < 0.5, mixed, rng.normal(0, 1, (size, dimension)))
    length = np.where(rng.random(size) < 0.7, eps, eps * rng.random(size))
    delta *= (length / np.linalg.norm(delta, axis=1))[:, None]
    return x, y, delta, eps, np.clip((x * y).sum(1), -1, 1)


@pytest.mark.parametrize("statement", [LEMMA_7, MIRROR, ANGULAR], ids=lambda s: s.id)
def test_lemma_7_on_vectors(statement):
    x, y, delta, eps, cosine = vectors(0)
    along_y = np.clip((delta * y).sum(1), -eps, eps)
    c = np.random.default_rng(1).normal(0, 1, len(eps))
    margin = statement(d_y=along_y, c=c, eps=eps, cosine=cosine)
    holds = np.isfinite(margin)
    reached = (c - (delta * x).sum(1)) if statement is MIRROR else ((delta * x).sum(1) - c)
    assert holds.sum() > 1000
    assert np.all(margin[holds] > 0)
    # acos-like square roots lose half the digits where eps^2 - (delta . y)^2 vanishes
    assert np.all(reached[holds] >= margin[holds] - 1e-7)


def test_lemma_7_formula():
    q = {"d_y": 0.8, "c": -0.3, "eps": 1.5, "cosine": 0.82}
    assert evaluate("lemma-7", q).value == pytest.approx(0.8 + 0.3 - 1.5 * 0.6)
    assert evaluate("lemma-7", {**q, "c": 0.0}).status is Status.INAPPLICABLE
    q = {"d_y": -0.8, "c": 0.3, "eps": 1.5, "cosine": 0.82}
    assert evaluate("lemma-7-mirror", q).value == pytest.approx(0.8 + 0.3 - 1.5 * 0.6)


@pytest.mark.parametrize("eps", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cosine", [-1.0, -0.6, 0.0, 0.3, 1.0])
def test_angular_lemma_is_the_sum_of_two_angles_and_attained(eps, cosine):
    """In the plane, the delta with delta . y = d that turns away from x has the value as its delta . x."""
    angle = math.acos(cosine)
    for share in np.linspace(-1, 1, 21):
        value = float(ANGULAR.formula(d_y=share * eps, c=0.0, eps=eps, cosine=cosine))
        turned = math.acos(share) + angle
        expected = eps * math.cos(turned) if turned <= math.pi else -eps
        assert value == pytest.approx(expected, abs=1e-7)


def test_angular_lemma_is_never_weaker():
    x, y, delta, eps, cosine = vectors(2)
    q = {"d_y": np.clip((delta * y).sum(1), -eps, eps), "c": np.zeros(len(eps)), "eps": eps, "cosine": cosine}
    assert np.all(ANGULAR.formula(**q) >= LEMMA_7.formula(**q) - 1e-7)
    assert np.any(ANGULAR.formula(**q) >= LEMMA_7.formula(**q) + 0.1)
    assert len(x) == len(y)


def test_lemma_8_on_vectors():
    x, y, delta, _, cosine = vectors(3)
    s = np.clip(cosine + np.random.default_rng(4).choice([0.0, 0.01, 0.5], len(cosine)), -1, 1)
    length = np.linalg.norm(delta, axis=1)
    smaller = np.minimum((delta * x).sum(1), (delta * y).sum(1))
    assert np.all(smaller <= REPAIRED_8(delta_norm=length, S_upper=s, cosine=cosine) + 1e-12)
    strict = LEMMA_8(delta_norm=length, S_upper=s, cosine=cosine)
    assert np.all((smaller < strict)[s > cosine + 1e-9])
    assert np.isnan(strict[s <= cosine]).all()


def test_lemma_8_is_tight_along_the_sum():
    for cosine in (-0.9, -0.2, 0.0, 0.5, 1.0):
        x, y = np.array([1.0, 0.0]), np.array([cosine, math.sqrt(1 - cosine**2)])
        delta = 2 * (x + y) / np.linalg.norm(x + y)
        bound = evaluate("lemma-8-repaired", {"delta_norm": 2.0, "S_upper": cosine, "cosine": cosine})
        assert min(delta @ x, delta @ y) == pytest.approx(bound.value, abs=1e-12)


def test_lemma_8_fails_as_printed_at_zero():
    """Erratum 7: delta = 0 and x . y = -3/4 < S = -1/2 claim 0 < 0."""
    q = {"delta_norm": 0.0, "S_upper": -0.5, "cosine": -0.75}
    printed, repaired = evaluate("lemma-8", q), evaluate("lemma-8-repaired", q)
    assert printed.value == repaired.value == 0.0
    assert LEMMA_8.contradicted_by(0.0, printed.value)
    assert not REPAIRED_8.contradicted_by(0.0, repaired.value)


@given(a=st.floats(0.1, 2), extra=st.floats(0, 2), cosine=st.floats(-1, 0.999), eps=st.floats(0.1, 2))
def test_r8_is_the_distance_to_the_segment(a, extra, cosine, eps):
    b = a + extra
    g_1, g_2 = np.array([a, 0.0]), b * np.array([cosine, math.sqrt(1 - cosine**2)])
    nearest = minimize_scalar(
        lambda t: np.linalg.norm(g_1 + t * (g_2 - g_1)),
        bounds=(0, 1),
        method="bounded",
        options={"xatol": 1e-10},
    )
    distance = min(nearest.fun, a)
    value = evaluate("refined-r8", {"eps": eps, "a": a, "b": b, "cosine": cosine}).value
    assert value == pytest.approx(eps * distance, abs=1e-6)


def test_r8_is_attained_and_never_exceeded():
    rng = np.random.default_rng(5)
    for _ in range(50):
        g_1, g_2 = sorted(rng.normal(0, 1, (2, 3)), key=np.linalg.norm)
        a, b = np.linalg.norm(g_1), np.linalg.norm(g_2)
        cosine = g_1 @ g_2 / (a * b)
        value = evaluate("refined-r8", {"eps": 1.0, "a": a, "b": b, "cosine": cosine}).value
        steps = unit(rng, 2000, 3)
        assert np.minimum(steps @ g_1, steps @ g_2).max() <= value + 1e-12
        share = np.clip((a * a - g_1 @ g_2) / ((g_1 - g_2) @ (g_1 - g_2)), 0, 1)
        best = g_1 + share * (g_2 - g_1)
        best /= np.linalg.norm(best)
        assert min(best @ g_1, best @ g_2) == pytest.approx(value, abs=1e-12)


def test_r8_with_equal_norms_is_lemma_8():
    both = {"cosine": 0.3}
    r8 = evaluate("refined-r8", {**both, "eps": 0.7, "a": 1.0, "b": 1.0}).value
    assert r8 == pytest.approx(
        evaluate("lemma-8-repaired", {**both, "delta_norm": 0.7, "S_upper": 0.3}).value
    )


def test_r8_needs_the_shorter_vector_first():
    bound = evaluate("refined-r8", {"eps": 1.0, "a": 2.0, "b": 1.0, "cosine": 0.0})
    assert bound.status is Status.INAPPLICABLE
    assert "g_1 is the shorter" in bound.unmet[0]
    for length in (0.5, 1.0, 2.0):
        same = evaluate("refined-r8", {"eps": 1.0, "a": length, "b": length, "cosine": 1.0})
        assert "g_1 and g_2 differ" in same.unmet[0]


def test_premise_of_the_angular_lemma():
    rng = np.random.default_rng(6)
    d_y, c, eps, cosine = (
        rng.normal(0, 1, 4000),
        rng.normal(0, 1, 4000),
        rng.random(4000),
        rng.uniform(-1, 1, 4000),
    )
    inside = np.abs(d_y) <= eps
    turned = np.arccos(np.clip(d_y / eps, -1, 1)) + np.arccos(cosine)
    reached = eps * np.cos(np.minimum(turned, np.pi))
    sure = np.abs(reached - c) > 1e-9
    applicable = ANGULAR.applicable(d_y=d_y, c=c, eps=eps, cosine=cosine)
    np.testing.assert_array_equal(applicable[sure], (inside & (reached > c))[sure])
    assert applicable.sum() > 300


@pytest.mark.parametrize("statement", [LEMMA_8, REPAIRED_8], ids=lambda s: s.id)
def test_lemma_8_formula(statement):
    assert float(statement(delta_norm=1.5, S_upper=0.28, cosine=0.1)) == pytest.approx(1.5 * 0.8, rel=1e-15)
