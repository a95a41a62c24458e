"""What a training method is: a loss on one mini-batch of an ensemble, with its parameters."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """What a training method may know of the step that it computes the loss for.

    Attributes:
        epoch: Number of the epoch, from 1 (m in TRS, Algorithm 1).
        epochs: Number of epochs (M).
        ramp: Weight of the regularisers in this step, in [0, 1].
        pixel_range: Smallest and largest valid input, or None for data without a range.
        mixed_precision: Run the members' forward passes in bfloat16.
    """

    epoch: int = 1
    epochs: int = 1
    ramp: float = 1.0
    pixel_range: tuple[float, float] | None = (0.0, 1.0)
    mixed_precision: bool = False

    def logits(self, member: nn.Module, x: Tensor) -> Tensor:
        """Logits (n, K) of a member, in the precision of `x`.

        Mixed precision ends here: only the member's own layers run in bfloat16. Losses, margins, norms,
        cosines and input gradients are computed in the precision of `x`, for norms are sums of many small
        squares.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return member(x).to(x.dtype)


@dataclass(frozen=True)
class Loss:
    """Loss of one mini-batch.

    Attributes:
        total: Scalar to be minimised.
        terms: Its pieces before weighting, detached scalars by name, for the record.
        logits: (N, n, K) logits of the members on the clean batch, detached, for the running train accuracy.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class Objective(Protocol):
    """A training method: a frozen dataclass of its parameters that is called on a mini-batch."""

    name: ClassVar[str]

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Loss of the members (in training mode) on inputs (n, *shape) with labels (n,)."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: the method's name and its parameters."""
        ...


@dataclass(frozen=True)
class Parameters:
    """Base of the parameter dataclasses: their JSON form, and the check that numbers are weights."""

    name: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: the method's name and its parameters."""
        return {"name": self.name, **asdict(self)}

    def check_nonnegative(self, *names: str) -> None:
        """Refuse weights and radii that are negative or not finite.

        Raises:
            TypeError: If a parameter is not a number.
            ValueError: If a number is negative or not finite.
        """
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{self.name}: expected a number for {name}, got {value!r}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{self.name}: expected {name} finite and >= 0, got {value}")
