"""Certified cosine ranges: exact at radius 0, never left by any point found, vacuous rather than wrong."""

import math

import pytest
import torch
from torch import nn

from estimators import cross_entropy, gradient_similarity
from estimators.certified.ball import ball_bounds, read_checked
from estimators.certified.cosine import cosine_range


def in_balls(x, radius, tries, generator):
    offsets = torch.randn(tries, *x.shape, generator=generator, dtype=x.dtype).flatten(2)
    offsets = offsets / offsets.norm(dim=2, keepdim=True)
    offsets = radius * offsets * torch.rand(tries, len(x), 1, generator=generator, dtype=x.dtype) ** 0.2
    return x + offsets.reshape(tries, *x.shape)


def level_gradient(model, points, y):
    """The gradient of M = log sum_{k != y} exp(z_k - z_y), by automatic differentiation, with a graph."""
    logits = model(points)
    others = logits.scatter(1, y.unsqueeze(1), -math.inf).logsumexp(1)
    level = others - logits.gather(1, y.unsqueeze(1)).squeeze(1)
    (gradient,) = torch.autograd.grad(level.sum(), points, create_graph=True)
    return gradient.flatten(1)


def attack_cosine(f, g, x, y, radius, generator, *, steps=5):
    """Smallest and largest cosine found in each ball: random points, then ascent from the best of them."""
    ends = []
    for sign in (1.0, -1.0):
        starts = in_balls(x, radius, 4, generator)
        points, best = x.clone(), torch.full((len(x),), -2.0, dtype=x.dtype)
        for start in starts:
            value = _cosine(f, g, start.clone().requires_grad_(True), y).detach() * sign
            better = value > best
            points[better], best = start[better], torch.maximum(best, value)
        offset = (points - x).flatten(1)
        for step in range(steps):
            at = (x + offset.reshape(x.shape)).requires_grad_(True)
            value = sign * _cosine(f, g, at, y)
            best = torch.maximum(best, value.detach())
            if not value.requires_grad:
                break
            (uphill,) = torch.autograd.grad(value.sum(), at, materialize_grads=True)
            uphill = uphill.flatten(1)
            length = uphill.norm(dim=1, keepdim=True).clamp_min(1e-30)
            offset = offset + 1.5 * radius * (1 - step / steps) / 2 * uphill / length
            offset = offset * (radius / offset.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
        ends.append(sign * best)
    return ends[1], ends[0]


def _cosine(f, g, points, y):
    return torch.cosine_similarity(level_gradient(f, points, y), level_gradient(g, points, y), eps=1e-30)


def pairs(random_network, seeds):
    """Two networks on the same inputs: a random one and a second of its own kind with other weights."""
    for seed in seeds:
        f, x, classes = random_network(seed)
        torch.manual_seed(seed)
        g = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4), nn.Tanh(), nn.Linear(4, classes)).double()
        yield f, g, x, torch.randint(0, classes, (len(x),))


def test_no_point_of_a_ball_has_a_cosine_outside_the_range(random_network):
    """Random and ascended points, for pairs of networks of every kind."""
    generator = torch.Generator().manual_seed(0)
    informative = 0
    for f, g, x, y in pairs(random_network, range(10)):
        for radius in (0.02, 0.3):
            low, high = cosine_range(f, g, x, y, radius)
            least, most = attack_cosine(f, g, x, y, radius, generator)
            assert (least >= low - 1e-7).all()
            assert (most <= high + 1e-7).all()
            informative += int((high - low < 1.0).sum())
    assert informative > 20


def test_radius_zero_gives_the_cosine_itself(random_network):
    """Against the estimator that differentiates the loss at the points given."""
    for f, g, x, y in pairs(random_network, range(6)):
        low, high = cosine_range(f, g, x, y, 0.0)
        infimum, supremum = gradient_similarity(f, g, x, y, loss=cross_entropy)
        assert float(low.min()) == pytest.approx(infimum.value, abs=1e-6)
        assert float(high.max()) == pytest.approx(supremum.value, abs=1e-6)
        assert ((high - low) < 1e-6).all()


def test_linear_models_with_two_classes_keep_their_cosine():
    """Their gradients never turn, so the range is a point for any radius."""
    f, g = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    low, high = cosine_range(f, g, x, y, 7.0)
    rows = [model.weight[0] - model.weight[1] for model in (f, g)]
    truth = torch.cosine_similarity(*rows, dim=0).item()
    assert low.tolist() == pytest.approx([truth] * 5, abs=1e-7)
    assert high.tolist() == pytest.approx([truth] * 5, abs=1e-7)


def test_the_turn_is_the_arc_of_the_deviation(random_network):
    """A vector within r of g turns by at most arcsin(r / |g|), attained: the range is that of both arcs."""
    for f, g, x, y in pairs(random_network, range(4)):
        low, high = cosine_range(f, g, x, y, 0.02)
        ends = [ball_bounds(*read_checked(model, x, y), 0.02) for model in (f, g)]
        sines = [bounds.loss_deviation / bounds.loss_direction.norm(dim=1) for bounds in ends]
        angle = torch.acos(torch.cosine_similarity(ends[0].loss_direction, ends[1].loss_direction))
        turn = sum(torch.asin(sine.clamp_max(1.0)).where(sine < 1, math.pi) for sine in sines)
        torch.testing.assert_close(low, torch.cos((angle + turn).clamp_max(math.pi)), rtol=0, atol=1e-6)
        torch.testing.assert_close(high, torch.cos((angle - turn).clamp_min(0)), rtol=0, atol=1e-6)


def test_nothing_known_is_said_so(random_network):
    """A large ball around a curved model allows every cosine."""
    for f, g, x, y in pairs(random_network, (1, 3)):
        low, high = cosine_range(f, g, x, y, 50.0)
        assert low.tolist() == [-1.0] * len(x)
        assert high.tolist() == [1.0] * len(x)


def test_models_that_do_not_belong_together_are_refused():
    """One line with both numbers of classes."""
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="same number of classes, got 2 and 4"):
        cosine_range(nn.Linear(3, 2), nn.Linear(3, 4), x, y, 0.1)
