"""The few tables of a comparison that matter, for the terminal and for the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bounds import STATEMENTS, Variant
from empirical.comparison.judge import VERDICTS
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import Frontier, Row


@dataclass(frozen=True)
class Table:
    """A table of text cells with a header and a title."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                 for line in (self.header, tuple("-" * width for width in widths), *self.rows)]  # fmt: skip
        return "\n".join([self.title, *lines])

    def to_markdown(self) -> str:
        """A table in Markdown with its title above."""
        rows = [self.header, tuple("---" for _ in self.header), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([f"{self.title}:", "", *lines])


def ensemble_table(comparison: Comparison) -> Table:
    """Accuracy, robustness and mean transfer, one line per ensemble."""
    settings = comparison.settings
    shown = max(settings.eps)
    header = (
        "ensemble", "clean", "weakest", *(f"robust linf {eps:g}" for eps in settings.robust_eps),
        f"transfer l2 {shown:g}", "cosine inf..sup", "B", "beta sampled..certified",
    )  # fmt: skip
    rows = []
    for result in comparison.ensembles:
        rows.append((
            result.name,
            f"{result.accuracy.value:.3f}",
            f"{result.weakest.value:.3f}",
            *(f"{result.robust_accuracy(eps).value:.3f}" for eps in settings.robust_eps),
            f"{mean_transfer(result, shown):.3f}",
            f"{result.benign['similarity_lower']:.2f}..{result.benign['similarity_upper']:.2f}",
            f"{result.benign['gradient_norm']:.3g}",
            _bracket(result),
        ))  # fmt: skip
    return Table("What was trained, and how it stands attacks", header, tuple(rows))


def _bracket(result: EnsembleResult) -> str:
    if result.kinks:
        return f"infinite ({', '.join(result.kinks)})"
    beta = result.beta
    return f"{beta.lower:.3g}..{f'{beta.upper:.3g}' if math.isfinite(beta.upper) else 'unknown'}"


def statement_table(comparison: Comparison) -> Table:
    """For each statement and ensemble: up to which radius it says something, or why it does not."""
    names = [result.name for result in comparison.ensembles]
    rows = []
    for statement in statements(comparison):
        cells = [frontier_in_words(result, statement) for result in comparison.ensembles]
        rows.append((short_title(statement), STATEMENTS[statement].sense.value, *cells))
    title = (
        "Up to which l2 radius does a statement say something about the attack that was run,\n"
        "for every pair / for the best pair? Guaranteed for these points; a value after ~ is heuristic."
    )
    return Table(title, ("statement", "bound", *names), tuple(rows))


def reason_table(comparison: Comparison) -> Table:
    """For each statement and ensemble: the verdicts counted, and the reason in words for one pair."""
    rows = []
    for statement in statements(comparison):
        for result in comparison.ensembles:
            found = [row for row in result.rows if row.statement == statement]
            counts = Counter(row.verdict for row in found)
            verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
            # At the smallest radius, and with the certified stand-in for beta, a statement has it easiest.
            easiest = min(
                found,
                key=lambda row: (row.norm != "l2", row.eps, row.smoothness != "remainder", row.surrogate),
            )
            rows.append(
                (
                    short_title(statement),
                    result.name,
                    verdicts,
                    f"at {easiest.norm} {easiest.eps:g}: {easiest.reason}",
                )
            )
    return Table("Verdicts, and what is in the way at the smallest radius",
                 ("statement", "ensemble", "rows", "example"), tuple(rows))  # fmt: skip


def detail_table(result: EnsembleResult) -> Table:
    """All rows of one ensemble, pairs folded into ranges."""
    groups: dict[tuple[str, str, float, str, str, str], list[Row]] = {}
    for row in result.rows:
        key = (row.mode, row.norm, row.eps, row.attack, row.statement, row.smoothness)
        groups.setdefault(key, []).append(row)
    rows = []
    for (mode, norm, eps, attack, statement, smoothness), found in groups.items():
        values = [row.bound["value"] for row in found if row.bound["value"] is not None]
        counts = Counter(row.verdict for row in found)
        rows.append((
            mode, f"{norm} {eps:g}", attack, short_title(statement), smoothness,
            span([row.measured.value for row in found]), span(values) if values else "-",
            ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]),
            found[0].reason,
        ))  # fmt: skip
    header = ("mode", "ball", "attack", "statement", "beta", "measured", "bound", "pairs", "first pair: why")
    return Table(f"{result.name}: statement, attack, stand-in for beta; ranges run over the ordered pairs",
                 header, tuple(rows))  # fmt: skip


def short_title(identifier: str) -> str:
    """A statement's title up to its colon, and whether the paper prints it so."""
    title = STATEMENTS[identifier].title.split(":")[0]
    return f"{title} as printed" if STATEMENTS[identifier].variant is Variant.PRINTED else title


def verdict_counts(comparison: Comparison) -> dict[str, int]:
    """How many rows, those about certificates included, came to each verdict."""
    counts = Counter(row.verdict for row in comparison.rows())
    counts.update(row.verdict for row in comparison.joint())
    return {verdict: counts[verdict] for verdict in VERDICTS}


def statements(comparison: Comparison) -> list[str]:
    """Identifiers of the statements that were evaluated, in the order of `bounds.STATEMENTS`."""
    seen = {row.statement for row in comparison.rows()}
    return [identifier for identifier in STATEMENTS if identifier in seen]


def frontier_in_words(result: EnsembleResult, statement: str) -> str:
    """Largest l2 radius up to which a statement is informative for every pair and for the best pair.

    Counted over guaranteed bounds; where none of them says anything, over heuristic values, marked by "~".
    """
    found = _l2_frontier(result, statement)
    if found is None:
        return "-"
    for mark, every, best in (
        ("", found.guaranteed, found.guaranteed_best), ("~", found.heuristic, found.heuristic_best),
    ):  # fmt: skip
        if best is not None:
            return f"{mark}{'none' if every is None else f'{every:g}'} / {mark}{best:g}"
    rows = [row for row in result.rows if row.statement == statement]
    return "inapplicable" if all(row.bound["status"] == "inapplicable" for row in rows) else "vacuous"


def _l2_frontier(result: EnsembleResult, statement: str) -> Frontier | None:
    return next(
        (each for each in result.frontiers if each.statement == statement and each.norm == "l2"), None
    )


def mean_transfer(result: EnsembleResult, eps: float) -> float:
    """Mean untargeted transfer rate of the first attack over the ordered pairs at an l2 radius."""
    first = result.rows[0].attack
    rates = {(row.surrogate, row.target): row.measured.value for row in result.rows
             if (row.mode, row.norm, row.eps, row.attack) == ("untargeted", "l2", eps, first)}  # fmt: skip
    return sum(rates.values()) / len(rates)


def span(values: Iterable[float]) -> str:
    """A range in words."""
    values = list(values)
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
