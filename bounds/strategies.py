"""Hypothesis strategies for attacking statements: small exact worlds, finite label maps, vectors.

Numbers are drawn as small integers over a power of two, so that counterexamples shrink to readable ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from bounds.directions import Directions, best_common_step
from bounds.scenario import Scenario
from bounds.worlds import LabelShift, LocalQuadratics

__all__ = ["AttackedWorld", "attacked_worlds", "directions", "label_shifts", "world_sweeps"]

#: Label that targeted attacks aim at.
TARGET = 1


@dataclass(frozen=True)
class AttackedWorld:
    """Models with locally quadratic losses, and a perturbation of every point.

    Leading axes of the arrays, if any, are a batch of such worlds.

    Attributes:
        world: The models and the data.
        perturbation: delta per point, shape (..., A, D).
        eps: l2 radius of the attack.
    """

    world: LocalQuadratics
    perturbation: NDArray[np.float64]
    eps: float

    @cached_property
    def scenario(self) -> Scenario:
        """Losses before and after the attack."""
        return self.world.under(self.perturbation, self.eps, target=TARGET)

    def pick(self, index: int) -> AttackedWorld:
        """One world of a batch with one leading axis."""
        world = LocalQuadratics(*(getattr(self.world, part.name)[index] for part in fields(self.world)))
        return AttackedWorld(world, self.perturbation[index], self.eps)

    def quantities(self, statement: str) -> dict[str, Any]:
        """Exact quantities of a statement about transfer, by name.

        Raises:
            ValueError: If the statement is not about two models under an attack.
        """
        if statement == "refined-r2":
            safe = self.world.margins(TARGET).certified(self.eps)
            return {"uncertified_rate": self.scenario.rate(self.scenario.proper & ~safe)}
        if statement == "refined-r7":
            reached, _ = self.world.margins(TARGET).must_transfer(self.eps)
            return {"must_transfer_rate": self.scenario.rate(self.scenario.proper & reached)}
        return self.scenario.quantities(statement)

    def subject(self, statement: str) -> Any:
        """The true rate that the statement bounds; R7's is that of the joint attack that it constructs.

        Raises:
            ValueError: If the statement is not about two models under an attack.
        """
        if statement == "refined-r2":
            return self.scenario.subject("theorem-3-repaired")
        if statement == "refined-r7":
            _, steps = self.world.margins(TARGET).must_transfer(self.eps)
            after = self.world.under(steps, self.eps, target=TARGET)
            return after.rate(after.proper & after.transfers(targeted=False))
        return self.scenario.subject(statement)


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


#: True three times in four, and what an example shrinks to.
_MOSTLY = st.sampled_from([True, True, True, False])
#: By how much a barely successful attack overshoots.
_OVERSHOOT = 1 / 1024


#: Factors of gradients, curvatures and true-label losses, in every combination: what is tight at one scale
#: is not at another, and trying all scales of one drawn world costs little more than trying one.
_SCALES = np.array(list(product((1.0, 1 / 4, 1 / 32), (0.0, 1 / 16, 1 / 2, 2.0), (0.0, 1 / 16, 1 / 4, 1.0))))


@st.composite
def world_sweeps(draw: st.DrawFn, *, models: int = 2) -> AttackedWorld:
    """Batches of worlds of 1 to 3 points, 2 or 3 labels, dimension 1 or 2, and attacks that know the models.

    The worlds of a batch differ in the scale of gradients, curvatures and true-label losses. Losses are
    nonnegative at the points. Each point is left alone, moved along the first model's margin, along the sum
    of all margins, or anywhere in the ball; where the attack can succeed, the losses may be set so that it
    only just does, as the worst case of an upper bound has it.

    Args:
        draw: Supplied by Hypothesis.
        models: Number of models.
    """
    points, labels = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(2, 3))
    dimension = draw(st.integers(1, 2))
    weight = draw(_grid(points, 1, 4, 1.0))
    label = draw(_labels(points, labels))
    reached = draw(_labels(points * models, labels)).reshape(points, models)
    if draw(_MOSTLY):  # from one label to one other, as a targeted attack has it
        label, reached = np.zeros_like(label), np.full_like(reached, TARGET)
    eps = draw(st.sampled_from([1.0, 0.5, 2.0]))
    shape = (points, models, labels)
    is_label = np.broadcast_to((label[:, None] == np.arange(labels))[:, None, :], shape)
    low, high = (draw(_grid(is_label.size, 0, 16, step)).reshape(shape) for step in (1 / 16, 1 / 4))
    gradient, curvature = _slopes(draw, is_label, dimension)
    steep, bent, costly = (scale.reshape(-1, 1, 1, 1) for scale in _SCALES.T)
    batch = len(_SCALES)
    world = LocalQuadratics(
        np.tile(weight / weight.sum(), (batch, 1)),
        np.tile(label, (batch, 1)),
        np.where(is_label, costly * low, high),
        steep[..., None] * gradient,
        (bent * curvature)[..., None, None] * np.eye(dimension),
    )
    steps = np.stack([_step(draw, world, point, reached[point], eps) for point in range(points)], axis=1)
    if draw(_MOSTLY):
        world = _barely_fooled(world, steps, np.tile(reached, (batch, 1, 1)))
    return AttackedWorld(world, steps, eps)


@st.composite
def attacked_worlds(draw: st.DrawFn, *, models: int = 2) -> AttackedWorld:
    """Single worlds out of `world_sweeps`.

    Args:
        draw: Supplied by Hypothesis.
        models: Number of models.
    """
    return draw(world_sweeps(models=models)).pick(draw(st.integers(0, len(_SCALES) - 1)))


def _slopes(
    draw: st.DrawFn, is_label: NDArray[np.bool_], dimension: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradients (A, N, K, D) and curvatures (A, N, K), free or in a pattern in which some bound is tight."""
    shape = is_label.shape
    gradient = draw(_grid(is_label.size * dimension, -8, 8, 1 / 8)).reshape(*shape, dimension)
    curvature = draw(_grid(is_label.size, -2, 2, 1 / 2)).reshape(shape)
    if draw(st.booleans()):  # one length for all
        length = np.linalg.norm(gradient, axis=-1, keepdims=True)
        gradient = np.divide(gradient, length, out=np.zeros_like(gradient), where=length > 0)
    if draw(_MOSTLY):  # a wrong label's loss falls as fast as the true one's rises, and bends down
        at_label = np.where(is_label[..., None], gradient, 0.0).sum(axis=2, keepdims=True)
        gradient = np.where(is_label[..., None], gradient, -at_label)
        curvature = np.where(is_label, 1.0, -1.0)
    relation = draw(st.sampled_from([0.0, 1.0, -1.0]))
    if relation:  # the other models' gradients are the first one's, or opposite
        gradient[:, 1:] = relation * gradient[:, :1]
    everything, truth = np.ones(shape, dtype=bool), is_label
    target = np.broadcast_to(np.arange(shape[-1]) == TARGET, shape)
    some = draw(_grid(shape[1] * shape[2], 0, 1, 1.0)).reshape(shape[1:]) == 0.0
    # A lower bound wants one label to carry the gradient; Theorem 4 is tight where models differ in which.
    moving = draw(st.sampled_from([everything, truth, target, np.broadcast_to(some, shape)]))
    return np.where(moving[..., None], gradient, gradient / 64), curvature


