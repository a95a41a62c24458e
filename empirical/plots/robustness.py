"""Clean and robust accuracy of the ensembles."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bounds import Estimate
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.plots.select import Drawing
from empirical.plots.style import COLOURS, interval
from empirical.report.summary import Table

HATCHES = ("", "///", "...", "xxx", "+++")
SHADES = ("#D9D9D9", COLOURS[5], COLOURS[0], COLOURS[2], COLOURS[1])


def _bars(comparison: Comparison, result: EnsembleResult) -> dict[str, Estimate]:
    radii = comparison.settings.robust_eps
    return {
        "weakest member, clean": result.weakest,
        **{f"ensemble, PGD linf {eps:g}": result.robust_accuracy(eps) for eps in radii},
    }


def draw(comparison: Comparison) -> Figure:
    """Clean accuracy of the weakest member and robust accuracy of each ensemble, with intervals."""
    figure, axes = plt.subplots(figsize=(1.6 + 1.35 * len(comparison.ensembles), 3.1))
    for place, result in enumerate(comparison.ensembles):
        bars = _bars(comparison, result)
        width = 0.84 / len(bars)
        for index, (label, estimate) in enumerate(bars.items()):
            x = place + (index - (len(bars) - 1) / 2) * width
            axes.bar(
                x, estimate.value, width * 0.92, color=SHADES[index % len(SHADES)],
                hatch=HATCHES[index % len(HATCHES)], edgecolor="white", label=None if place else label,
            )  # fmt: skip
            axes.errorbar(x, estimate.value, interval(estimate), color="black", capsize=2, linewidth=0.8)
            axes.text(x, estimate.upper + 0.01, f"{estimate.value:.2f}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(comparison.ensembles)), [result.name for result in comparison.ensembles])
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return figure


def table(comparison: Comparison) -> Table:
    """The bars and their intervals."""
    header = ("ensemble", "what", "accuracy", "lower", "upper")
    rows = [
        (result.name, label, f"{estimate.value:.3f}", f"{estimate.lower:.3f}", f"{estimate.upper:.3f}")
        for result in comparison.ensembles
        for label, estimate in _bars(comparison, result).items()
    ]
    return Table("Accuracy and its intervals", header, tuple(rows))


ROBUST_ACCURACY = Drawing(
    "robust-accuracy",
    "How robust are the ensembles?",
    "Clean accuracy of the weakest member and robust accuracy of the whole ensemble under 50-step PGD. "
    "Lines on the bars are {confidence} Clopper-Pearson intervals.",
    draw,
    table,
)
