"""The smoothness bracket and its convergence, drawn from a saved study alone."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bounds import Estimate
from empirical.plots import COLOURS, STYLE
from empirical.smoothness.result import SETS, SmoothnessStudy

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAME = "smoothness-bracket"


def save_bracket(study: SmoothnessStudy, folder: Path) -> list[Path]:
    """Draw the bracket as SVG and PNG into a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.svg", folder / f"{NAME}.png"]
    with plt.rc_context(STYLE):
        figure = smoothness_bracket(study)
        # A fixed date and a fixed hash salt keep the files byte-identical from run to run.
        figure.savefig(paths[0], metadata={"Date": None}, bbox_inches="tight")
        figure.savefig(paths[1], dpi=150, bbox_inches="tight")
        plt.close(figure)
    return paths


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
    for index, (member, (colour, marker)) in enumerate(zip(study.members, _styles(study), strict=True)):
        for place, where in enumerate(sets):
            if where in member.smoothness:
                x = place + spread * (index - (len(study.members) - 1) / 2)
                _draw_interval(axes, x, member.smoothness[where], colour, marker)
    axes.set_yscale("log")
    axes.set_xticks(range(len(sets)), [SETS[where].replace(" ", "\n", 2) for where in sets])
    axes.set_ylabel(r"smoothness $\beta$ (loss per squared l2 distance)")
    axes.set_title("from sampled (marker) to certified (bar); an arrow: no finite end")


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
    for member, (colour, marker) in zip(study.members, _styles(study), strict=True):
        if member.convergence:
            budget, best = zip(*member.convergence, strict=True)
            axes.plot(
                budget, best, color=colour, marker=marker, markersize=3, linewidth=1, label=member.name,
                drawstyle="steps-post", markevery=[-1],
            )  # fmt: skip
    axes.set_xlabel("gradient evaluations per sample")
    axes.set_ylabel(r"largest $\beta$ sampled so far")
    axes.set_ylim(bottom=0)
    axes.set_title(f"sampling by {study.settings.method}")


def _styles(study: SmoothnessStudy) -> list[tuple[str, str]]:
    """A colour for each ensemble and a marker for each member of it."""
    groups: dict[str, int] = {}
    styles = []
    for member in study.members:
        group = member.name.rpartition("/")[0] or member.name
        place = groups[group] = groups.get(group, -1) + 1
        colour = COLOURS[list(groups).index(group) % len(COLOURS)]
        styles.append((colour, MARKERS[place % len(MARKERS)]))
    return styles
