"""The fast TRS step is the plain one: losses, terms, weight gradients and running statistics."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from empirical import rewriting
from empirical.config import TrainingConfig
from empirical.models import ModelConfig, ResidualSum, build_model
from empirical.objectives import TRS, Step, TRSAdvT
from empirical.training import train

STEP = Step(epoch=2, epochs=4, ramp=0.7)
MODELS = {
    "narrow first layer": (ModelConfig("mlp", "gelu", (6, 5)), (2, 4, 4)),
    "wide first layer": (ModelConfig("mlp", "tanh", (30,)), (1, 4, 4)),
    "linear": (ModelConfig("linear"), (16,)),
    "convolutions": (ModelConfig("lenet", "softplus(5)"), (2, 4, 4)),
    "pooled maxima": (ModelConfig("lenet", "leaky_relu(0.2)"), (1, 4, 6)),
    "folded normalisation": (None, (1, 4, 4)),
}


class Wrapped(nn.Module):
    """A network of a kind that cannot be rewritten."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)


def small_residual(classes):
    """What a residual network consists of, in few and narrow layers."""
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.SiLU())
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.SiLU(),
        ResidualSum(body, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))), nn.SiLU(),
        nn.Flatten(), nn.Linear(12, classes),
    )  # fmt: skip


def members_for(name, classes=4):
    config, shape = MODELS[name]
    torch.manual_seed(0)
    mean, std = [0.1 + 0.2 * c for c in range(shape[0])], [0.5 + 0.1 * c for c in range(shape[0])]
    members = [
        build_model(config, shape=shape, classes=classes, mean=mean, std=std) if config
        else small_residual(classes)
        for _ in range(3)
    ]  # fmt: skip
    for layer in (layer for member in members for layer in member.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return nn.ModuleList(members).double(), torch.rand(3, *shape, dtype=torch.float64)


def after(objective, members, x, y, step):
    """Loss, terms, weight gradients and buffers after a step's backward pass, on a copy."""
    members = copy.deepcopy(members).train()
    loss = objective(members, x, y, replace(step, generator=torch.Generator().manual_seed(0)))
    loss.total.backward(inputs=list(members.parameters()))
    gradients = [weight.grad for weight in members.parameters()]
    assert all(module.training for module in members.modules())
    return [loss.total.detach(), *loss.terms.values(), loss.logits, *gradients, *members.buffers()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objective", [TRS(3, 2, search="joint"), TRSAdvT(3, 2, steps=1)])
def test_fast_equals_plain(name, objective):
    members, x = members_for(name)
    y = torch.arange(len(x)) % 4
    plain = after(objective, members, x, y, replace(STEP, fast=False))
    quick = after(objective, members, x, y, STEP)
    torch.testing.assert_close(quick, plain, rtol=1e-7, atol=1e-11)


def test_fast_equals_plain_in_float32_with_quick_convolutions():
    members, x = members_for("convolutions")
    members, x, y = members.float(), x.float(), torch.arange(3) % 4
    assert "Mirrored" in type(rewriting.folded(members[0][1:2])(x).grad_fn).__name__
    plain = after(TRS(3, 2), members, x, y, replace(STEP, fast=False))
    torch.testing.assert_close(after(TRS(3, 2), members, x, y, STEP), plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["narrow first layer", "folded normalisation"])
def test_two_classes_and_networks_of_another_kind(name):
    members, x = members_for(name, classes=2)
    y = torch.arange(len(x)) % 2
    wrapped = nn.ModuleList([members[0], Wrapped(members[1]), members[2]])
    plain = after(TRS(), members, x, y, replace(STEP, fast=False))
    torch.testing.assert_close(after(TRS(), members, x, y, STEP), plain, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(after(TRS(), wrapped, x, y, STEP), plain, rtol=1e-7, atol=1e-11)


def test_members_of_different_layouts_are_not_stacked():
    torch.manual_seed(0)
    members = nn.ModuleList(
        build_model(ModelConfig("mlp", activation, (6,)), shape=(9,), classes=3).double()
        for activation in ("tanh", "gelu", "softplus(2)")
    )
    x = torch.rand(3, 5, 9, dtype=torch.float64)
    expected = torch.stack([member(part) for member, part in zip(members, x, strict=True)])
    torch.testing.assert_close(rewriting.together(members)(x), expected)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(2, 4, 3, stride=2, padding=1),
    nn.Conv2d(2, 4, 3, dilation=2),
    nn.Conv2d(2, 4, 3, groups=2, bias=False),
    nn.Conv2d(1, 4, 3, padding=4),
    nn.Conv2d(1, 4, 3, padding="same"),
    nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
])  # fmt: skip
@pytest.mark.parametrize("affine", [None, False, True])
def test_any_convolution_folds(layer, affine):
    torch.manual_seed(0)
    after = [] if affine is None else [nn.BatchNorm2d(4, affine=affine)]
    chain = nn.Sequential(layer, *after, nn.Tanh()).train()
    with torch.no_grad():
        chain(3 + 2 * torch.randn(8, layer.in_channels, 7, 7))  # running statistics that say something
    x = torch.rand(2, layer.in_channels, 7, 7)
    torch.testing.assert_close(rewriting.folded(chain.eval())(x), chain(x))


@pytest.mark.parametrize("slope", [0.3, -0.3])
def test_maxima_are_pooled_first_only_where_the_order_stays(slope):
    torch.manual_seed(0)
    chain = nn.Sequential(nn.LeakyReLU(slope), nn.MaxPool2d(2))
    x = torch.randint(-2, 2, (3, 2, 6, 6)).float().requires_grad_()  # ties too
    expected, found = (
        (network(x), *torch.autograd.grad(network(x).sum(), x))
        for network in (chain, rewriting.folded(chain))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_hooks_or_parametrizations_make_are_respected(norm):
    torch.manual_seed(0)
    member = nn.Sequential(norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), norm(nn.Linear(18, 3))).eval()
    x = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(rewriting.folded(member)(x), member(x))
    torch.testing.assert_close(rewriting.together([member, member])(torch.stack([x, x]))[1], member(x))


def test_the_switch_reaches_training_and_changes_rounding_only():
    config = TrainingConfig(
        model=ModelConfig("mlp", "gelu", (16,)), objective=TRS(), batch_size=700, epochs=1
    )
    weights = [train(each, progress=False).state_dict() for each in (replace(config, fast=False), config)]
    differences = [(weights[0][name] - weights[1][name]).abs().max() for name in weights[0]]
    assert 0 < max(differences) < 1e-3


class WithoutAutocast(Step):
    """A step on a device that has no autocast."""

    def logits(self, member, x):
        return member(x)


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
@pytest.mark.parametrize("search", ["joint", "pair"])
def test_everything_is_made_on_the_device_of_the_batch(name, search):
    config = ModelConfig(name, "relu", (6, 5)) if name == "mlp" else ModelConfig(name, "relu")
    with torch.device("meta"):  # another device than the default: an operation on tensors of both would fail
        members = nn.ModuleList(build_model(config, shape=(1, 8, 8), classes=4) for _ in range(3))
        x, y = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    loss = TRS(search=search)(members, x, y, WithoutAutocast())
    loss.total.backward(inputs=list(members.parameters()))
    assert all(weight.grad is not None and weight.grad.is_meta for weight in members.parameters())
