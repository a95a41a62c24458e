"""All statements by id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bounds.geometry import LEMMAS
from bounds.lower import LOWER_BOUNDS
from bounds.shift import SHIFT_RESULTS
from bounds.statement import Statement
from bounds.upper import UPPER_BOUNDS

STATEMENTS: Mapping[str, Statement] = MappingProxyType(
    {statement.id: statement for statement in (*LOWER_BOUNDS, *UPPER_BOUNDS, *SHIFT_RESULTS, *LEMMAS)}
)
