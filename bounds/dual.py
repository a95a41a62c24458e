"""Search for the witness lambda of a transfer certificate, for many samples at once.

Every function here proposes nonnegative weights `lambda` (rows summing to one) that make
`lambda . p - eps * ||sum_i lambda_i g_i||_*` as large as it can, where `g_i` is the gradient of the i-th
margin and `p_i` what is left of the margin after its curvature is paid for. Nothing here decides a
certificate: `bounds.certificate` re-checks every proposal by itself, so an inexact search loses tightness,
    never soundness.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Above this many rows the pairs are too many to be a shortcut.
_PAIR_SHORTCUT_ROWS = 6
# Relative regularisation of the Gram matrix: opposite gradients make it singular, and the certificate
# infinite.
_RIDGE = 1e-11


def pair_witness(p: Floats, q: Floats, aa: Floats, ab: Floats, bb: Floats) -> Floats:
    """Optimal l2 weights for two margins, in closed form (KKT conditions of the nearest joint crossing).

    The smallest step `d` with `a.d >= p` and `b.d >= q` has multipliers `(p, 0)`, `(0, q)` or, when both
    constraints bind, the adjugate of the Gram matrix times `(p, q)`. The adjugate needs no division, so
    opposite gradients (no joint crossing at all) and zero gradients are covered.

    Args:
        p: First margin after curvature, any shape.
        q: Second margin after curvature, same shape.
        aa: Squared l2 norm of the first gradient.
        ab: Inner product of the two gradients.
        bb: Squared l2 norm of the second gradient.

    Returns:
        Weights of shape (..., 2) that sum to one.
    """
    first, second = p * bb - q * ab, q * aa - p * ab
    only_first = (p > 0) & (second <= 0)
    only_second = ~only_first & (q > 0) & (first <= 0)
    first = np.where(only_first, 1.0, np.where(only_second, 0.0, np.maximum(first, 0.0)))
    second = np.where(only_first, 0.0, np.where(only_second, 1.0, np.maximum(second, 0.0)))
    total = first + second
    share = np.divide(first, total, out=np.ones_like(total), where=total > 0)
    return np.stack([share, 1.0 - share], axis=-1)


def gram_surplus(witness: Floats, p: Floats, gram: Floats, radius: float) -> Floats:
    """`lambda . p - eps ||sum lambda_i g_i||_2` from inner products, without allowance for rounding."""
    square = np.einsum("...i,...ij,...j->...", witness, gram, witness)
    return np.einsum("...i,...i->...", witness, p) - radius * np.sqrt(np.maximum(square, 0.0))


def l2_witness(p: Floats, gram: Floats, radius: float) -> Floats:
    """Optimal l2 weights for any number of margins.

    Args:
        p: Margins after curvature, shape (n, R).
        gram: Inner products of the margin gradients, shape (n, R, R).
        radius: Radius of the ball; it only decides which samples a pair of rows settles already.

    Returns:
        Weights of shape (n, R) that sum to one.
    """
    rows = p.shape[1]
    if rows == 1:
        return np.ones_like(p)
    if rows == 2:
        return pair_witness(p[:, 0], p[:, 1], gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1])
    witness = np.zeros_like(p)
    open_ = np.ones(len(p), dtype=bool)
    if rows <= _PAIR_SHORTCUT_ROWS:
        for i, j in combinations(range(rows), 2):
            pair = np.zeros_like(p)
            pair[:, [i, j]] = pair_witness(p[:, i], p[:, j], gram[:, i, i], gram[:, i, j], gram[:, j, j])
            settled = open_ & (gram_surplus(pair, p, gram, radius) > 0)
            witness[settled] = pair[settled]
            open_ &= ~settled
    if open_.any():
        witness[open_] = _nonnegative_quadratic(p[open_], gram[open_])
    return witness


def _nonnegative_quadratic(p: Floats, gram: Floats) -> Floats:
    """Weights that maximise `lambda . p - lambda^T G lambda / 2` over lambda >= 0, normalised.

    This is the dual of "smallest step that crosses every margin"; its direction maximises
    `lambda . p / ||sum lambda_i g_i||`. Lawson and Hanson's active-set method, all samples in step.
    """
    n, rows = p.shape
    norms = np.sqrt(np.einsum("nii->ni", gram))
    scale = np.where(norms > 0, norms, 1.0)
    target = p / scale
    matrix = gram / (scale[:, :, None] * scale[:, None, :]) + _RIDGE * np.eye(rows)
    tolerance = 1e-12 * (1.0 + np.abs(target).max(axis=1))
    passive = np.zeros((n, rows), dtype=bool)
    weights = np.zeros((n, rows))
    for _ in range(3 * rows):
        ascent = np.where(passive, -np.inf, target - np.einsum("nij,nj->ni", matrix, weights))
        moving = ascent.max(axis=1) > tolerance
        if not moving.any():
            break
        passive[moving, ascent.argmax(axis=1)[moving]] = True
        for _ in range(rows):
            step = _solve_on(passive[moving], matrix[moving], target[moving])
            blocked = passive[moving] & (step <= 0)
            current = weights[moving]
            ratio = np.full_like(step, np.inf)
            np.divide(current, current - step, out=ratio, where=blocked & (current > step))
            length = np.where(blocked.any(axis=1), np.minimum(ratio.min(axis=1), 1.0), 1.0)
            current = current + length[:, None] * (step - current)
            freed = blocked & (ratio <= length[:, None])
            passive[moving] &= ~(freed | (blocked & (current <= 0)))
            weights[moving] = np.where(passive[moving], np.maximum(current, 0.0), 0.0)
            if not blocked.any():
                break
    weights /= scale
    return _normalised(weights)


def _solve_on(passive: Bools, matrix: Floats, target: Floats) -> Floats:
    """Solve `matrix[S, S] x = target[S]` for each sample's own set S of rows; zero elsewhere."""
    both = passive[:, :, None] & passive[:, None, :]
    masked = np.where(both, matrix, 0.0) + np.where(passive, 0.0, 1.0)[:, :, None] * np.eye(matrix.shape[1])
    solution = np.linalg.solve(masked, np.where(passive, target, 0.0)[:, :, None])[:, :, 0]
    return np.asarray(solution)


