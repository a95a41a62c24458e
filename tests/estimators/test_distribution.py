"""Rates, means and extremes: exact for the set itself, intervals or one-sided for what it is drawn from."""

import math

import pytest
import torch
from scipy.stats import binomtest

from estimators.distribution import Distribution

VALUES = torch.tensor([0.5, 0.25, 1.0, 0.75], dtype=torch.float64)
POPULATION = Distribution("population", 0.9)


def test_of_the_set_itself_everything_is_exact():
    about = Distribution("finite")
    found = [
        about.rate(VALUES > 0.6, "rate"),
        about.mean(VALUES, "mean"),
        about.supremum(VALUES, "largest"),
        about.infimum(VALUES, "smallest"),
    ]
    assert [estimate.value for estimate in found] == [0.5, 0.625, 1.0, 0.25]
    assert all(estimate.is_exact and "exact for this finite set" in estimate.method for estimate in found)


def test_rates_of_a_population_have_the_clopper_pearson_interval():
    found = POPULATION.rate(VALUES > 0.6, "rate")
    interval = binomtest(2, 4).proportion_ci(0.9, method="exact")
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_means_of_a_population_need_a_range():
    values = VALUES.repeat(100)
    found = POPULATION.mean(values, "mean", (0.0, 2.0))
    assert found.value == pytest.approx(0.625)
    assert 0.5 < found.lower < 0.625 < found.upper < 0.75
    assert found.failure_probability == pytest.approx(0.1)
    assert "certified to lie in [0, 2]" in found.method
    half_known = POPULATION.mean(values, "mean", (0.0, math.inf))
    assert 0.0 < half_known.lower < 0.625
    assert half_known.upper == math.inf
    assert "no distribution-free interval" in half_known.method
    with pytest.raises(ValueError):
        POPULATION.mean(values, "mean", (0.0, 0.5))


def test_extremes_of_a_population_err_to_the_inside_up_to_what_is_known():
    largest = POPULATION.supremum(VALUES, "largest", 3.0)
    assert (largest.lower, largest.value, largest.upper) == (1.0, 1.0, 3.0)
    smallest = POPULATION.infimum(VALUES, "smallest")
    assert (smallest.lower, smallest.value, smallest.upper) == (-math.inf, 0.25, 0.25)


def test_unknown_support_and_confidence_are_refused():
    with pytest.raises(ValueError, match="'finite' or 'population', got 'all'"):
        Distribution("all")
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\), got 1"):
        Distribution("population", 1)
