"""Rates and mean losses on a model whose predictions are read off its input."""

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional

from estimators import cross_entropy, effectiveness, empirical_risk, risk

IDENTITY = nn.Identity()
X = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 2, 0, 1])]  # predictions 0 1 2 0 1
Y = torch.tensor([0, 1, 2, 1, 2])  # so the last two are wrong


def test_finite_risk_is_the_exact_error_rate():
    found = risk(IDENTITY, X, Y, batch_size=2)
    assert found.is_exact
    assert (found.value, found.samples) == (0.4, 5)


def test_population_risk_is_the_clopper_pearson_interval():
    found = risk(IDENTITY, X, Y, support="population", confidence=0.9)
    interval = binomtest(2, 5).proportion_ci(0.9, method="exact")
    assert found.value == 0.4
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.failure_probability == pytest.approx(0.1)


def test_risk_of_a_perfect_and_of_an_always_wrong_model():
    perfect = risk(IDENTITY, X, X.argmax(1), support="population")
    assert (perfect.value, perfect.lower) == (0.0, 0.0)
    assert perfect.upper > 0
    assert risk(IDENTITY, X, (X.argmax(1) + 1) % 3).value == 1.0


def test_effectiveness_is_the_rate_at_which_the_attack_fails():
    # Untargeted it fails where the prediction is still y, targeted at 1 where it is not 1: 3 of 5 each.
    assert effectiveness(IDENTITY, X, Y, targeted=False).value == 0.6
    assert effectiveness(IDENTITY, X, 1, targeted=True).value == 0.6
    assert effectiveness(IDENTITY, X, torch.tensor([0, 1, 2, 0, 0]), targeted=True).value == 0.2
    found = effectiveness(IDENTITY, X, 1, targeted=True, support="population")
    assert found.lower < 0.6 < found.upper


def test_identity_attack_is_one_minus_eta_effective():
    eta = risk(IDENTITY, X, Y).value
    assert effectiveness(IDENTITY, X, Y, targeted=False).value == pytest.approx(1 - eta)


def test_empirical_risk_is_the_mean_loss():
    found = empirical_risk(IDENTITY, cross_entropy, X, Y, batch_size=2)
    assert found.is_exact
    assert found.value == pytest.approx(functional.cross_entropy(X, Y).item(), rel=1e-12)


def test_population_mean_loss_without_a_range_has_no_upper_end():
    found = empirical_risk(IDENTITY, cross_entropy, X.repeat(20, 1), Y.repeat(20), support="population")
    assert 0.0 < found.lower < found.value < found.upper == math.inf
    assert "no distribution-free interval" in found.method
    other = empirical_risk(IDENTITY, lambda z, y: z[:, 0] - 5, X, Y, support="population")
    assert (other.lower, other.upper) == (-math.inf, math.inf)


def test_population_mean_loss_has_an_interval_where_the_range_is_certified():
    found = empirical_risk(
        IDENTITY, cross_entropy, X.repeat(40, 1), Y.repeat(40), support="population", loss_range=(0.0, 2.0)
    )
    assert 0.0 < found.lower < found.value < found.upper < 2.0
    assert found.failure_probability == pytest.approx(0.05)
    with pytest.raises(ValueError):
        empirical_risk(IDENTITY, cross_entropy, X, Y, support="population", loss_range=(0.0, 0.5))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 2.0])
def test_bad_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\)"):
        risk(IDENTITY, X, Y, confidence=confidence)


def test_target_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, got 7"):
        effectiveness(IDENTITY, X, 7, targeted=True)
