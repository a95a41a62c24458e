"""What `estimate-smoothness` found: plain data that is saved as JSON and from which its figure is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bounds import Estimate
from empirical.files import read_results, write_json
from estimators.smoothness import Sampling

SCHEMA = "transferbounds/smoothness/1"

POINTS, SEGMENTS, BALLS, SPACE = "points", "segments", "balls", "space"
SETS: Mapping[str, str] = {
    POINTS: "data points",
    SEGMENTS: "the attack's segments",
    BALLS: "balls around the points",
    SPACE: "whole input space",
}
"""Nested sets; the loss is taken at the true label, over the whole space at every label (Definition 6)."""


@dataclass(frozen=True)
class MemberStudy:
    """One model.

    Attributes:
        name: Its name in tables and figures.
        digest: Of its weights, so that a finished model is not measured again.
        accuracy: Share of the points that it labels correctly.
        kinks: Layers and operations that leave it without a finite smoothness constant.
        uncertified: Why there are no certified upper ends; empty where there are.
        smoothness: beta over each set of `SETS` (those that were asked for): sampled lower end, certified
            upper end.
        gradient: Largest gradient norm B over the points, the balls and the whole space.
        remainder: Exact second-order remainder of the attack that was run, None without a radius.
        convergence: Best smoothness sampled so far against the number of gradient evaluations per sample.
        divergence: For a model with kinks: distances h and gradient quotients at those distances, on the
            segment where the gradient jumps most, with their slope in log 1/h (1 at a kink, 0 without).
        finite_scale: For a model with kinks: distances h, and the largest gradient quotient seen over pairs
            in the balls that are at least h apart.
        seconds: Time that each part took.
    """

    name: str
    digest: str
    accuracy: Estimate
    kinks: tuple[str, ...]
    uncertified: str
    smoothness: Mapping[str, Estimate]
    gradient: Mapping[str, Estimate]
    remainder: Estimate | None
    convergence: tuple[tuple[float, float], ...]
    divergence: Mapping[str, Any] | None
    finite_scale: tuple[tuple[float, float], ...]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "name": self.name,
            "digest": self.digest,
            "accuracy": self.accuracy.to_json(),
            "kinks": list(self.kinks),
            "uncertified": self.uncertified,
            "smoothness": {where: each.to_json() for where, each in self.smoothness.items()},
            "gradient": {where: each.to_json() for where, each in self.gradient.items()},
            "remainder": self.remainder and self.remainder.to_json(),
            "convergence": [list(point) for point in self.convergence],
            "divergence": self.divergence,
            "finite_scale": [list(point) for point in self.finite_scale],
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MemberStudy:
        """The study that `to_json` described."""
        read = Estimate.from_json
        return cls(
            name=fields["name"],
            digest=fields["digest"],
            accuracy=read(fields["accuracy"]),
            kinks=tuple(fields["kinks"]),
            uncertified=fields["uncertified"],
            smoothness={where: read(each) for where, each in fields["smoothness"].items()},
            gradient={where: read(each) for where, each in fields["gradient"].items()},
            remainder=fields["remainder"] and read(fields["remainder"]),
            convergence=_points(fields["convergence"]),
            divergence=fields["divergence"],
            finite_scale=_points(fields["finite_scale"]),
            seconds=fields["seconds"],
        )


@dataclass(frozen=True)
class PairStudy:
    """Gradient similarity of two models (TRS, Definition 5), infimum and supremum over a set of `SETS`."""

    first: str
    second: str
    infimum: Mapping[str, Estimate]
    supremum: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        ends = {"infimum": self.infimum, "supremum": self.supremum}
        return {
            "first": self.first,
            "second": self.second,
            **{name: {where: each.to_json() for where, each in end.items()} for name, end in ends.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PairStudy:
        """The study that `to_json` described."""
        ends = [
            {where: Estimate.from_json(each) for where, each in fields[name].items()}
            for name in ("infimum", "supremum")
        ]
        return cls(fields["first"], fields["second"], *ends)


@dataclass(frozen=True)
class Settings:
    """What was asked for: enough to run it again.

    Attributes:
        data: Name of the data set, or the file of the user's own.
        samples: Number of points.
        radius: l2 radius of the balls and of the attack.
        method: How smoothness was sampled.
        certify: Whether certified ends were asked for.
        seed: Of samples and starting points.
    """

    data: str
    samples: int
    radius: float
    method: Sampling
    certify: bool
    seed: int


@dataclass(frozen=True)
class SmoothnessStudy:
    """A whole run of `estimate-smoothness`."""

    settings: Settings
    environment: Mapping[str, Any]
    members: tuple[MemberStudy, ...]
    pairs: tuple[PairStudy, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the schema's name and version."""
        return {
            "schema": SCHEMA,
            "settings": asdict(self.settings),
            "environment": dict(self.environment),
            "members": [member.to_json() for member in self.members],
            "pairs": [pair.to_json() for pair in self.pairs],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SmoothnessStudy:
        """The study that `to_json` described."""
        return cls(
            settings=Settings(**fields["settings"]),
            environment=fields["environment"],
            members=tuple(MemberStudy.from_json(member) for member in fields["members"]),
            pairs=tuple(PairStudy.from_json(pair) for pair in fields["pairs"]),
        )


def save_study(path: Path, study: SmoothnessStudy) -> None:
    """Write a study as strict JSON, atomically."""
    write_json(path, study.to_json())


def load_study(path: Path) -> SmoothnessStudy:
    """Read a saved study.

    Raises:
        ResultsError: If the file is missing, is not JSON, or has another schema.
    """
    return SmoothnessStudy.from_json(read_results(path, SCHEMA))


def _points(pairs: Iterable[Iterable[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(first), float(second)) for first, second in pairs)
