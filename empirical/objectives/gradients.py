"""Per-sample loss gradients of the members, and the pair terms of TRS that are made of them.

Cross-entropy is softplus(m), where m is the smooth margin logsumexp_{k != y} z_k - z_y. So its input
gradient is sigmoid(m) grad m: a positive factor, which vanishes as the sample is fitted, times a direction,
which does not. Cosines are taken of grad m and stay accurate, and differentiable, where the loss gradient
itself has shrunk to rounding noise.

Which function is differentiated: the gradient of a summed loss splits into per-sample gradients only if no
sample influences another's logits. Batch statistics break this, so all input gradients are those of the
members in *evaluation* mode (running statistics, no dropout), the function that is attacked and measured
later. Only the cross-entropy uses training mode: the one forward pass that moves the running statistics,
which the gradients and the search leave alone. Where no layer of the members tells the modes apart, one
pass serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from empirical.objectives.base import Step
from estimators.losses import margin

# Added to squared lengths of margin gradients (logits per unit of input): the root has a derivative then.
TINY = 1e-24


@dataclass(frozen=True)
class LossGradients:
    """Input gradients of one member's cross-entropy, sample by sample: `slope * direction`.

    Attributes:
        direction: (n, d) gradients of the margin, flattened.
        slope: (n,) derivative of the loss by the margin, 1 - p_y, positive.
    """

    direction: Tensor
    slope: Tensor

    @property
    def norms(self) -> Tensor:
        """(n,) l2 norms of the loss gradients, differentiable (with derivative 0) at a zero gradient too."""
        return self.slope * length(self.direction)


def length(vectors: Tensor) -> Tensor:
    """(n,) l2 lengths of (n, d) vectors, with derivative 0 at the zero vector."""
    return (vectors.square().sum(1) + TINY).sqrt()


def loss_gradients(logits: Tensor, x: Tensor, y: Tensor) -> LossGradients:
    """Gradients of a member's loss by its inputs, themselves differentiable.

    Args:
        logits: (n, K), computed from `x` by a member in evaluation mode.
        x: (n, *shape), requiring a gradient.
        y: (n,) labels.
    """
    margins = margin(logits, y)
    (direction,) = torch.autograd.grad(margins.sum(), x, create_graph=True)
    return LossGradients(direction.flatten(1), torch.sigmoid(margins))


def cosine(f: LossGradients, g: LossGradients) -> Tensor:
    """(n,) cosines between two members' loss gradients; 0, with derivative 0, where one vanishes."""
    inner = (f.direction * g.direction).sum(1)
    return inner / (length(f.direction) * length(g.direction))


def absolute_cosine(f: LossGradients, g: LossGradients) -> Tensor:
    """(n,) |cos| between two members' loss gradients; 0, with derivative 0, where one vanishes."""
    return cosine(f, g).abs()


def similarity(gradients: Sequence[LossGradients]) -> Tensor:
    """L_sim of TRS, section 5.1: |cos| of the members' loss gradients, mean over pairs and samples."""
    return torch.stack([absolute_cosine(f, g).mean() for f, g in combinations(gradients, 2)]).mean()


def gradient_size(gradients: Sequence[LossGradients]) -> Tensor:
    """||grad l_F|| + ||grad l_G|| at the given points, mean over pairs and samples: twice the mean norm."""
    return 2 * torch.stack([gradient.norms.mean() for gradient in gradients]).mean()


@dataclass(frozen=True)
class CleanHalf:
    """What every method needs of the unperturbed batch.

    Attributes:
        x: (n, *shape) inputs, requiring a gradient.
        cross_entropy: Mean over members and samples, in training mode.
        logits: (N, n, K) in training mode, detached.
        gradients: Loss gradients of each member at `x`, in evaluation mode.
        evaluated: (N, n, K) logits in evaluation mode, differentiable.
    """

    x: Tensor
    cross_entropy: Tensor
    logits: Tensor
    gradients: tuple[LossGradients, ...]
    evaluated: Tensor


def clean_half(members: nn.ModuleList, x: Tensor, y: Tensor, step: Step) -> CleanHalf:
    """Evaluate the members on the clean batch, with one forward pass where the two modes agree."""
    x = x.detach().requires_grad_()
    trained, frozen = both_modes(members, x, step)
    return CleanHalf(
        x,
        mean_cross_entropy(trained, y),
        torch.stack(trained).detach(),
        tuple(loss_gradients(logits, x, y) for logits in frozen),
        torch.stack(frozen),
    )


def both_modes(members: nn.ModuleList, x: Tensor, step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Each member's logits (n, K) in training mode and in evaluation mode, from one pass where they agree."""
    trained = [step.logits(member, x) for member in members]
    if not modes_differ(members):
        return trained, trained
    with evaluation_mode(members):
        return trained, [step.logits(member, x) for member in members]


def mean_cross_entropy(logits: Sequence[Tensor], y: Tensor) -> Tensor:
    """Cross-entropy, mean over members and samples."""
    return torch.stack([functional.cross_entropy(member, y) for member in logits]).mean()


@contextmanager
def evaluation_mode(members: nn.ModuleList) -> Iterator[None]:
    """Put the members in evaluation mode for a while; their parameters keep their gradients."""
    modes = [(module, module.training) for module in members.modules()]
    members.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def modes_differ(members: nn.ModuleList) -> bool:
    """Whether a layer of the members computes something else in evaluation mode."""
    return any(module.training and isinstance(module, _NormBase | _DropoutNd) for module in members.modules())
