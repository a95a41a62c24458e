"""Search inside a ball by signed gradients, as the training methods do it: all steps kept, none judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from empirical.objectives.base import Step


@dataclass(frozen=True)
class Box:
    """The linf ball of radius `radius` around `x`, cut with the pixel range.

    Attributes:
        x: (n, *shape) centres.
        low: (n, *shape) smallest admissible values.
        high: (n, *shape) largest admissible values.
    """

    x: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, radius: float, pixel_range: tuple[float, float] | None) -> Box:
        """The ball around a batch."""
        x = x.detach()
        low, high = x - radius, x + radius
        if pixel_range is not None:
            low, high = low.clamp(min=pixel_range[0]), high.clamp(max=pixel_range[1])
        return cls(x, low, high)

    def move(self, point: Tensor, slope: Tensor, size: float) -> Tensor:
        """The point, moved by `size` along the slope's signs and back into the box, requiring a gradient."""
        return torch.clamp(point.detach() + size * slope.sign(), self.low, self.high).requires_grad_()

    def random_start(self, radius: float, step: Step) -> Tensor:
        """Points drawn uniformly from the ball, cut with the pixel range."""
        noise = step.draw(torch.rand, self.x.shape).to(self.x)
        return torch.clamp(self.x + radius * (2 * noise - 1), self.low, self.high).requires_grad_()


def ascend(box: Box, start: Tensor, slope: Callable[[Tensor], Tensor], *, steps: int, size: float) -> Tensor:
    """The last of `steps` signed steps from `start`, detached.

    Args:
        box: Where the search stays.
        start: First point, shaped like the box or with further axes in front, requiring a gradient.
        slope: The direction to climb at a point that requires a gradient; signs alone matter.
        steps: Number of steps.
        size: Length of each, in the linf norm.
    """
    point = start
    for _ in range(steps):
        point = box.move(point, slope(point), size)
    return point.detach()
