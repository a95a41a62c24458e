"""Convolutions whose gradients by an input of few channels are quick: the first ones of networks, on a CPU.

oneDNN computes these gradients slowly in float32 (LeNet's first convolution, 128 images: 12 ms, where this
takes 1). The gradient by the input of a convolution with stride 1 is the convolution with the mirrored
kernel, to few channels; and oneDNN computes 16 channels in the time of one, so those of a block of pixels
become channels of a strided convolution, with the kernel at each place of the block.

In float64 torch computes convolutions in another way, and there all this would be slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

# With so few input channels a mirrored kernel is faster.
_FEW_CHANNELS = 4

# Channels that oneDNN computes at once, with 32-bit numbers in vectors of 512 bits.
_CHANNELS_AT_ONCE = 16

Sizes = int | Sequence[int]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """`torch.conv2d`, with the same values and derivatives of any order up to rounding."""
    few = weight.shape[1] <= _FEW_CHANNELS and groups == 1 and x.dim() == 4
    quick = few and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if quick and not isinstance(padding, str) and _pair(stride) == _pair(dilation) == (1, 1):
        inside = _pair(padding)
        outside = (weight.shape[2] - 1 - inside[0], weight.shape[3] - 1 - inside[1])
        if min(outside) >= 0 and not torch.is_autocast_enabled("cpu"):
            return _MirroredConvolution.apply(x, weight, bias, inside, outside)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


class QuickConvolutions(TorchFunctionMode):
    """A context in which modules convolve by `convolve`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what is called, or `convolve` in the place of `torch.conv2d`."""
        return (convolve if func is torch.conv2d else func)(*args, **(kwargs or {}))


class _MirroredConvolution(torch.autograd.Function):
    """A convolution of stride 1 whose gradient by its input is the convolution with the mirrored kernel.

    Takes inputs (n, I, H, W), kernels (O, I, h, w), a bias (O,) or None, the padding, and the padding of the
    mirrored convolution.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, mirrored: Any) -> Tensor:
        return _in_blocks(x, weight, bias, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, *ctx.paddings = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        padding, mirrored = ctx.paddings
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            kernel = weight.flip(2, 3).transpose(0, 1)
            by_x = _MirroredConvolution.apply(gradient, kernel, None, mirrored, padding)
        if ctx.needs_input_grad[1]:
            by_weight = conv2d_weight(x, weight.shape, gradient, 1, padding)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 2, 3))
        return by_x, by_weight, by_bias, None, None


def _in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """A convolution of stride 1, computed in blocks of pixels where it has few output channels."""
    size = [x.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis] + 1 for axis in (0, 1)]
    for block in (4, 2):
        if len(weight) * block**2 <= _CHANNELS_AT_ONCE and not any(pixels % block for pixels in size):
            biases = None if bias is None else bias.repeat_interleave(block**2)
            spread = functional.conv2d(x, _at_each_place(weight, block), biases, block, padding)
            return functional.pixel_shuffle(spread, block)
    return functional.conv2d(x, weight, bias, 1, padding)


def _at_each_place(weight: Tensor, block: int) -> Tensor:
    """Kernels (O, I, h, w) moved to each place of a block, (O block^2, I, h + block - 1, w + block - 1)."""
    height, width = (size + block - 1 for size in weight.shape[2:])
    padded = functional.pad(weight, [block - 1] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).flip(2, 3)  # the first has it at the far end
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def _pair(sizes: Sizes) -> tuple[int, ...]:
    return (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)
