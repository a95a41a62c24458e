"""Per-sample Hessian spectral norms of a loss in its input, by batched Lanczos on exact products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from estimators.batching import (
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    frozen,
)
from estimators.convolution import QuickConvolutions
from estimators.gradients import differentiate
from estimators.losses import LossFunction
from estimators.sharing import pairs_in_batches

# Most samples are done after the first few products; those that are not start again with twice as many.
_FIRST_SIZE = 8
KRYLOV_SIZE = 32

# At a residual of 1e-3 of the norm, the norms of 400 digits were within 2e-6, at 1e-2 within 3e-4, for
# 4 networks, right and wrong labels. From noise alone one in 400 settled on another eigenvalue, 15 % low,
# even at 1e-3.
TOLERANCE = 1e-3

# Larger batches fall out of a processor's cache: LeNet takes a quarter longer with 512.
HESSIAN_BATCH = 128


class Curvature(NamedTuple):
    """What Lanczos found for each of m samples.

    Attributes:
        norms: Lower bounds on the spectral norms (m,).
        vectors: Unit vectors v (m, d) with ||H v|| equal to them.
        residuals: Distance ||H v - theta v|| from being an eigenvector, theta = v.H v (m,).
        spent: Gradients and Hessian-vector products evaluated for each sample (m,).
    """

    norms: Tensor
    vectors: Tensor
    residuals: Tensor
    spent: Tensor


def hessian_norms(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    iterations: int = KRYLOV_SIZE,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    batch_size: int = HESSIAN_BATCH,
) -> Tensor:
    """Spectral norm (largest absolute eigenvalue) of each sample's input Hessian of the loss.

    Lanczos with full reorthogonalisation, for a whole batch at once, on exact Hessian-vector products (double
    backward of the summed loss). The result is ||H v|| for a unit vector v, hence never above the truth up to
    rounding in the model's dtype, and exact once the Krylov space has the dimension of the input. Samples
    whose v is not yet an eigenvector start again with 16, 32, ... products.
    Where the network has kinks this is the almost-everywhere Hessian, which says nothing about smoothness.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss, twice differentiable.
        x: Inputs (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L) for L labels per sample.
        iterations: Largest size of the Krylov space, that is Hessian products in one run.
        tolerance: Residual ||H v - theta v||, as a share of ||H v||, at which a sample is done; 0 takes all
            `iterations`. The error is of second order in it, unless the start misses an eigenvector.
        seed: Of the random vector that is added to each sample's gradient to start from. It is the same for
            all samples, so that the result does not depend on batches.
        batch_size: Samples treated at once; memory grows with it times the input size times `iterations`.

    Returns:
        Norms in the shape of y, loss per squared l2 distance: lower bounds, in the dtype of x.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or counts do not fit, or a Hessian is not finite.
    """
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    check_iterations(iterations, tolerance)
    noise = noise_vector(x, seed)

    def norms(labels: Tensor, part: Tensor) -> tuple[Tensor]:
        return (top_curvature(model, loss, part, labels, noise, iterations, tolerance).norms,)

    (found,) = pairs_in_batches(norms, batch_size, y, x)
    return found.reshape(y.shape)


def check_iterations(iterations: int, tolerance: float = TOLERANCE) -> None:
    """Check the size of a Krylov space and the tolerance that ends its growth.

    Raises:
        ValueError: If the size is less than 1 or the tolerance negative.
    """
    if iterations < 1:
        raise ValueError(f"expected at least 1 Lanczos iteration, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"expected a tolerance of at least 0, got {tolerance}")


def noise_vector(x: Tensor, seed: int) -> Tensor:
    """A Gaussian unit vector (d,) in the dtype and on the device of x, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(x[0].numel(), generator=generator, dtype=torch.float64)
    return (vector / vector.norm()).to(device=x.device, dtype=x.dtype)


