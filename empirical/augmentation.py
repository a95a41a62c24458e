"""Random changes of a batch of images, made on its device and driven by an explicit generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Random changes of images that keep their label.

    Attributes:
        padding: Pad with this many black pixels on each side, then crop back at a random place.
        flip: Mirror left and right with probability 1/2.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images (n, C, H, W), on the device of x.

        Args:
            x: Images (n, C, H, W).
            generator: Source of the random numbers, on any device; a CPU generator gives the same crops on
                every device.
        """
        if self.padding:
            x = _random_crop(x, self.padding, generator)
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
            x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
        return x


def _random_crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    n, channels, height, width = x.shape
    corners = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=generator.device)
    top, left = corners.to(x.device)
    rows = (top + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, None, :]
    samples = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return functional.pad(x, (padding,) * 4)[samples, channel, rows, columns]
