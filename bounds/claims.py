"""A statement of one's own: loading it, and finding out what its quantities are in a world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

from bounds.registry import STATEMENTS
from bounds.statement import Sense, Statement


class ClaimError(ValueError):
    """A claim that cannot be checked; the message is one line."""


class Case(Protocol):
    """Something in which a statement's quantities and its subject are exact numbers."""

    def quantities(self, statement: str) -> Mapping[str, Any]:
        """The quantities of a statement by name."""

    def subject(self, statement: str) -> Any:
        """What the statement bounds."""


@dataclass(frozen=True)
class Reading:
    """Whose quantities and whose subject a statement is about.

    Attributes:
        quantities_of: Ids of statements; of a name that several have, the last one's reading counts.
        subject_of: Id of the statement that bounds the same thing.
    """

    quantities_of: tuple[str, ...]
    subject_of: str

    def quantities(self, case: Case) -> dict[str, Any]:
        """Exact quantities of a case by name, arrays for a batch."""
        merged: dict[str, Any] = {}
        for statement in self.quantities_of:
            merged |= case.quantities(statement)
        return merged

    def subject(self, case: Case) -> Any:
        """The true value that the statement bounds, an array for a batch."""
        return case.subject(self.subject_of)


#: For a subject that is none of ours: the rate of untargeted transfer, of attacks in a ball or under a shift.
_BALL = Reading(("theorem-2", "theorem-4"), "theorem-4")
_SHIFT = {
    Sense.LOWER: Reading(("theorem-6-transfer",), "theorem-6-transfer"),
    Sense.UPPER: Reading(("theorem-6-def2",), "theorem-6-def2"),
}


def reading_of(statement: Statement) -> Reading:
    """What a statement's quantities and subject are, in terms of the statements that we have.

    Its own, if it is one of ours. Otherwise those of a statement of ours with the same `subject` and the same
    quantities (or, failing that, quantities of the same names). Otherwise the quantities of Theorems 2 and 4
    and the rate of untargeted transfer; with `rho` among the names, those of Theorem 6.

    Raises:
        ClaimError: If a quantity has a name that is none of those.
    """
    if STATEMENTS.get(statement.id) is statement:
        return Reading((statement.id,), statement.id)
    same_subject = [known for known in STATEMENTS.values() if known.subject == statement.subject]
    for known in same_subject:
        if set(statement.quantities) <= set(known.quantities):
            return Reading((known.id,), known.id)
    for known in same_subject:
        if set(statement.names) <= set(known.names):
            return Reading((known.id,), known.id)
    shift = "rho" in statement.names and statement.sense in _SHIFT
    reading = _SHIFT[statement.sense] if shift else _BALL
    available = {name for known in reading.quantities_of for name in STATEMENTS[known].names}
    unknown = sorted(set(statement.names) - available)
    if unknown:
        raise ClaimError(
            f"{statement.id}: expected quantities among {', '.join(sorted(available))}; "
            f"got {', '.join(unknown)}"
        )
    return reading


def load_claims(path: str | Path) -> list[Statement]:
    """Run a Python file and collect the statements that it defines.

    Raises:
        ClaimError: If there is no such file, it fails, or it defines no statement of its own.
    """
    file = Path(path)
    if not file.is_file():
        raise ClaimError(f"expected a Python file with a claim, found none at {file}")
    spec = spec_from_file_location("claim", file)
    if spec is None or spec.loader is None:
        raise ClaimError(f"expected a Python file (.py), got {file}")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does wrong is the user's to read
        message = " ".join(str(error).split())
        raise ClaimError(f"{file} failed: {type(error).__name__}: {message}") from error
    known = {id(statement) for statement in STATEMENTS.values()}
    values = vars(module).values()
    claims = {id(v): v for v in values if isinstance(v, Statement) and id(v) not in known}
    if not claims:
        raise ClaimError(f"expected {file} to define a bounds.Statement, found none")
    return list(claims.values())
