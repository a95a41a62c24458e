"""Paper and measured side by side: the entries of an item, its claims, its checks, as data and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bounds.estimate import json_number
from empirical.attacks import Attack, AttackHealth
from empirical.report.summary import Table
from empirical.reproduce.cells import BlackBoxCell, Cell, TransferCell, WhiteBoxCell
from empirical.reproduce.claims import Verdict, claims_on, judge
from empirical.reproduce.contrasts import contrast_table, contrasts, value_table
from empirical.reproduce.entries import Entry, in_words
from empirical.reproduce.items import BlackBox, Clean, Curves, Row, Slice, Transfer, WhiteBox, Worst
from empirical.reproduce.plan import Plan
from empirical.reproduce.printed import printed_numbers
from empirical.reproduce.queue import Store
from empirical.reproduce.readings import read


@dataclass(frozen=True)
class Outcome:
    """An item, as far as it has been measured.

    Attributes:
        plan: What was to be measured.
        scale: At which scale.
        entries: Every row and column, row by row.
        verdicts: The paper's claims on it.
        ensembles: For each data set and column, over seeds: smallest accuracy of an ensemble and of a member.
        warnings: Signs that an attack did not work as meant.
        missing: Cells without a result.
        seconds: CPU time of the finished cells.
        environments: Versions and hardware that they were measured with.
    """

    plan: Plan
    scale: str
    entries: tuple[Entry, ...]
    verdicts: tuple[Verdict, ...]
    ensembles: tuple[tuple[str, str, float, float], ...]
    warnings: tuple[str, ...]
    missing: int
    seconds: float
    environments: tuple[Mapping[str, str], ...]

    @property
    def measured_on(self) -> str:
        """The data sets that stand for the paper's."""
        return ", ".join(sorted({setting.dataset for setting in self.plan.settings.values()}))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "item": self.plan.item.name,
            "title": self.plan.item.title,
            "scale": self.scale,
            "measured_on": self.measured_on,
            "seeds": {name: list(seeds) for name, seeds in self.plan.seeds.items()},
            "entries": [
                {**line, "by_seed": _by_seed(entry)}
                for line, entry in zip(_lines(self), self.entries, strict=True)
            ],
            "claims": [
                {
                    "claim": verdict.claim.words,
                    "source": verdict.claim.source,
                    "answer": verdict.answer,
                    "differences": [
                        {
                            "what": each.words,
                            "beyond": each.beyond,
                            "estimate": None if found is None else found.to_json(),
                        }
                        for each, found in zip(verdict.claim.differences, verdict.found, strict=True)
                    ],
                }
                for verdict in self.verdicts
            ],
            "contrasts": [each.to_json() for each in contrasts(self.entries)],
            "ensembles": [
                {"dataset": dataset, "column": column, "lowest_accuracy": low, "weakest_member": weakest}
                for dataset, column, low, weakest in self.ensembles
            ],
            "warnings": list(self.warnings),
            "missing_cells": self.missing,
            "cpu_seconds": self.seconds,
            "environments": [dict(each) for each in self.environments],
        }

    def to_csv(self) -> str:
        """One line per entry, seeds in one field."""
        file = io.StringIO()
        lines = list(_lines(self))
        writer = csv.DictWriter(file, [*lines[0], "by_seed"], lineterminator="\n")
        writer.writeheader()
        for line, entry in zip(lines, self.entries, strict=True):
            by_seed = " ".join(f"{seed}:{value}" for seed, value in _by_seed(entry).items())
            writer.writerow({**line, "by_seed": by_seed})
        return file.getvalue()


def collect(plan: Plan, scale: str, store: Store) -> Outcome:
    """Join what is finished of an item with the paper's numbers."""
    item = plan.item
    printed = {place: number for table in item.tables for place, number in printed_numbers(table).items()}
    readings = {(row, column): read(plan, store, row, column) for row in item.rows for column in item.columns}
    entries = tuple(
        Entry(
            row,
            column,
            printed.get((row.dataset, row.label, row.parameter, column.label)),
            measured_as(plan, row),
            reading,
        )
        for (row, column), reading in readings.items()
    )
    records = {cell: store.load(cell) for cell in plan.cells if store.finished(cell)}
    environments = {tuple(sorted(record["environment"].items())) for record in records.values()}
    return Outcome(
        plan=plan,
        scale=scale,
        entries=entries,
        verdicts=tuple(judge(claim, lambda *place: readings[place]) for claim in claims_on(item.papers)),
        ensembles=tuple(_ensembles(plan, records)),
        warnings=tuple(_warnings(records)),
        missing=len(plan.cells) - len(records),
        seconds=sum(record["seconds"]["cpu"] for record in records.values()),
        environments=tuple(dict(each) for each in sorted(environments)),
    )


def measured_as(plan: Plan, row: Row) -> str:
    """What was run in the place of a row of the paper, and on which data."""
    setting = plan.settings[row.dataset]
    match row.protocol:
        case Clean():
            what = "not attacked"
        case Worst(attacks):
            what = f"{len(attacks)} attacks, linf {setting.radius(row.protocol.eps, row.dataset):g}"
        case WhiteBox(attack) | Transfer(attack):
            what = str(setting.attack(attack, row.dataset))
        case BlackBox(eps):
            attempts = setting.attempts(eps, row.dataset)
            what = f"linf {attempts[0].eps:g}, {attempts[0].steps} steps"
        case Slice():
            what = f"{setting.slice_points} points"
        case Curves():
            what = f"{setting.samples} points, not attacked"
    return f"{setting.dataset}: {what}"


