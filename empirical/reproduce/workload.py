"""How much work an item is, before any of it is done: ensembles and epochs, attacks and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

from empirical.attacks import Attack, AttackMethod
from empirical.report.summary import Table
from empirical.reproduce.cells import BlackBoxCell, Cell, TrainingCell, TransferCell, WhiteBoxCell
from empirical.reproduce.queue import Store

_HEADER = ("kind of cell", "cells", "finished", "epochs left", "gradients left per point")


def workload_table(cells: Sequence[Cell], store: Store) -> Table:
    """Count cells, what is finished of them, and the work that is left, kind by kind.

    Args:
        cells: Each once, with the ensembles that they need.
        store: Where finished ones lie.

    Returns:
        A line for each kind. Epochs are passes over the training points by a whole ensemble; gradients are
        forward and backward passes of one member, for each point that is attacked. Decision boundaries and
        the geometry of members take few.
    """
    lines = []
    for kind in dict.fromkeys(cell.kind for cell in cells):
        here = [cell for cell in cells if cell.kind == kind]
        left = [cell for cell in here if not store.finished(cell)]
        work = (sum(map(_epochs, left)), sum(map(_gradients, left)))
        lines.append((kind, str(len(here)), str(len(here) - len(left)), *(f"{each:,}" for each in work)))
    return Table("Work", _HEADER, tuple(lines))


def _epochs(cell: Cell) -> int:
    if not isinstance(cell, TrainingCell):
        return 0
    return cell.config.epochs * cell.config.objective.stages(cell.config.members)


def _gradients(cell: Cell) -> int:
    match cell:
        case WhiteBoxCell() | TransferCell():
            return _steps(cell.attack) * cell.target.config.members
        case BlackBoxCell():
            members = sum(surrogate.config.members for surrogate in cell.surrogates)
            return sum(map(_steps, cell.attempts)) * members
    return 0


def _steps(attack: AttackMethod) -> int:
    """Gradients of a whole model for one point: of an attack of one's own without steps, one."""
    if isinstance(attack, Attack):
        return attack.schedule[0] * attack.restarts
    return int(getattr(attack, "steps", 1))