def _normalised(weights: Floats) -> Floats:
    """Rows scaled to sum to one; a zero row becomes the first vertex."""
    total = weights.sum(axis=1, keepdims=True)
    vertex = np.zeros_like(weights)
    vertex[:, 0] = 1.0
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), vertex)


def linf_witness(p: Floats, gradients: Floats, radius: float) -> Floats:
    """Optimal linf weights: the dual norm is l1.

    Two rows are exact and batched. With more rows a batched ascent settles most samples; the linear program
    is solved one sample at a time only for those that are neither certified nor refuted by then.

    Args:
        p: Margins after curvature, shape (n, R).
        gradients: Margin gradients, shape (n, R, d).
        radius: Radius of the linf ball.

    Returns:
        Weights of shape (n, R) that sum to one.
    """
    rows = p.shape[1]
    if rows == 1:
        return np.ones_like(p)
    if rows == 2:
        return _linf_pair(p[:, 0], p[:, 1], gradients[:, 0], gradients[:, 1], radius)

    def oracle(index: NDArray[np.intp], weights: Floats) -> Floats:
        step = -radius * np.sign(np.einsum("ki,kid->kd", weights, gradients[index]))
        return p[index] + np.einsum("kid,kd->ki", gradients[index], step)

    witness, undecided = ascend_to_positive(oracle, _best_vertex(p, gradients, radius))
    for sample in np.flatnonzero(undecided):
        witness[sample] = _linf_program(p[sample], gradients[sample], radius)
    return witness


