"""What a smoothness study measures: brackets that hold, honesty about kinks, defects that are not hidden."""

import math

import pytest
import torch
from torch import nn

from bounds import Estimate
from empirical.data import Split
from empirical.smoothness.measure import Subject, _closed, _opened, study_member, study_pairs
from empirical.smoothness.result import BALLS, POINTS, SEGMENTS, SPACE, Settings


def settings(radius=0.3, certify=True):
    return Settings(data="none", samples=12, radius=radius, method="ascent", certify=certify, seed=0)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(3)
    return Split(torch.rand(12, 6, generator=generator), torch.arange(12) % 3)


def net(activation, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)).eval()


def study(model, data, **changes):
    chosen = settings(**changes)
    subject = Subject.of("net", model, data.x, certify=chosen.certify)
    return study_member(subject, data, chosen, pixel_range=None)


def test_brackets_of_a_smooth_net_are_closed_and_nested(data):
    """Every set has a finite bracket; wider sets never have smaller upper ends."""
    found = study(net(nn.Tanh()), data)
    assert set(found.smoothness) == {POINTS, SEGMENTS, BALLS, SPACE}
    for estimate in (*found.smoothness.values(), *found.gradient.values()):
        assert 0 < estimate.lower <= estimate.upper < math.inf
    upper = [found.smoothness[where].upper for where in (POINTS, BALLS, SPACE)]
    assert upper == sorted(upper)
    # At the points themselves the bracket is closed: Lanczos is exact in six dimensions.
    assert found.smoothness[POINTS].lower == pytest.approx(found.smoothness[POINTS].upper, rel=1e-4)
    assert found.remainder.value <= found.smoothness[SEGMENTS].upper * (1 + 1e-6)
    assert found.uncertified == ""
    assert found.convergence[-1][1] == pytest.approx(found.smoothness[BALLS].lower, rel=1e-6)
    assert not found.finite_scale


def test_linear_softmax_has_its_closed_form_over_the_whole_space(data):
    """Max ||w_k - w_l||^2 / 4 and max ||w_k - w_l|| (rows affinely independent)."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    found = study(model, data)
    rows = model[0].weight.detach().double()
    spread = torch.cdist(rows, rows).max().item()
    assert found.smoothness[SPACE].upper == pytest.approx(spread**2 / 4, rel=1e-6)
    assert found.gradient[SPACE].upper == pytest.approx(spread, rel=1e-6)


def test_without_certificates_upper_ends_stay_open(data):
    """A sampled beta is never passed off as a certified one."""
    found = study(net(nn.Tanh()), data, certify=False)
    assert SPACE not in found.smoothness
    assert found.uncertified
    assert all(math.isinf(estimate.upper) for estimate in found.smoothness.values())


def test_kinks_make_beta_infinite_with_evidence(data):
    """ReLU: infinite everywhere, quotients that grow as 1/h, and a finite remainder."""
    found = study(net(nn.ReLU()), data, radius=1.0)
    assert found.kinks == ("ReLU",)
    assert all(math.isinf(estimate.value) for estimate in found.smoothness.values())
    assert found.divergence["slope"] == pytest.approx(1.0, abs=0.05)
    scales, quotients = zip(*found.finite_scale, strict=True)
    assert scales[0] > 100 * scales[-1]
    assert quotients[-1] > 20 * quotients[0]
    assert math.isfinite(found.remainder.upper)
    # The gradient itself stays bounded.
    assert math.isfinite(found.gradient[SPACE].upper)


def test_radius_zero_looks_at_the_points_alone(data):
    """No attack and no balls."""
    found = study(net(nn.Tanh()), data, radius=0.0)
    assert set(found.smoothness) == {POINTS, SPACE}
    assert found.remainder is None


def test_unsupported_layers_are_named(data):
    """The study goes on without certificates and says why."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).eval()
    found = study(model, data)
    assert "LayerNorm" in found.uncertified
    assert math.isinf(found.smoothness[BALLS].upper)


def test_cosines_of_a_pair_are_closed_by_certificates(data):
    """Seen extremes lie in the certified range, which at a small radius is informative."""
    chosen = settings(radius=0.01)
    subjects = [
        Subject.of(str(seed), net(nn.Softplus(1.0, 50.0), seed), data.x, certify=True) for seed in (0, 1)
    ]
    (pair,) = study_pairs(subjects, data, chosen)
    for where in (POINTS, BALLS):
        assert pair.infimum[where].lower <= pair.infimum[where].value <= pair.supremum[where].value
    assert pair.infimum[BALLS].value <= pair.infimum[POINTS].value + 1e-6
    assert pair.infimum[BALLS].lower > -1.0
    assert pair.supremum[BALLS].upper < 1.0


def test_a_sample_beyond_its_certificate_is_a_defect():
    """It is raised, not clipped away."""
    sampled = Estimate.at_least(2.0, "sampled")
    assert _closed(sampled, torch.tensor([1.0, 3.0])).upper == 3.0
    assert _closed(sampled, torch.tensor(2.0 - 1e-6)).lower == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="defect"):
        _closed(sampled, torch.tensor([1.9]))
    low, high = Estimate.at_most(-0.2, "seen"), Estimate.at_least(0.5, "seen")
    assert _opened(low, high, -0.3, 0.7)[0].lower == -0.3
    with pytest.raises(RuntimeError, match="defect"):
        _opened(low, high, -0.1, 0.7)
    with pytest.raises(RuntimeError, match="defect"):
        _opened(low, high, -0.3, 0.4)
