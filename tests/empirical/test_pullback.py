"""Written-out backward passes: the values and input gradients that autograd finds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from empirical.ensemble import Ensemble, Vote
from empirical.models import ModelConfig, build_model
from empirical.pullback import with_pullback
from estimators.batching import frozen

SHAPE = (2, 6, 6)
ACTIVATIONS = ["relu", "leaky_relu(0.2)", "softplus(5)", "tanh", "gelu", "silu"]


def made(architecture: str, activation: str = "relu", seed: int = 0, std: float = 0.5) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(
        ModelConfig(architecture, activation, (9, 7)), shape=SHAPE, classes=4, mean=[0.3, 0.1], std=[std, 0.7]
    )
    return model.double().eval()


def by_autograd(model: nn.Module, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_()
    logits = model(point)
    return logits.detach(), torch.autograd.grad(logits, point, slope)[0]


def check(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, *SHAPE, generator=generator, dtype=torch.float64)
    slope = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    expected, gradient = by_autograd(model, x, slope)
    with frozen(model):
        logits, pullback = with_pullback(model)(x)
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pullback(slope), gradient, rtol=1e-12, atol=1e-12)
    assert gradient.any()
    assert not logits.requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("architecture", ["linear", "mlp"])
def test_dense_chains(architecture: str, activation: str) -> None:
    """Normalisation, flattening, dense layers with and without bias, and every activation."""
    check(made(architecture, activation))


def test_dense_chain_without_bias_and_normalisation() -> None:
    """A chain of one's own, whose first layer is no normalisation."""
    layers = nn.Flatten(), nn.Linear(72, 5, bias=False), nn.ReLU(), nn.Linear(5, 4)
    check(nn.Sequential(*layers).double())


@pytest.mark.parametrize("architecture", ["lenet", "resnet8"])
def test_other_networks(architecture: str) -> None:
    """Convolutions, pooling, residual sums and batch normalisation go through autograd."""
    check(made(architecture))


@pytest.mark.parametrize("vote", [Vote(), Vote(weights=(0.5, 2.0, 0.0)), Vote("logits", (1.0, 3.0, 0.5))])
def test_ensembles(vote: Vote) -> None:
    """Members of different kinds, and every way to vote."""
    members = made("mlp"), made("lenet", seed=1), made("mlp", "gelu", seed=2)
    check(Ensemble(members, vote).eval())


def test_an_ensemble_of_another_kind_is_taken_as_it_is() -> None:
    """A subclass may predict otherwise, and a hook may change what a layer gives."""

    class Doubled(Ensemble):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    check(Doubled([made("mlp"), made("mlp", seed=1)]).eval())
    hooked = made("mlp")
    hooked[2].register_forward_hook(lambda module, inputs, output: 3 * output)  # type: ignore[index]
    check(hooked)


def test_identity_normalisation_is_skipped_and_no_other() -> None:
    """Mean 0 and std 1 change nothing; std 1 with another mean does."""
    torch.manual_seed(0)
    config = ModelConfig("mlp", "relu", (9,))
    for mean, std in (([0.0, 0.0], [1.0, 1.0]), ([0.0, 0.2], [1.0, 1.0]), ([0.0, 0.0], [1.0, 2.0])):
        check(build_model(config, shape=SHAPE, classes=4, mean=mean, std=std).double())


@pytest.mark.parametrize("make", [lambda: made("mlp"), lambda: Ensemble([made("mlp"), made("lenet")]).eval()])
def test_without_gradients_the_value_alone(make: Callable[[], nn.Module]) -> None:
    """Under no_grad nothing is kept for a backward pass, and the value is the same."""
    model, x = make(), torch.rand(3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        logits, _ = with_pullback(model)(x)
        torch.testing.assert_close(logits, model(x), rtol=1e-12, atol=1e-12)
