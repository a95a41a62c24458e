"""What a comparison found: plain data that is saved as JSON and from which every figure is drawn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bounds import Estimate
from empirical.comparison.rows import PLAIN_FIELDS, Frontier, JointRow, Row
from empirical.files import read_results, write_text

SCHEMA = "transferbounds/comparison/2"


@dataclass(frozen=True)
class EnsembleResult:
    """Everything that was measured on one ensemble.

    Attributes:
        name: Name of the ensemble, such as its training method.
        members: Number of members.
        accuracy: Clean accuracy of the ensemble on the evaluation set.
        member_accuracy: Clean accuracy of each member.
        kinks: Layers that make the smoothness infinite, empty for a smooth ensemble.
        robustness: Robust accuracy of the ensemble: one mapping (attack, estimate, health) per attack.
        benign: Quantities that do not depend on the attack, per member and per pair.
        matrices: Transfer matrices as `TransferMatrix.to_json()`, one per mode, norm, radius and attack on
            a member.
        rows: Statements about ordered pairs beside measurements.
        joint: Certificates about several members fooled together beside attacks.
        frontiers: Up to which radius each statement is informative.
        provenance: Where the ensemble came from: checkpoint metadata.
    """

    name: str
    members: int
    accuracy: Estimate
    member_accuracy: tuple[Estimate, ...]
    kinks: tuple[str, ...]
    robustness: tuple[Mapping[str, Any], ...]
    benign: Mapping[str, Any]
    matrices: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    joint: tuple[JointRow, ...] = ()
    frontiers: tuple[Frontier, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weakest(self) -> Estimate:
        """Accuracy of the weakest member: an ensemble can look well while its members have collapsed."""
        return min(self.member_accuracy, key=lambda estimate: estimate.value)

    @property
    def beta(self) -> Estimate:
        """Smoothness of the members: sampled on the set from below, certified over all inputs from above."""
        return Estimate.from_json(self.benign["smoothness"])

    def robust_accuracy(self, eps: float) -> Estimate:
        """Robust accuracy of the ensemble at a radius that was attacked."""
        return next(entry["estimate"] for entry in self.robustness if entry["attack"]["eps"] == eps)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; the rows' estimates stand in one table, most of them serve many rows."""
        places: dict[Estimate, int] = {}
        rows = [row.to_json(places) for row in self.rows]
        return {
            "name": self.name,
            "members": self.members,
            "accuracy": self.accuracy.to_json(),
            "member_accuracy": [estimate.to_json() for estimate in self.member_accuracy],
            "kinks": list(self.kinks),
            "robustness": [{**entry, "estimate": entry["estimate"].to_json()} for entry in self.robustness],
            "benign": self.benign,
            "matrices": list(self.matrices),
            "estimates": [estimate.to_json() for estimate in places],
            "rows": rows,
            "joint": [row.to_json() for row in self.joint],
            "frontiers": [frontier.to_json() for frontier in self.frontiers],
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EnsembleResult:
        """The result that `to_json` described."""
        estimates = [Estimate.from_json(value) for value in fields["estimates"]]
        return cls(
            name=fields["name"],
            members=fields["members"],
            accuracy=Estimate.from_json(fields["accuracy"]),
            member_accuracy=tuple(Estimate.from_json(value) for value in fields["member_accuracy"]),
            kinks=tuple(fields["kinks"]),
            robustness=tuple(
                {**entry, "estimate": Estimate.from_json(entry["estimate"])} for entry in fields["robustness"]
            ),
            benign=fields["benign"],
            matrices=tuple(fields["matrices"]),
            rows=tuple(Row.from_json(row, estimates) for row in fields["rows"]),
            joint=tuple(JointRow.from_json(row) for row in fields["joint"]),
            frontiers=tuple(Frontier.from_json(frontier) for frontier in fields["frontiers"]),
            provenance=fields["provenance"],
        )


@dataclass(frozen=True)
class Settings:
    """What was asked for: enough to run it again.

    Attributes:
        dataset: Name of the data set.
        samples: Number of held-out samples that were evaluated.
        classes: Number of labels.
        eps: l2 radii of the transfer attacks.
        linf_eps: linf radii of the transfer attacks; empty if there were none.
        target_label: Label y_t of the targeted attacks.
        attacks: The transfer attacks by name, without norm and radius.
        robust_eps: linf radii of the attack on the ensemble as a whole.
        support: "finite" (claims about the evaluated set) or "population" (an i.i.d. sample).
        confidence: Confidence of every statistical interval.
        seed: Seed of training and attacks.
    """

    dataset: str
    samples: int
    classes: int
    eps: tuple[float, ...]
    linf_eps: tuple[float, ...]
    target_label: int
    attacks: Mapping[str, Mapping[str, Any]]
    robust_eps: tuple[float, ...]
    support: str
    confidence: float
    seed: int


@dataclass(frozen=True)
class Comparison:
    """A whole run: settings, environment and one result per ensemble."""

    settings: Settings
    environment: Mapping[str, Any]
    ensembles: tuple[EnsembleResult, ...]

    def __str__(self) -> str:
        """The verdict and the tables that matter, for a terminal."""
        from empirical.report.verdict import in_words  # which reads comparisons

        return in_words(self)

    def rows(self) -> Iterator[Row]:
        """All rows of all ensembles."""
        for ensemble in self.ensembles:
            yield from ensemble.rows

    def joint(self) -> Iterator[JointRow]:
        """All joint rows of all ensembles."""
        for ensemble in self.ensembles:
            yield from ensemble.joint

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the schema's name and version."""
        return {
            "schema": SCHEMA,
            "settings": asdict(self.settings),
            "environment": dict(self.environment),
            "ensembles": [ensemble.to_json() for ensemble in self.ensembles],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_json` described."""
        settings = dict(fields["settings"])
        for name in ("eps", "linf_eps", "robust_eps"):
            settings[name] = tuple(settings[name])
        return cls(
            settings=Settings(**settings),
            environment=fields["environment"],
            ensembles=tuple(EnsembleResult.from_json(value) for value in fields["ensembles"]),
        )


def save_results(path: Path, comparison: Comparison) -> None:
    """Write a comparison as strict JSON (no NaN or Infinity literals), atomically."""
    # Thousands of rows, each complete in itself: without indentation the file is half as large.
    write_text(path, json.dumps(comparison.to_json(), allow_nan=False, separators=(",", ":")))


def save_table(path: Path, comparison: Comparison) -> None:
    """Write one line per row as CSV, atomically: for a spreadsheet or a data frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bound_fields = ("value", "guaranteed", "status", "grade")
    measured_fields = ("value", "lower", "upper")
    writer.writerow([*PLAIN_FIELDS, *bound_fields, *(f"measured_{name}" for name in measured_fields)])
    for row in comparison.rows():
        plain = [getattr(row, name) for name in PLAIN_FIELDS]
        measured = [getattr(row.measured, name) for name in measured_fields]
        writer.writerow([*plain, *(row.bound[name] for name in bound_fields), *measured])
    write_text(path, text.getvalue())


def load_results(path: Path) -> Comparison:
    """Read a saved comparison.

    Raises:
        ResultsError: If the file is missing, is not JSON, or has another schema.
    """
    return Comparison.from_json(read_results(path, SCHEMA))
