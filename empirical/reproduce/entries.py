"""One number of an item, as it is shown: the paper's, the measured one, and the unit of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bounds.estimate import Estimate
from empirical.reproduce.items import Column, Row, Slice
from empirical.reproduce.printed import Printed
from empirical.reproduce.readings import Reading


@dataclass(frozen=True)
class Entry:
    """One number of an item.

    Attributes:
        row: Its row.
        column: Its column.
        printed: The paper's number, None where it prints none.
        measured_as: Data set and what was run there, in words.
        reading: What was measured, None where nothing was.
    """

    row: Row
    column: Column
    printed: Printed | None
    measured_as: str
    reading: Reading | None

    @property
    def unit(self) -> float:
        """What readings are multiplied by: rates are shown in per cent, anything else as it is."""
        return 100.0 if self.row.is_share else 1.0

    @property
    def estimate(self) -> Estimate | None:
        """The mean over seeds with its interval."""
        return self.reading.estimate() if self.reading else None


def in_words(estimate: Estimate, row: Row, sign: str = "") -> str:
    """A number of a row with its interval, if it has one: a share in per cent, anything else as it is.

    Args:
        estimate: The number.
        row: Where it stands.
        sign: "+" to write one before positive numbers too.
    """
    unit, digits = (100, ".1f") if row.is_share else (1, ".2f" if isinstance(row.protocol, Slice) else ".3g")
    value, lower, upper = (
        f"{unit * number:{sign}{digits}}" for number in (estimate.value, estimate.lower, estimate.upper)
    )
    return f"{value} [{lower}, {upper}]" if math.isfinite(estimate.lower) else f"{value} [unknown]"
