"""Everything that Theorems 1-4 talk about, exactly, for models on finitely many points under one attack.

A `Scenario` holds losses before and after the attack, gradients and smoothness at each point of a finite
distribution; the quantities of a statement and the transfer rate that it bounds are then finite sums and
extremes without any estimation. `bounds.worlds` builds scenarios. Leading axes are a batch of independent
scenarios.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Labels = NDArray[np.int64]

#: Positions of the surrogate F and the target model G on the model axis.
F, G = 0, 1


@dataclass(frozen=True)
class Scenario:
    """N >= 2 models on the A points of a finite distribution, and one attack on them.

    The statements about a pair read the models F and G in the first two positions; only refined-r5 takes
    more.

    Attributes:
        probability: Shape (..., A). Points of probability 0 are outside the support and ignored.
        label: True labels, shape (..., A).
        loss: `l_i(x, k)`, shape (..., A, N, K).
        gradient: `grad l_i(x, k)`, shape (..., A, N, K, D).
        attacked_loss: `l_i(x^A, k)`, shape (..., A, N, K).
        smoothness: Least beta of `l_i(., k)` over the ball around x (l2), or an upper bound, shape (..., A,
            N, K).
        eps: l2 radius of the attack, a number or shape (...).
        target: The adversarial target label y_t.
    """

    probability: Floats
    label: Labels
    loss: Floats
    gradient: Floats
    attacked_loss: Floats
    smoothness: Floats
    eps: float | Floats
    target: int = 1

    @property
    def support(self) -> Bools:
        """Points of positive probability, (..., A)."""
        return self.probability > 0

    @property
    def is_label(self) -> Bools:
        """Which label is the true one, (..., A, K)."""
        return self.label[..., None] == np.arange(self.loss.shape[-1])

    @property
    def is_target(self) -> Bools:
        """Which label is the target, (..., A, K)."""
        return np.broadcast_to(np.arange(self.loss.shape[-1]) == self.target, self.is_label.shape)

    @property
    def prediction(self) -> Labels:
        """Label of least loss at x (the first among ties), (..., A, N)."""
        return self.loss.argmin(axis=-1)

    @property
    def attacked_prediction(self) -> Labels:
        """Label of least loss at the attacked point, (..., A, N)."""
        return self.attacked_loss.argmin(axis=-1)

    @property
    def both_correct(self) -> Bools:
        """The event E: all models predict the true label at x, (..., A)."""
        return (self.prediction == self.label[..., None]).all(axis=-1)

    @property
    def proper(self) -> Bools:
        """Support points that a targeted attack can transfer on: E and y != y_t, (..., A)."""
        return self.support & self.both_correct & (self.label != self.target)

    def rate(self, event: Bools) -> Floats:
        """Probability of an event given point by point, (...)."""
        return (self.probability * event).sum(axis=-1)

    def transfers(self, *, targeted: bool) -> Bools:
        """Definition 7, point by point, as printed: a targeted attack may start at y_t itself, (..., A)."""
        if targeted:
            return self.both_correct & (self.attacked_prediction == self.target).all(axis=-1)
        return self.both_correct & (self.attacked_prediction != self.label[..., None]).all(axis=-1)

    def failure_rate(self, *, targeted: bool) -> Floats:
        """Alpha of Definition 2: one minus the attack's success rate on F, over all points, (...)."""
        attacked = self.attacked_prediction[..., F]
        return 1.0 - self.rate(attacked == self.target if targeted else attacked != self.label)

    def risk(self, model: int) -> Floats:
        """Eta of Definition 3, (...)."""
        return self.rate(self.prediction[..., model] != self.label)

    def true_loss(self, model: int) -> Floats:
        """Loss at the true label, (..., A)."""
        return np.take_along_axis(self.loss[..., model, :], self.label[..., None], axis=-1)[..., 0]

    def empirical_risk(self, model: int, where: Bools | None = None) -> Floats:
        """Xi of Definition 3: mean true-label loss, counted as 0 outside `where`, (...)."""
        inside = np.ones_like(self.support) if where is None else where
        return (self.probability * np.where(inside, self.true_loss(model), 0.0)).sum(axis=-1)

    def supremum(self, values: Floats, where: Bools, *, empty: float) -> Floats:
        """Largest value over the support points (and labels) selected, (...); `empty` where there are none.

        Args:
            values: Shape (..., A) or (..., A, K).
            where: Same shape.
            empty: Result for an empty selection.
        """
        points = values.ndim - np.ndim(self.label)
        support = self.support if points == 0 else self.support[..., None]
        kept = np.where(where & support, values, -np.inf)
        top: Floats = kept.max(axis=-1) if points == 0 else kept.max(axis=(-2, -1))
        return np.where(np.isneginf(top), empty, top)

    def minimum_loss(self, where: Bools) -> Floats:
        """l_min: smallest loss of either model over selected points and labels (..., A, K); inf if none."""
        return -self.supremum(-self.loss.min(axis=-2), where, empty=-np.inf)

    def gradient_bound(self, labels: Bools) -> Floats:
        """B: largest gradient norm of either model over the support and the labels selected, (...)."""
        return self.supremum(np.linalg.norm(self.gradient, axis=-1).max(axis=-2), labels, empty=0.0)

    def smoothness_bound(self, labels: Bools) -> Floats:
        """Beta over the balls around the support and the labels selected, (...)."""
        return self.supremum(self.smoothness.max(axis=-2), labels, empty=0.0)

    @property
    def cosine(self) -> Floats:
        """Cosine between the gradients of F and G per label, NaN where one is zero, (..., A, K)."""
        return self.cosine_between(F, G)

    def cosine_between(self, first: int, second: int) -> Floats:
        """Cosine between two models' gradients per label, NaN where one is zero, (..., A, K)."""
        f, g = self.gradient[..., first, :, :], self.gradient[..., second, :, :]
        size = np.linalg.norm(f, axis=-1) * np.linalg.norm(g, axis=-1)
        inner = np.einsum("...d,...d->...", f, g)
        return np.clip(np.divide(inner, size, out=np.full_like(inner, np.nan), where=size > 0), -1.0, 1.0)

    def similarity(self, labels: Bools) -> tuple[Floats, Floats]:
        """Infimum and supremum of the cosine over the support and the labels selected, (...) each.

        Zero gradients have no cosine and are left out; with none left the pair is (1, -1).
        """
        cosine = self.cosine
        defined = labels & ~np.isnan(cosine)
        cosine = np.nan_to_num(cosine)
        return -self.supremum(-cosine, defined, empty=-1.0), self.supremum(cosine, defined, empty=-1.0)

    def loss_gap(self, model: int, labels: Bools, compared: Bools, sign: float) -> Floats:
        """The f and g of the proofs of Theorems 1 and 2, point by point, (..., A).

        `(min over compared k of l(x^A, k) - l(x, label) + sign * beta eps^2 / 2) / ||grad l(x, label)||`.

        Args:
            model: F or G.
            labels: The one label of each point whose gradient the attack moves along, (..., A, K).
            compared: Labels in the minimum, (..., A, K).
            sign: +1 or -1.
        """
        lowest = np.where(compared, self.attacked_loss[..., model, :], np.inf).min(axis=-1)
        start = np.where(labels, self.loss[..., model, :], 0.0).sum(axis=-1)
        norm = np.where(labels, np.linalg.norm(self.gradient[..., model, :, :], axis=-1), 0.0).sum(axis=-1)
        half = self.smoothness_bound(labels) * np.asarray(self.eps) ** 2 / 2.0
        # Without a gradient the constant is as bad as can be, which leaves the theorem inapplicable.
        worst = sign * np.inf
        gap = lowest - start + sign * half[..., None]
        return np.where(norm > 0, gap / np.where(norm > 0, norm, 1.0), worst)

    def quantities(self, statement: str) -> dict[str, Any]:
        """The exact value of every quantity of a statement, by the names of `bounds.STATEMENTS`.

        Extremes are taken over just the labels that the statement's proof uses, so that the statement is put
        to its hardest test: y_t for Theorem 1, y for Theorem 2, y and y_t for Theorem 3, all for Theorem 4.

        Args:
            statement: Id of the statement.

        Returns:
            Floats for a single scenario, arrays of shape (...) for a batch.

        Raises:
            ValueError: If the statement is none of those about scenarios.
        """
        if statement not in _QUANTITIES:
            raise ValueError(f"expected one of {', '.join(_QUANTITIES)}; got {statement!r}")
        values = _QUANTITIES[statement](self)
        shape = self.probability.shape[:-1]
        if not shape:
            return {name: float(value) for name, value in values.items()}
        return {name: np.broadcast_to(value, shape) for name, value in values.items()}

    def subject(self, statement: str) -> Any:
        """The true rate that a statement bounds: the transfer rate in the reading of the statement.

        Args:
            statement: Id of the statement.

        Returns:
            A float for a single scenario, an array of shape (...) for a batch.

        Raises:
            ValueError: If the statement is none of those about scenarios.
        """
        if statement not in _SUBJECTS:
            raise ValueError(f"expected one of {', '.join(_SUBJECTS)}; got {statement!r}")
        rate = self.rate(_SUBJECTS[statement](self))
        return rate if self.probability.ndim > 1 else float(rate)


