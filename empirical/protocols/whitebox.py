"""White-box robust accuracy: one model under one attack on itself (TRS, Tables 1, 2, 7, 8, and 3 and 4).

A table is cells: each model under each attack. The pointwise worst case over a model's cells is
`survival.worst_case` of theirs, the conditional robust accuracy of Table 4 a rate of each cell, and the
convergence of Table 3 cells of one attack with more and more steps (`convergence`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from empirical.attacks import AttackHealth, AttackMethod, attack_from_json, predict, run_attack
from empirical.data import Split
from empirical.protocols.survival import Survival
from empirical.rates import check_statistics
from estimators.batching import DEFAULT_BATCH, Support


@dataclass(frozen=True)
class WhiteBoxCell:
    """One cell of a white-box table.

    Attributes:
        attack: What was run.
        survival: Who survived it.
        health: Signs that the attack did not work as meant.
    """

    attack: AttackMethod
    survival: Survival
    health: AttackHealth

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "attack": self.attack.to_json(),
            "survival": self.survival.to_json(),
            "health": self.health.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> WhiteBoxCell:
        """The cell that `to_json` described."""
        return cls(
            attack_from_json(fields["attack"]),
            Survival.from_json(fields["survival"]),
            AttackHealth.from_json(fields["health"]),
        )


def white_box_cell(
    model: nn.Module,
    data: Split,
    attack: AttackMethod,
    *,
    support: Support = "population",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> WhiteBoxCell:
    """Attack a model on every sample, untargeted, and see which samples it still gets right.

    Args:
        model: A single model or an ensemble, (n, *shape) to logits or log-probabilities (n, K).
        data: Samples; for "population" drawn independently of the model.
        attack: The attack.
        support: "finite": exact rates on `data`. "population": Clopper-Pearson intervals.
        confidence: Confidence of each single interval.
        pixel_range: Range of valid values, None for data without one.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If a shape, a label, a value, the support's name or the confidence does not fit.
    """
    check_statistics(support, confidence)
    result = run_attack(model, data.x, data.y, attack, pixel_range=pixel_range, batch_size=batch_size)
    y = data.y.to(data.x.device)
    clean = predict(model, data.x, batch_size=batch_size) == y
    robust = clean & ~result.success
    return WhiteBoxCell(attack, Survival.of(clean, robust, str(attack), support, confidence), result.health)
