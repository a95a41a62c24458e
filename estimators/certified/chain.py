"""The chain of constants that can stand for beta: exact remainder <= segment <= ball <= whole space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    check_inputs,
    check_labels,
    check_same_shape,
    double_copy,
    frozen,
)
from estimators.certified.ball import ball_bounds
from estimators.certified.network import read_network
from estimators.certified.segment import DEFAULT_PIECES, segment_bounds
from estimators.certified.whole_space import whole_space_bounds
from estimators.gradients import describe_labels
from estimators.hessian import hessian_norms
from estimators.kinks import kinks, traced_kinks
from estimators.losses import LossFunction, is_cross_entropy
from estimators.remainder import remainder

# Steps that a float32 attack left this much longer than the radius count as inside; the ball is made to fit.
_RADIUS_SLACK = 1e-5


@dataclass(frozen=True)
class ProofLine:
    """A place where a proof replaces a loss along the attack's step by its Taylor expansion with beta.

    Attributes:
        theorem: Number of the theorem (TRS, section 4).
        label: The label at which the loss is expanded.
        lines: The equations (TRS, appendices B and C).
    """

    theorem: int
    label: str
    lines: str


PROOF_LINES = (
    ProofLine(
        1, "y_t", "Eq. 4 and 5, used as the left side of Eq. 6 for f and the right side of Eq. 7 in Eq. 8"
    ),
    ProofLine(2, "y", "the counterparts of Eq. 6 and 7, used in Eq. 13 and 14"),
    ProofLine(3, "y", "Eq. 20 for F and Eq. 21 for G"),
    ProofLine(3, "y_t", "the bound on c'_F after Eq. 25, used in Eq. 26, and its counterpart in Eq. 27"),
    ProofLine(4, "y", "Eq. 20 for F and Eq. 21 for G"),
    ProofLine(4, "y'", "the same with the label y' != y that the attack reaches in the place of y_t"),
)
"""All uses of beta in the proofs of Theorems 1 to 4: each is one expansion from x to A(x)."""


@dataclass(frozen=True)
class Link:
    """One constant of the chain.

    Attributes:
        name: "remainder", "segment", "ball" or "whole space".
        estimate: The constant, loss per squared l2 distance.
        holds_over: The set over which it bounds the curvature, in words.
        any_attack: Whether a statement about every attack within the radius may use it. If not, only a
            statement about the attack that was given.
    """

    name: str
    estimate: Estimate
    holds_over: str
    any_attack: bool


@dataclass(frozen=True)
class SmoothnessChain:
    """Four constants, each of which may replace beta in all of `PROOF_LINES`, the sharpest first.

    Attributes:
        remainder: Exactly what the proofs use, for the attack given.
        segment: Along the attack's steps.
        ball: In the balls around the inputs.
        whole_space: Over all inputs, Definition 6's own beta.
    """

    remainder: Link
    segment: Link
    ball: Link
    whole_space: Link

    @property
    def links(self) -> tuple[Link, ...]:
        """In this order; the upper ends never decrease, but for the remainder's allowance for rounding."""
        return self.remainder, self.segment, self.ball, self.whole_space


def smoothness_chain(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    radius: float,
    *,
    pieces: int = DEFAULT_PIECES,
    batch_size: int = DEFAULT_BATCH,
) -> SmoothnessChain:
    """What can stand for beta when Theorems 1 to 4 are evaluated for one attack, and for any attack.

    The labels have to be those of the proof's lines, see `PROOF_LINES`: y_t for Theorem 1, y for Theorem 2,
    and both for Theorems 3 and 4. The theorems ask for one beta for both models: take the larger of two.

    The certificates are for cross-entropy and layers with a Lipschitz gradient. For a model with kinks (ReLU,
    maximum pooling) the remainder alone is finite: evaluating the inequalities with it is legitimate, though
    the theorems' hypothesis fails.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Cross-entropy.
        x: Inputs (n, *shape) in the model's dtype.
        x_end: What the attack made of them, A(x), (n, *shape), within the radius.
        y: Labels (n,), or (n, L); every constant is the supremum over all of them.
        radius: l2 radius of the balls around x.
        pieces: Most pieces evaluated for a segment.
        batch_size: Samples treated at once.

    Returns:
        The four constants. The certified ones are `[sampled, certified]` up to float64 rounding, valued at
        the certified end: the segments' lower end is the largest curvature seen along them, that of the wider
        sets the largest Hessian norm at the segments' ends.

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the radius do not fit, a step is longer than the radius, the
            loss is not cross-entropy, or a layer is not supported.
    """
    classes = check_inputs((model,), x, batch_size)
    x_end = check_same_shape(x_end, x, "x_end")
    y = check_labels(y, x, classes, several=True)
    if not is_cross_entropy(loss):
        raise ValueError("expected cross-entropy for a chain of certificates, got another loss")
    exact_model, start, end = double_copy(model), x.detach().double(), x_end.detach().double()
    longest = _longest_step(start, end, radius)
    exact = remainder(model, loss, x, x_end, y, batch_size=batch_size)
    kinked = kinks(model) or traced_kinks(_first_logits(model, x))
    if kinked:
        why = (
            f"infinite: no Lipschitz gradient because of {', '.join(kinked)}; lower end: the exact remainder"
        )
        nothing = Estimate(math.inf, exact.lower, math.inf, method=why, samples=len(x))
        return _chain(exact, nothing, nothing, nothing, radius)

    network = read_network(model, x)
    everywhere = whole_space_bounds(network).smoothness[y]
    reach = max(radius, longest)
    balls = [
        ball_bounds(network, start, labels, reach, batch_size=batch_size).hessian
        for labels in y.reshape(len(y), -1).unbind(1)
    ]
    ball = torch.stack(balls, 1).reshape(y.shape).minimum(everywhere)
    along = segment_bounds(network, start, end, y, pieces=pieces)
    hessians = max(
        float(hessian_norms(exact_model, loss, points, y, batch_size=batch_size).max())
        for points in (start, end)
    )

    def estimate(upper: Tensor, seen: float, how: str) -> Estimate:
        top = float(upper.max())
        method = "; ".join((f"certified {how}, {describe_labels(y)}, up to float64 rounding", *network.notes))
        return Estimate(top, min(seen, top), top, method=method, samples=len(x))

    return _chain(
        exact,
        # Every step lies in its ball, so what holds there holds along it.
        estimate(along.upper.minimum(ball), float(along.lower.max()), "along the segments"),
        estimate(ball, hessians, f"over balls of radius {radius:g}"),
        estimate(everywhere, hessians, "over all inputs"),
        radius,
    )


def _longest_step(start: Tensor, end: Tensor, radius: float) -> float:
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"expected a positive finite radius, got {radius}")
    longest = float((end - start).flatten(1).norm(dim=1).max())
    if longest > radius * (1 + _RADIUS_SLACK):
        raise ValueError(f"expected steps within the radius {radius:g}, got one of length {longest:g}")
    return longest


def _first_logits(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with frozen(model):
            return model(x[:1])

    return run


def _chain(
    exact: Estimate, segment: Estimate, ball: Estimate, whole_space: Estimate, radius: float
) -> SmoothnessChain:
    return SmoothnessChain(
        Link("remainder", exact, "the given pairs x, A(x) alone", any_attack=False),
        Link("segment", segment, "the segments from x to A(x) of the given attack", any_attack=False),
        Link("ball", ball, f"the l2 balls of radius {radius:g} around the inputs", any_attack=True),
        Link("whole space", whole_space, "all inputs", any_attack=True),
    )
