"""What is read off the cells: for each row and column a number per seed and point, its mean and interval.

Two things make a rate uncertain: which ensembles the seeds happened to train, and which points happened to be
held out. The points are the same for all seeds and methods. The interval of a mean takes Student's interval
over the seeds and, for the points, the Clopper-Pearson interval of a single ensemble with that rate
(differences and distances: the normal interval over points, each averaged over the seeds), and adds the two
in quadrature. That is approximate. With one seed only the points are covered. A transfer matrix does not keep
its points, nor do similarity and smoothness: their intervals, and those of differences of two matrices, are
over seeds alone, and with one seed infinite, for nothing is known of either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from bounds.estimate import Estimate
from empirical.protocols.slices import RAYS
from empirical.protocols.survival import Survival, worst_case
from empirical.reproduce.items import (
    CONDITIONAL,
    DEFINITION_7,
    GEOMETRY,
    ON_ITSELF,
    WEAKEST,
    Column,
    Row,
)
from empirical.reproduce.plan import Plan
from empirical.reproduce.queue import Store
from empirical.transfer_matrix import TransferMatrix

CONFIDENCE = 0.95
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Reading:
    """A quantity for several seeds.

    Attributes:
        values: For each seed a value per point (n,), whose mean is the seed's; a single value where the
            points are not known one by one. NaN stands for a point that has none.
        trials: For a rate the number of points that it is a share of, for each seed; 0 for anything else.
        shares: Whether it is made of rates: then points of which none differed are no proof that none does.
    """

    values: Mapping[int, Floats]
    trials: Mapping[int, int]
    shares: bool = False

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean over points for each seed."""
        return {seed: float(np.nanmean(values)) for seed, values in self.values.items()}

    def estimate(self) -> Estimate:
        """The mean over seeds, with the interval that the module describes."""
        means = np.array(list(self.by_seed.values()))
        mean, seeds = float(means.mean()), len(means)
        spread = 0.0
        if seeds > 1:
            quantile = t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
            spread = float(quantile * means.std(ddof=1)) / math.sqrt(seeds)
        below, above = self._points_interval(mean)
        lower, upper = mean - math.hypot(spread, below), mean + math.hypot(spread, above)
        if any(self.trials.values()):
            lower, upper = max(lower, 0.0), min(upper, 1.0)
        if seeds == 1 and not self._has_points:
            lower, upper = -math.inf, math.inf
        what = f"Student over {seeds} seeds and points" if seeds > 1 else "points of one seed"
        return Estimate(mean, lower, upper, failure_probability=1 - CONFIDENCE, method=what)

    @property
    def _has_points(self) -> bool:
        """Whether anything is known of how much the points alone let the mean err."""
        return any(self.trials.values()) or all(len(values) > 1 for values in self.values.values())

    def _points_interval(self, mean: float) -> tuple[float, float]:
        """How far the points alone let the mean err below and above."""
        trials = min(self.trials.values(), default=0)
        if trials:
            count = min(trials, round(mean * trials))
            one = Estimate.proportion(count, trials, confidence=CONFIDENCE)
            return max(0.0, mean - one.lower), max(0.0, one.upper - mean)
        rows = np.stack(list(self.values.values()))
        seen = rows[:, ~np.isnan(rows).all(0)]
        if seen.shape[1] < 2:
            return 0.0, 0.0
        points = np.nanmean(seen, axis=0)
        half = float(norm.ppf((1 + CONFIDENCE) / 2) * points.std(ddof=1)) / math.sqrt(len(points))
        if self.shares:  # what was seen on no point out of n has a share of up to this, at this confidence
            half = max(half, -math.log((1 - CONFIDENCE) / 2) / len(points))
        return half, half

    def __add__(self, other: Reading) -> Reading:
        """Seed by seed and point by point, for seeds that both have."""
        common = [seed for seed in self.values if seed in other.values]
        return Reading({seed: self.values[seed] + other.values[seed] for seed in common}, {}, self.shares)

    def __mul__(self, factor: float) -> Reading:
        return Reading({seed: factor * values for seed, values in self.values.items()}, {}, self.shares)


def read(plan: Plan, store: Store, row: Row, column: Column) -> Reading | None:
    """What the finished cells say; None without any."""
    values, trials = {}, {}
    for seed in plan.seeds[row.dataset]:
        cells = plan.sources(row, column, seed)
        if all(map(store.finished, cells)):
            target = plan.training(row.dataset, column, seed).key
            results = [store.load(cell)["result"] for cell in cells]
            found, number = _values(cells[0].kind, results, row, target)
            if not np.isnan(found).all():
                values[seed], trials[seed] = found, number
    return Reading(values, trials, row.is_share) if values else None


def _values(kind: str, results: list[Mapping[str, Any]], row: Row, target: str) -> tuple[Floats, int]:
    """Values per point and the number of trials; several results are of attacks whose worst counts."""
    result = results[0]
    match kind:
        case "ensemble":
            return np.array([result["weakest" if row.measure == WEAKEST else "ensemble"]]), result["samples"]
        case "white-box":
            survivals = [Survival.from_json(each["survival"]) for each in results]
            return _survivors(worst_case(survivals), row.measure)
        case "black-box":
            return _survivors(Survival.from_json(result["survivals"][target]), row.measure)
        case "transfer":
            matrix = TransferMatrix.from_json(result)
            return np.array([_mean_transfer(matrix, row.measure)]), matrix.samples
        case "geometry":
            found = result[GEOMETRY[row.measure]]
            return np.array([math.nan if found is None else found]), 0
        case "slices":
            ray = RAYS.index(row.measure)
            seen = [math.nan if rays is None else rays[ray] for rays in result["distances"]]
            return np.array(seen), 0
    raise ValueError(f"expected a known kind of cell, got {kind!r}")


def _survivors(survival: Survival, measure: str) -> tuple[Floats, int]:
    """Indicators per point whose mean is the rate.

    The conditional rate is a ratio of two means; its indicators are linearised around it, so that their
    spread is that of the ratio.
    """
    clean, robust = np.array(survival.clean, dtype=float), np.array(survival.robust, dtype=float)
    if measure != CONDITIONAL:
        return robust, len(robust)
    right = int(clean.sum())
    if not right:
        return np.full(len(clean), math.nan), 0
    rate = robust.sum() / right
    return rate + (robust - rate * clean) / clean.mean(), right


def _mean_transfer(matrix: TransferMatrix, measure: str) -> float:
    table = matrix.table("transfer" if measure == DEFINITION_7 else "attack_success")
    diagonal = np.eye(len(table), dtype=bool)
    return float(table[diagonal if measure == ON_ITSELF else ~diagonal].mean())
