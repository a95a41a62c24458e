"""The phase diagram: how similar and how smooth models may be for a bound to speak, and where ours are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from bounds import STATEMENTS, Sense, Trend
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import Row
from empirical.plots.select import (
    FAMILIES,
    MODES,
    Drawing,
    family,
    grid,
    l2_rows,
    number,
    telling_radius,
)
from empirical.plots.style import note
from empirical.report.summary import Table, short_title

LEVELS = (0.0, 0.03, 0.1, 0.3, 1.0)
AXES = ("S_upper", "beta")
POINTS = 100
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":")


def statements(mode_rows: Sequence[Row]) -> list[str]:
    """The upper bounds among some rows that depend on both similarity and smoothness."""
    seen = {row.statement for row in mode_rows}
    return [
        name
        for name, statement in STATEMENTS.items()
        if name in seen and statement.sense is Sense.UPPER and set(AXES) <= set(statement.names)
    ]


def worst(rows: Sequence[Row], statement: str) -> dict[str, float]:
    """Of each quantity other than the axes' the value that is worst for the bound over some rows.

    A bound that speaks with these speaks for every pair. Guaranteed ends, where they are finite.
    """
    trends = STATEMENTS[statement].trends
    found = {}
    for name in STATEMENTS[statement].names:
        if name in AXES:
            continue
        estimates = [row.quantities[name] for row in rows]
        if trends.get(name) is Trend.DECREASING:
            found[name] = min(_finite(each.lower, each.value) for each in estimates)
        else:
            found[name] = max(_finite(each.upper, each.value) for each in estimates)
    return found


def _finite(end: float, value: float) -> float:
    return end if math.isfinite(end) else value


def surface(
    rows: Sequence[Row], statement: str, similarity: NDArray[np.float64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The bound over the plane, infinite where a hypothesis fails."""
    value = STATEMENTS[statement](S_upper=similarity, beta=beta, **worst(rows, statement))
    return np.where(np.isnan(value), np.inf, value)


