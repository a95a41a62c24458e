"""Whether an attack has converged: robust accuracy against its number of steps (TRS, Table 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from empirical.attacks.gradient import Attack
from empirical.protocols.whitebox import WhiteBoxCell


@dataclass(frozen=True)
class Convergence:
    """One attack with more and more steps, all else equal.

    Attributes:
        cells: One per number of steps, in rising order, of one model on the same samples.

    Raises:
        ValueError: If there are fewer than two, steps do not rise, or anything else differs.
    """

    cells: tuple[WhiteBoxCell, ...]

    def __post_init__(self) -> None:
        if len(self.cells) < 2:
            raise ValueError(f"expected at least two numbers of steps, got {len(self.cells)}")
        steps = self.steps
        if any(after <= before for before, after in pairwise(steps)):
            raise ValueError(f"expected rising numbers of steps, got {', '.join(map(str, steps))}")
        others = [{**cell.attack.to_json(), "steps": None} for cell in self.cells]
        if any(other != others[0] for other in others):
            raise ValueError("expected one attack with more and more steps, got different ones")
        if any(cell.survival.clean != self.cells[0].survival.clean for cell in self.cells):
            raise ValueError("expected one model on the same samples, got different clean predictions")

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps."""
        return tuple(int(cell.attack.to_json()["steps"]) for cell in self.cells)

    @property
    def lost(self) -> tuple[int, ...]:
        """For each number of steps but the first, samples that it fools and the one before it does not."""
        return self._changes(survived_before=True)

    @property
    def regained(self) -> tuple[int, ...]:
        """For each number of steps but the first, samples that the one before fools and it does not."""
        return self._changes(survived_before=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "lost": list(self.lost),
            "regained": list(self.regained),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Convergence:
        """What `to_json` described; the changes are counted anew."""
        return cls(tuple(map(WhiteBoxCell.from_json, fields["cells"])))

    def _changes(self, survived_before: bool) -> tuple[int, ...]:
        masks = [cell.survival.robust for cell in self.cells]
        return tuple(
            sum(was is survived_before and now is not was for was, now in zip(before, after, strict=True))
            for before, after in pairwise(masks)
        )


def convergence(cells: Sequence[WhiteBoxCell]) -> Convergence:
    """Put cells that were measured one by one in the order of their steps.

    Raises:
        ValueError: As `Convergence` does; also for an attack without steps of its own.
    """
    for cell in cells:
        if not isinstance(cell.attack, Attack) or cell.attack.method == "fgsm":
            raise ValueError(f"expected an iterative gradient attack, got {cell.attack}")
    return Convergence(tuple(sorted(cells, key=lambda cell: int(cell.attack.to_json()["steps"]))))
