"""One Markdown page a statement, written from the definitions: `python -m bounds.pages docs/statements`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bounds.definitions import DEFINITIONS, Definition
from bounds.registry import STATEMENTS
from bounds.statement import Hypothesis, Statement, Trend

_ARROWS = {Trend.INCREASING: "rises", Trend.DECREASING: "falls", Trend.EITHER: "either way"}
_FIGURE = (
    "![Two pairs of models with orthogonal gradients: wavy boundaries that stay close, "
    "straight ones that part](orthogonality.png)"
)
_FIGURE_NOTE = "Orthogonal gradients alone bound nothing: [how this is computed](orthogonality.py)."
_INTRODUCTION = """# The statements

Written from the definitions in `bounds` by `python -m bounds.pages docs/statements`; do not edit by hand.
*Printed* is the paper's formula, *repaired* the same idea with the smallest change that mends it, *refined*
our stronger result. Beside them: [the definitions](definitions.md) and
[the notation of the proofs](../proofs/README.md)."""
_STORY = """## Why smoothness has to come in

Figure 1 of the paper, computed by [orthogonality.py](orthogonality.py). The gradients of both pairs of
models are almost orthogonal (mean |cos| in the panels). The wavy pair's boundaries are a hair apart, and what
fools one model fools the other; the straight pair's are not. The angle does not tell the two cases apart, the
curvature does: that is why beta stands in every upper bound."""
_TERMS = (
    "The value is the sum of {names}. Each is what the formula gains when the quantities behind it leave "
    "their neutral value, in this order."
)
_KINDS = "`evaluate` checks the first kind on the numbers; the second is about models, data and attack."
_NOTHING_CHECKABLE = "No number decides these: they are about models, data and attack."
_NOTATION = "Notation and the inequality (T): [here](../proofs/README.md)."


def pages(proofs: Path) -> dict[str, str]:
    """All pages by file name.

    Args:
        proofs: Directory of the written proofs, one `<id>.md` a statement.

    Raises:
        FileNotFoundError: If a statement has no written proof.
    """
    written = {key: (proofs / f"{key}.md").read_text(encoding="utf-8").strip() for key in STATEMENTS}
    texts = {f"{key}.md": page(statement, written[key]) for key, statement in STATEMENTS.items()}
    return {**texts, "README.md": index(), "definitions.md": definitions()}


def page(statement: Statement, written_proof: str) -> str:
    """The page of one statement."""
    quantities = [
        (f"`{q.name}`", f"${q.latex}$", q.meaning, q.range.value, _direction(statement, q.name))
        for q in statement.quantities
    ]
    parts = [
        f"# {statement.title}",
        f"`{statement.id}` · {statement.variant.value} · {statement.sense.value} · {statement.source}",
        statement.claim,
        f"$${statement.latex()}$$",
        f"**Verdict: {statement.verdict.value}.** {statement.reason}",
        *([_FIGURE, _FIGURE_NOTE] if statement.id in ("theorem-3", "theorem-4") else []),
        "## Quantities",
        _table(("name", "symbol", "what it is", "range", "as it grows, the formula"), quantities),
        "## Hypotheses",
        "\n".join(_hypothesis(statement, hypothesis) for hypothesis in statement.hypotheses),
        _KINDS if statement.checkable else _NOTHING_CHECKABLE,
        "## Terms",
        _TERMS.format(names=", ".join(f"*{term.name}*" for term in statement.terms)),
        "## Proof",
        _machine_proof(statement),
        f"### Written\n\n{_NOTATION}",
        written_proof,
        *_errata(statement),
        "## In code",
        _example(statement),
    ]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The page that lists them all."""
    rows = [
        (f"[{s.title}]({key}.md)", s.variant.value, s.sense.value, s.verdict.value, f"${s.latex()}$")
        for key, s in STATEMENTS.items()
    ]
    parts = [
        _INTRODUCTION,
        _table(("statement", "variant", "sense", "verdict", "formula"), rows),
        _STORY,
        _FIGURE,
    ]
    return "\n\n".join(parts) + "\n"


def definitions() -> str:
    """The page of Definitions 1 to 9."""
    parts = ["# The definitions", "As predicates and quantities over arrays: `bounds.definitions`."]
    for number, definition in DEFINITIONS.items():
        names = ", ".join(f"`{name}`" for name in definition.functions)
        parts += [
            f"## Definition {number}: {definition.title}",
            f"TRS, {_place(definition)}. In code: {names}.",
            f"$${definition.latex}$$",
            definition.remark,
        ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A bare vertical bar would end the cell: a command in mathematics, an escape elsewhere."""
    if "$" in text:
        return text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
    return text.replace("|", r"\|")


def _direction(statement: Statement, name: str) -> str:
    trend = statement.trends.get(name)
    return _ARROWS[trend] if trend else "—"


def _hypothesis(statement: Statement, hypothesis: Hypothesis) -> str:
    notes = []
    if hypothesis.predicate is not None:
        notes.append(f"${statement.latex_of(hypothesis.predicate)}$")
    if not hypothesis.stated:
        notes.append("not in the paper")
    if hypothesis.erratum is not None:
        notes.append(f"fails without it: erratum {hypothesis.erratum}")
    kind = "checked" if hypothesis.predicate is not None else "assumed"
    return f"- ({kind}) {hypothesis.words}" + (f" ({'; '.join(notes)})" if notes else "") + "."


def _machine_proof(statement: Statement) -> str:
    """What the machine checks, from the registry of proofs."""
    from bounds.proofs import PROOFS

    tasks = {key: task for key, task in PROOFS.items() if task.statement == statement.id}
    if not tasks:
        return "No machine proof; the written one follows."
    return "\n".join(
        f"- `prove({key!r})`: {task.claim}. Expected: {task.expected.value}. {task.scope}"
        for key, task in tasks.items()
    )


def _errata(statement: Statement) -> list[str]:
    from bounds.errata import ERRATA

    if not statement.errata:
        return []
    lines = [
        f"- **{number}. {ERRATA[number].title}**: {ERRATA[number].corrected} (`bounds.ERRATA[{number}]`)"
        for number in statement.errata
    ]
    return ["## Errata", "\n".join(lines)]


def _place(definition: Definition) -> str:
    return f"section {definition.section}" if definition.section[0].isdigit() else definition.section


def _example(statement: Statement) -> str:
    quantities = ", ".join(f'"{name}": ...' for name in statement.names)
    return f'```python\nfrom bounds import evaluate\n\nevaluate("{statement.id}", {{{quantities}}})\n```'


def write(directory: Path, texts: Mapping[str, str]) -> None:
    """Write the pages, and remove those of statements that are gone."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages into a directory beside the one of the written proofs."""
    parser = argparse.ArgumentParser(prog="python -m bounds.pages", description=__doc__)
    parser.add_argument(
        "directory", type=Path, help="where to write; ../proofs beside it holds the written proofs"
    )
    directory = parser.parse_args(arguments).directory
    write(directory, pages(directory.parent / "proofs"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
