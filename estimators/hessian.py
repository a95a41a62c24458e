"""Per-sample Hessian spectral norms of a loss in its input, by batched Lanczos on exact products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

# Many samples are done after the first few products; those that are not go on to twice as many.
_FIRST_SIZE = 4
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
    whose v is not yet an eigenvector go on without the others to 8, 16, ... products.
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
    reached = size if tolerance == 0 else min(_FIRST_SIZE, size)
    with frozen(model):
        gradient, product = gradient_and_product(model, loss, x, y)
        space = KrylovSpace.from_start(_start(gradient, noise)).grown(product, reached)
        found = space.curvature(spent=1 + reached)
        rows = torch.arange(len(x), device=x.device)
        while reached < size:
            unfinished = (found.residuals[rows] > tolerance * found.norms[rows]).nonzero().flatten()
            if len(unfinished) == 0:
                break
            # A graph holds all its samples: those that go on need one of their own, for one gradient more.
            rows, space = rows[unfinished], space.of(unfinished)
            _, product = gradient_and_product(model, loss, x[rows], y[rows])
            spent = int(found.spent[rows[0]]) + 1 - reached
            reached = min(2 * reached, size)
            space = space.grown(product, reached)
            for old, new in zip(found, space.curvature(spent=spent + reached), strict=True):
                old[rows] = new
    return found


def _start(gradient: Tensor, noise: Tensor) -> Tensor:
    """The gradient, rich in steep directions, plus noise, which has all of them (m, d)."""
    length = gradient.norm(dim=1, keepdim=True)
    return noise + gradient / length.where(length > 0, 1.0)


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


@dataclass(frozen=True)
class KrylovSpace:
    """Krylov spaces of m symmetric operators, by Lanczos' recurrence with full reorthogonalisation.

    A sample whose space closes early (its next vector is rounding noise) goes on with zero vectors, which add
    only zeros to the tridiagonal T.

    Attributes:
        basis: Orthonormal vectors (m, k, d).
        diagonal: Of T (m, k), in float64.
        beside: Beside it (m, k): the last entry is the length of what leads out of the space.
        following: The next vector (m, d), of length one, or zero.
        scale: Largest length of a product so far (m,).
    """

    basis: Tensor
    diagonal: Tensor
    beside: Tensor
    following: Tensor
    scale: Tensor

    @classmethod
    def from_start(cls, start: Tensor) -> KrylovSpace:
        """Empty spaces, to grow from vectors (m, d) that are not zero."""
        count, dimension = start.shape
        entries = start.new_zeros(count, 0, dtype=torch.float64)
        unit = start / start.norm(dim=1, keepdim=True)
        return cls(start.new_zeros(count, 0, dimension), entries, entries, unit, start.new_zeros(count))

    def of(self, rows: Tensor) -> KrylovSpace:
        """The spaces of some of the samples."""
        return KrylovSpace(
            self.basis[rows], self.diagonal[rows], self.beside[rows], self.following[rows], self.scale[rows]
        )

    def grown(self, product: Callable[[Tensor], Tensor], size: int) -> KrylovSpace:
        """The spaces with `size` vectors.

        Args:
            product: Symmetric operators on rows, (m, d) to (m, d).
            size: At most d.
        """
        count, known, dimension = self.basis.shape
        noise = 4.0 * dimension**0.5 * torch.finfo(self.basis.dtype).eps
        basis = self.basis.new_zeros(count, size, dimension)
        basis[:, :known] = self.basis
        diagonal, beside = list(self.diagonal.unbind(1)), list(self.beside.unbind(1))
        vector, scale = self.following, self.scale
        for step in range(known, size):
            basis[:, step] = vector
            image = product(vector)
            scale = torch.maximum(scale, image.norm(dim=1))
            diagonal.append((image * vector).sum(1).double())
            before, column = basis[:, : step + 1], image.unsqueeze(2)
            for _ in range(2):  # twice is enough to be orthogonal to rounding
                column = torch.baddbmm(column, before.mT, before @ column, alpha=-1)
            image = column.squeeze(2)
            length = image.norm(dim=1)
            alive = length > noise * scale
            beside.append(length.where(alive, 0.0).double())
            vector = image.where(alive.unsqueeze(1), 0.0) / length.where(alive, 1.0).unsqueeze(1)
        return KrylovSpace(basis, torch.stack(diagonal, 1), torch.stack(beside, 1), vector, scale)

    def curvature(self, *, spent: int) -> Curvature:
        """The largest ||H v|| over the eigenpairs of T.

        With H V_k = V_k T + r e_k^T for the k x k tridiagonal T, an eigenpair (theta, s) of T gives
        v = V_k s with H v = theta v + s_k r, two orthogonal parts:
        ||H v||^2 = theta^2 + (s_k ||r||)^2, at most ||H||^2.

        Args:
            spent: Gradients and products that the spaces took.

        Raises:
            ValueError: If a product was not finite.
        """
        check_finite(self.diagonal, "the Hessians")
        check_finite(self.beside, "the Hessians")
        inner = self.beside[:, :-1]
        table = self.diagonal.diag_embed() + inner.diag_embed(1) + inner.diag_embed(-1)
        values, combinations = torch.linalg.eigh(table)
        residuals = combinations[:, -1].abs() * self.beside[:, -1:]
        norms = torch.hypot(values, residuals)
        top = norms.argmax(1, keepdim=True)
        weights = combinations.gather(2, top.unsqueeze(1).expand(-1, len(table[0]), 1))
        dtype = self.basis.dtype
        return Curvature(
            norms.gather(1, top).squeeze(1).to(dtype),
            (self.basis.mT @ weights.to(dtype)).squeeze(2),
            residuals.gather(1, top).squeeze(1).to(dtype),
            torch.full((len(table),), spent, device=table.device),
        )