def _risks(s: Scenario, *, targeted: bool) -> dict[str, Any]:
    return {
        "alpha": np.clip(s.failure_rate(targeted=targeted), 0.0, 1.0),
        "eta_F": s.risk(F),
        "eta_G": s.risk(G),
        "eps": s.eps,
    }


def _targeted_lower(s: Scenario, *, printed: bool) -> dict[str, Any]:
    everything = np.ones_like(s.is_label)
    f = s.loss_gap(F, s.is_target, everything, 1.0)
    g = s.loss_gap(G, s.is_target, everything if printed else ~s.is_target, -1.0)
    return {
        **_risks(s, targeted=True),
        "beta": s.smoothness_bound(s.is_target),
        "S_lower": s.similarity(s.is_target)[0],
        "c_F": s.supremum(f, s.support, empty=-np.inf),
        "c_G": -s.supremum(-g, s.support, empty=-np.inf),
    }


def _untargeted_lower(s: Scenario) -> dict[str, Any]:
    f = s.loss_gap(F, s.is_label, ~s.is_label, -1.0)
    g = s.loss_gap(G, s.is_label, ~s.is_label, 1.0)
    return {
        **_risks(s, targeted=False),
        "beta": s.smoothness_bound(s.is_label),
        "S_lower": s.similarity(s.is_label)[0],
        "c_F": -s.supremum(-f, s.support, empty=-np.inf),
        "c_G": s.supremum(g, s.support, empty=-np.inf),
    }


