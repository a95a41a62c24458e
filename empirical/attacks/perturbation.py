"""Perturbation balls: norms, projection and uniform sampling for batches of inputs of any shape.

Projections hold for the numbers as stored: after rounding to the dtype of `x`, the result is inside the ball.
"""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor

ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


class Ball:
    """Perturbations allowed around a batch: an l2 or linf ball of radius eps, cut with the pixel range.

    The linf box is rounded inwards. The l2 radius is shortened by 2 finfo.eps (||x|| + eps), more than what
    scaling a perturbation and adding it to `x` can add by rounding. An eps below that leaves `x` as it is.
    """

    def __init__(self, x: Tensor, norm: str, eps: float, pixel_range: tuple[float, float] | None) -> None:
        self.x, self.norm, self.eps, self.pixel_range = x, norm, eps, pixel_range
        low, high = (-math.inf, math.inf) if pixel_range is None else pixel_range
        if norm == "linf":
            lowest, highest = _box(x, eps)
            self.low, self.high = lowest.clamp_(min=low), highest.clamp_(max=high)
        else:
            self.low, self.high = torch.full_like(x, low), torch.full_like(x, high)
            rounding = 2 * torch.finfo(x.dtype).eps * (sample_norms(x, 2) + eps)
            self.radius = (eps - rounding).clamp(min=0)

    def at(self, rows: Tensor) -> Ball:
        """The ball around the samples with these numbers."""
        part = copy(self)
        for name in ("x", "low", "high", *(("radius",) if self.norm == "l2" else ())):
            setattr(part, name, getattr(self, name).index_select(0, rows))
        return part

    def project(self, point: Tensor) -> Tensor:
        """The point, moved inside the ball and the pixel range.

        For l2, first into the range and then straight towards `x`, which stays in range and uses the whole
        radius; the other order ends inside the ball where pixels are at the end of their range.
        """
        point = torch.clamp(point, self.low, self.high)
        if self.norm == "linf":
            return point
        delta = point - self.x
        scale = (self.radius / _nonzero(sample_norms(delta, 2))).clamp(max=1)
        # Clamped again because rounding may step out of the range; towards x, so the norm can only shrink.
        return torch.clamp(self.x + delta * spread(scale, delta), self.low, self.high)

    def step(self, x: Tensor, direction: Tensor, length: float) -> Tensor:
        """The point `length` ahead of x in a direction, projected."""
        if self.norm == "linf":  # its directions are signs: a fused product with them rounds nothing
            ahead = torch.add(x, direction, alpha=length)
            return torch.clamp(ahead, self.low, self.high, out=ahead)
        return self.project(x + length * direction)


def uniform_in_unit_ball(x: Tensor, norm: str, generator: torch.Generator) -> Tensor:
    """One point a sample, uniform in the unit ball of the norm, shaped like `x`."""
    if norm == "linf":
        return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device).mul_(2).sub_(1)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
    # The volume inside radius r grows as r^dimension, so the radius is a uniform number's root of that order.
    return normalised(direction, 2) * spread(uniform ** (1 / x[0].numel()), x)


def _box(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x - eps` and `x + eps` in the dtype of `x`, rounded towards `x`."""
    exact = x.double()
    low, high = (exact - eps).to(x.dtype), (exact + eps).to(x.dtype)
    below, above = (exact - low) > eps, (high - exact) > eps
    return (
        torch.lerp(low, torch.nextafter(low, x), below.to(x.dtype)),
        torch.lerp(high, torch.nextafter(high, x), above.to(x.dtype)),
    )


def sample_norms(x: Tensor, order: float) -> Tensor:
    """(n,) norms of the flattened samples, accumulated in float64 so that tiny gradients do not underflow."""
    if order == math.inf:
        return x.flatten(1).abs().amax(1).double()  # faster than vector_norm
    return torch.linalg.vector_norm(x.flatten(1), order, dim=1, dtype=torch.float64)


def normalised(x: Tensor, order: float) -> Tensor:
    """Each sample divided by its norm; a zero sample stays zero."""
    return x / spread(_nonzero(sample_norms(x, order)).to(x.dtype), x)


def direction_of_ascent(gradient: Tensor, norm: str) -> Tensor:
    """The direction of unit norm that raises a linear function of this gradient most; zero stays zero."""
    return gradient.sign() if norm == "linf" else normalised(gradient, 2)


def is_zero(direction: Tensor) -> Tensor:
    """Which directions, normalised or signs, are zero, (n,) bool.

    Their lengths are far from underflow unless 0, and a norm is faster than a look at each number.
    """
    return torch.linalg.vector_norm(direction.flatten(1), dim=1) == 0


def choose(rows: Tensor, x: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Samples of x in the `rows` (n,) bool, of `other` elsewhere, both finite.

    An interpolation with weights 0 and 1, which is exact and vectorised where torch.where is not.
    """
    return torch.lerp(other, x, spread(rows.to(x.dtype), x), out=out)


def _nonzero(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms, torch.ones_like(norms))


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(n,) values shaped to broadcast over the samples `like`, in its dtype unless boolean."""
    values = values if values.dtype == torch.bool else values.to(like.dtype)
    return values.view(-1, *[1] * (like.dim() - 1))
