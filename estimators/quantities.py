"""All that a statement needs about two models and an attack, measured and keyed by the statement's names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import DEFAULT_BATCH, Support
from estimators.distribution import Distribution, Range
from estimators.losses import LossFunction, cross_entropy
from estimators.margins import LossGaps, half_square, is_label
from estimators.points import CleanPoints, LossTable, measure_attack, measure_points
from estimators.risk import known_range
from estimators.similarity import cosine_extremes

Quantities = Mapping[str, Estimate]

# Allowance for float32 rounding in what holds of cross-entropy exactly.
_ROUNDING = 1e-6

# Weights of F's margin that R4 tries; the middle comes first, so that ties do not leave a model out.
_WEIGHTS = sorted((step / 20 for step in range(21)), key=lambda weight: abs(weight - 0.5))


def measure_quantities(
    f: nn.Module,
    g: nn.Module,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    *,
    eps: float,
    beta: Estimate,
    target: Tensor | int | None = None,
    loss: LossFunction = cross_entropy,
    loss_range: Range | None = None,
    support: Support = "finite",
    confidence: float = 0.95,
    batch_size: int = DEFAULT_BATCH,
) -> dict[str, dict[str, Estimate]]:
    """Measure what the statements take, for a surrogate F, a target model G and an attack on F.

    One name can mean different numbers in different statements (c_G in Theorem 1 as printed and repaired, xi
    and l_min over all points or over those that can transfer), so the result is keyed by statement:
    `bounds.evaluate(statement, measured[statement])`.

    Args:
        f: Surrogate, (n, *shape) to logits (n, K).
        g: Target model, with as many classes.
        x: Clean inputs (n, *shape) in the models' dtype.
        y: True labels (n,).
        x_adv: Attacked inputs (n, *shape) with ||x_adv - x||_2 <= eps.
        eps: l2 radius of the attack, positive.
        beta: Smoothness of both losses on the attack's segments, at the labels that the proofs use.
        target: Target label y_t, (n,) or one for all, of a targeted attack; None for an untargeted one.
        loss: Per-sample loss of both models.
        loss_range: Certified range of both models' losses over the domain; it gives the mean losses of a
            population an interval.
        support: "finite": the distribution is uniform on the given points, and all is exact up to rounding,
            given beta. "population": they are drawn independently; rates get Clopper-Pearson intervals, means
            betting intervals where a range is certified, and extremes (S, B, l_min, c_F, c_G) err to the
            inside, so that what they imply is heuristic unless certified ones replace them.
        confidence: Of every interval in "population".
        batch_size: Pairs of a sample and a label treated at once.

    Returns:
        For each statement about such an attack its quantities by name. Statements about the points that can
        transfer are missing where there is no such point: nothing transfers then.

    Raises:
        TypeError: If inputs are not floating-point or labels not integer.
        ValueError: If shapes, labels, values, eps, the support's name or the confidence do not fit, an attack
            leaves the ball, or a loss lies outside `loss_range`.
    """
    about = Distribution(support, confidence)
    attacked = measure_attack((f, g), x, x_adv, eps, loss=loss, batch_size=batch_size)
    points = measure_points((f, g), x, y, loss=loss, target=target, batch_size=batch_size)
    pair = Pair(points, about, targeted=target is not None, loss_range=loss_range)
    return pair.quantities(attacked, eps=eps, beta=beta)


@dataclass(frozen=True)
class Pair:
    """Two of the models that were measured at common points, and one kind of attack.

    What depends on the clean points alone is worked out once, on first use.

    Attributes:
        points: The measurements, with targets for a targeted attack.
        about: The distribution of the points.
        targeted: Whether the attack aims at the points' targets.
        f: Position of the surrogate among the models.
        g: Position of the target model.
        loss_range: Certified range of both models' losses over the domain, if there is one.
    """

    points: CleanPoints
    about: Distribution
    targeted: bool = False
    f: int = 0
    g: int = 1
    loss_range: Range | None = None

    def quantities(
        self, attacked: LossTable, *, eps: float, beta: Estimate
    ) -> dict[str, dict[str, Estimate]]:
        """The quantities of every statement about an attack on F, by statement and name.

        Args:
            attacked: Losses of the same models at the attacked points.
            eps: l2 radius of the attack.
            beta: Smoothness of both losses on the attack's segments.
        """
        given = {"eps": Estimate.exact(eps, "radius of the attack"), "beta": beta}
        measured = self._lower(attacked, eps, given)
        for statement, upper in self.upper_bounds.items():
            measured[statement] = {**upper, **given}
        if "refined-r4" in measured:
            measured["refined-r4"] |= self._mixture(eps, beta)
        return measured

    @cached_property
    def upper_bounds(self) -> dict[str, Quantities]:
        """What the upper bounds take from the clean points."""
        printed = {
            "xi_F": self.mean_loss(self.f),
            "xi_G": self.mean_loss(self.g),
            "l_min": self.minimum_loss(),
            "B": self.gradient_bound,
            "S_upper": self.similarity_at_truth[1],
        }
        found: dict[str, Quantities] = {"theorem-3" if self.targeted else "theorem-4": printed}
        if not self.event.any():
            return found
        starred = {
            **printed,
            "xi_F": self.mean_loss(self.f, self.event),
            "xi_G": self.mean_loss(self.g, self.event),
            "l_min": self.minimum_loss(self.event),
        }
        if not self.targeted:
            return found | dict.fromkeys(("theorem-4-repaired", "refined-r3-untargeted"), starred)
        both_labels = {"S_upper": self.similarity_at_both_labels}
        return found | {
            "theorem-3-repaired": starred,
            "refined-r3": {**starred, **both_labels},
            "refined-r4": {
                "xi_F": starred["xi_F"],
                "xi_G": starred["xi_G"],
                "l_min_F": self.minimum_loss(self.event, (self.f,)),
                "l_min_G": self.minimum_loss(self.event, (self.g,)),
            },
            "refined-cantelli": {"B": self.gradient_bound, **both_labels, **self._two_moments()},
        }

    @cached_property
    def event(self) -> Tensor:
        """The points that can transfer: both models right and, targeted, another label than y_t, (n,)."""
        correct = self.points.correct
        event = correct[self.f] & correct[self.g]
        return event & (self.points.y != self._goal) if self.targeted else event

    @cached_property
    def risks(self) -> tuple[Estimate, Estimate]:
        """eta_F and eta_G."""
        f, g = (self.about.rate(~self.points.correct[model], "error rate") for model in (self.f, self.g))
        return f, g

    @cached_property
    def similarity_at_goal(self) -> tuple[Estimate, Estimate]:
        """S, infimum and supremum, at the label whose loss the attack moves: y_t, untargeted y."""
        return self._similarity(
            self._goal.unsqueeze(1), "the target label" if self.targeted else "the true label"
        )

    @cached_property
    def similarity_at_truth(self) -> tuple[Estimate, Estimate]:
        """S, infimum and supremum, at the true label."""
        if not self.targeted:
            return self.similarity_at_goal
        return self._similarity(self.points.y.unsqueeze(1), "the true label")

    @cached_property
    def similarity_at_both_labels(self) -> Estimate:
        """S, supremum, over the true label and y_t."""
        return self._similarity(self._both_labels, "the true label and the target")[1]

    @cached_property
    def gradient_bound(self) -> Estimate:
        """B of both models: over the true label and y_t, untargeted over all labels."""
        norms = self.points.norms[[self.f, self.g]]
        if self.targeted:
            norms = norms.gather(2, self._both_labels.expand(2, -1, -1))
        seen = (
            f"largest l2 gradient norm of both models over {self._count} points, {norms.shape[2]} labels each"
        )
        return self.about.supremum(norms, seen, samples=self._count)

    def mean_loss(self, model: int, event: Tensor | None = None) -> Estimate:
        """Mean loss xi of a model, or xi^E = E[l 1_E] for an event E that the model is right on, (n,).

        Where a model is right its cross-entropy is at most log K, so xi^E of a population has an interval
        even without a certified range.
        """
        points = self.points
        losses = points.losses[model].gather(1, points.y.unsqueeze(1)).squeeze(1)
        low, high = self._loss_range
        if event is None:
            return self.about.mean(losses, "mean loss", (low, high))
        if points.loss is cross_entropy:
            high = min(high, math.log(points.losses.shape[2]) + _ROUNDING)
        name = "mean loss, 0 off the points that can transfer,"
        return self.about.mean(losses.where(event, 0.0), name, (min(low, 0.0), max(high, 0.0)))

    def minimum_loss(self, event: Tensor | None = None, models: Sequence[int] | None = None) -> Estimate:
        """l_min over the labels that the attack may reach, over all points or those of an event (n,).

        On points that a model gets right, another label's cross-entropy is at least log 2.

        Args:
            event: The points, all by default. There, both models are right and the labels reached are wrong.
            models: Whose losses; both by default.
        """
        losses = self.points.losses[list(models or (self.f, self.g))]
        wanted = self._is_goal if self.targeted else ~self._is_goal
        floor, seen = self._loss_range[0], "all points"
        if event is not None:
            wanted, seen = wanted & event.unsqueeze(1), f"the {int(event.sum())} points that can transfer"
            if self.points.loss is cross_entropy:
                floor = math.log(2) - _ROUNDING
        labels = "the target label" if self.targeted else "labels y' != y"
        name = f"smallest loss over {seen} and {labels}"
        return self.about.infimum(losses[:, wanted], name, floor, samples=self._count)

    def _lower(self, attacked: LossTable, eps: float, given: Quantities) -> dict[str, dict[str, Estimate]]:
        """The quantities of the lower bounds."""
        fooled = attacked.predictions[self.f] == self._goal
        fooled = fooled if self.targeted else ~fooled
        shared = {
            **given,
            "alpha": self.about.rate(~fooled, "attack failure rate"),
            "eta_F": self.risks[0],
            "eta_G": self.risks[1],
            "S_lower": self.similarity_at_goal[0],
        }
        bend = half_square(given["beta"], eps)
        others, every = ~self._is_goal, torch.ones_like(self._is_goal)
        if self.targeted:
            c_f = self._gaps(attacked, self.f, every).extreme(1, bend, "c_F of Theorem 1", self.about)
            gaps = {"theorem-1": every, "theorem-1-repaired": others}
            return {
                statement: {
                    **shared,
                    "c_F": c_f,
                    "c_G": self._gaps(attacked, self.g, compared).extreme(
                        -1, bend, f"c_G of {statement}", self.about
                    ),
                }
                for statement, compared in gaps.items()
            }
        of_f, of_g = (self._gaps(attacked, model, others) for model in (self.f, self.g))
        untargeted = {
            **shared,
            "c_F": of_f.extreme(-1, bend, "c_F of Theorem 2", self.about),
            "c_G": of_g.extreme(1, bend, "c_G of Theorem 2", self.about),
        }
        linked = self._linked_rate(fooled & self.event, of_f, of_g, bend, eps)
        return {
            "theorem-2": untargeted,
            "refined-r6": dict(untargeted),
            "refined-r6-pointwise": {"linked_rate": linked, **given},
        }

    def _linked_rate(
        self, fooled: Tensor, of_f: LossGaps, of_g: LossGaps, bend: Estimate, eps: float
    ) -> Estimate:
        """R6: rate of points where F is fooled and f - eps sqrt(2 - 2 cos) > g; it falls as beta grows."""
        cosine = self._cosines.gather(1, self.points.y.unsqueeze(1)).squeeze(1).nan_to_num(nan=-1.0)
        turn = eps * (2 - 2 * cosine).sqrt()

        def at(curvature: float) -> Estimate:
            # Without a gradient f is -inf and g inf, so such points are not counted.
            linked = of_f.quotients(-1, curvature) - turn > of_g.quotients(1, curvature)
            return self.about.rate(fooled & linked, "points that fool F and must fool G")

        value, low, high = at(bend.value), at(bend.upper), at(bend.lower)
        return Estimate(
            value.value,
            low.lower,
            high.upper,
            failure_probability=min(1.0, value.failure_probability + bend.failure_probability),
            method=f"{value.method}; beta: {bend.method}",
            samples=self._count,
        )

    def _mixture(self, eps: float, beta: Estimate) -> dict[str, Estimate]:
        """R4's weight with the smallest bound, and the largest gradient of the margins so mixed."""
        products = self._margin_products[:, :, self.event]
        clean = self.upper_bounds["refined-r4"]
        best: tuple[float, dict[str, Estimate]] | None = None
        for weight in _WEIGHTS:
            mix = torch.tensor([weight, 1 - weight], dtype=products.dtype, device=products.device)
            lengths = torch.einsum("i,ijn,j->n", mix, products, mix).clamp_min(0.0).sqrt()
            name = f"largest gradient of the margins mixed by {weight:g} over {lengths.numel()} points"
            steepest = self.about.supremum(lengths, name, samples=self._count)
            xi, level = (
                weight * clean[f"{each}_F"].value + (1 - weight) * clean[f"{each}_G"].value
                for each in ("xi", "l_min")
            )
            rest = level - eps * steepest.value - beta.value * eps**2
            bound = xi / rest if rest > 0 else math.inf
            if best is None or bound < best[0]:
                known = Estimate.exact(weight, "the best of a grid at the point estimates")
                best = bound, {"weight": known, "mixed_gradient": steepest}
        assert best is not None
        return best[1]

    def _two_moments(self) -> dict[str, Estimate]:
        """Cantelli's: Pr(E), and mean and deviation of m_F + m_G given E."""
        points = self.points
        both = points.losses[[self.f, self.g]]
        at = [both.gather(2, labels.expand(2, -1).unsqueeze(2)).sum(0) for labels in (self._goal, points.y)]
        total = (at[0] - at[1]).squeeze(1)[self.event]
        floor = 0.0 if points.loss is cross_entropy else -math.inf
        deviation = float(total.std(correction=0))
        seen = f"standard deviation of the joint margin over {len(total)} points"
        return {
            "right_rate": self.about.rate(self.event, "points that can transfer"),
            "margin_mean": self.about.mean(total, "mean of the joint margin", (floor, math.inf)),
            "margin_deviation": Estimate.exact(deviation, f"{seen}; exact for this finite set up to rounding")
            if self.about.support == "finite"
            else Estimate(deviation, 0.0, math.inf, method=f"{seen}; without an interval for a population"),
        }

    def _gaps(self, attacked: LossTable, model: int, compared: Tensor) -> LossGaps:
        points = self.points
        return LossGaps.between(
            attacked.losses[model], points.losses[model], points.norms[model], self._goal, compared
        )

    def _similarity(self, labels: Tensor, name: str) -> tuple[Estimate, Estimate]:
        """Extremes of the cosine at labels (n, L)."""
        seen = f"over {self._count} points at {name}"
        found = self._cosines.gather(1, labels)
        if found.isnan().all():
            # A zero gradient adds nothing to the sums in Theorems 3 and 4, and voids c_F and c_G by itself.
            none = f"no cosine is defined {seen}: every pair holds a zero gradient"
            return Estimate.exact(1.0, none), Estimate.exact(-1.0, none)
        return cosine_extremes(found, self.about, seen, self._count)

    @property
    def _cosines(self) -> Tensor:
        return self.points.cosines[self.f, self.g]

    @property
    def _margin_products(self) -> Tensor:
        """Inner products (2, 2, n) of the gradients of the two models' margins."""
        products = self.points.margin_products
        assert products is not None  # a targeted pair has them
        members = [self.f, self.g]
        return products[members][:, members]

    @property
    def _goal(self) -> Tensor:
        """The label whose loss the attack moves, (n,): y_t in Theorem 1, y in Theorem 2."""
        return self._target if self.targeted else self.points.y

    @property
    def _target(self) -> Tensor:
        if self.points.target is None:
            raise ValueError("expected points that were measured with a target, for a targeted attack")
        return self.points.target

    @property
    def _is_goal(self) -> Tensor:
        return is_label(self._goal, self.points.losses.shape[2])

    @property
    def _both_labels(self) -> Tensor:
        return torch.stack([self.points.y, self._goal], 1)

    @property
    def _count(self) -> int:
        return len(self.points.y)

    @property
    def _loss_range(self) -> Range:
        return self.loss_range or known_range(self.points.loss)
