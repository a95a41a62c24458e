"""Per-sample certificates: no perturbation in the ball fools several models at once.

The certificate is refined result R1. Let `m_i` be the loss margin of model i towards the label that the
attacker wants (`l_i(x, y') - l_i(x, y)`; for cross-entropy a logit difference), `g_i` its gradient at x, and
`kappa_i` a lower curvature: `m_i(x + d) >= m_i + d.g_i - kappa_i ||d||^2 / 2` on the ball, **in the norm of
the ball**. If some weights `lambda >= 0` satisfy

    lambda . p > eps * ||sum_i lambda_i g_i||_*,      p_i = m_i - max(kappa_i, 0) eps^2 / 2,

then no `||d|| <= eps` drives all margins to zero or below. The proof: such a d would give `-g_i.d >= p_i` for
every i, and the weighted sum contradicts the display. For margins that are affine the condition is also
necessary. It sharpens the upper bound of TRS, Theorems 3 and 4, section 4.4: one sample at a time, for every
attack at once.

A certificate carries its witness lambda, and it is granted only by `check_witness`, which evaluates the
display anew with an allowance for float64 rounding. The margins, gradients and curvatures are taken at their
word.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bounds.dual import Bools, Floats, l2_witness, linf_witness

Norm = Literal["l2", "linf"]

_MACHINE = float(np.finfo(np.float64).eps)
# Stands for what an infinite curvature costs: finite, so that a zero weight still cancels it.
_NO_CURVATURE = 1e150
# Squared norms below this have lost digits to underflow.
_TINY_SQUARE = 1e-290


@dataclass(frozen=True)
class Certificate:
    """Which samples are certified, and why.

    Attributes:
        certified: Shape (n,): True where no perturbation in the ball fools the models in question together.
            False says nothing: the attack may or may not exist.
        witness: Weights lambda, nonnegative. Shape (n, N) for one choice of labels; for the composite
            certificates (n, C, N) or (n, N, L), see their functions. Meaningful where certified.
        choices: For `certify_untargeted`: shape (C, N), the label position that each witness is for, -1 for a
            model outside the subset. None for a single choice.
    """

    certified: Bools
    witness: Floats
    choices: NDArray[np.int64] | None = None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The boolean array of certified samples, so that `np.asarray(certificate)` is it."""
        return np.array(self.certified, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.certified)


def transfer_certificate(
    margins: ArrayLike, gradients: ArrayLike, curvature: ArrayLike, radius: float, norm: Norm = "l2"
) -> Certificate:
    """Certify, sample by sample, that no perturbation in the ball drives all N margins to zero or below (R1).

    Two models: the witness is the exact optimum (closed form in l2, weighted median in linf). More models:
    an active-set method in l2; in linf a batched ascent, then a linear program for the samples that it
    leaves open.

    Args:
        margins: Loss margins m_i at x, shape (n, N).
        gradients: Gradients of the margins at x, shape (n, N, d).
        curvature: Lower curvature kappa_i of the margins over the ball, scalar or broadcastable to (n, N);
            `inf` where none is known. It is measured in the norm of the ball: for "linf" an l2 curvature has
            to be multiplied by d. Negative values count as zero.
        radius: Radius eps of the ball, in the same norm.
        norm: "l2" or "linf".

    Returns:
        The certificate; witness of shape (n, N).

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative or the norm unknown.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm)
    remaining = _remaining_margin(margins, curvature, radius)
    if norm == "l2":
        witness = l2_witness(remaining, gradients @ gradients.swapaxes(-1, -2), radius)
    else:
        witness = linf_witness(remaining, gradients, radius)
    return Certificate(check_witness(witness, margins, gradients, curvature, radius, norm), witness)


def check_witness(
    witness: ArrayLike,
    margins: ArrayLike,
    gradients: ArrayLike,
    curvature: ArrayLike,
    radius: float,
    norm: Norm = "l2",
) -> Bools:
    """Whether weights lambda prove the certificate, with every float64 rounding counted against it.

    This is all that soundness rests on; where the weights came from does not matter.

    Args:
        witness: Weights lambda, shape (n, N).
        margins: Loss margins, shape (n, N).
        gradients: Gradients of the margins, shape (n, N, d).
        curvature: Lower curvature in the norm of the ball, scalar or broadcastable to (n, N).
        radius: Radius eps of the ball.
        norm: "l2" or "linf".

    Returns:
        Shape (n,): True where `lambda >= 0` and `lambda . p > eps ||sum_i lambda_i g_i||_*`.

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative or the norm unknown.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm)
    weights = np.asarray(witness, dtype=np.float64)
    if weights.shape != margins.shape:
        raise ValueError(f"expected a witness of shape {margins.shape}, got {weights.shape}")
    order = 2 if norm == "l2" else 1
    models, dimension = gradients.shape[1:]
    combined = np.einsum("ni,nid->nd", weights, gradients)
    norm_of_sum = np.linalg.norm(combined, ord=order, axis=1)
    sum_of_norms = np.einsum("ni,ni->n", weights, np.linalg.norm(gradients, ord=order, axis=2))
    norm_of_sum += _MACHINE * ((dimension + 4) * norm_of_sum + (models + 2) * sum_of_norms)
    norm_of_sum += np.sqrt(_TINY_SQUARE)
    return (weights >= 0).all(axis=1) & (
        _weighted_margin(weights, margins, curvature, radius) > radius * norm_of_sum
    )


