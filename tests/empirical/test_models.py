import math

import pytest
import torch
from torch import nn

from empirical.models import ModelConfig, Normalize, build_model, make_activation


def parameter_count(architecture, shape, classes=10, **options):
    model = build_model(ModelConfig(architecture, **options), shape=shape, classes=classes)
    return sum(parameter.numel() for parameter in model.parameters())


def resnet_parameters(blocks, channels, classes):
    """Weights of the CIFAR residual network with projection shortcuts, counted by hand."""
    total = 9 * channels * 16 + 2 * 16
    for inside, outside in ((16, 16), (16, 32), (32, 64)):
        total += 9 * inside * outside + 2 * outside + (2 * blocks - 1) * (9 * outside**2 + 2 * outside)
        if inside != outside:
            total += inside * outside + 2 * outside
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("architecture", "shape", "options", "expected"),
    [
        ("linear", (2,), {}, 3 * 10),
        ("linear", (1, 8, 8), {}, 65 * 10),
        ("mlp", (1, 8, 8), {"hidden": (32, 16)}, 65 * 32 + 33 * 16 + 17 * 10),
        ("lenet", (1, 28, 28), {}, 26 * 6 + 151 * 16 + 785 * 120 + 121 * 84 + 85 * 10),
        ("lenet", (3, 32, 32), {}, 76 * 6 + 151 * 16 + 1025 * 120 + 121 * 84 + 85 * 10),
        ("resnet20", (3, 32, 32), {}, 272_474),
        ("resnet20", (3, 32, 32), {}, resnet_parameters(3, 3, 10)),
        ("resnet8", (1, 28, 28), {}, resnet_parameters(1, 1, 10)),
        ("resnet32", (3, 32, 32), {}, resnet_parameters(5, 3, 10)),
    ],
)
def test_parameter_counts(architecture, shape, options, expected):
    """Each architecture has the number of weights that its layers add up to."""
    assert parameter_count(architecture, shape, **options) == expected


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_resnet_depth(depth):
    """The depth counts the convolutions off the shortcuts, and the last linear layer."""
    model = build_model(ModelConfig(f"resnet{depth}"), shape=(3, 16, 16), classes=10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        *(("lenet", (1, side, side)) for side in (4, 8, 28)),
        *(("resnet8", (channels, side, side)) for channels in (1, 3) for side in (8, 28, 32)),
        ("resnet8", (1, 9, 14)),
        ("lenet", (3, 9, 14)),
        ("mlp", (3, 4, 5)),
        ("mlp", (2,)),
    ],
)
def test_output_shape(architecture, shape):
    """Logits come out for 1 and 3 channels and for small and odd sizes."""
    model = build_model(ModelConfig(architecture), shape=shape, classes=7)
    assert model(torch.rand(3, *shape)).shape == (3, 7)
    assert (model.shape, model.classes) == (shape, 7)


def test_linear_is_softmax_regression():
    """The linear model is one matrix and one offset of the normalised input."""
    model = build_model(ModelConfig("linear"), shape=(2, 2, 2), classes=3, mean=(0.5, -1.0), std=(2.0, 0.25))
    x = torch.rand(5, 2, 2, 2)
    z = torch.stack([(x[:, 0] - 0.5) / 2.0, (x[:, 1] + 1.0) / 0.25], dim=1).reshape(5, 8)
    layer = model[-1]
    torch.testing.assert_close(model(x), z @ layer.weight.T + layer.bias)


def test_normalisation_is_the_first_layer_and_part_of_the_state():
    """The constants travel with the weights and are not trained."""
    model = build_model(ModelConfig(), shape=(3, 4, 4), classes=2, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert isinstance(model[0], Normalize)
    assert {"0.mean", "0.std"} <= model.state_dict().keys()
    assert not {"0.mean", "0.std"} & dict(model.named_parameters()).keys()
    x = torch.rand(6, 3, 4, 4)
    identity = build_model(ModelConfig(), shape=(3, 4, 4), classes=2)[0]
    torch.testing.assert_close(identity(x), x)


def test_resnet_shortcut_carries_the_input():
    """With the last normalisation of a body at zero, a block without change of shape passes x on."""
    model = build_model(ModelConfig("resnet8", "tanh"), shape=(1, 8, 8), classes=2).eval()
    block = model[4]
    block.body[-1].weight.data.zero_()
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 14), (3, 28, 28)])
def test_resnet_averages_over_the_whole_image(shape):
    """The last pooling covers what two strided stages leave, also of odd sizes."""
    model = build_model(ModelConfig("resnet8"), shape=shape, classes=2)
    maps, pooled = model[:-3](torch.rand(2, *shape)), model[:-2](torch.rand(2, *shape))
    assert model[-3].kernel_size == maps.shape[2:]
    assert pooled.shape == (2, 64, 1, 1)


def test_chain_consists_of_known_layers():
    """A pass that walks the layers meets only these kinds."""
    known = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d, nn.BatchNorm2d, nn.Flatten, nn.Softplus)
    for architecture in ("linear", "mlp", "lenet", "resnet8"):
        model = build_model(ModelConfig(architecture), shape=(1, 8, 8), classes=2)
        leaves = [module for module in model.modules() if not list(module.children())]
        assert all(isinstance(leaf, (*known, nn.Identity, Normalize)) for leaf in leaves)


