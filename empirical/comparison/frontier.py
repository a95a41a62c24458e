"""Up to which radius a statement is informative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from bounds import STATEMENTS, Estimate, Sense, evaluate
from empirical.comparison.rows import Frontier, JointRow, Row

R2 = "refined-r2"
# R2 counts points that all members get right, so it stays below 1 whatever it proves.
R2_LEVEL = 0.5
# Each halves the stretch between two radii of the grid; a certificate is dear, most of all near its limit.
_FORMULA_STEPS, _CERTIFICATE_STEPS = 5, 1

Subset = tuple[tuple[int, ...], int]
# From a radius to R2 of every subset.
Certify = Callable[[float], Mapping[Subset, float]]


def frontiers(
    rows: Sequence[Row],
    joint: Sequence[JointRow],
    members: int,
    certify: Mapping[tuple[str, str], Certify],
) -> tuple[Frontier, ...]:
    """The frontier of every statement, mode and norm among the rows, and of every certificate.

    Args:
        rows: Statements about ordered pairs.
        joint: Certificates about several members.
        members: Number of members.
        certify: By mode and norm, how to certify at radii between those of the grid; what is missing is not
            refined.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.statement, row.mode, row.norm), []).append(row)
    found = [
        _of_pairs(statement, mode, norm, group, members) for (statement, mode, norm), group in groups.items()
    ]
    certificates: dict[tuple[str, str], list[JointRow]] = {}
    for line in joint:
        certificates.setdefault((line.mode, line.norm), []).append(line)
    for key, lines in certificates.items():
        found += _of_certificates(lines, certify.get(key))
    return tuple(found)


def reach(rows: Sequence[Row], informed: Callable[[Row], bool]) -> tuple[float | None, float | None]:
    """Radius up to which, without a gap from the smallest, every pair and at least one pair is informed.

    Each under every attack; of the two stand-ins for beta the better one counts.
    """
    everyone = {(row.surrogate, row.target) for row in rows}
    every: dict[float, bool] = {}
    best: dict[float, bool] = {}
    for eps in sorted({row.eps for row in rows}):
        here = [row for row in rows if row.eps == eps]
        cases = {(row.surrogate, row.target, row.attack) for row in here}
        silent = cases - {(row.surrogate, row.target, row.attack) for row in here if informed(row)}
        speaking = everyone - {(surrogate, target) for surrogate, target, _ in silent}
        every[eps], best[eps] = speaking == everyone, bool(speaking)
    return _end(every), _end(best)


def _end(holds: Mapping[float, bool]) -> float | None:
    """The last radius before the first at which it does not hold."""
    inside = list(takewhile(lambda eps: holds[eps], holds))
    return inside[-1] if inside else None


def _of_pairs(statement: str, mode: str, norm: str, rows: Sequence[Row], members: int) -> Frontier:
    guaranteed = reach(rows, lambda row: row.bound["guaranteed_status"] == "informative")
    heuristic = reach(rows, lambda row: row.bound["status"] == "informative")
    upper = STATEMENTS[statement].sense is Sense.UPPER
    # A lower bound hangs on what the attack does, so there is nothing to hold fixed between two attacks.
    refined = _between(rows, guaranteed[1]) if upper and norm == "l2" and guaranteed[1] else None
    level = 1.0 if upper else 0.0
    return Frontier(statement, mode, norm, tuple(range(members)), 2, level, *guaranteed, *heuristic, refined)


def _between(rows: Sequence[Row], inside: float) -> float | None:
    """Where an upper bound stops for the best pair, from the radius `inside` to the next of the grid."""
    outside = min((row.eps for row in rows if row.eps > inside), default=None)
    if outside is None:
        return None
    cases: dict[tuple[int, int, str, str], dict[float, Row]] = {}
    for row in rows:
        case = (row.surrogate, row.target, row.attack, row.smoothness)
        cases.setdefault(case, {})[row.eps] = row
    ends: dict[tuple[int, int], dict[str, float]] = {}
    for (surrogate, target, attack, _), found in cases.items():
        if inside not in found or outside not in found:
            continue
        end = _last_informative(found[inside], found[outside])
        of_pair = ends.setdefault((surrogate, target), {})
        of_pair[attack] = max(of_pair.get(attack, 0.0), end)
    return max(min(of_pair.values()) for of_pair in ends.values())


def _last_informative(inside: Row, outside: Row) -> float:
    """By bisection with the quantities of the smaller radius, but the larger beta of the two."""
    if inside.bound["guaranteed_status"] != "informative":
        return 0.0
    known = dict(inside.quantities)
    if "beta" in known:
        known["beta"] = Estimate.largest([known["beta"], outside.quantities["beta"]])

    def informative(eps: float) -> bool:
        bound = evaluate(inside.statement, known | {"eps": Estimate.exact(eps)})
        return bound.guaranteed_status.value == "informative"

    low, high = inside.eps, outside.eps
    for _ in range(_FORMULA_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if informative(middle) else (low, middle)
    return low


def _of_certificates(rows: Sequence[JointRow], certify: Certify | None) -> list[Frontier]:
    """The frontiers of one mode and norm."""
    curves: dict[Subset, dict[float, float]] = {}
    for row in sorted(rows, key=lambda row: row.eps):
        curves.setdefault((row.models, row.together), {})[row.eps] = row.certified.upper
    on_grid = {subset: _end(_below(curve)) for subset, curve in curves.items()}
    if certify is not None:
        _refine(curves, certify)
    found = []
    for (models, together), curve in curves.items():
        last = on_grid[models, together]
        refined = _end(_below(dict(sorted(curve.items()))))
        bracketed = refined is not None and refined < max(curve)
        found.append(
            Frontier(
                R2, rows[0].mode, rows[0].norm, models, together, R2_LEVEL, last, last, last, last,
                refined if bracketed else None,
            )
        )  # fmt: skip
    return found


def _below(curve: Mapping[float, float]) -> dict[float, bool]:
    return {eps: value < R2_LEVEL for eps, value in curve.items()}


def _refine(curves: dict[Subset, dict[float, float]], certify: Certify) -> None:
    """Bisect where R2 of all members crosses its level; every subset gains the radii that this takes."""
    everyone = max(curves, key=lambda subset: (len(subset[0]), subset[1]))
    for _ in range(_CERTIFICATE_STEPS):
        curve = dict(sorted(curves[everyone].items()))
        low = _end(_below(curve))
        above = [eps for eps in curve if low is not None and eps > low]
        if low is None or not above:
            return
        middle = (low + above[0]) / 2
        for subset, value in certify(middle).items():
            if subset in curves:
                curves[subset][middle] = value
