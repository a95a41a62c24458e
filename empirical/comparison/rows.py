"""Lines of a comparison: statements about ordered pairs, certificates about several members at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bounds import Estimate

# Statements about the event that both models are right and, targeted, that the label is not the target yet.
ON_BOTH_CORRECT = {
    "theorem-3-repaired",
    "theorem-4-repaired",
    "refined-r3",
    "refined-r3-untargeted",
    "refined-r4",
    "refined-cantelli",
}
# Name of the attack that is built on both members of a pair; every other one is built on the surrogate.
ON_BOTH_MEMBERS = "joint"


@dataclass(frozen=True)
class Row:
    """One statement beside one measurement: an ordered pair of members, an attack and a radius.

    Attributes:
        ensemble: Name of the ensemble.
        surrogate: Index of the member on which the attack was built (F).
        target: Index of the member to which it may transfer (G).
        mode: "untargeted" or "targeted".
        norm: Norm of the attack's ball, "l2" or "linf".
        eps: Radius of the attack, in that norm. The statements are about l2: under a linf attack their eps,
            in `quantities`, is the largest l2 size that the attack reached.
        attack: Name of the attack that was measured; "joint" was built on both members at once.
        statement: Identifier in `bounds.STATEMENTS`.
        smoothness: Which smoothness constant was used: "segment" or "remainder" (see `compare`).
        bound: `BoundValue.to_json()` of the evaluation.
        quantities: What went into the formula.
        measured: The transfer rate that the statement speaks about.
        slack: Measured minus lower bound, or upper bound minus measured; None where inapplicable.
        verdict: consistent, violated, vacuous, inapplicable or inconclusive.
        reason: Why, in words.
    """

    ensemble: str
    surrogate: int
    target: int
    mode: str
    norm: str
    eps: float
    attack: str
    statement: str
    smoothness: str
    bound: Mapping[str, Any]
    quantities: Mapping[str, Estimate]
    measured: Estimate
    slack: float | None
    verdict: str
    reason: str

    def to_json(self, places: dict[Estimate, int]) -> dict[str, Any]:
        """A JSON-ready mapping, with estimates as places in a table that many rows share.

        Args:
            places: The table: the place of each estimate. What is new is added.
        """
        quantities = {
            name: places.setdefault(estimate, len(places)) for name, estimate in self.quantities.items()
        }
        return {
            **{name: getattr(self, name) for name in PLAIN_FIELDS},
            "bound": dict(self.bound),
            "quantities": quantities,
            "measured": places.setdefault(self.measured, len(places)),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], estimates: Sequence[Estimate]) -> Row:
        """The row that `to_json` described, and the table's estimates in the order of their places."""
        return cls(
            **{name: fields[name] for name in PLAIN_FIELDS},
            bound=fields["bound"],
            quantities={name: estimates[place] for name, place in fields["quantities"].items()},
            measured=estimates[fields["measured"]],
        )


