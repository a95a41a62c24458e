"""Extremal worlds: where a statement is attained, halved, or nearly broken.

In each of them the statement's value and the true rate are known in closed form (the docstrings say which),
so a wrong constant anywhere in the statement, in the quantities or in the evaluation shows. Small arguments
like `slack` say how closely the extreme is approached.
"""

from __future__ import annotations

import math

import numpy as np

from bounds.scenario import Floats, Scenario
from bounds.worlds import LabelShift, LocalQuadratics

__all__ = [
    "lemma_5_attained",
    "r5_attained",
    "theorem_1_repaired_attained",
    "theorem_2_nearly_one",
    "theorem_3_opposed",
    "theorem_3_sharp",
    "theorem_4_half",
    "theorem_4_three_labels",
    "theorem_6_attained",
    "theorem_6_swap",
]


def theorem_3_sharp(
    similarity: float,
    *,
    beta: float = 0.0,
    bound: float = 1.0,
    eps: float = 1.0,
    target_loss: float | None = None,
    rate: float = 1.0,
    slack: float = 1e-9,
) -> Scenario:
    """R3 is sharp: it says `rate * (1 + tiny)` and the attack transfers at exactly that rate.

    `l(y_t) = L`, `l(y) = L - r* (1 - slack)`; both models' gradients at y have norm B and stand at angle
    `arccos(S)`, those at y_t are their opposites, and the curvature is +beta at y, -beta at y_t. A second
    point with zero loss at its true label carries the remaining probability. Printed Theorem 3 says twice as
    much and more: with `L = 4 r*` and beta = 0 between 2.0 (S = 1) and 2.4 (S = -1/2) times the rate.

    Args:
        similarity: S in [-1/2, 1]: cosine between the gradients of F and G.
        beta: Smoothness.
        bound: Gradient norm B.
        eps: Radius.
        target_loss: L, above r*; by default 4 r*.
        rate: Probability of the point that is attacked.
        slack: How far the attack overshoots, as a fraction of r*.

    Raises:
        ValueError: If the similarity is outside [-1/2, 1]; below -1/2 no step follows both gradients as far.
    """
    half = _half_angle(similarity)
    drop = 2.0 * eps * bound * half + beta * eps**2
    level = 4.0 * drop if target_loss is None else target_loss
    value = np.array([[[level - drop * (1.0 - slack), level]] * 2, [[0.0, level]] * 2])
    ahead = bound * _pair(half)
    gradient = np.stack([ahead, -ahead], axis=1)
    bend = np.zeros((2, 2, 2, 2, 2))
    bend[0] = beta * np.array([1.0, -1.0])[None, :, None, None] * np.eye(2)
    world = LocalQuadratics(
        np.array([rate, 1.0 - rate]),
        np.zeros(2, dtype=np.int64),
        value,
        np.stack([gradient, np.zeros_like(gradient)]),
        bend,
    )
    return world.under([[eps, 0.0], [0.0, 0.0]], eps)


def theorem_3_opposed(*, target_loss: float = 10.0, rate: float = 1.0, slope: float = 1e-9) -> Scenario:
    """R3 and printed Theorem 3 at S = -1: R3 says `rate`, the printed bound 2 rate, and the rate is attained.

    F loses its margin at the true label and G at y_t, so opposite gradients do not protect them; the other
    two gradients are small and only fix the cosine.

    Args:
        target_loss: L, above r* = 1.
        rate: Probability of the point that is attacked.
        slope: The small gradients.
    """
    margin = 1.0 - 2.0 * slope
    value = np.array([[[target_loss - margin, target_loss]] * 2, [[0.0, target_loss]] * 2])
    gradient = np.zeros((2, 2, 2, 1))
    gradient[0, :, :, 0] = [[1.0, slope], [-slope, -1.0]]
    world = LocalQuadratics.affine([rate, 1.0 - rate], [0, 0], value, gradient)
    return world.under([[1.0], [0.0]], 1.0)


def theorem_4_half(similarity: float, *, slack: float = 1e-9) -> Scenario:
    """Three labels, the models driven apart: R3' says 1 + tiny, Theorem 4 says 2, and all transfers.

    Each model's gradient at the label that it reaches lies straight along the attack, at full cost; those at
    the true label stand at angle `arccos(S)`.

    Args:
        similarity: S in [-1/2, 1].
        slack: How far the attack overshoots, as a fraction of r.

    Raises:
        ValueError: If the similarity is outside [-1/2, 1].
    """
    half = _half_angle(similarity)
    drop = 1.0 + half
    value = np.array([[[drop * (1.0 + slack), 2.0 * drop, 2.0 * drop]] * 2])
    gradient = np.zeros((1, 2, 3, 2))
    gradient[0, :, 0] = _pair(half)
    gradient[0, 0, 1] = gradient[0, 1, 2] = [-1.0, 0.0]
    return LocalQuadratics.affine([1.0], [0], value, gradient).under([[1.0, 0.0]], 1.0)


