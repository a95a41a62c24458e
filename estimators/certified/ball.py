"""Certified bounds over l2 balls: margin curvature, Hessians and gradients of cross-entropy.

A forward pass encloses every node (`enclosure`), a backward pass per label pair gives the curvature of the
margins m^k = z_y - z_k and the change of their gradients (`curvature`), and these give intervals for the
softmax, and with it the Hessian and the gradient of cross-entropy (`cross_entropy`). For radius 0 all of it
is exact. Everything is cut with what holds over all inputs (`whole_space`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from estimators.batching import DEFAULT_BATCH, check_inputs, check_labels
from estimators.certified.cross_entropy import LossBounds, MarginBounds
from estimators.certified.curvature import Weights, backward_weights, gradient_shift, largest_eigenvalue
from estimators.certified.enclosure import Enclosure, enclose
from estimators.certified.network import Network, Pointwise, read_network
from estimators.certified.whole_space import WholeSpaceBounds, whole_space_bounds
from estimators.sharing import in_batches

# Numbers in the Jacobians that are held at once; a few arrays of this size exist at a time.
_JACOBIAN_ENTRIES = 1 << 24


@dataclass(frozen=True)
class BallBounds:
    """Bounds over the l2 ball of each sample, with m^k = z_y - z_k; float64, up to rounding.

    Attributes:
        margins: m^k at the centre, (n, K); 0 at k = y.
        gradients: grad m^k at the centre, flattened, (n, K, d).
        kappa: Lower curvature, an upper bound on the largest eigenvalue of -Hess m^k, (n, K); it may be
            negative, and is infinite where a kink may be in the ball.
        kappa_plus: Upper curvature, the same for Hess m^k.
        deviation: Bound on `||grad m^k - grad m^k(x)||`, (n, K), for every Clarke gradient where there are
            kinks.
        hessian: Bound on the spectral norm of the Hessian of cross-entropy at label y, (n,).
        gradient_low: Lower bound on the norm of the gradient of cross-entropy at label y, (n,).
        gradient_high: Upper bound.
        loss_direction: grad M at the centre, M = log sum_{k != y} exp(-m^k), (n, d); it has the direction
            of the gradient of cross-entropy.
        loss_deviation: Bound on `||grad M - grad M(x)||`, (n,).
    """

    margins: Tensor
    gradients: Tensor
    kappa: Tensor
    kappa_plus: Tensor
    deviation: Tensor
    hessian: Tensor
    gradient_low: Tensor
    gradient_high: Tensor
    loss_direction: Tensor
    loss_deviation: Tensor


def ball_bounds(
    network: Network, x: Tensor, y: Tensor, radius: float, *, batch_size: int = DEFAULT_BATCH
) -> BallBounds:
    """Bound curvatures, Hessians and gradients over the l2 balls of a radius.

    The cost per sample is that of the Jacobians of all activations, and of 2 K + 2 symmetric eigenvalue
    problems in the smaller of the input size and the number of units.

    Args:
        network: The model, from `read_network`.
        x: Centres (n, *shape).
        y: Labels (n,).
        radius: l2 radius, finite and at least 0.
        batch_size: Samples treated at once; fewer where their Jacobians are large.

    Raises:
        ValueError: If the radius is negative or not finite.
    """
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"expected a finite radius of at least 0, got {radius}")
    units = sum(
        math.prod(shape) for node, shape in zip(network.nodes, network.shapes, strict=True)
        if isinstance(node, Pointwise)
    )  # fmt: skip
    at_once = max(1, min(batch_size, _JACOBIAN_ENTRIES // (x[0].numel() * (units + network.classes))))
    everywhere = whole_space_bounds(network)

    def bounds(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        found = _bounds(network, everywhere, x.double(), y, radius)
        return tuple(getattr(found, field.name) for field in fields(BallBounds))

    return BallBounds(*in_batches(bounds, at_once, x.detach(), y))


def read_checked(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Network, Tensor, Tensor]:
    """What `ball_bounds` takes, from a model, once everything given has been checked.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes or labels do not fit, or a layer is not supported.
    """
    classes = check_inputs((model,), x)
    return read_network(model, x), x.detach(), check_labels(y, x, classes)


def _bounds(
    network: Network, everywhere: WholeSpaceBounds, x: Tensor, y: Tensor, radius: float
) -> BallBounds:
    enclosure = enclose(network, x, radius)
    jacobian = enclosure.logit_rows.centre.mT
    label = torch.arange(len(y), device=y.device), y
    identity = torch.eye(network.classes, dtype=x.dtype, device=x.device)
    enclosure = _in_span(enclosure)
    weights = backward_weights(network, enclosure, identity[y].unsqueeze(1) - identity)
    margins = _margin_bounds(enclosure, weights, everywhere, y, radius)
    loss = LossBounds(enclosure, weights, margins, y, radius)
    hessian = torch.minimum(loss.hessian(), everywhere.smoothness[y])
    low, high = loss.gradient_range(hessian)
    gradients = jacobian[label].unsqueeze(1) - jacobian
    return BallBounds(
        margins.margins, gradients, margins.kappa, margins.kappa_plus, margins.deviation,
        hessian, low, torch.minimum(high, everywhere.gradient[y]),
        -torch.einsum("nk,nkd->nd", loss.share, gradients), loss.direction_shift,
    )  # fmt: skip


def _in_span(enclosure: Enclosure) -> Enclosure:
    """The same in coordinates of the span of all rows, where that is smaller than the input space.

    A rotation (QR) changes no inner product. The coordinates are at least one more than the rows of any form
    that is bounded, so that the eigenvalue 0 of the rest of the space is not lost.
    """
    groups = [*enclosure.rows, enclosure.logit_rows]
    stacked = torch.cat([group.centre for group in groups], 2)
    if stacked.shape[1] <= stacked.shape[2]:
        return enclosure
    turned = iter(torch.linalg.qr(stacked, mode="r")[1].split([g.centre.shape[2] for g in groups], 2))
    bends = {
        index: replace(bend, rows=replace(bend.rows, centre=next(turned)))
        for index, bend in sorted(enclosure.bends.items())
    }
    return replace(enclosure, bends=bends, logit_rows=replace(enclosure.logit_rows, centre=next(turned)))


def _margin_bounds(
    enclosure: Enclosure, weights: Weights, everywhere: WholeSpaceBounds, y: Tensor, radius: float
) -> MarginBounds:
    rows, logits = enclosure.rows, enclosure.logits
    labels = range(logits.shape[1])
    low, high = weights.low, weights.high
    margins = logits.gather(1, y.unsqueeze(1)) - logits
    kappa = kappa_plus = shift = torch.zeros_like(logits)
    if rows:
        kinked = enclosure.kinked.unsqueeze(1)
        kappa = torch.stack([largest_eigenvalue(rows, -high[:, k], -low[:, k]) for k in labels], 1)
        kappa_plus = torch.stack([largest_eigenvalue(rows, low[:, k], high[:, k]) for k in labels], 1)
        kappa = torch.minimum(kappa.masked_fill(kinked, math.inf), everywhere.bend.T[y])
        kappa_plus = torch.minimum(kappa_plus.masked_fill(kinked, math.inf), everywhere.bend[y])
        shift = torch.stack([gradient_shift(rows, weights.push[:, k]) for k in labels], 1)
        forward = enclosure.logit_rows.deviation
        forward = torch.minimum(
            forward + forward.gather(1, y.unsqueeze(1)),
            math.sqrt(2) * enclosure.logit_rows.spectral.unsqueeze(1),
        )
        shift = torch.minimum(shift, forward)
        if radius > 0:
            shift = torch.minimum(shift, radius * torch.maximum(kappa, kappa_plus).clamp_min(0.0))
        other = torch.arange(len(labels), device=y.device) != y.unsqueeze(1)
        kappa, kappa_plus, shift = (part.where(other, 0.0) for part in (kappa, kappa_plus, shift))
    reach = (radius * everywhere.lipschitz).expand(len(y), -1, -1)
    return MarginBounds(margins, kappa, kappa_plus, shift, reach)
