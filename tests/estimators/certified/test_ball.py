"""Certified bounds over balls: exact at radius 0, never crossed by any point found, refused by name."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, vmap

from empirical.models import SOFTPLUS_THRESHOLD
from estimators import cross_entropy
from estimators.certified.ball import BallBounds, ball_bounds, read_checked
from estimators.certified.cosine import certified_gradient_range, margin_curvature
from estimators.certified.curvature import gradient_shift, largest_eigenvalue
from estimators.certified.enclosure import Rows
from estimators.certified.whole_space import whole_space_bounds

RADII = (0.03, 0.2, 0.7, 2.0)


@dataclass
class Truth:
    """What is true at points (m, *shape) with labels y, by automatic differentiation."""

    kappa: Tensor
    kappa_plus: Tensor
    margin_gradients: Tensor
    hessian: Tensor
    gradient: Tensor
    direction: Tensor


def truth(model, points, y):
    points = points.detach().requires_grad_(True)
    logits = model(points)
    size = points[0].numel()
    jacobian, hessians = [], []
    for logit in logits.sum(0):
        (rows,) = torch.autograd.grad(logit, points, create_graph=True)
        rows = rows.flatten(1)
        jacobian.append(rows.detach())
        columns = [torch.zeros_like(rows)] * size
        if rows.requires_grad:
            columns = [
                torch.autograd.grad(rows[:, i].sum(), points, retain_graph=True, materialize_grads=True)[
                    0
                ].flatten(1)
                for i in range(size)
            ]
        hessians.append(torch.stack(columns, 1))
    z, jac, hess = logits.detach(), torch.stack(jacobian, 1), torch.stack(hessians, 1)
    every = torch.arange(len(y))
    margin_gradients = jac[every, y].unsqueeze(1) - jac
    margin_hessians = hess[every, y].unsqueeze(1) - hess
    p = z.softmax(1)
    mean = torch.einsum("nk,nkd->nd", p, jac)
    loss_hessian = torch.einsum("nk,nkd,nke->nde", p, jac, jac) - mean.unsqueeze(2) * mean.unsqueeze(1)
    loss_hessian = loss_hessian - torch.einsum("nk,nkde->nde", p, margin_hessians)
    share = z.scatter(1, y.unsqueeze(1), -math.inf).softmax(1)
    eigenvalues = torch.linalg.eigvalsh(margin_hessians)
    return Truth(
        -eigenvalues[..., 0], eigenvalues[..., -1], margin_gradients,
        torch.linalg.matrix_norm(loss_hessian, ord=2),
        torch.einsum("nk,nkd->nd", p, margin_gradients).norm(dim=1),
        -torch.einsum("nk,nkd->nd", share, margin_gradients),
    )  # fmt: skip


def excess(bounds: BallBounds, seen: Truth):
    """By how much the worst quantity of each sample leaves its range, relative to the range's size, (n,)."""
    moved = (seen.margin_gradients - bounds.gradients).norm(dim=2)
    turned = (seen.direction - bounds.loss_direction).norm(dim=1, keepdim=True)
    pairs = [
        (seen.kappa, bounds.kappa),
        (seen.kappa_plus, bounds.kappa_plus),
        (moved, bounds.deviation),
        (seen.hessian.unsqueeze(1), bounds.hessian.unsqueeze(1)),
        (seen.gradient.unsqueeze(1), bounds.gradient_high.unsqueeze(1)),
        (bounds.gradient_low.unsqueeze(1), seen.gradient.unsqueeze(1)),
        (turned, bounds.loss_deviation.unsqueeze(1)),
    ]
    return torch.cat(
        [((value - bound) / (1e-3 + bound.abs())).where(bound.isfinite(), -1.0) for value, bound in pairs], 1
    )


def climb(model, x, y, radius, bounds, generator, *, rounds=3, tries=5):
    """The largest excess of each quantity over points of the balls, climbing on the worst of them."""
    repeated = BallBounds(*(getattr(bounds, name).repeat_interleave(tries, 0) for name in vars(bounds)))
    labels = y.repeat_interleave(tries, 0)
    best = torch.zeros_like(x.flatten(1))
    worst = torch.full((len(x),), -math.inf, dtype=x.dtype)
    everything = []
    for turn in range(rounds):
        noise = torch.randn(len(x), tries, best.shape[1], generator=generator, dtype=x.dtype)
        noise = noise / noise.norm(dim=2, keepdim=True)
        offsets = best.unsqueeze(1) + 2 * radius * 0.4**turn * noise
        offsets = offsets * (radius / offsets.norm(dim=2, keepdim=True)).clamp_max(1)
        points = x.repeat_interleave(tries, 0) + offsets.reshape(-1, *x.shape[1:])
        found = excess(repeated, truth(model, points, labels)).reshape(len(x), tries, -1)
        everything.append(found.amax((0, 1)))
        height, chosen = found.amax(2).max(1)
        better = height > worst
        best[better] = offsets[torch.arange(len(x)), chosen][better]
        worst = torch.maximum(worst, height)
    return torch.stack(everything).amax(0)


