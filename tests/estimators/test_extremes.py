"""Extreme-value extrapolation: right where theory says so, flagged where not, never an upper bound."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, genextreme, kstest, norm

from bounds import Estimate, Grade, evaluate
from estimators.extremes import CAVEAT, _fit, extrapolated_supremum

QUANTITIES = {"xi_F": 0.1, "xi_G": 0.1, "eps": 0.1, "B": 1.0, "S_upper": 0.5, "l_min": 2.0}


def uniform_maxima(n, seed=0):
    return np.random.default_rng(seed).random((n, 50)).max(1)


def p_value(estimate):
    return float(estimate.method.split("KS p = ")[1].split(")")[0])


def test_converges_to_the_endpoint_of_a_bounded_law():
    """Maxima of 50 draws of a beta(2, 2) law, which come nowhere near its endpoint 1."""
    errors = []
    for n in (50, 500, 5000):
        values = [
            extrapolated_supremum(np.random.default_rng(seed).beta(2, 2, (n, 50)).max(1)).value
            for seed in range(4)
        ]
        errors.append(np.mean(np.abs(np.array(values) - 1)))
    assert errors[2] < errors[0] / 2
    assert errors[2] < 0.01


def test_uniform_maxima_give_the_endpoint_far_better_than_the_largest_one():
    found = [extrapolated_supremum(uniform_maxima(100, seed) * 7) for seed in range(20)]
    seen = np.mean([abs(estimate.lower - 7) for estimate in found])
    assert np.mean([abs(estimate.value - 7) for estimate in found]) < 7 * 1e-3
    assert seen > 0
    assert all(estimate.lower <= estimate.value < math.inf for estimate in found)


@pytest.mark.parametrize("shape", [1.5, 1.0, 0.3, -0.3])
def test_the_fit_reproduces_the_parameters_and_the_moments(shape):
    samples = np.sort(genextreme.rvs(shape, 2, 3, size=100_000, random_state=1))
    assert [float(parameter) for parameter in _fit(samples)] == pytest.approx([shape, 2, 3], rel=0.03)
    few = samples[::2500]
    drawn = genextreme.ppf((np.arange(200_000) + 0.5) / 200_000, *_fit(few))
    spread = np.mean([high - low for low, high in combinations(few, 2)]) / 2
    lean = np.mean([high - 2 * middle + low for low, middle, high in combinations(few, 3)]) / 3
    ranks = (np.arange(200_000) + 0.5) / 200_000  # The same L-moments, as integrals of the quantile function.
    moments = [np.mean(drawn * weight) for weight in (1, 2 * ranks - 1, 6 * ranks**2 - 6 * ranks + 1)]
    assert moments == pytest.approx([few.mean(), spread, lean], rel=2e-3, abs=2e-3)


def test_heavy_tails_are_flagged():
    for seed in range(5):
        maxima = np.random.default_rng(seed).pareto(2.0, (300, 50)).max(1)
        found = extrapolated_supremum(maxima)
        assert (found.value, found.lower) == (math.inf, maxima.max())
        assert "no finite endpoint" in found.method


def test_tails_without_an_end_are_rarely_given_one():
    """Gumbel maxima have shape 0: an endpoint at the level of the test only."""
    rng = np.random.default_rng(3)
    samples = np.sort(rng.gumbel(size=(200, 60)))
    found = [extrapolated_supremum(sample).value for sample in samples]
    assert 0 < np.isfinite(found).sum() <= binom.ppf(0.9999, 200, 0.05)
    asymptotic = norm.cdf(_fit(samples).shape / math.sqrt(0.5633 / 60))
    assert np.array_equal(np.isfinite(found), asymptotic > 0.95)


def test_distance_is_that_of_kolmogorov_and_smirnov():
    samples = np.sort(np.random.default_rng(5).random((3, 30)))
    fit = _fit(samples)
    expected = [
        kstest(sample, genextreme(*parameters).cdf).statistic
        for sample, parameters in zip(samples, np.transpose(fit), strict=True)
    ]
    assert fit.distance(samples) == pytest.approx(expected)


def test_a_bad_fit_is_said_and_a_good_one_is_not_accused():
    rng = np.random.default_rng(4)
    two_humps = np.concatenate([rng.random(100), rng.random(100) + 5])
    assert p_value(extrapolated_supremum(two_humps)) < 0.01
    good = [
        p_value(extrapolated_supremum(genextreme.rvs(0.4, size=50, random_state=rng))) for _ in range(100)
    ]
    assert np.mean(np.array(good) < 0.2) == pytest.approx(0.2, abs=0.15)
    assert np.mean(good) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("maxima", [uniform_maxima(100), np.random.default_rng(1).pareto(2, 100)])
def test_it_is_never_an_upper_bound(maxima):
    found = extrapolated_supremum(maxima)
    assert found.upper == math.inf
    assert found.lower == maxima.max() <= found.value
    assert found.method.startswith(CAVEAT)
    assert Estimate.largest([found, Estimate.exact(1.0)]).upper == math.inf
    bound = evaluate("theorem-4", {**QUANTITIES, "beta": found})
    assert (bound.guaranteed, bound.grade) == (None, Grade.HEURISTIC)
    assert evaluate("theorem-4", {**QUANTITIES, "beta": Estimate.exact(1.0)}).grade is Grade.CERTIFIED


def test_the_endpoint_never_falls_below_what_was_seen():
    maxima = np.concatenate([uniform_maxima(200), [1.5]])
    assert _fit(np.sort(maxima)).endpoint < 1.5
    assert extrapolated_supremum(maxima).value in (1.5, math.inf)


def test_bad_maxima_are_named():
    with pytest.raises(ValueError, match=r"n >= 20, got shape \(19,\)"):
        extrapolated_supremum(np.arange(19.0))
    with pytest.raises(ValueError, match=r"got shape \(30, 2\)"):
        extrapolated_supremum(np.ones((30, 2)))
    with pytest.raises(ValueError, match="finite maxima, got 1"):
        extrapolated_supremum([*range(30), math.inf])
    with pytest.raises(ValueError, match=r"that differ, got 20 times 2.0"):
        extrapolated_supremum(np.full(20, 2.0))
