"""Which samples of a set survive attacks, and the accuracies that follow: clean, robust and conditional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bounds.estimate import Estimate
from empirical.rates import check_statistics, rate
from estimators.batching import Support


@dataclass(frozen=True)
class Survival:
    """Sample by sample, whether a model is right without an attack and whether it stays right under attack.

    Attributes:
        clean: For each sample, whether the model gets it right without an attack.
        robust: For each sample, whether it gets it right without and with every attack.
        attacks: What was run, in words.
        support: What intervals are about: "finite" (this set, exact) or "population".
        confidence: Confidence of each single interval for "population".

    Raises:
        ValueError: If there are no samples, the two differ in number, a sample is robust that is not even
            clean, or the support or the confidence is none.
    """

    clean: tuple[bool, ...]
    robust: tuple[bool, ...]
    attacks: str
    support: Support = "population"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_statistics(self.support, self.confidence)
        if not self.clean or len(self.clean) != len(self.robust):
            raise ValueError(
                f"expected as many clean as robust samples, got {len(self.clean)} and {len(self.robust)}"
            )
        if any(robust and not clean for clean, robust in zip(self.clean, self.robust, strict=True)):
            raise ValueError("expected robust samples to be right on clean input too")

    @classmethod
    def of(cls, clean: Tensor, robust: Tensor, attacks: str, support: Support, confidence: float) -> Survival:
        """From (n,) bool tensors."""
        return cls(tuple(clean.tolist()), tuple(robust.tolist()), attacks, support, confidence)

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of all samples that the model gets right without an attack."""
        return self._rate(sum(self.clean), len(self.clean), "accuracy without attack")

    @property
    def robust_accuracy(self) -> Estimate:
        """Share of all samples that stay right (TRS, section 6.1)."""
        return self._rate(sum(self.robust), len(self.robust), f"robust accuracy under {self.attacks}")

    @property
    def conditional_robust_accuracy(self) -> Estimate | None:
        """Share of the samples right without attack that stay right (TRS, Table 4); None without any."""
        if not any(self.clean):
            return None
        name = f"robust accuracy, of samples right without attack, under {self.attacks}"
        return self._rate(sum(self.robust), sum(self.clean), name)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping: the samples as strings of 0 and 1, and the rates that follow."""
        conditional = self.conditional_robust_accuracy
        return {
            "clean": _digits(self.clean),
            "robust": _digits(self.robust),
            "attacks": self.attacks,
            "support": self.support,
            "confidence": self.confidence,
            "clean_accuracy": self.clean_accuracy.to_json(),
            "robust_accuracy": self.robust_accuracy.to_json(),
            "conditional_robust_accuracy": None if conditional is None else conditional.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Survival:
        """What `to_json` described; its rates are computed anew."""
        return cls(
            _flags(fields["clean"]),
            _flags(fields["robust"]),
            fields["attacks"],
            fields["support"],
            fields["confidence"],
        )

    def _rate(self, count: int, trials: int, name: str) -> Estimate:
        return rate(count, trials, name, self.support, self.confidence)


def worst_case(survivals: Sequence[Survival]) -> Survival:
    """Each sample under the attack that is worst for it: it survives if it survives them all.

    Args:
        survivals: Of one model on the same samples in the same order, under different attacks.

    Raises:
        ValueError: If there are none, or they are of different samples or models, or their intervals differ
            in meaning.
    """
    if not survivals:
        raise ValueError("expected at least one attack to take the worst case of, got none")
    first = survivals[0]
    if any(each.clean != first.clean for each in survivals):
        raise ValueError(
            "expected attacks on one model and the same samples, got different clean predictions"
        )
    if any((each.support, each.confidence) != (first.support, first.confidence) for each in survivals):
        raise ValueError("expected one support and confidence for all attacks, got several")
    robust = tuple(all(flags) for flags in zip(*(each.robust for each in survivals), strict=True))
    attacks = f"the worst of {'; '.join(each.attacks for each in survivals)}"
    return Survival(first.clean, robust, attacks, first.support, first.confidence)


def _digits(flags: tuple[bool, ...]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _flags(digits: str) -> tuple[bool, ...]:
    return tuple(digit == "1" for digit in digits)
