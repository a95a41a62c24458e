"""Which cells an item is made of: for each row, column and seed one, some of them shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from empirical.reproduce.cells import (
    BlackBoxCell,
    Cell,
    GeometryCell,
    SliceCell,
    TrainingCell,
    TransferCell,
    WhiteBoxCell,
    with_needs,
)
from empirical.reproduce.items import BlackBox, Column, Curves, Item, Row, Slice, Transfer, WhiteBox, Worst
from empirical.reproduce.scales import Setting


@dataclass(frozen=True)
class Plan:
    """An item as it is repeated.

    Attributes:
        item: The item, with the rows of those of the paper's data sets only that the scale has.
        settings: For each of the paper's data sets that it has rows of, how it is repeated.
        seeds: Seeds of the ensembles, for each of the paper's data sets.
    """

    item: Item
    settings: Mapping[str, Setting]
    seeds: Mapping[str, tuple[int, ...]]

    def sources(self, row: Row, column: Column, seed: int) -> tuple[Cell, ...]:
        """The cells from which a number is read: one, except for the worst of several attacks."""
        if isinstance(row.protocol, Worst):
            rows = [replace(row, protocol=WhiteBox(attack)) for attack in row.protocol.attacks]
            return tuple(self._cell(each, column, seed) for each in rows)
        return (self._cell(row, column, seed),)

    def _cell(self, row: Row, column: Column, seed: int) -> Cell:
        setting = self.settings[row.dataset]
        target = self.training(row.dataset, column, seed)
        match row.protocol:
            case WhiteBox(attack):
                return WhiteBoxCell(target, setting.attack(attack, row.dataset), setting.samples)
            case BlackBox(eps):
                # A column of the user's has cells of its own, so that those of the paper's stay as they are.
                beside = [column] if column.own else self.item.papers.columns
                targets = tuple(self.training(row.dataset, each, seed) for each in beside)
                surrogates = tuple(map(TrainingCell, setting.surrogates(seed)))
                attempts = setting.attempts(eps, row.dataset)
                return BlackBoxCell(surrogates, targets, attempts, setting.samples)
            case Transfer(attack):
                mapped = setting.attack(attack, row.dataset)
                return TransferCell(target, mapped, setting.samples)  # type: ignore[arg-type]
            case Slice():
                grid = (setting.slice_points, setting.slice_extent, setting.slice_spacing)
                return SliceCell(target, *grid)
            case Curves():
                return GeometryCell(target, setting.samples)
            case _:  # not attacked
                return target

    def training(self, dataset: str, column: Column, seed: int) -> TrainingCell:
        """The ensemble of a column."""
        known, wanted = self._trainings, (dataset, column, seed)
        if wanted not in known:
            known[wanted] = TrainingCell(self.settings[dataset].training(column, seed))
        return known[wanted]

    @cached_property
    def _trainings(self) -> dict[tuple[str, Column, int], TrainingCell]:
        return {}  # made once: each has a digest to compute

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, each once, none before what it needs."""
        return with_needs(list(self._cells()))

    def _cells(self) -> Iterator[Cell]:
        # Seed by seed, so that an interrupted run has whole tables of fewer seeds.
        for seed in sorted({seed for seeds in self.seeds.values() for seed in seeds}):
            for row in self.item.rows:
                if seed in self.seeds[row.dataset]:
                    for column in self.item.columns:
                        yield from self.sources(row, column, seed)


def make_plans(items: Iterable[Item], settings: Mapping[str, Setting], seeds: int | None) -> tuple[Plan, ...]:
    """A plan per item that the settings have a data set for.

    Args:
        items: What to repeat.
        settings: For each of the paper's data sets how it is repeated; those that are missing are left out.
        seeds: Number of ensembles per method, None for what each setting says.

    Raises:
        ValueError: If the number of seeds is not positive.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"expected at least one seed, got {seeds}")
    plans = []
    for item in items:
        rows = tuple(row for row in item.rows if row.dataset in settings)
        if not item.tables:
            rows = _without_repeats(rows, settings)
        if rows:
            used = {row.dataset: settings[row.dataset] for row in rows}
            numbers = {name: tuple(range(seeds or setting.seeds)) for name, setting in used.items()}
            plans.append(Plan(replace(item, rows=rows), used, numbers))
    return tuple(plans)


def _without_repeats(rows: tuple[Row, ...], settings: Mapping[str, Setting]) -> tuple[Row, ...]:
    """Rows, less those that repeat one: where one set stands for two of the paper's, nothing may differ.

    Only for items without numbers of the paper, beside which each row would stand.
    """
    kept: dict[object, Row] = {}
    for row in rows:
        setting, protocol = settings[row.dataset], row.protocol
        if isinstance(protocol, Transfer):
            protocol = Transfer(setting.attack(protocol.attack, row.dataset))  # type: ignore[arg-type]
        kept.setdefault((setting.dataset, protocol, row.measure), row)
    return tuple(kept.values())
