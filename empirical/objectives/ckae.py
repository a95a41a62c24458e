"""CKAE: diverse ensembles by centred kernel alignment of loss gradients (TRS, section 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import LossGradients, clean_half

# Below the square of any alignment of gradients that are scaled to length 1 as a whole.
_TINY = 1e-24


@dataclass(frozen=True)
class CKAE(Parameters):
    """Members whose loss gradients, seen as representations of a batch, are unlike in all directions at once.

    TRS names the quantity, the pairwise linear CKA of the members' loss gradients on a batch, and says that
    it is minimised. It gives neither a weight nor a schedule: the weight here, and the ramp under which it
    rises, are ours.

    Attributes:
        weight: Weight of the mean CKA over the pairs of members.

    Raises:
        TypeError: If the weight is not a number.
        ValueError: If it is negative or not finite.
    """

    name: ClassVar[str] = "ckae"
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.check_nonnegative("weight")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + ramp * weight * mean CKA."""
        clean = clean_half(members, x, y, step)
        grams = [centred_gram(gradient) for gradient in clean.gradients]
        alignment = torch.stack([cka(k, other) for k, other in combinations(grams, 2)]).mean()
        terms = {"cross_entropy": clean.cross_entropy.detach(), "cka": alignment.detach()}
        return Loss(clean.cross_entropy + step.ramp * self.weight * alignment, terms, clean.logits)


def centred_gram(gradients: LossGradients) -> Tensor:
    """H K H (n, n), K the inner products of one member's loss gradients and H the centring matrix.

    The gradients are first scaled by a constant, of which CKA is independent: those of a fitted batch are so
    small that fourth powers of them underflow.
    """
    rows = gradients.slope[:, None] * gradients.direction
    rows = rows / torch.linalg.matrix_norm(rows.detach()).clamp(min=torch.finfo(rows.dtype).tiny)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def cka(k: Tensor, other: Tensor) -> Tensor:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of two centred Gram matrices, in [0, 1]; 0 if one is 0."""
    return (k * other).sum() / ((k.square().sum() + _TINY).sqrt() * (other.square().sum() + _TINY).sqrt())
