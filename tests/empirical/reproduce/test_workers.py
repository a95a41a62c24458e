"""Two workers of `reproduce` on one folder, one killed in the middle of a cell: the other does it all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ITEM = ["table-3", "--scale", "smoke"]
# Every cell's beginning and end goes to a log; the doomed worker dies in the training that it does first, as
# soon as the other one is at work.
WORKER = """
import os, signal, sys, time
from empirical.reproduce import queue
from empirical.reproduce.cli import reproduce
from empirical.training import _Run

log, doomed = sys.argv[1], sys.argv[2] == "doomed"
measure, save = queue._measure, _Run.save

def note(*words):
    with open(log, "a") as file:
        print(*words, sys.argv[2], file=file)

def watched(cell, *given):
    note("begin", cell.key)
    measure(cell, *given)
    note("end", cell.key)

def killed(run, output):
    while not any(line.split()[-1] == "survivor" for line in open(log)):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

queue._measure = watched
if doomed:
    _Run.save = killed
sys.exit(reproduce(sys.argv[3:]))
"""


@pytest.mark.slow
def test_a_killed_worker_leaves_its_cell_to_the_other(tmp_path):
    folder, log = tmp_path / "shared", tmp_path / "log"
    log.touch()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    workers = []
    for name in ("doomed", "survivor"):
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(log), name, *ITEM, "--output", str(folder)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
    (_, _), (printed, errors) = (worker.communicate(timeout=600) for worker in workers)
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0], errors
    assert "69.2 / " in printed  # the paper's number, beside the one measured

    noted = [line.split() for line in log.read_text().splitlines()]
    finished = [key for what, key, _ in noted if what == "end"]
    begun = [key for what, key, _ in noted if what == "begin"]
    cells = {path.stem: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}
    assert sorted(finished) == sorted(cells)
    assert all({"schema", "spec", "result", "seconds"} <= record.keys() for record in cells.values())
    (lost,) = [key for what, key, name in noted if (what, name) == ("begin", "doomed")]
    assert sorted(begun) == sorted([*cells, lost])
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
