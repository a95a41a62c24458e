"""Estimates: intervals, directions, Clopper-Pearson, and the way to JSON and back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bounds import Estimate

numbers = st.floats(allow_nan=False)


@given(trials=st.integers(1, 400), data=st.data(), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_proportion_is_the_exact_binomial_interval(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    estimate = Estimate.proportion(successes, trials, confidence=confidence)
    expected = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert estimate.value == successes / trials
    assert estimate.lower == pytest.approx(expected.low, abs=1e-9)
    assert estimate.upper == pytest.approx(expected.high, abs=1e-9)
    assert estimate.failure_probability == pytest.approx(1 - confidence)


@given(ends=st.tuples(numbers, numbers).map(sorted), value=numbers)
def test_json_keeps_everything_and_is_strict(ends, value):
    estimate = Estimate(value, *ends, failure_probability=0.25, method="drawn", samples=3, seed=7)
    text = json.dumps(estimate.to_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == estimate


@given(st.lists(st.tuples(numbers, numbers).map(sorted), min_size=1, max_size=4))
def test_largest_contains_the_largest_of_any_truths(intervals):
    estimates = [Estimate(low, low, high, failure_probability=0.1) for low, high in intervals]
    largest = Estimate.largest(estimates)
    for end in (0, 1):
        truth = max(interval[end] for interval in intervals)
        assert largest.lower <= truth <= largest.upper
    assert largest.failure_probability == pytest.approx(0.1 * len(intervals))


def test_directions():
    assert (Estimate.exact(2.0).lower, Estimate.exact(2.0).upper) == (2.0, 2.0)
    assert (Estimate.at_least(2.0, "seen").lower, Estimate.at_least(2.0, "seen").upper) == (2.0, math.inf)
    assert (Estimate.at_most(2.0, "seen").lower, Estimate.at_most(2.0, "seen").upper) == (-math.inf, 2.0)
    assert Estimate.exact(2.0).is_exact
    assert not Estimate.at_least(2.0, "seen").is_exact


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Estimate(math.nan, 0, 1), "NaN"),
        (lambda: Estimate(0, 1, 0), "lower <= upper"),
        (lambda: Estimate(0, 0, 1, failure_probability=1.5), "failure_probability"),
        (lambda: Estimate.proportion(0, 0), "at least one trial"),
        (lambda: Estimate.proportion(3, 2), "between 0 and 2"),
        (lambda: Estimate.proportion(1, 2, confidence=1.0), "confidence"),
        (lambda: Estimate.largest([]), "at least one"),
    ],
)
def test_bad_input_names_what_was_expected(make, words):
    with pytest.raises(ValueError, match=words):
        make()