def number_tables(outcome: Outcome) -> list[Table]:
    """What an item shows: paper and measured side by side, or where columns are compared, the contrasts."""
    found = list(contrasts(outcome.entries))
    if not found:
        return [side_by_side(outcome)]
    against = dict.fromkeys(each.column.against for each in found)
    return [value_table(outcome.entries), *(contrast_table(found, other) for other in against)]


def side_by_side(outcome: Outcome) -> Table:
    """One line per row, each column with the paper's number and the measured one."""
    columns = outcome.plan.item.columns
    header = ("paper", "row", "measured as", *(column.label for column in columns))
    rows = []
    for start in range(0, len(outcome.entries), len(columns)):
        entries = outcome.entries[start : start + len(columns)]
        row = entries[0].row
        name = f"{row.label} {row.parameter}".strip()
        if isinstance(row.protocol, Transfer):
            name += f": {row.measure}"
        rows.append((row.dataset, name, entries[0].measured_as, *map(_both, entries)))
    has_numbers = any(entry.printed for entry in outcome.entries)
    unit = "in l2" if isinstance(outcome.plan.item.rows[0].protocol, Slice) else "in per cent"
    what = "paper / measured" if has_numbers else "measured"
    return Table(f"{what} [interval at 95 %], {unit}", header, tuple(rows))


def claim_table(outcome: Outcome) -> Table:
    """Each claim of the paper with the answer, and the number on which it rests."""
    rows = [
        (verdict.answer, verdict.claim.words, verdict.claim.source, outcome.measured_on, _reason(verdict))
        for verdict in outcome.verdicts
    ]
    header = ("answer", "claim of the paper", "source", "measured on", "decided by")
    return Table("What the paper claims, and what was measured", header, tuple(rows))


def _reason(verdict: Verdict) -> str:
    if verdict.decisive is None:
        return "-"
    difference, estimate = verdict.decisive
    wanted = f", has to exceed {difference.beyond:g}" if difference.beyond else ""
    more = f" (the least of {len(verdict.found)})" if len(verdict.found) > 1 else ""
    interval = f"[{estimate.lower:+.3f}, {estimate.upper:+.3f}]"
    return f"{difference.words}: {estimate.value:+.3f} {interval}{wanted}{more}"


def _both(entry: Entry) -> str:
    paper = f"{entry.printed.percent:.1f}{'*' if entry.printed.note else ''} / " if entry.printed else ""
    return paper + _measured(entry)


def _measured(entry: Entry) -> str:
    if entry.estimate is None:
        return "-"
    return in_words(entry.estimate, entry.row)


def _by_seed(entry: Entry) -> dict[int, float]:
    if entry.reading is None:
        return {}
    return {seed: round(entry.unit * value, 4) for seed, value in entry.reading.by_seed.items()}


def _lines(outcome: Outcome) -> Iterator[dict[str, Any]]:
    for entry in outcome.entries:
        found = entry.estimate
        yield {
            "paper_dataset": entry.row.dataset,
            "row": entry.row.label,
            "parameter": entry.row.parameter,
            "measure": entry.row.measure,
            "column": entry.column.label,
            "paper": entry.printed.percent if entry.printed else None,
            "paper_note": entry.printed.note if entry.printed else "",
            "scale": outcome.scale,
            "measured_as": entry.measured_as,
            **{
                name: None if found is None else json_number(round(entry.unit * getattr(found, end), 4))
                for name, end in (("measured", "value"), ("lower", "lower"), ("upper", "upper"))
            },
            "interval": "" if found is None else found.method,
        }


def _ensembles(
    plan: Plan, records: Mapping[Cell, Mapping[str, Any]]
) -> Iterator[tuple[str, str, float, float]]:
    """Accuracies: an ensemble can look well while its members have collapsed."""
    by_dataset = {setting.dataset: name for name, setting in plan.settings.items()}
    for dataset, name in by_dataset.items():
        for column in plan.item.columns:
            cells = [plan.training(name, column, seed) for seed in plan.seeds[name]]
            found = [records[cell]["result"] for cell in cells if cell in records]
            if found:
                lowest = min(each["ensemble"] for each in found)
                yield dataset, column.label, lowest, min(each["weakest"] for each in found)


def _warnings(records: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    """Attacks that may not have worked as meant, each once: zero gradients, black or invalid images."""
    found: dict[str, list[AttackHealth]] = {}
    for cell, record in records.items():
        for attack, health in _healths(cell, record["result"]):
            found.setdefault(attack, []).append(AttackHealth.from_json(health))
    for attack, healths in found.items():
        zero = sorted(health.zero_gradients for health in healths if health.often_without_gradient)
        if zero:
            share = f"{zero[0]:.0%} to {zero[-1]:.0%}"
            yield f"{attack}: {share} of the gradients were zero, in {len(zero)} of {len(healths)} runs"
        invalid = sum(health.broken_images for health in healths)
        if invalid:
            yield f"{attack}: black images or invalid pixels, in {invalid} of {len(healths)} runs"


def _healths(cell: Cell, result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every attack that a cell ran, in words, with the health that it reported."""
    if isinstance(cell, WhiteBoxCell):
        yield str(cell.attack), result["health"]
    elif isinstance(cell, TransferCell):
        yield from ((f"{cell.attack} on a member", health) for health in result["health"])
    elif isinstance(cell, BlackBoxCell):
        for attempt in result["attempts"]:
            yield f"{Attack.from_json(attempt['attack'])} on a surrogate", attempt["health"]
