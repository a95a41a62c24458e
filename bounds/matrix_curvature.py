"""The transfer certificate with a curvature matrix in place of a number (refined result R9).

A scalar curvature charges every direction for the worst one. Where a symmetric matrix `Q_i` is known with
`m_i(x + d) >= m_i + d.g_i - d^T Q_i d / 2` on the l2 ball (one hidden layer: `W^T diag(w) W`, low rank), the
certificate R1 generalises: if for some weights `lambda >= 0`

    min over ||d||_2 <= eps of  sum_i lambda_i (m_i + d.g_i - d^T Q_i d / 2)  >  0,

no perturbation in the ball fools all models together. The minimum is a trust-region subproblem, solved
exactly by its secular equation; `Q_i` may be indefinite. Never worse than R1 with `kappa_i = ||Q_i||`.

The witness is the pair (lambda, mu): for every `mu` above the largest eigenvalue of `Q = sum_i lambda_i Q_i`,
`lambda.m - g^T (mu I - Q)^{-1} g / 2 - mu eps^2 / 2` is a lower bound on the minimum (Lagrangian duality),
and `check_matrix_witness` needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.certificate import _check_ball, _finite
from bounds.dual import Bools, Floats, ascend_to_positive, l2_witness

_MACHINE = float(np.finfo(np.float64).eps)
# The multiplier stays this fraction above the largest eigenvalue, so that mu I - Q is safely definite.
_CLEARANCE = 1e-9
_BISECTIONS = 30
_NEWTON_STEPS = 40
# The search begins in a Krylov space, where the input space is larger than this times the models squared.
_KRYLOV_STEPS = 2
_KRYLOV_GAIN = 8


@dataclass(frozen=True)
class MatrixCertificate:
    """Which samples are certified with matrix curvature, and why.

    Attributes:
        certified: Shape (n,): True where no perturbation in the l2 ball fools all models together.
        witness: Weights lambda, shape (n, N), rows on the simplex.
        multiplier: Multiplier mu of the ball constraint, shape (n,).
    """

    certified: Bools
    witness: Floats
    multiplier: Floats


@dataclass(frozen=True)
class TrustRegion:
    """Minimiser of `g.d - d^T Q d / 2` over an l2 ball, for a batch.

    Attributes:
        step: Minimisers, shape (n, d), norm eps up to rounding.
        multiplier: Multiplier mu of the ball constraint, at least the largest eigenvalue of Q, shape (n,).
    """

    step: Floats
    multiplier: Floats


def matrix_certificate(
    margins: ArrayLike, gradients: ArrayLike, matrices: ArrayLike, radius: float
) -> MatrixCertificate:
    """Certify that no perturbation in the l2 ball drives all N margins to zero or below (R9).

    With two models the search for lambda is a bisection on the supergradient of a concave function, exact up
    to rounding; with more it is an ascent that is sound but may give up.

    Args:
        margins: Loss margins m_i at x, shape (n, N).
        gradients: Gradients of the margins at x, shape (n, N, d).
        matrices: Symmetric curvature matrices Q_i, which may be indefinite, shape (n, N, d, d).
        radius: Radius of the l2 ball.

    Returns:
        The certificate with its witness.

    Raises:
        ValueError: If shapes disagree, a number is NaN, a matrix is not symmetric, or the radius is negative.
    """
    margins, gradients, matrices = _problem(margins, gradients, matrices, radius)
    return _certify(margins, gradients, matrices, radius, 0.0)


def low_rank_certificate(
    margins: ArrayLike, gradients: ArrayLike, factors: ArrayLike, weights: ArrayLike, radius: float
) -> MatrixCertificate:
    """R9 for curvature matrices `Q_i = sum_k w_ik f_ik f_ik^T`, as a network with one hidden layer has them.

    The problem lives in the span of the factors and the gradients; where that is smaller than the input space
    it is first rotated into it (QR), so the cost does not grow with d.

    Args:
        margins: Loss margins, shape (n, N).
        gradients: Gradients of the margins, shape (n, N, d).
        factors: Vectors f, shape (n, N, r, d) or anything that broadcasts to it, such as (N, r, d).
        weights: Weights w >= 0, shape (n, N, r).
        radius: Radius of the l2 ball.

    Returns:
        The certificate with its witness.

    Raises:
        ValueError: If shapes disagree, a number is NaN, a weight or the radius is negative.
    """
    _check_ball(radius, "l2")
    margins, gradients = _finite("margins", margins, 2), _finite("gradients", gradients, 3)
    weights = _finite("weights", weights, 3)
    spread = np.asarray(factors, dtype=np.float64)
    n, models, dimension = gradients.shape
    if margins.shape != (n, models) or weights.shape[:2] != (n, models):
        raise ValueError(
            f"expected margins (n, N) and weights (n, N, r) for gradients of shape {gradients.shape}, "
            f"got {margins.shape} and {weights.shape}"
        )
    wanted = (*weights.shape, dimension)
    try:
        spread = np.broadcast_to(spread, wanted)
    except ValueError:
        raise ValueError(f"expected factors that broadcast to {wanted}, got shape {spread.shape}") from None
    if not np.isfinite(spread).all():
        raise ValueError("expected finite factors, got NaN or infinite entries")
    if (weights < 0).any():
        raise ValueError(f"expected weights of at least 0, got {weights.min()}")
    rank = weights.shape[2]
    rotation_error = 0.0
    if models * (rank + 1) < dimension:
        spanning = np.concatenate([spread.reshape(n, models * rank, dimension), gradients], axis=1)
        rows = np.asarray(np.linalg.qr(spanning.swapaxes(1, 2), mode="r")).swapaxes(1, 2)
        spread = rows[:, : models * rank].reshape(n, models, rank, -1)
        gradients = rows[:, models * rank :]
        rotation_error = 8.0 * _MACHINE * dimension
    scaled = np.sqrt(weights)[..., None] * spread
    matrices = scaled.swapaxes(2, 3) @ scaled
    rotation_error += _MACHINE * (rank + 4) + 2.0 * rotation_error
    return _certify(margins, gradients, matrices, radius, rotation_error)


def check_matrix_witness(
    witness: ArrayLike,
    multiplier: ArrayLike,
    margins: ArrayLike,
    gradients: ArrayLike,
    matrices: ArrayLike,
    radius: float,
    *,
    relative_error: float = 0.0,
) -> Bools:
    """Whether (lambda, mu) proves the certificate, with float64 rounding counted against it.

    Args:
        witness: Weights lambda, shape (n, N).
        multiplier: Multiplier mu, shape (n,).
        margins: Loss margins, shape (n, N).
        gradients: Gradients of the margins, shape (n, N, d).
        matrices: Curvature matrices, shape (n, N, d, d).
        radius: Radius of the l2 ball.
        relative_error: Error already in the gradients and matrices, as a fraction of their norms.

    Returns:
        Shape (n,): True where `lambda >= 0`, `mu I - Q` is definite and the dual bound is positive.

    Raises:
        ValueError: If shapes disagree, a number is NaN, a matrix is not symmetric, or the radius is negative.
    """
    margins, gradients, matrices = _problem(margins, gradients, matrices, radius)
    lam, mu = _finite("witness", witness, 2), _finite("multiplier", multiplier, 1)
    if lam.shape != margins.shape or mu.shape != margins.shape[:1]:
        raise ValueError(
            f"expected a witness {margins.shape} and its multipliers, got {lam.shape} and {mu.shape}"
        )
    return _check(lam, mu, margins, gradients, matrices, radius, relative_error)


def trust_region(gradients: Floats, matrices: Floats, radius: float) -> TrustRegion:
    """Minimise `g.d - d^T Q d / 2` over `||d||_2 <= eps` exactly, hard case included.

    A minimiser is at `d = -(mu I - Q)^{-1} g` with mu at least 0 and at least the largest eigenvalue. It lies
    on the sphere, where mu solves the secular equation `||d(mu)|| = eps` (Newton on 1 / ||d||, bracketed),
    unless Q is negative definite and the free minimum, mu = 0, is inside. In the hard case g has no component
    on the top eigenvectors and d is completed along one of them.

    Args:
        gradients: g, shape (n, d).
        matrices: Q, symmetric, shape (n, d, d).
        radius: eps, positive or zero.

    Returns:
        Minimiser and multiplier of each problem.
    """
    values, vectors = np.linalg.eigh(matrices)
    parts = np.einsum("nde,nd->ne", vectors, gradients)
    gaps = values[:, -1:] - values
    size = np.linalg.norm(parts, axis=1)
    if radius == 0.0:  # any large multiplier will do: the bound is the margin less ||g||^2 / (2 mu)
        curved = np.abs(values).max(axis=1)
        return TrustRegion(np.zeros_like(parts), 2.0 * curved + 1e12 * size * (1.0 + size))
    floor = 1e-14 * (np.abs(values[:, -1]) + size / radius) + np.finfo(float).tiny ** 0.25
    low = np.maximum(np.maximum(np.abs(parts[:, -1]) / radius, floor), -values[:, -1])
    high = np.maximum(size / radius, low)
    excess = low.copy()
    for _ in range(_NEWTON_STEPS):
        shifted = gaps + excess[:, None]
        length = np.sqrt(((parts / shifted) ** 2).sum(axis=1))
        low, high = np.where(length >= radius, excess, low), np.where(length < radius, excess, high)
        slope = (parts**2 / shifted**3).sum(axis=1)
        newton = excess + np.divide(
            length**2 * (length - radius), radius * slope, out=np.zeros_like(length), where=slope > 0
        )
        excess = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
    step = -parts / (gaps + excess[:, None])
    rest = (step[:, :-1] ** 2).sum(axis=1)
    inside = rest + step[:, -1] ** 2 < (1.0 - 1e-8) * radius**2
    hard = inside & (values[:, -1] + excess > 0)
    to_sphere = np.copysign(np.sqrt(np.maximum(radius**2 - rest, 0.0)), -parts[:, -1])
    step[:, -1] = np.where(hard, to_sphere, step[:, -1])
    return TrustRegion(np.einsum("nde,ne->nd", vectors, step), values[:, -1] + excess)


def _certify(
    margins: Floats, gradients: Floats, matrices: Floats, radius: float, relative_error: float
) -> MatrixCertificate:
    """Search lambda, then grant only what the dual bound proves."""
    top = np.maximum(np.linalg.eigvalsh(matrices)[..., -1], 0.0)
    start = l2_witness(margins - top * radius**2 / 2.0, gradients @ gradients.swapaxes(-1, -2), radius)
    witness, candidates = start.copy(), np.arange(len(margins))
    if gradients.shape[2] > _KRYLOV_GAIN * len(margins[0]) ** 2:
        # A step in a subspace that overcomes all margins is one in the whole space: most cases end here.
        witness, refuted = _search(margins, *_krylov(gradients, matrices), radius, start)
        candidates = np.flatnonzero(~refuted)
    found, _ = _search(
        margins[candidates], gradients[candidates], matrices[candidates], radius, witness[candidates]
    )
    witness[candidates] = found
    proved = np.zeros(len(margins), dtype=bool)
    multiplier = np.zeros(len(margins))
    combined = _combined(found, gradients[candidates], matrices[candidates])
    values = np.linalg.eigvalsh(combined[1])
    size = np.abs(values).max(axis=1, initial=0.0)
    multiplier[candidates] = np.maximum(
        trust_region(*combined, radius).multiplier, values[:, -1] + _CLEARANCE * size + 1e-100
    )
    proved[candidates] = _check(
        found, multiplier[candidates], margins[candidates], gradients[candidates], matrices[candidates],
        radius, relative_error,
    )  # fmt: skip
    return MatrixCertificate(proved, witness, multiplier)


def _search(
    margins: Floats, gradients: Floats, matrices: Floats, radius: float, start: Floats
) -> tuple[Floats, Bools]:
    """Weights that make the minimum positive where there are such, and where there are surely none."""
    refuted = np.zeros(len(margins), dtype=bool)

    def oracle(index: NDArray[np.intp], weights: Floats) -> Floats:
        solved = trust_region(*_combined(weights, gradients[index], matrices[index]), radius)
        bend = ((matrices[index] @ solved.step[:, None, :, None])[..., 0] * solved.step[:, None]).sum(2)
        rows = margins[index] + (gradients[index] * solved.step[:, None]).sum(2) - bend / 2.0
        refuted[index[(rows <= 0).all(axis=1)]] = True
        return np.asarray(rows)

    search = _bisect_to_positive if margins.shape[1] == 2 else _ascend
    return search(oracle, start), refuted


def _ascend(oracle: Callable[[NDArray[np.intp], Floats], Floats], start: Floats) -> Floats:
    """Any number of models; one has nothing to search."""
    if start.shape[1] == 1:
        oracle(np.arange(len(start)), start)
        return start
    return ascend_to_positive(oracle, start)[0]


def _krylov(gradients: Floats, matrices: Floats) -> tuple[Floats, Floats]:
    """The problem in the span of the gradients and what the matrices make of them, once and twice."""
    models = gradients.shape[1]
    blocks = [gradients]
    for _ in range(_KRYLOV_STEPS):
        pushed = np.concatenate([blocks[-1] @ matrices[:, i] for i in range(models)], axis=1)
        size = np.linalg.norm(pushed, axis=2, keepdims=True)
        blocks.append(np.divide(pushed, size, out=np.zeros_like(pushed), where=size > 0))
    basis = np.linalg.qr(np.concatenate(blocks, axis=1).swapaxes(1, 2))[0]
    return gradients @ basis, basis.swapaxes(1, 2)[:, None] @ matrices @ basis[:, None]


def _bisect_to_positive(oracle: Callable[[NDArray[np.intp], Floats], Floats], start: Floats) -> Floats:
    """Two models: follow the supergradient's sign until the function is positive or cannot be."""
    witness = start.copy()
    low, high = np.zeros(len(start)), np.ones(len(start))
    share = start[:, 0].copy()
    open_ = np.ones(len(start), dtype=bool)
    for _ in range(_BISECTIONS):
        index = np.flatnonzero(open_)
        if not len(index):
            break
        weights = np.stack([share[index], 1.0 - share[index]], axis=1)
        gradient = oracle(index, weights)
        certified = np.einsum("ki,ki->k", weights, gradient) > 0
        witness[index[certified]] = weights[certified]
        open_[index[certified | (gradient <= 0).all(axis=1)]] = False
        rising = gradient[:, 0] > gradient[:, 1]
        low[index] = np.where(rising, share[index], low[index])
        high[index] = np.where(rising, high[index], share[index])
        share[index] = (low[index] + high[index]) / 2.0
    return witness


