"""A number that says which way it errs and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import betaincinv


@dataclass(frozen=True)
class Estimate:
    """A quantity with an interval that contains the truth.

    `[lower, upper]` contains the true quantity except with probability `failure_probability`. A one-sided
    estimate has an infinite other end: a maximum seen over samples is `[value, inf]` as an estimate of a
    supremum. A number known exactly has `lower == value == upper`.

    Attributes:
        value: Point estimate. Infinite where the quantity itself is (the smoothness of a ReLU network).
        lower: Lower end of the interval, `-inf` where nothing is known.
        upper: Upper end of the interval, `inf` where nothing is known.
        failure_probability: Probability, over the sampling, that the interval misses the truth.
        method: How the number was obtained, in words.
        samples: Number of data points behind it, if any.
        seed: Seed of the random choices behind it, if any.

    Raises:
        ValueError: If a number is NaN, the interval is empty, or the probability is outside [0, 1].
    """

    value: float
    lower: float
    upper: float
    failure_probability: float = 0.0
    method: str = ""
    samples: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("value", "lower", "upper", "failure_probability"):
            number = float(getattr(self, name))
            if math.isnan(number):
                raise ValueError(f"expected a number for {name} of an Estimate, got NaN ({self.method!r})")
            object.__setattr__(self, name, number)
        if self.lower > self.upper:
            raise ValueError(f"expected lower <= upper, got [{self.lower}, {self.upper}] ({self.method!r})")
        if not 0.0 <= self.failure_probability <= 1.0:
            raise ValueError(f"expected failure_probability in [0, 1], got {self.failure_probability}")

    @classmethod
    def exact(cls, value: float, method: str = "exact", **details: Any) -> Estimate:
        """A number known exactly: the interval is a point."""
        return cls(value, value, value, method=method, **details)

    @classmethod
    def at_least(cls, value: float, method: str, **details: Any) -> Estimate:
        """A lower bound on the truth, such as the largest value seen of a supremum."""
        return cls(value, value, math.inf, method=method, **details)

    @classmethod
    def at_most(cls, value: float, method: str, **details: Any) -> Estimate:
        """An upper bound on the truth, such as the smallest value seen of an infimum."""
        return cls(value, -math.inf, value, method=method, **details)

    @classmethod
    def proportion(
        cls, successes: int, trials: int, *, confidence: float = 0.95, method: str = "", **details: Any
    ) -> Estimate:
        """A probability from independent trials, with the exact two-sided Clopper-Pearson interval.

        Raises:
            ValueError: If there are no trials, more successes than trials, or the confidence is not in
                (0, 1).
        """
        if trials < 1:
            raise ValueError(f"expected at least one trial to estimate a proportion, got {trials}")
        if not 0 <= successes <= trials:
            raise ValueError(f"expected between 0 and {trials} successes, got {successes}")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"expected confidence in (0, 1), got {confidence}")
        tail = (1.0 - confidence) / 2.0
        failures = trials - successes
        # Clopper and Pearson's ends are quantiles of beta distributions.
        lower = betaincinv(successes, failures + 1, tail) if successes else 0.0
        upper = betaincinv(successes + 1, failures, 1.0 - tail) if failures else 1.0
        return cls(
            successes / trials,
            float(lower),
            float(upper),
            failure_probability=1.0 - confidence,
            method=method or "Clopper-Pearson",
            samples=int(trials),
            **details,
        )

    @classmethod
    def largest(cls, estimates: Sequence[Estimate]) -> Estimate:
        """The largest of several quantities, such as one constant that has to serve two models.

        The ends are the largest of the ends and the failure probabilities add up (union bound). The largest
        of one-sided estimates is one-sided in the same direction.

        Raises:
            ValueError: If there are no estimates.
        """
        if not estimates:
            raise ValueError("expected at least one estimate to take the largest of, got none")
        top = max(estimates, key=lambda estimate: estimate.value)
        return cls(
            top.value,
            max(estimate.lower for estimate in estimates),
            max(estimate.upper for estimate in estimates),
            failure_probability=min(1.0, sum(estimate.failure_probability for estimate in estimates)),
            method=top.method,
            samples=top.samples,
            seed=top.seed,
        )

    @property
    def is_exact(self) -> bool:
        """Whether the interval is a single point that cannot fail."""
        return self.lower == self.upper and self.failure_probability == 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; an infinite number becomes the string "inf" or "-inf"."""
        return {
            "value": json_number(self.value),
            "lower": json_number(self.lower),
            "upper": json_number(self.upper),
            "failure_probability": self.failure_probability,
            "method": self.method,
            "samples": self.samples,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """The estimate that `to_json` described."""
        numbers = {name: float(fields[name]) for name in ("value", "lower", "upper")}
        return cls(**{**fields, **numbers})


def json_number(value: float) -> float | str:
    """A number as strict JSON can hold it: infinities become the strings that `float` reads back."""
    return value if math.isfinite(value) else str(value)
