"""The `check-statements` command: attack every statement and say what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bounds.check import Finding
    from bounds.proofs import Proof
    from bounds.statement import Statement

#: Version of the `--json` output.
SCHEMA = 1
#: How many times more worlds `--deep` draws.
DEEPER = 10

_DESCRIPTION = """\
Attack the statements of the paper, their repairs and their refinements.

Each statement is put to small worlds in which all its quantities are known exactly: first the extremal
families, then worlds that a search draws, climbing towards a violation and shrinking what it finds. A
statement that is ours also gets its machine proof. Read a row as: of `tried` worlds, `met` met the
statement's hypotheses, and in the tightest of these the truth was `slack` away from the bound."""

_EPILOG = """\
verdicts:
  survived    no world falsified it; "proved" adds what the solver says (scope: bounds.PROOFS)
  falsified   with the smallest world found; expected of Lemma 8 as printed, which fails at delta = 0
  vacuous     true, but proved never to say anything
  unreached   no world met its hypotheses: the search says nothing

exit status: 0 fine, 1 a statement that is called true was falsified, 2 usage.

examples:
  check-statements --statement lemma-8
  check-statements --claim my_claim.py --examples 1000
  check-statements --deep --json > findings.json"""


def check_statements(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments; those of the process by default.

    Returns:
        0 if nothing that is called true was falsified, 1 if something was, 2 for what cannot be checked.
    """
    parser = command_parser()
    options = parser.parse_args(arguments)

    from bounds.check import EXAMPLES, check
    from bounds.claims import ClaimError, reading_of

    try:
        statements = _selected(options.statement, options.claim)
        for statement in statements:
            reading_of(statement)
    except ClaimError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    examples = options.examples or EXAMPLES * (DEEPER if options.deep else 1)
    findings = []
    for finding in check(statements, examples=examples, random_seed=options.seed, all_proofs=options.deep):
        findings.append(finding)
        print(f"{len(findings)}/{len(statements)} {finding.statement.id}", file=sys.stderr)
    if options.json:
        print(json.dumps(_report(findings, examples, options.seed), indent=2, allow_nan=False))
    else:
        print(_table(findings))
    return int(any(finding.contradicts_us for finding in findings))


def command_parser() -> argparse.ArgumentParser:
    """What `check-statements` takes."""
    parser = argparse.ArgumentParser(
        prog="check-statements",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--statement", action="append", default=[], metavar="ID", help="only this statement; may be repeated"
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that defines a bounds.Statement of your own, checked instead; may be repeated",
    )
    parser.add_argument(
        "--examples", type=_positive, metavar="N", help="draws for each statement (each a world at 48 scales)"
    )
    parser.add_argument(
        "--deep", action="store_true", help=f"{DEEPER} times as many worlds, and the slower proofs as well"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="draw other worlds than the usual ones")
    parser.add_argument("--json", action="store_true", help="findings as JSON on standard output")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number >= 1, got {text}")
    return number


def _selected(ids: Sequence[str], files: Sequence[str]) -> list[Statement]:
    """The statements asked for: all of ours if none is named.

    Raises:
        ClaimError: If an id is unknown or a file holds no claim.
    """
    from bounds.claims import ClaimError, load_claims
    from bounds.registry import STATEMENTS

    unknown = [name for name in ids if name not in STATEMENTS]
    if unknown:
        raise ClaimError(f"expected one of {', '.join(STATEMENTS)}; got {', '.join(unknown)}")
    named = [STATEMENTS[name] for name in dict.fromkeys(ids)]
    claims = [claim for file in files for claim in load_claims(file)]
    return named + claims or list(STATEMENTS.values())


def _table(findings: Sequence[Finding]) -> str:
    """One row a statement, and the smallest counterexample under a falsified one."""
    width = max(len("statement"), *(len(finding.statement.id) for finding in findings))
    lines = [f"{'statement':{width}}  {'variant':8}  {'tried':>5}  {'met':>5}  {'slack':>9}  verdict"]
    for finding in findings:
        statement = finding.statement
        slack = f"{finding.slack:9.2g}" if finding.met else f"{'-':>9}"
        lines.append(
            f"{statement.id:{width}}  {statement.variant.value:8}  {finding.examples:5}  {finding.met:5}  "
            f"{slack}  {_verdict(finding)}"
        )
        lines += [f"{'':{width}}    {line}" for line in _counterexample_lines(finding)]
    return "\n".join(lines)


def _verdict(finding: Finding) -> str:
    proofs = [proof for proof in (finding.proof, finding.vacuity) if proof is not None]
    known = " (known to be false)" if finding.outcome == "falsified" and not finding.contradicts_us else ""
    return "; ".join([f"{finding.outcome.value}{known}", *map(_said, proofs)])


def _said(proof: Proof) -> str:
    about = "" if proof.id == proof.statement else f" {proof.id}"
    return f"{proof.verdict.value}{about} by {proof.engine.split(',')[0]} ({proof.seconds:.1f} s)"


def _counterexample_lines(finding: Finding) -> list[str]:
    found = finding.counterexample
    if found is None:
        proof = finding.proof
        model = (proof.counterexample if proof else None) or {}
        return [", ".join(f"{name} = {value}" for name, value in model.items())] if model else []
    given = ", ".join(f"{name} = {value:.6g}" for name, value in found.quantities.items())
    case = _plain(found.case)
    parts = {**case.pop("world", {}), **case}
    world = ", ".join(f"{name} = {value}" for name, value in parts.items())
    return [f"{given}: says {found.value:.6g}, true is {found.measured:.6g}", f"in {world}"]


def _report(findings: Sequence[Finding], examples: int, seed: int | None) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "schema": SCHEMA,
        "examples_per_statement": examples,
        "seed": seed,
        "statements": [_finding_report(finding) for finding in findings],
    }


def _finding_report(finding: Finding) -> dict[str, Any]:
    found = finding.counterexample
    return {
        "id": finding.statement.id,
        "title": finding.statement.title,
        "variant": finding.statement.variant.value,
        "called": finding.statement.verdict.value,
        "outcome": finding.outcome.value,
        "contradicts_us": finding.contradicts_us,
        "examples": finding.examples,
        "met": finding.met,
        "informative": finding.informative,
        "slack": finding.slack if finding.met else None,
        "counterexample": None
        if found is None
        else {
            "quantities": dict(found.quantities),
            "value": found.value,
            "measured": found.measured,
            "world": _plain(found.case),
        },
        "proof": _proof_report(finding.proof),
        "vacuity": _proof_report(finding.vacuity),
    }


def _proof_report(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    kept = ("id", "claim", "engine", "seconds", "satisfiable", "scope", "counterexample")
    report = {name: getattr(proof, name) for name in kept}
    return {**report, "verdict": proof.verdict.value}


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and arrays as lists, all the way down."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    sys.exit(check_statements())