def _linked(s: Scenario) -> dict[str, Any]:
    """R6 point by point: both correct, F fooled, and the point's own constants force G to follow."""
    f = s.loss_gap(F, s.is_label, ~s.is_label, -1.0)
    g = s.loss_gap(G, s.is_label, ~s.is_label, 1.0)
    cosine = np.where(s.is_label, np.nan_to_num(s.cosine, nan=-1.0), 0.0).sum(axis=-1)
    eps = np.asarray(s.eps)[..., None]
    forced = f - eps * np.sqrt(2.0 - 2.0 * cosine) > g
    fooled = s.attacked_prediction[..., F] != s.label
    return {"linked_rate": s.rate(s.both_correct & fooled & forced), "beta": s.smoothness_bound(s.is_label)}


def _upper(s: Scenario, labels: Bools, where: Bools | None, wrong: Bools) -> dict[str, Any]:
    inside = np.ones_like(s.support) if where is None else where
    return {
        "xi_F": s.empirical_risk(F, where),
        "xi_G": s.empirical_risk(G, where),
        "l_min": s.minimum_loss(wrong & inside[..., None]),
        "eps": s.eps,
        "B": s.gradient_bound(labels),
        "S_upper": s.similarity(labels)[1],
        "beta": s.smoothness_bound(labels),
    }


def _targeted_upper(s: Scenario, where: Bools | None) -> dict[str, Any]:
    return _upper(s, s.is_label | s.is_target, where, s.is_target)


def _untargeted_upper(s: Scenario, where: Bools | None) -> dict[str, Any]:
    return _upper(s, np.ones_like(s.is_label), where, ~s.is_label)


def _margins(s: Scenario) -> tuple[Floats, Floats]:
    """Margins of F and G towards the target, (..., A, 2), and their gradients, (..., A, 2, D)."""
    reached, true = s.is_target[..., None, :], s.is_label[..., None, :]
    value = np.where(reached, s.loss, 0.0).sum(axis=-1) - np.where(true, s.loss, 0.0).sum(axis=-1)
    slope = np.where(reached[..., None], s.gradient, 0.0).sum(axis=-2)
    slope = slope - np.where(true[..., None], s.gradient, 0.0).sum(axis=-2)
    return value[..., :2], slope[..., :2, :]


