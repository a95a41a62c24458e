"""The outcome of the study as plain data: saved as JSON, from which tables and figures are drawn."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from empirical.config import TrainingConfig
from empirical.files import read_results, write_text
from empirical.study.analysis import (
    bootstrap_of,
    bound_correlations,
    correlations,
    effect,
    main_outcomes,
    outcomes_of,
    partial_correlations,
    predictors_of,
)
from empirical.study.claims import Examiner, answer_claims
from empirical.study.measure import Record
from empirical.study.observations import ENSEMBLE, PAIR, Table, tabulate
from empirical.study.plan import Plan

SCHEMA = "transferbounds/study/1"
Records = Mapping[str, tuple[TrainingConfig, Record]]


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        settings: Scale and how it was measured.
        environment: Versions and hardware.
        ensembles: A line for each ensemble.
        pairs: A line for each pair of members.
        correlations: `Correlation.to_json()`, plain and partial, of both tables.
        bounds: `BoundCorrelation.to_json()`.
        effects: `Effect.to_json()`.
        claims: `Claim.to_json()`.
        verdicts: By statement, how often each verdict was given.
        evaluations: Number of measured rates that were held against a guaranteed bound.
        violations: Where a measured rate lies outside a guaranteed bound.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    ensembles: Table
    pairs: Table
    correlations: list[dict[str, Any]]
    bounds: list[dict[str, Any]]
    effects: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    verdicts: dict[str, dict[str, int]]
    evaluations: int
    violations: list[dict[str, Any]]

    def correlation(
        self,
        predictor: str,
        outcome: str,
        measure: str = "spearman",
        *,
        given: str = "",
        unit: str = ENSEMBLE,
    ) -> dict[str, Any] | None:
        """The interval of a correlation; None where there is none."""
        wanted = unit, predictor, outcome, measure, given
        for line in self.correlations:
            if wanted == tuple(line[name] for name in ("unit", "predictor", "outcome", "measure", "given")):
                interval: dict[str, Any] | None = line["interval"]
                return interval
        return None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the schema's name and version."""
        tables = {"ensembles": self.ensembles.to_json(), "pairs": self.pairs.to_json()}
        return {"schema": SCHEMA, **self.__dict__, **tables}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Study:
        """The study that `to_json` described."""
        values = {name: value for name, value in fields.items() if name != "schema"}
        tables = {name: Table.from_json(values[name]) for name in ("ensembles", "pairs")}
        return cls(**{**values, **tables})


def analyse(scale: str, plan: Plan, records: Records, environment: Mapping[str, Any]) -> Study:
    """Everything that is worked out from the records of the ensembles.

    Args:
        scale: Name of the plan.
        plan: How the records were measured.
        records: Configuration and record of each ensemble, by its key; at least one.
        environment: Versions and hardware.
    """
    settings = {
        "scale": scale, "dataset": plan.configs[0].dataset, "planned": len(plan.configs),
        "attacked": asdict(plan.attacked), "certified": asdict(plan.certified), "resamples": plan.resamples,
        "outcomes": main_outcomes(plan),
    }  # fmt: skip
    ensembles, pairs = (tabulate(records, unit) for unit in (ENSEMBLE, PAIR))
    found = []
    for table in (ensembles, pairs):
        bootstrap = bootstrap_of(table, plan.resamples)
        found += correlations(table, bootstrap)
        rates = [name for name in main_outcomes(plan).values() if name in outcomes_of(table)]
        found += partial_correlations(table, bootstrap, rates)
    measured = {key: record for key, (_, record) in records.items()}
    certificates = [name for name in ensembles.numbers if name.startswith(("certified (", "single ("))]
    quantities = [*predictors_of(ensembles), *outcomes_of(ensembles), *certificates]
    effects = [effect(ensembles, weight, name) for weight in ("lambda_a", "lambda_b") for name in quantities]
    claims = answer_claims(Examiner(ensembles, pairs, plan))
    verdicts: dict[str, Counter[str]] = {}
    for record in measured.values():
        for statement, counts in record["verdicts"].items():
            verdicts.setdefault(statement, Counter()).update(counts)
    study = Study(
        settings, environment, ensembles, pairs,
        correlations=[each.to_json() for each in found],
        bounds=[each.to_json() for each in bound_correlations(measured, plan.resamples)],
        effects=[each.to_json() for each in effects if each is not None],
        claims=[each.to_json() for each in claims],
        verdicts={statement: dict(counts) for statement, counts in sorted(verdicts.items())},
        evaluations=sum(record["evaluations"] for record in measured.values()),
        violations=[row for record in measured.values() for row in record["violations"]],
    )  # fmt: skip
    return Study.from_json(json.loads(json.dumps(study.to_json(), allow_nan=False)))


def save_study(folder: Path, study: Study) -> None:
    """Write `study.json` and the tables as CSV, each atomically."""
    write_text(
        folder / "study.json", json.dumps(study.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
    )
    for name, table in (("ensembles", study.ensembles), ("pairs", study.pairs)):
        labels = dict(table.labels)
        columns = {"name": table.names, **labels, **table.to_json()["numbers"]}
        write_text(folder / f"{name}.csv", _csv(list(columns), list(zip(*columns.values(), strict=True))))
    write_text(folder / "correlations.csv", _csv(*_flat(study.correlations, ("interval",))))
    write_text(folder / "bounds.csv", _csv(*_flat(study.bounds, ("spearman", "kendall"))))
    write_text(folder / "effects.csv", _csv(*_flat(study.effects, ())))


def load_study(path: Path) -> Study:
    """Read a saved study.

    Raises:
        ResultsError: If the file is missing, is not JSON, or has another schema.
    """
    return Study.from_json(read_results(path, SCHEMA))


def _flat(lines: list[dict[str, Any]], intervals: tuple[str, ...]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows, with the parts of an interval in columns of their own."""
    if not lines:
        return [], []
    parts = ("value", "lower", "upper", "groups")
    plain = [name for name in lines[0] if name not in intervals]
    header = [*plain, *(f"{name}_{part}" for name in intervals for part in parts)]
    rows = []
    for line in lines:
        ends = [(line[name] or {}).get(part, "") for name in intervals for part in parts]
        rows.append(
            [*(" ".join(line[name]) if isinstance(line[name], list) else line[name] for name in plain), *ends]
        )
    return header, rows


def _csv(header: list[str], rows: list[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()
