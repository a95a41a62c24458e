"""The numbers that the paper prints, as data beside this file: `paper/table-1.csv` and so on.

Columns: the paper's data set, row, parameter and column, the number in per cent, and a note where the text is
in doubt (a digit that may be misread, a name printed otherwise, two tables that disagree). The CSV files hold
Tables 1 to 8; Figure 3 draws Tables 5 and 6, and Figures 4 and 5 print no numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

TABLES = tuple(f"table-{number}" for number in range(1, 9))
Place = tuple[str, str, str, str]


@dataclass(frozen=True)
class Printed:
    """One number of the paper.

    Attributes:
        percent: As printed.
        note: What is in doubt about it; empty for most.
    """

    percent: float
    note: str


def printed_numbers(table: str) -> Mapping[Place, Printed]:
    """Numbers of a table by data set, row, parameter and column.

    Raises:
        ValueError: If there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"expected a table among {', '.join(TABLES)}, got {table!r}")
    text = (files("empirical.reproduce") / "paper" / f"{table}.csv").read_text(encoding="utf-8")
    return {
        (line["dataset"], line["row"], line["parameter"], line["column"]): Printed(
            float(line["percent"]), line["note"]
        )
        for line in csv.DictReader(text.splitlines())
    }
