"""The smoothness bracket and its convergence, drawn from a saved study alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bounds import Estimate
from empirical.plots.style import COLOURS, MARKERS, ink, plt, save
from empirical.smoothness.result import SETS, SmoothnessStudy

DASHES = ("-", (0, (5, 1)), (0, (2, 1)), (0, (5, 1, 1, 1)))
NAME = "smoothness-bracket"


def save_bracket(study: SmoothnessStudy, folder: Path) -> list[Path]:
    """Draw the bracket as SVG and PNG into a folder, which is created."""
    return list(save(lambda: smoothness_bracket(study), folder / NAME))


def smoothness_bracket(study: SmoothnessStudy) -> Figure:
    """Left: sampled to certified beta of every model on every set. Right: sampled beta against budget."""
    width = 5.0 + 0.35 * len(study.members) * len(_sets(study))
    figure, (bracket, convergence) = plt.subplots(
        1, 2, figsize=(min(width, 12.0), 4.0), width_ratios=(3, 2), layout="constrained"
    )
    _draw_brackets(bracket, study)
    _draw_convergence(convergence, study)
    handles, labels = convergence.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    return figure


def _sets(study: SmoothnessStudy) -> list[str]:
    return [where for where in SETS if any(where in member.smoothness for member in study.members)]


def _draw_brackets(axes: Axes, study: SmoothnessStudy) -> None:
    sets = _sets(study)
    spread = 0.7 / max(len(study.members), 1)
    middles: dict[str, list[float]] = {}
    for index, (member, (colour, marker, _)) in enumerate(zip(study.members, _styles(study), strict=True)):
        shift = spread * (index - (len(study.members) - 1) / 2)
        middles.setdefault(_group(member.name), []).append(shift)
        for place, where in enumerate(sets):
            if where in member.smoothness:
                _draw_interval(axes, place + shift, member.smoothness[where], colour, marker)
    for place in range(1, len(sets)):
        axes.axvline(place - 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
    axes.set_yscale("log")
    axes.set_xticks(range(len(sets)), [SETS[where].replace(" ", "\n", 2) for where in sets])
    axes.set_ylabel(r"smoothness $\beta$ (loss per squared l2 distance)")
    axes.set_title("from sampled (marker) to certified (bar); an arrow: no finite end")
    # Each group's name, once, where the axis has room for it: over the first set.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.12)
    for index, (name, shifts) in enumerate(middles.items()):
        height = 0.99 - 0.05 * (index % 2 if len(middles) > 4 else 0)
        axes.text(
            sum(shifts) / len(shifts), height, name, transform=axes.get_xaxis_transform(),
            ha="center", va="top", fontsize=7, color=ink(COLOURS[index % len(COLOURS)]),
        )  # fmt: skip


def _draw_interval(axes: Axes, x: float, estimate: Estimate, colour: str, marker: str) -> None:
    """The interval as a line: the sampled end a marker, the certified one a bar, an infinite one an arrow."""
    low, high = estimate.lower, estimate.upper
    if low > 0:
        axes.plot([x], [low], marker=marker, color=colour, markersize=4, linestyle="none")
    if math.isfinite(high):
        axes.plot([x, x], [max(low, high * 1e-6), high], color=colour, linewidth=1.2)
        axes.plot([x], [high], marker="_", color=colour, markersize=9, markeredgewidth=1.8)
    elif low > 0:
        axes.annotate(
            "", (x, 1.0), (x, low), xycoords=("data", "axes fraction"), textcoords="data",
            arrowprops={"arrowstyle": "->", "color": colour, "linestyle": ":", "linewidth": 0.8},
        )  # fmt: skip


def _draw_convergence(axes: Axes, study: SmoothnessStudy) -> None:
    for member, (colour, marker, dash) in zip(study.members, _styles(study), strict=True):
        if member.convergence:
            budget, best = zip(*member.convergence, strict=True)
            axes.plot(
                budget, best, color=colour, marker=marker, markersize=3, linewidth=1, linestyle=dash,
                label=member.name, drawstyle="steps-post", markevery=[-1],
            )  # fmt: skip
    axes.set_xlabel("gradient evaluations per sample")
    axes.set_ylabel(r"largest $\beta$ sampled so far")
    axes.set_ylim(bottom=0)
    axes.set_title(f"sampling by {study.settings.method}")


def _group(name: str) -> str:
    return name.rpartition("/")[0] or name


def _styles(study: SmoothnessStudy) -> list[tuple[str, str, Any]]:
    """A colour and a dash for each ensemble and a marker for each member of it."""
    groups: dict[str, int] = {}
    styles = []
    for member in study.members:
        group = _group(member.name)
        place = groups[group] = groups.get(group, -1) + 1
        index = list(groups).index(group)
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        styles.append((colour, MARKERS[place % len(MARKERS)], dash))
    return styles
