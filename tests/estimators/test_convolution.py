"""Quick first convolutions have the values and derivatives of torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators import convolution, cross_entropy, hessian_norms
from estimators.convolution import QuickConvolutions, convolve


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_derivatives_in_float64(padding):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.rand(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 1, 4, 5), (2, 1, 3, 3), (2,))
    )

    def mirrored(x, weight, bias):
        pads = ((padding, padding), (2 - padding, 2 - padding))
        return convolution._MirroredConvolution.apply(x, weight, bias, *pads)

    torch.testing.assert_close(mirrored(x, weight, bias), functional.conv2d(x, weight, bias, 1, padding))
    assert torch.autograd.gradcheck(mirrored, (x, weight, bias))
    assert torch.autograd.gradgradcheck(mirrored, (x, weight, bias))


@pytest.mark.parametrize("outputs", [1, 3, 5])
@pytest.mark.parametrize("size", [(8, 12), (6, 8), (7, 8)])
def test_blocks_of_pixels(outputs, size):
    torch.manual_seed(0)
    x, weight = torch.rand(2, 3, *size), torch.rand(outputs, 3, 3, 5)
    found = convolution._in_blocks(x, weight, torch.arange(outputs).float(), (1, 2))
    expected = functional.conv2d(x, weight, torch.arange(outputs).float(), 1, (1, 2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("settings", "channels", "dtype", "quick"), [
    ({"padding": 1}, 1, torch.float32, True),
    ({}, 4, torch.float32, True),
    ({"padding": (0, 2)}, 3, torch.float32, True),
    ({}, 5, torch.float32, False),
    ({}, 1, torch.float64, False),
    ({"padding": 3}, 1, torch.float32, False),
    ({"padding": "same"}, 1, torch.float32, False),
    ({"stride": 2}, 1, torch.float32, False),
    ({"dilation": 2}, 1, torch.float32, False),
    ({"groups": 2}, 2, torch.float32, False),
])  # fmt: skip
def test_only_where_it_pays(settings, channels, dtype, quick):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 6, 3, **settings, dtype=dtype)
    x = torch.rand(2, channels, 8, 8, dtype=dtype, requires_grad=True)
    with QuickConvolutions():
        inside = layer(x)
    assert ("Mirrored" in type(inside.grad_fn).__name__) is quick
    expected = layer(x)
    torch.testing.assert_close(inside, expected)
    direction = torch.rand_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, direction) for y in (inside, expected)))


def test_vmap_and_bfloat16():
    torch.manual_seed(0)
    x, weight = torch.rand(3, 2, 1, 6, 6), torch.rand(4, 1, 3, 3)
    slopes = torch.vmap(torch.func.grad(lambda part: convolve(part, weight).square().sum()))(x)
    expected = torch.func.grad(lambda flat: torch.conv2d(flat, weight).square().sum())(x.flatten(0, 1))
    torch.testing.assert_close(slopes.flatten(0, 1), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x[0], weight).dtype == torch.bfloat16


def test_hessian_norms_are_those_of_a_network_that_is_not_quick():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(5), nn.Flatten(), nn.Linear(192, 4))
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    found = hessian_norms(network, cross_entropy, x, y)
    truth = hessian_norms(network.double(), cross_entropy, x.double(), y)
    torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=0)
