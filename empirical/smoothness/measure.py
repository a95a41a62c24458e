"""Measures what a smoothness study reports: sampled from below, certified from above, set by set."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

import estimators
from bounds import Estimate
from empirical.attacks import Attack, predict, run_attack
from empirical.data import Split
from empirical.rates import rate
from empirical.smoothness.result import BALLS, POINTS, SEGMENTS, SPACE, MemberStudy, PairStudy, Settings
from estimators.certified.ball import BallBounds, ball_bounds
from estimators.certified.cosine import cosines_between
from estimators.certified.network import Network, UnsupportedLayer, read_network
from estimators.certified.segment import largest_on_segments
from estimators.certified.whole_space import whole_space_bounds

# Smallest distance, as a share of the radius, at which a model with kinks is measured instead of its beta.
FINITE_SCALE = 1e-3
# Samples are taken in the model's own precision, certificates in float64.
SAMPLING_ROUNDING = 1e-4
# Points at which Hessians are looked at along each segment of the attack.
_SEGMENT_POINTS = 5
# Balls between two reports of progress: a convolutional network takes seconds for each.
_CERTIFIED_AT_ONCE = 16

Progress = Callable[[str], None]


@dataclass
class Subject:
    """A model under study, with what is known of it already, so that nothing is computed twice.

    Attributes:
        name: What to call it.
        model: Network from (n, *shape) to logits (n, K).
        network: Its graph; None where no certificate is wanted or possible.
        uncertified: Why it is not possible; empty where it is.
    """

    name: str
    model: nn.Module
    network: Network | None = None
    uncertified: str = ""
    _balls: BallBounds | None = field(default=None, repr=False)

    @classmethod
    def of(cls, name: str, model: nn.Module, x: Tensor, *, certify: bool) -> Subject:
        """Read the model as far as certificates need it."""
        if not certify:
            return cls(name, model, uncertified="not asked for (--certify)")
        try:
            return cls(name, model, read_network(model, x))
        except UnsupportedLayer as error:
            return cls(name, model, uncertified=str(error))

    def over_balls(
        self, data: Split, radius: float, progress: Callable[[str], None] = lambda message: None
    ) -> BallBounds | None:
        """Certified bounds over the balls, computed once; None where there are none."""
        if self.network is not None and self._balls is None:
            parts = []
            for start in range(0, len(data), _CERTIFIED_AT_ONCE):
                progress(f"{self.name}: balls certified at {start} of {len(data)} points")
                some = slice(start, start + _CERTIFIED_AT_ONCE)
                parts.append(ball_bounds(self.network, data.x[some], data.y[some], radius))
            self._balls = BallBounds(
                *(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(BallBounds))
            )
        return self._balls


def study_member(
    subject: Subject,
    data: Split,
    settings: Settings,
    *,
    pixel_range: tuple[float, float] | None,
    progress: Progress = lambda message: None,
) -> MemberStudy:
    """Bracket beta and B of one model over the points, an attack's segments, the balls and the whole space.

    Args:
        subject: The model, on the device of the data.
        data: Points and labels.
        settings: Radius, sampling method, labels, whether to certify, seed.
        pixel_range: Range of valid inputs, which the attack respects; the balls and the space do not.
        progress: Called with a line of text when a part begins.

    Returns:
        The study.
    """
    model, loss, x, y = subject.model, estimators.cross_entropy, data.x, data.y
    clock = _Clock(subject.name, progress)
    with clock.part("points"):
        sampled = estimators.sampled_smoothness(model, loss, x, y, seed=settings.seed)
        smoothness = {POINTS: sampled.estimate}
        if subject.network is not None:
            at_points = ball_bounds(subject.network, x, y, 0.0)
            smoothness[POINTS] = _closed(sampled.estimate, at_points.hessian)
        gradient = {POINTS: estimators.gradient_norm(model, loss, x, y)}
        kinks = estimators.kinks(model) or estimators.traced_kinks(lambda: model(x[:1]))
    remainder = None
    if settings.radius > 0:
        with clock.part("attack and its segments"):
            attack = Attack(method="pgd", norm="l2", eps=settings.radius, steps=50, seed=settings.seed)
            x_adv = run_attack(model, x, y, attack, pixel_range=pixel_range).x_adv
            remainder = estimators.remainder(model, loss, x, x_adv, y)
            smoothness[SEGMENTS] = _along(subject, x, x_adv, y, settings.seed)
        with clock.part("balls"):
            sampled = estimators.sampled_smoothness(
                model, loss, x, y, radius=settings.radius, method=settings.method, seed=settings.seed
            )
            smoothness[BALLS] = sampled.estimate
            gradient[BALLS] = estimators.gradient_norm_over_balls(model, loss, x, y, settings.radius)
            balls = subject.over_balls(data, settings.radius, progress)
            if balls is not None:
                smoothness[BALLS] = _closed(smoothness[BALLS], balls.hessian)
                gradient[BALLS] = _closed(gradient[BALLS], balls.gradient_high)
    if subject.network is not None:
        with clock.part("whole space"):
            bounds = whole_space_bounds(subject.network)
            smoothness[SPACE] = _closed(Estimate.largest(list(smoothness.values())), bounds.smoothness)
            gradient[SPACE] = _closed(Estimate.largest(list(gradient.values())), bounds.gradient)
    divergence: dict[str, Any] | None = None
    finite_scale: tuple[tuple[float, float], ...] = ()
    if kinks and settings.radius > 0:
        with clock.part("kinks"):
            divergence, finite_scale = _kink_evidence(model, data, settings)
    return MemberStudy(
        name=subject.name, digest=weights_digest(model), accuracy=_accuracy(model, data), kinks=kinks,
        uncertified=subject.uncertified, smoothness=smoothness, gradient=gradient, remainder=remainder,
        convergence=tuple(zip(sampled.convergence.budget, sampled.convergence.best, strict=True)),
        divergence=divergence, finite_scale=finite_scale, seconds=clock.seconds,
    )  # fmt: skip


def study_pairs(subjects: Sequence[Subject], data: Split, settings: Settings) -> tuple[PairStudy, ...]:
    """Cosines of the loss gradients of every pair, over the points and the balls.

    Members of different ensembles (the part of a name before its last slash) are not paired.

    Args:
        subjects: The models; where both have certified bounds over the balls, those close the range.
        data: Points and labels.
        settings: Radius and seed.

    Returns:
        One study for each pair, in the order of the models.
    """
    pairs = []
    for first, second in combinations(subjects, 2):
        if first.name.rpartition("/")[0] != second.name.rpartition("/")[0]:
            continue
        models = first.model, second.model
        ends = {POINTS: estimators.gradient_similarity(*models, data.x, data.y)}
        if settings.radius > 0:
            ends[BALLS] = estimators.similarity_over_balls(*models, data.x, data.y, settings.radius)
            balls = [each.over_balls(data, settings.radius) for each in (first, second)]
            if balls[0] is not None and balls[1] is not None:
                low, high = cosines_between(balls[0], balls[1])
                ends[BALLS] = _opened(*ends[BALLS], float(low.min()), float(high.max()))
        infimum, supremum = ({where: pair[end] for where, pair in ends.items()} for end in (0, 1))
        pairs.append(PairStudy(first.name, second.name, infimum, supremum))
    return tuple(pairs)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        host = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {host.dtype} {tuple(host.shape)}\n".encode())
        digest.update(host.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Clock:
    """Announces the parts of a measurement and keeps their times."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name, self.progress = name, progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        self.progress(f"{self.name}: {title}")
        start = time.perf_counter()
        yield
        self.seconds[title] = round(time.perf_counter() - start, 2)


