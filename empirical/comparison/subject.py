"""What a comparison is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from empirical.data import Split
from estimators.certified.network import Network
from estimators.distribution import Distribution

UNTARGETED, TARGETED = "untargeted", "targeted"


@dataclass(frozen=True, eq=False)
class Subject:
    """The members of an ensemble on a set of points, in one mode of attack.

    Attributes:
        name: Of the ensemble.
        members: Its members.
        exact: The same in float64.
        networks: The members as certificates read them, None where a layer has no certificate.
        data: The points.
        target: Target label y_t of the attacks, None for untargeted ones.
        about: What rates on the points say.
    """

    name: str
    members: Sequence[nn.Module]
    exact: Sequence[nn.Module]
    networks: Sequence[Network | None]
    data: Split
    target: int | None
    about: Distribution

    @property
    def targeted(self) -> bool:
        """Whether attacks have a target."""
        return self.target is not None

    @property
    def mode(self) -> str:
        """The same as a word."""
        return TARGETED if self.targeted else UNTARGETED

    @property
    def goal(self) -> Tensor:
        """Labels (n,) whose loss an attack moves: the target's in Theorem 1, the true ones in Theorem 2."""
        return self.data.y if self.target is None else torch.full_like(self.data.y, self.target)
