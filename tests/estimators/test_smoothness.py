"""Smoothness: closed forms, no overestimate, every method's set and direction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, vmap
from torch.nn import functional

from estimators import cross_entropy, hessian_norms, sampled_smoothness, smoothness

SAMPLED = ["hessian", "ascent", "quotient"]


def linear(rows, dtype=torch.float64):
    rows = torch.as_tensor(rows, dtype=dtype)
    model = nn.Linear(rows.shape[1], rows.shape[0], bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(rows)
    return model


def tie(rows, first, second):
    """A point where two classes tie far above the others: least squares for logits of 30, the others 0."""
    goal = torch.zeros(len(rows), dtype=torch.float64)
    goal[[first, second]] = 30.0
    return torch.linalg.lstsq(torch.as_tensor(rows, dtype=torch.float64), goal[:, None]).solution.T


class SingleIndex(nn.Module):
    """Logits (c tanh(w.x + b), 0): all curvature lies along w."""

    def __init__(self, c, w, b):
        super().__init__()
        self.c, self.w, self.b = c, torch.tensor(w, dtype=torch.float64), b

    def forward(self, x):
        first = self.c * torch.tanh(x @ self.w + self.b)
        return torch.stack([first, torch.zeros_like(first)], 1)


def single_index_curvature(c, low=-6.0, high=6.0, points=400_001):
    """Largest |h''| on a grid for h(u) = log(1 + exp(-c tanh u))."""
    u = np.linspace(low, high, points)
    t = np.tanh(u)
    q, dq, ddq = c * t, c * (1 - t**2), -2 * c * t * (1 - t**2)
    s = 1 / (1 + np.exp(q))
    return np.abs(s * (1 - s) * dq**2 - s * ddq).max()


@pytest.mark.parametrize("c", [1.0, -4.0, 9.0])
def test_single_index_models_reach_the_one_dimensional_truth(c):
    w = [3.0, 4.0]
    model = SingleIndex(c, w, 0.2)
    truth = 25 * single_index_curvature(c)
    x = torch.tensor([[0.0, 0.0], [0.2, 0.1], [-0.1, -0.3]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    for method in ("ascent", "quotient"):
        found = smoothness(model, cross_entropy, x, y, radius=0.6, method=method, points=16, steps=60)
        assert found.value <= truth * (1 + 1e-9), method
        assert found.value >= 0.98 * truth, method
    sampled = smoothness(model, cross_entropy, x, y, radius=0.6, points=400)
    assert 0.97 * truth <= sampled.value <= truth * (1 + 1e-9)


def test_single_index_segment_contains_the_worst_point():
    model = SingleIndex(-4.0, [3.0, 4.0], 0.0)
    along = torch.tensor([[3.0, 4.0]], dtype=torch.float64) / 25
    found = smoothness(
        model, cross_entropy, -2 * along, torch.tensor([0]), method="segment", x_end=2 * along, points=201
    )
    truth = 25 * single_index_curvature(-4.0, -2, 2)
    assert 0.999 * truth <= found.value <= truth * (1 + 1e-9)
    assert found.upper == math.inf


def test_two_classes_attain_the_certified_constant():
    model = linear([[1.0, 2.0], [-1.0, 0.5]])
    found = smoothness(
        model, cross_entropy, torch.zeros(1, 2).double(), torch.tensor([0]), method="certified"
    )
    truth = (2.0**2 + 1.5**2) / 4
    assert found.upper == pytest.approx(truth, rel=1e-8)
    assert found.lower == pytest.approx(truth, rel=1e-8)
    assert found.lower <= truth * (1 + 1e-12)
    assert truth <= found.upper


def test_affinely_independent_rows_attain_the_certified_constant_at_a_tie():
    rows = [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]
    model, x = linear(rows), tie(rows, 0, 1)
    found = smoothness(model, cross_entropy, x, torch.tensor([2]), method="certified")
    assert found.upper == pytest.approx(13 / 4, rel=1e-8)
    assert found.lower == pytest.approx(13 / 4, rel=1e-6)
    assert found.value == found.upper


def test_dependent_rows_leave_a_gap_that_ascent_does_not_close():
    rows = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(30, dtype=torch.int64)
    certified = smoothness(linear(rows), cross_entropy, x, y, method="certified")
    assert certified.upper == pytest.approx(1.0)
    found = smoothness(linear(rows), cross_entropy, x, y, radius=3.0, method="ascent", steps=40)
    assert found.value == pytest.approx(0.5, rel=1e-3)


def random_net(seed):
    generator = torch.Generator().manual_seed(seed)
    activation = [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Softplus(3, 50)][seed % 4]
    model = nn.Sequential(nn.Linear(2, 4), activation, nn.Linear(4, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model, torch.randn(1, 2, generator=generator, dtype=torch.float64)


def dense_truth(model, centre, radius, label):
    """Largest spectral norm on a polar grid over the ball, from full Hessians."""
    angle = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)[:-1]
    share = torch.linspace(0, radius, 61, dtype=torch.float64)[:, None]
    points = torch.stack([(share * angle.cos()).flatten(), (share * angle.sin()).flatten()], 1) + centre

    def loss(point):
        return functional.cross_entropy(model(point[None]), torch.tensor([label]))

    return torch.linalg.eigvalsh(vmap(hessian(loss))(points)).abs().max().item()


@pytest.mark.slow
@given(st.integers(0, 100_000), st.sampled_from(SAMPLED), st.integers(0, 2))
def test_random_nets_are_never_above_the_truth(seed, method, label):
    model, x = random_net(seed)
    truth = dense_truth(model, x, 0.5, label)
    found = smoothness(
        model, cross_entropy, x, torch.tensor([label]), radius=0.5, method=method, points=8, steps=15
    )
    # The grid's own error is of second order in its spacing of 0.01 to 0.03, except at the rim.
    assert found.lower <= truth * 1.01 + 1e-9
    assert (found.value, found.upper) == (found.lower, math.inf)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("ascent", 0.99), ("quotient", 0.95), ("hessian", 0.7)])
def test_random_nets_mostly_come_close_to_the_truth(method, share):
    reached = []
    for seed in range(21):
        model, x = random_net(seed)
        found = smoothness(
            model, cross_entropy, x, torch.tensor([0]), radius=0.5, method=method, points=8, steps=30
        )
        reached.append(found.value / dense_truth(model, x, 0.5, 0))
    assert np.median(reached) >= share
    if method == "ascent":
        assert np.mean(np.array(reached) >= 0.95) >= 0.8


def test_ascent_climbs_above_random_points():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5)
    ).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    x, y = torch.randn(12, 20, dtype=torch.float64), torch.randint(5, (12,))
    at_data = smoothness(model, cross_entropy, x, y)
    random = smoothness(model, cross_entropy, x, y, radius=0.5, points=8)
    climbed = smoothness(model, cross_entropy, x, y, radius=0.5, method="ascent")
    pairs = smoothness(model, cross_entropy, x, y, radius=0.5, method="quotient")
    assert at_data.value <= random.value
    assert climbed.value > 1.1 * random.value
    assert pairs.value > at_data.value


def test_radius_zero_is_the_largest_hessian_norm_at_the_data():
    model, _ = random_net(1)
    x, labels = torch.randn(7, 2, dtype=torch.float64), torch.arange(3).expand(7, 3)
    found = smoothness(model, cross_entropy, x, labels)
    assert found.value == hessian_norms(model, cross_entropy, x, labels).max()
    assert (found.samples, found.seed) == (7, 0)


def test_segment_covers_its_ends():
    model, _ = random_net(2)
    torch.manual_seed(0)
    x, x_end = torch.randn(2, 5, 2, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    found = smoothness(model, cross_entropy, x, y, method="segment", x_end=x_end, points=2)
    ends = torch.cat([hessian_norms(model, cross_entropy, end, y) for end in (x, x_end)])
    assert found.value == pytest.approx(ends.max().item(), rel=1e-12)


def test_relu_is_reported_infinite_with_what_was_sampled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    found = smoothness(model, cross_entropy, x, y)
    assert (found.value, found.upper) == (math.inf, math.inf)
    assert found.lower == hessian_norms(model, cross_entropy, x, y).max()
    assert "ReLU" in found.method


@pytest.mark.parametrize("method", SAMPLED)
def test_seed_decides_and_float32_agrees_with_float64(method):
    model, _ = random_net(4)
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    kwargs = {"radius": 0.3, "method": method}
    first, second = (smoothness(model, cross_entropy, x, y, seed=3, **kwargs) for _ in range(2))
    assert first == second
    single = smoothness(model.float(), cross_entropy, x.float(), y, seed=3, **kwargs)
    assert single.value == pytest.approx(first.value, rel=1e-2)


def test_quadratic_loss_has_its_largest_absolute_eigenvalue_whatever_the_method():
    def loss(z, y):
        return (z * z * torch.tensor([-6.0, 1.0, 2.0], dtype=z.dtype)).sum(1) / 2

    x, y = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    for method in ("hessian", "ascent"):
        assert smoothness(nn.Flatten(), loss, x, y, radius=1.0, method=method).value == pytest.approx(6.0)
    assert smoothness(nn.Flatten(), loss, x, y, radius=1.0, method="quotient", steps=1).value <= 6.0 + 1e-9
    pairs = smoothness(nn.Flatten(), loss, x, y, radius=1.0, method="quotient", steps=40).value
    assert 5.9 <= pairs <= 6.0 * (1 + 1e-9)


@pytest.mark.parametrize("method", [*SAMPLED, "segment"])
def test_convergence_rises_to_the_estimate_and_samples_keep_their_own(method):
    model, _ = random_net(6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(3).expand(5, 3)
    where = {"x_end": x + 0.3} if method == "segment" else {"radius": 0.3}
    found = sampled_smoothness(model, cross_entropy, x, labels, method=method, **where, batch_size=4)
    budget, best = np.array(found.convergence.budget), np.array(found.convergence.best)
    assert len(budget) == len(best) > 3
    assert (np.diff(budget) > 0).all()
    assert (np.diff(best) >= 0).all()
    assert best[0] < best[-1]
    assert best[-1] == found.estimate.value == found.per_sample.max().item()
    assert found.estimate == smoothness(model, cross_entropy, x, labels, method=method, **where, batch_size=4)
    alone = sampled_smoothness(model, cross_entropy, x[:1], labels[:1], method=method,
        **({"x_end": x[:1] + 0.3} if method == "segment" else where))  # fmt: skip
    assert found.per_sample.shape == (5, 3)
    if method == "segment":
        torch.testing.assert_close(found.per_sample[:1], alone.per_sample)
        # Four places, each two products and one gradient in two dimensions.
        assert budget.tolist() == [3, 6, 9, 12]


REFUSED = [
    (
        {"method": "newton"},
        "expected a method among hessian, quotient, ascent, segment, certified, got 'newton'",
    ),
    ({"radius": -1.0}, "finite radius of at least 0, got -1.0"),
    ({"radius": float("nan")}, "finite radius of at least 0, got nan"),
    ({"method": "ascent"}, "positive radius for method 'ascent'"),
    ({"method": "segment"}, "expected x_end for method 'segment'"),
    ({"x_end": torch.zeros(2, 2, dtype=torch.float64)}, "for no other, got one for 'hessian'"),
    ({"points": 1}, "at least 2 points, got 1"),
    ({"steps": 0}, "at least 1 step, got 0"),
    ({"iterations": 0}, "at least 1 Lanczos iteration"),
    ({"method": "quotient", "radius": 1e-9}, "radius of at least 1.5e-08 for quotients in torch.float64"),
]


@pytest.mark.parametrize(("kwargs", "message"), REFUSED)
def test_bad_settings_are_refused(kwargs, message):
    model, _ = random_net(0)
    x, y = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        smoothness(model, cross_entropy, x, y, **kwargs)
