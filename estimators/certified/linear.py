"""Certified upper bounds on the smoothness beta. So far: linear softmax, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators.batching import double_copy, frozen
from estimators.losses import LossFunction, cross_entropy

_AFFINE_LAYERS = (
    nn.Linear,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)

# Covers float64 rounding of the weights' products and squares, which is below 1e-12 in practice.
_ROUNDING = 1e-9


def linear_softmax_smoothness(model: nn.Module, loss: LossFunction, x: Tensor) -> float:
    """Upper bound max_{k,l} ||w_k - w_l||^2 / 4 on beta over all inputs, for affine models.

    The Hessian is W^T (diag p - p p^T) W, and v^T W^T (diag p - p p^T) W v is the variance of (W v)_k under
    p, at most a quarter of its squared range. It is attained in the limit p_k = p_l = 1/2, so this is beta
    itself over the whole space if the rows of W are affinely independent or there are two classes.

    Args:
        model: nn.Linear, or nn.Sequential of normalisation, Flatten, Identity, Dropout, BatchNorm and Linear.
        loss: Cross-entropy.
        x: Inputs (n, *shape) in the model's dtype; used to find the affine map, and to check that it is one.

    Returns:
        The bound, loss per squared l2 distance, up to float64 rounding (inflated by 1e-9 of itself).

    Raises:
        ValueError: If a layer is not of these kinds, or the loss is not cross-entropy.
    """
    for layer in _chain(model):
        if not _is_affine(layer):
            raise ValueError(
                f"certified smoothness is available for linear softmax; got layer {type(layer).__name__}"
            )
    if not is_cross_entropy(loss):
        raise ValueError(
            "certified smoothness is available for linear softmax; got a loss that is not cross-entropy"
        )
    weights = _affine_weights(double_copy(model), x.double())
    spread = max(float((weights - row).square().sum(1).max()) for row in weights)
    return spread / 4 * (1 + _ROUNDING)


def _chain(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential):
        return [layer for child in model for layer in _chain(child)]
    return [model]


def _is_affine(layer: nn.Module) -> bool:
    normalises = (
        type(layer).__name__.startswith("Normali") and hasattr(layer, "mean") and hasattr(layer, "std")
    )
    return isinstance(layer, _AFFINE_LAYERS) or normalises


def is_cross_entropy(loss: LossFunction) -> bool:
    """By identity, or by value on logits drawn wide enough to tell losses apart."""
    if loss is cross_entropy:
        return True
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(64) % 5
    return torch.allclose(loss(logits, labels), cross_entropy(logits, labels), rtol=1e-9, atol=1e-12)


def _affine_weights(model: nn.Module, x: Tensor) -> Tensor:
    """Matrix W (K, d) of x -> W x + b, checked against the model at the given inputs."""
    with frozen(model):
        origin = x[:1].detach().clone().requires_grad_(True)
        logits = model(origin)
        rows = [
            torch.autograd.grad(logit, origin, retain_graph=True, materialize_grads=True)[0].flatten()
            for logit in logits[0]
        ]
        weights = torch.stack(rows)
        with torch.no_grad():
            moved = model(x) - logits
            predicted = (x - origin).flatten(1) @ weights.T
    scale = 1 + float(logits.detach().abs().max()) + float(moved.abs().max())
    error = float((moved - predicted).abs().max())
    if error > 1e-8 * scale:
        raise ValueError(
            f"expected an affine model for certified smoothness, got one that bends by {error:.2g}"
        )
    return weights
