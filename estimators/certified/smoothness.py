"""Certified smoothness of cross-entropy, sample by sample, over balls or over the whole input space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from estimators.batching import DEFAULT_BATCH, check_inputs, check_labels
from estimators.certified.ball import ball_bounds
from estimators.certified.network import read_network
from estimators.certified.whole_space import whole_space_bounds
from estimators.losses import LossFunction, is_cross_entropy


def certified_smoothness(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = math.inf,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Upper bounds on the spectral norm of the Hessian of cross-entropy, over a set around each sample.

    With an infinite radius this is beta of TRS, Definition 6, section 4.1; for linear softmax it is
    `max ||w_k - w_l||^2 / 4`.

    Args:
        model: Network from (n, *shape) to logits (n, K), of layers that `read_network` knows.
        loss: Cross-entropy.
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L).
        radius: l2 radius of the balls, at least 0; infinite for the whole input space.
        batch_size: Samples treated at once.

    Returns:
        Bounds in the shape of y, float64, loss per squared l2 distance, up to float64 rounding. Infinite
        where the set may touch a kink.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels or the radius do not fit, the loss is not cross-entropy, or a layer is
            not supported.
    """
    y = check_labels(y, x, check_inputs((model,), x, batch_size), several=True)
    if not is_cross_entropy(loss):
        raise ValueError("expected cross-entropy for certified smoothness, got another loss")
    network = read_network(model, x)
    if math.isinf(radius):
        return whole_space_bounds(network).smoothness[y]
    columns = [
        ball_bounds(network, x, labels, radius, batch_size=batch_size).hessian
        for labels in y.reshape(len(y), -1).unbind(1)
    ]
    return torch.stack(columns, 1).reshape(y.shape)
