"""The paper's figures, drawn from finished cells alone: curves, transfer matrices, decision boundaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from scipy import ndimage

from empirical.plots.style import COLOURS, MARKERS, plt, save
from empirical.reproduce.contrasts import contrasts
from empirical.reproduce.entries import Entry
from empirical.reproduce.items import ROBUST, Transfer
from empirical.reproduce.queue import Store
from empirical.reproduce.tables import Outcome
from empirical.transfer_matrix import TransferMatrix

# Regions of fewer cells of the grid than this are too small for their label.
_ROOM = 40


def save_figure(outcome: Outcome, store: Store, folder: Path) -> bool:
    """Draw an item that is a figure as SVG and PNG into a folder, which is created.

    Returns:
        Whether there was anything to draw.
    """
    draw = DRAWINGS.get(outcome.plan.item.drawing)
    if draw is None or not any(entry.reading for entry in outcome.entries):
        return False
    save(lambda: draw(outcome, store), folder / outcome.plan.item.name, dpi=90)
    return True


def robustness_curves(outcome: Outcome, store: Store) -> Figure:
    """Black-box robust accuracy against the radius: measured with intervals, the paper's numbers dotted."""
    papers = list(dict.fromkeys(row.dataset for row in outcome.plan.item.rows))
    figure, panels = plt.subplots(
        1, len(papers), figsize=(4.4 * len(papers), 3.4), squeeze=False, layout="constrained"
    )
    for axes, paper in zip(panels[0], papers, strict=True):
        for index, column in enumerate(outcome.plan.item.columns):
            entries = [
                entry
                for entry in outcome.entries
                if entry.row.dataset == paper and entry.column == column and entry.row.label == "black box"
            ]
            _curve(axes, entries, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        setting = outcome.plan.settings[paper]
        factor = setting.radius_factors[paper]
        axes.set_title(f"measured on {setting.dataset}; dotted: the paper on {paper}")
        axes.set_xlabel(
            f"radius of the paper, linf (measured at {factor:g} times it)" if factor != 1 else "radius, linf"
        )
        axes.set_ylim(-2, 102)
    panels[0][0].set_ylabel("robust accuracy in per cent")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _curve(axes: Axes, entries: list[Entry], colour: str, marker: str) -> None:
    radii = [float(entry.row.parameter.removeprefix("eps=")) for entry in entries]
    printed = [entry.printed.percent if entry.printed else np.nan for entry in entries]
    axes.plot(radii, printed, ":", color=colour, marker=marker, markersize=3, markerfacecolor="white")
    seen = [(radius, entry.estimate) for radius, entry in zip(radii, entries, strict=True)]
    points = [(radius, found) for radius, found in seen if found is not None]
    values = np.array([[found.value, found.lower, found.upper] for _, found in points]).reshape(-1, 3) * 100
    bars = np.abs(values[:, 1:].T - values[:, 0])
    axes.errorbar(
        [radius for radius, _ in points], values[:, 0], bars, color=colour, marker=marker, markersize=4,
        capsize=2, linewidth=1.2, label=entries[0].column.label,
    )  # fmt: skip


def transfer_matrices(outcome: Outcome, store: Store) -> Figure:
    """Attack success between members, mean over seeds: rows surrogates, columns targets."""
    plan = outcome.plan
    rows = {row.dataset: (row, row.protocol.attack.eps) for row in plan.item.rows
            if isinstance(row.protocol, Transfer)}  # fmt: skip
    figure, panels = plt.subplots(
        len(rows), len(plan.item.columns), figsize=(1.75 * len(plan.item.columns), 2.2 * len(rows)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, (paper, (row, eps)) in zip(panels, rows.items(), strict=True):
        for axes, column in zip(line, plan.item.columns, strict=True):
            cells = [plan.sources(row, column, seed)[0] for seed in plan.seeds[paper]]
            tables = [
                TransferMatrix.from_json(store.load(cell)["result"]).table("attack_success")
                for cell in cells
                if store.finished(cell)
            ]
            axes.set_title(column.label)
            axes.set_xticks([])
            axes.set_yticks([])
            if tables:
                _matrix(axes, 100 * np.mean(tables, axis=0))
        setting = plan.settings[paper]
        line[0].set_ylabel(f"{setting.dataset}, linf {setting.radius(eps, paper):g}\nsurrogate")
    figure.supxlabel("target; attack success in per cent, mean over seeds", fontsize=9)
    return figure


def _matrix(axes: Axes, table: np.ndarray) -> None:
    axes.imshow(table, vmin=0, vmax=100, cmap="cividis")
    for (i, j), rate in np.ndenumerate(table):
        axes.text(
            j, i, f"{rate:.0f}", ha="center", va="center", fontsize=8, color="black" if rate > 55 else "white"
        )


def boundaries(outcome: Outcome, store: Store) -> Figure:
    """Predicted labels around the first points: upwards and dashed the gradient of the loss."""
    plan = outcome.plan
    row = plan.item.rows[0]
    seed = plan.seeds[row.dataset][0]
    drawn: Mapping[str, list] = {
        column.label: store.load(cell)["result"]["drawn"]
        for column in plan.item.columns
        if store.finished(cell := plan.sources(row, column, seed)[0])
    }
    width = max(map(len, drawn.values()), default=1) or 1
    figure, panels = plt.subplots(
        len(drawn),
        width,
        figsize=(1.9 * width + 0.6, 1.9 * len(drawn) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, slices) in zip(panels, drawn.items(), strict=True):
        line[0].set_ylabel(f"{label}\nalong the gradient")
        for axes, found in zip(line, slices, strict=False):
            _boundary(axes, found)
    figure.supxlabel(
        f"orthogonal direction; {plan.settings[row.dataset].dataset}, seed {seed}, l2; "
        "numbers name the predicted label",
        fontsize=9,
    )
    return figure


def _boundary(axes: Axes, found: Mapping) -> None:
    reach = found["offsets"][-1]
    labels = np.array(found["labels"]["ensemble"])
    pale = [[(1 + 2 * channel) / 3 for channel in colour] for colour in plt.get_cmap("tab10").colors]  # type: ignore[attr-defined]
    axes.imshow(
        labels % 10, origin="lower", extent=(-reach, reach, -reach, reach), cmap=ListedColormap(pale),
        norm=BoundaryNorm(np.arange(-0.5, 10), 10), interpolation="nearest",
    )  # fmt: skip
    for label, x, y in _regions(labels, np.array(found["offsets"])):
        axes.text(x, y, str(label), ha="center", va="center", fontsize=8)
    for label in np.unique(labels):
        axes.contour(
            found["offsets"], found["offsets"], labels == label, [0.5], colors="#444444", linewidths=0.5
        )
    axes.plot([0, 0], [0, reach], "k--", linewidth=0.8)  # where an attack goes
    axes.plot(0, 0, "k.", markersize=5)
    axes.set_title(f"point {found['point']}, label {found['label']}", fontsize=8)


def _regions(labels: np.ndarray, offsets: np.ndarray) -> list[tuple[int, float, float]]:
    """Label and place of each region that is large enough to name: its point farthest from the boundary."""
    named = []
    for label in np.unique(labels):
        regions, count = ndimage.label(labels == label)
        for region in range(1, count + 1):
            inside = np.pad(regions == region, 1)
            depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
            # The middle line is where the attack's direction is drawn.
            depth[:, abs(offsets) < 0.1 * offsets[-1]] *= 0.5
            if inside.sum() >= _ROOM:
                row, column = np.unravel_index(depth.argmax(), depth.shape)
                named.append((int(label), float(offsets[column]), float(offsets[row])))
    return named


def contrast_plot(outcome: Outcome, store: Store) -> Figure:
    """What each change does to robust accuracy: a panel for each column compared with, a marker a radius."""
    found = [each for each in contrasts(outcome.entries) if each.row.measure == ROBUST]
    sides = list(dict.fromkeys(each.column.against for each in found))
    rows = list(dict.fromkeys(each.row for each in found))
    names = {side: list(dict.fromkeys(each.column.label for each in found if each.column.against == side))
             for side in sides}  # fmt: skip
    height = 0.3 * max(map(len, names.values())) + 1.2
    figure, panels = plt.subplots(
        1, len(sides), figsize=(5.6 * len(sides), height), squeeze=False, sharex=True, layout="constrained"
    )
    for axes, side in zip(panels[0], sides, strict=True):
        axes.axvline(0, color="0.6", linewidth=0.8)
        for index, row in enumerate(rows):
            here = [each for each in found if (each.row, each.column.against) == (row, side)]
            values = 100 * np.array([each.difference.value for each in here])
            ends = 100 * np.array([[each.difference.lower, each.difference.upper] for each in here])
            # The two radii a little apart, so that neither hides the other.
            heights = np.array([names[side].index(each.column.label) for each in here]) + 0.24 * (index - 0.5)
            axes.errorbar(values, heights, xerr=np.abs(ends.T - values), fmt=MARKERS[index], markersize=4,
                          color=COLOURS[index], capsize=2, linewidth=1,
                          label=f"{row.label} {row.parameter}")  # fmt: skip
        axes.set_yticks(range(len(names[side])), names[side])
        axes.invert_yaxis()
        axes.set_title(f"less {side}")
        axes.set_xlabel("difference in robust accuracy, points")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


DRAWINGS: Mapping[str, Callable[[Outcome, Store], Figure]] = {
    "curves": robustness_curves,
    "matrices": transfer_matrices,
    "slices": boundaries,
    "contrasts": contrast_plot,
}
