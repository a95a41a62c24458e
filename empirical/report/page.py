"""One self-contained HTML page for a comparison: figures inside, nothing fetched, opens by double click."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from bounds import STATEMENTS
from empirical.comparison.frontier import R2
from empirical.comparison.results import Comparison
from empirical.files import write_text
from empirical.plots import SavedFigure
from empirical.report import summary, verdict
from empirical.report.mathml import mathml

R7 = "refined-r7"
TEMPLATE = Path(__file__).with_name("page.html")


def write_report(comparison: Comparison, figures: Sequence[SavedFigure], path: Path) -> None:
    """Render the report and write it atomically.

    Args:
        comparison: Results to report.
        figures: Figures that `empirical.plots.save_figures` drew of them.
        path: File to write.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    identifiers = [*summary.statements(comparison), *((R2, R7) if any(comparison.joint()) else ())]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=comparison.settings,
        environment=comparison.environment,
        ensembles=comparison.ensembles,
        counts=summary.verdict_counts(comparison),
        verdict=verdict.findings(comparison),
        tables=verdict.tables(comparison),
        reasons=summary.reason_table(comparison),
        details=[summary.detail_table(result) for result in comparison.ensembles],
        anchors={summary.short_title(identifier): _anchor(identifier) for identifier in identifiers},
        statements=[_statement(identifier, comparison) for identifier in identifiers],
        figures=[
            {
                "name": figure.name,
                "title": figure.title,
                "caption": figure.caption,
                "svg": inline_svg(figure),
                "table": figure.table,
            }
            for figure in figures
        ],
        words=_words,
    )
    write_text(path, page)


def inline_svg(figure: SavedFigure) -> str:
    """The figure's SVG element, ready to stand inside a page: own identifiers, a label for screen readers."""
    text = figure.svg.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    # What is not drawn and points elsewhere: licence and format, as addresses.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures share one page, and an SVG's identifiers are global to it.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{figure.name}-", text)
    label = html.escape(f"{figure.title} {figure.caption}", quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _anchor(identifier: str) -> str:
    return f"statement-{identifier}"


def _statement(identifier: str, comparison: Comparison) -> dict[str, Any]:
    """A statement's section: its formula, what its proof needs, and how it fared here."""
    statement = STATEMENTS[identifier]
    return {
        "statement": statement,
        "name": summary.short_title(identifier),
        "anchor": _anchor(identifier),
        "formula": mathml(statement.latex(), "block"),
        "quantities": [(mathml(quantity.latex), quantity) for quantity in statement.quantities],
        "hypotheses": [
            ("assumed", each.words, "")
            if each.predicate is None
            else ("checked", each.words, mathml(statement.latex_of(each.predicate)))
            for each in statement.hypotheses
        ],
        "here": _here(identifier, comparison),
    }


def _here(identifier: str, comparison: Comparison) -> str:
    """How a statement fared in this comparison."""
    joint = list(comparison.joint())
    if identifier == R7:
        proved = sum(row.must_transfer.lower > 0 for row in joint)
        return (
            f"some perturbation provably fools all, at some points, in {proved} of {len(joint)} evaluations."
        )
    rows = joint if identifier == R2 else [row for row in comparison.rows() if row.statement == identifier]
    counts = Counter(row.verdict for row in rows)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in summary.VERDICTS if counts[verdict])
    return f"{words}, of {len(rows)} evaluations."


def _words(fields: Mapping[str, Any]) -> str:
    """What is set of a mapping, in words."""
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
