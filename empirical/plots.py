"""Figures of a comparison, drawn from its saved results alone: no model and no data is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bounds import STATEMENTS, Estimate, Sense
from empirical.results import Comparison, EnsembleResult
from empirical.rows import ON_BOTH_CORRECT, Row
from empirical.summary import short_title

# Okabe and Ito's palette; it survives the common forms of colour blindness. Markers and dashes carry the same
# distinction, so that the figures can be read in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRADE_MARKERS = {"certified": "o", "confident": "s", "heuristic": "^"}
STATEMENT_STYLES: dict[str, tuple[str, Any]] = {
    "theorem-1": (COLOURS[1], "--"),
    "theorem-2": (COLOURS[1], "--"),
    "theorem-3": (COLOURS[1], "-."),
    "theorem-4": (COLOURS[1], "-."),
    "theorem-1-repaired": (COLOURS[2], (0, (3, 1))),
    "refined-r6": (COLOURS[6], (0, (3, 1))),
    "refined-r6-pointwise": (COLOURS[6], (0, (3, 1, 1, 1))),
    "theorem-3-repaired": (COLOURS[2], (0, (5, 1))),
    "theorem-4-repaired": (COLOURS[2], (0, (5, 1))),
    "refined-r3": (COLOURS[3], (0, (1, 1))),
    "refined-r3-untargeted": (COLOURS[3], (0, (1, 1))),
    "refined-r4": (COLOURS[5], (0, (5, 1, 1, 1))),
    "refined-cantelli": (COLOURS[4], (0, (5, 2))),
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "transferbounds",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk, with the words that a reader and a screen reader need."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path


def save_figures(comparison: Comparison, folder: Path) -> list[SavedFigure]:
    """Draw every figure of a comparison as SVG and PNG.

    Args:
        comparison: Results, as made or as loaded.
        folder: Where the files go; it is created.

    Returns:
        The figures, in the order in which a report shows them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for draw, title, caption in FIGURES:
        name = draw.__name__.replace("_", "-")
        with plt.rc_context(STYLE):
            figure = draw(comparison)
            # A fixed date and a fixed hash salt keep the files byte-identical from run to run.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
            plt.close(figure)
        words = caption.format(confidence=f"{100 * comparison.settings.confidence:g} %")
        saved.append(SavedFigure(name, title, words, folder / f"{name}.svg", folder / f"{name}.png"))
    return saved


def robust_accuracy(comparison: Comparison) -> Figure:
    """Clean accuracy of the weakest member and robust accuracy of each ensemble, with intervals."""
    radii = comparison.settings.robust_eps
    figure, axes = plt.subplots(figsize=(1.6 + 1.35 * len(comparison.ensembles), 3.1))
    bars: list[tuple[str, Callable[[EnsembleResult], Estimate], str, str]] = [
        ("weakest member, clean", lambda result: result.weakest, "#BBBBBB", ""),
        *(
            (
                f"ensemble, PGD linf {eps:g}",
                lambda result, eps=eps: result.robust_accuracy(eps),
                colour,
                hatch,
            )
            for eps, colour, hatch in zip(radii, COLOURS, ("//", "..", "xx", "++"), strict=False)
        ),
    ]
    width = 0.8 / len(bars)
    for offset, (label, pick, colour, hatch) in enumerate(bars):
        for place, result in enumerate(comparison.ensembles):
            estimate = pick(result)
            x = place + (offset - (len(bars) - 1) / 2) * width
            axes.bar(
                x, estimate.value, width * 0.92, color=colour, hatch=hatch, edgecolor="white",
                label=label if place == 0 else None,
            )  # fmt: skip
            axes.errorbar(x, estimate.value, _interval(estimate), color="black", capsize=2, linewidth=0.8)
    axes.set_xticks(range(len(comparison.ensembles)), [result.name for result in comparison.ensembles])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, ncols=len(bars), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return figure


