"""Extreme-value extrapolation of a supremum from sampled maxima: a number without a direction."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gamma
from scipy.stats import genextreme

from bounds.estimate import Estimate

Floats = NDArray[np.float64]

CAVEAT = "an extreme-value extrapolation: no direction, no guarantee"

# Fewer maxima than this say next to nothing about the shape of a tail.
_FEWEST = 20

# A shape counts as that of a bounded law at the one-sided level 5 %: z at .95.
_SIGNIFICANT = 1.645

# Samples drawn from the fit, to see how far its own samples stray from a fit to them.
_REDRAWN = 199

# The skewness l3 / l2 falls with the shape k; Hosking's shapes start at -1, where means cease to exist.
_SHAPES = np.linspace(20.0, -0.95, 20_000)
_SKEWNESSES = 2 * np.expm1(-_SHAPES * math.log(3)) / np.expm1(-_SHAPES * math.log(2)) - 3


class _Fit(NamedTuple):
    """Generalised extreme-value laws; a positive shape is a reversed Weibull law with a finite endpoint."""

    shape: Floats
    location: Floats
    scale: Floats

    @property
    def endpoint(self) -> Floats:
        return self.location + self.scale / self.shape

    def distance(self, ordered: Floats) -> Floats:
        """Kolmogorov-Smirnov distance to samples in ascending order along the last axis."""
        n = ordered.shape[-1]
        below = genextreme.cdf(ordered, *(parameter[..., None] for parameter in self))
        steps = np.arange(n + 1) / n
        return np.maximum(steps[1:] - below, below - steps[:-1]).max(-1)


def extrapolated_supremum(maxima: ArrayLike, *, seed: int = 0) -> Estimate:
    """Endpoint of the reversed Weibull law fitted to maxima, as CLEVER extrapolates a Lipschitz constant.

    Each number is the largest of many draws, such as the largest Hessian norm of a batch of points. Under
    extreme-value theory such maxima tend to a law with a finite endpoint, the supremum, if the tail allows.
    Real tails of beta do not keep to it: on trained networks the endpoint is often below a norm that ascent
    finds and often above a certified bound. So `upper` is infinite always, and nothing is proved by `value`.

    The law is fitted by its first three L-moments. No endpoint is given where the shape is not significantly
    that of a bounded law; the fit is tested by the Kolmogorov-Smirnov distance against redrawn and refitted
    samples, since the tables are for laws that were not fitted. The method says both.

    Args:
        maxima: Maxima (n,) of equally many independent draws each, n >= 20; not all equal.
        seed: Of the redrawn samples.

    Returns:
        [largest seen, inf], in the unit of the maxima; `value` is the endpoint, at least the largest seen,
        and infinite where the fit has no finite one.

    Raises:
        ValueError: If there are fewer than 20 maxima, one is not finite, or all are equal.

    Reference:
        Hosking, Wood and Wallis, "Estimation of the generalized extreme-value distribution by the method of
        probability-weighted moments", Technometrics 27 (1985), also for the test of the shape; Weng et al.,
        "Evaluating the robustness of neural networks: an extreme value theory approach", ICLR 2018 (CLEVER).
    """
    ordered = np.sort(np.asarray(maxima, dtype=np.float64))
    if ordered.ndim != 1 or len(ordered) < _FEWEST:
        raise ValueError(f"expected maxima of shape (n,) with n >= {_FEWEST}, got shape {ordered.shape}")
    if not np.isfinite(ordered).all():
        raise ValueError(f"expected finite maxima, got {int((~np.isfinite(ordered)).sum())} that are not")
    if ordered[0] == ordered[-1]:
        raise ValueError(f"expected maxima that differ, got {len(ordered)} times {ordered[0]}")
    n, largest = len(ordered), float(ordered[-1])
    fit = _fit(ordered)
    parameters = f"shape {float(fit.shape):.3g}, KS p = {_goodness(fit, ordered, seed):.3f}"
    if fit.shape * math.sqrt(n / 0.5633) < _SIGNIFICANT:
        verdict, value = f"no finite endpoint: the tail does not look bounded ({parameters})", math.inf
    else:
        verdict, value = (
            f"endpoint of a reversed Weibull law ({parameters})",
            max(float(fit.endpoint), largest),
        )
    return Estimate(
        value, largest, math.inf, method=f"{CAVEAT}; {verdict}, from {n} maxima", samples=n, seed=seed
    )


def _fit(ordered: Floats) -> _Fit:
    """The law with the samples' first three L-moments, along the last axis."""
    n = ordered.shape[-1]
    rank = np.arange(n)
    b0 = ordered.mean(-1)
    b1 = (ordered * rank).mean(-1) / (n - 1)
    b2 = (ordered * rank * (rank - 1)).mean(-1) / ((n - 1) * (n - 2))
    spread = 2 * b1 - b0
    shape = np.interp((6 * b2 - 6 * b1 + b0) / spread, _SKEWNESSES, _SHAPES)
    scale = spread * shape / (-np.expm1(-shape * math.log(2)) * gamma(1 + shape))
    return _Fit(shape, b0 - scale * (1 - gamma(1 + shape)) / shape, scale)


def _goodness(fit: _Fit, ordered: Floats, seed: int) -> float:
    """Share of samples from the fitted law that lie as far from their own fits: a p-value."""
    rng = np.random.default_rng(seed)
    redrawn = np.sort(genextreme.rvs(*fit, size=(_REDRAWN, len(ordered)), random_state=rng))
    further = (_fit(redrawn).distance(redrawn) >= fit.distance(ordered)).sum()
    return float((1 + further) / (1 + _REDRAWN))
