"""Segment certificates: closed forms, soundness on random networks, tightness, what the budget buys."""

import math
import re

import pytest
import torch
from torch import nn
from torch.func import jvp

from empirical.data import load_dataset
from empirical.models import SOFTPLUS_THRESHOLD, ModelConfig, ResidualSum, build_model
from estimators import cross_entropy, margin, remainder
from estimators.certified import jets, segment
from estimators.certified.network import UnsupportedLayer, read_network
from estimators.certified.segment import largest_on_segments, segment_bounds, segment_smoothness


def bends(function, start, end, points=65):
    """Second derivatives (points, n, ...) of a function of logits along segments, per squared length."""
    step = end - start
    count, shape = len(start), start.shape[1:]
    t = torch.linspace(0, 1, points, dtype=torch.float64).repeat_interleave(count)
    start, step = (tensor.repeat(points, *[1] * len(shape)) for tensor in (start, step))

    def along(t):
        return function(start + t.reshape(-1, *[1] * len(shape)) * step)

    ones = torch.ones_like(t)
    bend = jvp(lambda t: jvp(along, (t,), (ones,))[1], (t,), (ones,))[1]
    square = step.flatten(1).square().sum(1).reshape(-1, *[1] * (bend.dim() - 1))
    return (bend / square).detach().unflatten(0, (points, count))


def loss_bends(model, start, end, y, points=65):
    return loss_and_margin_bends(model, start, end, y, points)[..., 0]


def loss_and_margin_bends(model, start, end, y, points=65):
    """Of the cross-entropy and of all margins z_y - z_k, (points, n, 1 + K)."""
    labels = y.repeat(points).unsqueeze(1)

    def functions(x):
        logits = model(x)
        loss = cross_entropy(logits, labels.squeeze(1)).unsqueeze(1)
        return torch.cat([loss, logits.gather(1, labels) - logits], 1)

    return bends(functions, start, end, points)


def random_steps(x, seed):
    """Other ends at distances from 1/10 to 3, and labels."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    length = 10 ** (1.5 * torch.rand(len(x), generator=generator, dtype=x.dtype) - 1)
    scale = (length / step.flatten(1).norm(dim=1)).reshape(-1, *[1] * (x.dim() - 1))
    return x + scale * step, generator


def check_sound(model, x, classes, seed):
    x_end, generator = random_steps(x, seed)
    y = torch.randint(classes, (len(x),), generator=generator)
    network = read_network(model, x)
    truth = loss_and_margin_bends(model, x, x_end, y, 33)
    floor = 1e-10 * (1 + truth.abs().amax((0, 2)))
    loss, margins = truth[..., 0].abs(), truth[..., 1:]
    for pieces in (6, 24):
        found = segment_bounds(network, x, x_end, y, pieces=pieces)
        assert (loss.amax(0) <= found.upper + floor).all()
        assert (found.lower <= found.upper).all()
        assert (margins.amax(0) <= found.kappa_plus + floor.unsqueeze(1)).all()
        assert ((-margins).amax(0) <= found.kappa + floor.unsqueeze(1)).all()
        if pieces == 6:  # what is seen is the truth at the ends and in the middles of four pieces
            at = loss[[0, 4, 12, 20, 28, 32]].amax(0)
            torch.testing.assert_close(found.lower, at, rtol=1e-8, atol=float(floor.max()))


def test_random_networks_never_bend_more_than_certified(random_network):
    for seed in range(2000, 2012):
        check_sound(*random_network(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_random_networks_never_bend_more_than_certified(random_network, block):
    for seed in range(100 * block, 100 * block + 100):
        check_sound(*random_network(seed), seed)


def test_linear_softmax_bends_as_the_variance_of_its_slopes():
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    x, x_end = torch.randn(2, 6, 5, dtype=torch.float64)
    found = segment_bounds(read_network(model, x), x, x_end, torch.zeros(6, dtype=torch.int64), pieces=400)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64).reshape(-1, 1, 1)
    p = model(x + grid * (x_end - x)).softmax(2)
    slopes = (x_end - x) @ model.weight.T
    variance = (p * slopes**2).sum(2) - (p * slopes).sum(2) ** 2
    truth = variance.amax(0) / (x_end - x).square().sum(1)
    assert (found.upper >= truth).all()
    assert (found.upper <= 1.021 * truth).all()
    assert (found.lower <= truth * (1 + 1e-6)).all()
    assert torch.equal(found.kappa, torch.zeros_like(found.kappa))


@pytest.mark.parametrize(
    "activation", [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus(3.0, SOFTPLUS_THRESHOLD)]
)
def test_one_unit_bends_as_on_a_dense_grid(activation):
    model = nn.Sequential(nn.Linear(1, 1), activation, nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(2.0), model[0].bias.fill_(0.3)
        model[2].weight.copy_(torch.tensor([[1.5], [0.0]]))
    x = torch.tensor([[-3.0], [-1.0], [0.2], [4.0]], dtype=torch.float64)
    x_end = torch.tensor([[2.0], [-0.9], [0.2001], [-4.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    found = segment_bounds(read_network(model, x), x, x_end, y, pieces=400)
    truth = loss_bends(model, x, x_end, y, 4001).abs().amax(0)
    assert (found.upper >= truth).all()
    assert (found.upper <= 1.021 * truth).all()


def test_the_whole_piece_is_certified_and_not_its_middle():
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(20.0), model[0].bias.fill_(-14.0 / 3)
        model[2].weight.copy_(torch.tensor([[1.0], [0.0]])), model[2].bias.zero_()
    x, x_end = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    y = torch.tensor([0])
    found = segment_bounds(read_network(model, x), x, x_end, y, pieces=6)
    truth = loss_bends(model, x, x_end, y, 2001).abs().max()
    # The first four pieces and the two ends look past the kink-like bend at 7/30.
    assert found.lower < 0.5 * truth < truth <= found.upper


def check_enclosed(model, start, end, middle, half):
    """Jets of all logit differences in the middles of pieces against those at the pieces' ends."""
    model = model.double()
    x, x_end = (torch.tensor([[point]], dtype=torch.float64) for point in (start, end))
    network = read_network(model, x)
    lines = jets.Lines(network, jets.last_map(network, x), x, x_end - x, torch.zeros(1, 1).long())
    sample, length = torch.zeros(len(middle), dtype=torch.int64), torch.full_like(middle, half)
    found = lines._gaps(sample, middle, length)
    for side in (-half, half):
        there = lines._gaps(sample, middle + side, 0 * length).centre
        assert ((there - found.centre).abs() <= found.radius * (1 + 1e-6) + 1e-13).all()


