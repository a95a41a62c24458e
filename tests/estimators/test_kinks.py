"""Kinks: by layer, by traced operation, and by the divergence of quotients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators import cross_entropy, divergence_test, kinks, smoothness, traced_kinks
from estimators.kinks import traced_jumps

KINKED = {
    "ReLU": nn.ReLU(), "LeakyReLU": nn.LeakyReLU(0.1), "ELU": nn.ELU(0.5), "Hardswish": nn.Hardswish(),
    "ReLU6": nn.ReLU6(), "Hardtanh": nn.Hardtanh(), "PReLU": nn.PReLU(), "RReLU": nn.RReLU(),
    "SELU": nn.SELU(),
    "Threshold": nn.Threshold(0.1, 0.0), "Hardsigmoid": nn.Hardsigmoid(), "Softshrink": nn.Softshrink(),
}  # fmt: skip
SMOOTH = {
    "Tanh": nn.Tanh(), "GELU": nn.GELU(), "ELU": nn.ELU(), "Softplus": nn.Softplus(5, 50), "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(), "CELU": nn.CELU(0.5), "Mish": nn.Mish(), "linear LeakyReLU": nn.LeakyReLU(1.0),
    "Softsign": nn.Softsign(),
}  # fmt: skip


def net(activation, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 3)).double()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (24,), generator=generator)


@pytest.mark.parametrize("name", KINKED)
def test_kinked_activations_are_named_traced_and_diverge(name):
    model, (x, y) = net(KINKED[name]), data()
    assert kinks(model) == (name,)
    model.eval()
    assert len(traced_kinks(lambda: model(x))) == 1
    test = divergence_test(model, cross_entropy, x, y, radius=2.0)
    assert test.slope == pytest.approx(1.0, abs=0.02)
    assert test.flagged > 0.1
    assert test.jump > 1e-3
    assert test.quotients[-1] > 1e6


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_are_not_flagged(name):
    model, (x, y) = net(SMOOTH[name]), data()
    assert kinks(model) == ()
    assert traced_kinks(lambda: model(x)) == ()
    test = divergence_test(model, cross_entropy, x, y, radius=2.0)
    assert test.slope == pytest.approx(0.0, abs=0.02)
    assert test.flagged == 0.0
    assert test.jump < 1e-6


def test_max_pooling_is_named_once_per_kind():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    assert kinks(model) == ("ReLU", "MaxPool2d")


class Functional(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(4, 8), nn.Linear(8, 3), operation

    def forward(self, x):
        return self.last(self.operation(self.first(x)))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (functional.relu, "relu"), (torch.relu, "relu"), (lambda u: functional.elu(u, 0.5), "elu"),
        (lambda u: functional.max_pool1d(u.repeat(1, 2), 2), "max_pool2d_with_indices"),
        (functional.leaky_relu, "leaky_relu"), (lambda u: u.relu_(), "relu"), (functional.selu, "elu"),
    ],
)  # fmt: skip
def test_functional_kinks_are_traced_and_make_beta_infinite(operation, name):
    model, (x, y) = Functional(operation).double(), data()
    assert kinks(model) == ()
    assert traced_kinks(lambda: model(x)) == (name,)
    found = smoothness(model, cross_entropy, x, y)
    assert (found.value, found.upper) == (float("inf"), float("inf"))
    assert 0 < found.lower < float("inf")
    assert name in found.method


@pytest.mark.parametrize("operation", [functional.elu, lambda u: functional.celu(u, 0.3), functional.gelu])
def test_functional_smooth_activations_are_not_traced(operation):
    model, (x, _) = Functional(operation).double(), data()
    assert traced_kinks(lambda: model(x)) == ()


def test_kink_of_a_hand_written_function_is_found_numerically():
    class Fold(nn.Module):
        def forward(self, x):
            return torch.stack([(x - 0.3).abs().sum(1), x.sum(1)], 1)

    x = torch.zeros(1, 3, dtype=torch.float64)
    end = torch.ones(1, 3, dtype=torch.float64)
    test = divergence_test(Fold(), lambda z, y: z[:, 0], x, torch.tensor([0]), x_end=end)
    assert test.slope == pytest.approx(1.0, abs=1e-6)
    # Each of the three gradient entries jumps from -1 to 1, at one third of the way.
    assert test.jump == pytest.approx(2 * 3**0.5)
    assert test.scales[0] == pytest.approx(3**0.5 / 64)
    assert test.scales[-1] == pytest.approx(3**0.5 / 64 / 2**24, rel=1e-6)


def test_quotients_of_a_smooth_function_settle_at_its_largest_second_derivative():
    def loss(z, y):
        return (3 * z).sin().sum(1)

    x = torch.zeros(1, 2, dtype=torch.float64)
    end = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    test = divergence_test(nn.Flatten(), loss, x, torch.tensor([0]), x_end=end)
    assert test.quotients[-1] == pytest.approx(9.0, rel=1e-2)
    assert test.slope == pytest.approx(0.0, abs=1e-3)


def test_affine_loss_has_slope_zero_and_no_jump():
    test = divergence_test(nn.Linear(4, 3).double(), lambda z, y: z[:, 0], *data())
    assert (test.slope, test.jump, test.flagged) == (0.0, 0.0, 0.0)


def test_float32_models_are_tested_in_float64_on_a_copy():
    x, y = data()
    smooth, folded = net(nn.Tanh()).float(), net(nn.ReLU()).float()
    assert divergence_test(smooth, cross_entropy, x.float(), y).slope == pytest.approx(0.0, abs=0.02)
    assert divergence_test(folded, cross_entropy, x.float(), y, radius=2.0).slope == pytest.approx(
        1, abs=0.02
    )
    assert next(smooth.parameters()).dtype == torch.float32


def test_sharp_softplus_diverges_and_then_settles():
    test = divergence_test(net(nn.Softplus(1e4, 50)), cross_entropy, *data(), radius=2.0)
    assert test.quotients[8] > 4 * test.quotients[0]
    assert test.quotients[-1] == pytest.approx(test.quotients[-4], rel=1e-2)
    assert abs(test.slope) < 0.1


@pytest.mark.parametrize(("key", "value"), [("radius", 0.0), ("radius", float("inf")), ("halvings", 1)])
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"expected .*{key}.*got {value}"):
        divergence_test(net(nn.Tanh()), cross_entropy, *data(), **{key: value})


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)])
def test_max_pooling_diverges_with_slope_one(pool):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), pool, nn.Flatten(), nn.Linear(16, 3)
    ).double()
    x, y = torch.randn(8, 1, 4, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    test = divergence_test(model, cross_entropy, x, y, radius=4.0)
    assert test.slope == pytest.approx(1.0, abs=0.02)
    assert test.flagged > 0.1


def test_default_softplus_threshold_is_said_and_no_kink():
    model, (x, y) = net(nn.Softplus()), data()
    assert kinks(model) == ()
    (note,) = traced_jumps(lambda: model(x))
    assert "threshold 20" in note
    assert "2.1e-09" in note
    assert note in smoothness(model, cross_entropy, x, y).method
    # The jump itself, across the threshold of one softplus.
    u = torch.tensor([20 - 1e-9, 20 + 1e-9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.softplus(u).sum(), u)
    assert (slope[1] - slope[0]).item() == pytest.approx(2.06e-9, rel=1e-2)
    assert traced_jumps(lambda: net(nn.Softplus(5, 50))(x)) == ()
    assert traced_jumps(lambda: functional.softplus(x, 2.0, 30)) != ()
