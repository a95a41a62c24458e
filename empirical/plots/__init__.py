"""Figures of a comparison, drawn from its saved results alone: no model and no data is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from empirical.comparison.results import Comparison
from empirical.plots.matrices import TRANSFER_MATRICES
from empirical.plots.phase import PHASE_DIAGRAM
from empirical.plots.robustness import ROBUST_ACCURACY
from empirical.plots.scatter import BOUND_AGAINST_MEASURED
from empirical.plots.select import Drawing
from empirical.plots.style import COLOURS, MARKERS, STYLE, save
from empirical.plots.sweep import EPS_SWEEP
from empirical.plots.waterfall import SLACK_WATERFALL
from empirical.report.summary import Table

__all__ = ["COLOURS", "FIGURES", "MARKERS", "STYLE", "Drawing", "SavedFigure", "save", "save_figures"]

FIGURES: tuple[Drawing, ...] = (
    EPS_SWEEP,
    BOUND_AGAINST_MEASURED,
    SLACK_WATERFALL,
    PHASE_DIAGRAM,
    TRANSFER_MATRICES,
    ROBUST_ACCURACY,
)


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk, with the words that a reader and a screen reader need, and its numbers."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path
    table: Table


def save_figures(comparison: Comparison, folder: Path) -> list[SavedFigure]:
    """Draw every figure of a comparison as SVG and PNG.

    Args:
        comparison: Results, as made or as loaded.
        folder: Where the files go; it is created.

    Returns:
        The figures, in the order in which a report shows them.
    """
    confidence = f"{100 * comparison.settings.confidence:g} %"
    saved = []
    for each in FIGURES:
        svg, png = save(lambda draw=each.draw: draw(comparison), folder / each.name)  # type: ignore[misc]
        caption = each.caption.format(confidence=confidence)
        saved.append(SavedFigure(each.name, each.title, caption, svg, png, each.table(comparison)))
    return saved
