"""Distribution-free confidence intervals: the mean of a bounded variable, many rates at once."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.estimate import Estimate

Side = Literal["both", "lower", "upper"]
Floats = NDArray[np.float64]

# A bet may lose at most this share of the capital; 1/2 and 3/4 are the values in use.
_STAKE = 0.75

# Halvings of the bracket around an end: past the resolution of float64 at the bracket's own scale.
_HALVINGS = 54


def mean_interval(
    values: ArrayLike,
    low: float,
    high: float,
    *,
    confidence: float = 0.95,
    side: Side = "both",
    seed: int = 0,
) -> Estimate:
    """Mean of a variable with range [low, high] from independent samples, by betting.

    For a candidate mean m, a gambler bets on each sample in turn that the mean is larger (or smaller) than m,
    at stakes that depend on the past only. If m is the mean, the capital is a non-negative martingale, so it
    ever reaches 1 / tail with probability at most `tail` (Ville's inequality), whatever the distribution; the
    interval holds the m at which it did not. Each capital is monotone in m, so both ends are found by
    bisection, rounded outwards. The stakes adapt to the variance: constant samples give a width of order 1/n.

    With one end of the range infinite only the mean's own end on the finite side can be bounded, and that is
    what comes back; with both infinite nothing can.

    Args:
        values: Samples (n,), independent and identically distributed.
        low: Certain lower end of the variable's range, `-inf` where there is none.
        high: Certain upper end of the range, `inf` where there is none.
        confidence: Probability, over the samples and the shuffling, that the interval holds.
        side: "both", or the one end that gets the whole failure probability; the other is the range's.
        seed: The samples are shuffled first, so that an interval holds for sorted ones too.

    Returns:
        The mean, in the unit of the values: two-sided, or one-sided with the end of the range at the other.

    Raises:
        ValueError: If there are no samples, one is not finite or lies outside the range (which disproves the
            range), or the range, confidence or side are none.

    Reference:
        Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024):
        the hedged capital with predictable plug-in stakes for a fixed sample size.
    """
    samples = _samples(values, low, high)
    check_confidence(confidence)
    if side not in ("both", "lower", "upper"):
        raise ValueError(f"expected side 'both', 'lower' or 'upper', got {side!r}")
    mean, n = float(samples.mean()), len(samples)
    if low == high:
        return Estimate.exact(low, "mean of a variable whose range is a point", samples=n)
    below = side != "upper" and math.isfinite(low)
    above = side != "lower" and math.isfinite(high)
    if not below and not above:
        method = "sample mean; a variable without a known range has no distribution-free interval"
        return Estimate(mean, low, high, method=method, samples=n)
    needed = math.log((below + above) / (1.0 - confidence))
    shuffled = np.random.default_rng(seed).permutation(samples)
    width = high - low
    lower = low + _lower_end(shuffled - low, width, needed) if below else low
    upper = high - _lower_end(high - shuffled, width, needed) if above else high
    known = "" if below == above else f" of its {'lower' if below else 'upper'} end only"
    if known and side == "both":
        known += ": a variable without a known range has no distribution-free interval on the other side"
    return Estimate(
        mean,
        min(lower, mean),  # The sample mean is inside, but for odd orders of few samples.
        max(upper, mean),
        failure_probability=1.0 - confidence,
        method=f"mean of {n} samples in [{low:g}, {high:g}], betting interval at {confidence:g}{known}",
        samples=n,
        seed=seed,
    )


def simultaneous_proportions(
    events: ArrayLike, *, monotone: bool = False, confidence: float = 0.95
) -> list[Estimate]:
    """Rates of several events on the same independent samples, with intervals that hold all at once.

    Clopper-Pearson intervals at 1 - (1 - confidence) / m always do (union bound). The events of a monotone
    family, such as "no certificate at radius r" over growing r, are the values of one distribution function,
    for which Dvoretzky, Kiefer and Wolfowitz's inequality with Massart's constant bounds all deviations, of
    any number of events, by sqrt(log(2 / failure) / (2 n)). Each of the two then gets half of the failure
    probability and every end is the tighter one: the first wins at rates near 0 and 1, the second in between.

    Args:
        events: Shape (n, m), booleans: whether event j happened to sample i.
        monotone: Whether the events are known, not only seen, to be nested: for every sample that could be
            drawn, its row never falls, or for every sample it never rises.
        confidence: Probability that all m intervals hold.

    Returns:
        m probabilities, two-sided; `failure_probability` is that of all of them together, not of each.

    Raises:
        ValueError: If the events are no boolean matrix with samples and events, if they are not nested though
            `monotone`, or the confidence is none.

    Reference:
        Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", Ann. Probab. 18 (1990).
    """
    flags = np.asarray(events)
    if flags.dtype != np.bool_ or flags.ndim != 2 or not flags.size:
        raise ValueError(
            f"expected events as booleans of shape (n, m), got {flags.dtype} of shape {flags.shape}"
        )
    check_confidence(confidence)
    rises, falls = flags[:, 1:] > flags[:, :-1], flags[:, 1:] < flags[:, :-1]
    if monotone and rises.any() and falls.any():
        raise ValueError("expected nested events, got rows that rise along the columns and rows that fall")
    n, m = flags.shape
    failure = 1.0 - confidence
    share = failure / 2 if monotone else failure
    reach = math.sqrt(math.log(2 / share) / (2 * n)) if monotone else math.inf
    name = "Clopper-Pearson and DKW" if monotone else "Clopper-Pearson"
    found = []
    for count in flags.sum(0):
        alone = Estimate.proportion(int(count), n, confidence=1.0 - share / m)
        found.append(
            Estimate(
                alone.value,
                max(alone.lower, alone.value - reach),
                min(alone.upper, alone.value + reach),
                failure_probability=failure,
                method=f"{count} of {n} points; {name}, all {m} rates at once at {confidence:g}",
                samples=n,
            )
        )
    return found


def _lower_end(samples: Floats, width: float, needed: float) -> float:
    """Largest candidate mean below which all are refuted, for samples >= 0 (and <= width).

    Refuted is a candidate against which the logarithm of the capital ever reaches `needed`.
    """
    if math.isfinite(width):
        stakes = _stakes(samples, width / 2, width**2 / 4, needed)
    else:  # The bet on "larger" is fair without an upper end; the first sample sets the scale in its place.
        first, samples = samples[0], samples[1:]
        stakes = _stakes(samples, first, first**2, needed)
    refuted, open_ = 0.0, float(samples.max(initial=0.0))
    for _ in range(_HALVINGS):
        middle = (refuted + open_) / 2
        if middle in (refuted, open_):
            break
        # Each factor is positive and falls in the candidate, so the capital does, and so does its maximum.
        factors = np.log1p(np.minimum(stakes, _STAKE / middle) * (samples - middle))
        if np.cumsum(factors).max() >= needed:
            refuted = middle
        else:
            open_ = middle
    return refuted


def _stakes(samples: Floats, mean: float, variance: float, needed: float) -> Floats:
    """Stake for each sample, from the variance of those before it and one made-up sample's worth of prior."""
    counts = np.arange(1, len(samples) + 1)
    means = (mean + np.cumsum(samples)) / (counts + 1)
    squares = variance + np.concatenate([[0.0], np.cumsum((samples - means) ** 2)[:-1]])
    with np.errstate(divide="ignore"):  # A zero variance stakes all that is allowed.
        return np.sqrt(2 * needed * counts / (len(samples) * squares))


def _samples(values: ArrayLike, low: float, high: float) -> Floats:
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"expected at least one sample, of shape (n,), got shape {samples.shape}")
    if not low <= high or low == math.inf or high == -math.inf:
        raise ValueError(f"expected a range with low <= high, got [{low}, {high}]")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise ValueError(f"expected finite samples, got {samples[bad[0]]} at index {bad[0]}")
    outside = np.flatnonzero((samples < low) | (samples > high))
    if len(outside):
        first = outside[0]
        raise ValueError(
            f"expected samples in the range [{low}, {high}], got {samples[first]} at index {first}; "
            f"{len(outside)} of {len(samples)} disprove the range"
        )
    return samples


def check_confidence(confidence: float) -> None:
    """Refuse what is no confidence level.

    Raises:
        ValueError: If it is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")