def _step(
    draw: st.DrawFn, world: LocalQuadratics, point: int, reached: NDArray[np.int64], eps: float
) -> NDArray[np.float64]:
    """One point's perturbation in each world (W, D), within the ball, towards the labels to be reached."""
    kind = draw(st.sampled_from(["joint", "joint", "surrogate", "anywhere", "none"]))
    slope = world.gradient[:, point]
    downhill = slope[:, :, world.label[0, point]] - slope[:, np.arange(len(reached)), reached]
    free = draw(_grid(slope.shape[-1], -4, 4, 1.0))
    direction = {
        "none": np.zeros_like(downhill[:, 0]),
        "joint": downhill.sum(axis=1),
        "surrogate": downhill[:, 0],
        "anywhere": np.broadcast_to(free, downhill[:, 0].shape),
    }[kind]
    length = np.linalg.norm(direction, axis=-1, keepdims=True)
    reach = draw(st.sampled_from([1.0, 1.0, 0.5])) * eps
    return np.divide(direction * reach, length, out=np.zeros(direction.shape), where=length > 0)


def _barely_fooled(
    world: LocalQuadratics, steps: NDArray[np.float64], reached: NDArray[np.int64]
) -> LocalQuadratics:
    """The worlds with losses at the reached labels such that each attack that can succeed only just does."""
    change = world.loss_after(steps) - world.value
    truth = np.broadcast_to(world.label[..., None], reached.shape)

    def at(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.take_along_axis(values, labels[..., None], axis=-1)

    drop = at(change, truth) - at(change, reached) - _OVERSHOOT
    tight = np.where(drop > 0, at(world.value, truth) + drop, at(world.value, reached))
    value = world.value.copy()
    np.put_along_axis(value, reached[..., None], tight, axis=-1)
    return replace(world, value=value)


@st.composite
def label_shifts(draw: st.DrawFn) -> LabelShift:
    """Two classifiers, a truth and an attack on 1 to 6 inputs with 2 or 3 labels.

    The classifiers err anywhere or on one input at most; the attack is any map, a permutation or
    one that sends every input to the same; the inputs are equally likely or not.
    """
    inputs, labels = draw(st.integers(1, 6)), draw(st.integers(2, 3))
    weight = draw(_grid(inputs, 1, 4, 1.0)) if draw(st.booleans()) else np.ones(inputs)
    truth = draw(_labels(inputs, labels))
    f, g = ((truth + _errors(draw, inputs, labels)) % labels for _ in range(2))
    one_place = st.integers(0, inputs - 1).map(lambda place: np.full(inputs, place))
    permutation = st.permutations(range(inputs)).map(np.array)
    attack = draw(st.one_of(one_place, permutation, _labels(inputs, inputs)))
    return LabelShift(weight / weight.sum(), truth, f, g, attack)


def _errors(draw: st.DrawFn, inputs: int, labels: int) -> NDArray[np.int64]:
    """What to add to the truth: anything, or something on one input alone."""
    errors = draw(_labels(inputs, labels))
    if draw(st.booleans()):
        return errors
    return np.where(np.arange(inputs) == draw(st.integers(0, inputs - 1)), errors, 0)


@st.composite
def directions(draw: st.DrawFn) -> Directions:
    """Vectors in one to three dimensions; the perturbation is free, along both, or from one to the other."""
    dimension = draw(st.integers(1, 3))
    nonzero = _grid(dimension, -4, 4, 1.0).filter(lambda vector: bool(vector.any()))
    first, second = draw(nonzero), draw(nonzero)
    delta = draw(_grid(dimension, -8, 8, 1 / 4))
    length, kind = float(np.abs(delta).max()), draw(st.sampled_from(["free", "common", "across"]))
    if kind == "common":
        delta = best_common_step(first, second, length)
    if kind == "across":
        turn = second / np.linalg.norm(second) - first / np.linalg.norm(first)
        far = np.linalg.norm(turn)
        delta = turn * (length / far) if far > 0 else np.zeros(dimension)
    slack, threshold, similarity = (draw(st.integers(*ends)) / 8 for ends in ((0, 4), (-16, 16), (-8, 8)))
    return Directions(delta, first, second, slack, threshold, similarity)
