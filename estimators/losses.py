"""Per-sample losses: cross-entropy, the loss margin behind it, and a loss at every label."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""A per-sample loss: logits (n, K) and labels (n,) to losses (n,)."""

# Beyond this margin softplus(m) and m agree to the last bit of float64. torch's default of 20 switches to the
# identity too early and leaves a jump of 2e-9 in the gradient; exp(50) is still far from overflow in float32.
_SOFTPLUS_THRESHOLD = 50.0


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy's margin, m = logsumexp over k != y of z_k, minus z_y: positive towards the other labels.

    Cross-entropy is softplus(m) and its gradient sigmoid(m) grad m, so the two gradients are parallel, while
    grad m does not vanish at confident points.

    Args:
        logits: (n, K), K at least 2.
        labels: (n,) integers in 0..K-1.

    Returns:
        Margins of shape (n,).
    """
    column = labels.unsqueeze(1)
    others = logits.scatter(1, column, -math.inf)
    return others.logsumexp(1) - logits.gather(1, column).squeeze(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy -log softmax(z)_y of each sample, in nats, evaluated as softplus of the margin.

    The usual p - e_y rounds to zero at confident points (in float32 from a margin of about -17 on); this form
    keeps the gradient's relative accuracy down to margins of about -87.

    Args:
        logits: (n, K), K at least 2.
        labels: (n,) integers in 0..K-1.

    Returns:
        Losses of shape (n,).
    """
    return functional.softplus(margin(logits, labels), threshold=_SOFTPLUS_THRESHOLD)


def label_losses(loss: LossFunction, logits: Tensor) -> Tensor:
    """The loss of each sample at each label.

    Args:
        loss: Per-sample loss.
        logits: (n, K).

    Returns:
        Losses of shape (n, K): entry (i, k) is the loss of sample i at label k.
    """
    count, classes = logits.shape
    labels = torch.arange(classes, device=logits.device).repeat(count)
    return loss(logits.repeat_interleave(classes, dim=0), labels).reshape(count, classes)


def is_cross_entropy(loss: LossFunction) -> bool:
    """Whether a loss is cross-entropy: by identity, or by its values on logits wide enough to tell."""
    if loss is cross_entropy:
        return True
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(64) % 5
    return torch.allclose(loss(logits, labels), cross_entropy(logits, labels), rtol=1e-9, atol=1e-12)
