"""The exact Taylor remainder: quadratic closed form, the inequality chain, rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from estimators import cross_entropy, remainder, smoothness


def quadratic(spectrum):
    def loss(z, y):
        return (z * z * torch.tensor(spectrum, dtype=z.dtype)).sum(1) / 2

    return nn.Flatten(), loss


@pytest.mark.parametrize("spectrum", [[3.0, 1.0], [-3.0, 1.0]])
def test_quadratic_remainder_is_the_absolute_rayleigh_quotient(spectrum):
    model, loss = quadratic(spectrum)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([[0.1, 0.0], [0.0, 0.5], [0.2, 0.2]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    found = remainder(model, loss, x, x + step, y)
    assert found.value == pytest.approx(3.0, rel=1e-10)
    assert found.lower <= 3.0 <= found.upper
    last = remainder(model, loss, x[2:], (x + step)[2:], y[2:])
    assert last.value == pytest.approx(abs(sum(spectrum)) / 2, rel=1e-10)


def test_rounding_allowance_covers_tiny_steps():
    model, loss = quadratic([3.0, 3.0])
    x = 100 + torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(50, dtype=torch.int64)
    found = remainder(model, loss, x, x + 1e-6, y)
    # The quotient itself is rounding noise here; the interval still contains the truth and says so.
    assert abs(found.value - 3.0) > 0.1
    assert found.lower <= 3.0 <= found.upper


def test_pairs_at_rest_count_as_zero_and_are_reported():
    model, loss = quadratic([3.0, 1.0])
    x = torch.ones(2, 2, dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.int64)
    still = remainder(model, loss, x, x.clone(), y)
    assert (still.value, still.lower, still.upper) == (0.0, 0.0, 0.0)
    assert "2 pairs do not move" in still.method
    end = x.clone()
    end[1, 0] += 1
    moved = remainder(model, loss, x, end, y)
    assert moved.value == pytest.approx(3.0)
    assert "1 pairs do not move" in moved.method


@settings(max_examples=20)
@given(st.integers(0, 100_000))
def test_remainder_is_the_constant_that_the_proofs_need_and_stays_below_the_segment(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(2 * draw(*weight.shape))
    x = draw(3, 3)
    x_end = x + 0.5 * draw(3, 3)
    labels = torch.arange(3).expand(3, 3)
    found = remainder(model, cross_entropy, x, x_end, labels)
    for label in range(3):
        y = torch.full((3,), label)
        point = x.clone().requires_grad_()
        start = cross_entropy(model(point), y)
        (slope,) = torch.autograd.grad(start.sum(), point)
        step = x_end - x
        left = cross_entropy(model(x_end), y) - start - (step * slope).sum(1)
        assert (left.abs() <= found.upper * step.square().sum(1) / 2).all()
    segment = smoothness(
        model, cross_entropy, x, labels, method="segment", x_end=x_end, points=17, iterations=3
    )
    assert found.lower <= segment.value * 1.1


def test_float32_model_is_evaluated_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    x_end = x + 1e-3 * torch.randn(6, 3)
    single = remainder(model, cross_entropy, x, x_end, y)
    assert next(model.parameters()).dtype == torch.float32
    double = remainder(model.double(), cross_entropy, x.double(), x_end.double(), y)
    assert single.value == double.value


def test_relu_network_has_a_finite_remainder():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    found = remainder(model, cross_entropy, x, x + torch.randn_like(x), y)
    assert 0 < found.value < float("inf")


def test_shapes_that_differ_are_refused():
    model, loss = quadratic([1.0, 1.0])
    with pytest.raises(ValueError, match=r"x_end of the shape of x, \(2, 2\), got \(1, 2\)"):
        remainder(model, loss, torch.ones(2, 2), torch.ones(1, 2), torch.tensor([0, 0]))
