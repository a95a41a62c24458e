"""Classifiers from standard layers, with the normalisation inside and the activation chosen.

Every model takes pixels in [0, 1] (or raw coordinates) and returns logits, so that the size of a perturbation
means the same for every model. The smoothness constant of the theorems is finite only where each layer is
smooth: with relu, or with maximum pooling, it is infinite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Beyond `threshold` (default 20) torch's softplus is the identity, and there its slope jumps by 2e-9. At 50
# the jump, exp(-50), is far below the resolution of float64, and exp(50) far below the overflow of float32.
SOFTPLUS_THRESHOLD = 50.0

_PLAIN_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
_PARAMETRIC = re.compile(r"(?P<name>softplus|leaky_relu)(?:\((?P<number>[^()]+)\))?")
_RESNET = re.compile(r"resnet(?P<depth>\d+)")
_ARCHITECTURES = "linear, mlp, lenet, resnet20 (any depth 6n+2: resnet8, resnet14, resnet32, ...)"
_ACTIVATIONS = (
    "relu, leaky_relu(S) with a slope 0 < S < 1, softplus, softplus(B) with B > 0, tanh, gelu, silu"
)
_ACTIVATION_LAYERS = (nn.ReLU, nn.LeakyReLU, nn.Softplus, nn.Tanh, nn.GELU, nn.SiLU)


@dataclass(frozen=True)
class ModelConfig:
    """What to build.

    Attributes:
        architecture: linear (softmax regression), mlp, lenet, or resnet20 and other depths 6n+2.
        activation: relu, leaky_relu(S) with slope S, softplus, softplus(B) with sharpness B, tanh, gelu or
            silu; linear has none.
        hidden: Widths of the hidden layers of an mlp; the other architectures have widths of their own.

    Raises:
        ValueError: If a name is unknown or a width is not positive.
    """

    architecture: str = "mlp"
    activation: str = "softplus(5)"
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.architecture not in ("linear", "mlp", "lenet"):
            _blocks_per_stage(self.architecture)
        make_activation(self.activation)
        if not all(isinstance(width, int) and width > 0 for width in self.hidden):
            raise ValueError(f"expected positive whole numbers for the hidden widths, got {self.hidden}")


class Normalize(nn.Module):
    """`(x - mean) / std` for every channel, or for every coordinate of a flat sample.

    Args:
        mean: One number for each channel, shape (C,).
        std: One positive number for each channel, shape (C,).
        sample_shape: Shape of one sample, (C, H, W) or (C,).

    Raises:
        ValueError: If there is not one finite mean and one positive std for each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], sample_shape: Sequence[int]) -> None:
        super().__init__()
        channels = sample_shape[0]
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"expected a mean and a std for each of {channels} channels, got {len(mean)} and {len(std)}"
            )
        if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ValueError(f"expected finite means and positive stds, got {list(mean)} and {list(std)}")
        view = (channels, *(1 for _ in sample_shape[1:]))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).reshape(view))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).reshape(view))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, shape (n, *sample_shape)."""
        return (x - self.mean) / self.std


class ResidualSum(nn.Module):
    """`body(x) + shortcut(x)`, the join of a residual block."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the two branches."""
        return self.body(x) + self.shortcut(x)


class Classifier(nn.Sequential):
    """A chain of layers that remembers how it was built, so that a checkpoint can rebuild it.

    Attributes:
        config: What was asked for.
        shape: Shape of one sample.
        classes: Number of classes K; the output is logits (n, K).
    """

    config: ModelConfig
    shape: tuple[int, ...]
    classes: int