def _linf_pair(p: Floats, q: Floats, a: Floats, b: Floats, radius: float) -> Floats:
    """Maximise `t p + (1-t) q - eps ||t a + (1-t) b||_1` over t in [0, 1]: a weighted median of its kinks."""
    slope_of = a - b
    with np.errstate(divide="ignore", invalid="ignore"):
        kink = -b / slope_of
    inside = (slope_of != 0) & (kink > 0) & (kink < 1)
    sign = np.where(b != 0, np.sign(b), np.sign(slope_of))
    slope = p - q - radius * np.einsum("nd,nd->n", sign, slope_of)
    drop = np.where(inside, 2.0 * radius * np.abs(slope_of), 0.0)
    kink = np.where(inside, kink, 1.0)
    order = np.argsort(kink, axis=1)
    after = slope[:, None] - np.cumsum(np.take_along_axis(drop, order, axis=1), axis=1)
    position = np.minimum((after > 0).sum(axis=1), kink.shape[1] - 1)
    top = np.take_along_axis(kink, np.take_along_axis(order, position[:, None], axis=1), axis=1)[:, 0]
    top = np.where(slope <= 0, 0.0, np.where(after[:, -1] > 0, 1.0, top))
    return np.stack([top, 1.0 - top], axis=-1)


def _best_vertex(p: Floats, gradients: Floats, radius: float) -> Floats:
    """The single row with the largest surplus, as weights."""
    alone = p - radius * np.abs(gradients).sum(axis=2)
    return np.eye(p.shape[1])[alone.argmax(axis=1)]


def _linf_program(p: Floats, gradients: Floats, radius: float) -> Floats:
    """Weights of one sample: multipliers of `min t` with `p_i + g_i.d <= t`, `|d_j| <= eps`."""
    rows, dimension = gradients.shape
    objective = np.zeros(dimension + 1)
    objective[-1] = 1.0
    constraints = np.concatenate([gradients, -np.ones((rows, 1))], axis=1)
    limits = [(-radius, radius)] * dimension + [(None, None)]
    result = linprog(objective, A_ub=constraints, b_ub=-p, bounds=limits, method="highs")
    if result.status != 0:  # an unsolved program certifies nothing, and any weights are sound
        return np.eye(rows)[0]
    return _normalised(np.maximum(-result.ineqlin.marginals, 0.0)[None])[0]


def ascend_to_positive(
    oracle: Callable[[NDArray[np.intp], Floats], Floats], start: Floats, steps: int = 60
) -> tuple[Floats, Bools]:
    """Raise a concave function on the simplex above zero, for many samples at once.

    The function is `h(lambda) = min_d sum_i lambda_i q_i(d)` over a ball; at its minimiser `d*` the vector
    `(q_1(d*) .. q_N(d*))` is a supergradient and `h = lambda . supergradient`. Steps have Polyak's length
    towards a small positive level. A sample leaves when it is settled: `h > 0` certifies, and a minimiser
    with every `q_i <= 0` shows that no weights can.

    Args:
        oracle: Maps (sample indices (k,), weights (k, N)) to the supergradients (k, N).
        start: Starting weights, shape (n, N), rows on the simplex.
        steps: Number of steps.

    Returns:
        Weights (n, N), and which samples were neither certified nor refuted, (n,).
    """
    witness = start.copy()
    open_ = np.ones(len(start), dtype=bool)
    current = start.copy()
    for _ in range(steps):
        index = np.flatnonzero(open_)
        if not len(index):
            break
        gradient = oracle(index, current[index])
        value = np.einsum("ki,ki->k", current[index], gradient)
        certified, refuted = value > 0, (gradient <= 0).all(axis=1)
        witness[index[certified]] = current[index[certified]]
        open_[index[certified | refuted]] = False
        tangent = gradient - gradient.mean(axis=1, keepdims=True)
        level = 0.05 * np.maximum(gradient.max(axis=1), 0.0)
        size = np.maximum((tangent**2).sum(axis=1), np.finfo(float).tiny)
        current[index] = project_to_simplex(current[index] + ((level - value) / size)[:, None] * tangent)
    return witness, open_


def project_to_simplex(points: Floats) -> Floats:
    """Nearest point of the probability simplex to each row, by sorting."""
    ordered = -np.sort(-points, axis=1)
    excess = np.cumsum(ordered, axis=1) - 1.0
    count = (ordered - excess / np.arange(1, points.shape[1] + 1) > 0).sum(axis=1)
    shift = np.take_along_axis(excess, count[:, None] - 1, axis=1) / count[:, None]
    return np.maximum(points - shift, 0.0)
