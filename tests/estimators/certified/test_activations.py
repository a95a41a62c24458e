"""Activations: values and derivatives against autograd and mpmath, ranges sound and tight."""

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators.certified import activations

CURVES = {
    "tanh": (activations.tanh(), torch.tanh, mpmath.tanh),
    "sigmoid": (activations.sigmoid(), torch.sigmoid, lambda u: 1 / (1 + mpmath.exp(-u))),
    "softplus": (
        activations.softplus(),
        lambda u: functional.softplus(u, threshold=50),
        lambda u: mpmath.log(1 + mpmath.exp(u)),
    ),
    "softplus(5)": (
        activations.softplus(5.0),
        lambda u: functional.softplus(u, 5.0, 50),
        lambda u: mpmath.log(1 + mpmath.exp(5 * u)) / 5,
    ),
    "gelu": (activations.gelu(), functional.gelu, lambda u: u * mpmath.ncdf(u)),
    "silu": (activations.silu(), functional.silu, lambda u: u / (1 + mpmath.exp(-u))),
}
EACH = pytest.mark.parametrize("name", CURVES)
FUNCTIONS = ("value", "slope", "bend")
RANGES = ("value_range", "slope_range", "bend_range")


def intervals(count=400):
    """Ends of intervals, from tiny to huge, around 0 and far away."""
    generator = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(count, generator=generator, dtype=torch.float64)
    middle[::5] *= 10
    half = 10 ** (12 * torch.rand(count, generator=generator, dtype=torch.float64) - 9)
    half[::7] = 0.0
    return middle - half, middle + half


@EACH
def test_value_slope_and_bend_agree_with_autograd(name):
    curve, function, _ = CURVES[name]
    u = torch.linspace(-8, 8, 161, dtype=torch.float64).requires_grad_(True)
    value = function(u)
    (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    for found, expected in ((curve.value(u), value), (curve.slope(u), slope), (curve.bend(u), bend)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@EACH
@pytest.mark.parametrize("at", [-300.0, -45.0, -20.5, -3.3, -1e-9, 0.0, 0.7, 2.4, 19.0, 60.0])
def test_value_slope_and_bend_agree_with_many_digits(name, at):
    curve, _, function = CURVES[name]
    u = torch.tensor(at, dtype=torch.float64)
    with mpmath.workdps(80):
        for order, kind in enumerate(FUNCTIONS):
            truth = float(mpmath.diff(function, mpmath.mpf(at), order))
            assert float(getattr(curve, kind)(u)) == pytest.approx(truth, rel=1e-10, abs=1e-30), kind


@EACH
@pytest.mark.parametrize("kind", range(3))
def test_ranges_contain_all_that_is_sampled(name, kind):
    curve = CURVES[name][0]
    low, high = intervals()
    smallest, largest = getattr(curve, RANGES[kind])(low, high)
    share = torch.linspace(0, 1, 257, dtype=torch.float64).unsqueeze(1)
    values = getattr(curve, FUNCTIONS[kind])(low + share * (high - low))
    # Neighbouring floats of a monotone function may come out in the wrong order by a rounding.
    slack = 1e-14 * (1 + values.abs())
    assert (values >= smallest - slack).all()
    assert (values <= largest + slack).all()


@EACH
@pytest.mark.parametrize("kind", range(3))
def test_ranges_are_attained(name, kind):
    curve = CURVES[name][0]
    low, high = intervals()
    moderate = (high - low) < 20
    low, high = low[moderate], high[moderate]
    smallest, largest = getattr(curve, RANGES[kind])(low, high)
    share = torch.linspace(0, 1, 4001, dtype=torch.float64).unsqueeze(1)
    values = getattr(curve, FUNCTIONS[kind])(low + share * (high - low))
    span = values.amax(0) - values.amin(0)
    # Between two of 4001 points an extremum hides at most a second-order step.
    slack = 1e-3 * span + 1e-13 * (1 + values.abs().amax(0))
    assert (values.amin(0) <= smallest + slack).all()
    assert (values.amax(0) >= largest - slack).all()


@EACH
def test_limits_are_the_extremes_over_the_line(name):
    curve = CURVES[name][0]
    u = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    for function, limits in ((curve.slope, curve.slope_limits), (curve.bend, curve.bend_limits)):
        values = function(u)
        assert limits[0] <= float(values.min()) <= limits[0] + 1e-7
        assert limits[1] - 1e-7 <= float(values.max()) <= limits[1] + 1e-15


@pytest.mark.parametrize(
    ("name", "slope", "bend"),
    [
        ("tanh", 1.0, 0.7698003589),
        ("softplus", 1.0, 0.25),
        ("softplus(5)", 1.0, 1.25),
        ("sigmoid", 0.25, 0.0962250449),
        ("gelu", 1.1289041, 0.7978845608),
        ("silu", 1.0998393, 0.5),
    ],
)
def test_limits_are_the_known_constants(name, slope, bend):
    curve = CURVES[name][0]
    assert max(map(abs, curve.slope_limits)) == pytest.approx(slope, rel=1e-7)
    assert max(map(abs, curve.bend_limits)) == pytest.approx(bend, rel=1e-9)


def test_turning_points_are_where_the_next_derivative_vanishes():
    for curve, _, function in CURVES.values():
        with mpmath.workdps(40):
            for order, turns in enumerate((curve.value_turns, curve.slope_turns, curve.bend_turns), 1):
                for turn in turns:
                    assert abs(mpmath.diff(function, mpmath.mpf(turn), order)) < 1e-14, (curve.name, turn)


def test_softplus_has_no_switch_to_the_identity():
    u = torch.tensor([19.9, 20.1, 30.0], dtype=torch.float64)
    slope = activations.softplus().slope(u)
    assert torch.equal(1 - slope > 0, torch.tensor([True, True, True]))
    assert nn.Softplus()(u)[1] == u[1]  # torch's own switch, at 20
    assert activations.softplus().value(u)[1] > u[1]


@pytest.mark.parametrize("leak", [0.0, 0.1, -0.2, 2.0])
def test_kinks_have_both_slopes_at_zero_and_no_bend(leak):
    curve = activations.leaky_relu(leak)
    low = torch.tensor([-2.0, -2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    high = torch.tensor([-1.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    between = min(leak, 1.0), max(leak, 1.0)
    smallest, largest = curve.slope_range(low, high)
    assert smallest.tolist() == [leak, between[0], 1.0, between[0], between[0]]
    assert largest.tolist() == [leak, between[1], 1.0, between[1], between[1]]
    touching = [False, True, False, True, True]
    assert [bound.isinf().tolist() for bound in curve.bend_range(low, high)] == [touching, touching]
    assert not curve.smooth
    smallest, largest = curve.value_range(low, high)
    inside = low + torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1) * (high - low)
    torch.testing.assert_close(smallest, functional.leaky_relu(inside, leak).amin(0), rtol=0, atol=0.07)
    assert (smallest <= functional.leaky_relu(inside, leak).amin(0)).all()
    assert (largest >= functional.leaky_relu(inside, leak).amax(0)).all()
