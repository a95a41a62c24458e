"""AdaBoost in its multi-class form, SAMME (Hastie et al. 2009), as TRS, section 6.1 compares with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.ensemble import Vote
from empirical.objectives.base import Loss, Parameters, Step
from estimators.batching import DEFAULT_BATCH, batched_logits


@dataclass(frozen=True)
class AdaBoost(Parameters):
    """One member after the other, each on the samples that the earlier ones got wrong.

    Stage k trains member k by cross-entropy with a weight on each sample. Its weighted error e on the
    training points gives its vote alpha = log((1 - e) / e) + log(K - 1); samples that it got wrong are
    weighed exp(alpha) times more from then on. The ensemble is the average of the members' softmax outputs
    with weights alpha ("the weighted average of all the weak learners"), which has gradients; SAMME itself
    averages their decisions.

    A network often makes no error on its training points: that counts as half of the lightest sample. An
    error of 1 - 1/K, that of guessing, or more stops the training. Until a stage is over its member has no
    vote (member 0 alone votes in the first).
    """

    name: ClassVar[str] = "adaboost"
    sample_mean: ClassVar[bool] = True

    def stages(self, members: int) -> int:
        """One stage for each member."""
        return members

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Weighted cross-entropy of the member that is trained in this stage."""
        logits = step.logits(members[step.stage], x)
        losses = functional.cross_entropy(logits, y, reduction="none")
        if step.sample_weights is not None:
            losses = step.sample_weights * losses
        loss = losses.mean()
        return Loss(loss, {"cross_entropy": loss.detach()}, logits.detach()[None])

    def sample_weights(self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int) -> Tensor:
        """Exp of the summed votes of the earlier members that get a sample wrong, scaled to mean 1."""
        return (len(x) * _shares(members[:stage], vote, x, y)).to(x.dtype)

    def vote(self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int) -> Vote:
        """The votes of the first `stage` members, followed by that of the one just trained, then zeros.

        Raises:
            ValueError: If the member is no better than guessing.
        """
        shares = _shares(members[:stage], vote, x, y)
        classes = batched_logits(members[stage], x[:1], 1).shape[1]
        error = (shares * _is_wrong(members[stage], x, y)).sum().item()
        alpha = vote_of(error or shares.min().item() / 2, classes)
        earlier = (vote.weights or ())[:stage]
        return Vote("probabilities", (*earlier, alpha, *[0.0] * (len(members) - stage - 1)))


def vote_of(error: float, classes: int) -> float:
    """SAMME's weight of a member: log((1 - e) / e) + log(K - 1), positive.

    Args:
        error: Weighted training error e, positive.
        classes: Number of classes K.

    Raises:
        ValueError: If the error is not below 1 - 1/K.
    """
    if error >= 1 - 1 / classes:
        raise ValueError(
            f"adaboost: expected a weighted training error below 1 - 1/{classes}, that of guessing, "
            f"got {error:.3f}"
        )
    return math.log((1 - error) / error) + math.log(classes - 1)


def _shares(earlier: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor) -> Tensor:
    """Weights (n,) of the samples after some members, of sum 1, in float64: they span many magnitudes."""
    exponents = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for member, alpha in zip(earlier, vote.weights or (), strict=False):
        exponents += alpha * _is_wrong(member, x, y)
    return exponents.softmax(0)


def _is_wrong(member: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return batched_logits(member, x, DEFAULT_BATCH).argmax(1) != y
