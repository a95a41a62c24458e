"""Accuracy of an ensemble and of each of its members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from empirical.data import Split
from empirical.ensemble import Ensemble, Vote
from estimators.batching import batched_logits


@dataclass(frozen=True)
class Accuracy:
    """Share of correctly classified samples.

    Attributes:
        ensemble: Of the ensemble's vote.
        members: Of each member.
    """

    ensemble: float
    members: tuple[float, ...]

    @property
    def weakest(self) -> float:
        """Of the weakest member: an ensemble can look well while its members have collapsed."""
        return min(self.members)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the weakest member."""
        return {"ensemble": self.ensemble, "members": list(self.members), "weakest": self.weakest}


def evaluate(ensemble: Ensemble, split: Split, *, batch_size: int = 1024) -> Accuracy:
    """Accuracy of an ensemble and of each member, in evaluation mode; the modes are restored.

    Raises:
        ValueError: If a logit is NaN or infinite.
    """
    logits = torch.stack([batched_logits(member, split.x, batch_size) for member in ensemble.members])
    return share_correct(count_correct(logits, split.y, ensemble.vote), len(split))


def count_correct(logits: Tensor, y: Tensor, vote: Vote) -> Tensor:
    """Correct predictions (1 + N,) of the ensemble and of each member, from logits (N, n, K)."""
    votes = vote.log_probabilities(logits)
    return (torch.cat([votes[None], logits]).argmax(-1) == y).sum(1)


def share_correct(correct: Tensor, samples: int) -> Accuracy:
    """The accuracy that so many correct predictions (1 + N,) of so many samples make."""
    ensemble, *members = (correct / samples).tolist()
    return Accuracy(ensemble, tuple(members))
