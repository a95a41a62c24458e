"""Gradient similarity: known angles, zero gradients, direction of the estimate."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators import cross_entropy, gradient_similarity, input_gradients


def linear(rows):
    model = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return model


def test_two_class_linear_models_have_the_cosine_of_their_weights():
    angle = 1.1
    f = linear([[1.0, 0.0], [0.0, 0.0]])
    g = linear([[5 * math.cos(angle), 5 * math.sin(angle)], [0.0, 0.0]])
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = gradient_similarity(f, g, x, torch.zeros(9, dtype=torch.int64))
    assert low.is_exact
    assert high.is_exact
    assert low.value == pytest.approx(math.cos(angle), abs=1e-14)
    assert high.value == pytest.approx(math.cos(angle), abs=1e-14)


def test_extremes_equal_a_loop_over_samples_and_labels():
    torch.manual_seed(0)
    f, g = (nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double() for _ in range(2))
    x, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(4).expand(8, 4)
    cosines = [
        functional.cosine_similarity(a, b, dim=0).item()
        for a, b in zip(
            input_gradients(f, cross_entropy, x, labels).flatten(0, 1),
            input_gradients(g, cross_entropy, x, labels).flatten(0, 1),
            strict=True,
        )
    ]
    low, high = gradient_similarity(f, g, x, labels, batch_size=5)
    assert low.value == pytest.approx(min(cosines), abs=1e-12)
    assert high.value == pytest.approx(max(cosines), abs=1e-12)
    # A loss of the user's own goes through its own gradients, with the same result here.
    own = gradient_similarity(
        f, g, x, labels, loss=lambda z, y: functional.cross_entropy(z, y, reduction="none")
    )
    assert own[0].value == pytest.approx(low.value, abs=1e-9)


def test_population_extremes_err_to_the_inside():
    f, g = linear([[1.0, 0.0], [0.0, 0.0]]), linear([[1.0, 1.0], [0.0, 0.0]])
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    low, high = gradient_similarity(f, g, x, y, support="population")
    assert (low.lower, low.upper) == (-1.0, low.value)
    assert (high.lower, high.upper) == (high.value, 1.0)


def test_float32_cosine_survives_where_the_loss_gradient_rounds_to_zero():
    f, g = linear([[1.0, 0.0], [0.0, 0.0]]).float(), linear([[1.0, 1.0], [0.0, 0.0]]).float()
    x = torch.tensor([[200.0, 0.0]])
    assert not input_gradients(f, cross_entropy, x, torch.tensor([0])).any()
    low, high = gradient_similarity(f, g, x, torch.tensor([0]))
    assert low.value == high.value == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert "left out" not in low.method


class FlatRegion(nn.Module):
    """Logits (x_1^3, 0) where x_1 > 0, and constant elsewhere: the gradient is exactly zero there."""

    def forward(self, x):
        first = x[:, 0].clamp_min(0) ** 3
        return torch.stack([first, torch.zeros_like(first)], 1)


def test_zero_gradients_are_left_out_counted_and_reported():
    f, g = FlatRegion(), linear([[1.0, 1.0], [0.0, 0.0]])
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.int64)
    for pair in ((f, g), (g, f)):
        low, high = gradient_similarity(*pair, x, labels)
        assert low.value == high.value == pytest.approx(math.sqrt(0.5))
        assert "left out at 2 of 3 pairs" in low.method
        assert "left out at 2 of 3 pairs" in high.method


def test_all_zero_gradients_are_an_error():
    x = -torch.ones(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="zero gradient in all 4 pairs"):
        gradient_similarity(FlatRegion(), FlatRegion(), x, torch.zeros(4, dtype=torch.int64))


def test_tiny_gradients_of_a_custom_loss_keep_their_direction():
    f, g = linear([[1e-30, 0.0], [0.0, 0.0]]).float(), linear([[1e-30, 1e-30], [0.0, 0.0]]).float()
    x = torch.ones(2, 2)
    low, high = gradient_similarity(f, g, x, torch.zeros(2, dtype=torch.int64), loss=lambda z, y: z[:, 0])
    assert low.value == high.value == pytest.approx(math.sqrt(0.5), abs=1e-6)
