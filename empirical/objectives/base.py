"""What a training method is: a loss on one mini-batch of an ensemble, with its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from empirical.ensemble import Vote


@dataclass(frozen=True)
class Step:
    """What a training method may know of the step that it computes the loss for.

    Attributes:
        epoch: Number of the epoch in its stage, from 1 (m in TRS, Algorithm 1).
        epochs: Number of epochs of a stage (M).
        stage: Number of the stage, from 0; most methods have one.
        ramp: Weight of the regularisers in this step, in [0, 1].
        pixel_range: Smallest and largest valid input, or None for data without a range.
        mixed_precision: Run the members' forward passes in bfloat16.
        epoch_draw: Uniform in [0, 1), drawn once an epoch: what a method chooses at random for an epoch.
        generator: Source of the random numbers of a step, seeded and saved with the run, on the CPU.
        share: Where several processes share the batch, its size and the rows that are this one's.
        sample_weights: (n,) weights of the batch's samples, of mean 1 over the training points, or None for
            equal weights.
        fast: Compute the same loss, up to rounding, with less work where a method knows how
            (`empirical.objectives.fast`).
    """

    epoch: int = 1
    epochs: int = 1
    stage: int = 0
    ramp: float = 1.0
    pixel_range: tuple[float, float] | None = (0.0, 1.0)
    mixed_precision: bool = False
    epoch_draw: float = 0.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    share: tuple[int, slice] | None = None
    sample_weights: Tensor | None = None
    fast: bool = True

    def logits(self, member: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Logits (n, K) of a member, in the precision of `x`.

        Mixed precision ends here: only the member's own layers run in bfloat16. Losses, margins, norms,
        cosines and input gradients are computed in the precision of `x`, for norms are sums of many small
        squares.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return member(x).to(x.dtype)

    def draw(self, numbers: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """Random numbers (`torch.rand`, `torch.randn`) for the batch, (n, ...), on the CPU.

        They are drawn for the whole batch, however many processes share it.
        """
        samples, rows = self.share or (shape[0], slice(None))
        return numbers((samples, *shape[1:]), generator=self.generator)[rows]


@dataclass(frozen=True)
class Loss:
    """Loss of one mini-batch.

    Attributes:
        total: Scalar to be minimised.
        terms: Its pieces before weighting, detached scalars by name, for the record.
        logits: (M, n, K) logits of the members that the step trains on the clean batch, detached, for the
            running train accuracy.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class Objective(Protocol):
    """A training method: a frozen dataclass of its parameters that is called on a mini-batch.

    Training runs in stages, each with the whole of the configured epochs, a fresh optimiser and a fresh
    schedule. Most methods have one. Boosting has one for each member; a member that the loss does not depend
    on is left as it is. What a stage needs to know of the earlier ones follows from their members and the
    vote, so an interrupted run has no further state.
    """

    name: ClassVar[str]
    sample_mean: ClassVar[bool]

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Loss of the members (in training mode) on inputs (n, *shape) with labels (n,)."""
        ...

    def check_fits(self, members: int, classes: int) -> None:
        """Raise ValueError if the method cannot train so many members on so many classes."""
        ...

    def stages(self, members: int) -> int:
        """Number of stages in which so many members are trained."""
        ...

    def sample_weights(
        self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int
    ) -> Tensor | None:
        """Weights (n,) of all training points in a stage, of mean 1, or None for equal weights."""
        ...

    def vote(self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int) -> Vote:
        """How the members vote after a stage, from the training points and the vote before it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: the method's name and its parameters."""
        ...


@dataclass(frozen=True)
class Parameters:
    """Base of the methods: what most have in common, and their parameters' JSON form and checks.

    Attributes:
        name: In configurations and checkpoints.
        sample_mean: The loss is a mean over the batch's samples, and random numbers come from `Step.draw`, so
            that several processes that share a batch have the same loss as one.
    """

    name: ClassVar[str]
    sample_mean: ClassVar[bool] = False

    def check_fits(self, members: int, classes: int) -> None:
        """Most methods train any number of members on any number of classes."""

    def stages(self, members: int) -> int:
        """Most methods train all members at once."""
        return 1

    def sample_weights(
        self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int
    ) -> Tensor | None:
        """Most methods weigh all samples alike."""
        return None

    def vote(self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int) -> Vote:
        """Most ensembles vote with the mean of their probabilities."""
        return vote

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: the method's name and its parameters."""
        return {"name": self.name, **asdict(self)}

    def check_positive_steps(self, *names: str) -> None:
        """Refuse numbers of steps that are not whole and positive.

        Raises:
            ValueError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: expected {name} a whole number >= 1, got {value!r}")

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