def eps_sweep(comparison: Comparison) -> Figure:
    """Measured transfer and the bounds on it against the radius, one thin line per ordered pair."""
    modes = sorted({row.mode for row in comparison.rows()}, reverse=True)
    results = comparison.ensembles
    figure, grid = plt.subplots(
        len(modes), len(results), figsize=(0.8 + 2.5 * len(results), 0.9 + 2.3 * len(modes)),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    drawn: dict[str, Line2D] = {}
    for mode, line_of_axes in zip(modes, grid, strict=True):
        for result, axes in zip(results, line_of_axes, strict=True):
            # One attack is enough to see where the bounds are; the theorems are about l2 balls.
            first = result.rows[0].attack
            rows = [row for row in result.rows if (row.mode, row.norm, row.attack) == (mode, "l2", first)]
            drawn |= _sweep_panel(axes, rows)
            axes.set_title(f"{result.name}, {mode}")
    for axes in grid[-1]:
        axes.set_xlabel(r"$\ell_2$ radius $\varepsilon$")
    for axes in grid[:, 0]:
        axes.set_ylabel("transfer rate")
    handles = [
        Line2D([], [], color=COLOURS[0], marker="o", markersize=3, label="measured"),
        *drawn.values(),
        Patch(facecolor="none", edgecolor="#999999", hatch="////", label="says nothing"),
    ]
    figure.legend(handles=handles, frameon=False, ncols=min(len(handles), 4), loc="lower center", fontsize=8,
                  bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    figure.tight_layout()
    return figure


def bound_against_measured(comparison: Comparison) -> Figure:
    """Value of each applicable bound against the measured rate; the violation half-plane is shaded."""
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 4.0), sharex=True)
    for axes, sense in zip(panels, (Sense.UPPER, Sense.LOWER), strict=True):
        _scatter_panel(axes, comparison, sense)
    handles = [
        *(
            Line2D([], [], color=colour, marker="o", linestyle="", label=result.name)
            for result, colour in zip(comparison.ensembles, COLOURS, strict=False)
        ),
        *(
            Line2D([], [], color="#555555", marker=marker, linestyle="", markerfacecolor="none", label=grade)
            for grade, marker in GRADE_MARKERS.items()
        ),
        Patch(facecolor="#F4C7C3", label="a bound here is violated"),
        Patch(facecolor="none", edgecolor="#999999", hatch="////", label="says nothing"),
    ]
    figure.legend(
        handles=handles, frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 0.98), fontsize=8
    )
    figure.tight_layout()
    return figure


def transfer_matrices(comparison: Comparison) -> Figure:
    """Measured transfer between all ordered pairs, rows surrogate and columns target, on one colour scale."""
    results = comparison.ensembles
    figure, grid = plt.subplots(
        1, len(results), figsize=(0.8 + 2.5 * len(results), 2.9), squeeze=False, layout="constrained"
    )
    chosen = [_matrix_to_show(result) for result in results]
    top = max(max(max(line) for line in matrix["rate"]) for matrix in chosen)
    for axes, result, matrix in zip(grid[0], results, chosen, strict=True):
        image = axes.imshow(matrix["rate"], vmin=0, vmax=max(top, 1e-3), cmap="cividis")
        for i, line in enumerate(matrix["rate"]):
            for j, rate in enumerate(line):
                low, high = matrix["lower"][i][j], matrix["upper"][i][j]
                axes.text(j, i, f"{rate:.2f}\n[{low:.2f}, {high:.2f}]", ha="center", va="center", fontsize=7,
                          color="black" if rate > 0.55 * top else "white")  # fmt: skip
        axes.set_xticks(range(result.members))
        axes.set_yticks(range(result.members))
        axes.set_xlabel("target")
        axes.set_title(f"{result.name}, l2 {matrix['attack']['eps']:g}")
        axes.spines[:].set_visible(False)
    grid[0][0].set_ylabel("surrogate")
    figure.colorbar(image, ax=list(grid[0]), label="transfer rate (Definition 7)", shrink=0.85)
    return figure


def _interval(estimate: Estimate) -> list[list[float]]:
    """Error-bar lengths below and above the value."""
    return [[estimate.value - estimate.lower], [estimate.upper - estimate.value]]


def _sweep_panel(axes: Axes, rows: list[Row]) -> dict[str, Line2D]:
    """Draw one ensemble and mode; return a legend entry per statement that could be drawn."""
    entries: dict[str, Line2D] = {}
    pairs = sorted({(row.surrogate, row.target) for row in rows})
    # Where both stand-ins for beta were evaluated, the certified one is the one to show.
    best = {
        (row.surrogate, row.target, row.statement, row.eps): row
        for row in rows
        if row.bound["value"] is not None
    }
    for row in rows:
        if row.smoothness == "remainder" and row.bound["value"] is not None:
            best[row.surrogate, row.target, row.statement, row.eps] = row
    for pair in pairs:
        # Where points whose label is the target already count, the rate starts at the share of that class.
        measured = {
            row.eps: row.measured.value
            for row in sorted(rows, key=lambda row: row.statement in ON_BOTH_CORRECT)
            if (row.surrogate, row.target) == pair
        }
        radii = sorted(measured)
        axes.plot(
            radii, [measured[eps] for eps in radii], "o-", color=COLOURS[0], linewidth=0.8, markersize=2
        )
        for statement in dict.fromkeys(row.statement for row in rows):
            found = [best[(*pair, statement, eps)] for eps in radii if (*pair, statement, eps) in best]
            if not found:
                continue
            colour, dash = STATEMENT_STYLES[statement]
            axes.plot(
                [row.eps for row in found],
                [min(max(row.bound["value"], -0.08), 1.08) for row in found],
                color=colour, linestyle=dash, linewidth=1.1, marker="d", markersize=2.5,
            )  # fmt: skip
            title = short_title(statement)
            entries[title] = Line2D(
                [], [], color=colour, linestyle=dash, marker="d", markersize=2.5, label=title
            )
    for low, high in ((1.0, 1.2), (-0.2, 0.0)):
        axes.axhspan(low, high, facecolor="none", edgecolor="#999999", hatch="////", linewidth=0)
    axes.set_xscale("log")
    axes.set_ylim(-0.12, 1.12)
    return entries


