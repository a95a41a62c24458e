"""The queue: nothing twice, work shared between workers, a killed worker's claim free again."""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from empirical.config import TrainingConfig
from empirical.files import ResultsError
from empirical.models import ModelConfig
from empirical.reproduce import queue
from empirical.reproduce.cells import Bench, Cell, TrainingCell, with_needs
from empirical.reproduce.queue import Store, run_cells


@dataclass(frozen=True)
class Note(Cell):
    """A cell that notes in a file that it was measured."""

    kind: ClassVar[str] = "note"
    name: str
    folder: str
    then: str = ""
    needs_: tuple[Cell, ...] = ()

    @property
    def label(self) -> str:
        return self.name

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name}

    @property
    def needs(self) -> tuple[Cell, ...]:
        return self.needs_

    def measure(self, bench: Bench) -> dict[str, Any]:
        with open(Path(self.folder) / "log", "a") as file:
            file.write(f"{self.name} {os.getpid()}\n")
        if self.then == "fail":
            raise ImportError(f"no way to measure {self.name}")
        if self.then == "interrupt":
            raise KeyboardInterrupt
        if self.then == "slow":
            time.sleep(0.05)
        if self.then == "hang":
            time.sleep(60)
        return {"name": self.name}


def names(folder: Path) -> list[str]:
    path = folder / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def work(folder: Path, cells: list[Cell]) -> dict[str, str]:
    store = Store(folder / "out")
    return run_cells(cells, store, Bench(store.ensembles), {"python": "any"})


def test_a_finished_cell_is_not_measured_again(tmp_path):
    """Not by a second call, and not where its result was planted."""
    cells = [Note(name, str(tmp_path)) for name in "abc"]
    store = Store(tmp_path / "out")
    store.save(cells[1], {"result": {"planted": True}, "seconds": {"cpu": 0, "wall": 0}, "environment": {}})
    assert work(tmp_path, cells) == {}
    assert work(tmp_path, cells) == {}
    assert names(tmp_path) == ["a", "c"]
    assert store.load(cells[1])["result"] == {"planted": True}
    record = store.load(cells[0])
    assert record["result"] == {"name": "a"}
    assert record["environment"] == {"python": "any"}
    assert record["seconds"]["wall"] >= 0


def test_an_interrupted_run_goes_on(tmp_path):
    first = [Note("a", str(tmp_path)), Note("b", str(tmp_path), "interrupt"), Note("c", str(tmp_path))]
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, first)
    assert work(tmp_path, [Note(name, str(tmp_path)) for name in "abc"]) == {}
    assert names(tmp_path) == ["a", "b", "b", "c"]


def test_a_failure_stops_only_what_needs_it(tmp_path):
    """And is tried again by the next call."""
    bad = Note("bad", str(tmp_path), "fail")
    cells = [bad, Note("on-bad", str(tmp_path), needs_=(bad,)), Note("good", str(tmp_path))]
    failures = work(tmp_path, cells)
    assert failures == {cells[0].key: "no way to measure bad", cells[1].key: "needs: bad"}
    assert names(tmp_path) == ["bad", "good"]
    mended = Note("bad", str(tmp_path))
    assert work(tmp_path, [mended, *cells[1:]]) == {}
    assert names(tmp_path) == ["bad", "good", "bad", "on-bad"]


def test_needs_come_first_and_cells_once(tmp_path):
    a = Note("a", str(tmp_path))
    b = Note("b", str(tmp_path), needs_=(a,))
    assert [cell.label for cell in with_needs([b, b, a])] == ["a", "b"]


def start(folder: Path, cells: list[Cell]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, cells))
    process.start()
    return process


def test_two_workers_share_the_work(tmp_path):
    """Each cell is measured by one of them, and both see the end."""
    cells = [Note(f"cell-{i}", str(tmp_path), "slow") for i in range(12)]
    workers = [start(tmp_path, cells) for _ in range(2)]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert sorted(names(tmp_path)) == sorted(cell.label for cell in cells)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len({line.split()[1] for line in lines}) == 2


