"""Rank correlations against scipy, resample by resample, and on chains whose answers are known."""

import numpy as np
import pytest
from scipy import stats

from empirical.study.statistics import (
    LEAST_GROUPS,
    Bootstrap,
    difference,
    kendall,
    partial_spearman,
    spearman,
    within,
)


def drawn(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated quantities with ties, and how often a resample takes each unit."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n).round(1)
    y = (x + generator.normal(size=n)).round(1)
    return x, y, generator.multinomial(n, np.full(n, 1 / n), size=5).astype(float)


def chain(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X -> Y -> Z: X and Z are correlated, and not given Y."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    y = x + generator.normal(size=n)
    return x, y, y + generator.normal(size=n)


def only(counts: np.ndarray) -> np.ndarray:
    """Counts of the sample itself."""
    return np.ones((1, counts))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(spearman, stats.spearmanr), (kendall, stats.kendalltau)],
    ids=["spearman", "kendall"],
)
def test_correlations_of_resamples_are_scipys_of_the_resampled_tables(ours, theirs):
    x, y, counts = drawn()
    expected = [theirs(np.repeat(x, c.astype(int)), np.repeat(y, c.astype(int))).statistic for c in counts]
    np.testing.assert_allclose(ours(x, y)(counts), expected, atol=1e-12)


def test_infinite_values_rank_last_and_unknown_units_do_not_count():
    x = np.array([1.0, 2.0, np.inf, np.inf, np.nan, 0.0])
    y = np.array([1.0, 3.0, 2.0, 5.0, -9.0, 0.0])
    known = np.isfinite(x) | np.isinf(x)
    expected = stats.spearmanr(np.where(np.isinf(x), 9.0, x)[known], y[known]).statistic
    np.testing.assert_allclose(spearman(x, y)(known[None].astype(float)), [expected], atol=1e-12)
    np.testing.assert_allclose(spearman(x, y)(known[None] * 2.0), [expected], atol=1e-12)


def test_a_partial_correlation_is_that_of_the_residuals_of_the_resampled_ranks():
    x, y, counts = drawn()
    control = x + np.random.default_rng(5).normal(size=len(x))
    kinds = np.arange(len(x)) % 3
    for row, found in zip(counts, partial_spearman(x, y, [control], kinds)(counts), strict=True):
        ranks = [stats.rankdata(np.repeat(each, row.astype(int))) for each in (x, y, control)]
        labels = np.repeat(kinds, row.astype(int))
        columns = np.column_stack([ranks[2], *(labels == kind for kind in range(3))])
        left = [rank - columns @ np.linalg.lstsq(columns, rank, rcond=None)[0] for rank in ranks[:2]]
        assert found == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-9)


def test_the_ends_of_a_chain_are_unrelated_given_its_middle():
    x, y, z = chain(2000)
    assert spearman(x, z)(only(len(x)))[0] > 0.5
    assert abs(partial_spearman(x, z, [y])(only(len(x)))[0]) < 0.07
    assert partial_spearman(x, y, [z])(only(len(x)))[0] > 0.4


def test_a_category_can_explain_a_correlation_away():
    generator = np.random.default_rng(2)
    kinds = np.arange(900) % 3
    x, y = (2.0 * kinds + generator.normal(size=900) for _ in range(2))
    assert spearman(x, y)(only(900))[0] > 0.6
    assert abs(partial_spearman(x, y, [], kinds)(only(900))[0]) < 0.1


def test_what_a_control_determines_has_no_partial_correlation():
    x, y, _ = chain(50)
    assert np.isnan(partial_spearman(x, y, [x])(only(50))[0])


def test_intervals_cover_the_true_correlation_about_as_often_as_they_say():
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of normal variables with Pearson's 0.6
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=80)
        y = 0.6 * x + 0.8 * generator.normal(size=80)
        found = Bootstrap(range(80), resamples=300, confidence=0.9, seed=seed).interval(spearman(x, y))
        covered += found.lower <= truth <= found.upper
    assert 0.83 <= covered / 200 <= 0.96


def test_resampling_groups_widens_the_interval_of_units_that_repeat_each_other():
    """Six copies of each of 30 points carry the information of 30 points, not of 180."""
    x, y, _ = chain(30)
    repeated = [np.repeat(each, 6) for each in (x, y)]
    whole = Bootstrap(range(30)).interval(spearman(x, y))
    grouped = Bootstrap(np.repeat(range(30), 6)).interval(spearman(*repeated))
    single = Bootstrap(range(180)).interval(spearman(*repeated))
    assert grouped.groups == 30
    assert (grouped.lower, grouped.upper) == pytest.approx((whole.lower, whole.upper), abs=1e-9)
    assert single.upper - single.lower < 0.6 * (grouped.upper - grouped.lower)


def test_the_same_seed_gives_the_same_interval_and_more_confidence_a_wider_one():
    x, y, _ = chain(40)
    first, second, wide = (
        Bootstrap(range(40), confidence=confidence, seed=3).interval(spearman(x, y))
        for confidence in (0.9, 0.9, 0.99)
    )
    assert first == second
    assert wide.lower < first.lower < first.value < first.upper < wide.upper


def test_differences_between_parts_are_taken_in_the_same_resample():
    """The correlation is strong in one half and absent in the other."""
    generator = np.random.default_rng(4)
    x, noise = generator.normal(size=(2, 200))
    half = np.arange(200) < 100
    y = np.where(half, x + 0.3 * noise, noise)
    gap = difference(within(spearman(x, y), half), within(spearman(x, y), ~half))
    found = Bootstrap(range(200)).interval(gap)
    assert found.lower > 0.5
    expected = stats.spearmanr(x[half], y[half]).statistic - stats.spearmanr(x[~half], y[~half]).statistic
    assert found.value == pytest.approx(expected)


def test_too_few_groups_or_no_variation_give_no_interval():
    x, y, _ = chain(60)
    bootstrap = Bootstrap(np.arange(60) // (60 // (LEAST_GROUPS - 1)))
    assert Bootstrap(range(60)).interval(spearman(x, y), np.arange(60) < LEAST_GROUPS - 1) is None
    assert Bootstrap(range(60)).interval(spearman(x, np.ones(60))) is None
    assert bootstrap.interval(spearman(x, y)) is not None


@pytest.mark.parametrize(
    ("groups", "arguments", "message"),
    [
        ([], {}, "at least one unit"),
        ([1, 2], {"resamples": 0}, "at least 1 resample"),
        ([1, 2], {"confidence": 1.0}, r"confidence in \(0, 1\)"),
    ],
)
def test_bad_input_is_refused(groups, arguments, message):
    with pytest.raises(ValueError, match=message):
        Bootstrap(groups, **arguments)
