"""Models read as graphs: the same function for every layer known, and refusals by name for the rest."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from empirical.models import ModelConfig, build_model
from estimators.certified.network import Affine, Input, Pointwise, Sum, UnsupportedLayer, read_network


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check_same(model, x):
    """The graph gives the model's logits at points that reading has not seen, too."""
    model = model.double().eval()
    network = read_network(model, x[:2])
    assert isinstance(network.nodes[0], Input)
    points = torch.cat([x, 5 * x, torch.zeros_like(x[:1])])
    values = network.values(points)
    with torch.no_grad():
        expected = model(points)
    torch.testing.assert_close(values[-1], expected, rtol=1e-9, atol=1e-9)
    assert [tuple(value.shape[1:]) for value in values] == list(network.shapes)
    assert network.classes == expected.shape[1]
    return network


@pytest.mark.parametrize("smooth", [True, False])
def test_random_networks_are_read_exactly(random_network, smooth):
    for seed in range(24):
        model, x, _ = random_network(seed, smooth=smooth)
        assert ("relu" in check_same(model, x).kinks) is not smooth


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("linear", "tanh"),
        ("mlp", "softplus(5)"),
        ("mlp", "relu"),
        ("lenet", "softplus"),
        ("lenet", "gelu"),
        ("resnet8", "tanh"),
        ("resnet8", "silu"),
    ],
)
def test_our_classifiers_are_read_exactly(architecture, activation):
    torch.manual_seed(0)
    config = ModelConfig(architecture, activation, (9, 7))
    model = build_model(config, shape=(1, 8, 8), classes=5, mean=[0.3], std=[0.4])
    model(torch.rand(16, 1, 8, 8))  # batch statistics that are not the initial ones
    network = check_same(model, draw(4, 1, 8, 8))
    assert network.kinks == (("relu",) if activation == "relu" else ())
    joins = sum(isinstance(node, Sum) for node in network.nodes)
    assert joins == (3 if architecture == "resnet8" else 0)


def test_single_precision_models_are_read_in_double():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network = read_network(model, torch.rand(2, 3))
    assert network.nodes[1].bias.dtype == torch.float64
    x = draw(5, 3)
    torch.testing.assert_close(network.values(x)[-1], model.double()(x), rtol=1e-12, atol=1e-12)


def test_adjacent_affine_layers_are_one_node():
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    )
    kinds = [type(node) for node in check_same(model, draw(3, 2, 4)).nodes]
    assert kinds == [Input, Affine, Pointwise, Affine]


class Written(nn.Module):
    """A forward of its own: functions, arithmetic with constants, a branch that is subtracted."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.register_buffer("scale", torch.tensor([2.0, 0.5, 1.5]).reshape(3, 1, 1))

    def forward(self, x):
        hidden = functional.silu(self.first((x - 0.5) / 0.25))
        branch = torch.tanh(self.second(hidden)) * self.scale + 1
        hidden = 2 * hidden - branch
        return -self.last(hidden.mean((2, 3)))


class Functions(nn.Module):
    def __init__(self, function, width=6):
        super().__init__()
        self.function, self.last = function, nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.function(x))


def test_a_forward_of_its_own_is_traced():
    torch.manual_seed(0)
    network = check_same(Written(), draw(4, 1, 5, 5))
    assert [node.curve.name for node in network.nodes if isinstance(node, Pointwise)] == ["silu", "tanh"]
    assert sum(isinstance(node, Sum) for node in network.nodes) == 1


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid,
        torch.relu,
        functional.gelu,
        functional.softplus,
        functional.leaky_relu,
        lambda x: functional.softplus(x, 3.0, 50.0),
        lambda x: functional.leaky_relu(x, 0.3),
        lambda x: x.tanh(),
        lambda x: 1 - x,
        lambda x: (3 + x).div(2),
        lambda x: x + x.tanh(),
        lambda x: functional.dropout(x, 0.5, training=False),
        lambda x: x.reshape(x.shape[0], -1),
    ],
)
def test_functions_and_methods_are_traced(function):
    torch.manual_seed(0)
    check_same(Functions(function), draw(4, 6))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2)])
def test_average_pooling_is_linear(pool):
    torch.manual_seed(0)
    width = pool(torch.zeros(1, 2, 6, 6)).numel()
    check_same(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), pool, nn.Flatten(), nn.Linear(width, 3)),
        draw(3, 1, 6, 6),
    )


def test_reading_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read_network(model, draw(4, 3))
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_torchs_softplus_threshold_is_noted():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2))
    assert "identity" in check_same(model, draw(3, 3)).notes[0]
    model[1] = nn.Softplus(threshold=50)
    assert check_same(model, draw(3, 3)).notes == ()


def chain(*layers):
    return nn.Sequential(*layers).double().eval()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


@pytest.mark.parametrize(
    ("model", "shape", "name"),
    [
        (chain(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)), (1, 4, 4), "MaxPool2d"),
        (chain(nn.LayerNorm(4), nn.Linear(4, 2)), (4,), "LayerNorm"),
        (chain(nn.Linear(4, 2), nn.Softmax(1)), (4,), "Softmax"),
        (chain(nn.ELU(), nn.Linear(4, 2)), (4,), "ELU"),
        (
            chain(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)),
            (1, 4, 4),
            "Conv2d",
        ),
        (chain(nn.GELU(approximate="tanh"), nn.Linear(4, 2)), (4,), "GELU"),
        (LastStep().double(), (5, 3), "LSTM"),
        (Functions(torch.exp, 4).double(), (4,), "exp"),
        (Functions(lambda x: x * x, 4).double(), (4,), "mul"),
        (Functions(lambda x: 1 / (x + 9), 4).double(), (4,), "division"),
        (Branching(), (4,), "torch.fx"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(model, shape, name):
    with pytest.raises(UnsupportedLayer, match=name):
        read_network(model, draw(2, *shape))


def test_a_hidden_switch_is_noticed():
    class Clipped(nn.Tanh):
        def forward(self, x):
            return torch.tanh(x).clamp(-0.1, 0.1)

    with pytest.raises(UnsupportedLayer):
        read_network(chain(nn.Linear(4, 4), Clipped(), nn.Linear(4, 2)), 10 * draw(4, 4))
