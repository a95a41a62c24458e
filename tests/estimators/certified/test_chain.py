"""The chain remainder <= segment <= ball <= whole space, and what it says about itself."""

import math

import pytest
import torch
from torch import nn

from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from estimators import cross_entropy, hessian_norms, margin
from estimators.certified.chain import PROOF_LINES, smoothness_chain
from estimators.certified.network import UnsupportedLayer


def stepped(model, x, y, length):
    """Gradient ascent of the loss by one step of this length."""
    point = x.clone().requires_grad_(True)
    (uphill,) = torch.autograd.grad(cross_entropy(model(point), y).sum(), point)
    return x + length * uphill / uphill.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))


def trained_digits(activation, hidden, rows=6):
    torch.manual_seed(0)
    data = load_dataset("digits")
    model = build_model(ModelConfig("mlp", activation, hidden), shape=data.train.x.shape[1:], classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(6):
        for batch in torch.randperm(len(data.train.x)).split(128):
            optimizer.zero_grad()
            cross_entropy(model(data.train.x[batch]), data.train.y[batch]).mean().backward()
            optimizer.step()
    return model.eval(), data.test.x[:rows], data.test.y[:rows]


def check_order(chain):
    uppers = [link.estimate.upper for link in chain.links]
    assert chain.remainder.estimate.value <= chain.segment.estimate.upper
    assert uppers[1:] == sorted(uppers[1:])
    for link in chain.links:
        assert link.estimate.lower <= link.estimate.upper


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "hidden"), [("softplus(5)", (24,)), ("tanh", (16, 16))])
def test_constants_of_trained_networks_are_in_order(activation, hidden):
    model, x, y = trained_digits(activation, hidden)
    labels = torch.stack([y, (y + 1) % 10], 1)
    x_end = stepped(model, x, y, 0.3)
    chain = smoothness_chain(model, cross_entropy, x, x_end, labels, 0.3)
    check_order(chain)
    # The attack's own curvature is far below what any attack may meet.
    assert chain.segment.estimate.upper < 0.8 * chain.ball.estimate.upper
    assert chain.segment.estimate.lower >= 0.9 * chain.segment.estimate.upper
    middle = model.double(), cross_entropy, (x + x_end).double() / 2, labels
    assert float(hessian_norms(*middle).max()) <= chain.ball.estimate.upper


def test_linear_softmax_has_the_closed_forms():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    chain = smoothness_chain(model, cross_entropy, x, stepped(model, x, y, 0.2), y, 0.2)
    check_order(chain)
    widest = float((torch.cdist(model.weight.detach(), model.weight.detach()) ** 2 / 4).max())
    assert chain.whole_space.estimate.upper == pytest.approx(widest, rel=1e-8)
    seen = hessian_norms(model, cross_entropy, x, y).max()
    assert chain.ball.estimate.lower >= float(seen) * (1 - 1e-9)


def test_each_link_says_where_it_holds_and_for_whom():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3, dtype=torch.float64)
    chain = smoothness_chain(model, cross_entropy, x, x + 0.1, torch.tensor([0, 1, 0]), 0.25)
    assert [link.name for link in chain.links] == ["remainder", "segment", "ball", "whole space"]
    assert [link.any_attack for link in chain.links] == [False, False, True, True]
    assert "radius 0.25" in chain.ball.holds_over
    assert all("up to float64 rounding" in link.estimate.method for link in chain.links[1:])


def test_every_theorem_has_its_labels_and_equations():
    labels = {
        number: {line.label for line in PROOF_LINES if line.theorem == number} for number in range(1, 5)
    }
    assert labels == {1: {"y_t"}, 2: {"y"}, 3: {"y", "y_t"}, 4: {"y", "y'"}}
    assert all("Eq." in line.lines for line in PROOF_LINES if line.label != "y'")


@pytest.mark.parametrize(
    "kink", [nn.ReLU(), nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(1), nn.Flatten())]
)
def test_kinks_leave_the_remainder_alone_finite(kink):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), kink, nn.Linear(4, 2)).double()
    x = torch.randn(3, 3, dtype=torch.float64)
    chain = smoothness_chain(model, cross_entropy, x, x + 0.1, torch.tensor([0, 1, 0]), 1.0)
    assert math.isfinite(chain.remainder.estimate.upper)
    for link in chain.links[1:]:
        assert link.estimate.upper == link.estimate.value == math.inf
        assert link.estimate.lower == chain.remainder.estimate.lower
        assert "no Lipschitz gradient" in link.estimate.method


def test_steps_of_single_precision_may_leave_the_ball_by_a_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    y = torch.zeros(5, dtype=torch.int64)
    x_end = stepped(model, x, y, 0.5 * (1 + 1e-6))
    check_order(smoothness_chain(model, cross_entropy, x, x_end, y, 0.5))


def test_what_does_not_fit_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"within the radius 1, got one of length 1\.73"):
        smoothness_chain(model, cross_entropy, x, x + 1, y, 1.0)
    with pytest.raises(ValueError, match="positive finite radius"):
        smoothness_chain(model, cross_entropy, x, x + 1, y, 0.0)
    with pytest.raises(ValueError, match="cross-entropy"):
        smoothness_chain(model, margin, x, x + 1, y, 2.0)
    with pytest.raises(UnsupportedLayer, match="LayerNorm"):
        smoothness_chain(nn.Sequential(nn.LayerNorm(3), model).double(), cross_entropy, x, x + 1, y, 2.0)
