"""Bounds over the whole space: closed forms, dense grids, exhaustive Hessians, random networks, ascent."""

import math

import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev, vmap

from empirical.models import ModelConfig, ResidualSum, build_model
from estimators.certified.network import read_network
from estimators.certified.whole_space import cross_entropy_bounds, whole_space_bounds
from estimators.losses import cross_entropy
from estimators.smoothness import smoothness

ROUNDING = 1 + 1e-9


def bounds_of(model, x):
    return whole_space_bounds(read_network(model, x))


def derivatives(model, points):
    """Softmax (n, K), Jacobians (n, K, d) and Hessians (n, K, d, d) of the logits at points (n, *shape)."""
    shape = points.shape[1:]

    def logits(flat):
        return model(flat.reshape(1, *shape))[0]

    flat = points.flatten(1)
    with torch.no_grad():
        shares = model(points).softmax(1)
    return shares, vmap(jacrev(logits))(flat).detach(), vmap(hessian(logits))(flat).detach()


def cross_entropy_derivatives(p, jacobian, hessians):
    """Gradient norms (n, K) and Hessian spectral norms (n, K) of cross-entropy at every label."""
    residual = p.unsqueeze(1) - torch.eye(p.shape[1], dtype=p.dtype)
    covariance = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    shared = jacobian.mT @ covariance @ jacobian
    whole = shared.unsqueeze(1) + torch.einsum("nyk,nkde->nyde", residual, hessians)
    return (residual @ jacobian).norm(dim=2), torch.linalg.matrix_norm(whole, ord=2)


