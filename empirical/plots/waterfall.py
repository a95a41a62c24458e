"""The slack waterfall: from the measured rate up to the bound, and which term takes how much of the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bounds import STATEMENTS, Sense
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import Row
from empirical.plots.select import (
    FAMILIES,
    MODES,
    Drawing,
    family,
    is_upper,
    l2_rows,
    number,
    sharpest,
    telling_radius,
)
from empirical.plots.style import MEASURED, QUIET, hatch, note
from empirical.report.summary import Table, short_title

END = 1.3
AVERAGING = "averaging"
STEP = "#F0C987"


def draw(comparison: Comparison) -> Figure:
    """A panel for every upper bound that applies somewhere and every ensemble."""
    shown = _shown(comparison)
    names = [result.name for result in comparison.ensembles]
    figure, panels = plt.subplots(
        max(len(shown), 1), len(names), figsize=(1.6 + 2.2 * len(names), 0.8 + 1.35 * max(len(shown), 1)),
        sharex=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, (mode, statement, eps) in zip(panels, shown, strict=False):
        for axes, result in zip(line, comparison.ensembles, strict=True):
            rows = _rows(result, mode, statement, eps)
            _panel(axes, rows, statement, labels=axes is line[0])
        line[0].set_ylabel(f"{short_title(statement)}\n$\\varepsilon$ = {eps:g}", fontsize=8)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name)
    for axes in panels[-1]:
        axes.set_xlabel("transfer rate")
    if not shown:
        note(panels[0][0], "no upper bound applies")
    return figure


def _shown(comparison: Comparison) -> list[tuple[str, str, float]]:
    """Mode, statement and radius of the upper bounds that apply to some pair at the radius shown."""
    found = []
    for mode in MODES:
        if not any(row.mode == mode for row in comparison.rows()):
            continue
        for identifier, statement in STATEMENTS.items():
            if statement.sense is Sense.UPPER:
                eps = telling_radius(comparison, mode, identifier)
                if any(
                    row.bound["value"] is not None
                    for result in comparison.ensembles
                    for row in _rows(result, mode, identifier, eps)
                ):
                    found.append((mode, identifier, eps))
    return found


def _rows(result: EnsembleResult, mode: str, statement: str, eps: float) -> list[Row]:
    chosen = [row for row in l2_rows(result, mode) if row.statement == statement and row.eps == eps]
    return [row for row in sharpest(chosen) if is_upper(row)]


def steps(rows: Sequence[Row]) -> dict[str, float]:
    """What each step adds on the way from the measured rate to the bound, averaged over pairs and attacks.

    The first step is what the bound costs at radius 0: Markov's or Cantelli's inequality in the place of the
    distribution of the losses. It is negative where the bound at radius 0 lies below the rate.
    All rows must be applicable. The measured rate and the steps sum to the mean of the bounds' point values.
    """
    terms = [list(row.bound["terms"].items()) for row in rows]
    first = float(np.mean([each[0][1] for each in terms]))
    measured = float(np.mean([row.measured.value for row in rows]))
    rest = {name: float(np.mean([dict(each)[name] for each in terms])) for name, _ in terms[0][1:]}
    return {AVERAGING: first - measured, **rest}


def _panel(axes: Axes, rows: list[Row], statement: str, *, labels: bool) -> None:
    axes.set_xlim(0, END)
    hatch(axes, 1.0, END, along="x")
    names = ["measured", AVERAGING, *[term.name for term in STATEMENTS[statement].terms][1:], "bound"]
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names if labels else [""] * len(names), fontsize=7)
    axes.tick_params(axis="y", length=0)
    applicable = [row for row in rows if row.bound["value"] is not None]
    if len(applicable) < len(rows) or not rows:
        left = f"{len(applicable)} of {len(rows)} cases" if applicable else "every pair"
        note(
            axes, "inapplicable:\na hypothesis fails for\n" + (left if not applicable else f"all but {left}")
        )
        return
    measured = float(np.mean([row.measured.value for row in rows]))
    colour = next(each.colour for each in FAMILIES if each.name == family(statement))
    total = measured
    _bar(axes, 0, 0.0, measured, MEASURED, f"{measured:.3g}")
    for place, (_, step) in enumerate(steps(rows).items(), start=1):
        _bar(axes, place, total, total + step, STEP, f"{step:+.2g}")
        axes.plot([min(total, END)] * 2, [place - 1, place], color=QUIET, linewidth=0.5)
        total += step
    _bar(axes, len(names) - 1, 0.0, total, colour, f"{total:.3g}")


def _bar(axes: Axes, place: int, start: float, end: float, colour: str, words: str) -> None:
    low, high = sorted((start, end))
    axes.barh(place, min(high, END) - min(low, END), 0.7, left=min(low, END), color=colour, edgecolor="black",
              linewidth=0.4)  # fmt: skip
    # Beside the bar, or inside its end where there is no room beside it.
    beside = high < 1.0
    x, align = (high + 0.02, "left") if beside else (END - 0.02, "right")
    box = None if beside else {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    axes.text(x, place, words, ha=align, va="center", fontsize=7, bbox=box)


def table(comparison: Comparison) -> Table:
    """Every panel's bars."""
    header = ("ensemble", "statement", "eps", "measured", "steps", "bound")
    lines = []
    for mode, statement, eps in _shown(comparison):
        for result in comparison.ensembles:
            rows = _rows(result, mode, statement, eps)
            if not rows or any(row.bound["value"] is None for row in rows):
                cells = ("-", "inapplicable for some pair", "-")
            else:
                path = steps(rows)
                measured = float(np.mean([row.measured.value for row in rows]))
                words = ", ".join(f"{name} {step:+.3g}" for name, step in path.items())
                cells = (number(measured), words, number(measured + sum(path.values())))
            lines.append((result.name, short_title(statement), f"{eps:g}", *cells))
    return Table("From the measured rate to the bound, means over pairs and attacks", header, tuple(lines))


SLACK_WATERFALL = Drawing(
    "slack-waterfall",
    "Which term loses the tightness?",
    "From the measured rate (top) to the bound (bottom): what Markov's or Cantelli's inequality costs at "
    "radius 0 (averaging), then what steep, similar and curved losses add. Means over pairs and attacks, "
    "at the one radius in each row at which most is to be seen. Bars that end in the hatched region are "
    "cut off; their numbers are whole.",
    draw,
    table,
)
