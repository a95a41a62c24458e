"""Cosines and gradient norms over l2 balls, by ascent: what was seen lies inside the true range.

A search finds points, so its smallest cosine is an upper bound on the infimum over the ball and its largest
one a lower bound on the supremum, up to float64 rounding. Both err to the inside, which for Theorems 1-4 is
the wrong side; what they show is how far a certified range can be from the truth, and where a certificate
would be false.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.ascent import in_ball, project, unit
from estimators.batching import (
    DEFAULT_BATCH,
    check_inputs,
    check_labels,
    check_loss,
    double_copy,
    frozen,
)
from estimators.gradients import describe_labels, differentiate
from estimators.losses import LossFunction, cross_entropy, margin
from estimators.sharing import pairs_in_batches

Objective = Callable[[Tensor, Tensor], Tensor]
"""Inputs (m, *shape) and labels (m,) to one differentiable number per row (m,), NaN where undefined."""

# An ascent may travel this many radii in total, enough to cross the ball.
_TRAVEL = 2.5


@dataclass(frozen=True)
class BallSearch:
    """Gradient ascent in l2 balls, for all balls at once, from the best of the centre and random points.

    Attributes:
        points: Random starting points per ball, besides the centre.
        steps: Moves of an ascent, of lengths that shrink to nothing.
        seed: Of the starting points.

    Raises:
        ValueError: If a count does not fit.
    """

    points: int = 2
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points < 0 or self.steps < 1:
            raise ValueError(
                f"expected points >= 0 and steps >= 1, got {self.points} points and {self.steps} steps"
            )

    def extremes(
        self, objective: Objective, x: Tensor, y: Tensor, radius: float, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of an objective that was seen in each ball.

        Args:
            objective: Evaluated on batches in float64.
            x: Centres (n, *shape).
            y: Labels (n,), or (n, L).
            radius: Of the balls.
            batch_size: Pairs of a sample and a label treated at once.

        Returns:
            Two tensors in the shape of y, float64; NaN where the objective was undefined at all points seen.

        Raises:
            ValueError: If the radius is not positive and finite.
        """
        if not (radius > 0 and math.isfinite(radius)):
            raise ValueError(f"expected a positive finite l2 radius, got {radius}")
        generator = torch.Generator().manual_seed(self.seed)
        centres = x.detach().double()
        starts = [in_ball(centres, radius, generator) for _ in range(self.points)]

        def both(labels: Tensor, centre: Tensor, *offsets: Tensor) -> tuple[Tensor, Tensor]:
            batch = labels, centre, [torch.zeros_like(centre), *offsets]
            return -self._climb(objective, -1, *batch, radius), self._climb(objective, 1, *batch, radius)

        low, high = pairs_in_batches(both, batch_size, y, centres, *starts)
        return low.reshape(y.shape), high.reshape(y.shape)

    def _climb(
        self,
        objective: Objective,
        sign: int,
        labels: Tensor,
        centre: Tensor,
        starts: list[Tensor],
        radius: float,
    ) -> Tensor:
        """Largest sign * objective seen in each ball, (m,)."""
        values = torch.stack([_evaluate(objective, sign, centre + start, labels)[0] for start in starts])
        best, chosen = values.nan_to_num(nan=-math.inf).max(0)
        offset = torch.stack(starts)[chosen, torch.arange(len(labels), device=labels.device)]
        for step in range(self.steps):
            value, uphill = _evaluate(objective, sign, centre + offset, labels)
            best = torch.fmax(best, value)
            length = 2 * _TRAVEL * radius / self.steps * (1 - step / self.steps)
            moved = offset.flatten(1) + length * unit(uphill.flatten(1))
            offset = project(moved, radius).reshape(offset.shape)
        value, _ = _evaluate(objective, sign, centre + offset, labels)
        best = torch.fmax(best, value)
        return best.where(best > -math.inf, math.nan)


_DEFAULT = BallSearch()