def _along(subject: Subject, x: Tensor, x_adv: Tensor, y: Tensor, seed: int) -> Estimate:
    """Beta on the attack's segments: curvature in their own direction where certified, else Hessian norms."""
    if subject.network is not None:
        return largest_on_segments(subject.network, x.double(), x_adv.double(), y)
    return estimators.smoothness(
        subject.model, estimators.cross_entropy, x, y, method="segment", x_end=x_adv,
        points=_SEGMENT_POINTS, seed=seed,
    )  # fmt: skip


def _closed(sampled: Estimate, certified: Tensor) -> Estimate:
    """A sampled lower end and a certified upper one; a sample beyond its certificate is a defect.

    Beta stays infinite where the model has kinks, even if none is near the points.

    Raises:
        RuntimeError: If the sampled value leaves the certified range by more than rounding.
    """
    if math.isinf(sampled.value):
        return sampled
    upper = float(certified.max())
    if sampled.lower > upper * (1 + SAMPLING_ROUNDING):
        raise RuntimeError(
            f"expected no sample above the certified {upper:.8g}, got {sampled.lower:.8g} "
            f"({sampled.method}): this is a defect of the certificate or of the sampling"
        )
    method = f"certified up to float64 rounding; lower end: {sampled.method}"
    return replace(sampled, value=upper, lower=min(sampled.lower, upper), upper=upper, method=method)


def _opened(
    infimum: Estimate, supremum: Estimate, lowest: float, highest: float
) -> tuple[Estimate, Estimate]:
    """Certified outer ends for a sampled infimum and supremum.

    Raises:
        RuntimeError: If a sampled value leaves the certified range by more than rounding.
    """
    if infimum.value < lowest - SAMPLING_ROUNDING or supremum.value > highest + SAMPLING_ROUNDING:
        raise RuntimeError(
            f"expected cosines in the certified [{lowest:.8g}, {highest:.8g}], got {infimum.value:.8g} and "
            f"{supremum.value:.8g}: this is a defect of the certificate or of the sampling"
        )
    return (
        replace(infimum, lower=min(lowest, infimum.value), method=f"{infimum.method}; lower end certified"),
        replace(
            supremum, upper=max(highest, supremum.value), method=f"{supremum.method}; upper end certified"
        ),
    )


def _kink_evidence(
    model: nn.Module, data: Split, settings: Settings
) -> tuple[dict[str, Any], tuple[tuple[float, float], ...]]:
    """The divergence test, and the largest quotients at distances of at least h for shrinking h."""
    loss = estimators.cross_entropy
    test = estimators.divergence_test(model, loss, data.x, data.y, radius=settings.radius, seed=settings.seed)
    found = estimators.finite_scale_smoothness(
        model, loss, data.x, data.y, scale=FINITE_SCALE * settings.radius, radius=settings.radius,
        seed=settings.seed,
    )  # fmt: skip
    return asdict(test), tuple(zip(found.scales, found.values, strict=True))


def _accuracy(model: nn.Module, data: Split) -> Estimate:
    correct = int((predict(model, data.x) == data.y).sum())
    return rate(correct, len(data), "accuracy", "population", 0.95)