def steep_points(model, x, count=4):
    """Of many points at several scales, those with the largest gradients of the logits, and x itself."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(48, *x.shape[1:], generator=generator, dtype=x.dtype)
    wide = noise * torch.tensor([0.3, 1.0, 3.0], dtype=x.dtype).repeat(16).view(-1, *[1] * (x.dim() - 1))
    wide.requires_grad_()
    (gradient,) = torch.autograd.grad(model(wide).square().sum().sqrt(), wide)
    chosen = gradient.flatten(1).norm(dim=1).topk(count).indices
    return torch.cat([x, wide.detach()[chosen]])


def assert_within(model, points, found):
    """Nothing seen at the points exceeds its bound, up to the rounding of the derivatives seen."""
    p, jacobian, hessians = derivatives(model, points)
    gradient, beta = cross_entropy_derivatives(p, jacobian, hessians)
    difference = jacobian.unsqueeze(2) - jacobian.unsqueeze(1)
    bend = torch.linalg.eigvalsh(hessians.unsqueeze(2) - hessians.unsqueeze(1))[..., -1]
    slack = 1e-10 * (1 + float(found.smoothness.max()))
    for seen, bound in (
        (difference.norm(dim=3), found.lipschitz),
        (bend, found.bend),
        (gradient, found.gradient),
        (beta, found.smoothness),
    ):
        assert (seen.amax(0) <= bound + slack).all()


def linear(weight):
    model = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    return model


def mlp(activation, hidden=6, inputs=4, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), activation, nn.Linear(hidden, classes)).double()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_linear_softmax_is_exact_for_independent_rows(classes):
    weight = torch.randn(classes, 6, generator=torch.Generator().manual_seed(classes)).double()
    found = bounds_of(linear(weight), torch.zeros(2, 6, dtype=torch.float64))
    distances = torch.cdist(weight, weight)
    torch.testing.assert_close(found.lipschitz, distances, rtol=1e-8, atol=1e-12)
    assert float(found.bend.max()) == 0
    assert float(found.smoothness.max()) == pytest.approx(float(distances.max() ** 2 / 4), rel=1e-8)
    torch.testing.assert_close(found.gradient, distances.amax(1), rtol=1e-8, atol=0)
    # Attained in the limit: the two farthest classes tie, and the others are far below.
    first, second = divmod(int(distances.argmax()), classes)
    goal = torch.full((classes,), -60.0, dtype=torch.float64)
    goal[[first, second]] = 0
    tie = torch.linalg.lstsq(weight, goal).solution.unsqueeze(0)
    _, beta = cross_entropy_derivatives(*derivatives(linear(weight), tie))
    assert float(beta.max()) == pytest.approx(float(distances.max() ** 2 / 4), rel=1e-6)


def test_four_symmetric_classes_are_only_bounded():
    weight = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()
    found = bounds_of(linear(weight), torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(found.smoothness, torch.ones(4, dtype=torch.float64))
    _, beta = cross_entropy_derivatives(*derivatives(linear(weight), torch.zeros(1, 2, dtype=torch.float64)))
    assert float(beta.max()) == pytest.approx(0.5)


def test_the_two_class_parabola_is_the_maximum_over_all_distributions():
    generator = torch.Generator().manual_seed(0)
    lipschitz = torch.rand(3, 3, generator=generator).double()
    lipschitz = (lipschitz + lipschitz.T).fill_diagonal_(0)
    bend = (3 * torch.rand(3, 3, generator=generator).double()).fill_diagonal_(0)
    beta, gradient = cross_entropy_bounds(lipschitz, bend)
    share = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for label in range(3):
        rises = [
            share * (1 - share) * lipschitz[a, b] ** 2 + share * bend[a, label] + (1 - share) * bend[b, label]
            for a in range(3)
            for b in range(3)
        ]
        expected = max(float(torch.stack(rises).max()), float(bend[label].max()))
        assert float(beta[label]) == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(gradient, lipschitz.amax(1))


@pytest.mark.parametrize("curve", ["tanh", "sigmoid", "softplus", "gelu", "silu"])
def test_one_hidden_unit_against_a_dense_grid(curve):
    activation = {
        "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "gelu": nn.GELU, "silu": nn.SiLU,
    }[curve]()  # fmt: skip
    model = mlp(activation, hidden=1, inputs=1, classes=2)
    with torch.no_grad():
        model[0].weight.fill_(1.5)
        model[2].weight.copy_(torch.tensor([[2.0], [-1.0]]))
    grid = torch.linspace(-30, 30, 40_001, dtype=torch.float64).unsqueeze(1)
    u = grid.clone().requires_grad_()
    z = model(u)
    (slope,) = torch.autograd.grad((z[:, 0] - z[:, 1]).sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    found = bounds_of(model, grid[:4])
    # With one unit the bounds on slope and curvature are the suprema themselves.
    assert float(found.lipschitz[0, 1]) == pytest.approx(float(slope.abs().max()), rel=1e-4)
    assert float(found.bend[0, 1]) == pytest.approx(max(float(bend.max()), 0.0), rel=1e-4, abs=1e-12)
    assert float(found.bend[1, 0]) == pytest.approx(max(float(-bend.min()), 0.0), rel=1e-4, abs=1e-12)
    s = torch.sigmoid(z[:, 1:] - z[:, :1]).detach()
    slope, bend = slope.detach(), bend.detach()
    truth = torch.stack(
        [
            (s * (1 - s) * slope**2 - s * bend).abs().max(),
            (s * (1 - s) * slope**2 + (1 - s) * bend).abs().max(),
        ]
    )
    assert (truth <= found.smoothness).all()
    assert (found.smoothness <= 10 * truth).all()


def test_a_network_of_depth_three_on_the_line_against_a_dense_grid():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(1, 4),
        nn.Tanh(),
        nn.Linear(4, 4),
        nn.Softplus(),
        nn.Linear(4, 4),
        nn.GELU(),
        nn.Linear(4, 3),
    ).double()
    grid = torch.linspace(-6, 6, 501, dtype=torch.float64).unsqueeze(1)
    found = bounds_of(model, grid[:2])
    assert_within(model, grid, found)


def test_the_curvatures_and_slopes_of_two_branches_add_up():
    branches = [nn.Sequential(nn.Linear(1, 1), nn.Tanh()) for _ in range(2)]
    model = nn.Sequential(ResidualSum(*branches), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for branch in branches:
            branch[0].weight.fill_(1.5)
            branch[0].bias.fill_(0.2)
        model[1].weight.copy_(torch.tensor([[2.0], [-1.0]]))
    found = bounds_of(model, torch.zeros(2, 1, dtype=torch.float64))
    assert float(found.lipschitz[0, 1]) == pytest.approx(2 * 3 * 1.5, rel=1e-6)
    steepest_bend = 4 / (3 * math.sqrt(3))
    assert float(found.bend[0, 1]) == pytest.approx(2 * 3 * 1.5**2 * steepest_bend, rel=1e-6)
    assert_within(model, torch.linspace(-3, 3, 301, dtype=torch.float64).unsqueeze(1), found)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softplus()])
def test_two_layers_against_exhaustive_hessians(activation):
    model = mlp(activation, inputs=2, classes=3)
    axis = torch.linspace(-4, 4, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    found = bounds_of(model, grid[:2])
    assert_within(model, grid, found)
    _, truth = cross_entropy_derivatives(*derivatives(model, grid))
    assert (found.smoothness <= 6 * truth.amax(0)).all()


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_scaling_the_input_scales_lipschitz_once_and_curvature_twice(factor):
    model = mlp(nn.Tanh())
    x = torch.randn(2, 4, dtype=torch.float64)
    before = bounds_of(model, x)
    with torch.no_grad():
        model[0].weight.mul_(factor)
    after = bounds_of(model, x)
    for name, power in (("lipschitz", 1), ("gradient", 1), ("bend", 2), ("smoothness", 2)):
        torch.testing.assert_close(
            getattr(after, name), factor**power * getattr(before, name), rtol=1e-6, atol=1e-9
        )


def test_rotations_of_the_input_change_nothing():
    model = mlp(nn.Softplus())
    x = torch.randn(2, 4, dtype=torch.float64)
    before = bounds_of(model, x)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ rotation)
    after = bounds_of(model, x)
    # The bound holds for whatever multipliers are found, and they depend a little on the starting vector.
    torch.testing.assert_close(after.smoothness, before.smoothness, rtol=1e-4, atol=0)
    torch.testing.assert_close(after.bend, before.bend, rtol=1e-6, atol=1e-12)


def test_kinks_leave_gradients_bounded_and_nothing_else(random_network):
    for seed in range(12):
        model, x, classes = random_network(seed, smooth=False)
        found = bounds_of(model, x)
        assert found.smoothness.isinf().all()
        assert found.bend[~torch.eye(classes, dtype=torch.bool)].isinf().all()
        assert found.gradient.isfinite().all()
        points = steep_points(model, x).requires_grad_()
        gradients = [
            torch.autograd.grad(logit.sum(), points, retain_graph=True)[0] for logit in model(points).T
        ]
        jacobian = torch.stack(gradients, 1).flatten(2)
        seen = (jacobian.unsqueeze(2) - jacobian.unsqueeze(1)).norm(dim=3).amax(0)
        assert (seen <= found.lipschitz + 1e-10).all()


def test_wide_networks_go_on_without_matrix_bounds(monkeypatch, random_network):
    model, x, _ = random_network(7)
    with_factors = bounds_of(model, x)
    monkeypatch.setattr("estimators.certified.factors._ENTRIES", 1)
    monkeypatch.setattr("estimators.certified.whole_space._NARROW", 0)
    without = bounds_of(model, x)
    assert_within(model, steep_points(model, x), without)
    assert (with_factors.smoothness <= without.smoothness).all()
    assert float(with_factors.smoothness.max()) < float(without.smoothness.max())


def test_an_input_shift_and_label_permutation_permute_the_bounds():
    model = mlp(nn.GELU())
    x = torch.randn(2, 4, dtype=torch.float64)
    before = bounds_of(model, x)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        model[0].bias.add_(1.0)
        model[2].weight.copy_(model[2].weight[order])
    after = bounds_of(model, x)
    torch.testing.assert_close(after.smoothness, before.smoothness[order], rtol=1e-6, atol=0)
    torch.testing.assert_close(after.lipschitz, before.lipschitz[order][:, order], rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(24))
def test_some_random_networks_stay_within_their_bounds(seed, random_network):
    model, x, _ = random_network(seed)
    assert_within(model, steep_points(model, x), bounds_of(model, x))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(7))
def test_seven_hundred_random_networks_stay_within_their_bounds(block, random_network):
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        model, x, _ = random_network(seed)
        assert_within(model, steep_points(model, x), bounds_of(model, x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "architecture"), [("tanh", "mlp"), ("softplus", "mlp"), ("softplus(3)", "lenet")]
)
def test_ascent_on_trained_networks_never_leaves_the_bound(activation, architecture):
    x, y = blobs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(ModelConfig(architecture, activation, (16,)), shape=(1, 4, 4), classes=3).double()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.eval()
    assert float((model(x).argmax(1) == y).double().mean()) > 0.9
    found = bounds_of(model, x[:2])
    labels = torch.arange(3).expand(6, 3)
    for method in ("ascent", "quotient"):
        for radius in (1.0, 10.0):
            seen = smoothness(
                model, cross_entropy, x[:6], labels, radius=radius, method=method, steps=15
            ).value
            assert 0 < seen <= float(found.smoothness.max()) * ROUNDING
    assert_within(model, x[:6], found)


def blobs():
    """Noisy images of three fixed patterns, with their labels."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(60) % 3
    return patterns[y] + 0.3 * torch.randn(60, 1, 4, 4, generator=generator, dtype=torch.float64), y


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_layer_of_zeros_makes_a_constant_network_with_bounds_of_zero(layer):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 2)
    ).double()  # fmt: skip
    with torch.no_grad():
        model[layer].weight.zero_()
    found = bounds_of(model, torch.zeros(2, 3, dtype=torch.float64))
    for values in (found.lipschitz, found.bend, found.smoothness, found.gradient):
        assert float(values.max()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_extreme_weights_neither_overflow_nor_vanish(scale):
    model = mlp(nn.Tanh())
    x = torch.randn(2, 4, dtype=torch.float64)
    before = bounds_of(model, x)
    with torch.no_grad():
        model[2].weight.mul_(scale)
    torch.testing.assert_close(bounds_of(model, x).lipschitz / scale, before.lipschitz, rtol=1e-6, atol=0)


def test_no_bound_is_negative_or_undefined(random_network):
    for seed in range(100, 110):
        model, x, _ = random_network(seed)
        found = bounds_of(model, x)
        for values in (found.lipschitz, found.bend, found.smoothness, found.gradient):
            assert (values >= 0).all()
            assert values.isfinite().all()
        assert float(found.lipschitz.diagonal().max()) == 0
        assert math.isfinite(float(found.smoothness.max()))
