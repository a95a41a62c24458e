"""Interval ranges of logit gaps and of cross-entropy: exact where they must be, never left by ascents."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators.certified.network import read_network
from estimators.certified.ranges import logit_gap_ranges, loss_range


def climbed_gaps(model, low, high, a, b, steps=12):
    """Largest z_a - z_b that sign ascent from random points of a box finds."""
    x = low + (high - low) * torch.rand(8, *low.shape[1:], dtype=torch.float64)
    best = -math.inf
    for step in range(steps):
        point = x.clone().requires_grad_(True)
        logits = model(point)
        gap = logits[:, a] - logits[:, b]
        best = max(best, float(gap.detach().max()))
        (slope,) = torch.autograd.grad(gap.sum(), point)
        x = (x + (1 - step / steps) * (high - low) * slope.sign()).clamp(low, high)
    return best


@pytest.mark.parametrize("seed", range(16))
def test_no_ascent_leaves_the_gap_ranges_of_random_networks(seed, random_network):
    model, x, classes = random_network(seed, smooth=seed % 3 > 0)
    torch.manual_seed(seed)
    radius = 0.02 + torch.rand(()).item()
    model.requires_grad_(False)
    network = read_network(model, x)
    least, most = logit_gap_ranges(network, x - radius, x + radius)
    for a, b in ((0, 1), (classes - 1, 0)):
        seen = climbed_gaps(model, x[:1] - radius, x[:1] + radius, a, b)
        assert seen <= most[0, a, b]
        assert seen >= least[0, a, b]
    # Tight for a small box: both ends come close to the gap at its centre.
    logits = model(x)
    gap = logits.unsqueeze(2) - logits.unsqueeze(1)
    ends = logit_gap_ranges(network, x, x)
    for end in ends:
        torch.testing.assert_close(end, gap, rtol=1e-6, atol=1e-6)


def test_ranges_of_a_linear_model_are_attained_at_corners():
    torch.manual_seed(0)
    model, corner = nn.Linear(5, 3).double(), torch.ones(1, 5, dtype=torch.float64)
    least, most = logit_gap_ranges(read_network(model, corner), -corner, 2 * corner)
    rows = model.weight.detach()
    for a in range(3):
        for b in range(3):
            row, shift = rows[a] - rows[b], float((model.bias[a] - model.bias[b]).detach())
            highest = float(torch.where(row > 0, 2 * row, -row).sum()) + shift
            assert float(most[0, a, b]) == pytest.approx(highest, abs=1e-7)
            assert float(least[0, b, a]) == pytest.approx(-highest, abs=1e-7)
    # Two labels share the largest loss with the largest gap.
    pair = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        pair.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    inside = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert loss_range(pair, inside, 0.0, 1.0)[1] == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-6)


def test_ranges_of_an_increasing_network_are_attained_at_the_corners():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()
        model[-1].weight[1] = 0.0
    x = torch.randn(3, 3, dtype=torch.float64)
    least, most = logit_gap_ranges(read_network(model, x), x - 0.5, x + 0.7)
    for end, corner in ((least, x - 0.5), (most, x + 0.7)):
        logits = model(corner).detach()
        torch.testing.assert_close(end[:, 0, 1], logits[:, 0] - logits[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_no_loss_on_the_box_leaves_the_loss_range(seed, random_network):
    model, x, classes = random_network(seed)
    low, high = loss_range(model, x.clamp(0, 1), 0.0, 1.0)
    assert low == 0.0
    corners = (torch.rand(512, *x.shape[1:], dtype=torch.float64) > 0.5).double()
    for label in range(classes):
        losses = functional.cross_entropy(model(corners), torch.full((512,), label), reduction="none")
        assert float(losses.detach().max()) <= high


def test_what_does_not_fit_is_refused():
    model, x = nn.Linear(2, 2), torch.tensor([[0.5, 1.5]])
    with pytest.raises(ValueError, match=r"inputs in \[0, 1\], got values in \[0.5, 1.5\]"):
        loss_range(model, x, 0.0, 1.0)
    network = read_network(model, x)
    corner = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="lower corners"):
        logit_gap_ranges(network, corner + 1, corner)
    with pytest.raises(ValueError, match=r"corners of shape \(m, 2\)"):
        logit_gap_ranges(network, corner[:, :1], corner[:, :1])
    with pytest.raises(ValueError, match="MaxPool2d"):
        loss_range(
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)), torch.rand(1, 1, 2, 2), 0.0, 1.0
        )
