"""Lipschitz constants of logit differences as training can lower them: estimated, differentiable, cheap.

A chain of layers is cut at its activations; each affine piece counts with its spectral norm, found by power
iteration from below, each activation with its steepest slope. What comes out is for training alone; the
certificate afterwards takes `estimators.certified.lipschitz_constants`, which err upwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from empirical.models import ResidualSum, activation_layers
from estimators.certified.activations import gelu, silu

_STEEPEST = {nn.GELU: max(gelu().slope_limits), nn.SiLU: max(silu().slope_limits)}


def lipschitz_estimate(member: nn.Module, sample_shape: Sequence[int], *, steps: int = 8) -> Tensor:
    """Estimated l2 Lipschitz constants (K, K) of the logit differences `z_a - z_b`.

    Args:
        member: A chain of layers in evaluation mode that ends in a linear one; no branches.
        sample_shape: Shape of one input.
        steps: Power iterations for each affine piece.

    Raises:
        ValueError: If the member has branches, or does not end in a linear layer.
    """
    layers = list(leaves(member))
    if any(isinstance(module, ResidualSum) for module in member.modules()) or not isinstance(
        layers[-1], nn.Linear
    ):
        raise ValueError("expected a chain of layers that ends in a linear one for the Lipschitz term")
    activations = set(activation_layers(member))
    reach, piece, shape = layers[-1].weight.new_ones(()), list[nn.Module](), tuple(sample_shape)
    for layer in layers[:-1]:
        if layer not in activations:
            piece.append(layer)
            continue
        norm, shape = _norm(piece, shape, layers[-1].weight, steps)
        reach, piece = reach * norm * _STEEPEST.get(type(layer), 1.0), []
    reach = reach * _norm(piece, shape, layers[-1].weight, steps)[0]
    rows = layers[-1].weight
    # The tiny addition gives the root a derivative on the diagonal.
    return reach * ((rows.unsqueeze(1) - rows).square().sum(2) + 1e-24).sqrt()


def leaves(module: nn.Module) -> Iterable[nn.Module]:
    """The layers of nested chains, in their order."""
    children = list(module.children())
    if not children:
        yield module
    for child in children:
        yield from leaves(child)


def _norm(
    piece: Sequence[nn.Module], shape: tuple[int, ...], like: Tensor, steps: int
) -> tuple[Tensor, tuple[int, ...]]:
    """Spectral norm of the linear part of affine layers, a lower estimate, and the shape of their value."""

    def linear(rows: Tensor) -> Tensor:
        # Beside the argument runs the zero input, whose image is the bias of the piece.
        both = torch.cat([rows, torch.zeros_like(rows)])
        for layer in piece:
            both = layer(both)
        return both[:1] - both[1:]

    generator = torch.Generator().manual_seed(math.prod(shape))
    vector = torch.randn(1, *shape, generator=generator).to(like)
    for _ in range(steps):
        vector = (vector / vector.norm()).detach().requires_grad_()
        with torch.enable_grad():
            image = linear(vector)
            (vector,) = torch.autograd.grad(image, vector, image.detach())
    image = linear((vector / vector.norm()).detach())
    return image.norm(), tuple(image.shape[1:])
