"""Matrix bounds J J^T <= B B^T on Jacobians, carried through affine maps, sums and activations.

J is any Jacobian that can occur, B the factor, (n, k) for a value of n entries. Norms follow from B: ||J|| is
at most ||B||, a row of J at most as long as that row of B, and ||r^T J|| at most ||r^T B||. Unlike a product
of norms, B knows which directions of one layer the next one sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from estimators.certified.activations import Curve
from estimators.certified.operators import LinearMap

# Beyond this many entries a factor is given up, and only norms are carried on.
_ENTRIES = 1 << 25

# Up to this size all eigenvalues are computed; beyond, a Cholesky factorisation confirms an estimate.
_EIGENVALUES = 600

# Slack of the multipliers over the smallest admissible ones that is tried.
_SLACKS = (0.03, 0.1, 0.3, 1.0, 3.0)

_POWER_STEPS = 30
_DIRECTIONS = 20

# For factors scaled to norm 1: what is added so that no multiplier and no pivot vanishes.
_FLOOR = 1e-14
_JITTER = 1e-13


def spectral_norm(matrix: Tensor) -> float:
    """Upper bound on ||A||_2, exact up to rounding for small matrices and within 1 % for large ones."""
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    if len(gram) <= _EIGENVALUES:
        return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))
    level = 1.01 * _largest_eigenvalue_below(gram)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    while level > 0 and int(torch.linalg.cholesky_ex(level * identity - gram).info):
        level = 1.01 * level
    return math.sqrt(level)


def mapped(factor: Tensor | None, operator: LinearMap, *, backwards: bool = False) -> Tensor | None:
    """The factor behind an affine map A: A J J^T A^T <= (A B) (A B)^T; backwards, with A^T for A."""
    through, shape = (
        (operator.adjoint, operator.out_shape) if backwards else (operator.apply, operator.in_shape)
    )
    if (
        factor is None
        or factor.shape[1] * max(math.prod(operator.in_shape), math.prod(operator.out_shape)) > _ENTRIES
    ):
        return None
    return compressed(through(factor.T.reshape(-1, *shape)).flatten(1).T)


def added(first: Tensor, second: Tensor) -> Tensor:
    """The factor of a sum: (J + K)(J + K)^T <= (1 + t) J J^T + (1 + 1/t) K K^T for every t > 0."""
    sizes = first.norm(), second.norm()
    if min(sizes) == 0:
        return first if sizes[1] == 0 else second
    ratio = sizes[1] / sizes[0]
    return compressed(torch.cat([(1 + ratio).sqrt() * first, (1 + 1 / ratio).sqrt() * second], 1))


def activated(factor: Tensor, curve: Curve, goal: Tensor | None) -> Tensor | None:
    """The factor behind an activation, whose slopes may be anything between their limits, entry by entry.

    The slopes are D = c + r E with |E| <= 1 diagonal. For any diagonal T > 0 with r^2 B B^T < T, any vector a
    and e = E a, since e_i^2 <= a_i^2,

        a^T D B B^T D a = ||B^T (c a + r e)||^2 <= ||B^T (c a + r e)||^2 + a^T T a - e^T T e,

    and over all e this is at most a^T (T + c^2 B (I - r^2 B^T T^{-1} B)^{-1} B^T) a. (The multipliers T are
    those of a semidefinite relaxation.) T is chosen for a small bound on ||goal J||; the inequality holds for
    any.

    Args:
        factor: B (n, k) before the activation.
        curve: The activation.
        goal: (m, n), roughly what the rest of the network does; None for the identity.

    Returns:
        (n, n + k), or None if that is too large.
    """
    size = float(factor.norm())
    if len(factor) * sum(factor.shape) > _ENTRIES or not math.isfinite(size):
        return None
    if size == 0:
        return factor
    low, high = curve.slope_limits
    middle, spread = (low + high) / 2 * factor / size, (high - low) / 2 * factor / size
    if goal is None or not bool(goal.any()):
        goal = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    weight = goal.square().sum(0)
    weight = weight / weight.mean() + 1e-6
    shape = _balanced(spread, weight)
    scaled = spread / shape.sqrt().unsqueeze(1)
    gram = scaled.T @ scaled
    level = max(_largest_eigenvalue_below(gram), _FLOOR)
    seen = goal @ middle / goal.norm()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    best = math.inf
    for slack in (*_SLACKS, *(2.0**power for power in range(2, 60))):
        if slack > _SLACKS[-1] and best < math.inf:
            break
        scale = (1 + slack) * level
        lower, info = torch.linalg.cholesky_ex(identity - gram / scale)
        if int(info):
            continue
        reached = torch.linalg.solve_triangular(lower, seen.T, upper=False)
        value = float(scale * (weight * shape).mean() + reached.square().sum())
        if value < best:
            best, chosen, triangle = value, scale, lower
    bent = torch.linalg.solve_triangular(triangle, middle.T, upper=False).T
    return size * torch.cat([(chosen * shape).sqrt().diag(), bent], 1)


def compressed(factor: Tensor) -> Tensor:
    """The same bound with at most as many columns as rows."""
    rows, columns = factor.shape
    if columns <= rows:
        return factor
    size = float(factor.norm())
    if not 0 < size < math.inf:
        return factor
    gram = (factor / size) @ (factor / size).T
    # Enlarging B B^T by a multiple of the identity keeps the bound and lets rounding do no harm.
    identity = torch.eye(rows, dtype=gram.dtype, device=gram.device)
    jitter, failed = _JITTER, 1
    while failed:
        lower, info = torch.linalg.cholesky_ex(gram + jitter * identity)
        jitter, failed = 10 * jitter, int(info)
    return size * lower


def _balanced(factor: Tensor, weight: Tensor) -> Tensor:
    """Diagonal T of small weighted trace with B B^T <= T nearly: the dual of a maximum-cut relaxation.

    The unit rows of V are pulled towards B B^T V, which raises trace(V^T B B^T V) at every step; at the
    optimum T_i is the length of row i.
    """
    root = weight.sqrt().unsqueeze(1)
    weighted = root * factor
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(factor), _DIRECTIONS, dtype=torch.float64, generator=generator).to(factor)
    for _ in range(_POWER_STEPS):
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        vectors = weighted @ (weighted.T @ vectors)
    lengths = vectors.norm(dim=1) / weight
    return lengths + 1e-9 * lengths.mean() + _FLOOR


def _largest_eigenvalue_below(gram: Tensor) -> float:
    """An estimate of the largest eigenvalue of a positive semidefinite matrix, from below."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(gram), dtype=torch.float64, generator=generator).to(gram)
    for _ in range(2 * _POWER_STEPS):
        vector = gram @ torch.nn.functional.normalize(vector, dim=0)
    return float(vector.norm())