def labels_for(x, classes, seed):
    return torch.randint(0, classes, (len(x),), generator=torch.Generator().manual_seed(seed))


def attack_random_networks(random_network, seeds):
    generator = torch.Generator().manual_seed(0)
    for seed in seeds:
        model, x, classes = random_network(seed)
        y = labels_for(x, classes, seed)
        radius = RADII[seed // 2 % len(RADII)]
        bounds = ball_bounds(*read_checked(model, x, y), radius)
        found = climb(model, x, y, radius, bounds, generator)
        assert found.max() <= 1e-7, f"seed {seed}, radius {radius}: {found.tolist()}"


def test_no_point_of_a_ball_leaves_the_ranges(random_network):
    """Random and climbing points, dense and convolutional networks, all activations, residual sums."""
    attack_random_networks(random_network, range(16))


@pytest.mark.slow
def test_no_point_of_a_ball_leaves_the_ranges_of_many_networks(random_network):
    """The same for hundreds of networks."""
    attack_random_networks(random_network, range(16, 316))


def test_exact_at_radius_zero(random_network):
    """Extreme eigenvalues, Hessian and gradient norms are the true ones, by torch's forward over reverse."""
    for seed in range(8):
        model, x, classes = random_network(seed)
        y = labels_for(x, classes, seed)
        bounds = ball_bounds(*read_checked(model, x, y), 0.0)

        def loss(point, label, model=model, shape=x.shape[1:]):
            return cross_entropy(model(point.reshape(1, *shape)), label.reshape(1))[0]

        hessians = vmap(hessian(loss))(x.flatten(1), y)
        norms = torch.linalg.matrix_norm(hessians, ord=2)
        seen = truth(model, x, y)
        torch.testing.assert_close(seen.hessian, norms, rtol=1e-9, atol=1e-10)
        for found, expected in (
            (bounds.hessian, norms),
            (bounds.kappa, seen.kappa),
            (bounds.kappa_plus, seen.kappa_plus),
            (bounds.gradients, seen.margin_gradients),
            (bounds.gradient_low, seen.gradient),
            (bounds.gradient_high, seen.gradient),
            (bounds.loss_direction, seen.direction),
            (bounds.deviation, torch.zeros_like(bounds.deviation)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_one_hidden_unit_against_a_grid():
    """Logits (c sigma(w.x), 0): the curvature over the ball is that of sigma over an interval."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[0.6, 0.8]])
        model[2].weight[:] = torch.tensor([[1.5], [0.0]])
    x, y = torch.tensor([[0.2, 0.1], [-1.0, -0.5]], dtype=torch.float64), torch.tensor([0, 1])
    kappa, kappa_plus = margin_curvature(model, x, y, 0.5)
    centre = x @ model[0].weight[0]
    u = centre.unsqueeze(1) + torch.linspace(-0.5, 0.5, 100_001, dtype=torch.float64)
    bend = -2 * torch.tanh(u) * (1 - torch.tanh(u) ** 2) * torch.tensor([[1.5], [-1.5]])
    # The second direction of the plane has curvature 0.
    every = torch.arange(2)
    torch.testing.assert_close(kappa[every, 1 - y], (-bend).amax(1).clamp_min(0.0), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(kappa_plus[every, 1 - y], bend.amax(1).clamp_min(0.0), rtol=1e-7, atol=1e-8)


def test_wide_inputs_are_treated_in_the_span_of_the_rows():
    """More inputs than rows: the eigenvalue 0 of the other directions counts, and nothing else changes."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(30, 3), nn.Softplus(1.0, SOFTPLUS_THRESHOLD), nn.Linear(3, 2)).double()
    x, y = torch.randn(3, 30, dtype=torch.float64), torch.tensor([0, 1, 0])
    bounds = ball_bounds(*read_checked(wide, x, y), 0.0)
    seen = truth(wide, x, y)
    torch.testing.assert_close(bounds.kappa, seen.kappa, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(bounds.hessian, seen.hessian, rtol=1e-6, atol=1e-8)
    climb_found = climb(
        wide, x, y, 0.5, ball_bounds(*read_checked(wide, x, y), 0.5), torch.Generator().manual_seed(1)
    )
    assert climb_found.max() <= 1e-7


def test_larger_balls_have_larger_bounds_up_to_those_of_the_whole_space(random_network):
    """Upper bounds grow with the radius, lower bounds fall, and none passes the global one."""
    for seed in range(4):
        model, x, classes = random_network(seed)
        y = labels_for(x, classes, seed)
        network, x, y = read_checked(model, x, y)
        everywhere = whole_space_bounds(network)
        before = ball_bounds(network, x, y, 0.0)
        for radius in (0.1, 0.4, 1.5, 20.0):
            after = ball_bounds(network, x, y, radius)
            for name in ("kappa", "kappa_plus", "deviation", "hessian", "gradient_high", "loss_deviation"):
                small, large = getattr(before, name), getattr(after, name)
                assert (small <= large + 1e-6 * (1 + large.abs())).all(), (seed, radius, name)
            assert (after.gradient_low <= before.gradient_low + 1e-9).all()
            before = after
        assert (before.hessian <= everywhere.smoothness[y]).all()
        assert (before.gradient_high <= everywhere.gradient[y]).all()
        assert (before.kappa <= everywhere.bend.T[y]).all()
        assert (before.kappa_plus <= everywhere.bend[y]).all()


def test_batches_change_nothing(random_network):
    """One sample at a time gives what all at once give."""
    model, x, classes = random_network(3)
    network, x, y = read_checked(model, x, labels_for(x, classes, 3))
    together, apart = ball_bounds(network, x, y, 0.3), ball_bounds(network, x, y, 0.3, batch_size=1)
    for name in vars(together):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), rtol=1e-9, atol=1e-12)


def test_kinks_leave_gradients_bounded_but_no_curvature(random_network):
    """ReLU: infinite curvature where a kink may be near, and gradients within the deviation all the same."""
    generator = torch.Generator().manual_seed(0)
    infinite = 0
    for seed in range(12):
        model, x, classes = random_network(seed, smooth=False)
        y = labels_for(x, classes, seed)
        bounds = ball_bounds(*read_checked(model, x, y), 0.5)
        infinite += int(bounds.hessian.isinf().sum())
        assert bounds.deviation.isfinite().all()
        finite = bounds.hessian.isfinite()
        assert (bounds.kappa[finite].isfinite()).all()
        assert climb(model, x, y, 0.5, bounds, generator).max() <= 1e-7
    assert infinite > 8


def test_public_wrappers_give_the_same_numbers(random_network):
    """In the models' own dtype."""
    model, x, classes = random_network(1)
    y = labels_for(x, classes, 1)
    bounds = ball_bounds(*read_checked(model, x, y), 0.2)
    torch.testing.assert_close(margin_curvature(model, x, y, 0.2), (bounds.kappa, bounds.kappa_plus))
    found = certified_gradient_range(model, x, y, 0.2)
    torch.testing.assert_close(found, (bounds.gradient_low, bounds.gradient_high))


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_a_radius_that_is_none_is_refused(random_network, radius):
    """Before any work, in one line."""
    model, x, classes = random_network(0)
    with pytest.raises(ValueError, match="finite radius of at least 0"):
        margin_curvature(model, x, labels_for(x, classes, 0), radius)


def test_max_pooling_is_refused_by_name():
    """A layer without certificate is named."""
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="MaxPool2d"):
        margin_curvature(model, torch.zeros(1, 1, 4, 4), torch.tensor([0]), 0.1)


def one_row(length, deviation, size=1):
    centre = torch.zeros(1, size, 1, dtype=torch.float64)
    centre[0, 0, 0] = length
    moved = torch.full((1, 1), deviation, dtype=torch.float64)
    return Rows(centre, moved, moved[:, 0])


@pytest.mark.parametrize("deviation", [0.0, 0.3, 5.0])
def test_a_form_of_one_row_is_bounded_tightly(deviation):
    """The largest of c (|a| + e)^2 over weights and deviations is attained, so the bound equals it."""
    low, high = torch.tensor([[-0.5]]).double(), torch.tensor([[2.0]]).double()
    found = largest_eigenvalue([one_row(1.5, deviation, 2)], low, high)
    assert found.item() == pytest.approx(2.0 * (1.5 + deviation) ** 2, rel=1e-8)


def test_rows_that_shrink_raise_a_negative_form():
    """On a line, -(a - e)^2 is above -a^2."""
    low = high = torch.tensor([[-1.0]]).double()
    found = largest_eigenvalue([one_row(1.5, 0.5)], low, high).item()
    assert -((1.5 - 0.5) ** 2) <= found <= 0


def test_the_shift_of_a_gradient_is_attained_by_parallel_rows():
    """Two rows that push the same way: the triangle inequality is sharp."""
    rows, push = (
        [one_row(1.5, 0.0, 2), one_row(-2.0, 0.0, 2)],
        torch.tensor([[0.2, 0.7]], dtype=torch.float64),
    )
    assert gradient_shift(rows, push).item() == pytest.approx(0.2 * 1.5 + 0.7 * 2.0, rel=1e-8)
