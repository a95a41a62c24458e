"""Columns of an item that are each compared with another one: what a change alone does, and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bounds.estimate import Estimate
from empirical.report.summary import Table
from empirical.reproduce.entries import Entry, in_words
from empirical.reproduce.items import Column, Row

LOWER, HIGHER, OPEN = "lower", "higher", "open"


@dataclass(frozen=True)
class Contrast:
    """What a column's number has over that of the column that it is compared with.

    Attributes:
        row: The row.
        column: The column.
        difference: The column's number less the other's, over the seeds that both have; its interval at
            95 % is not corrected for the number of contrasts.
    """

    row: Row
    column: Column
    difference: Estimate

    @property
    def answer(self) -> str:
        """`lower` or `higher` where the interval leaves zero out, else `open`."""
        if self.difference.upper < 0:
            return LOWER
        return HIGHER if self.difference.lower > 0 else OPEN

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; shares are not in per cent."""
        return {
            "row": f"{self.row.label} {self.row.parameter}".strip(),
            "column": self.column.label,
            "against": self.column.against,
            "difference": self.difference.to_json(),
            "answer": self.answer,
        }


def contrasts(entries: Sequence[Entry]) -> Iterator[Contrast]:
    """Every contrast of which both numbers were measured, row by row."""
    known = {(entry.row, entry.column.label): entry.reading for entry in entries}
    for entry in entries:
        other = known.get((entry.row, entry.column.against))
        if entry.reading is not None and other is not None:
            yield Contrast(entry.row, entry.column, (entry.reading + other * -1).estimate())


def value_table(entries: Sequence[Entry]) -> Table:
    """One line per column of the item, for items with many; intervals are in the CSV file."""
    rows = tuple(dict.fromkeys(entry.row for entry in entries))
    lines: dict[str, list[str]] = {}
    for entry in entries:
        shown = in_words(entry.estimate, entry.row).split(" ")[0] if entry.estimate else "-"
        lines.setdefault(entry.column.label, []).append(shown)
    header = ("trained as", *map(_heading, rows))
    return Table("Measured, means over seeds", header, tuple((name, *line) for name, line in lines.items()))


def contrast_table(found: Sequence[Contrast], against: str) -> Table:
    """The contrasts with one column: bold where the interval leaves zero out."""
    rows = tuple(dict.fromkeys(each.row for each in found))
    lines: dict[str, dict[Row, str]] = {}
    for each in found:
        if each.column.against == against:
            words = in_words(each.difference, each.row, "+")
            shown = words if each.answer == OPEN else f"**{words}**"
            lines.setdefault(each.column.label, {})[each.row] = shown
    header = (f"less {against}", *map(_heading, rows))
    body = tuple((name, *(line.get(row, "-") for row in rows)) for name, line in lines.items())
    return Table(f"Differences to {against}, bold where the interval leaves zero out", header, body)


def findings(found: Sequence[Contrast]) -> list[str]:
    """For each row of shares in words: which changes lower it, which raise it, how many leave it open."""
    sentences = []
    for row in dict.fromkeys(each.row for each in found if each.row.is_share):
        for against in dict.fromkeys(each.column.against for each in found):
            here = [each for each in found if (each.row, each.column.against) == (row, against)]
            named = {
                answer: ", ".join(
                    f"{each.column.label} ({100 * each.difference.value:+.1f})"
                    for each in here
                    if each.answer == answer
                )
                for answer in (LOWER, HIGHER)
            }
            left = sum(each.answer == OPEN for each in here)
            sentences.append(
                f"{_heading(row)}, against {against}: lower {named[LOWER] or 'nowhere'}; higher "
                f"{named[HIGHER] or 'nowhere'}; open for {left} of {len(here)}."
            )
    return sentences


def _heading(row: Row) -> str:
    return f"{row.label} {row.parameter}".strip()
