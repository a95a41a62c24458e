"""One look for every figure: palette, markers, dashes, hatching, and how a figure is written to disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bounds import Estimate
from empirical.files import write_bytes

# Okabe and Ito's palette; it survives the common forms of colour blindness. Markers and dashes carry the same
# distinction, so that the figures can be read in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MEASURED = COLOURS[0]
QUIET = "#6E6E6E"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "transferbounds",
    "svg.fonttype": "none",
}


def save(draw: Callable[[], Figure], stem: Path, *, dpi: int = 110) -> tuple[Path, Path]:
    """Draw a figure in the common style and write `stem`.svg and `stem`.png; the folder is created.

    Returns:
        The two files.
    """
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    with plt.rc_context(STYLE):
        figure = draw()
        # A fixed date and a fixed hash salt keep the files byte-identical from run to run.
        for path, options in ((svg, {"metadata": {"Date": None}}), (png, {"dpi": dpi})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=path.suffix[1:], bbox_inches="tight", **options)
            write_bytes(path, drawn.getvalue())
        plt.close(figure)
    return svg, png


def ink(colour: str) -> tuple[float, float, float]:
    """A colour dark enough for small print in it."""
    red, green, blue = to_rgb(colour)
    return 0.6 * red, 0.6 * green, 0.6 * blue


def hatch(axes: Axes, low: float, high: float, *, along: str = "y") -> None:
    """Hatch the values that say nothing."""
    span = axes.axhspan if along == "y" else axes.axvspan
    span(low, high, facecolor="none", edgecolor="#AAAAAA", hatch="////", linewidth=0, zorder=0)


def says_nothing() -> Patch:
    """The legend's entry for what `hatch` draws."""
    return Patch(facecolor="none", edgecolor="#AAAAAA", hatch="////", label="says nothing")


def interval(estimate: Estimate) -> list[list[float]]:
    """Error-bar lengths below and above the value."""
    return [[estimate.value - estimate.lower], [estimate.upper - estimate.value]]


def note(axes: Axes, words: str) -> None:
    """Say in the middle of an empty panel why it is empty."""
    axes.text(
        0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8, color=QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