@pytest.mark.parametrize("inner", [nn.Tanh(), nn.GELU()])
@pytest.mark.parametrize("outer", [nn.Tanh(), nn.Softplus(2.0, SOFTPLUS_THRESHOLD)])
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_short_pieces_of_two_units_are_enclosed(inner, outer, gain):
    """Here the enclosures are nearly exact, so that a constant too small shows."""
    first, second, last = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        for layer, weight, bias in ((first, 1.0, 0.0), (second, gain, -gain * 0.5773)):
            layer.weight.fill_(weight), layer.bias.fill_(bias)
        last.weight.copy_(torch.tensor([[1.0], [0.0]]))
    middle = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
    check_enclosed(nn.Sequential(first, inner, second, outer, last), -3.0, 3.0, middle, 1e-4)


def test_a_piece_around_a_stationary_point_is_enclosed():
    model = nn.Sequential(nn.Identity(), nn.GELU(), nn.Linear(1, 2))
    turn = -0.7517915240473488
    check_enclosed(model, turn - 1, turn + 1, torch.tensor([0.5], dtype=torch.float64), 0.01)


def test_a_residual_join_adds_what_both_branches_move():
    model = nn.Sequential(
        ResidualSum(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), nn.Identity()), nn.Linear(1, 2)
    )
    check_enclosed(model, 5.0, 9.0, torch.linspace(0.1, 0.9, 9, dtype=torch.float64), 0.05)


