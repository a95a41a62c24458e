"""Ascent over balls: near closed forms, never past them, and never past what other points show."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators import cross_entropy, gradient_norm, gradient_similarity
from estimators.extremal_search import (
    BallSearch,
    cosine_search,
    gradient_norm_over_balls,
    gradient_norm_search,
    similarity_over_balls,
)

RADIUS = 0.5
CENTRES = torch.tensor([[2.0, 1.0], [1.0, 2.0], [-1.0, 3.0], [3.0, 0.1]], dtype=torch.float64)
LABELS = torch.zeros(4, dtype=torch.int64)


class Bowl(nn.Module):
    """Logits (-||x||^2 / 2, 0): the margin's gradient at label 0 is x."""

    def forward(self, x):
        square = x.flatten(1).square().sum(1)
        return torch.stack([-square / 2, torch.zeros_like(square)], 1)


def along_first_axis():
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
    return model


def deep_pair(activation=nn.Tanh):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 4)).double() for _ in range(2)]


def test_cosines_come_close_to_the_closed_form_from_the_inside():
    """Between x and the first axis the angle changes by at most arcsin(r / ||x||) over the ball."""
    low, high = cosine_search(Bowl(), along_first_axis(), CENTRES, LABELS, RADIUS)
    angle = torch.atan2(CENTRES[:, 1], CENTRES[:, 0])
    turn = torch.arcsin(RADIUS / CENTRES.norm(dim=1))
    least, most = (angle + turn).cos(), (angle - turn).clamp_min(0).cos()
    assert (low >= least - 1e-12).all()
    assert (high <= most + 1e-12).all()
    torch.testing.assert_close(low, least, atol=1e-3, rtol=0)
    torch.testing.assert_close(high, most, atol=1e-3, rtol=0)


def test_norms_come_close_to_the_closed_form_from_the_inside():
    def own_loss(logits, labels):
        return -logits[:, 0]

    low, high = gradient_norm_search(Bowl(), own_loss, CENTRES, LABELS, RADIUS)
    length = CENTRES.norm(dim=1)
    assert (low >= length - RADIUS - 1e-12).all()
    assert (high <= length + RADIUS + 1e-12).all()
    torch.testing.assert_close(low, length - RADIUS, atol=5e-3, rtol=0)
    torch.testing.assert_close(high, length + RADIUS, atol=5e-3, rtol=0)
    # Cross-entropy at label 0 of this model: sigmoid(m) ||x|| with m = ||x||^2 / 2, largest farthest out.
    _, high = gradient_norm_search(Bowl(), cross_entropy, CENTRES, LABELS, RADIUS)
    outer = length + RADIUS
    torch.testing.assert_close(high, outer * torch.sigmoid(outer.square() / 2), atol=5e-3, rtol=0)


def test_ascent_finds_more_than_random_points_of_the_ball_and_stays_inside():
    f, g = deep_pair()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 4
    low, high = cosine_search(f, g, x, y, RADIUS)
    steepest = gradient_norm_search(f, cross_entropy, x, y, RADIUS)[1]
    drawn = functional.normalize(torch.randn(300, 6, 3, dtype=torch.float64), dim=2)
    drawn = x + RADIUS * torch.rand(300, 6, 1, dtype=torch.float64) ** (1 / 3) * drawn
    for i in range(6):
        labels = y[i].repeat(300)
        least, most = gradient_similarity(f, g, drawn[:, i], labels)
        assert low[i] <= least.value + 0.01
        assert high[i] >= most.value - 0.01
        assert steepest[i] >= gradient_norm(f, cross_entropy, drawn[:, i], labels).value * 0.99


def test_no_point_outside_the_ball_is_counted():
    """With a radius next to nothing the search must come back with what holds at the centre."""
    f, g = deep_pair()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 4
    low, high = cosine_search(f, g, x, y, 1e-9)
    centre = torch.stack([torch.tensor(gradient_similarity(f, g, x[i : i + 1], y[i : i + 1])[0].value)
                          for i in range(6)])  # fmt: skip
    torch.testing.assert_close(low, centre.double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(high, centre.double(), atol=1e-7, rtol=0)


def test_labels_are_searched_one_by_one_and_batches_do_not_matter():
    f, g = deep_pair()
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.arange(4).expand(5, 4)
    quick = BallSearch(points=1, steps=5)
    low, high = cosine_search(f, g, x, labels, RADIUS, search=quick, batch_size=9)
    assert low.shape == high.shape == (5, 4)
    for k in (0, 3):
        alone = cosine_search(f, g, x, labels[:, k], RADIUS, search=quick)
        torch.testing.assert_close(torch.stack([low[:, k], high[:, k]]), torch.stack(alone))


def test_estimates_err_to_the_inside():
    f, g = deep_pair()
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.arange(4).expand(5, 4)
    quick = BallSearch(points=1, steps=5)
    least, most = similarity_over_balls(f, g, x, labels, RADIUS, search=quick)
    low, high = cosine_search(f, g, x, labels, RADIUS, search=quick)
    assert (least.lower, least.value, least.upper) == (-1.0, float(low.min()), float(low.min()))
    assert (most.lower, most.value, most.upper) == (float(high.max()), float(high.max()), 1.0)
    at_data = gradient_similarity(f, g, x, labels)
    assert least.value <= at_data[0].value < at_data[1].value <= most.value
    bound = gradient_norm_over_balls(f, cross_entropy, x, labels, RADIUS, search=quick)
    assert (bound.lower, bound.upper) == (bound.value, math.inf)
    assert bound.value > gradient_norm(f, cross_entropy, x, labels).value


def test_kinks_leave_the_starting_points_and_float32_is_searched_in_float64():
    f, g = (model.float() for model in deep_pair(nn.ReLU))
    x, y = torch.randn(5, 3), torch.arange(5) % 4
    low, high = cosine_search(f, g, x, y, RADIUS, search=BallSearch(points=5))
    at_data = gradient_similarity(f, g, x, y)
    assert low.dtype == torch.float64
    assert float(low.min()) <= at_data[0].value + 1e-6
    assert float(high.max()) >= at_data[1].value - 1e-6
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in f.parameters())


class FlatRegion(nn.Module):
    """Logits (x_1^3, 0) where x_1 > 0, constant elsewhere."""

    def forward(self, x):
        first = x[:, 0].clamp_min(0) ** 3
        return torch.stack([first, torch.zeros_like(first)], 1)


def test_balls_without_any_gradient_are_left_out_and_counted():
    x = torch.tensor([[1.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    low, high = cosine_search(FlatRegion(), Bowl(), x, LABELS[:2], RADIUS)
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True]
    least, most = similarity_over_balls(FlatRegion(), Bowl(), x, LABELS[:2], RADIUS)
    assert "undefined at every point seen in 1 of 2" in least.method
    assert least.value < most.value
    with pytest.raises(ValueError, match="zero gradient in all 1 balls"):
        similarity_over_balls(FlatRegion(), Bowl(), x[1:], LABELS[:1], RADIUS)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_bad_radius_is_refused(radius):
    with pytest.raises(ValueError, match="positive finite l2 radius"):
        cosine_search(Bowl(), Bowl(), CENTRES, LABELS, radius)


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="points >= 0 and steps >= 1, got 2 points and 0 steps"):
        BallSearch(steps=0)
