"""Definitions 1 to 9 of the paper over arrays: what each quantity and predicate is, exactly.

Every function is about a finite distribution: `n` points with labels, uniform unless `weights` (nonnegative,
summing to 1) says otherwise. Labels and predictions are integer arrays of shape (n,). Nothing here estimates
anything: for a finite support these are the quantities themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def perturbation_norms(x: ArrayLike, x_adv: ArrayLike, *, norm: str = "l2") -> Floats:
    """Length of each point's perturbation, Definition 1 (TRS, section 3.1).

    Args:
        x: Benign inputs, shape (n, ...).
        x_adv: Attacked inputs, the same shape.
        norm: "l2" (the one that the theorems are about) or "linf".

    Returns:
        Norms, shape (n,).

    Raises:
        ValueError: If the shapes differ or the norm is unknown.
    """
    benign, attacked = np.asarray(x, dtype=float), np.asarray(x_adv, dtype=float)
    if benign.shape != attacked.shape:
        raise ValueError(f"expected attacked inputs of shape {benign.shape}, got {attacked.shape}")
    if norm not in ("l2", "linf"):
        raise ValueError(f'expected norm "l2" or "linf", got {norm!r}')
    flat = (attacked - benign).reshape(len(benign), -1)
    return np.linalg.norm(flat, ord=2 if norm == "l2" else np.inf, axis=1)


def is_evasion_attack(x: ArrayLike, x_adv: ArrayLike, eps: float, *, norm: str = "l2") -> bool:
    """Whether every perturbation stays in the ball of Definition 1 (TRS, section 3.1).

    The definition also asks for the best loss within the ball. No theorem uses that, so it is not checked.

    Raises:
        ValueError: If the shapes differ or the norm is unknown.
    """
    return bool(np.all(perturbation_norms(x, x_adv, norm=norm) <= eps))


def attack_failure(
    predictions_adv: ArrayLike,
    labels: ArrayLike,
    *,
    target: int | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """Least alpha for which the attack is (alpha, F)-effective, Definition 2 (TRS, section 3.1).

    The probability is over all points, misclassified ones included: on an untargeted attack that changes
    nothing it is 1 - eta_F.

    Args:
        predictions_adv: F's labels of the attacked inputs, shape (n,).
        labels: True labels, shape (n,).
        target: Label that a targeted attack aims at; None for an untargeted one.
        weights: Probabilities of the points.

    Raises:
        ValueError: If the shapes disagree or the weights are no distribution.
    """
    predicted, true = _alike(predictions_adv, labels)
    success = predicted != true if target is None else predicted == target
    return 1.0 - _mean(success, weights)


def risk(predictions: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Risk eta = Pr(F(x) != y), Definition 3 (TRS, section 4.1).

    Raises:
        ValueError: If the shapes disagree or the weights are no distribution.
    """
    predicted, true = _alike(predictions, labels)
    return _mean(predicted != true, weights)