def theorem_4_three_labels(slope: float = 1e-6) -> Scenario:
    """Three labels, S = -1: printed Theorem 4 says `1 + 4 slope`, and the attack always transfers.

    So Theorem 4 is itself sharp for three labels, and half of it, valid for two labels, is false.

    Args:
        slope: The small gradient e in `l_F = (1 + 2e - ex, 2 - x, 2 + ex)`, `l_G = (2e + x, 2 + ex, 2 - x)`.
    """
    value = np.array([[[1.0 + 2.0 * slope, 2.0, 2.0], [2.0 * slope, 2.0, 2.0]]])
    gradient = np.array([[[[-slope], [-1.0], [slope]], [[1.0], [slope], [-1.0]]]])
    return LocalQuadratics.affine([1.0], [0], value, gradient).under([[1.0]], 1.0)


def theorem_1_repaired_attained(eps: float = 1.0) -> Scenario:
    """F = G affine under a perfect targeted attack: repaired Theorem 1 says 1, and Tr = 1.

    Only the loss at y_t moves. The printed theorem does not apply: its `c_G + eps` is 0.
    """
    value = np.array([[[0.0, eps / 2.0], [0.0, eps / 2.0]]])
    gradient = np.array([[[[0.0], [1.0]], [[0.0], [1.0]]]])
    return LocalQuadratics.affine([1.0], [0], value, gradient).under([[-eps]], eps)


def theorem_2_nearly_one() -> Scenario:
    """`l_F = (x, .991 - x/1000)`, `l_G = (x, .011 - x/1000)`: Theorem 2 says 98/99, and Tr = 1."""
    value = np.array([[[0.0, 0.991], [0.0, 0.011]]])
    gradient = np.array([[[[1.0], [-0.001]], [[1.0], [-0.001]]]])
    return LocalQuadratics.affine([1.0], [0], value, gradient).under([[1.0]], 1.0)


def r5_attained(models: int, *, slack: float = 1e-9) -> Scenario:
    """N orthogonal gradients, attacked along their mean: R5 says 1 + tiny, and everything transfers.

    Args:
        models: N >= 2.
        slack: How far the attack overshoots.
    """
    drop = 2.0 / math.sqrt(models)
    value = np.tile([drop * (1.0 + slack), 2.0 * drop], (1, models, 1))
    gradient = np.stack([np.eye(models), -np.eye(models)], axis=1)[None]
    return LocalQuadratics.affine([1.0], [0], value, gradient).under(
        np.full((1, models), 1.0 / math.sqrt(models)), 1.0
    )


def lemma_5_attained() -> LabelShift:
    """Three inputs, eps = rho = 1/3: F and G disagree on every attacked one, as `2 eps + rho` = 1 allows."""
    return _uniform(truth=[1, 0, 1], f=[0, 0, 1], g=[1, 1, 1], attack=[0, 1, 1])


def theorem_6_attained(reading: str) -> LabelShift:
    """Theorem 6 in each of its readings, with equality and with all of eps, rho and delta positive.

    So none of the constants (2, 3 and 4 times eps, and 1 for rho and delta) can be lowered.

    Args:
        reading: "theorem-6" (the label changes, printed), "theorem-6-def2" (Definition 2 on F and G),
            "theorem-6-mixed" (Definition 2 on F, change on G) or "theorem-6-transfer".

    Raises:
        ValueError: If the reading is unknown.
    """
    worlds: dict[str, dict[str, list[int]]] = {
        "theorem-6": {
            "truth": [0, 0, 0, 0, 1, 0],
            "f": [0, 0, 0, 0, 1, 1],
            "g": [0, 0, 0, 0, 0, 0],
            "attack": [1, 4, 4, 5, 3, 2],
        },
        "theorem-6-def2": {
            "truth": [1, 1, 1, 0],
            "f": [0, 1, 1, 0],
            "g": [1, 0, 1, 0],
            "attack": [2, 0, 0, 1],
        },
        "theorem-6-mixed": {
            "truth": [0, 1, 1, 1, 1],
            "f": [0, 1, 1, 0, 1],
            "g": [1, 1, 1, 1, 1],
            "attack": [4, 0, 0, 3, 1],
        },
        "theorem-6-transfer": {
            "truth": [0, 0, 0, 1, 1, 0, 1],
            "f": [0, 0, 0, 0, 1, 0, 1],
            "g": [0, 0, 0, 1, 1, 0, 0],
            "attack": [5, 6, 4, 1, 3, 6, 0],
        },
    }
    if reading not in worlds:
        raise ValueError(f"expected one of {', '.join(worlds)}; got {reading!r}")
    return _uniform(**worlds[reading])


def theorem_6_swap() -> LabelShift:
    """Two inputs swapped by the attack, F = G = y the identity: rho = eps = delta = 0, and all transfers."""
    return _uniform(truth=[0, 1], f=[0, 1], g=[0, 1], attack=[1, 0])


def _uniform(*, truth: list[int], f: list[int], g: list[int], attack: list[int]) -> LabelShift:
    inputs = np.full(len(truth), 1.0 / len(truth))
    return LabelShift(inputs, np.array(truth), np.array(f), np.array(g), np.array(attack))


def _half_angle(similarity: float) -> float:
    """Cosine of half the angle whose cosine is given."""
    if not -0.5 <= similarity <= 1.0:
        raise ValueError(f"expected a similarity in [-1/2, 1], got {similarity}")
    return math.sqrt((1.0 + similarity) / 2.0)


def _pair(half: float) -> Floats:
    """Two unit vectors, each at the angle with cosine `half` from the first axis, on either side of it."""
    side = math.sqrt(max(1.0 - half**2, 0.0))
    return np.array([[half, side], [half, -side]])
