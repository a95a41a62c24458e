"""One self-contained HTML page for a comparison: figures inside, nothing fetched, opens by double click."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from bounds import STATEMENTS
from empirical import summary
from empirical.files import write_text
from empirical.plots import SavedFigure
from empirical.results import Comparison

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(comparison: Comparison, figures: Sequence[SavedFigure], path: Path) -> None:
    """Render the report and write it atomically.

    Args:
        comparison: Results to report.
        figures: Figures that `empirical.plots.save_figures` drew of them.
        path: File to write.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=comparison.settings,
        environment=comparison.environment,
        ensembles=comparison.ensembles,
        counts=summary.verdict_counts(comparison),
        verdict=summary.findings(comparison),
        tables=[summary.ensemble_table(comparison), summary.statement_table(comparison)],
        reasons=summary.reason_table(comparison),
        details=[summary.detail_table(result) for result in comparison.ensembles],
        statements=[STATEMENTS[identifier] for identifier in summary.statements(comparison)],
        figures=[
            {"name": figure.name, "title": figure.title, "caption": figure.caption, "svg": inline_svg(figure)}
            for figure in figures
        ],
    )
    write_text(path, page)


def inline_svg(figure: SavedFigure) -> str:
    """The figure's SVG element, ready to stand inside a page: own identifiers, a label for screen readers."""
    text = figure.svg.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    # Several figures share one page, and an SVG's identifiers are global to it.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{figure.name}-", text)
    label = html.escape(f"{figure.title}. {figure.caption}", quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
