"""R2: the rate of missing certificates, exact on a finite set and Clopper-Pearson on a sample."""

import numpy as np
import pytest
from scipy.stats import binomtest

from bounds.certificate import Certificate
from bounds.transfer_rate import certified_transfer_rate


def test_rate_over_a_finite_set_is_exact():
    certified = np.array([True, False, False, True])
    eligible = np.array([True, True, False, True])
    estimate = certified_transfer_rate(certified, eligible)
    assert (estimate.value, estimate.lower, estimate.upper) == (0.25, 0.0, 0.25)
    assert estimate.failure_probability == 0.0
    fooled = certified_transfer_rate(Certificate(certified, np.zeros((4, 2))), eligible, fooled=~certified)
    assert (fooled.lower, fooled.upper) == (0.25, 0.25)


def test_population_rate_is_clopper_pearson():
    certified = np.repeat([True, False], [93, 7])
    estimate = certified_transfer_rate(certified, np.ones(100, dtype=bool), support="population")
    one_sided = binomtest(7, 100, alternative="less").proportion_ci(0.95, method="exact")
    assert estimate.upper == pytest.approx(one_sided.high)
    assert estimate.lower == 0.0
    assert estimate.failure_probability == pytest.approx(0.05)
    both = certified_transfer_rate(
        certified, np.ones(100, dtype=bool), fooled=~certified, support="population"
    )
    two_sided = binomtest(7, 100).proportion_ci(0.95, method="exact")
    assert (both.lower, both.upper) == pytest.approx((two_sided.low, two_sided.high))


def test_population_rate_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    misses = 0
    for _ in range(400):
        certified = rng.random(60) > 0.1
        estimate = certified_transfer_rate(
            certified, np.ones(60, dtype=bool), support="population", confidence=0.9
        )
        misses += estimate.upper < 0.1
    assert 0 < misses <= 400 * 0.1 + 3 * np.sqrt(400 * 0.09)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no sample both certified and fooled, got 2"):
        certified_transfer_rate([True, True], [True, True], fooled=[True, True])
    with pytest.raises(ValueError, match="booleans of shape \\(2,\\), got bool of shape \\(1,\\)"):
        certified_transfer_rate([True], [True, True])
    with pytest.raises(ValueError, match="'finite' or 'population', got 'sample'"):
        certified_transfer_rate([True], [True], support="sample")
    with pytest.raises(ValueError, match="at least one sample"):
        certified_transfer_rate(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
