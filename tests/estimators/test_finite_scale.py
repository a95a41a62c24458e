"""Finite-scale smoothness: 1/h growth at kinks, a limit elsewhere, and never above the truth."""

import pytest
import torch
from torch import nn

from estimators import cross_entropy, divergence_test, finite_scale_smoothness, smoothness


def net(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 3)).double()


def data(count=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=generator)


def curve(activation, scale=1e-6, **settings):
    found = finite_scale_smoothness(net(activation), cross_entropy, *data(), scale=scale, **settings)
    assert found.estimate.value == found.estimate.lower == found.values[-1]
    return found


KINKED = [(nn.ReLU(), 1.0), (nn.LeakyReLU(0.1), 1.0), (nn.ELU(0.5), 1.0), (nn.Hardswish(), 4.0)]


@pytest.mark.parametrize(("activation", "radius"), KINKED)
def test_kinks_double_the_value_with_every_halving(activation, radius):
    found = curve(activation, radius=radius)
    assert found.scales[0] == pytest.approx(2 * found.scales[1])
    assert found.scales[-1] == pytest.approx(1e-6)
    assert found.values[-1] == pytest.approx(2**8 * found.values[-9], rel=0.05)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ELU(), nn.GELU(), nn.Softplus(5, 50)])
def test_smooth_networks_settle_at_most_at_their_largest_curvature(activation):
    found = curve(activation)
    assert found.values[-1] == pytest.approx(found.values[-9], rel=1e-3)
    x, y = data()
    climbed = smoothness(net(activation), cross_entropy, x, y, radius=1.0, method="ascent", points=8)
    assert found.values[-1] >= 0.9 * climbed.value
    # ELU's second derivative jumps at 0, where neither Hessians nor their ascent look at both sides.
    assert found.values[-1] <= (1.25 if isinstance(activation, nn.ELU) else 1.02) * climbed.value


def test_sharp_softplus_grows_like_a_kink_and_then_saturates():
    found = curve(nn.Softplus(1e5, 50), scale=6e-8)
    by_scale = dict(zip(found.scales, found.values, strict=True))
    coarse, middle = (min(by_scale, key=lambda h, near=near: abs(h - near)) for near in (1e-2, 1e-3))
    assert by_scale[middle] > 6 * by_scale[coarse]
    assert found.values[-1] == pytest.approx(found.values[-5], rel=0.02)


class Fold(nn.Module):
    """Logits (|x_1 - c|, 0): a kink on one plane."""

    def forward(self, x):
        return torch.stack([(x[:, 0] - 0.2).abs(), torch.zeros_like(x[:, 0])], 1)


def first_logit(z, y):
    return z[:, 0]


def test_single_fold_reaches_jump_over_scale_where_the_ball_meets_it():
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 0] = 5.0
    found = finite_scale_smoothness(Fold(), first_logit, x, torch.tensor([0, 0]), scale=1e-3, radius=0.5)
    assert found.estimate.value == pytest.approx(2 / 1e-3, rel=1e-9)
    # The second ball does not meet the kink, and the loss is linear there.
    assert found.per_sample.tolist() == pytest.approx([2000.0, 0.0])


def test_pairs_keep_their_distance_and_stay_in_the_ball():
    # grad l jumps outside radius 1 only: a search that leaves the ball would see it.
    def loss(z, y):
        return (z.norm(dim=1) - 1.0).clamp_min(0.0)

    x = torch.zeros(6, 3, dtype=torch.float64)
    y = torch.zeros(6, dtype=torch.int64)
    inside = finite_scale_smoothness(nn.Flatten(), loss, x, y, scale=1e-4, radius=0.999)
    assert inside.estimate.value == 0.0
    # With l = |z|^2 every quotient is 2 at every distance.
    square = finite_scale_smoothness(nn.Flatten(), lambda z, y: z.square().sum(1), x, y, scale=1e-3)
    assert square.values == pytest.approx((2.0,) * len(square.scales))
    assert min(square.scales) == pytest.approx(1e-3)


def test_random_pairs_never_show_the_kink_that_bisection_finds():
    model, (x, y) = net(nn.ReLU()), data(2000)

    def random_quotient(scale):
        generator = torch.Generator().manual_seed(1)
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        ends = [x.clone(), x + scale * step / step.norm(dim=1, keepdim=True)]
        slopes = []
        for end in ends:
            end.requires_grad_()
            slopes += torch.autograd.grad(cross_entropy(model(end), y).sum(), end)
        return ((slopes[1] - slopes[0]).norm(dim=1) / scale).max().item()

    assert random_quotient(1e-7) == pytest.approx(random_quotient(1e-6), rel=1e-2)
    few = x[:12], y[:12]
    coarse, fine = (
        finite_scale_smoothness(model, cross_entropy, *few, scale=scale).estimate.value
        for scale in (1.6e-6, 1e-7)
    )
    assert fine == pytest.approx(16 * coarse, rel=0.05)
    assert coarse > 1e3 * random_quotient(1e-6)
    assert divergence_test(model, cross_entropy, *few, radius=2.0).slope == pytest.approx(1, abs=0.02)


def test_float32_models_and_several_labels_are_searched_in_float64():
    x, _ = data(5)
    labels = torch.arange(3).expand(5, 3)
    double = finite_scale_smoothness(net(nn.Tanh()), cross_entropy, x, labels, scale=1e-5)
    single = finite_scale_smoothness(net(nn.Tanh()).float(), cross_entropy, x.float(), labels, scale=1e-5)
    assert double.per_sample.shape == (5, 3)
    assert double.estimate.value == double.per_sample.max()
    assert single.estimate.value == pytest.approx(double.estimate.value, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 2.0}, "scale from .* to the radius 1, got 2.0"),
        ({"scale": 1e-12}, "scale from .* to the radius 1, got 1e-12"),
        ({"scale": 0.1, "radius": 0.0}, "positive finite radius, got 0.0"),
        ({"scale": 0.1, "points": 0}, "at least 1 point, got 0"),
        ({"scale": 0.1, "steps": 0}, "at least 1 step, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        finite_scale_smoothness(net(nn.Tanh()), cross_entropy, *data(), **settings)