def empirical_risk(losses: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Empirical risk xi = E[l(x, y)], Definition 3 (TRS, section 4.1): the mean loss over the distribution.

    Args:
        losses: Loss at the true label, shape (n,). Theorems 3 and 4 need them >= 0.
        weights: Probabilities of the points.

    Raises:
        ValueError: If the weights are no distribution.
    """
    return _mean(np.asarray(losses, dtype=float), weights)


def gradient_cosines(gradients_f: ArrayLike, gradients_g: ArrayLike) -> Floats:
    """Cosine between the two models' loss gradients, one for each row; NaN where one of them is zero.

    Args:
        gradients_f: Loss gradients of F with respect to the input, shape (n, ...).
        gradients_g: Those of G at the same points and labels, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    f, g = np.asarray(gradients_f, dtype=float), np.asarray(gradients_g, dtype=float)
    if f.shape != g.shape:
        raise ValueError(f"expected gradients of shape {f.shape}, got {g.shape}")
    f, g = f.reshape(len(f), -1), g.reshape(len(g), -1)
    with np.errstate(invalid="ignore"):
        unit_f = f / np.linalg.norm(f, axis=1, keepdims=True)
        unit_g = g / np.linalg.norm(g, axis=1, keepdims=True)
    return np.clip((unit_f * unit_g).sum(axis=1), -1.0, 1.0)


def lower_similarity(gradients_f: ArrayLike, gradients_g: ArrayLike) -> float:
    """Lower loss gradient similarity, Definition 4 (TRS, section 4.1): the smallest cosine.

    A zero gradient has no direction. It is left out, which is harmless in Theorems 3 and 4; in Theorems 1
    and 2 the constants c_F and c_G divide by its norm, and no bound exists.

    Raises:
        ValueError: If the shapes differ or every pair holds a zero gradient.
    """
    return float(np.min(_defined(gradient_cosines(gradients_f, gradients_g))))


def upper_similarity(gradients_f: ArrayLike, gradients_g: ArrayLike) -> float:
    """Upper loss gradient similarity, Definition 5 (TRS, section 4.1): the largest cosine.

    Raises:
        ValueError: If the shapes differ or every pair holds a zero gradient.
    """
    return float(np.max(_defined(gradient_cosines(gradients_f, gradients_g))))


def smoothness_quotient(x: ArrayLike, gradients: ArrayLike) -> float:
    """Largest gradient difference quotient over pairs of points, Definition 6 (TRS, section 4.1).

    It is the definition's supremum when the points are all of X. The theorems need it over the segments from
    x to the attacked x: points alone can have quotient 0 where the loss turns in between (erratum 5), so this
    is a lower bound on the beta that they need.

    Args:
        x: Distinct points, shape (n, ...).
        gradients: Loss gradients there, the same shape, one label throughout.

    Raises:
        ValueError: If the shapes differ, there are fewer than two points, or two points coincide.
    """
    points, slopes = np.asarray(x, dtype=float), np.asarray(gradients, dtype=float)
    if points.shape != slopes.shape or len(points) < 2:
        raise ValueError(f"expected gradients at two or more points {points.shape}, got {slopes.shape}")
    first, second = np.triu_indices(len(points), k=1)
    distance = np.linalg.norm((points[first] - points[second]).reshape(len(first), -1), axis=1)
    if not distance.all():
        raise ValueError("expected distinct points, got two that coincide")
    return float(
        np.max(np.linalg.norm((slopes[first] - slopes[second]).reshape(len(first), -1), axis=1) / distance)
    )


def transfers(
    labels: ArrayLike,
    f: ArrayLike,
    g: ArrayLike,
    f_adv: ArrayLike,
    g_adv: ArrayLike,
    *,
    target: int | None = None,
    proper: bool = False,
) -> Bools:
    """Transferability T_r of every point, Definition 7 (TRS, section 4.2).

    Untargeted: both models right on x and both wrong on the attacked x. Targeted: both right on x and both
    predict the target on the attacked x. As printed, a point whose label already is the target counts
    even for an attack that does nothing; `proper` leaves those out.

    Args:
        labels: True labels, shape (n,).
        f: F's predictions on x.
        g: G's predictions on x.
        f_adv: F's predictions on the attacked x.
        g_adv: G's predictions on the attacked x.
        target: The target label, or None for an untargeted attack.
        proper: Whether to leave out points whose label is the target.

    Raises:
        ValueError: If the shapes disagree.
    """
    true, right_f = _alike(labels, f)
    _, right_g = _alike(labels, g)
    _, attacked_f = _alike(labels, f_adv)
    _, attacked_g = _alike(labels, g_adv)
    both_right = (right_f == true) & (right_g == true)
    if target is None:
        return np.asarray(both_right & (attacked_f != true) & (attacked_g != true))
    reached = both_right & (attacked_f == target) & (attacked_g == target)
    return np.asarray(reached & (true != target) if proper else reached)


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Total variation distance of two distributions on the same points, Definition 8 (TRS, appendix A).

    Half of the l1 distance of the probability vectors, not the l1 distance itself as the paper remarks.

    Args:
        p: Probabilities, shape (m,).
        q: Probabilities of the same points, shape (m,).

    Raises:
        ValueError: If either is no distribution or the shapes differ.
    """
    first, second = _distribution(p), _distribution(q)
    if first.shape != second.shape:
        raise ValueError(
            f"expected two distributions on the same points, got {first.shape} and {second.shape}"
        )
    return float(np.abs(first - second).sum() / 2.0)


def is_conservative(p: ArrayLike, p_attacked: ArrayLike, rho: float) -> bool:
    """Whether an attack is rho-conservative, Definition 9 (TRS, appendix A).

    Args:
        p: Probabilities of the benign inputs, shape (m,).
        p_attacked: Probabilities of the attacked inputs on the same points.
        rho: The allowed total variation distance.

    Raises:
        ValueError: If either is no distribution or the shapes differ.
    """
    return total_variation(p, p_attacked) <= rho


def _alike(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two label arrays of one shape (n,), got {a.shape} and {b.shape}")
    return a, b


def _distribution(weights: ArrayLike) -> Floats:
    probabilities = np.asarray(weights, dtype=float)
    if (
        probabilities.ndim != 1
        or np.any(probabilities < 0)
        or not np.isclose(probabilities.sum(), 1.0, atol=1e-9)
    ):
        raise ValueError(f"expected probabilities that sum to 1, got a sum of {probabilities.sum()}")
    return probabilities


def _mean(values: NDArray[Any], weights: ArrayLike | None) -> float:
    if weights is None:
        return float(np.mean(values))
    probabilities = _distribution(weights)
    if probabilities.shape != values.shape:
        raise ValueError(f"expected {len(values)} weights, got shape {probabilities.shape}")
    return float(probabilities @ values)


def _defined(cosines: Floats) -> Floats:
    defined = cosines[~np.isnan(cosines)]
    if not len(defined):
        raise ValueError("expected a pair of nonzero gradients, got none")
    return defined


@dataclass(frozen=True)
class Definition:
    """One definition of the paper, with what its wording leaves open.

    Attributes:
        number: Its number.
        title: Its name.
        section: Where it is.
        latex: What it defines.
        remark: What has to be added to use it in the theorems.
        functions: Names of the functions of this module that are about it.
    """

    number: int
    title: str
    section: str
    latex: str
    remark: str
    functions: tuple[str, ...]


_ALL = (
    Definition(
        1,
        "Adversarial evasion attack",
        "3.1",
        r"\mathcal A(x) = x + \delta,\quad \|\delta\|_p \le \epsilon",
        "Stated for correctly classified x, but the theorems run over all of them, so the attack must be "
        "defined everywhere. Its optimality is never used. The theorems need the l2 norm.",
        ("perturbation_norms", "is_evasion_attack"),
    ),
    Definition(
        2,
        r"$(\alpha, \mathcal F)$-effective attack",
        "3.1",
        r"\Pr(\mathcal F(\mathcal A_U(x)) \neq y) \ge 1 - \alpha,\quad "
        r"\Pr(\mathcal F(\mathcal A_T(x)) = y_t) \ge 1 - \alpha",
        "Unconditional: the attack that changes nothing has $\\alpha = 1 - \\eta_{\\mathcal F}$.",
        ("attack_failure",),
    ),
    Definition(
        3,
        "Model risk",
        "4.1",
        r"\eta_{\mathcal F} = \Pr(\mathcal F(x) \neq y),\quad "
        r"\xi_{\mathcal F} = \mathbb E[\ell_{\mathcal F}(x, y)]",
        "The empirical risk is a mean over the distribution. Theorems 3 and 4 need a loss >= 0.",
        ("risk", "empirical_risk"),
    ),
    Definition(
        4,
        "Lower loss gradient similarity",
        "4.1",
        r"\underline S = \inf_{x, y} \cos\langle \nabla_x \ell_{\mathcal F}(x, y), "
        r"\nabla_x \ell_{\mathcal G}(x, y)\rangle",
        "Undefined at zero gradients. Theorem 1 needs the label y_t, Theorem 2 the true one.",
        ("gradient_cosines", "lower_similarity"),
    ),
    Definition(
        5,
        "Upper loss gradient similarity",
        "4.1",
        r"\overline S = \sup_{x, y} \cos\langle \nabla_x \ell_{\mathcal F}(x, y), "
        r"\nabla_x \ell_{\mathcal G}(x, y)\rangle",
        "Undefined at zero gradients, which Theorems 3 and 4 may leave out.",
        ("gradient_cosines", "upper_similarity"),
    ),
    Definition(
        6,
        "Model smoothness",
        "4.1",
        r"\sup_{x_1, x_2, y} \frac{\|\nabla_x \ell_{\mathcal F}(x_1, y) - "
        r"\nabla_x \ell_{\mathcal F}(x_2, y)\|_2}"
        r"{\|x_1 - x_2\|_2} \le \beta",
        "Over the data alone it is not enough (erratum 5): the domain must be convex, or hold the segments "
        "from x to the attacked x. Infinite with ReLU. $\\beta = 0$ makes each loss affine, not linear.",
        ("smoothness_quotient",),
    ),
    Definition(
        7,
        "Transferability",
        "4.2",
        r"T_r = \mathbb I[\mathcal F(x) = \mathcal G(x) = y \wedge \mathcal F(\mathcal A(x)) \neq y \wedge "
        r"\mathcal G(\mathcal A(x)) \neq y]",
        "The targeted version counts points whose label already is the target, for any attack; "
        "$T_r^*$ does not (erratum 17).",
        ("transfers",),
    ),
    Definition(
        8,
        "Total variation distance",
        "appendix A",
        r"\|P - Q\|_{TV} = \sup_C |P(C) - Q(C)|",
        "Half of the l1 distance; the remark in the paper forgets the half (erratum 15).",
        ("total_variation",),
    ),
    Definition(
        9,
        r"$\rho$-conservative attack",
        "appendix A",
        r"\|P_{\mathcal X} - P_{\mathcal A(x)}\|_{TV} \le \rho",
        "Only the distributions are compared: an attack that permutes the inputs has distance 0.",
        ("is_conservative",),
    ),
)

DEFINITIONS: Mapping[int, Definition] = MappingProxyType(
    {definition.number: definition for definition in _ALL}
)