def test_the_claim_of_a_killed_worker_is_free(tmp_path, monkeypatch):
    """While it lives nobody else measures its cell; once it is killed, another that waits does."""
    monkeypatch.setattr(queue, "RECHECK_SECONDS", 0.02)
    hanging, cell, other = (
        Note("a", str(tmp_path), "hang"), Note("a", str(tmp_path)), Note("b", str(tmp_path))
    )  # fmt: skip
    worker = start(tmp_path, [hanging])
    deadline = time.monotonic() + 20
    while not names(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    store = Store(tmp_path / "out")
    with store.claim(cell) as mine:
        assert not mine
    survivor = start(tmp_path, [cell, other])
    while not store.finished(other) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert survivor.is_alive()
    assert not store.finished(cell)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    survivor.join(20)
    assert survivor.exitcode == 0
    assert store.finished(cell)
    assert names(tmp_path) == ["a", "b", "a"]


def test_a_claimed_cell_is_waited_for(tmp_path, monkeypatch):
    """A worker that has nothing left to do returns only when the others have finished theirs."""
    store = Store(tmp_path / "out")
    a, b = Note("a", str(tmp_path)), Note("b", str(tmp_path))
    naps = []

    def nap(seconds):
        naps.append(names(tmp_path))
        store.save(a, {"result": {}, "seconds": {}, "environment": {}})

    monkeypatch.setattr(queue.time, "sleep", nap)
    with store.claim(a) as mine:
        assert mine
        assert work(tmp_path, [a, b]) == {}
    assert naps == [["b"]]
    assert names(tmp_path) == ["b"]


def test_a_cell_that_another_worker_just_finished_is_left_alone(tmp_path):
    """It was open at the first look, and finished when the claim was granted."""

    class Late(Store):
        @contextmanager
        def claim(self, cell):
            self.save(cell, {"result": {"by": "another"}, "seconds": {}, "environment": {}})
            yield True

    cell = Note("a", str(tmp_path))
    store = Late(tmp_path / "out")
    assert run_cells([cell], store, Bench(store.ensembles), {}) == {}
    assert names(tmp_path) == []
    assert store.load(cell)["result"] == {"by": "another"}


def test_damaged_and_foreign_results_are_refused(tmp_path):
    store = Store(tmp_path)
    a, b = Note("a", str(tmp_path)), Note("b", str(tmp_path))
    store.save(a, {"result": {}, "seconds": {}, "environment": {}})
    path = next(store.cells.glob("*.json"))
    path.rename(store.cells / f"{b.key}.json")
    with pytest.raises(ResultsError, match="another cell"):
        store.load(b)
    (store.cells / f"{b.key}.json").write_text('{"schema": ')
    with pytest.raises(ResultsError, match="remove the file"):
        store.load(b)


def test_keys_say_what_is_computed():
    """The same training elsewhere is the same cell; another seed or weight is not."""
    config = TrainingConfig()
    key = TrainingCell(config).key
    elsewhere = TrainingConfig(device="cpu", data_root="/elsewhere", checkpoint_every=7)
    assert TrainingCell(elsewhere).key == key
    assert TrainingCell(TrainingConfig(seed=1)).key != key
    assert TrainingCell(TrainingConfig(epochs=31)).key != key


def test_a_lost_ensemble_is_trained_again_only_where_it_is_needed(tmp_path):
    """Results may be kept without the weights: then nothing that is finished needs them."""
    config = TrainingConfig(dataset="blobs", model=ModelConfig("mlp", hidden=(4,)), members=2, epochs=1)
    training = TrainingCell(config)
    store = Store(tmp_path / "out")
    bench = Bench(store.ensembles)
    assert run_cells([training], store, bench, {}) == {}
    checkpoint = training.checkpoint(bench)
    before = checkpoint.read_bytes()
    for path in store.ensembles.iterdir():
        path.unlink()
    assert run_cells([training], store, bench, {}) == {}
    assert not checkpoint.exists()
    follower = Note("after", str(tmp_path), needs_=(training,))
    assert run_cells([training, follower], store, bench, {}) == {}
    assert checkpoint.read_bytes() == before
    assert names(tmp_path) == ["after"]


def test_a_half_trained_ensemble_is_nobodys(tmp_path, monkeypatch):
    """While a lost one is trained again, its checkpoint lies there before it is finished: no record does."""
    config = TrainingConfig(dataset="blobs", model=ModelConfig("mlp", hidden=(4,)), members=2, epochs=1)
    training = TrainingCell(config)
    store = Store(tmp_path / "out")
    store.save(training, {"result": {}, "seconds": {}, "environment": {}})
    seen = []
    measure = TrainingCell.measure

    def watched(cell, bench):
        seen.append(store.finished(cell))
        return measure(cell, bench)

    monkeypatch.setattr(TrainingCell, "measure", watched)
    follower = Note("after", str(tmp_path), needs_=(training,))
    assert run_cells([training, follower], store, Bench(store.ensembles), {}) == {}
    assert seen == [False]
    assert store.load(training)["result"]["samples"] > 0
