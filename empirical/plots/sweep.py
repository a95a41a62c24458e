"""The eps sweep: what is measured, what bounds it, and where the bounds say nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import ON_BOTH_CORRECT, ON_BOTH_MEMBERS, JointRow, Row
from empirical.plots.select import (
    CERTIFICATE,
    FAMILIES,
    MODES,
    Drawing,
    Family,
    by_radius,
    envelope,
    grid,
    joint_pairs,
    l2_rows,
    number,
)
from empirical.plots.style import COLOURS, MEASURED, hatch, ink, says_nothing
from empirical.report.summary import Table

JOINT = COLOURS[4]
TOP, BOTTOM = 1.16, -0.07
Curve = dict[float, tuple[float, bool]]


def draw(comparison: Comparison) -> Figure:
    """A panel for every ensemble and mode: measured band, bounds for every pair, certificates as a ribbon."""
    modes = [mode for mode in MODES if any(row.mode == mode for row in comparison.rows())]
    figure, panels = plt.subplots(
        len(modes), len(comparison.ensembles), figsize=grid(comparison, len(modes)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for mode, line in zip(modes, panels, strict=True):
        for result, axes in zip(comparison.ensembles, line, strict=True):
            _panel(axes, result, mode)
            axes.set_title(f"{result.name}, {mode}")
        line[0].set_ylabel("transfer rate")
    radii = comparison.settings.eps
    for axes in panels[-1]:
        axes.set_xlabel(r"$\ell_2$ radius $\varepsilon$")
        shown = radii[:: 1 + len(radii) // 9]  # the radii themselves, as many as have room
        axes.set_xticks(shown, [f"{eps:g}" for eps in shown], fontsize=7)
        axes.set_xticks([], minor=True)
    columns = min(5, len(comparison.ensembles) + 1)
    figure.legend(
        handles=_legend(comparison), frameon=False, ncols=columns, loc="outside upper center", fontsize=8
    )
    return figure


def _panel(axes: Axes, result: EnsembleResult, mode: str) -> None:
    rows = l2_rows(result, mode)
    hatch(axes, 1.0, TOP)
    hatch(axes, BOTTOM, 0.0)
    low, middle, high = _measured(rows)
    radii = list(middle)
    axes.set_xscale("log")
    joint = _joint(result, mode)
    _certificates(axes, joint)
    axes.fill_between(radii, list(low.values()), list(high.values()), color=MEASURED, alpha=0.3, linewidth=0)
    axes.plot(radii, list(middle.values()), "o-", color=MEASURED, linewidth=1.3, markersize=3)
    labels = []
    for each in FAMILIES:
        _line(
            axes,
            {eps: ends for eps, ends in envelope(rows, each.name, upper=False).items() if ends[0] > 0},
            each,
        )
        curve = envelope(rows, each.name, upper=True)
        _line(axes, curve, each)
        labels.append((_end(curve), each.name, each.colour))
    certified = {
        eps: (max(row.certified.upper for row in group), True) for eps, group in _speaking(joint).items()
    }
    labels.append((_end(certified), "R2", CERTIFICATE.colour))
    axes.set_ylim(BOTTOM, TOP)
    _label(axes, [(end, words, colour) for end, words, colour in labels if end])


def _measured(rows: Sequence[Row]) -> tuple[dict[float, float], ...]:
    """Smallest, mean and largest rate over pairs and attacks on one member, with their intervals, by radius.

    An attack on both members at once is no transfer; it is what the strongest attack found is about. Where
    points whose label is the target already count, a rate starts at the share of that class; the rate without
    them is the one to show.
    """
    low, middle, high = {}, {}, {}
    for eps, group in by_radius(rows).items():
        transfers = [row for row in group if row.attack != ON_BOTH_MEMBERS]
        rates = [row.measured for row in transfers if row.statement in ON_BOTH_CORRECT]
        low[eps] = min(rate.lower for rate in rates)
        middle[eps] = sum(rate.value for rate in rates) / len(rates)
        high[eps] = max(rate.upper for rate in rates)
    return low, middle, high


def _joint(result: EnsembleResult, mode: str) -> dict[float, list[JointRow]]:
    radii = sorted({row.eps for row in result.joint if row.norm == "l2"})
    return {eps: rows for eps in radii if (rows := joint_pairs(result, mode, eps))}


def _speaking(joint: dict[float, list[JointRow]]) -> dict[float, list[JointRow]]:
    """The radii at which R2 says something about every pair."""
    return {eps: group for eps, group in joint.items() if all(row.informative for row in group)}


def _certificates(axes: Axes, joint: dict[float, list[JointRow]]) -> None:
    """From R7 to R2: in this ribbon lies the strongest attack on the pair that is easiest to fool."""
    if not joint:
        return
    speaking = _speaking(joint)
    lower = [max(row.must_transfer.lower for row in group) for group in speaking.values()]
    upper = [max(row.certified.upper for row in group) for group in speaking.values()]
    found = [max(row.found.value for row in group) for group in joint.values()]
    axes.fill_between(list(speaking), lower, upper, color="#BDBDBD", alpha=0.6, linewidth=0)
    for edge in (lower, upper):
        axes.plot(list(speaking), edge, color=CERTIFICATE.colour, linewidth=0.9)
    axes.plot(list(joint), found, color=JOINT, marker="P", markersize=4, linewidth=1.1, linestyle=(0, (4, 1)))


def _line(axes: Axes, curve: Curve, each: Family) -> None:
    if not curve:
        return
    height = [min(max(value, BOTTOM / 2), (1 + TOP) / 2) for value, _ in curve.values()]
    axes.plot(list(curve), height, color=each.colour, linestyle=each.dash, linewidth=1.3)
    for sure, fill in ((True, each.colour), (False, "white")):
        chosen = [(eps, y) for (eps, (_, ok)), y in zip(curve.items(), height, strict=True) if ok is sure]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), linestyle="", marker=each.marker, markersize=4,
                      color=each.colour, markerfacecolor=fill)  # fmt: skip


def _end(curve: Curve) -> tuple[float, float] | None:
    """Where an upper bound stops saying something: at 1 or at its last radius; None if it never does."""
    points = [(eps, value) for eps, (value, _) in curve.items()]
    speaking = [point for point in points if point[1] < 1]
    if not speaking:
        return None
    eps, value = speaking[-1]
    if points[-1] == speaking[-1]:
        return eps, value
    beyond, height = points[points.index((eps, value)) + 1]
    share = (1 - value) / (height - value)
    return eps * (beyond / eps) ** share, 1.0


def _label(axes: Axes, labels: list[tuple[tuple[float, float], str, str]]) -> None:
    """Name each curve right of its end, none on top of another."""
    last = None
    for (x, y), words, colour in sorted(labels, key=lambda label: -label[0][1]):
        # In points, from the end of the curve: down where a label above is near, up where the axis is near.
        down = -9.0 if last and abs(last[1] - y) < 0.12 and abs(math.log(x / last[0])) < 1 else 0.0
        axes.annotate(
            words, (x, y), xytext=(6, down if y > 0.08 else 9), textcoords="offset points", color=ink(colour),
            fontsize=7, ha="left", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8},
        )  # fmt: skip
        last = (x, y)


def _legend(comparison: Comparison) -> list[Line2D | Patch]:
    rows = list(comparison.rows())
    present = {row.statement for row in rows if row.bound["value"] is not None}
    handles: list[Line2D | Patch] = [
        Line2D(
            [],
            [],
            color=MEASURED,
            marker="o",
            markersize=3,
            label="transfer: mean, range over pairs",
        ),
        *(
            Line2D(
                [],
                [],
                color=each.colour,
                linestyle=each.dash,
                marker=each.marker,
                markersize=4,
                label=each.label,
            )
            for each in FAMILIES
        ),
    ]
    if any(comparison.joint()):
        handles += [
            Patch(
                facecolor="#BDBDBD", edgecolor=CERTIFICATE.colour, label="strongest attack: between R7 and R2"
            ),
            Line2D(
                [],
                [],
                color=JOINT,
                marker="P",
                markersize=4,
                linestyle=(0, (4, 1)),
                label="strongest attack found",
            ),
        ]
    return [*handles, says_nothing()] if present else handles


def table(comparison: Comparison) -> Table:
    """Every curve of the figure by ensemble, mode and radius."""
    sides = [f"{each.name} {side}" for each in FAMILIES for side in ("lower", "upper")]
    header = ("ensemble", "mode", "eps", "measured", *sides, "R7", "found", "R2")
    lines = []
    for result in comparison.ensembles:
        for mode in MODES:
            rows = l2_rows(result, mode)
            low, middle, high = _measured(rows)
            joint = _joint(result, mode)
            curves = [envelope(rows, each.name, upper=upper) for each in FAMILIES for upper in (False, True)]
            for eps, mean in middle.items():
                group, sure = joint.get(eps, []), _speaking(joint).get(eps, [])
                lines.append((
                    result.name, mode, f"{eps:g}", f"{mean:.3f} [{low[eps]:.3f}, {high[eps]:.3f}]",
                    *(number(curve[eps][0] if eps in curve else None) for curve in curves),
                    number(max((row.must_transfer.lower for row in sure), default=None)),
                    number(max((row.found.value for row in group), default=None)),
                    number(max((row.certified.upper for row in sure), default=None)),
                ))  # fmt: skip
    return Table("Rates and bounds by radius; a dash: inapplicable for some pair", header, tuple(lines))


EPS_SWEEP = Drawing(
    "eps-sweep",
    "Where does the theory say anything?",
    "Transfer (Definition 7; targeted, without the points whose label is the target already) against the "
    "radius. Blue: measured with attacks on one member, mean and range over the ordered pairs. The bounds "
    "are drawn as they hold for every pair: of each variant the sharpest statement. Where a line stops, a "
    "hypothesis fails from there on; in the hatched region a bound says nothing; open markers are "
    "heuristic. Between the black edges, R7 and R2, lies the strongest attack on the pair that is easiest "
    "to fool; dashed is the strongest that was found.",
    draw,
    table,
)
