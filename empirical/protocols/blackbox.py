"""Black-box robust accuracy: attempts made on surrogates, tried on targets (TRS, Tables 5 and 6, Figure 3).

The surrogates are ensembles trained without any defence, of 3, 5 and 8 members. On each, PGD ascends two
losses from three random starts: 18 attempts in all, made without a look at the target. A sample survives if
the target is right on it without an attack and under all attempts. The result has the rate over all samples
and the conditional one, over samples that the target gets right without an attack (Table 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from empirical.attacks import Attack, AttackHealth, predict, run_attack
from empirical.data import Split
from empirical.protocols.survival import Survival
from empirical.rates import check_statistics
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels


@dataclass(frozen=True)
class Attempt:
    """One attack on one surrogate.

    Attributes:
        surrogate: Its name.
        attack: What was run on it.
        fooled_surrogate: Count of samples on which the surrogate itself is wrong under attack.
        fooled: Count of samples on which each target, by name, is wrong under this attack alone.
        health: Signs that the attack did not work as meant.
    """

    surrogate: str
    attack: Attack
    fooled_surrogate: int
    fooled: Mapping[str, int]
    health: AttackHealth

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "surrogate": self.surrogate,
            "attack": self.attack.to_json(),
            "fooled_surrogate": self.fooled_surrogate,
            "fooled": dict(self.fooled),
            "health": self.health.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Attempt:
        """The attempt that `to_json` described."""
        return cls(
            fields["surrogate"],
            Attack.from_json(fields["attack"]),
            fields["fooled_surrogate"],
            fields["fooled"],
            AttackHealth.from_json(fields["health"]),
        )


@dataclass(frozen=True)
class BlackBox:
    """The outcome at one radius.

    Attributes:
        survivals: Who survives all attempts, for each target by name.
        attempts: What was tried, one attack on one surrogate after the other.
    """

    survivals: Mapping[str, Survival]
    attempts: tuple[Attempt, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "survivals": {name: survival.to_json() for name, survival in self.survivals.items()},
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BlackBox:
        """The outcome that `to_json` described."""
        return cls(
            {name: Survival.from_json(survival) for name, survival in fields["survivals"].items()},
            tuple(map(Attempt.from_json, fields["attempts"])),
        )


def black_box(
    surrogates: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    data: Split,
    attacks: Sequence[Attack],
    *,
    support: Support = "population",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> BlackBox:
    """Try every attack on every surrogate, and each result on every target.

    The attempts do not depend on the targets, so that one call serves all targets at a radius. Only the
    images of one attempt are in memory at a time.

    Args:
        surrogates: Models to attack, by name.
        targets: Models to evaluate, by name.
        data: Samples; for "population" drawn independently of all models.
        attacks: The attempts on each surrogate; the paper's are `attack_presets.black_box_attacks(eps)`.
            Their failure policy must not be "clean", which gives up on what the surrogate withstands.
        support: "finite": exact rates on `data`. "population": Clopper-Pearson intervals.
        confidence: Confidence of each single interval.
        pixel_range: Range of valid values, None for data without one.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If there are no surrogates, targets or attacks, an attack leaves clean images where it
            fails, or a shape, a label, a value, the support's name or the confidence does not fit.
    """
    check_statistics(support, confidence)
    for kind, given in (("surrogate", surrogates), ("target", targets), ("attack", attacks)):
        if not given:
            raise ValueError(f"expected at least one {kind}, got none")
    for attack in attacks:
        if attack.on_failure == "clean":
            raise ValueError(f"expected attempts that keep their failures, got clean images from {attack}")
    classes = check_inputs((*surrogates.values(), *targets.values()), data.x, batch_size)
    y = check_labels(data.y, data.x, classes)

    clean = {name: predict(model, data.x, batch_size=batch_size) == y for name, model in targets.items()}
    robust = dict(clean)
    attempts = []
    for surrogate, model in surrogates.items():
        for attack in attacks:
            result = run_attack(model, data.x, y, attack, pixel_range=pixel_range, batch_size=batch_size)
            fooled = {}
            for name, target in targets.items():
                right = predict(target, result.x_adv, batch_size=batch_size) == y
                robust[name] = robust[name] & right
                fooled[name] = int((~right).sum())
            attempts.append(Attempt(surrogate, attack, int(result.success.sum()), fooled, result.health))
    words = f"{len(attempts)} attempts on {', '.join(surrogates)}: {'; '.join(map(str, attacks))}"
    survivals = {name: Survival.of(clean[name], robust[name], words, support, confidence) for name in targets}
    return BlackBox(survivals, tuple(attempts))
