"""Signs that an attack did not work as meant, as plain numbers: reports read them without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class AttackHealth:
    """Signs that an attack did not work as meant.

    Attributes:
        zero_gradients: Share of all gradients taken (samples x steps x restarts) that were exactly zero; of
            CW and EAD those of the attack loss while it was not yet content.
        monotone_loss: Share of runs (samples x restarts) whose attack loss (CW and EAD: minus the objective
            that they minimise) never fell from one iterate to the next, up to float rounding.
        unchanged: Share of returned images equal to the clean one.
        black: Share of returned images that are all zero where the clean one was not.
        out_of_range: Share of returned images with a pixel outside the pixel range.
        largest_norm: Largest ||x_adv - x|| in the attack's norm, computed in float64.
    """

    zero_gradients: float
    monotone_loss: float
    unchanged: float
    black: float
    out_of_range: float
    largest_norm: float

    @property
    def often_without_gradient(self) -> bool:
        """Whether so many gradients were zero that the attack may have missed what there is."""
        return self.zero_gradients > 0.05

    @property
    def broken_images(self) -> bool:
        """Whether it returned a black image or one with invalid pixels."""
        return self.black > 0 or self.out_of_range > 0

    def to_json(self) -> dict[str, float]:
        """A JSON-ready mapping of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, float]) -> AttackHealth:
        """The health that `to_json` described."""
        return cls(**fields)
