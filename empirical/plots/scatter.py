"""Bound against measured: every statement, pair and attack, and the half-plane where a bound is broken."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from empirical.comparison.results import Comparison
from empirical.comparison.rows import JointRow, Row
from empirical.plots.select import FAMILIES, Drawing, bound, family, is_upper, number, sharpest
from empirical.plots.style import COLOURS, MARKERS, hatch, interval, note, says_nothing
from empirical.report.summary import Table

BROKEN = "#F4C7C3"
FILLS = {"certified": "full", "confident": "left", "heuristic": "none"}
UPPER, LOWER = (0.0, 3.0), (-1.0, 1.0)


def draw(comparison: Comparison) -> Figure:
    """A panel for every family of statements and each sense; the certificates have a column of their own."""
    joint = list(comparison.joint())
    columns = [*(each.label for each in FAMILIES), *(["certificates (R2, below R7)"] if joint else [])]
    figure, panels = plt.subplots(
        2,
        len(columns),
        figsize=(0.9 + 2.5 * len(columns), 5.6),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    rows = sharpest(comparison.rows())
    looks = dict(
        zip(
            (each.name for each in comparison.ensembles),
            cycle(zip(COLOURS, MARKERS, strict=True)),
            strict=False,
        )
    )
    for upper, line in zip((True, False), panels, strict=True):
        for index, axes in enumerate(line):
            # R7 is proved for steps that may leave the pixel range, which the attacks keep.
            _background(axes, upper, shaded=upper or index < len(FAMILIES))
            if index < len(FAMILIES):
                chosen = [
                    row
                    for row in rows
                    if is_upper(row) == upper and family(row.statement) == FAMILIES[index].name
                ]
                applicable = [row for row in chosen if bound(row) is not None]
                _points(axes, applicable, looks)
                words = f"{len(applicable)} of {len(chosen)} applicable"
                if chosen and not applicable:
                    note(axes, "a hypothesis fails\neverywhere")
            else:
                _certificates(axes, joint, looks, upper)
                speaking = [row.informative if upper else row.must_transfer.lower > 0 for row in joint]
                words = f"{sum(speaking)} of {len(joint)} informative"
            axes.set_title(f"{columns[index]}\n{words}" if upper else words, fontsize=9)
        line[0].set_ylabel(f"{'upper' if upper else 'lower'} bound")
    for axes in panels[-1]:
        axes.set_xlabel("measured rate")
    figure.legend(handles=_legend(looks), frameon=False, ncols=5, loc="outside upper center", fontsize=8)
    return figure


def _background(axes: Axes, upper: bool, shaded: bool) -> None:
    low, high = UPPER if upper else LOWER
    # Rates and bounds span orders of magnitude and touch zero: logarithmic, but linear below 0.01.
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=0.01, linscale=0.5)
    line = np.linspace(0.0, 1.0, 500)
    axes.plot(line, line, color="black", linewidth=0.8, zorder=1)
    if shaded:
        end = np.full(500, low if upper else high)
        axes.fill_between(line, line, end, color=BROKEN, linewidth=0, zorder=0)
    hatch(axes, 1.0 if upper else low, high if upper else 0.0)
    axes.set_xlim(-0.002, 1.0)
    axes.set_ylim(low - 0.002, high)
    ticks = (0, 0.01, 0.1, 1)
    own = ticks if upper else (-1, -0.1, *ticks)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_yticks(own, map(str, own))


def _points(axes: Axes, rows: list[Row], looks: dict[str, tuple[str, str]]) -> None:
    """Horizontal bars: interval of the measurement. Vertical: from the point value to what is guaranteed."""
    for row in rows:
        value, guaranteed = row.bound["value"], bound(row)
        assert guaranteed is not None
        colour, marker = looks[row.ensemble]
        rate = row.measured
        axes.plot([rate.lower, rate.upper], [value, value], color=colour, linewidth=0.5, alpha=0.8)
        axes.plot([rate.value, rate.value], [value, guaranteed], color=colour, linewidth=0.5, alpha=0.8)
        axes.plot(
            rate.value, value, color=colour, marker=marker, markersize=4, markeredgewidth=0.7, alpha=0.8,
            fillstyle=FILLS[row.bound["grade"]], markerfacecoloralt="white",
        )  # fmt: skip
    low, high = UPPER if rows and is_upper(rows[0]) else LOWER
    beyond = sum(not low <= row.bound["value"] <= high for row in rows)
    if beyond:
        axes.text(
            0.98, 0.97, f"{beyond} beyond the axis", transform=axes.transAxes, ha="right", va="top",
            fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _certificates(axes: Axes, joint: list[JointRow], looks: dict[str, tuple[str, str]], upper: bool) -> None:
    """R2 above and R7 below the strongest attack found."""
    for row in filter(lambda row: row.informative, joint):
        colour, marker = looks[row.ensemble]
        height = row.certified.upper if upper else row.must_transfer.lower
        axes.errorbar(
            row.found.value, height, xerr=interval(row.found), color=colour, linewidth=0.5, marker=marker,
            markersize=4, markeredgewidth=0.7, linestyle="", alpha=0.8,
        )  # fmt: skip


def _legend(looks: dict[str, tuple[str, str]]) -> list[Line2D | Patch]:
    return [
        *(
            Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
            for name, (colour, marker) in looks.items()
        ),
        *(
            Line2D([], [], color="#555555", marker="o", linestyle="", fillstyle=fill,  # type: ignore[arg-type]
                   markerfacecoloralt="white", label=f"{grade} bound")
            for grade, fill in FILLS.items()
        ),
        Patch(facecolor=BROKEN, label="here a bound is broken"),
        says_nothing(),
    ]  # fmt: skip


def table(comparison: Comparison) -> Table:
    """By ensemble and family: how many statements apply and speak, and how near they come to the measured."""
    header = (
        "ensemble",
        "family",
        "sense",
        "applicable",
        "informative",
        "violated",
        "median slack",
        "smallest slack",
    )
    lines = []
    for result in comparison.ensembles:
        rows = sharpest(result.rows)
        # A broken bound counts, whichever stand-in for beta it came from.
        broken = [row for row in result.rows if row.verdict == "violated"]
        for each in FAMILIES:
            for upper in (True, False):
                chosen = [
                    row for row in rows if is_upper(row) == upper and family(row.statement) == each.name
                ]
                slack = [row.slack for row in chosen if row.slack is not None]
                lines.append((
                    result.name, each.name, "upper" if upper else "lower", f"{len(slack)} of {len(chosen)}",
                    str(sum(row.bound["status"] == "informative" for row in chosen)),
                    str(sum(is_upper(row) == upper and family(row.statement) == each.name for row in broken)),
                    number(float(np.median(slack)) if slack else None), number(min(slack, default=None)),
                ))  # fmt: skip
        if result.joint:
            slack = [row.slack for row in result.joint]
            lines.append((
                result.name, "certificate R2", "upper", f"{len(slack)} of {len(slack)}",
                str(sum(row.informative for row in result.joint)),
                str(sum(row.verdict == "violated" for row in result.joint)),
                number(float(np.median(slack))), number(min(slack)),
            ))  # fmt: skip
    return Table("How near the bounds come to what is measured", header, tuple(lines))


BOUND_AGAINST_MEASURED = Drawing(
    "bound-against-measured",
    "Do the bounds hold, and how close are they?",
    "Every applicable statement, ordered pair, attack and radius. Upper bounds belong above the diagonal, "
    "lower bounds below it; a point in the shaded half-plane would be a broken bound. Marker and colour "
    "tell the ensemble, the marker's filling the grade of the bound. Horizontal bars are intervals of the "
    "measurement, vertical ones run from the point value to what is guaranteed. R7 is proved for steps that "
    "may leave the range of pixels, which the attacks keep, so it can lie above what they found.",
    draw,
    table,
)