PLAIN_FIELDS = (
    "ensemble", "surrogate", "target", "mode", "norm", "eps", "attack", "statement", "smoothness",
    "slack", "verdict", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class JointRow:
    """R2 and R7 beside every attack that was run: `together` of some members fooled by one perturbation.

    All rates are over all evaluated points; a point counts where all `models` are right on the clean input
    and, targeted, the label is not the target.

    Attributes:
        ensemble: Name of the ensemble.
        models: Indices of the members in question.
        together: How many of them the perturbation has to fool at once.
        mode: "untargeted" or "targeted".
        norm: Norm of the ball, "l2" or "linf".
        eps: Radius of the ball, in that norm.
        eligible: Rate of the points that can count: what is trivially known of every attack.
        certified: Rate of the strongest attack in the ball, bracketed. `value` and `upper`: R2, points
            without a certificate. `lower`: points proved to be fooled (R7) or found so by an attack.
        must_transfer: Rate of the points proved to be fooled from the clean input alone (R7).
        found: Rate of the points fooled by some attack: pointwise over the attacks that were run.
        attacks: Rate of each attack by name; one that is built on a single member counts a point where it
            succeeds from any of `models`. "joint" was built on all of them at once.
        single: For each of `models` alone, the rate of the points that it gets right and that are not
            certified for it; norm, radius and mode as here.
        slack: R2 minus found.
        verdict: consistent, violated (an attack fools a point that is certified), vacuous (no point that
            can count is certified) or inapplicable (a layer has no certificate).
        reason: Why, in words.
    """

    ensemble: str
    models: tuple[int, ...]
    together: int
    mode: str
    norm: str
    eps: float
    eligible: Estimate
    certified: Estimate
    must_transfer: Estimate
    found: Estimate
    attacks: Mapping[str, Estimate]
    single: tuple[Estimate, ...]
    slack: float
    verdict: str
    reason: str

    @property
    def subset(self) -> str:
        """The members in words, such as "0+1" or "2 of 0+1+2"."""
        return members_in_words(self.models, self.together)

    @property
    def informative(self) -> bool:
        """Whether R2 says more than which points can count at all."""
        return self.verdict not in ("inapplicable", "vacuous")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            **{name: getattr(self, name) for name in JOINT_FIELDS},
            "models": list(self.models),
            **{name: getattr(self, name).to_json() for name in JOINT_RATES},
            "attacks": {name: estimate.to_json() for name, estimate in self.attacks.items()},
            "single": [estimate.to_json() for estimate in self.single],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JointRow:
        """The row that `to_json` described."""
        rates: dict[str, Any] = {name: Estimate.from_json(fields[name]) for name in JOINT_RATES}
        return cls(
            **{name: fields[name] for name in JOINT_FIELDS},
            models=tuple(fields["models"]),
            **rates,
            attacks={name: Estimate.from_json(value) for name, value in fields["attacks"].items()},
            single=tuple(Estimate.from_json(value) for value in fields["single"]),
        )


JOINT_FIELDS = ("ensemble", "together", "mode", "norm", "eps", "slack", "verdict", "reason")
JOINT_RATES = ("eligible", "certified", "must_transfer", "found")


@dataclass(frozen=True)
class Frontier:
    """Up to which radius a statement is informative, without a gap from the smallest radius tried.

    Attributes:
        statement: Identifier in `bounds.STATEMENTS`, or "refined-r2" for certificates.
        mode: "untargeted" or "targeted".
        norm: Norm of the radii.
        models: Members that it is about: all for a statement about ordered pairs, its own for a certificate.
        together: How many of them are fooled at once; 2 for ordered pairs.
        level: What an upper bound has to stay below, a lower bound above, to count: 1 and 0, for R2 1/2
            (below 1 it always is, because misclassified points do not count).
        guaranteed: Largest radius at which the guaranteed bound says something for every ordered pair and
            attack; None if there is none.
        guaranteed_best: The same for at least one ordered pair, under every attack.
        heuristic: As `guaranteed`, for the point values, guaranteed or not.
        heuristic_best: As `guaranteed_best`, for the point values.
        refined: Where between two radii of the grid `guaranteed_best` ends, by bisection: for a certificate
            with certificates at the radii between, for a formula with the quantities at the end of the
            interval that are worse for it. None where the grid does not bracket it.
    """

    statement: str
    mode: str
    norm: str
    models: tuple[int, ...]
    together: int
    level: float
    guaranteed: float | None
    guaranteed_best: float | None
    heuristic: float | None
    heuristic_best: float | None
    refined: float | None = None

    @property
    def subset(self) -> str:
        """The members in words, such as "0+1" or "2 of 0+1+2"."""
        return members_in_words(self.models, self.together)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {**asdict(self), "models": list(self.models)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Frontier:
        """The frontier that `to_json` described."""
        return cls(**{**fields, "models": tuple(fields["models"])})


def members_in_words(models: tuple[int, ...], together: int) -> str:
    """Which members are fooled at once, such as "0+1" or "2 of 0+1+2"."""
    all_of_them = "+".join(map(str, models))
    return all_of_them if together == len(models) else f"{together} of {all_of_them}"