def transfer_certificate_gram(
    margins: ArrayLike, gram: ArrayLike, curvature: ArrayLike, radius: float, *, relative_error: float = 1e-11
) -> Certificate:
    """The l2 certificate R1 from the inner products of the margin gradients alone.

    Inner products are all that the l2 certificate needs, so they can be accumulated layer by layer, or in
    batches, without ever holding the gradients. The price is resolution: `relative_error` is charged.

    Args:
        margins: Loss margins, shape (n, N).
        gram: Inner products `g_i . g_j`, shape (n, N, N).
        curvature: Lower curvature in l2, scalar or broadcastable to (n, N).
        radius: Radius of the l2 ball.
        relative_error: Bound on the error of each inner product, as a fraction of `||g_i|| ||g_j||`; float64
            accumulation over d terms stays below 1.2e-16 d.

    Returns:
        The certificate; witness of shape (n, N).

    Raises:
        ValueError: If shapes disagree, a number is NaN or the radius is negative.
    """
    margins = _finite("margins", margins, 2)
    gram = _finite("gram", gram, 3)
    if gram.shape != (*margins.shape, margins.shape[1]):
        raise ValueError(f"expected a gram of shape {(*margins.shape, margins.shape[1])}, got {gram.shape}")
    _check_ball(radius, "l2")
    curvature = _curvature(curvature, margins.shape)
    witness = l2_witness(_remaining_margin(margins, curvature, radius), gram, radius)
    return Certificate(_check_gram(witness, margins, gram, curvature, radius, relative_error), witness)


