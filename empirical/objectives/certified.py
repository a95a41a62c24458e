"""Certified training for transferability: what the certificate R1 looks at, made large at every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.objectives.base import Loss, Parameters, Step
from empirical.objectives.gradients import (
    both_modes,
    clean_half,
    evaluation_mode,
    length,
    mean_cross_entropy,
)
from empirical.objectives.spectral import lipschitz_estimate
from estimators.losses import margin

# Weights (lambda, 1 - lambda) of two members that are tried for each sample.
_SHARES = 11


@dataclass(frozen=True)
class Certified(Parameters):
    """Cross-entropy of certified margins, of every member and of every pair of members.

    Let m_i be the margin of member i (positive where it is right), g_i its gradient, and eps the radius times
    the ramp. A pair cannot be fooled by any perturbation of that size if for some lambda in [0, 1] what is
    left of the weighted margins at their lowest in the ball is positive (refined result R1). What is left is
    taken from one of two bounds:

    - "taylor": `lambda m_i + (1 - lambda) m_j - eps ||lambda g_i + (1 - lambda) g_j|| - c eps^2 kappa / 2`,
      with kappa >= 0 the curvature of the weighted margin along the step that lowers it most, and c the
      parameter `curvature`. For networks with one hidden layer certificates come close to it.
    - "lipschitz": `m_i - eps L_i` with the Lipschitz constants of the logit differences, as Lipschitz margin
      training has it for one model (Tsuzuku et al. 2018). The best weights are 0 and 1: of a pair, the better
      member counts. It is what certificates can follow through depth.

    A pair may share the work: where the one is easily fooled, the other resists, and opposed gradients
    cancel. That is why joint fooling can be made certifiably much rarer than the fooling of each member.

    Attributes:
        radius: l2 radius at the end of the ramp; it grows with the ramp.
        single: Weight of the members' own certified margins.
        joint: Weight of the pairs' certified margins.
        curvature: Multiple of the curvature that is charged to a pair in "taylor"; 1 is its true size along
            the step, more makes up for what a certificate loses in its bound.
        bound: "taylor" or "lipschitz". The latter is for chains of layers, without branches.

    Raises:
        TypeError: If a number is not one.
        ValueError: If one is negative or not finite, or the bound is unknown.
    """

    name: ClassVar[str] = "certified"
    sample_mean: ClassVar[bool] = True
    radius: float = 0.5
    single: float = 0.2
    joint: float = 1.0
    curvature: float = 6.0
    bound: str = "taylor"

    def __post_init__(self) -> None:
        self.check_nonnegative("radius", "single", "joint", "curvature")
        if self.bound not in ("taylor", "lipschitz"):
            raise ValueError(f"certified: expected the bound taylor or lipschitz, got {self.bound!r}")

    def __call__(self, members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> Loss:
        """Mean cross-entropy + single * that of certified margins + joint * that of pairs of them."""
        eps = self.radius * step.ramp
        losses = self.taylor_losses if self.bound == "taylor" else self.lipschitz_losses
        plain, single, joint, logits = losses(members, x, y, eps, step)
        terms = {"cross_entropy": plain, "single": single, "joint": joint}
        total = plain + self.single * single + self.joint * joint
        return Loss(total, {name: term.detach() for name, term in terms.items()}, logits)

    def taylor_losses(
        self, members: nn.ModuleList, x: Tensor, y: Tensor, eps: float, step: Step
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean losses: plain, of members and of pairs at their Taylor bounds; and the logits (N, n, K)."""
        clean = clean_half(members, x, y, step)
        rows = [
            Row(-margin(logits, y), -gradient.direction)
            for logits, gradient in zip(clean.evaluated, clean.gradients, strict=True)
        ]
        single = [row.linear(eps) for row in rows]
        joint = [self.remaining(heaviest(f, g, eps), clean.x, eps) for f, g in combinations(rows, 2)]
        return clean.cross_entropy, logistic(single), logistic(joint), clean.logits

    def lipschitz_losses(
        self, members: nn.ModuleList, x: Tensor, y: Tensor, eps: float, step: Step
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same at their Lipschitz bounds."""
        trained, frozen = both_modes(members, x, step)
        single = raised_losses(members, frozen, x.shape[1:], y, eps)
        joint = [torch.minimum(f, g) for f, g in combinations(single, 2)]
        plain = mean_cross_entropy(trained, y)
        return plain, torch.stack(single).mean(), torch.stack(joint).mean(), torch.stack(trained).detach()

    def remaining(self, row: Row, x: Tensor, eps: float) -> Tensor:
        """What is left (n,) of a weighted margin at its lowest in the ball, to second order."""
        left = row.linear(eps)
        if not self.curvature:
            return left
        along = (row.slope / length(row.slope).unsqueeze(1)).detach()
        (turned,) = torch.autograd.grad((row.slope * along).sum(), x, create_graph=True)
        falls = -(turned.flatten(1) * along).sum(1)
        return left - self.curvature * eps * eps / 2 * falls.relu()


@dataclass(frozen=True)
class Row:
    """A margin that an attack has to bring down.

    Attributes:
        margin: (n,) its values, positive where the prediction is right.
        slope: (n, d) its gradients by the input, flattened.
    """

    margin: Tensor
    slope: Tensor

    def linear(self, eps: float) -> Tensor:
        """(n,) the lowest value on the l2 ball, to first order."""
        return self.margin - eps * length(self.slope)


def heaviest(f: Row, g: Row, eps: float) -> Row:
    """The weighted mean of two rows that keeps most, to first order; the weights are taken as constants."""
    shares = torch.linspace(0, 1, _SHARES, dtype=f.margin.dtype, device=f.margin.device).unsqueeze(1)
    with torch.no_grad():
        square, inner, other = (
            (a * b).sum(1) for a, b in ((f.slope,) * 2, (f.slope, g.slope), (g.slope,) * 2)
        )
        lengths = shares**2 * square + 2 * shares * (1 - shares) * inner + (1 - shares) ** 2 * other
        left = shares * f.margin + (1 - shares) * g.margin - eps * lengths.clamp_min(0).sqrt()
        share = shares[left.argmax(0), 0]
    return Row(
        share * f.margin + (1 - share) * g.margin,
        share.unsqueeze(1) * f.slope + (1 - share).unsqueeze(1) * g.slope,
    )


def logistic(margins: Sequence[Tensor]) -> Tensor:
    """The loss log(1 + exp(-margin)), mean over all."""
    return functional.softplus(-torch.stack(list(margins))).mean()


def raised_losses(
    members: nn.ModuleList, logits: Sequence[Tensor], sample_shape: Sequence[int], y: Tensor, eps: float
) -> list[Tensor]:
    """Cross-entropy of each member (n,) with its logits raised by what the ball can add to their lead.

    Args:
        members: Chains of layers; their Lipschitz constants are estimated in evaluation mode.
        logits: (n, K) of each.
        sample_shape: Shape of one input.
        y: (n,) labels.
        eps: l2 radius.
    """
    with evaluation_mode(members):
        constants = [lipschitz_estimate(member, sample_shape) for member in members]
    return [
        functional.cross_entropy(one + eps * constant[y], y, reduction="none")
        for one, constant in zip(logits, constants, strict=True)
    ]
