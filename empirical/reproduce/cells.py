"""Cells: the pieces of work of which every table and figure is made, each measured once.

A cell is what it computes, and nothing else: its key is a digest of that. So two tables that need the same
attack on the same ensemble share it, more seeds or another item reuse what is there, and the cells of two
machines are merged by copying files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from empirical.attacks import Attack, AttackMethod
from empirical.attacks.base import PixelRange
from empirical.comparison.pipeline import draw_points, load_trained, train_all
from empirical.config import TrainingConfig
from empirical.data import Dataset, Split, load_dataset
from empirical.ensemble import Ensemble
from empirical.protocols.blackbox import black_box
from empirical.protocols.geometry import measure_geometry
from empirical.protocols.slices import RAYS, boundary_slice
from empirical.protocols.whitebox import white_box_cell
from empirical.training import find_device
from empirical.transfer import transfer_matrix

# Part of every key: a change of what cells compute or save takes another number.
SCHEMA = "transferbounds/cell/1"

# Where a run happens and how often it is saved does not change what it computes.
_ELSEWHERE = ("data_root", "device", "checkpoint_every")


@dataclass(frozen=True)
class Bench:
    """Where cells are measured.

    Attributes:
        ensembles: Folder of the trained ensembles.
        data_root: Folder of data sets that are read from files.
        download: Whether a missing data set may be fetched.
        device: auto, cpu or cuda.
        progress: Whether training shows a progress bar.
    """

    ensembles: Path
    data_root: str = "data"
    download: bool = False
    device: str = "auto"
    progress: bool = False

    def data(self, name: str) -> Dataset:
        """A data set, loaded once."""
        if name not in self._loaded:
            self._loaded.clear()  # one at a time is enough
            data = load_dataset(name, data_root=self.data_root, download=self.download)
            self._loaded[name] = data.to(find_device(self.device))
        return self._loaded[name]

    def points(self, name: str, samples: int) -> Split:
        """The held-out points that are attacked: the same for all methods."""
        return draw_points(self.data(name).test, samples)

    @cached_property
    def _loaded(self) -> dict[str, Dataset]:
        return {}


@dataclass(frozen=True)
class Cell:
    """A piece of work. Subclasses say what it is (`spec`), what has to be there first, and measure it."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """What it is, for a reader."""
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, Any]:
        """All that the result depends on, JSON-ready."""
        raise NotImplementedError

    @property
    def needs(self) -> tuple[TrainingCell, ...]:
        """The trained ensembles without which it cannot be measured."""
        raise NotImplementedError

    def measure(self, bench: Bench) -> dict[str, Any]:
        """Measure it; the result is JSON-ready."""
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """Its name on disk: the same work has the same name everywhere."""
        text = json.dumps([SCHEMA, self.kind, self.spec], sort_keys=True, allow_nan=False)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class TrainingCell(Cell):
    """An ensemble to train; what it is needed for, comes after it."""

    kind: ClassVar[str] = "ensemble"
    config: TrainingConfig

    @property
    def label(self) -> str:
        config = self.config
        return (
            f"train {config.objective.name}, {config.members} members, {config.dataset}, seed {config.seed}"
        )

    @property
    def spec(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.to_json().items() if name not in _ELSEWHERE}

    @property
    def needs(self) -> tuple[TrainingCell, ...]:
        return ()

    def measure(self, bench: Bench) -> dict[str, Any]:
        """Train, or go on where an interrupted training stopped; the result is the held-out accuracy."""
        data = bench.data(self.config.dataset)
        config = replace(self.config, data_root=bench.data_root, device=bench.device)
        (trained,) = train_all({self.key: config}, data, bench.ensembles, progress=bench.progress)
        return {**trained.metadata["metrics"]["test_accuracy"], "samples": len(data.test)}

    def checkpoint(self, bench: Bench) -> Path:
        """Where the trained ensemble lies."""
        return bench.ensembles / f"{self.key}.safetensors"

    def ensemble(self, bench: Bench) -> Ensemble:
        """The trained ensemble."""
        return load_trained(self.checkpoint(bench), bench.device).ensemble


@dataclass(frozen=True)
class EnsembleCell(Cell):
    """Work on one trained ensemble and its held-out points. Subclasses add their settings to `spec`."""

    target: TrainingCell

    @property
    def spec(self) -> dict[str, Any]:
        return {"target": self.target.key, **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """What is done, JSON-ready."""
        raise NotImplementedError

    @property
    def needs(self) -> tuple[TrainingCell, ...]:
        return (self.target,)

    def loaded(self, bench: Bench, samples: int) -> tuple[Ensemble, Split, PixelRange]:
        """The ensemble, the first held-out points, and the range of their values."""
        dataset = self.target.config.dataset
        return self.target.ensemble(bench), bench.points(dataset, samples), bench.data(dataset).pixel_range


@dataclass(frozen=True)
class WhiteBoxCell(EnsembleCell):
    """One attack on one ensemble, on every point."""

    kind: ClassVar[str] = "white-box"
    attack: AttackMethod
    samples: int

    @property
    def label(self) -> str:
        return f"{self.attack} on {_name(self.target)}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"attack": self.attack.to_json(), "samples": self.samples}

    def measure(self, bench: Bench) -> dict[str, Any]:
        ensemble, points, pixel_range = self.loaded(bench, self.samples)
        return white_box_cell(ensemble, points, self.attack, pixel_range=pixel_range).to_json()


@dataclass(frozen=True)
class BlackBoxCell(Cell):
    """All attempts at one radius on all surrogates, tried on several targets, which are named by their keys.

    The attempts do not depend on the targets, so that one cell serves a whole line of a table.
    """

    kind: ClassVar[str] = "black-box"
    surrogates: tuple[TrainingCell, ...]
    targets: tuple[TrainingCell, ...]
    attempts: tuple[Attack, ...]
    samples: int

    @property
    def label(self) -> str:
        targets = ", ".join(target.config.objective.name for target in self.targets)
        return f"black box linf {self.attempts[0].eps:g} on {targets}, seed {self.targets[0].config.seed}"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "surrogates": [cell.key for cell in self.surrogates],
            "targets": [cell.key for cell in self.targets],
            "attempts": [attack.to_json() for attack in self.attempts],
            "samples": self.samples,
        }

    @property
    def needs(self) -> tuple[TrainingCell, ...]:
        return (*self.surrogates, *self.targets)

    def measure(self, bench: Bench) -> dict[str, Any]:
        dataset = self.targets[0].config.dataset
        return black_box(
            {f"{cell.config.members} members": cell.ensemble(bench) for cell in self.surrogates},
            {cell.key: cell.ensemble(bench) for cell in self.targets},
            bench.points(dataset, self.samples),
            self.attempts,
            pixel_range=bench.data(dataset).pixel_range,
        ).to_json()


@dataclass(frozen=True)
class TransferCell(EnsembleCell):
    """An attack on each member of an ensemble, tried on all its members."""

    kind: ClassVar[str] = "transfer"
    attack: Attack
    samples: int

    @property
    def label(self) -> str:
        return f"transfer of {self.attack} within {_name(self.target)}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"attack": self.attack.to_json(), "samples": self.samples}

    def measure(self, bench: Bench) -> dict[str, Any]:
        ensemble, points, pixel_range = self.loaded(bench, self.samples)
        return transfer_matrix(ensemble.members, points, self.attack, pixel_range=pixel_range).to_json()


@dataclass(frozen=True)
class GeometryCell(EnsembleCell):
    """Similarity, gradient size and smoothness of an ensemble's members."""

    kind: ClassVar[str] = "geometry"
    samples: int

    @property
    def label(self) -> str:
        return f"similarity and smoothness of {_name(self.target)}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"samples": self.samples}

    def measure(self, bench: Bench) -> dict[str, Any]:
        ensemble, points, _ = self.loaded(bench, self.samples)
        return measure_geometry(ensemble, points).to_json()