def _scatter_panel(axes: Axes, comparison: Comparison, sense: Sense) -> None:
    upper = sense is Sense.UPPER
    low, high = (0.0, 3.0) if upper else (-1.0, 1.0)
    rows = [row for row in comparison.rows() if STATEMENTS[row.statement].sense is sense]
    applicable = [row for row in rows if row.bound["value"] is not None]
    colours = dict(zip((result.name for result in comparison.ensembles), cycle(COLOURS), strict=False))
    beyond = 0
    for row in applicable:
        value = row.bound["value"]
        if not low <= value <= high:
            beyond += 1
            continue
        axes.errorbar(
            row.measured.value, value, xerr=_interval(row.measured), color=colours[row.ensemble],
            linewidth=0.5, capsize=1, marker=GRADE_MARKERS[row.bound["grade"]], markersize=4,
            markerfacecolor="none", linestyle="",
        )  # fmt: skip
    # Rates and bounds span orders of magnitude and touch zero: logarithmic, but linear below 0.01.
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=0.01, linscale=0.5)
    line = np.linspace(0.0, 1.0, 500)
    axes.plot(line, line, color="black", linewidth=0.8)
    axes.fill_between(
        line, line, np.full(500, low if upper else high), color="#F4C7C3", linewidth=0, zorder=0
    )
    axes.axhspan(
        1.0 if upper else low, high if upper else 0.0,
        facecolor="none", edgecolor="#999999", hatch="////", linewidth=0,
    )  # fmt: skip
    axes.set_xlim(-0.002, 1.0)
    axes.set_ylim(low - 0.002, high)
    ticks = (0, 0.01, 0.1, 1)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_yticks(ticks if upper else (-1, -0.1, *ticks), map(str, ticks if upper else (-1, -0.1, *ticks)))
    axes.set_xlabel("measured transfer rate")
    axes.set_ylabel(sense.value)
    note = f",\n{beyond} of them off this axis" if beyond else ""
    axes.set_title(
        f"{sense.value.capitalize()}s: {len(applicable)} of {len(rows)} applicable{note}", fontsize=9
    )


def _matrix_to_show(result: EnsembleResult) -> dict:
    """The untargeted matrix at the largest radius."""
    untargeted = [
        matrix
        for matrix in result.matrices
        if matrix["mode"] == "untargeted" and matrix["attack"]["norm"] == "l2"
    ]
    return dict(max(untargeted, key=lambda matrix: matrix["attack"]["eps"]))


FIGURES: tuple[tuple[Callable[[Comparison], Figure], str, str], ...] = (
    (
        robust_accuracy,
        "Robust accuracy of the ensembles",
        "Clean accuracy of the weakest member (grey) and robust accuracy of the whole ensemble under 50-step "
        "PGD. Bars are {confidence} Clopper-Pearson intervals.",
    ),
    (
        eps_sweep,
        "Where does the theory say anything?",
        "Measured transfer (Definition 7; targeted, without the points whose label is the target already) "
        "and the bounds on it against the radius of the attack, guaranteed ones where there are any; one "
        "line for every ordered pair of members. A line in the hatched region says nothing; a missing "
        "line is a statement whose hypotheses fail.",
    ),
    (
        bound_against_measured,
        "Bound against measured",
        "Every applicable statement, pair and radius. Upper bounds belong above the diagonal, lower bounds "
        "below it; the marker tells how sure the bound is. Horizontal bars are intervals of the measurement.",
    ),
    (
        transfer_matrices,
        "Who fools whom",
        "Measured untargeted transfer at the largest radius, rows surrogate, columns target; the diagonal is "
        "the surrogate itself. Brackets are {confidence} Clopper-Pearson intervals.",
    ),
)
