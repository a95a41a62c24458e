"""Per-sample Hessian spectral norms of a loss in its input, by batched Lanczos on exact products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from estimators.batching import (
    DEFAULT_BATCH,
    batches,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    frozen,
)
from estimators.gradients import differentiate
from estimators.losses import LossFunction

KRYLOV_SIZE = 10


def hessian_norms(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    iterations: int = KRYLOV_SIZE,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Spectral norm (largest absolute eigenvalue) of each sample's input Hessian of the loss.

    Lanczos with full reorthogonalisation, for a whole batch at once, on exact Hessian-vector products (double
    backward of the summed loss). The result is ||H restricted to the Krylov space||, hence never above the
    truth up to rounding in the model's dtype, and exact once the Krylov space has the dimension of the input.
    Where the network has kinks this is the almost-everywhere Hessian, which says nothing about smoothness.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss, twice differentiable.
        x: Inputs (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L) for L labels per sample.
        iterations: Size of the Krylov space, that is Hessian products per sample.
        seed: Of the starting vector, which all samples share so that the result does not depend on batches.
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
    check_iterations(iterations)
    start = starting_vector(x, seed)
    norms = [
        top_curvature(model, loss, part, labels, start, iterations)[0]
        for labels, part in batches(y, batch_size, x)
    ]
    return torch.cat(norms).reshape(y.shape)


def check_iterations(iterations: int) -> None:
    """Check the size of a Krylov space.

    Raises:
        ValueError: If it is less than 1.
    """
    if iterations < 1:
        raise ValueError(f"expected at least 1 Lanczos iteration, got {iterations}")


def starting_vector(x: Tensor, seed: int) -> Tensor:
    """A Gaussian vector (d,) in the dtype and on the device of x, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(x[0].numel(), generator=generator, dtype=torch.float64)
    return vector.to(device=x.device, dtype=x.dtype)


def top_curvature(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, start: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Norms (m,) and unit vectors v (m, d) with ||H v|| equal to them, for one batch that is checked already.

    `start` is (d,), or (m, d) for one starting vector per sample.
    """
    with frozen(model):
        product = hessian_product(model, loss, x, y)
        return lanczos(product, start.expand(len(x), -1), iterations)


def hessian_product(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The map v -> H v on rows (m, d), with one graph kept for all products."""
    point = x.detach().requires_grad_(True)
    gradient = differentiate(loss(model(point), y), point, create_graph=True)

    def product(vectors: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(vectors)
        (rows,) = torch.autograd.grad(
            gradient, point, vectors.reshape(point.shape), retain_graph=True, materialize_grads=True
        )
        return rows.flatten(1)

    return product


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Largest singular value of each symmetric operator on its Krylov space.

    With H V_k = V_{k+1} T for the (k+1) x k tridiagonal T, ||H restricted to span V_k|| is the largest
    singular value of T: at least the largest |Ritz value| and at most ||H||. A sample whose space closes
    early (its next vector is rounding noise) goes on with zero vectors, which add only zeros to T.

    Args:
        product: Symmetric operators on rows, (m, d) to (m, d).
        start: Starting vectors (m, d), not zero.
        iterations: Wanted size of the space; at most d is used.

    Returns:
        Norms (m,) and unit vectors v (m, d) with ||H v|| equal to them.

    Raises:
        ValueError: If a product is not finite.
    """
    count, dimension = start.shape
    size = min(iterations, dimension)
    noise = 4.0 * dimension**0.5 * torch.finfo(start.dtype).eps
    basis = start.new_zeros(size, count, dimension)
    table = torch.zeros(count, size + 1, size, dtype=torch.float64, device=start.device)
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
        table[:, step + 1, step] = length.double()
        if step + 1 < size:
            table[:, step, step + 1] = length.double()
            vector = image.where(alive.unsqueeze(1), 0.0) / length.where(alive, 1.0).unsqueeze(1)
    check_finite(table, "the Hessians")
    values, combinations = torch.linalg.eigh(table.mT @ table)
    weights = combinations[:, :, -1].to(start.dtype)
    vectors = torch.einsum("mk,kmd->md", weights, basis)
    return values[:, -1].clamp_min(0.0).sqrt().to(start.dtype), vectors
