"""ADP: adaptive diversity promoting (Pang et al. 2019; TRS, section 6.1 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.ensemble import Vote
from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import mean_cross_entropy

# Added to the Gram matrix's diagonal, as ADP has it: the determinant is positive for equal members too.
_OFFSET = 1e-6


@dataclass(frozen=True)
class ADP(Parameters):
    """Members that agree on the true class and differ in how they rank the others.

    Attributes:
        alpha: Weight of the entropy of the mean prediction.
        beta: Weight of the log of the squared volume that the members' non-true predictions span.

    Raises:
        TypeError: If a weight is not a number.
        ValueError: If one is negative or not finite.
    """

    name: ClassVar[str] = "adp"
    sample_mean: ClassVar[bool] = True
    alpha: float = 2.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        self.check_nonnegative("alpha", "beta")

    def check_fits(self, members: int, classes: int) -> None:
        """Refuse more members than there are other classes: their volume is 0 whatever they predict.

        Raises:
            ValueError: If K - 1 < N.
        """
        if classes - 1 < members:
            raise ValueError(
                f"adp: expected at least {members + 1} classes for {members} members, got {classes}"
            )

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Sum of the members' cross-entropies - ramp * (alpha * entropy + beta * log volume)."""
        logits = torch.stack([step.logits(member, x) for member in members])
        cross_entropy = mean_cross_entropy(tuple(logits), y)
        entropy, volume = ensemble_entropy(logits), log_volume(logits, y)
        terms = {
            "cross_entropy": cross_entropy.detach(),
            "entropy": entropy.detach(),
            "log_volume": volume.detach(),
        }
        diversity = self.alpha * entropy + self.beta * volume
        return Loss(len(members) * cross_entropy - step.ramp * diversity, terms, logits.detach())


def ensemble_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of the mean of the members' softmax outputs, in nats, mean over samples."""
    log_mean = Vote().log_probabilities(logits)
    return -(log_mean.exp() * log_mean).sum(1).mean()


def log_volume(logits: Tensor, y: Tensor) -> Tensor:
    """Log det(M M^T + 1e-6 I), mean over samples.

    Row i of M is member i's prediction without the true class, scaled to length 1. Between 3 log 1e-6, about,
    and 0 for three members: 0 where the rows are orthogonal.

    Args:
        logits: (N, n, K).
        y: (n,) labels.
    """
    others = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device).scatter(
        1, y[:, None], False
    )
    rest = logits.transpose(0, 1)[others[:, None, :].expand(-1, len(logits), -1)]
    # A softmax over the other classes has the direction that the full one has without its largest entry, and
    # no rounding trouble where that entry is nearly 1.
    rows = rest.view(len(y), len(logits), -1).softmax(-1)
    rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    gram = rows @ rows.transpose(1, 2)
    return torch.logdet(gram + _OFFSET * torch.eye(len(logits), dtype=gram.dtype, device=gram.device)).mean()
