"""GradientBoost: members fitted to the residuals of those before them (Friedman 2001; TRS, section 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.ensemble import Vote
from empirical.objectives.base import Loss, Parameters, Step
from estimators.batching import frozen


@dataclass(frozen=True)
class GradientBoost(Parameters):
    """An additive model: the ensemble's logits are the sum of the members'.

    Stage k fits member k, by mean squared error, to minus the gradient of the cross-entropy by the summed
    logits F of the members before it, onehot(y) - softmax(F); for the first member F is 0. Until its stage is
    over a member has no part in the sum (member 0 alone stands in the first).
    """

    name: ClassVar[str] = "gradient-boost"
    sample_mean: ClassVar[bool] = True

    def stages(self, members: int) -> int:
        """One stage for each member."""
        return members

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Squared distance of the trained member's logits to the residuals, mean over samples and classes."""
        logits = step.logits(members[step.stage], x)
        loss = functional.mse_loss(logits, self.residuals(members, x, y, step, logits.shape[1]))
        return Loss(loss, {"squared_error": loss.detach()}, logits.detach()[None])

    def residuals(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step, classes: int) -> Tensor:
        """Pseudo-residuals (n, K) of the members before this stage; each row sums to 0."""
        earlier = members[: step.stage]
        votes = x.new_zeros(len(x), classes)
        with frozen(*earlier), torch.no_grad():
            for member in earlier:
                votes += step.logits(member, x)
        return functional.one_hot(y, classes) - votes.softmax(1)

    def vote(self, members: nn.ModuleList, vote: Vote, x: Tensor, y: Tensor, stage: int) -> Vote:
        """The sum of the logits of all members up to this stage."""
        done = stage + 1
        return Vote("logits", (*[1.0] * done, *[0.0] * (len(members) - done)))