def _mixture(s: Scenario) -> dict[str, Any]:
    """R4 at the weight, on a grid, whose bound is smallest."""
    slope, target = _margins(s)[1], s.is_target & s.proper[..., None]
    fixed = {
        "xi_F": s.empirical_risk(F, s.proper),
        "xi_G": s.empirical_risk(G, s.proper),
        "l_min_F": -s.supremum(-s.loss[..., F, :], target, empty=-np.inf),
        "l_min_G": -s.supremum(-s.loss[..., G, :], target, empty=-np.inf),
        "beta": s.smoothness_bound(s.is_label | s.is_target),
        "eps": np.asarray(s.eps),
    }
    best: dict[str, Any] = {}
    # The middle comes first, so that ties do not end at a weight that leaves a model out.
    for weight in sorted(np.linspace(0.0, 1.0, 11), key=lambda weight: abs(weight - 0.5)):
        mixed = np.linalg.norm(weight * slope[..., F, :] + (1.0 - weight) * slope[..., G, :], axis=-1)
        steepest = s.supremum(mixed, s.proper, empty=0.0)
        level = weight * fixed["l_min_F"] if weight > 0 else 0.0
        level = level + ((1.0 - weight) * fixed["l_min_G"] if weight < 1 else 0.0)
        rest = level - fixed["eps"] * steepest - fixed["beta"] * fixed["eps"] ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = np.where(
                rest > 0, (weight * fixed["xi_F"] + (1.0 - weight) * fixed["xi_G"]) / rest, np.inf
            )
        better = bound < best["bound"] if best else np.ones_like(bound, dtype=bool)
        new = {"weight": np.full_like(bound, weight), "mixed_gradient": steepest, "bound": bound}
        best = {name: np.where(better, new[name], best.get(name, new[name])) for name in new}
    return {**fixed, "weight": best["weight"], "mixed_gradient": best["mixed_gradient"]}


def _two_moments(s: Scenario) -> dict[str, Any]:
    total = _margins(s)[0].sum(axis=-1)
    right = s.rate(s.proper)
    share = s.probability * s.proper / np.where(right > 0, right, 1.0)[..., None]
    mean = (share * total).sum(axis=-1)
    upper = _targeted_upper(s, s.proper)
    return {
        "right_rate": np.clip(right, 0.0, 1.0),
        "margin_mean": mean,
        "margin_deviation": np.sqrt((share * (total - mean[..., None]) ** 2).sum(axis=-1)),
        **{name: upper[name] for name in ("eps", "B", "S_upper", "beta")},
    }


def _many_models(s: Scenario) -> dict[str, Any]:
    labels, models = s.is_label | s.is_target, s.loss.shape[-2]
    cosines = np.stack([s.cosine_between(i, j) for i, j in itertools.combinations(range(models), 2)])
    cosine = np.where(np.isnan(cosines), -1.0, cosines).max(axis=0)
    upper = _targeted_upper(s, s.proper)
    return {
        **{name: upper[name] for name in ("l_min", "eps", "B", "beta")},
        "N": models,
        "xi_sum": sum(s.empirical_risk(model, s.proper) for model in range(models)),
        "S_upper": s.supremum(cosine, labels, empty=-1.0),
    }


_QUANTITIES: dict[str, Callable[[Scenario], dict[str, Any]]] = {
    "theorem-1": lambda s: _targeted_lower(s, printed=True),
    "theorem-1-repaired": lambda s: _targeted_lower(s, printed=False),
    "theorem-2": _untargeted_lower,
    "refined-r6": _untargeted_lower,
    "refined-r6-pointwise": _linked,
    "theorem-3": lambda s: _targeted_upper(s, None),
    "theorem-3-repaired": lambda s: _targeted_upper(s, s.proper),
    "theorem-4": lambda s: _untargeted_upper(s, None),
    "theorem-4-repaired": lambda s: _untargeted_upper(s, s.both_correct),
    "refined-r3": lambda s: _targeted_upper(s, s.proper),
    "refined-r3-untargeted": lambda s: _untargeted_upper(s, s.both_correct),
    "refined-r4": _mixture,
    "refined-cantelli": _two_moments,
    "refined-r5": _many_models,
}

_SUBJECTS: dict[str, Callable[[Scenario], Bools]] = {
    **dict.fromkeys(("theorem-1", "theorem-1-repaired", "theorem-3"), lambda s: s.transfers(targeted=True)),
    **dict.fromkeys(
        ("theorem-3-repaired", "refined-r3", "refined-r4", "refined-cantelli", "refined-r5"),
        lambda s: s.proper & s.transfers(targeted=True),
    ),
    **dict.fromkeys(
        (
            "theorem-2",
            "refined-r6",
            "refined-r6-pointwise",
            "theorem-4",
            "theorem-4-repaired",
            "refined-r3-untargeted",
        ),
        lambda s: s.transfers(targeted=False),
    ),
}
