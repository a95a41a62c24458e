"""c_F, c_G and l_min as printed, against slow reference loops and hand-made worlds."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional

from bounds.estimate import Estimate
from estimators import cross_entropy, minimum_loss, targeted_constants, untargeted_constants

EPS = 0.3
BETA = Estimate(2.0, 1.5, 4.0, failure_probability=0.01, method="made up")
CLASSES = 4


def setting(count=9):
    torch.manual_seed(0)
    f, g = (nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double() for _ in range(2))
    x = torch.randn(count, 3, dtype=torch.float64)
    step = functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=1)
    return f, g, x, torch.randint(CLASSES, (count,)), x + EPS * step


def loss_at(model, point, label):
    return functional.cross_entropy(model(point[None]), torch.tensor([label]))


def slow_terms(model, x, x_adv, labels, sign, beta, *, skip_label):
    """The quotient inside the max or min of the theorem, one sample at a time."""
    terms = []
    for point, attacked, label in zip(x, x_adv, labels.tolist(), strict=True):
        allowed = [k for k in range(CLASSES) if not (skip_label and k == label)]
        lowest = min(loss_at(model, attacked, k).item() for k in allowed)
        norm = grad(lambda p, k=label: loss_at(model, p, k))(point).norm().item()
        terms.append((lowest - loss_at(model, point, label).item() + sign * beta * EPS**2 / 2) / norm)
    return terms


@pytest.mark.parametrize("end", ["value", "lower", "upper"])
def test_theorem_1_constants_equal_a_slow_loop(end):
    f, g, x, _, x_adv = setting()
    target = torch.full((len(x),), 2)
    c_f, c_g = targeted_constants(f, g, cross_entropy, x, x_adv, 2, beta=BETA, eps=EPS, batch_size=4)
    beta = getattr(BETA, end)
    slow_f = max(slow_terms(f, x, x_adv, target, +1, beta, skip_label=False))
    slow_g = min(slow_terms(g, x, x_adv, target, -1, beta, skip_label=False))
    # c_F increases and c_G decreases in beta.
    other = {"value": "value", "lower": "upper", "upper": "lower"}[end]
    assert getattr(c_f, end) == pytest.approx(slow_f, rel=1e-10)
    assert getattr(c_g, other) == pytest.approx(slow_g, rel=1e-10)
    assert c_f.failure_probability == c_g.failure_probability == 0.01


@pytest.mark.parametrize("end", ["value", "lower", "upper"])
def test_theorem_2_constants_equal_a_slow_loop(end):
    f, g, x, y, x_adv = setting()
    c_f, c_g = untargeted_constants(f, g, cross_entropy, x, y, x_adv, beta=BETA, eps=EPS, batch_size=4)
    beta = getattr(BETA, end)
    slow_f = min(slow_terms(f, x, x_adv, y, -1, beta, skip_label=True))
    slow_g = max(slow_terms(g, x, x_adv, y, +1, beta, skip_label=True))
    other = {"value": "value", "lower": "upper", "upper": "lower"}[end]
    assert getattr(c_f, other) == pytest.approx(slow_f, rel=1e-10)
    assert getattr(c_g, end) == pytest.approx(slow_g, rel=1e-10)


def test_the_repaired_constant_compares_with_the_labels_other_than_the_target():
    f, g, x, _, x_adv = setting()
    y = g(x_adv).argmax(1)  # where G is driven into its target, the printed minimum is at the target itself
    printed_f, printed_g = targeted_constants(f, g, cross_entropy, x, x_adv, y, beta=BETA, eps=EPS)
    c_f, c_g = targeted_constants(f, g, cross_entropy, x, x_adv, y, beta=BETA, eps=EPS, repaired=True)
    slow = min(slow_terms(g, x, x_adv, y, -1, BETA.value, skip_label=True))
    assert c_g.value == pytest.approx(slow, rel=1e-10)
    assert c_g.value > printed_g.value
    assert c_f.value == printed_f.value


def test_population_constants_are_one_sided_to_the_inside():
    f, g, x, y, x_adv = setting()
    kwargs = {"beta": BETA, "eps": EPS, "support": "population"}
    largest_f, smallest_g = targeted_constants(f, g, cross_entropy, x, x_adv, 2, **kwargs)
    smallest_f, largest_g = untargeted_constants(f, g, cross_entropy, x, y, x_adv, **kwargs)
    for estimate in (largest_f, largest_g):
        assert estimate.upper == math.inf
        assert math.isfinite(estimate.lower)
    for estimate in (smallest_f, smallest_g):
        assert estimate.lower == -math.inf
        assert math.isfinite(estimate.upper)


def test_infinite_beta_makes_the_harmful_ends_infinite():
    f, g, x, y, x_adv = setting()
    beta = Estimate(math.inf, 3.0, math.inf)
    largest_f, smallest_g = targeted_constants(f, g, cross_entropy, x, x_adv, 2, beta=beta, eps=EPS)
    assert (largest_f.value, largest_f.upper) == (math.inf, math.inf)
    assert math.isfinite(largest_f.lower)
    assert (smallest_g.value, smallest_g.lower) == (-math.inf, -math.inf)
    smallest_f, largest_g = untargeted_constants(f, g, cross_entropy, x, y, x_adv, beta=beta, eps=EPS)
    assert (smallest_f.value, largest_g.value) == (-math.inf, math.inf)


def test_erratum_1_world_has_the_constants_of_its_counterexample():
    # l_F = (2 + x, 3 - 2x), l_G = (2 + x, 10 - x), target 1, attack 0 -> 1, beta 0: c_F = -1, c_G = -7.
    def losses(model_output, labels):
        return model_output.gather(1, labels[:, None])[:, 0]

    def affine(slopes, offsets):
        model = nn.Linear(1, 2).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor(slopes)[:, None])
            model.bias.copy_(torch.tensor(offsets))
        return model

    f, g = affine([1.0, -2.0], [2.0, 3.0]), affine([1.0, -1.0], [2.0, 10.0])
    x = torch.zeros(1, 1, dtype=torch.float64)
    c_f, c_g = targeted_constants(f, g, losses, x, x + 1, 1, beta=Estimate.exact(0.0), eps=1.0)
    assert (c_f.value, c_g.value) == (-1.0, -7.0)
    assert c_f.is_exact
    # Theorem 2's erratum: l_F = (1 + 2x, 2 - x), l_G = (1 + x, 10 - x), label 0: c_G = 8.
    f, g = affine([2.0, -1.0], [1.0, 2.0]), affine([1.0, -1.0], [1.0, 10.0])
    label = torch.zeros(1, dtype=torch.int64)
    c_f, c_g = untargeted_constants(f, g, losses, x, label, x + 1, beta=Estimate.exact(0.0), eps=1.0)
    assert (c_f.value, c_g.value) == (0.0, 8.0)


class FlatRegion(nn.Module):
    """Logits (x_1^3, 0) where x_1 > 0, constant elsewhere."""

    def forward(self, x):
        first = x[:, 0].clamp_min(0) ** 3
        return torch.stack([first, torch.zeros_like(first)], 1)


def test_zero_gradients_give_honest_infinities_and_their_number():
    f, x = FlatRegion(), torch.tensor([[1.0], [-1.0], [-2.0]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    known = {"beta": Estimate.exact(1.0), "eps": 0.1}
    largest, smallest = targeted_constants(f, f, cross_entropy, x, x, y, **known)
    assert (largest.value, largest.upper) == (math.inf, math.inf)
    assert math.isfinite(largest.lower)
    assert (smallest.value, smallest.lower) == (-math.inf, -math.inf)
    assert math.isfinite(smallest.upper)
    assert "zero gradient at 2 points" in largest.method
    assert "zero gradient at 2 points" in smallest.method
    smallest, largest = untargeted_constants(f, f, cross_entropy, x[1:], y[1:], x[1:], **known)
    assert (smallest.lower, smallest.value, smallest.upper) == (-math.inf, -math.inf, math.inf)
    assert (largest.lower, largest.value, largest.upper) == (-math.inf, math.inf, math.inf)


def test_attack_outside_the_ball_and_bad_eps_are_refused():
    f, g, x, y, x_adv = setting()
    with pytest.raises(ValueError, match=r"\|\|x_adv - x\|\|_2 <= eps = 0.29, got 0.3"):
        untargeted_constants(f, g, cross_entropy, x, y, x_adv, beta=BETA, eps=0.29)
    with pytest.raises(ValueError, match="positive finite l2 radius eps, got 0"):
        targeted_constants(f, g, cross_entropy, x, x_adv, 1, beta=BETA, eps=0)
    with pytest.raises(ValueError, match="x_adv of the shape of x"):
        targeted_constants(f, g, cross_entropy, x, x_adv[:2], 1, beta=BETA, eps=EPS)


def test_minimum_loss_equals_a_slow_loop():
    f, g, x, y, _ = setting()
    others = min(
        loss_at(model, point, k).item()
        for model in (f, g)
        for point, label in zip(x, y.tolist(), strict=True)
        for k in range(CLASSES)
        if k != label
    )
    found = minimum_loss(f, g, cross_entropy, x, y, batch_size=4)
    assert found.is_exact
    assert found.value == pytest.approx(others, rel=1e-12)
    # Theorem 3 as printed runs over all points, those with the target label included.
    assert (y == 1).any()
    at_target = min(loss_at(model, point, 1).item() for model in (f, g) for point in x)
    assert minimum_loss(f, g, cross_entropy, x, y, target=1).value == pytest.approx(at_target, rel=1e-12)
    targets = (y + 1) % CLASSES
    mixed = min(
        loss_at(model, point, k).item()
        for model in (f, g)
        for point, k in zip(x, targets.tolist(), strict=True)
    )
    assert minimum_loss(f, g, cross_entropy, x, y, target=targets).value == pytest.approx(mixed, rel=1e-12)


def test_minimum_loss_of_a_population_is_bounded_from_above_only():
    f, g, x, y, _ = setting()
    found = minimum_loss(f, g, cross_entropy, x, y, support="population")
    assert (found.lower, found.upper) == (-math.inf, found.value)
