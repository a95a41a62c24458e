"""A transfer matrix: rows are surrogates, columns are targets, and every rate carries its denominator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bounds.estimate import Estimate
from empirical.attacks import AttackHealth, AttackMethod, attack_from_json
from empirical.rates import rate
from estimators.batching import Support

AXES = {"rows": "surrogate", "columns": "target"}
DENOMINATORS = {
    "transfer": "all samples",
    "attack_success": "all samples",
    "conditional": "samples both models get right unattacked and on which the attack fools the surrogate",
}
COUNTS = ("transferred", "fooled", "eligible")


@dataclass(frozen=True)
class TransferMatrix:
    """Transfer from every surrogate to every target: counts, and the rates that follow from them.

    Tables have one row per surrogate and one column per target. Where a model is both, the entry is the
    attack on the model itself.

    Attributes:
        surrogates: Names of the rows.
        targets: Names of the columns.
        attack: The attack that was run on each surrogate.
        health: Health of the attack on each surrogate.
        mode: "untargeted" or "targeted".
        target_label: The target label if it was one for all samples, else None.
        starred: Whether samples with y = y_t are left out (targeted only).
        samples: Number of samples n.
        transferred: Counts of Definition 7.
        fooled: Counts of samples on which the target model is fooled.
        eligible: Counts of samples on which both models are right without the attack and the surrogate is
            fooled by it.
        support: Which distribution the intervals are about, "finite" or "population".
        confidence: Confidence of each single interval for "population".
    """

    surrogates: tuple[str, ...]
    targets: tuple[str, ...]
    attack: AttackMethod
    health: tuple[AttackHealth, ...]
    mode: str
    target_label: int | None
    starred: bool
    samples: int
    transferred: tuple[tuple[int, ...], ...]
    fooled: tuple[tuple[int, ...], ...]
    eligible: tuple[tuple[int, ...], ...]
    support: Support
    confidence: float

    def estimate(self, surrogate: str, target: str, measure: str = "transfer") -> Estimate | None:
        """One entry as an estimate; None for a conditional rate without any eligible sample.

        Args:
            surrogate: Name of the row.
            target: Name of the column.
            measure: "transfer" (Definition 7), "attack_success" or "conditional".

        Raises:
            ValueError: If a name is unknown.
        """
        for name, known in ((surrogate, self.surrogates), (target, self.targets), (measure, DENOMINATORS)):
            if name not in known:
                raise ValueError(f"expected one of {', '.join(known)}, got {name!r}")
        row, column = self.surrogates.index(surrogate), self.targets.index(target)
        count = (self.fooled if measure == "attack_success" else self.transferred)[row][column]
        trials = self.eligible[row][column] if measure == "conditional" else self.samples
        if trials == 0:
            return None
        method = f"{measure} under {self.attack}, over {DENOMINATORS[measure]}"
        return rate(count, trials, method, self.support, self.confidence, seed=self.attack.seed)

    def table(self, measure: str = "transfer", end: str = "value") -> np.ndarray:
        """The rates (surrogates, targets), or the "lower" or "upper" `end` of each; NaN where undefined."""
        entries = self._entries(measure)
        return np.array([[np.nan if cell is None else getattr(cell, end) for cell in row] for row in entries])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of counts and rates; an undefined rate is null."""
        return {
            "axes": AXES,
            "surrogates": list(self.surrogates),
            "targets": list(self.targets),
            "attack": self.attack.to_json(),
            "health": [health.to_json() for health in self.health],
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "counts": {name: [list(row) for row in getattr(self, name)] for name in COUNTS},
            **self._rates_to_json("transfer"),
            "attack_success": self._rates_to_json("attack_success"),
            "conditional": self._rates_to_json("conditional"),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TransferMatrix:
        """The matrix that `to_json` described; its rates are computed anew from the counts."""
        counts: dict[str, Any] = {name: tuple(map(tuple, fields["counts"][name])) for name in COUNTS}
        return cls(
            surrogates=tuple(fields["surrogates"]),
            targets=tuple(fields["targets"]),
            attack=attack_from_json(fields["attack"]),
            health=tuple(AttackHealth.from_json(health) for health in fields["health"]),
            **{name: fields[name] for name in _PLAIN_FIELDS},
            **counts,
        )

    def _entries(self, measure: str) -> list[list[Estimate | None]]:
        return [[self.estimate(row, column, measure) for column in self.targets] for row in self.surrogates]

    def _rates_to_json(self, measure: str) -> dict[str, Any]:
        entries = self._entries(measure)
        ends = {
            name: [[None if cell is None else getattr(cell, end) for cell in row] for row in entries]
            for name, end in (("rate", "value"), ("lower", "lower"), ("upper", "upper"))
        }
        return {"denominator": DENOMINATORS[measure], **ends}


_PLAIN_FIELDS = ("mode", "target_label", "starred", "samples", "support", "confidence")
