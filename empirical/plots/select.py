"""What the figures show of a comparison's rows: the sharpest ones, and what holds for every pair at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from bounds import STATEMENTS, Sense
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import JointRow, Row
from empirical.plots.style import COLOURS
from empirical.report.summary import Table

MODES = ("untargeted", "targeted")


@dataclass(frozen=True)
class Drawing:
    """A figure of a comparison.

    Attributes:
        name: Name of its files.
        title: The question that it answers.
        caption: How to read it; `{confidence}` stands for the confidence of the intervals.
        draw: Draws it from the results alone.
        table: The numbers in it, for those who cannot or would rather not read a figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Comparison], Figure]
    table: Callable[[Comparison], Table]


@dataclass(frozen=True)
class Family:
    """Statements that are drawn alike.

    Attributes:
        name: The variant in `bounds.STATEMENTS`, or "certificate" for R2 and R7 of a `JointRow`.
        label: What the legend calls it.
        colour: Of its lines and markers.
        dash: Of its lines.
        marker: Of its points.
    """

    name: str
    label: str
    colour: str
    dash: Any
    marker: str


FAMILIES = (
    Family("printed", "as printed", COLOURS[1], "--", "s"),
    Family("repaired", "repaired", COLOURS[2], "-.", "^"),
    Family("refined", "refined", COLOURS[3], (0, (1, 1)), "D"),
)
CERTIFICATE = Family("certificate", "certificates R2, R7", COLOURS[6], "-", "v")


def family(statement: str) -> str:
    """Whose formula a statement is: printed, repaired or refined."""
    return STATEMENTS[statement].variant.value


def bound(row: Row) -> float | None:
    """The number to show for a statement: guaranteed where there is one, else the point value."""
    guaranteed: float | None = row.bound["guaranteed"]
    value: float | None = row.bound["value"]
    return value if guaranteed is None else guaranteed


def is_upper(row: Row) -> bool:
    """Whether the row's statement is an upper bound."""
    return STATEMENTS[row.statement].sense is Sense.UPPER


def sharpest(rows: Iterable[Row]) -> list[Row]:
    """Of the stand-ins for beta the better guarantee, for each statement, attack, pair and radius."""

    def worth(row: Row) -> tuple[bool, float]:
        number = bound(row)
        if number is None:
            return False, 0.0
        return row.bound["guaranteed"] is not None, -number if is_upper(row) else number

    best: dict[tuple, Row] = {}
    for row in rows:
        key = (
            row.ensemble,
            row.mode,
            row.norm,
            row.eps,
            row.attack,
            row.surrogate,
            row.target,
            row.statement,
        )
        if key not in best or worth(row) > worth(best[key]):
            best[key] = row
    return list(best.values())


def l2_rows(result: EnsembleResult, mode: str) -> list[Row]:
    """The rows of one mode under l2 attacks: the norm that the theorems are about."""
    return [row for row in result.rows if row.mode == mode and row.norm == "l2"]


def joint_pairs(result: EnsembleResult, mode: str, eps: float) -> list[JointRow]:
    """The certificates about two members, both fooled at once within an l2 ball."""
    return [
        row
        for row in result.joint
        if row.mode == mode and row.norm == "l2" and row.eps == eps and len(row.models) == row.together == 2
    ]


def by_radius(rows: Iterable[Row]) -> dict[float, list[Row]]:
    """Rows by radius, smallest first."""
    groups: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.eps].append(row)
    return dict(sorted(groups.items()))


def envelope(rows: Sequence[Row], name: str, *, upper: bool) -> dict[float, tuple[float, bool]]:
    """By radius what a family says about every pair and attack at once, and whether that is guaranteed.

    Of each case the sharpest statement, of the cases the weakest: what is left bounds every measured rate in
    `rows`. A radius at which the family says nothing about some case is missing.
    """
    found = {}
    for eps, group in by_radius(row for row in rows if is_upper(row) == upper).items():
        cases: dict[tuple[int, int, str], list[tuple[float, bool]]] = {
            (row.surrogate, row.target, row.attack): [] for row in group
        }
        for row in group:
            number = bound(row)
            if number is not None and family(row.statement) == name:
                case = cases[row.surrogate, row.target, row.attack]
                case.append((number, row.bound["guaranteed"] is not None))
        if all(cases.values()):
            pick, weakest = (min, max) if upper else (max, min)
            best = [pick(case) for case in cases.values()]
            found[eps] = (weakest(number for number, _ in best), all(sure for _, sure in best))
    return found


def telling_radius(comparison: Comparison, mode: str, statement: str | None = None) -> float:
    """The l2 radius at which most is to be seen: the largest with half of the most informative upper bounds.

    Where none is informative, with half of the most that apply. One radius for all ensembles, so that their
    panels can be compared; of one statement, or of all.
    """
    informative: dict[float, int] = defaultdict(int)
    applicable: dict[float, int] = defaultdict(int)
    for result in comparison.ensembles:
        chosen = [row for row in l2_rows(result, mode) if statement in (None, row.statement)]
        for row in sharpest(chosen):
            number = bound(row) if is_upper(row) else None
            applicable[row.eps] += number is not None
            informative[row.eps] += number is not None and number < 1
    counts = informative if any(informative.values()) else applicable
    most = max(counts.values(), default=0)
    return max((eps for eps, count in counts.items() if 2 * count >= most), default=0.0)


def grid(comparison: Comparison, rows: int) -> tuple[float, float]:
    """Size in inches of a figure with a column an ensemble and so many rows."""
    return 0.9 + 2.45 * len(comparison.ensembles), 0.6 + 2.25 * rows


def number(value: float | None) -> str:
    """A number for a table: three figures, or a dash."""
    return "-" if value is None else f"{value:.3g}"
