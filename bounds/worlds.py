"""Small worlds in which every quantity of the theory is known exactly.

Made for attacking a claim: build a world, let an attack act in it, and compare what a statement says with
what happens. Three kinds:

- `LocalQuadratics`: around each of finitely many points every loss is `v + g.d + d^T C d / 2`. The points
  are far apart, so the balls of the attack never meet, and the losses outside the balls do not matter.
- `LinearSoftmax`: cross-entropy of a linear classifier; its margins are affine, so the certificate R1 is
  complete.
- `LabelShift`: only labels and a finite distribution, for Lemma 5 and Theorem 6 (TRS, appendix A).

The arrays of the first and the last kind may carry leading batch axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logsumexp, softmax

from bounds.certificate import transfer_certificate
from bounds.must_transfer import must_transfer
from bounds.scenario import Bools, F, Floats, Labels, Scenario

__all__ = ["LabelShift", "LinearSoftmax", "LocalQuadratics", "Margins", "Scenario", "random_quadratics"]

_RADIUS_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Margins:
    """Loss margins `m_i = l_i(x, reached) - l_i(x, true)` of each point, expanded exactly to second order.

    Attributes:
        value: Shape (..., A, N).
        gradient: Shape (..., A, N, D).
        hessian: Shape (..., A, N, D, D): `m_i(x + d) = value + gradient.d + d^T hessian d / 2`.
    """

    value: Floats
    gradient: Floats
    hessian: Floats

    @property
    def lower_curvature(self) -> Floats:
        """Least kappa >= 0 with `m(x + d) >= m + d.g - kappa ||d||_2^2 / 2`, (..., A, N)."""
        return np.asarray(np.maximum(-np.linalg.eigvalsh(self.hessian)[..., 0], 0.0))

    @property
    def upper_curvature(self) -> Floats:
        """Least kappa^+ with `m(x + d) <= m + d.g + kappa^+ ||d||_2^2 / 2`, (..., A, N)."""
        return np.asarray(np.linalg.eigvalsh(self.hessian)[..., -1])

    def certified(self, eps: float) -> Bools:
        """Where no perturbation of l2 norm eps fools all models into these labels, by R1, (..., A)."""
        value, gradient, curvature = self._flat(self.lower_curvature)
        return np.asarray(transfer_certificate(value, gradient, curvature, eps)).reshape(
            self.value.shape[:-1]
        )

    def must_transfer(self, eps: float) -> tuple[Bools, Floats]:
        """Where some step in the l2 ball must fool all models (R7), (..., A), and that step, (..., A, D)."""
        value, gradient, curvature = self._flat(self.upper_curvature)
        found = must_transfer(value, gradient, curvature, eps)
        points = self.value.shape[:-1]
        return found.guaranteed.reshape(points), found.direction.reshape(*points, -1)

    def _flat(self, curvature: Floats) -> tuple[Floats, Floats, Floats]:
        models, dimension = self.gradient.shape[-2:]
        return (
            self.value.reshape(-1, models),
            self.gradient.reshape(-1, models, dimension),
            curvature.reshape(-1, models),
        )


@dataclass(frozen=True)
class LocalQuadratics:
    """N >= 2 models (two, for most statements) whose losses are quadratic around each of A points.

    Attributes:
        probability: Shape (..., A), summing to 1.
        label: True labels, shape (..., A).
        value: `l_i(x, k)`, shape (..., A, N, K).
        gradient: `grad l_i(x, k)`, shape (..., A, N, K, D).
        curvature: Symmetric Hessians of `l_i(., k)`, shape (..., A, N, K, D, D).

    Raises:
        ValueError: If shapes disagree, a number is NaN or infinite, or probabilities do not sum to 1.
    """

    probability: Floats
    label: Labels
    value: Floats
    gradient: Floats
    curvature: Floats

    def __post_init__(self) -> None:
        for name in ("probability", "value", "gradient", "curvature"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"expected finite numbers in {name}, got NaN or infinite entries")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "label", np.asarray(self.label, dtype=np.int64))
        if self.value.ndim < 2 or self.gradient.ndim < 1 or self.value.shape[-2] < 2:
            raise ValueError(f"expected values of at least two models, got shape {self.value.shape}")
        points, (models, labels) = self.probability.shape, self.value.shape[-2:]
        dimension = self.gradient.shape[-1]
        wanted = {
            "label": points,
            "value": (*points, models, labels),
            "gradient": (*points, models, labels, dimension),
            "curvature": (*points, models, labels, dimension, dimension),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {getattr(self, name).shape}")
        _check_distribution(self.probability)
        if self.label.size and not (self.label.min() >= 0 and self.label.max() < labels):
            raise ValueError(f"expected labels below {labels}, got {self.label.min()} to {self.label.max()}")

    @classmethod
    def affine(
        cls, probability: ArrayLike, label: ArrayLike, value: ArrayLike, gradient: ArrayLike
    ) -> LocalQuadratics:
        """A world without curvature: beta = 0, and each loss is affine (not the model linear)."""
        slopes = np.asarray(gradient, dtype=np.float64)
        flat = np.zeros((*slopes.shape, slopes.shape[-1]))
        return cls(np.asarray(probability), np.asarray(label), np.asarray(value), slopes, flat)

    @cached_property
    def smoothness(self) -> Floats:
        """Exact beta of each loss: its largest absolute curvature, (..., A, N, K)."""
        return np.abs(np.linalg.eigvalsh(self.curvature)).max(axis=-1)

    def loss_after(self, perturbation: ArrayLike) -> Floats:
        """Losses at the perturbed points, (..., A, N, K).

        Args:
            perturbation: delta per point, shape (..., A, D).
        """
        d = np.asarray(perturbation, dtype=np.float64)
        linear = np.einsum("...akcd,...ad->...akc", self.gradient, d)
        quadratic = np.einsum("...akcde,...ad,...ae->...akc", self.curvature, d, d, optimize=True)
        return self.value + linear + quadratic / 2.0

    def under(self, perturbation: ArrayLike, eps: float | Floats, *, target: int = 1) -> Scenario:
        """The scenario of an attack.

        Args:
            perturbation: delta per point, shape (..., A, D).
            eps: l2 radius, a number or shape (...).
            target: Target label of a targeted attack; the untargeted statements ignore it.

        Raises:
            ValueError: If a perturbation leaves the ball.
        """
        d = np.asarray(perturbation, dtype=np.float64)
        _check_ball(d, eps)
        return Scenario(
            self.probability,
            self.label,
            self.value,
            self.gradient,
            self.loss_after(d),
            self.smoothness,
            eps,
            target,
        )

    def margins(self, reached: ArrayLike) -> Margins:
        """Margins of all models towards one label per point.

        Args:
            reached: The label that the attacker wants, shape broadcastable to (..., A).
        """
        wanted = np.broadcast_to(np.asarray(reached, dtype=np.int64), self.label.shape)

        def difference(array: Floats, axes: int) -> Floats:
            index_shape = (*self.label.shape, *[1] * (axes + 2))
            at_wanted = np.take_along_axis(array, wanted.reshape(index_shape), axis=-1 - axes)
            at_label = np.take_along_axis(array, self.label.reshape(index_shape), axis=-1 - axes)
            return np.squeeze(at_wanted - at_label, axis=-1 - axes)

        return Margins(difference(self.value, 0), difference(self.gradient, 1), difference(self.curvature, 2))


@dataclass(frozen=True)
class LinearSoftmax:
    """Two linear classifiers under cross-entropy: logits `W_i x + b_i`.

    Attributes:
        weights: Shape (2, K, D).
        bias: Shape (2, K).
    """

    weights: Floats
    bias: Floats

    def logits(self, points: ArrayLike) -> Floats:
        """Shape (A, 2, K) at points of shape (A, D)."""
        return np.einsum("mkd,ad->amk", self.weights, np.asarray(points, dtype=np.float64)) + self.bias

    def loss(self, points: ArrayLike) -> Floats:
        """Cross-entropy per label, (A, 2, K)."""
        logits = self.logits(points)
        total: Floats = logsumexp(logits, axis=-1, keepdims=True)
        return total - logits

    def gradient(self, points: ArrayLike) -> Floats:
        """Gradients of the cross-entropy per label, (A, 2, K, D)."""
        mean = np.einsum("amk,mkd->amd", softmax(self.logits(points), axis=-1), self.weights)
        return mean[:, :, None, :] - self.weights[None]

    def smoothness(self, points: ArrayLike, eps: float) -> Floats:
        """Beta of each loss on the l2 balls around the points, (A, 2, K).

        Exact for two labels: `p (1 - p) ||w_0 - w_1||^2` at the logit gap nearest to 0 in the ball. For more
        labels the global `max_kl ||w_k - w_l||^2 / 4`, an upper bound (attained where two labels share all
        the mass).
        """
        points = np.asarray(points, dtype=np.float64)
        apart = np.linalg.norm(self.weights[:, :, None] - self.weights[:, None], axis=-1)
        widest = apart.max(axis=(1, 2))
        factor = np.full((len(points), 2), 0.25)
        if self.weights.shape[1] == 2:
            logits = self.logits(points)
            nearest = np.maximum(np.abs(logits[..., 0] - logits[..., 1]) - eps * widest, 0.0)
            factor = expit(nearest) * expit(-nearest)
        return np.repeat((factor * widest**2)[:, :, None], self.weights.shape[1], axis=2)

    def under(
        self, points: ArrayLike, label: ArrayLike, perturbation: ArrayLike, eps: float, *, target: int = 1
    ) -> Scenario:
        """The scenario of an attack on points of equal probability.

        Args:
            points: Shape (A, D).
            label: True labels, shape (A,).
            perturbation: Shape (A, D), l2 norms at most eps.
            eps: l2 radius.
            target: Target label.

        Raises:
            ValueError: If a perturbation leaves the ball.
        """
        points, d = np.asarray(points, dtype=np.float64), np.asarray(perturbation, dtype=np.float64)
        _check_ball(d, eps)
        return Scenario(
            np.full(len(points), 1.0 / len(points)),
            np.asarray(label, dtype=np.int64),
            self.loss(points),
            self.gradient(points),
            self.loss(points + d),
            self.smoothness(points, eps),
            eps,
            target,
        )

    def margins(self, points: ArrayLike, label: ArrayLike) -> tuple[Floats, Floats]:
        """Margins towards every wrong label, in label order: values (A, 2, K-1), gradients (A, 2, K-1, D)."""
        label = np.asarray(label, dtype=np.int64)
        wrong = np.array([[k for k in range(self.bias.shape[1]) if k != y] for y in label])
        logits = self.logits(points)
        true = np.take_along_axis(logits, label[:, None, None], axis=2)
        others = np.take_along_axis(logits, wrong[:, None, :], axis=2)
        slopes = self.weights[:, label].swapaxes(0, 1)[:, :, None] - self.weights[:, wrong].swapaxes(0, 1)
        return true - others, slopes


@dataclass(frozen=True)
class LabelShift:
    """Two classifiers, a truth and an attack on a finite input set (TRS, appendix A).

    Attributes:
        probability: Shape (..., X), summing to 1.
        truth: True labels, shape (..., X).
        f: Labels of F, shape (..., X).
        g: Labels of G, shape (..., X).
        attack: The attack as a map of the input set into itself: indices, shape (..., X).

    Raises:
        ValueError: If shapes disagree, probabilities do not sum to 1, or the attack leaves the set.
    """

    probability: Floats
    truth: Labels
    f: Labels
    g: Labels
    attack: Labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", np.asarray(self.probability, dtype=np.float64))
        for name in ("truth", "f", "g", "attack"):
            array = np.asarray(getattr(self, name), dtype=np.int64)
            if array.shape != self.probability.shape:
                raise ValueError(f"expected {name} of shape {self.probability.shape}, got {array.shape}")
            object.__setattr__(self, name, array)
        _check_distribution(self.probability)
        if not ((self.attack >= 0) & (self.attack < self.probability.shape[-1])).all():
            raise ValueError(
                f"expected an attack within 0 .. {self.probability.shape[-1] - 1}, got {self.attack}"
            )

    def rate(self, event: Bools) -> Floats:
        """Probability of an event given input by input, (...)."""
        return (self.probability * event).sum(axis=-1)

    @property
    def attacked_f(self) -> Labels:
        """F(A(x)), (..., X)."""
        return np.take_along_axis(self.f, self.attack, axis=-1)

    @property
    def attacked_g(self) -> Labels:
        """G(A(x)), (..., X)."""
        return np.take_along_axis(self.g, self.attack, axis=-1)

    @property
    def rho(self) -> Floats:
        """Total variation distance between x and A(x): half the l1 distance (Definitions 8 and 9), (...)."""
        inputs = np.arange(self.probability.shape[-1])
        moved = (self.probability[..., None] * (self.attack[..., None] == inputs)).sum(axis=-2)
        return np.abs(moved - self.probability).sum(axis=-1) / 2.0

    @property
    def risk(self) -> Floats:
        """Eps of appendix A: the larger of the two risks, (...)."""
        return np.maximum(self.rate(self.f != self.truth), self.rate(self.g != self.truth))

    def quantities(self, statement: str) -> dict[str, Any]:
        """Exact quantities of Lemma 5 or a reading of Theorem 6: eps (the risk), rho and delta.

        Raises:
            ValueError: If the statement is none of these.
        """
        if statement not in _SHIFT_SUBJECTS:
            raise ValueError(f"expected one of {', '.join(_SHIFT_SUBJECTS)}; got {statement!r}")
        values = {"eps": self.risk, "rho": self.rho}
        if statement != "lemma-5":
            # "mixed" is put to the test from Definition 2 on F to a change of label on G.
            unchanged = self.attacked_f == (self.f if statement == "theorem-6" else self.truth)
            values["delta"] = self.rate(unchanged)
        values = {name: np.clip(value, 0.0, 1.0) for name, value in values.items()}
        return values if self.probability.ndim > 1 else {name: float(value) for name, value in values.items()}

    def subject(self, statement: str) -> Any:
        """The probability that Lemma 5 or a reading of Theorem 6 bounds.

        Raises:
            ValueError: If the statement is none of these.
        """
        if statement not in _SHIFT_SUBJECTS:
            raise ValueError(f"expected one of {', '.join(_SHIFT_SUBJECTS)}; got {statement!r}")
        rate = self.rate(_SHIFT_SUBJECTS[statement](self))
        return rate if self.probability.ndim > 1 else float(rate)


def random_quadratics(
    rng: np.random.Generator, worlds: int, *, points: int, labels: int, dimension: int, eps: float = 1.0
) -> LocalQuadratics:
    """A batch of random worlds in the regimes where the statements of section 4 have something to say.

    Scales of gradients and curvatures are log-uniform, so that eps B and beta eps^2 range from negligible to
    dominant against the losses; gradients of F and G range from opposite to equal; losses are nonnegative at
    the points. In some worlds the gradients at the wrong labels oppose the one at the true label at equal
    length, the extreme of Theorems 3 and 4; in half of them one label carries nearly all of the gradient and
    both models nearly share it, the regime of Theorems 1 and 2.

    Args:
        rng: Source of randomness.
        worlds: Size of the batch.
        points: Number A of points.
        labels: Number K of labels.
        dimension: Dimension D of the inputs.
        eps: The radius that the scales are relative to.
    """
    shape = (worlds, points, 2, labels)
    per_world = (worlds, 1, 1, 1)
    probability = rng.dirichlet(np.ones(points), size=worlds)
    label = rng.integers(0, labels, size=(worlds, points))
    is_label = (label[:, :, None] == np.arange(labels))[:, :, None, :]

    shared = _unit(rng.normal(size=(worlds, points, 1, labels, dimension)))
    opposed = rng.random(per_world) < 0.3
    axis = np.where(is_label, 1.0, -1.0)[..., None] * shared[:, :, :, :1]
    shared = np.where(opposed[..., None], axis, shared)
    noise = _unit(rng.normal(size=(*shape, dimension)))
    sign = np.where(np.arange(2) == F, 1.0, rng.choice([1.0, -1.0], size=(worlds, 1, 1)))[:, :, :, None, None]
    alike = rng.choice([0.0, 0.7, 0.98, 1.0], size=(worlds, 1, 1, 1, 1))
    direction = _unit(alike * sign * shared + (1.0 - alike) * noise + 1e-12)
    scale = 10.0 ** rng.uniform(-2.5, 0.3, size=per_world) / eps
    length = scale * np.where(opposed, 1.0, rng.uniform(0.2, 1.0, size=shape))
    value = np.where(is_label, rng.uniform(0.0, 0.4, size=shape), rng.uniform(0.3, 2.0, size=shape))

    steep = rng.random(per_world) < 0.5
    active = rng.integers(0, 2, size=per_world) == 1
    carries = np.where(active, is_label, np.arange(labels) == 1)
    length = np.where(steep & ~carries, 0.01 * length, np.where(steep, 1.0 / eps, length))
    near = np.where(np.arange(2)[:, None] == F, rng.uniform(0.3, 1.0, shape), rng.uniform(0.0, 0.6, shape))
    value = np.where(steep, np.where(is_label, 0.0, near) + rng.uniform(0.0, 0.1, size=per_world), value)

    half = rng.normal(size=(*shape, dimension, dimension))
    symmetric = (half + half.swapaxes(-1, -2)) / 2.0
    bend = (
        10.0 ** rng.uniform(-3.5, 0.0, size=per_world) * rng.choice([0.0, 1.0, 1.0], size=per_world) / eps**2
    )
    return LocalQuadratics(
        probability, label, value, direction * length[..., None], symmetric * bend[..., None, None]
    )


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _check_ball(perturbation: Floats, eps: float | Floats) -> None:
    size = np.linalg.norm(perturbation, axis=-1)
    if not (size <= np.asarray(eps)[..., None] * (1.0 + _RADIUS_TOLERANCE)).all():
        raise ValueError(f"expected perturbations of l2 norm at most eps = {eps}, got one of {size.max()}")


def _check_distribution(probability: Floats) -> None:
    if (probability < 0).any() or (np.abs(probability.sum(axis=-1) - 1.0) > 1e-9).any():
        raise ValueError(f"expected probabilities >= 0 that sum to 1, got sums {probability.sum(axis=-1)}")


_SHIFT_SUBJECTS: dict[str, Callable[[LabelShift], Bools]] = {
    "lemma-5": lambda w: w.attacked_f != w.attacked_g,
    "theorem-6": lambda w: w.attacked_g == w.g,
    "theorem-6-def2": lambda w: w.attacked_g == w.truth,
    "theorem-6-mixed": lambda w: w.attacked_g == w.g,
    "theorem-6-transfer": lambda w: (
        (w.f == w.truth) & (w.g == w.truth) & (w.attacked_f != w.truth) & (w.attacked_g != w.truth)
    ),
}