def cosine_search(
    f: nn.Module,
    g: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    loss: LossFunction = cross_entropy,
    search: BallSearch = _DEFAULT,
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Tensor, Tensor]:
    """Smallest and largest cosine of two loss gradients that ascent finds in each l2 ball.

    The cosine of TRS, Definitions 4 and 5 (section 4.1), through the margins where the loss is cross-entropy,
    differentiated exactly by a double backward pass. Points where a gradient is zero have no cosine and are
    passed over. Between kinks a piecewise linear model gives the ascent little to follow.

    Args:
        f: First model, (n, *shape) to logits (n, K).
        g: Second model, with as many classes.
        x: Centres (n, *shape) in the models' dtype; the search runs in float64.
        y: Labels (n,), or (n, L).
        radius: l2 radius of the balls, positive.
        loss: Per-sample loss of both models.
        search: How hard to look.
        batch_size: Pairs of a sample and a label treated at once.

    Returns:
        Two tensors in the shape of y, float64: upper bounds on the infima and lower bounds on the suprema,
        NaN where no cosine was defined at any point seen.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the radius do not fit.
    """
    classes = check_inputs((f, g), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    for model in (f, g):
        check_loss(loss, model, x, classes)
    first, second = double_copy(f), double_copy(g)
    direction = margin if loss is cross_entropy else loss

    def cosine(inputs: Tensor, labels: Tensor) -> Tensor:
        rows = [
            differentiate(direction(model(inputs), labels), inputs, create_graph=True).flatten(1)
            for model in (first, second)
        ]
        lengths = [row.norm(dim=1) for row in rows]
        defined = (lengths[0] > 0) & (lengths[1] > 0)
        size = (lengths[0] * lengths[1]).where(defined, 1.0)
        return ((rows[0] * rows[1]).sum(1) / size).where(defined, math.nan)

    with frozen(first, second):
        low, high = search.extremes(cosine, x, y, radius, batch_size)
    return low.clamp(-1.0, 1.0), high.clamp(-1.0, 1.0)


def gradient_norm_search(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    search: BallSearch = _DEFAULT,
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Tensor, Tensor]:
    """Smallest and largest l2 norm of the loss gradient that ascent finds in each l2 ball.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss; cross-entropy goes through its margin.
        x: Centres (n, *shape) in the model's dtype; the search runs in float64.
        y: Labels (n,), or (n, L).
        radius: l2 radius of the balls, positive.
        search: How hard to look.
        batch_size: Pairs of a sample and a label treated at once.

    Returns:
        Two tensors in the shape of y, float64, loss per unit of distance: upper bounds on the infima and
        lower bounds on the suprema.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the radius do not fit.
    """
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    exact_model = double_copy(model)

    def norm(inputs: Tensor, labels: Tensor) -> Tensor:
        through = margin if loss is cross_entropy else loss
        values = through(exact_model(inputs), labels)
        length = differentiate(values, inputs, create_graph=True).flatten(1).norm(dim=1)
        return length * torch.sigmoid(values) if loss is cross_entropy else length

    with frozen(exact_model):
        return search.extremes(norm, x, y, radius, batch_size)


def similarity_over_balls(
    f: nn.Module,
    g: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    loss: LossFunction = cross_entropy,
    search: BallSearch = _DEFAULT,
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Estimate, Estimate]:
    """Infimum and supremum of the cosine over the union of l2 balls, from the inside (see `cosine_search`).

    Args:
        f: First model, (n, *shape) to logits (n, K).
        g: Second model, with as many classes.
        x: Centres (n, *shape) in the models' dtype.
        y: Labels (n,), or (n, L).
        radius: l2 radius of the balls, positive.
        loss: Per-sample loss of both models.
        search: How hard to look.
        batch_size: Pairs of a sample and a label treated at once.

    Returns:
        [-1, smallest seen] and [largest seen, 1].

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the radius do not fit, or no cosine is defined.
    """
    low, high = cosine_search(f, g, x, y, radius, loss=loss, search=search, batch_size=batch_size)
    seen = low.isfinite()
    if not seen.any():
        raise ValueError(f"expected a nonzero gradient pair, got a zero gradient in all {low.numel()} balls")
    where = _describe(x, y, radius)
    if not seen.all():
        where += f"; undefined at every point seen in {int((~seen).sum())} of {seen.numel()}"
    least, most = float(low[seen].min()), float(high[seen].max())
    return (
        Estimate(least, -1.0, least, 0.0, f"smallest cosine seen {where}", len(x), search.seed),
        Estimate(most, most, 1.0, 0.0, f"largest cosine seen {where}", len(x), search.seed),
    )


def gradient_norm_over_balls(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    search: BallSearch = _DEFAULT,
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """B over the union of l2 balls, from below (see `gradient_norm_search`).

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Centres (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L).
        radius: l2 radius of the balls, positive.
        search: How hard to look.
        batch_size: Pairs of a sample and a label treated at once.

    Returns:
        [largest seen, inf].

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the radius do not fit.
    """
    _, high = gradient_norm_search(model, loss, x, y, radius, search=search, batch_size=batch_size)
    method = f"largest l2 gradient norm seen {_describe(x, y, radius)}"
    return Estimate.at_least(float(high.max()), method, samples=len(x), seed=search.seed)


def _describe(x: Tensor, y: Tensor, radius: float) -> str:
    return f"by ascent in {len(x)} l2 balls of radius {radius:g}, {describe_labels(y)}"


def _evaluate(objective: Objective, sign: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sign times the objective, (m,), and its gradient, zero where undefined."""
    point = inputs.detach().requires_grad_(True)
    values = sign * objective(point, labels)
    slope = differentiate(values.where(~values.isnan(), 0.0), point)
    return values.detach(), slope.nan_to_num(0.0, 0.0, 0.0)