@dataclass(frozen=True)
class SliceCell(EnsembleCell):
    """The decision boundaries of an ensemble around points, and drawings of them around the first few."""

    kind: ClassVar[str] = "slices"
    points: int
    extent: float
    spacing: float

    DRAWN: ClassVar[int] = 3

    @property
    def label(self) -> str:
        return f"decision boundaries of {_name(self.target)}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"points": self.points, "extent": self.extent, "spacing": self.spacing}

    def measure(self, bench: Bench) -> dict[str, Any]:
        """For each point its distances in the order of `RAYS`, null where the loss has no gradient."""
        ensemble, points, _ = self.loaded(bench, self.points)
        distances: list[list[float] | None] = []
        drawn: list[dict[str, Any]] = []
        for index in range(len(points)):
            x, y = points.x[index : index + 1], points.y[index : index + 1]
            try:
                found = boundary_slice(
                    ensemble, {"ensemble": ensemble}, x, y, extent=self.extent, spacing=self.spacing
                )
            except ValueError as error:
                if "zero gradient" not in str(error):
                    raise
                distances.append(None)
                continue
            rays: Mapping[str, float] = found.distances["ensemble"]
            distances.append([min(rays[ray], self.extent) for ray in RAYS])
            if len(drawn) < self.DRAWN:
                drawn.append({"point": index, **found.to_json()})
        return {"distances": distances, "drawn": drawn}


def _name(cell: TrainingCell) -> str:
    return f"{cell.config.objective.name}, {cell.config.dataset}, seed {cell.config.seed}"


def with_needs(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells, each once, with the ensembles that they need before them."""
    ordered: dict[str, Cell] = {}
    for cell in cells:
        for each in (*cell.needs, cell):
            ordered.setdefault(each.key, each)
    return tuple(ordered.values())
