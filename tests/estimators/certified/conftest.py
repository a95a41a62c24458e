"""Random tiny networks over every layer that certified bounds can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from empirical.models import SOFTPLUS_THRESHOLD, Normalize, ResidualSum

Network = tuple[nn.Module, Tensor, int]

SMOOTH: tuple[Callable[[], nn.Module], ...] = (
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    lambda: nn.Softplus(1.0, SOFTPLUS_THRESHOLD),
    lambda: nn.Softplus(3.0, SOFTPLUS_THRESHOLD),
)
SAMPLES = 4


class RandomNetwork(Protocol):
    def __call__(self, seed: int, *, smooth: bool = True) -> Network: ...


@pytest.fixture
def random_network() -> RandomNetwork:
    """(seed, smooth=True) -> (model in float64 and evaluation mode, x (4, *shape), classes).

    Even seeds give dense networks, odd ones convolutional; consecutive seeds go through all activations.
    Without `smooth`, one or more of the activations are relu.
    """
    return _network


def _network(seed: int, *, smooth: bool = True) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        activation = _Activations(seed, smooth)
        classes = _draw(2, 4)
        layers, shape = _images(activation, classes) if seed % 2 else _rows(activation, classes)
        model = nn.Sequential(*layers).double().eval()
        for layer in model.modules():
            _randomise(layer)
        x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    return model, x, classes


class _Activations:
    """Hands out the activations of one network."""

    def __init__(self, seed: int, smooth: bool) -> None:
        self.next = seed // 2
        self.relu_due = not smooth

    def __call__(self) -> nn.Module:
        if self.relu_due:
            self.relu_due = bool(_draw(0, 1))
            return nn.ReLU()
        self.next += _draw(0, 1) * 5 + 1
        return SMOOTH[self.next % len(SMOOTH)]()


def _draw(low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))


def _rows(activation: _Activations, classes: int) -> tuple[list[nn.Module], tuple[int, ...]]:
    inputs = width = _draw(1, 5)
    layers: list[nn.Module] = [Normalize([0.3] * inputs, [0.7] * inputs, (inputs,))] if _draw(0, 1) else []
    for _ in range(_draw(1, 3)):
        before, width = width, _draw(2, 6)
        layers.append(nn.Linear(before, width, bias=bool(_draw(0, 3))))
        layers += [nn.BatchNorm1d(width)] if _draw(0, 1) else [nn.Dropout()]
        layers.append(activation())
        if not _draw(0, 2):
            body = nn.Sequential(nn.Linear(width, 3), activation(), nn.Linear(3, width))
            layers.append(ResidualSum(body, nn.Identity()))
    return [*layers, nn.Linear(width, classes)], (inputs,)


def _images(activation: _Activations, classes: int) -> tuple[list[nn.Module], tuple[int, ...]]:
    shape = (_draw(1, 2), _draw(3, 4), _draw(3, 4))
    channels = 2 * _draw(1, 2)
    layers: list[nn.Module] = [Normalize([0.4] * shape[0], [0.5] * shape[0], shape)] if _draw(0, 1) else []
    layers += [_convolution(shape[0], channels, 1), activation()]
    if _draw(0, 1):
        layers.append(nn.AvgPool2d(2, stride=_draw(1, 2), padding=_draw(0, 1)))
    if _draw(0, 1):
        layers += [_convolution(channels, channels, 2), nn.BatchNorm2d(channels), activation()]
    if _draw(0, 1):
        body = nn.Sequential(
            nn.Conv2d(channels, 2, 3, padding=1), activation(), nn.Conv2d(2, channels, 1, bias=False)
        )
        layers.append(ResidualSum(body, nn.Identity() if _draw(0, 1) else nn.BatchNorm2d(channels)))
        layers += [activation()] * _draw(0, 1)
    layers.append(nn.Flatten())
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[1]
    if _draw(0, 1):
        layers += [nn.Linear(features, 3), activation()]
        features = 3
    return [*layers, nn.Linear(features, classes)], shape


def _convolution(channels: int, out_channels: int, groups: int) -> nn.Module:
    """With a kernel, stride, padding and dilation that fit images of 1x1 and more."""
    kernel, padding, stride, dilation = (
        (1, 0, 1, 1),
        (2, 1, 1, 1),
        (2, 1, 2, 1),
        (3, 1, 1, 1),
        (3, 1, 2, 1),
        (3, 2, 1, 2),
        (2, 1, 2, 2),
    )[_draw(0, 6)]
    return nn.Conv2d(channels, out_channels, kernel, stride, padding, dilation, groups)


def _randomise(layer: nn.Module) -> None:
    """Weights of about unit gain, and batch statistics as after some training."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.normal_(layer.weight, std=1.3 / layer.weight[0].numel() ** 0.5)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        for name, tensor in layer.state_dict().items():
            if name in ("weight", "running_var"):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif name in ("bias", "running_mean"):
                nn.init.normal_(tensor, std=0.3)