def top_curvature(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    iterations: int = KRYLOV_SIZE,
    tolerance: float = TOLERANCE,
) -> Curvature:
    """The largest |eigenvalue| of each sample's Hessian, for one batch that is checked already.

    `noise` is a unit vector (d,).
    """
    size = min(iterations, noise.numel())
    first = size if tolerance == 0 else min(_FIRST_SIZE, size)
    with frozen(model):
        found = _run(model, loss, x, y, noise, first)
        while first < size:
            first = min(2 * first, size)
            open_rows = (found.residuals > tolerance * found.norms).nonzero().flatten()
            if len(open_rows) == 0:
                break
            again = _run(model, loss, x[open_rows], y[open_rows], noise, first)
            again = again._replace(spent=again.spent + found.spent[open_rows])
            for old, new in zip(found, again, strict=True):
                old[open_rows] = new
    return found


def _run(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, noise: Tensor, size: int) -> Curvature:
    """One Lanczos run from the gradient, rich in steep directions, plus noise, which has all of them."""
    gradient, product = gradient_and_product(model, loss, x, y)
    length = gradient.norm(dim=1, keepdim=True)
    start = noise + gradient / length.where(length > 0, 1.0)
    return lanczos(product, start, size)


def gradient_and_product(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Gradients (m, d), and the map v -> H v on rows (m, d) with one graph kept for all products."""
    point = x.detach().requires_grad_(True)
    with QuickConvolutions():
        values = loss(model(point), y)
    gradient = differentiate(values, point, create_graph=True)

    def product(vectors: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(vectors)
        (rows,) = torch.autograd.grad(
            gradient, point, vectors.reshape(point.shape), retain_graph=True, materialize_grads=True
        )
        return rows.flatten(1)

    return gradient.detach().flatten(1), product


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Curvature:
    """Largest |eigenvalue| of each symmetric operator as its Krylov space shows it.

    With H V_k = V_k T + r e_k^T for the k x k tridiagonal T, an eigenpair (theta, s) of T gives v = V_k s
    with H v = theta v + s_k r, two orthogonal parts: ||H v||^2 = theta^2 + (s_k ||r||)^2, at most ||H||^2. A
    sample whose space closes early (its next vector is rounding noise) goes on with zero vectors, which add
    only zeros to T.

    Args:
        product: Symmetric operators on rows, (m, d) to (m, d).
        start: Starting vectors (m, d), not zero.
        iterations: Wanted size of the space; at most d is used.

    Returns:
        The largest ||H v|| over the eigenpairs of T.

    Raises:
        ValueError: If a product is not finite.
    """
    count, dimension = start.shape
    size = min(iterations, dimension)
    noise = 4.0 * dimension**0.5 * torch.finfo(start.dtype).eps
    basis = start.new_zeros(size, count, dimension)
    table = torch.zeros(count, size, size, dtype=torch.float64, device=start.device)
    vector = start / start.norm(dim=1, keepdim=True)
    scale = start.new_zeros(count)
    for step in range(size):
        basis[step] = vector
        image = product(vector)
        scale = torch.maximum(scale, image.norm(dim=1))
        table[:, step, step] = (image * vector).sum(1).double()
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            overlap = torch.einsum("kmd,md->km", known, image)
            image = image - torch.einsum("km,kmd->md", overlap, known)
        length = image.norm(dim=1)
        alive = length > noise * scale
        length = length.where(alive, 0.0)
        if step + 1 < size:
            table[:, step, step + 1] = table[:, step + 1, step] = length.double()
            vector = image.where(alive.unsqueeze(1), 0.0) / length.where(alive, 1.0).unsqueeze(1)
    check_finite(table, "the Hessians")
    check_finite(length, "the Hessians")
    values, combinations = torch.linalg.eigh(table)
    residuals = combinations[:, -1].abs() * length.double().unsqueeze(1)
    norms = torch.hypot(values, residuals)
    top = norms.argmax(1, keepdim=True)
    weights = combinations.gather(2, top.unsqueeze(1).expand(-1, size, 1)).squeeze(2)
    return Curvature(
        norms.gather(1, top).squeeze(1).to(start.dtype),
        torch.einsum("mk,kmd->md", weights.to(start.dtype), basis),
        residuals.gather(1, top).squeeze(1).to(start.dtype),
        torch.full((count,), size + 1, device=start.device),
    )