def draw(comparison: Comparison) -> Figure:
    """A panel for every ensemble and mode, each with the ensemble's own risks, losses and gradient size."""
    modes = [mode for mode in MODES if any(statements(l2_rows(each, mode)) for each in comparison.ensembles)]
    columns = len(comparison.ensembles)
    width, height = grid(comparison, max(len(modes), 1))
    figure, panels = plt.subplots(
        max(len(modes), 1), columns, figsize=(width + 0.7, height), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    low, high = _range(comparison)
    shades = None
    handles: dict[str, Line2D] = {}
    for mode, line in zip(modes, panels, strict=False):
        eps = telling_radius(comparison, mode)
        for result, axes in zip(comparison.ensembles, line, strict=True):
            axes.set_yscale("log")
            axes.set_xlim(-1, 1)
            axes.set_ylim(low, high)
            shades = _panel(axes, result, mode, eps, handles) or shades
            axes.set_title(f"{result.name}, {mode}, $\\varepsilon$ = {eps:g}", fontsize=9)
        line[0].set_ylabel(r"smoothness $\beta$")
    for axes in panels[-1]:
        axes.set_xlabel(r"largest gradient cosine $\overline{S}$")
    if shades is not None:
        figure.colorbar(shades, ax=panels, label="sharpest of the bounds", shrink=0.8, ticks=LEVELS)
    marks = [
        Line2D(
            [],
            [],
            color="black",
            marker=marker,
            markerfacecolor=fill,
            linestyle="",
            markersize=5,
            label=words,
        )
        for _, marker, fill, words in _MARKS
    ]
    figure.legend(
        handles=[*handles.values(), *marks], frameon=False, ncols=4, loc="outside upper center", fontsize=8
    )
    return figure


# How a pair stands in the plane: by which smoothness constant, drawn how.
_MARKS = (
    ("remainder", "o", "white", "a pair, beta: the attack's remainder"),
    ("segment", "o", "black", "a pair, beta: the attack's segments"),
    ("space", "_", "black", "beta certified over all inputs"),
)


def _range(comparison: Comparison) -> tuple[float, float]:
    """Limits of the axis of beta: all pairs, and room above and below."""
    seen = [
        beta
        for result in comparison.ensembles
        for mode in MODES
        for beta in (
            row.quantities["beta"].value for row in l2_rows(result, mode) if "beta" in row.quantities
        )
        if 0 < beta < math.inf
    ]
    seen += [each.beta.upper for each in comparison.ensembles if math.isfinite(each.beta.upper)]
    return (min(seen) / 5, max(seen) * 3) if seen else (1e-2, 1e2)


def _panel(
    axes: Axes, result: EnsembleResult, mode: str, eps: float, handles: dict[str, Line2D]
) -> ContourSet | None:
    rows = [row for row in l2_rows(result, mode) if row.eps == eps]
    names = statements(rows)
    similarity, beta = np.meshgrid(
        np.linspace(-1, 1, POINTS), np.geomspace(*axes.get_ylim(), POINTS), indexing="xy"
    )
    surfaces = {
        name: surface([row for row in rows if row.statement == name], name, similarity, beta)
        for name in names
    }
    sharp = np.minimum.reduce(list(surfaces.values()))
    shades = None
    if (sharp < 1).any():
        shades = axes.contourf(
            similarity, beta, np.ma.masked_invalid(sharp), levels=LEVELS, cmap="Blues_r",
            norm=BoundaryNorm(np.array(LEVELS), 256),
        )  # fmt: skip
    silent = True
    for place, (name, value) in enumerate(surfaces.items()):
        colour = next(each.colour for each in FAMILIES if each.name == family(name))
        dash = DASHES[place % len(DASHES)]
        if (value < 1).any() and (value >= 1).any():
            # Beyond the frontier the bound has a pole; its logarithm, cut off, is gentle enough to contour.
            height = np.log10(np.clip(value, 1e-3, 1e3))
            line = axes.contour(
                similarity, beta, height, levels=[0.0], colors=[colour], linestyles=[dash], linewidths=1.6
            )
            line.set_path_effects([withStroke(linewidth=3, foreground="white")])
            label = f"{short_title(name)} = 1"
            handles.setdefault(
                label, Line2D([], [], color=colour, linestyle=dash, linewidth=1.6, label=label)
            )
            silent = False
    if silent and not (sharp < 1).any():
        note(axes, "no smoothness and no similarity\nmakes a bound speak here")
    _pairs(axes, rows, result)
    return shades


def _pairs(axes: Axes, rows: Sequence[Row], result: EnsembleResult) -> None:
    for stand_in, marker, fill, _ in _MARKS[:2]:
        seen = {
            (row.quantities["S_upper"].value, row.quantities["beta"].value)
            for row in rows
            if row.smoothness == stand_in and set(AXES) <= set(row.quantities)
        }
        finite = [(similarity, beta) for similarity, beta in seen if 0 < beta < math.inf]
        if finite:
            axes.plot(*zip(*finite, strict=True), linestyle="", marker=marker, markersize=4.5, color="black",
                      markerfacecolor=fill, markeredgewidth=0.8)  # fmt: skip
            if stand_in == "segment" and math.isfinite(result.beta.upper):
                places = [similarity for similarity, _ in finite]
                axes.plot(places, [result.beta.upper] * len(places), "_", color="black", markersize=7)


def frontier(rows: Sequence[Row], statement: str, similarity: float) -> float:
    """Smoothness at which the bound reaches 1 for a given similarity, every other quantity at its worst.

    By bisection, because the bounds rise with beta, up to a relative 1e-9; 0 where no beta makes the bound
    speak, infinite beyond 1e9.
    """

    def speaks(beta: float) -> bool:
        return bool(surface(rows, statement, np.array(similarity), np.array(beta)) < 1)

    low, high = 1e-9, 1e9
    if not speaks(low):
        return 0.0
    if speaks(high):
        return math.inf
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if speaks(middle) else (low, middle)
    return low


def table(comparison: Comparison) -> Table:
    """For every ensemble and bound: where its pairs are, and how smooth they would have to be."""
    header = (
        "ensemble",
        "statement",
        "eps",
        "largest cosine",
        "beta remainder",
        "beta segment",
        "beta needed below",
    )
    lines = []
    for mode in MODES:
        eps = telling_radius(comparison, mode)
        for result in comparison.ensembles:
            rows = [row for row in l2_rows(result, mode) if row.eps == eps]
            for name in statements(rows):
                own = [row for row in rows if row.statement == name]
                similarity = max(row.quantities["S_upper"].value for row in own)
                betas = [
                    number(max(row.quantities["beta"].value for row in own if row.smoothness == stand_in))
                    for stand_in in ("remainder", "segment")
                ]
                needed = number(frontier(own, name, similarity))
                lines.append(
                    (result.name, short_title(name), f"{own[0].eps:g}", f"{similarity:.2f}", *betas, needed)
                )
    return Table("Where the pairs are, and how smooth they would have to be", header, tuple(lines))


PHASE_DIAGRAM = Drawing(
    "phase-diagram",
    "How similar and how smooth may models be?",
    "The plane of the two quantities that the paper controls. Below a line the bound is smaller than 1 "
    "for every pair of the ensemble, with risks, losses and gradient size as they are for its worst pair; "
    "the shade is the sharpest bound. Dots: the ensemble's pairs by the smoothness along the attack, "
    "dashes: by the one that is certified over all inputs.",
    draw,
    table,
)