@pytest.mark.parametrize("activation", ["softplus", "softplus(5)", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("architecture", ["lenet", "resnet8"])
def test_smooth_activation_means_smooth_model(architecture, activation):
    """Nothing with a kink is left in where the activation is smooth."""
    model = build_model(ModelConfig(architecture, activation), shape=(1, 8, 8), classes=2)
    assert not any(isinstance(module, (nn.ReLU, nn.MaxPool2d)) for module in model.modules())


def test_relu_lenet_pools_maxima():
    """The piecewise linear LeNet is the usual one."""
    model = build_model(ModelConfig("lenet", "relu"), shape=(1, 8, 8), classes=2)
    assert sum(isinstance(module, nn.MaxPool2d) for module in model) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", lambda t: max(t, 0.0)),
        ("softplus", lambda t: math.log1p(math.exp(t))),
        ("softplus(5)", lambda t: math.log1p(math.exp(5 * t)) / 5),
        ("softplus(0.5)", lambda t: math.log1p(math.exp(t / 2)) / 0.5),
        ("leaky_relu", lambda t: max(t, 0.1 * t)),
        ("leaky_relu(0.3)", lambda t: max(t, 0.3 * t)),
        ("tanh", math.tanh),
        ("gelu", lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2),
        ("silu", lambda t: t / (1 + math.exp(-t))),
    ],
)
def test_activation_values(name, expected):
    """Each name stands for its textbook function."""
    points = [-3.0, -0.5, 0.0, 0.7, 4.0]
    actual = make_activation(name)(torch.tensor(points, dtype=torch.float64)).tolist()
    assert actual == pytest.approx([expected(t) for t in points], abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0, 50.0])
def test_softplus_is_smooth_and_finite_everywhere(beta, dtype):
    """First and second derivatives are the logistic function's, also across torch's switch and far out."""
    scaled = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e4, -1e3, 1e3, 1e4, 1e6])])
    t = (scaled / beta).to(dtype).requires_grad_()
    value = make_activation(f"softplus({beta})")(t)
    (first,) = torch.autograd.grad(value.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    logistic = torch.sigmoid(beta * t.detach())
    rounding = 4 * torch.finfo(dtype).eps
    assert value.isfinite().all()
    torch.testing.assert_close(first.detach(), logistic, rtol=0, atol=rounding)
    exact_second = beta * logistic * torch.sigmoid(-beta * t.detach())
    torch.testing.assert_close(second, exact_second, rtol=0, atol=rounding * beta)


@pytest.mark.parametrize("activation", ["softplus(5)", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("architecture", ["mlp", "lenet", "resnet8"])
def test_double_backward(architecture, activation):
    """The gradient of a gradient norm reaches the weights and stays finite, also for large inputs."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(architecture, activation), shape=(1, 8, 8), classes=3).eval()
    for scale in (1.0, 1e4):
        x = (scale * torch.randn(4, 1, 8, 8)).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
        model.zero_grad()
        gradient.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)


def test_second_derivative_matches_finite_differences():
    """A smooth network in float64 passes torch's own check of second derivatives."""
    torch.manual_seed(1)
    model = build_model(ModelConfig("lenet", "softplus(3)"), shape=(1, 4, 4), classes=2).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: model(z).logsumexp(1), x)


def test_seed_decides_the_weights():
    """The global generator, and nothing else, decides the fresh weights."""

    def first_weight(seed):
        torch.manual_seed(seed)
        return build_model(ModelConfig(), shape=(2,), classes=2)[2].weight

    assert torch.equal(first_weight(3), first_weight(3))
    assert not torch.equal(first_weight(3), first_weight(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vgg"}, "expected an architecture among .*got 'vgg'"),
        ({"architecture": "resnet21"}, "6n.2.*got 'resnet21'"),
        ({"architecture": "resnet2"}, "got 'resnet2'"),
        ({"activation": "elu"}, "expected an activation among .*got 'elu'"),
        ({"activation": "softplus(0)"}, "got 'softplus\\(0\\)'"),
        ({"activation": "softplus(-1)"}, "B > 0"),
        ({"activation": "softplus(nan)"}, "B > 0"),
        ({"activation": "softplus(inf)"}, "B > 0"),
        ({"activation": "softplus(x)"}, "B > 0"),
        ({"activation": "leaky_relu(1)"}, "slope 0 < S < 1, .*got 'leaky_relu\\(1\\)'"),
        ({"activation": "leaky_relu(0)"}, "slope 0 < S < 1"),
        ({"hidden": (64, 0)}, "expected positive whole numbers.*\\(64, 0\\)"),
        ({"hidden": (2.5,)}, "expected positive whole numbers"),
    ],
)
def test_bad_config(options, message):
    """An impossible description is refused where it is made."""
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("lenet", {"shape": (1, 3, 8), "classes": 2}, "at least 4x4 pixels for lenet, got 3x8"),
        ("lenet", {"shape": (2,), "classes": 2}, r"images \(C, H, W\) for lenet.*\(2,\)"),
        ("resnet8", {"shape": (2, 4), "classes": 2}, r"images \(C, H, W\) for resnet8"),
        ("mlp", {"shape": (), "classes": 2}, "sample shape"),
        ("mlp", {"shape": (0, 3, 3), "classes": 2}, "sample shape"),
        ("mlp", {"shape": (2,), "classes": 1}, "at least 2 classes, got 1"),
        ("mlp", {"shape": (3, 4, 4), "classes": 2, "mean": (0.5,)}, "each of 3 channels, got 1 and 3"),
        ("mlp", {"shape": (1, 4, 4), "classes": 2, "std": (0.0,)}, "positive stds"),
        ("mlp", {"shape": (1, 4, 4), "classes": 2, "mean": (math.nan,)}, "finite means"),
    ],
)
def test_bad_model(architecture, options, message):
    """A model that does not fit its input is refused with what came."""
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig(architecture), **options)
