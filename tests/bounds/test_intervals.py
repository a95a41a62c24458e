"""Intervals for means of bounded variables and for many rates at once: they cover, and they are narrow."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from bounds import Estimate
from bounds.intervals import mean_interval, simultaneous_proportions

SIDES = ("both", "lower", "upper")


def width(estimate):
    return estimate.upper - estimate.lower


def hoeffding_width(n, confidence):
    return 2 * math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))


def empirical_bernstein_width(samples, confidence):
    """Width, before cutting to [0, 1], of Maurer and Pontil's interval (2009, Theorem 4) on both sides."""
    n, log = len(samples), math.log(4 / (1 - confidence))
    return 2 * (math.sqrt(2 * samples.var(ddof=1) * log / n) + 7 * log / (3 * (n - 1)))


def capital_reaches(samples, candidate, threshold, width=1.0):
    """Whether the bets on a mean above the candidate ever multiply the capital by the threshold.

    Written sample by sample, as the definition reads: stakes from the past only, at most 3/4. Without a
    width the first sample is not bet on, but sets the scale.
    """
    total, squares = width / 2, width**2 / 4
    if width == math.inf:
        total, squares, samples = samples[0], samples[0] ** 2, samples[1:]
    capital, n = 1.0, len(samples)
    for i, sample in enumerate(samples, start=1):
        stake = math.sqrt(2 * math.log(threshold) * i / (n * squares))
        capital *= 1 + min(stake, 0.75 / candidate) * (sample - candidate)
        if capital >= threshold:
            return True
        total += sample
        squares += (sample - total / (i + 1)) ** 2
    return False


@pytest.mark.parametrize("side", SIDES)
def test_ends_are_where_the_capital_first_reaches_its_threshold(side):
    rng = np.random.default_rng(3)
    samples = rng.beta(0.6, 1.5, 40)
    found = mean_interval(samples, 0, 1, confidence=0.9, side=side, seed=5)
    order = np.random.default_rng(5).permutation(samples)
    threshold = 20 if side == "both" else 10
    if side != "upper":
        assert capital_reaches(order, found.lower - 1e-9, threshold)
        assert not capital_reaches(order, found.lower + 1e-9, threshold)
    if side != "lower":
        assert capital_reaches(1 - order, 1 - found.upper - 1e-9, threshold)
        assert not capital_reaches(1 - order, 1 - found.upper + 1e-9, threshold)
    assert (found.lower == 0, found.upper == 1) == (side == "upper", side == "lower")
    assert found.failure_probability == pytest.approx(0.1)


def test_without_an_upper_end_the_first_sample_sets_the_scale():
    samples = np.random.default_rng(6).standard_exponential(30) * 50
    found = mean_interval(samples, 0, math.inf, confidence=0.9, seed=5)
    order = np.random.default_rng(5).permutation(samples)
    assert found.upper == math.inf
    assert capital_reaches(order, found.lower - 1e-9, 10, math.inf)
    assert not capital_reaches(order, found.lower + 1e-9, 10, math.inf)


def test_the_sample_mean_is_inside_even_where_the_order_misled_the_bets():
    found = [mean_interval([1, 1, 0, 0, 0, 0], 0, 1, confidence=0.1, seed=seed) for seed in range(30)]
    assert any(estimate.lower == estimate.value for estimate in found)
    assert all(estimate.lower <= estimate.value <= estimate.upper for estimate in found)


def exact_miss_rate(low, high, side, n, confidence, certain_high):
    """Largest probability, over the two-point laws on {low, high}, that the interval misses the mean."""
    draws = np.array(list(itertools.product((low, high), repeat=n)))
    intervals = [mean_interval(draw, low, certain_high, confidence=confidence, side=side) for draw in draws]
    lower, upper = (
        np.array([getattr(interval, end) for interval in intervals]) for end in ("lower", "upper")
    )
    highs = (draws == high).sum(1)
    worst = 0.0
    for p in np.linspace(0.02, 0.98, 49):
        mean = low + p * (high - low)
        misses = (lower > mean + 1e-12) | (upper < mean - 1e-12)
        worst = max(worst, float((p**highs * (1 - p) ** (n - highs))[misses].sum()))
    return worst


@pytest.mark.parametrize("confidence", [0.5, 0.9])
@pytest.mark.parametrize("side", SIDES)
def test_two_point_laws_are_covered_by_exact_enumeration(side, confidence):
    """All 128 draws weighed: no sampling error, and misses do happen, so the bound is put to the test."""
    assert 0 < exact_miss_rate(-1.0, 3.0, side, 7, confidence, 3.0) <= 1 - confidence


