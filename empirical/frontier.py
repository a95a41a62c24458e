"""Up to which radius a statement is informative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from bounds import STATEMENTS, Sense
from empirical.rows import Frontier, JointRow, Row

R2 = "refined-r2"
# R2 counts points that all members get right, so it stays below 1 whatever it proves.
R2_LEVEL = 0.5


def frontiers(rows: Sequence[Row], joint: Sequence[JointRow], members: int) -> tuple[Frontier, ...]:
    """The frontier of every statement, mode and norm among the rows, and of every certificate."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.statement, row.mode, row.norm), []).append(row)
    found = [
        _of_pairs(statement, mode, norm, group, members) for (statement, mode, norm), group in groups.items()
    ]
    certificates: dict[tuple[str, str, tuple[int, ...], int], list[JointRow]] = {}
    for line in joint:
        certificates.setdefault((line.mode, line.norm, line.models, line.together), []).append(line)
    found += [
        _of_certificates(mode, norm, models, together, group)
        for (mode, norm, models, together), group in certificates.items()
    ]
    return tuple(found)


def reach(rows: Sequence[Row], informed: Callable[[Row], bool]) -> tuple[float | None, float | None]:
    """Radius up to which, without a gap from the smallest, every pair and at least one pair is informed.

    Each under every attack; of the two stand-ins for beta the better one counts.
    """
    everyone = {(row.surrogate, row.target) for row in rows}
    every, best = [], []
    for eps in sorted({row.eps for row in rows}):
        here = [row for row in rows if row.eps == eps]
        cases = {(row.surrogate, row.target, row.attack) for row in here}
        speaking = {(row.surrogate, row.target, row.attack) for row in here if informed(row)}
        silent = {pair[:2] for pair in cases - speaking}
        every.append((eps, not silent and {pair[:2] for pair in cases} == everyone))
        best.append((eps, bool(everyone - silent) and bool(speaking)))
    return tuple(_last(takewhile(lambda step: step[1], steps)) for steps in (every, best))  # type: ignore[return-value]


def _last(steps: object) -> float | None:
    radii = [eps for eps, _ in steps]  # type: ignore[attr-defined]
    return radii[-1] if radii else None


def _of_pairs(statement: str, mode: str, norm: str, rows: Sequence[Row], members: int) -> Frontier:
    guaranteed = reach(rows, lambda row: row.bound["guaranteed_status"] == "informative")
    heuristic = reach(rows, lambda row: row.bound["status"] == "informative")
    level = 1.0 if STATEMENTS[statement].sense is Sense.UPPER else 0.0
    return Frontier(statement, mode, norm, tuple(range(members)), 2, level, *guaranteed, *heuristic)


def _of_certificates(
    mode: str, norm: str, models: tuple[int, ...], together: int, rows: Sequence[JointRow]
) -> Frontier:
    ordered = sorted(rows, key=lambda row: row.eps)
    inside = [row.eps for row in takewhile(lambda row: row.certified.upper < R2_LEVEL, ordered)]
    last = inside[-1] if inside else None
    return Frontier(R2, mode, norm, models, together, R2_LEVEL, last, last, last, last)
