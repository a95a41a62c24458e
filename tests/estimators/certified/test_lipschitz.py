"""Lipschitz constants from layer norms: closed forms, random networks attacked by ascent, speed at 28x28."""

import math
import time

import pytest
import torch
from torch import nn

from empirical.models import ModelConfig, ResidualSum, build_model
from estimators.certified import lipschitz_constants, read_network, whole_space_bounds

NORMS = ("l2", "linf")
DUAL = {"l2": 2, "linf": 1}


def constants_of(model, x, norm="l2"):
    return lipschitz_constants(read_network(model, x), norm)


def difference_gradients(model, points):
    """Gradients (n, K, K, d) of the logit differences, themselves differentiable."""
    logits = model(points).sum(0)
    rows = torch.stack(
        [torch.autograd.grad(one, points, create_graph=True)[0].flatten(1) for one in logits], 1
    )
    return rows.unsqueeze(2) - rows.unsqueeze(1)


def steepest_seen(model, x, norm, steps=4):
    """Largest dual norms (K, K) of the gradients of the logit differences, by ascent from x and noise."""
    noise = torch.randn(16, *x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    points, best = torch.cat([x, noise, 4 * noise]), torch.zeros(())
    for _ in range(steps + 1):
        points.requires_grad_()
        sizes = difference_gradients(model, points).norm(DUAL[norm], dim=3)
        best = torch.maximum(best, sizes.detach().amax(0))
        (slope,) = torch.autograd.grad(sizes.flatten(1).amax(1).sum(), points)
        length = slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        points = (points + 0.2 * slope / length).detach()
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(6))
def test_ascent_never_finds_a_steeper_place(random_network, seed, norm):
    model, x, _ = random_network(seed, smooth=seed % 4 < 2)
    bound = constants_of(model, x, norm)
    assert torch.equal(bound, bound.T)
    assert not bound.diagonal().any()
    assert (steepest_seen(model, x, norm) <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_linear_networks_are_exact(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Linear(7, 4)).double()
    weight = model[2].weight.data @ model[1].weight.data
    expected = (weight.unsqueeze(1) - weight).norm(DUAL[norm], dim=2)
    found = constants_of(model, torch.rand(2, 1, 3, 4, dtype=torch.float64), norm)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("activation", "steepest"), [(nn.Tanh(), 1.0), (nn.Sigmoid(), 0.25)])
def test_one_narrow_layer_is_exact(activation, steepest):
    """One unit, steepest at 0: the slope there is the constant."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 1, bias=False), activation, nn.Linear(1, 3)).double()
    first, last = model[0].weight.data[0], model[2].weight.data[:, 0]
    for norm, size in (("l2", first.norm()), ("linf", first.abs().sum())):
        expected = steepest * size * (last.unsqueeze(1) - last).abs()
        found = constants_of(model, torch.zeros(1, 5, dtype=torch.float64), norm)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_sum_adds_its_branches(norm):
    """The identity and three times the identity: the logits are four times the input."""
    tripled = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        tripled.weight.copy_(3 * torch.eye(3))
    found = constants_of(ResidualSum(tripled, nn.Identity()), torch.rand(1, 3, dtype=torch.float64), norm)
    expected = 4 * (math.sqrt(2) if norm == "l2" else 2) * (1 - torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_the_matrix_bounds_are_tighter_and_agree_for_one_hidden_layer_of_width_one():
    torch.manual_seed(2)
    for hidden, equal in (((1,), True), ((16, 16), False)):
        model = build_model(ModelConfig("mlp", "softplus(5)", hidden), shape=(1, 4, 4), classes=3).double()
        network = read_network(model, torch.rand(1, 1, 4, 4, dtype=torch.float64))
        product, matrix = lipschitz_constants(network), whole_space_bounds(network).lipschitz
        assert (matrix <= product * (1 + 1e-7)).all()
        assert torch.allclose(matrix, product, rtol=1e-6) == equal


def test_a_convolutional_network_on_28x28_is_cheap_and_covers_what_attacks_find():
    torch.manual_seed(4)
    model = build_model(ModelConfig("lenet", "softplus(5)"), shape=(1, 28, 28), classes=10).double().eval()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    network = read_network(model, x)
    start = time.process_time()
    bounds = {norm: lipschitz_constants(network, norm) for norm in NORMS}
    assert time.process_time() - start < 20  # whole_space_bounds takes minutes
    gradients = difference_gradients(model, x.requires_grad_())
    for norm in NORMS:
        seen = gradients.norm(DUAL[norm], dim=3).amax(0)
        assert (seen <= bounds[norm]).all()
        assert (bounds[norm] <= 1e3 * seen).all()
    # An l2 ball lies in a cube, and a cube in a ball that is sqrt d times as large.
    assert (bounds["linf"] <= 28 * bounds["l2"] * (1 + 1e-9)).all()


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="expected the norm l2 or linf, got 'l1'"):
        constants_of(nn.Linear(2, 2).double(), torch.zeros(1, 2, dtype=torch.float64), "l1")