def test_without_an_upper_end_the_lower_one_still_covers():
    assert 0 < exact_miss_rate(0.0, 5.0, "both", 7, 0.6, math.inf) <= 0.4
    rng = np.random.default_rng(0)
    for draw in (rng.standard_exponential, lambda n: rng.pareto(1.5, n) / 2):  # Both have mean 1.
        found = [mean_interval(draw(50), 0, math.inf, confidence=0.7) for _ in range(200)]
        assert all(estimate.upper == math.inf for estimate in found)
        assert sum(estimate.lower > 1 for estimate in found) <= binom.ppf(0.9999, 200, 0.3)
        assert np.mean([estimate.lower for estimate in found]) > 0.5


def test_heavy_sampled_coverage():
    rng = np.random.default_rng(1)
    for law, mean in ((lambda: rng.beta(0.1, 0.9, 60), 0.1), (lambda: rng.random(60) ** 0.2, 5 / 6)):
        found = [mean_interval(law(), 0, 1, confidence=0.6) for _ in range(300)]
        misses = sum(not estimate.lower <= mean <= estimate.upper for estimate in found)
        assert 0 < misses <= binom.ppf(0.9999, 300, 0.4)


def test_samples_that_come_sorted_are_covered_too():
    """Stakes that followed a sorted order would take the rise for a law of the world."""
    rng = np.random.default_rng(2)
    found = [mean_interval(np.sort(rng.random(100)), 0, 1, seed=trial) for trial in range(200)]
    assert sum(not estimate.lower <= 0.5 <= estimate.upper for estimate in found) <= 10 + 3 * math.sqrt(9.5)


def test_narrower_than_hoeffding_and_empirical_bernstein():
    rng = np.random.default_rng(4)
    laws = {
        "uniform": rng.random,
        "rare": lambda n: (rng.random(n) < 0.05) * 1.0,
        "skewed": lambda n: rng.beta(1, 9, n),
    }
    for law in laws.values():
        for n in (50, 500, 5000):
            samples = law(n)
            betting = width(mean_interval(samples, 0, 1))
            assert betting < 0.9 * hoeffding_width(n, 0.95)
            assert betting < 0.8 * empirical_bernstein_width(samples, 0.95)
    large = rng.beta(
        1, 9, 20_000
    )  # Towards the width of the normal limit, times sqrt(log(40) / 1.92) = 1.39.
    assert width(mean_interval(large, 0, 1)) < 1.39 * 2 * 1.96 * large.std() / math.sqrt(20_000)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_samples_leave_a_width_of_order_one_over_n(value):
    for n in (100, 1000):
        found = mean_interval(np.full(n, value), 0, 1)
        assert found.lower <= value <= found.upper
        assert 1 / n < width(found) < 8 / n
        assert (found.lower == 0) == (value == 0)
        assert (found.upper == 1) == (value == 1)


@given(
    samples=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    shift=st.floats(-10, 10),
    scale=st.floats(0.01, 100),
    confidence=st.sampled_from([0.5, 0.95, 0.999]),
)
def test_the_interval_moves_scales_and_mirrors_with_the_samples(samples, shift, scale, confidence):
    samples = np.array(samples)
    found = mean_interval(samples, 0, 1, confidence=confidence)
    assert 0 <= found.lower <= found.value <= found.upper <= 1
    mirrored = mean_interval(1 - samples, 0, 1, confidence=confidence)
    assert (1 - mirrored.upper, 1 - mirrored.lower) == pytest.approx((found.lower, found.upper), abs=1e-9)
    ends = np.array([0.0, 1.0]) * scale + shift
    moved = mean_interval(np.clip(samples * scale + shift, *ends), *ends, confidence=confidence)
    expected = np.array([found.lower, found.upper]) * scale + shift
    assert (moved.lower, moved.upper) == pytest.approx(tuple(expected), abs=1e-8 * scale + 1e-9)


def test_more_confidence_and_more_sides_cost_width():
    samples = np.random.default_rng(5).random(200)
    both = mean_interval(samples, 0, 1)
    assert width(mean_interval(samples, 0, 1, confidence=0.8)) < width(both)
    assert mean_interval(samples, 0, 1, side="lower").lower > both.lower
    assert mean_interval(samples, 0, 1, side="upper").upper < both.upper
    half = mean_interval(samples, 0, 1, confidence=0.975, side="upper")
    assert half.upper == pytest.approx(both.upper, abs=1e-12)


