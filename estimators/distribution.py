"""From numbers at points to a distribution: uniform on the points, or the one that they were drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from bounds.estimate import Estimate
from bounds.intervals import mean_interval
from estimators.batching import Support, check_support

Range = tuple[float, float]
EVERYTHING: Range = (-math.inf, math.inf)


@dataclass(frozen=True)
class Distribution:
    """Which distribution rates, means and extremes over points are about.

    Attributes:
        support: "finite": uniform on the points themselves, so that everything is exact up to rounding.
            "population": the points are drawn from it independently. Rates then have Clopper-Pearson
            intervals, means need a certified range, and extremes err to the inside.
        confidence: Of every interval in "population".

    Raises:
        ValueError: If the support is unknown or the confidence is not in (0, 1).
    """

    support: Support = "finite"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_support(self.support)
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"expected confidence in (0, 1), got {self.confidence}")

    def rate(self, events: Tensor, name: str) -> Estimate:
        """Probability of an event given point by point, (n,) bool: exact, or its Clopper-Pearson interval."""
        count, trials = int(events.sum()), len(events)
        method = f"{name}: {count} of {trials} points"
        if self.support == "finite":
            return Estimate.exact(count / trials, f"{method}; exact for this finite set", samples=trials)
        method = f"{method}; Clopper-Pearson at {self.confidence:g}"
        return Estimate.proportion(count, trials, confidence=self.confidence, method=method)

    def mean(self, values: Tensor, name: str, values_range: Range = EVERYTHING) -> Estimate:
        """Mean of values (n,): exact, or a betting interval from their certified range over the population.

        Where an end of the range is infinite there is no distribution-free interval on that side.

        Raises:
            ValueError: If a value lies outside the range.
        """
        seen = f"{name} over {len(values)} points"
        mean = float(values.double().mean())
        if self.support == "finite":
            method = f"{seen}; exact for this finite set up to rounding"
            return Estimate.exact(mean, method, samples=len(values))
        low, high = values_range
        numbers = values.detach().double().cpu().numpy()
        found = mean_interval(numbers, low, high, confidence=self.confidence)
        method = f"{seen}; {found.method}; values certified to lie in [{low:.6g}, {high:.6g}]"
        if math.isinf(low) or math.isinf(high):
            method += "; without a finite range there is no distribution-free interval on the open side"
        return replace(found, method=method)

    def supremum(
        self, values: Tensor, name: str, ceiling: float = math.inf, samples: int | None = None
    ) -> Estimate:
        """Largest of values over the support: exact, or only bounded from below by the sample's.

        Args:
            values: Numbers at the points (and labels), at least one.
            name: What they are, in words.
            ceiling: What no value can exceed.
            samples: Number of points, for the record.
        """
        largest = float(values.max())
        if self.support == "finite":
            return Estimate.exact(
                largest, f"{name}; exact for this finite set up to rounding", samples=samples
            )
        method = f"{name}; a sample's maximum, which errs low for the population"
        return Estimate(largest, largest, max(largest, ceiling), method=method, samples=samples)

    def infimum(
        self, values: Tensor, name: str, floor: float = -math.inf, samples: int | None = None
    ) -> Estimate:
        """Smallest of values over the support: exact, or only bounded from above by the sample's.

        Args:
            values: Numbers at the points (and labels), at least one.
            name: What they are, in words.
            floor: What no value can fall below.
            samples: Number of points, for the record.
        """
        smallest = float(values.min())
        if self.support == "finite":
            return Estimate.exact(
                smallest, f"{name}; exact for this finite set up to rounding", samples=samples
            )
        method = f"{name}; a sample's minimum, which errs high for the population"
        return Estimate(smallest, min(smallest, floor), smallest, method=method, samples=samples)
