"""Rates over samples as estimates: exact for a finite set, with a binomial interval for a population."""

from __future__ import annotations

from bounds.estimate import Estimate
from estimators.batching import Support, check_support


def rate(
    count: int, trials: int, name: str, support: Support, confidence: float, seed: int | None = None
) -> Estimate:
    """A rate over samples: exact for the "finite" set, a Clopper-Pearson interval for the "population"."""
    if support == "finite":
        method = f"{name}: {count} of {trials}, exact for this finite set"
        return Estimate.exact(count / trials, method, samples=trials, seed=seed)
    method = f"{name}: {count} of {trials}, Clopper-Pearson at {confidence:g}"
    return Estimate.proportion(count, trials, confidence=confidence, method=method, seed=seed)


def check_statistics(support: str, confidence: float) -> None:
    """Check what an interval is asked to mean, before any work.

    Raises:
        ValueError: If the support is unknown or the confidence is not in (0, 1).
    """
    check_support(support)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")
