"""Hypothesis strategies for attacking statements: small exact worlds, finite label maps, vectors.

Numbers are drawn as small integers over a power of two, so that counterexamples shrink to readable ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from bounds.directions import Directions, best_common_step
from bounds.scenario import Scenario
from bounds.worlds import LabelShift, LocalQuadratics

__all__ = ["AttackedWorld", "attacked_worlds", "directions", "label_shifts"]

#: Label that targeted attacks aim at.
TARGET = 1


@dataclass(frozen=True)
class AttackedWorld:
    """Models with locally quadratic losses, and a perturbation of every point.

    Attributes:
        world: The models and the data.
        perturbation: delta per point, shape (A, D).
        eps: l2 radius of the attack.
    """

    world: LocalQuadratics
    perturbation: NDArray[np.float64]
    eps: float

    @property
    def scenario(self) -> Scenario:
        """Losses before and after the attack."""
        return self.world.under(self.perturbation, self.eps, target=TARGET)

    def quantities(self, statement: str) -> dict[str, Any]:
        """Exact quantities of a statement about transfer, by name.

        Raises:
            ValueError: If the statement is not about two models under an attack.
        """
        if statement == "refined-r2":
            safe = self.world.margins(TARGET).certified(self.eps)
            return {"uncertified_rate": float(self.scenario.rate(self.scenario.proper & ~safe))}
        if statement == "refined-r7":
            reached, _ = self.world.margins(TARGET).must_transfer(self.eps)
            return {"must_transfer_rate": float(self.scenario.rate(self.scenario.proper & reached))}
        return self.scenario.quantities(statement)

    def subject(self, statement: str) -> float:
        """The true rate that the statement bounds; R7's is that of the joint attack that it constructs.

        Raises:
            ValueError: If the statement is not about two models under an attack.
        """
        if statement == "refined-r2":
            return self.scenario.subject("theorem-3-repaired")
        if statement == "refined-r7":
            _, steps = self.world.margins(TARGET).must_transfer(self.eps)
            after = self.world.under(steps, self.eps, target=TARGET)
            return float(after.rate(after.proper & after.transfers(targeted=False)))
        return float(self.scenario.subject(statement))


@cache
def _grid(size: int, lowest: int, highest: int, step: float) -> st.SearchStrategy[NDArray[np.float64]]:
    """Arrays of so many numbers between `lowest` and `highest` steps, each a multiple of the step.

    A byte each, which is drawn and shrunk much faster than an integer each. Byte 0 is the number nearest to
    zero, and the next ones alternate in sign.
    """
    by_size = sorted(range(lowest, highest + 1), key=lambda number: (abs(number), number))
    numbers = np.array(by_size, dtype=np.float64) * step

    def decode(raw: bytes) -> NDArray[np.float64]:
        return numbers[np.frombuffer(raw, dtype=np.uint8) % len(numbers)]

    return st.binary(min_size=size, max_size=size).map(decode)


def _labels(size: int, labels: int) -> st.SearchStrategy[NDArray[np.int64]]:
    """Arrays of so many labels."""
    return _grid(size, 0, labels - 1, 1.0).map(lambda numbers: numbers.astype(np.int64))


@st.composite
def attacked_worlds(draw: st.DrawFn, *, models: int = 2) -> AttackedWorld:
    """Worlds of 1 to 3 points, 2 or 3 labels and dimension 1 or 2, with attacks that know the models.

    Losses are nonnegative at the points; gradients range from negligible to dominant; the other models are
    unrelated to the first or share its gradients; curvature is absent, slight or strong; each point is left
    alone, moved along the first model's margin, along the sum of all margins, or anywhere in the ball.

    Args:
        draw: Supplied by Hypothesis.
        models: Number of models.
    """
    points, labels, dimension = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.integers(1, 2))
    weight = draw(_grid(points, 1, 4, 1.0))
    label = draw(_labels(points, labels))
    eps = draw(st.sampled_from([1.0, 0.5, 2.0]))
    shape = (points, models, labels)
    is_label = (label[:, None] == np.arange(labels))[:, None, :]
    low, high = (
        draw(_grid(points * models * labels, 0, 16, step)).reshape(shape) for step in (1 / 16, 1 / 4)
    )
    value = np.where(is_label, low, high)
    size = draw(st.sampled_from([1.0, 0.25, 1 / 16]))
    gradient = size * draw(_grid(value.size * dimension, -8, 8, 1 / 8)).reshape(*shape, dimension)
    if draw(st.booleans()):
        gradient[:, 1:] = gradient[:, :1]
    if draw(st.booleans()):  # only the label that matters to a lower bound has a sizeable gradient
        moving = draw(st.sampled_from([is_label, np.arange(labels) == TARGET]))
        gradient = np.where(moving[..., None], gradient, gradient / 64)
    bend = draw(st.sampled_from([0.0, 1 / 16, 1 / 2])) * size
    curvature = bend * draw(_grid(value.size, -2, 2, 1 / 2)).reshape(shape)
    world = LocalQuadratics(
        weight / weight.sum(), label, value, gradient, curvature[..., None, None] * np.eye(dimension)
    )
    steps = [_step(draw, world, point, eps) for point in range(points)]
    return AttackedWorld(world, np.stack(steps), eps)


def _step(draw: st.DrawFn, world: LocalQuadratics, point: int, eps: float) -> NDArray[np.float64]:
    """One point's perturbation, within the ball."""
    labels, dimension = world.gradient.shape[-2:]
    kind = draw(st.sampled_from(["none", "joint", "surrogate", "anywhere"]))
    if kind == "none":
        return np.zeros(dimension)
    if kind == "anywhere":
        direction = draw(_grid(dimension, -4, 4, 1.0))
    else:
        reached = draw(st.integers(0, labels - 1))
        slope = world.gradient[point, :, reached] - world.gradient[point, :, world.label[point]]
        direction = -(slope[0] if kind == "surrogate" else slope.sum(axis=0))
    length = np.linalg.norm(direction)
    reach = draw(st.sampled_from([1.0, 0.5])) * eps
    return direction * (reach / length) if length > 0 else np.zeros(dimension)


@st.composite
def label_shifts(draw: st.DrawFn) -> LabelShift:
    """Two classifiers, a truth and an attack as maps on 1 to 6 inputs with 2 or 3 labels."""
    inputs, labels = draw(st.integers(1, 6)), draw(st.integers(2, 3))
    weight = draw(_grid(inputs, 1, 4, 1.0))
    predictions = _labels(inputs, labels)
    truth = draw(predictions)
    # Mostly right classifiers: a model's label is the truth plus a shift that shrinks to zero.
    f, g = ((truth + draw(predictions) * draw(st.booleans())) % labels for _ in range(2))
    return LabelShift(weight / weight.sum(), truth, f, g, draw(_labels(inputs, inputs)))


@st.composite
def directions(draw: st.DrawFn) -> Directions:
    """Vectors in one to three dimensions; the perturbation is free, or the best for both directions."""
    dimension = draw(st.integers(1, 3))
    nonzero = _grid(dimension, -4, 4, 1.0).filter(lambda vector: bool(vector.any()))
    first, second = draw(nonzero), draw(nonzero)
    delta = draw(_grid(dimension, -8, 8, 1 / 4))
    if draw(st.booleans()):
        delta = best_common_step(first, second, float(np.abs(delta).max()))
    slack, threshold, similarity = (draw(st.integers(*ends)) / 8 for ends in ((0, 4), (-16, 16), (-8, 8)))
    return Directions(delta, first, second, slack, threshold, similarity)
