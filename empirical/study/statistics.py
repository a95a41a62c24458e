"""Rank correlations with bootstrap intervals, where whole groups are drawn again and not single units.

The pairs of one ensemble share members, so they are not independent: a resample draws ensembles, and each
brings all its pairs. A resample is a number of copies for each unit, so every statistic here takes counts
(resamples, n) and is computed for all resamples at once. Copies are ties with each other, as they would be
in a resampled table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

# Fewer independent groups than this say nothing that an interval could carry.
LEAST_GROUPS = 20
# A residual with less than this share of its variance left is rounding.
_EXPLAINED = 1e-9
# With more resamples than this share undefined, the percentiles would be of another distribution.
_UNDEFINED = 0.02


@dataclass(frozen=True)
class Interval:
    """A statistic of the units that were measured, with a bootstrap interval for their population.

    Attributes:
        value: On the units as they are.
        lower: Lower end of the percentile interval. It is approximate, as bootstrap intervals are.
        upper: Upper end.
        groups: Number of independent groups behind it.
    """

    value: float
    lower: float
    upper: float
    groups: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"value": self.value, "lower": self.lower, "upper": self.upper, "groups": self.groups}


class Bootstrap:
    """Resamples of groups of units, drawn once and used for every statistic, so that these are comparable.

    Args:
        groups: Group of each unit, (n,).
        resamples: Number of resamples, at least 1.
        confidence: Of the intervals, in (0, 1).
        seed: Of the draws.

    Raises:
        ValueError: If there is no unit, or a number is out of range.
    """

    def __init__(
        self, groups: Sequence[Any], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> None:
        if not len(groups):
            raise ValueError("expected at least one unit to resample, got none")
        if resamples < 1:
            raise ValueError(f"expected at least 1 resample, got {resamples}")
        if not 0 < confidence < 1:
            raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
        names, self.group = np.unique(np.asarray(groups), return_inverse=True)
        share = np.full(len(names), 1 / len(names))
        drawn = np.random.default_rng(seed).multinomial(len(names), share, size=resamples)
        self.counts: Floats = drawn[:, self.group].astype(float)
        self.confidence = confidence

    def interval(self, statistic: Statistic, known: NDArray[np.bool_] | None = None) -> Interval | None:
        """A statistic with its interval; None where too little is known of it.

        Args:
            statistic: From counts (m, n) to values (m,), NaN where undefined.
            known: Units that count, (n,); all by default.
        """
        used = np.ones(len(self.group), bool) if known is None else known
        groups = len(np.unique(self.group[used]))
        if groups < LEAST_GROUPS:
            return None
        value = float(statistic(used[None].astype(float))[0])
        spread = statistic(self.counts * used)
        if not math.isfinite(value) or np.mean(~np.isfinite(spread)) > _UNDEFINED:
            return None
        tail = (1 - self.confidence) / 2
        lower, upper = np.nanquantile(np.where(np.isfinite(spread), spread, np.nan), [tail, 1 - tail])
        return Interval(value, float(lower), float(upper), groups)


def spearman(x: ArrayLike, y: ArrayLike) -> Statistic:
    """Spearman's rank correlation of two quantities, each (n,); infinite values rank last or first."""
    above_x, above_y = _above(x), _above(y)
    return lambda counts: _correlation(counts @ above_x.T, counts @ above_y.T, counts)


def kendall(x: ArrayLike, y: ArrayLike) -> Statistic:
    """Kendall's tau-b of two quantities, each (n,)."""
    signs_x, signs_y = _signs(x), _signs(y)

    def tau(counts: Floats) -> Floats:
        joint, alone_x, alone_y = (
            np.einsum("mi,mi->m", counts @ signs, counts)
            for signs in (signs_x * signs_y, signs_x**2, signs_y**2)
        )
        return _ratio(joint, np.sqrt(alone_x * alone_y))

    return tau


def partial_spearman(
    x: ArrayLike, y: ArrayLike, controls: Sequence[ArrayLike], categories: Sequence[Any] | None = None
) -> Statistic:
    """Spearman's correlation of what is left of two quantities once others are taken out.

    The ranks are regressed on the ranks of the controls and on the category, and the residuals correlated.

    Args:
        x: (n,).
        y: (n,).
        controls: Quantities, each (n,).
        categories: A label for each unit, such as its training method; each takes a constant of its own.
    """
    above = [_above(each) for each in (x, y, *controls)]
    labels = np.zeros(len(above[0]), int) if categories is None else np.asarray(categories)
    constants = (labels[:, None] == np.unique(labels)).astype(float)

    def partial(counts: Floats) -> Floats:
        ranks = [counts @ each.T for each in above]
        size = np.maximum(counts.sum(1, keepdims=True), 1.0)
        explained = np.concatenate(
            [np.broadcast_to(constants, (*counts.shape, constants.shape[1])),
             np.stack([rank / size for rank in ranks[2:]], 2) if controls else np.empty((*counts.shape, 0))],
            axis=2,
        )  # fmt: skip
        weighted = explained * counts[:, :, None]
        inverse = np.linalg.pinv(np.einsum("mnj,mnk->mjk", weighted, explained), hermitian=True)
        left = []
        for rank in (rank / size for rank in ranks[:2]):
            slopes = np.einsum("mjk,mnk,mn->mj", inverse, weighted, rank, optimize=True)
            residual = rank - np.einsum("mnj,mj->mn", explained, slopes)
            rest, all_of_it = _variance(residual, counts), _variance(rank, counts)
            left.append(np.where((rest > _EXPLAINED * all_of_it)[:, None], residual, np.nan))
        return _correlation(left[0], left[1], counts)

    return partial


def within(statistic: Statistic, units: NDArray[np.bool_]) -> Statistic:
    """A statistic of some of the units, (n,), only."""
    return lambda counts: statistic(counts * units)


def difference(first: Statistic, second: Statistic) -> Statistic:
    """By how much one statistic exceeds another in the same resample."""
    return lambda counts: first(counts) - second(counts)


def _signs(values: ArrayLike) -> Floats:
    """sign(x_i - x_j), (n, n), 0 where one is unknown; ranks first, so that two infinities are a tie."""
    ranks = rankdata(np.asarray(values, float), nan_policy="omit")
    return np.nan_to_num(np.sign(ranks[:, None] - ranks[None, :]))


def _above(values: ArrayLike) -> Floats:
    """1 where unit i is above unit j, 1/2 where they tie: with it, midranks are a product with the counts."""
    return (1 + _signs(values)) / 2


def _correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's correlation with counts, row by row of (m, n)."""
    x, y = _centred(x, counts), _centred(y, counts)
    covariance = np.einsum("mn,mn,mn->m", x, y, counts)
    return _ratio(covariance, np.sqrt(_variance(x, counts) * _variance(y, counts)))


def _centred(x: Floats, counts: Floats) -> Floats:
    return x - _ratio(np.einsum("mn,mn->m", x, counts), counts.sum(1))[:, None]


def _variance(x: Floats, counts: Floats) -> Floats:
    """Sum of the squared distances from the mean."""
    return np.einsum("mn,mn->m", _centred(x, counts) ** 2, counts)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