def certify_untargeted(
    margins: ArrayLike,
    gradients: ArrayLike,
    curvature: ArrayLike,
    radius: float,
    norm: Norm = "l2",
    *,
    fooled: int | None = None,
) -> Certificate:
    """Certify that no perturbation makes `fooled` of the N models wrong at once, into any labels whatever.

    Each model may be driven to its own wrong label, so every combination of labels of every subset of that
    size is certified by R1; one that is not leaves the sample uncertified.

    Args:
        margins: Loss margins towards each of the L = K - 1 wrong labels, shape (n, N, L).
        gradients: Their gradients, shape (n, N, L, d).
        curvature: Lower curvature in the norm of the ball, scalar or broadcastable to (n, N, L).
        radius: Radius of the ball.
        norm: "l2" or "linf".
        fooled: Number k of models fooled together that is ruled out; None for all N. With 1, no model is
            fooled.

    Returns:
        The certificate; witness of shape (n, C, N), one lambda for each of the C rows of `choices`. Once a
        sample has failed one choice the rest of its witnesses stay zero.

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative, the norm unknown or k not in
            1 .. N.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm, labels=True)
    n, models, labels = margins.shape
    size = models if fooled is None else fooled
    if not 1 <= size <= models:
        raise ValueError(f"expected fooled between 1 and the {models} models, got {fooled}")
    choices = _label_choices(models, labels, size)
    rows = _Rows(margins, gradients, curvature, radius, norm)
    certified = np.ones(n, dtype=bool)
    witness = np.zeros((n, len(choices), models))
    for position, choice in enumerate(choices):
        members = np.flatnonzero(choice >= 0)
        samples = np.flatnonzero(certified)
        weights, proved = rows.certify(samples, members * labels + choice[members])
        witness[samples[:, None], position, members] = weights
        certified[samples] = proved
    return Certificate(certified, witness, choices)


def certify_targeted(
    margins: ArrayLike, gradients: ArrayLike, curvature: ArrayLike, radius: float, norm: Norm = "l2"
) -> Certificate:
    """Certify that no perturbation drives all N models to the target label y_t.

    A model predicts y_t only if y_t beats every other label, so the certificate may weigh all those margins
    `l_i(x, y_t) - l_i(x, z)`, z != y_t: N * L rows instead of N, never weaker than the true label's rows
    alone.

    Args:
        margins: `l_i(x, y_t) - l_i(x, z)` for each of the L = K - 1 labels z != y_t, shape (n, N, L).
        gradients: Their gradients, shape (n, N, L, d).
        curvature: Lower curvature in the norm of the ball, scalar or broadcastable to (n, N, L).
        radius: Radius of the ball.
        norm: "l2" or "linf".

    Returns:
        The certificate; witness of shape (n, N, L).

    Raises:
        ValueError: If shapes disagree, a number is NaN, the radius is negative or the norm unknown.
    """
    margins, gradients, curvature = _problem(margins, gradients, curvature, radius, norm, labels=True)
    n, models, labels = margins.shape
    rows = models * labels
    flat = transfer_certificate(
        margins.reshape(n, rows), gradients.reshape(n, rows, -1), curvature.reshape(n, rows), radius, norm
    )
    return Certificate(flat.certified, flat.witness.reshape(margins.shape))


class _Rows:
    """All (model, label) margins of a batch as rows, from which a certificate picks a few at a time.

    Samples are on the last axis, so that picking rows copies whole columns instead of gathering numbers.
    """

    def __init__(
        self, margins: Floats, gradients: Floats, curvature: Floats, radius: float, norm: Norm
    ) -> None:
        n, models, labels, dimension = gradients.shape
        self.margins = np.ascontiguousarray(margins.reshape(n, models * labels).T)
        self.curvature = np.ascontiguousarray(curvature.reshape(n, models * labels).T)
        self.gradients = gradients.reshape(n, models * labels, dimension)
        self.radius, self.norm = radius, norm
        if norm == "l2":
            self.gram = _gram_across_models(gradients)

    def certify(self, samples: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[Floats, Bools]:
        """Witness (k, R) and verdict (k,) of R1 for some rows of some samples."""
        everyone = len(samples) == self.margins.shape[1]
        kept = slice(None) if everyone else samples
        margins, curvature = self.margins[rows][:, kept].T, self.curvature[rows][:, kept].T
        remaining = _remaining_margin(margins, curvature, self.radius)
        if self.norm == "l2":
            gram = np.moveaxis(self.gram[rows[:, None], rows][..., kept], -1, 0)
            witness = l2_witness(remaining, gram, self.radius)
            error = _MACHINE * (self.gradients.shape[2] + 2)
            return witness, _check_gram(witness, margins, gram, curvature, self.radius, error)
        gradients = self.gradients[samples[:, None], rows]
        witness = linf_witness(remaining, gradients, self.radius)
        return witness, check_witness(witness, margins, gradients, curvature, self.radius, self.norm)


def _gram_across_models(gradients: Floats) -> Floats:
    """Inner products (N L, N L, n) of gradients (n, N, L, d); labels of one model never meet and stay 0."""
    n, models, labels, _ = gradients.shape
    gram = np.zeros((models, labels, models, labels, n))
    label = np.arange(labels)
    for i in range(models):
        gram[i, label, i, label] = np.einsum("nld,nld->ln", gradients[:, i], gradients[:, i])
        for j in range(i):
            gram[i, :, j] = np.moveaxis(gradients[:, i] @ gradients[:, j].swapaxes(1, 2), 0, -1)
            gram[j, :, i] = gram[i, :, j].swapaxes(0, 1)
    return gram.reshape(models * labels, models * labels, n)


def _label_choices(models: int, labels: int, size: int) -> NDArray[np.int64]:
    """Every subset of `size` models with every choice of one label position each; -1 outside the subset."""
    choices = []
    for members in itertools.combinations(range(models), size):
        for picked in itertools.product(range(labels), repeat=size):
            choice = np.full(models, -1, dtype=np.int64)
            choice[list(members)] = picked
            choices.append(choice)
    return np.array(choices)


def _remaining_margin(margins: Floats, curvature: Floats, radius: float) -> Floats:
    """`p`: what is left of each margin once the curvature has done its worst."""
    return margins - _curvature_cost(curvature, radius)


def _curvature_cost(curvature: Floats, radius: float) -> Floats:
    """`max(kappa, 0) eps^2 / 2`: bending down costs most on the sphere, bending up nothing at the centre."""
    bent = np.isposinf(curvature)
    cost = np.maximum(np.where(bent, 0.0, curvature), 0.0) * (radius * radius / 2.0)
    return np.minimum(np.where(bent & (radius > 0), _NO_CURVATURE, cost), _NO_CURVATURE)


def _weighted_margin(weights: Floats, margins: Floats, curvature: Floats, radius: float) -> Floats:
    """`lambda . p`, rounded down."""
    cost = _curvature_cost(curvature, radius)
    allowance = _MACHINE * (weights.shape[1] + 6) * np.einsum("ni,ni->n", weights, np.abs(margins) + cost)
    return np.einsum("ni,ni->n", weights, margins - cost) - allowance


def _check_gram(
    witness: Floats, margins: Floats, gram: Floats, curvature: Floats, radius: float, relative_error: float
) -> Bools:
    """`check_witness` in l2, from inner products off by at most `relative_error * ||g_i|| ||g_j||`."""
    square = np.einsum("ni,nij,nj->n", witness, gram, witness)
    norms = np.sqrt(np.maximum(np.einsum("nii->ni", gram), 0.0))
    sum_of_norms = np.einsum("ni,ni->n", witness, norms) * (1.0 + relative_error + 8 * _MACHINE)
    error = 2.0 * relative_error + (2 * witness.shape[1] + 6) * _MACHINE
    norm_of_sum = np.sqrt(np.maximum(square, 0.0) + error * sum_of_norms**2 + _TINY_SQUARE) * (
        1 + 2 * _MACHINE
    )
    return (witness >= 0).all(axis=1) & (
        _weighted_margin(witness, margins, curvature, radius) > radius * norm_of_sum
    )


def _problem(
    margins: ArrayLike,
    gradients: ArrayLike,
    curvature: ArrayLike,
    radius: float,
    norm: str,
    *,
    labels: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """The three arrays as float64 with their shapes checked."""
    _check_ball(radius, norm)
    margins = _finite("margins", margins, 3 if labels else 2)
    gradients = _finite("gradients", gradients, margins.ndim + 1)
    if gradients.shape[:-1] != margins.shape:
        raise ValueError(f"expected gradients of shape {margins.shape} + (d,), got {gradients.shape}")
    if 0 in margins.shape[1:]:
        raise ValueError(f"expected at least one model and one label, got margins of shape {margins.shape}")
    return margins, gradients, _curvature(curvature, margins.shape)


def _check_ball(radius: float, norm: str) -> None:
    if norm not in ("l2", "linf"):
        raise ValueError(f"expected norm 'l2' or 'linf', got {norm!r}")
    if not (isinstance(radius, Real) and np.isfinite(radius) and radius >= 0):
        raise ValueError(f"expected a finite radius of at least 0, got {radius!r}")


def _finite(name: str, array: ArrayLike, dimensions: int) -> Floats:
    numbers = np.asarray(array, dtype=np.float64)
    if numbers.ndim != dimensions:
        raise ValueError(f"expected {name} with {dimensions} dimensions, got shape {numbers.shape}")
    # A finite sum has finite terms, and is quicker than a look at each.
    if not np.isfinite(numbers.sum()) and not np.isfinite(numbers).all():
        raise ValueError(
            f"expected finite {name}, got {int((~np.isfinite(numbers)).sum())} NaN or infinite entries"
        )
    return numbers


def _curvature(curvature: ArrayLike, shape: Sequence[int]) -> Floats:
    numbers = np.asarray(curvature, dtype=np.float64)
    if np.isnan(numbers).any():
        raise ValueError(f"expected a curvature without NaN, got {int(np.isnan(numbers).sum())} NaN entries")
    try:
        return np.broadcast_to(numbers, shape)
    except ValueError:
        raise ValueError(
            f"expected a curvature broadcastable to {tuple(shape)}, got shape {numbers.shape}"
        ) from None