def _combined(weights: Floats, gradients: Floats, matrices: Floats) -> tuple[Floats, Floats]:
    """Weighted sums of the gradients (k, d) and of the curvature matrices (k, d, d)."""
    return np.einsum("ki,kid->kd", weights, gradients), np.einsum("ki,kide->kde", weights, matrices)


def _check(
    lam: Floats,
    mu: Floats,
    margins: Floats,
    gradients: Floats,
    matrices: Floats,
    radius: float,
    relative_error: float,
) -> Bools:
    """The dual bound, evaluated at an arbitrary point d0 so that an inexact linear solve cannot deceive.

    With `P = mu I - Q` definite, `min_d g.d + d^T P d / 2 >= g.d0 + d0^T P d0 / 2 - ||g + P d0||^2 / (2
    p_min)`.
    """
    gradient, matrix = _combined(lam, gradients, matrices)
    dimension = gradient.shape[1]
    rounding = _MACHINE * (4 * dimension + 2 * lam.shape[1] + 16) + relative_error
    gradient_size = np.einsum("ni,ni->n", lam, np.linalg.norm(gradients, axis=2))
    matrix_size = np.einsum("ni,ni->n", lam, np.linalg.norm(matrices, axis=(2, 3)))
    smallest = mu - np.linalg.eigvalsh(matrix)[:, -1] - rounding * (matrix_size + mu)
    definite = (smallest > 0) & (mu >= 0)
    shifted = np.where(definite, mu, mu + matrix_size + 1.0)[:, None, None] * np.eye(dimension) - matrix
    point = -np.linalg.solve(shifted, gradient[:, :, None])[:, :, 0]
    length = np.linalg.norm(point, axis=1)
    pushed = np.einsum("nde,ne->nd", shifted, point)
    linear, quadratic = np.einsum("nd,nd->n", gradient, point), np.einsum("nd,nd->n", point, pushed)
    sizes = gradient_size * length + (mu + matrix_size) * length**2
    residual = np.linalg.norm(gradient + pushed, axis=1) + rounding * (
        gradient_size + (mu + matrix_size) * length
    )
    bound = (
        linear
        + quadratic / 2.0
        - residual**2 / (2.0 * np.where(definite, smallest, 1.0))
        - mu * radius**2 / 2.0
    )
    margin = np.einsum("ni,ni->n", lam, margins)
    allowance = rounding * (np.einsum("ni,ni->n", lam, np.abs(margins)) + sizes + mu * radius**2)
    allowance += relative_error * radius * (gradient_size + radius * matrix_size)
    return definite & (lam >= 0).all(axis=1) & (margin + bound - allowance > 0)


def _problem(
    margins: ArrayLike, gradients: ArrayLike, matrices: ArrayLike, radius: float
) -> tuple[Floats, Floats, Floats]:
    """The arrays as float64, checked."""
    _check_ball(radius, "l2")
    margins, gradients = _finite("margins", margins, 2), _finite("gradients", gradients, 3)
    matrices = _finite("matrices", matrices, 4)
    n, models, dimension = gradients.shape
    if margins.shape != (n, models) or matrices.shape != (n, models, dimension, dimension):
        raise ValueError(
            f"expected margins (n, N) and matrices (n, N, d, d) for gradients of shape {gradients.shape}, "
            f"got {margins.shape} and {matrices.shape}"
        )
    size = np.abs(matrices).max(axis=(2, 3), initial=0.0)
    if (np.abs(matrices - matrices.swapaxes(2, 3)).max(axis=(2, 3), initial=0.0) > 1e-12 * size).any():
        raise ValueError("expected symmetric matrices, got an asymmetric one")
    return margins, gradients, matrices
