"""The queue of cells: finished ones are never measured again, and any number of workers may share it.

A worker claims a cell by a lock on a file that the operating system holds for it. That is the simplest thing
that is right: taking a lock is atomic, and it ends with the worker, however that ends, so that no claim is
ever stale and nobody has to guess from times or process numbers. It works between processes and, on a shared
file system with locks, between machines. Machines without one take different items or seeds, and their
`cells` folders are merged by copying.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from empirical.files import ResultsError, parse_json, write_json
from empirical.reproduce.cells import SCHEMA, Bench, Cell, TrainingCell

RECHECK_SECONDS = 1.0


class Store:
    """The folder of a reproduction: finished cells, trained ensembles, claims.

    Args:
        folder: It is created.
    """

    def __init__(self, folder: Path) -> None:
        self.cells = folder / "cells"
        self.ensembles = folder / "ensembles"
        self.claims = folder / "claims"
        for each in (self.cells, self.ensembles, self.claims):
            each.mkdir(parents=True, exist_ok=True)

    def finished(self, cell: Cell) -> bool:
        """Whether the cell's result is there."""
        return self._path(cell).exists()

    def save(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep a result with what it belongs to; `record` has "result" and how it was measured."""
        write_json(
            self._path(cell),
            {"schema": SCHEMA, "kind": cell.kind, "label": cell.label, "spec": cell.spec, **record},
        )

    def forget(self, cell: Cell) -> None:
        """Remove a result, if there is one."""
        self._path(cell).unlink(missing_ok=True)

    def load(self, cell: Cell) -> dict[str, Any]:
        """A finished cell's record.

        Raises:
            ResultsError: If the file is missing, damaged or of another cell.
        """
        path = self._path(cell)
        try:
            record: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            found = (record["schema"], record["kind"], record["spec"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"expected a finished cell in {path}, got {error!r}: remove the file"
            ) from None
        if found != (SCHEMA, cell.kind, json.loads(json.dumps(cell.spec))):
            raise ResultsError(f"expected {cell.label} in {path}, got another cell: remove the file")
        return record

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Whether this worker has the cell for itself, for as long as the context lasts."""
        lock = FileLock(self.claims / f"{cell.key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.key}.json"


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    bench: Bench,
    environment: dict[str, str],
    *,
    progress: Callable[[str, int], None] = lambda message, finished: None,
) -> dict[str, str]:
    """Measure every cell that is not finished, together with all other workers on the same store.

    Args:
        cells: In an order in which no cell comes before what it needs.
        store: Where results go.
        bench: Where ensembles and data are.
        environment: Versions and hardware, kept with each result.
        progress: Called with what comes next and the number of finished cells.

    Returns:
        Why cells could not be measured, by key; cells that need one of these are among them. The next call
        tries them again.
    """
    failures: dict[str, str] = {}
    while waiting := [cell for cell in _unfinished(cells, store, bench) if cell.key not in failures]:
        stuck = True
        for index, cell in enumerate(waiting):
            broken = [need for need in cell.needs if need.key in failures]
            if broken:
                failures[cell.key] = f"needs: {broken[0].label}"
                stuck = False
            elif all(_is_there(need, store, bench) for need in cell.needs):
                with store.claim(cell) as mine:
                    # Another worker may have finished it between the look and the claim.
                    if mine and not _is_there(cell, store, bench):
                        # Where only the weights are gone: nobody may take those of a training under way.
                        store.forget(cell)
                        progress(cell.label, len(cells) - len(waiting) + index)
                        _measure(cell, store, bench, environment, failures)
                        stuck = False
        if stuck:
            time.sleep(RECHECK_SECONDS)  # all that is left is in other workers' hands
    return failures


def _unfinished(cells: Sequence[Cell], store: Store, bench: Bench) -> list[Cell]:
    """Cells without a result, and trained ensembles that one of those needs and that are gone."""
    open_cells = [cell for cell in cells if not store.finished(cell)]
    needed = {need.key for cell in open_cells for need in cell.needs}
    return [
        cell
        for cell in cells
        if not store.finished(cell) or (cell.key in needed and not _is_there(cell, store, bench))
    ]


def _is_there(cell: Cell, store: Store, bench: Bench) -> bool:
    """Whether the result is there, and of an ensemble its weights too, which others need."""
    return store.finished(cell) and (not isinstance(cell, TrainingCell) or cell.checkpoint(bench).exists())


def _measure(
    cell: Cell, store: Store, bench: Bench, environment: dict[str, str], failures: dict[str, str]
) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = cell.measure(bench)
    except (ValueError, RuntimeError, ImportError) as error:  # the other cells can still be measured
        failures[cell.key] = " ".join(str(error).split())
        return
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    store.save(cell, {"result": result, "seconds": seconds, "environment": environment})