def build_model(
    config: ModelConfig,
    *,
    shape: Sequence[int],
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A classifier with fresh weights from torch's global generator, on the current default device.

    Args:
        config: Architecture and activation.
        shape: Shape of one sample: (C, H, W), or (d,) for linear and mlp.
        classes: Number of classes K.
        mean: Mean of each channel, subtracted inside the model; 0 where not given.
        std: Standard deviation of each channel, divided by inside the model; 1 where not given.

    Returns:
        A module from (n, *shape) to logits (n, K), in training mode; its first layer is `Normalize`.

    Raises:
        ValueError: If the architecture does not fit the shape, or classes, mean or std make no sense.
    """
    shape = tuple(shape)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"expected a sample shape of positive sizes, got {shape}")
    if classes < 2:
        raise ValueError(f"expected at least 2 classes, got {classes}")
    channels = shape[0]
    normalize = Normalize(
        [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std, shape
    )
    model = Classifier(normalize, *_layers(config, shape, classes))
    model.config, model.shape, model.classes = config, shape, classes
    return model


def make_activation(name: str) -> nn.Module:
    """The activation layer that a name stands for.

    Softplus has sharpness B (default 1), `log(1 + exp(B t)) / B`, and a second derivative of at most B / 4.
    Leaky ReLU has slope S (default 0.1) below 0.

    Raises:
        ValueError: If the name is unknown, the sharpness not a positive number, or the slope not in (0, 1).
    """
    if name in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[name]()
    match = _PARAMETRIC.fullmatch(name)
    if match:
        try:
            number = float(match["number"] or (1 if match["name"] == "softplus" else 0.1))
        except ValueError:
            number = math.nan
        if match["name"] == "softplus" and 0 < number < math.inf:
            return nn.Softplus(number, SOFTPLUS_THRESHOLD)
        if match["name"] == "leaky_relu" and 0 < number < 1:
            return nn.LeakyReLU(number)
    raise ValueError(f"expected an activation among {_ACTIVATIONS}, got {name!r}")


def is_activation(layer: nn.Module) -> bool:
    """Whether a layer is one of the activations that a model can be built with."""
    return isinstance(layer, _ACTIVATION_LAYERS)


def activation_layers(model: nn.Module) -> list[nn.Module]:
    """The activation layers of a model, in the order of its layers, which is that of its forward pass."""
    return [layer for layer in model.modules() if is_activation(layer)]


def _layers(config: ModelConfig, shape: tuple[int, ...], classes: int) -> list[nn.Module]:
    if config.architecture == "linear":
        return _mlp((), config.activation, shape, classes)
    if config.architecture == "mlp":
        return _mlp(config.hidden, config.activation, shape, classes)
    if len(shape) != 3:
        raise ValueError(f"expected images (C, H, W) for {config.architecture}, got samples of shape {shape}")
    if config.architecture == "lenet":
        return _lenet(config.activation, shape, classes)
    return _resnet(_blocks_per_stage(config.architecture), config.activation, shape, classes)


def _mlp(hidden: Sequence[int], activation: str, shape: Sequence[int], classes: int) -> list[nn.Module]:
    width = math.prod(shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), make_activation(activation)]
        width = next_width
    return [*layers, nn.Linear(width, classes)]


def _lenet(activation: str, shape: Sequence[int], classes: int) -> list[nn.Module]:
    """LeNet-5 with both convolutions padded, so that the 8x8 digits fit too.

    Pooling takes maxima for (leaky) relu and averages for a smooth activation: a maximum has a kink of its
    own.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"expected images of at least 4x4 pixels for lenet, got {height}x{width}")
    pool = nn.MaxPool2d if "relu" in activation else nn.AvgPool2d
    return [
        nn.Conv2d(channels, 6, 5, padding=2),
        make_activation(activation),
        pool(2),
        nn.Conv2d(6, 16, 5, padding=2),
        make_activation(activation),
        pool(2),
        nn.Flatten(),
        nn.Linear(16 * (height // 4) * (width // 4), 120),
        make_activation(activation),
        nn.Linear(120, 84),
        make_activation(activation),
        nn.Linear(84, classes),
    ]


def _blocks_per_stage(architecture: str) -> int:
    match = _RESNET.fullmatch(architecture)
    depth = int(match["depth"]) if match else 0
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"expected an architecture among {_ARCHITECTURES}, got {architecture!r}")
    return (depth - 2) // 6


def _resnet(blocks: int, activation: str, shape: Sequence[int], classes: int) -> list[nn.Module]:
    """The residual network for small images (He et al. 2016, section 4.2): stages of 16, 32, 64 channels.

    Shortcuts that change the shape are 1x1 convolutions with batch normalisation (option B of that paper),
    so that every branch consists of standard layers.
    """
    channels, height, width = shape
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        make_activation(activation),
    ]
    channels = 16
    for out_channels in (16, 32, 64):
        for block in range(blocks):
            stride = 2 if block == 0 and out_channels > 16 else 1
            layers += [_residual(channels, out_channels, stride, activation), make_activation(activation)]
            channels = out_channels
    # Each of the two strided stages halves a size and rounds up.
    layers += [nn.AvgPool2d((-(-height // 4), -(-width // 4))), nn.Flatten(), nn.Linear(channels, classes)]
    for layer in nn.Sequential(*layers).modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layers


def _residual(channels: int, out_channels: int, stride: int, activation: str) -> ResidualSum:
    body = nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        make_activation(activation),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    if stride == 1 and channels == out_channels:
        return ResidualSum(body, nn.Identity())
    shortcut = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
    return ResidualSum(body, nn.Sequential(shortcut, nn.BatchNorm2d(out_channels)))
