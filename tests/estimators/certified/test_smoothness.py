"""Certified smoothness, as `smoothness` gives it: linear softmax exactly, balls, refusals by name."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from estimators import cross_entropy, hessian_norms, smoothness
from estimators.certified import certified_smoothness


class Normalize(nn.Module):
    """The usual (x - mean) / std in front of a model."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x):
        return (x - self.mean) / self.std


def certify(model, x, loss=cross_entropy):
    return smoothness(model, loss, x, torch.zeros(len(x), dtype=torch.int64), method="certified")


def images(count=5):
    return torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def test_normalisation_flatten_and_linear_chains_are_multiplied_out():
    torch.manual_seed(0)
    first, second = nn.Linear(9, 4), nn.Linear(4, 3)
    model = nn.Sequential(Normalize(0.5, 0.25), nn.Sequential(nn.Flatten(), nn.Dropout(), first), second)
    weights = 4 * second.weight @ first.weight
    truth = (torch.cdist(weights, weights).max() ** 2 / 4).item()
    found = certify(model.train(), images())
    assert found.upper == pytest.approx(truth, rel=1e-5)
    assert found.lower <= found.upper
    assert "certified" in found.method


def test_batch_norm_counts_with_its_running_statistics():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9, eps=0.0, affine=False), nn.Linear(9, 2, bias=False))
    model[1].running_var.fill_(4.0)
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(9)[:2])
    assert certify(model, images()).upper == pytest.approx(2 / 4 / 4, rel=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 100_000), st.integers(2, 6), st.sampled_from([torch.float32, torch.float64]))
def test_random_linear_models_are_never_above_their_certificate(seed, classes, dtype):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, classes).to(dtype)
    with torch.no_grad():
        model.weight.copy_(2 * torch.randn(classes, 4, generator=generator))
    x = torch.randn(3, 4, generator=generator).to(dtype)
    upper = certify(model, x).upper
    y = torch.zeros(3, dtype=torch.int64)
    tolerance = 1 + (1e-4 if dtype == torch.float32 else 0)
    for method in ("hessian", "ascent", "quotient"):
        seen = smoothness(model, cross_entropy, x, y, radius=2.0, method=method, points=2, steps=4).value
        assert seen <= upper * tolerance
    if classes == 2:
        ties = torch.zeros(1, 4, dtype=dtype)
        with torch.no_grad():
            model.bias.zero_()
        assert smoothness(model, cross_entropy, ties, y[:1]).value == pytest.approx(upper, rel=1e-5)


def test_layers_without_a_certificate_are_refused_by_name():
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 2))
    with pytest.raises(ValueError, match="no certificate for the layer LayerNorm"):
        certify(model, images())


def test_kinks_leave_no_certificate():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    found = certify(model, images())
    assert found.value == found.upper == math.inf
    assert "ReLU" in found.method


def test_batch_norm_without_statistics_and_odd_functions_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9, track_running_stats=False), nn.Linear(9, 2))
    with pytest.raises(ValueError, match="expected BatchNorm1d with running statistics"):
        certify(model, images())

    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2]

    with pytest.raises(ValueError, match="no certificate for the operation getitem"):
        certify(Odd(), images())


def test_a_layer_that_only_calls_itself_normalisation_is_found_out():
    class NormalizeOddly(Normalize):
        def forward(self, x):
            return super().forward(x) ** 2

    model = nn.Sequential(NormalizeOddly(0.5, 0.25), nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match="no certificate for the operation pow"):
        certify(model, images())


def test_balls_are_between_what_was_seen_and_the_whole_space():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = images(), torch.tensor([0, 1, 2, 0, 1])
    everywhere = smoothness(model, cross_entropy, x, y, method="certified").upper
    previous = smoothness(model, cross_entropy, x, y).value * (1 - 1e-5)
    for radius in (0.01, 0.1, 1.0):
        ball = smoothness(model, cross_entropy, x, y, method="certified", radius=radius)
        seen = smoothness(model, cross_entropy, x, y, method="ascent", radius=radius).value
        assert seen <= ball.upper * (1 + 1e-5)
        assert previous <= ball.upper <= everywhere
        previous = ball.upper


def test_each_sample_and_label_has_its_own_bound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, labels = images().double(), torch.arange(3).expand(5, -1)
    for radius in (0.1, math.inf):
        table = certified_smoothness(model, cross_entropy, x, labels, radius=radius)
        column = certified_smoothness(model, cross_entropy, x, labels[:, 1], radius=radius)
        assert table.shape == (5, 3)
        assert torch.allclose(table[:, 1], column)
        assert bool((hessian_norms(model, cross_entropy, x, labels) <= table * (1 + 1e-9)).all())


def test_losses_equal_to_cross_entropy_are_accepted_and_others_refused():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), images()
    textbook = certify(model, x, lambda z, y: functional.cross_entropy(z, y, reduction="none"))
    assert textbook.upper == certify(model, x).upper
    with pytest.raises(ValueError, match="expected cross-entropy for certified smoothness"):
        certify(model, x, lambda z, y: 2 * cross_entropy(z, y))