def test_what_is_not_known_is_said():
    samples = [0.0, 1.0, 2.0] * 20
    nothing = mean_interval(samples, -math.inf, math.inf)
    assert (nothing.value, nothing.lower, nothing.upper) == (1.0, -math.inf, math.inf)
    assert nothing.failure_probability == 0.0
    below = mean_interval(samples, 0, math.inf)
    above = mean_interval(-np.array(samples), -math.inf, 0)
    assert 0 < below.lower < 1 < below.upper == math.inf
    assert (above.upper, above.lower) == (-below.lower, -math.inf)
    useless = mean_interval(samples, 0, math.inf, side="upper")
    assert (useless.lower, useless.upper) == (0.0, math.inf)
    for estimate in (nothing, below, above, useless):
        assert "no distribution-free interval" in estimate.method
    assert mean_interval([2.0, 2.0], 2, 2).is_exact
    assert mean_interval([2.0], 0, math.inf).lower == 0.0
    assert mean_interval([0.5], 0, 1).lower == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 1.5, 2.0], 0, 1), r"range \[0, 1\], got 1.5 at index 1; 2 of 3 disprove the range"),
        (([-0.1], 0, math.inf), "got -0.1 at index 0"),
        (([], 0, 1), "at least one sample"),
        (([[0.5]], 0, 1), r"got shape \(1, 1\)"),
        (([0.5, math.nan], 0, 1), "finite samples, got nan at index 1"),
        (([0.5], 1, 0), "low <= high"),
        (([0.5], math.nan, 1), "low <= high"),
        (([0.5], math.inf, math.inf), "low <= high"),
    ],
)
def test_bad_samples_and_ranges_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        mean_interval(*arguments)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\), got 1.0"):
        mean_interval([0.5], 0, 1, confidence=1.0)
    with pytest.raises(ValueError, match="'both', 'lower' or 'upper', got 'left'"):
        mean_interval([0.5], 0, 1, side="left")


def misses_one(estimates, truths):
    return any(not e.lower <= truth <= e.upper for e, truth in zip(estimates, truths, strict=True))


def joint_misses(monotone, trials, m, confidence):
    """Trials in which one of m nested rates leaves its interval: joint intervals, and single ones."""
    rng = np.random.default_rng(7)
    truth = np.linspace(0.02, 0.98, m)
    joint = alone = 0
    for _ in range(trials):
        events = rng.random((80, 1)) < truth
        found = simultaneous_proportions(events, monotone=monotone, confidence=confidence)
        joint += misses_one(found, truth)
        single = [Estimate.proportion(int(count), 80, confidence=confidence) for count in events.sum(0)]
        alone += misses_one(single, truth)
    return joint, alone


@pytest.mark.parametrize("monotone", [True, False])
def test_all_rates_are_covered_at_once(monotone):
    joint, alone = joint_misses(monotone, 150, 12, 0.7)
    assert 0 < joint <= binom.ppf(0.9999, 150, 0.3) < alone


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    confidence=st.sampled_from([0.5, 0.95]),
    monotone=st.booleans(),
)
def test_ends_are_the_tighter_of_clopper_pearson_and_dkw(counts, confidence, monotone):
    counts, m = sorted(counts), len(counts)
    events = np.arange(60)[:, None] < np.array(counts)
    failure = (1 - confidence) / (2 if monotone else 1)
    reach = math.sqrt(math.log(2 / failure) / 120) if monotone else 1
    for count, found in zip(
        counts, simultaneous_proportions(events, monotone=monotone, confidence=confidence), strict=True
    ):
        exact = binomtest(count, 60).proportion_ci(1 - failure / m, method="exact")
        assert found.value == count / 60
        assert found.lower == pytest.approx(max(exact.low, count / 60 - reach), abs=1e-9)
        assert found.upper == pytest.approx(min(exact.high, count / 60 + reach), abs=1e-9)
        assert found.failure_probability == pytest.approx(1 - confidence)


def test_a_monotone_family_has_narrower_intervals_on_a_fine_grid():
    radii = np.random.default_rng(8).random(1000)
    events = radii[:, None] < np.linspace(0, 1, 400)
    nested = simultaneous_proportions(events, monotone=True)
    union = simultaneous_proportions(events)
    assert width(nested[200]) < 0.8 * width(union[200])
    assert width(nested[2]) < 1.05 * width(union[2]) < 0.5 * width(nested[200])
    falling = simultaneous_proportions(~events, monotone=True)
    assert falling[200].upper == pytest.approx(1 - nested[200].lower, abs=1e-9)


def test_events_that_are_not_nested_get_the_union_bound():
    events = np.random.default_rng(9).random((50, 3)) < 0.5
    for count, found in zip(events.sum(0), simultaneous_proportions(events), strict=True):
        alone = Estimate.proportion(int(count), 50, confidence=1 - 0.05 / 3)
        assert (found.lower, found.upper) == (alone.lower, alone.upper)


def test_bad_events_are_named():
    with pytest.raises(ValueError, match=r"booleans of shape \(n, m\), got int64 of shape \(1, 2\)"):
        simultaneous_proportions(np.array([[0, 1]]))
    with pytest.raises(ValueError, match=r"got bool of shape \(3,\)"):
        simultaneous_proportions([True, False, True])
    with pytest.raises(ValueError, match="rows that rise along the columns and rows that fall"):
        simultaneous_proportions([[True, False], [False, True]], monotone=True)
    with pytest.raises(ValueError, match="confidence"):
        simultaneous_proportions([[True]], confidence=0.0)