@pytest.mark.parametrize("half", [0.03, 0.3, 1.0])
def test_pieces_of_quadratic_logits_are_bounded(half):
    """For z_k = a + b t + c t^2 / 2 the jets' radii are exact, so that this is about the softmax alone."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64).reshape(3, 1, 1)
    logits = sizes * torch.randn(3, 4000, 3, generator=generator, dtype=torch.float64)
    logits[2, ::2] = 0.0
    # Symmetric about the middle: there phi'' is least and its own slope vanishes.
    logits[:, 0] = torch.tensor([[0.0, 3.0, 0.0], [-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    y = torch.randint(3, (4000, 1), generator=generator)
    gaps = logits.unsqueeze(3) - logits.unsqueeze(2)
    slope, bend = half * gaps[2].abs(), torch.zeros_like(gaps[2])
    radius = torch.stack([half * gaps[1].abs() + half**2 / 2 * gaps[2].abs(), slope, bend])
    upper, seen = jets.loss_bends(jets.Jet(gaps, radius), torch.full((4000,), half).double(), y)
    t = torch.linspace(-half, half, 81, dtype=torch.float64).reshape(-1, 1, 1)
    p = (logits[0] + t * logits[1] + t**2 / 2 * logits[2]).softmax(2)
    slopes = logits[1] + t * logits[2]
    truth = (p * slopes**2).sum(2) - (p * slopes).sum(2) ** 2 + (p * logits[2]).sum(2)
    truth = (truth - logits[2].gather(1, y).squeeze(1)).abs()
    assert (truth.amax(0) <= upper[:, 0, 0] * (1 + 1e-9) + 1e-12).all()
    torch.testing.assert_close(seen.squeeze(1), truth[40], rtol=1e-9, atol=1e-12)


def trained_mlp(activation="tanh"):
    torch.manual_seed(0)
    data = load_dataset("digits")
    model = build_model(ModelConfig("mlp", activation, (32, 32)), shape=data.train.x.shape[1:], classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(12):
        for rows in torch.randperm(len(data.train.x)).split(128):
            optimizer.zero_grad()
            cross_entropy(model(data.train.x[rows]), data.train.y[rows]).mean().backward()
            optimizer.step()
    x, y = data.test.x[:60].double(), data.test.y[:60]
    model = model.eval().double()
    assert (model(x).argmax(1) == y).double().mean() > 0.9
    return model, x, y


@pytest.fixture(scope="module")
def trained():
    return trained_mlp()


def gradient_step(model, x, y, length):
    point = x.clone().requires_grad_(True)
    (uphill,) = torch.autograd.grad(cross_entropy(model(point), y).sum(), point)
    return x + length * uphill / uphill.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))


@pytest.mark.parametrize("length", [0.3, 1.0])
def test_attack_steps_of_a_trained_network_are_certified_tightly_with_few_pieces(trained, length):
    model, x, y = trained
    x_end = gradient_step(model, x, y, length)
    found = segment_bounds(read_network(model, x), x, x_end, y)
    excess = found.upper / loss_bends(model, x, x_end, y, 129).abs().amax(0)
    assert excess.min() >= 1
    assert excess.median() <= 1.02
    assert excess.max() <= 1.05
    assert found.pieces.double().mean() <= 40


def test_the_remainder_of_the_step_stays_below(trained):
    model, x, y = trained
    x_end = gradient_step(model, x, y, 1.0)
    found = segment_bounds(read_network(model, x), x, x_end, y).upper
    for row in range(0, len(x), 7):
        one = slice(row, row + 1)
        assert remainder(model, cross_entropy, x[one], x_end[one], y[one]).lower <= found[row]
        assert remainder(model, cross_entropy, x_end[one], x[one], y[one]).lower <= found[row]


def test_a_larger_budget_is_never_worse(trained):
    model, x, y = trained
    x_end = gradient_step(model, x, y, 3.0)
    network = read_network(model, x)
    before = None
    for pieces in (6, 8, 11, 20, 30, 60):
        found = segment_bounds(network, x, x_end, y, pieces=pieces, tolerance=1.0001)
        assert (found.pieces <= pieces).all()
        if before is not None:
            assert (found.upper <= before.upper).all()
            assert (found.kappa <= before.kappa).all()
            assert (found.lower >= before.lower).all()
        before = found
    assert (before.pieces >= 59).all()


def test_samples_do_not_depend_on_their_company(trained, monkeypatch):
    model, x, y = trained
    x_end = gradient_step(model, x, y, 1.0)
    network = read_network(model, x)
    together = segment_bounds(network, x, x_end, y)
    monkeypatch.setattr(segment, "_SEGMENTS", 7)
    monkeypatch.setattr(jets, "_ENTRIES", 500)
    apart = segment_bounds(network, x, x_end, y)
    assert torch.equal(together.pieces, apart.pieces)
    for name in ("upper", "lower", "kappa", "kappa_plus"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), rtol=1e-9, atol=1e-12)


def test_several_labels_hold_for_each(trained):
    model, x, y = trained
    labels = torch.stack([y, (y + 1) % 10, (y + 5) % 10], 1)
    x_end = gradient_step(model, x, y, 0.5)
    network = read_network(model, x)
    found = segment_bounds(network, x, x_end, labels)
    assert found.upper.shape == labels.shape
    assert found.kappa.shape == (*labels.shape, 10)
    for column, label in enumerate(labels.unbind(1)):
        seen = loss_bends(model, x, x_end, label).abs().amax(0)
        assert (found.upper[:, column] >= seen).all()
        assert (found.upper[:, column] <= 1.03 * seen).all()


def test_segments_of_no_length_have_none():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_end = x.clone()
    x_end[1] += 0.1
    found = segment_bounds(read_network(model, x), x, x_end, torch.tensor([0, 1, 0]))
    assert (found.upper > 0).tolist() == [False, True, False]
    assert (found.kappa + found.kappa_plus > 0).any(1).tolist() == [False, True, False]


def test_kinks_make_it_infinite_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = segment_smoothness(model, cross_entropy, x, x + 1, torch.tensor([0, 1, 0]))
    assert (found.value, found.upper) == (math.inf, math.inf)
    assert "relu" in found.method
    bounds = segment_bounds(read_network(model, x), x, x + 1, torch.tensor([[0, 1], [1, 0], [0, 1]]))
    assert bounds.upper.shape == (3, 2)
    assert bounds.kappa.isinf().all()


def test_the_estimate_is_the_largest_and_says_where_it_holds(trained):
    model, x, y = trained
    x_end = gradient_step(model, x, y, 0.5)
    found = segment_smoothness(model.float(), cross_entropy, x.float(), x_end.float(), y)
    model.double()
    each = segment_bounds(read_network(model, x), x.float().double(), x_end.float().double(), y)
    assert found.upper == found.value == pytest.approx(float(each.upper.max()), rel=1e-6)
    assert found.lower == pytest.approx(float(each.lower.max()), rel=1e-6)
    assert "these segments only" in found.method
    assert "up to float64 rounding" in found.method


def test_what_does_not_fit_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="cross-entropy"):
        segment_smoothness(model, margin, x, x + 1, y)
    with pytest.raises(ValueError, match="x_end of the shape"):
        segment_smoothness(model, cross_entropy, x, x[:1], y)
    with pytest.raises(ValueError, match="labels"):
        segment_smoothness(model, cross_entropy, x, x + 1, y + 1)
    with pytest.raises(ValueError, match="at least 6 pieces"):
        segment_smoothness(model, cross_entropy, x, x + 1, y, pieces=5)
    with pytest.raises(ValueError, match="tolerance above 1"):
        segment_smoothness(model, cross_entropy, x, x + 1, y, tolerance=1.0)
    with pytest.raises(UnsupportedLayer, match="LayerNorm"):
        segment_smoothness(nn.Sequential(nn.LayerNorm(3), model).double(), cross_entropy, x, x + 1, y)


def test_the_largest_over_all_segments_is_that_of_the_segments_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, step = torch.randn(2, 30, 4, dtype=torch.float64)
    y, network = torch.arange(30) % 3, read_network(model, x)
    alone = segment_bounds(network, x, x + 2 * step, y)
    found = largest_on_segments(network, x, x + 2 * step, y)
    truth = float(loss_bends(model, x, x + 2 * step, y, 401).abs().max())
    assert truth * (1 - 1e-9) <= found.upper <= 1.02 * found.lower * (1 + 1e-9)
    assert found.lower == pytest.approx(truth, rel=0.02)
    assert found.upper == pytest.approx(float(alone.upper.max()), rel=0.02)
    # Far fewer pieces than all segments take one by one.
    assert int(re.search(r"on (\d+) pieces", found.method)[1]) < int(alone.pieces.sum())


@pytest.mark.parametrize("tolerance", [1.02, 1.5])
def test_a_glance_at_the_segments_changes_nothing_but_the_work(monkeypatch, tolerance):
    """What is left out cannot have been the largest, however loose the bounds may be."""
    cases = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        x, step = torch.randn(2, 30, 4, dtype=torch.float64)
        cases.append((read_network(model, x), x, x + 0.3 * step, torch.arange(30) % 3))
    found = [largest_on_segments(*case, tolerance=tolerance) for case in cases]
    glance, looked_at = segment._at_a_glance, []

    def short_sighted(lines):
        upper, seen, spent = glance(lines)
        looked_at.append(len(upper))
        return upper + torch.inf, seen, spent

    monkeypatch.setattr(segment, "_at_a_glance", short_sighted)
    for one, case in zip(found, cases, strict=True):
        everything = largest_on_segments(*case, tolerance=tolerance)
        assert (one.lower, one.upper) == pytest.approx((everything.lower, everything.upper), rel=1e-12)
        counts = (int(re.search(r"on (\d+) pieces", each.method)[1]) for each in (one, everything))
        pieces, of_everything = counts
        assert pieces < 0.6 * of_everything
    assert looked_at == [30] * 4
