"""Training methods, one file each. A new method is a file like these and a line in `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from empirical.objectives.base import Loss, Objective, Step
from empirical.objectives.cos_l2 import CosL2
from empirical.objectives.cos_only import CosOnly
from empirical.objectives.trs import TRS
from empirical.objectives.vanilla import Vanilla

OBJECTIVES: Mapping[str, type[Any]] = MappingProxyType(
    {method.name: method for method in (Vanilla, CosOnly, CosL2, TRS)}
)

__all__ = [
    "OBJECTIVES",
    "TRS",
    "CosL2",
    "CosOnly",
    "Loss",
    "Objective",
    "Step",
    "Vanilla",
    "objective_from_json",
]


def objective_from_json(fields: Mapping[str, Any]) -> Objective:
    """The training method that `to_json` described.

    Raises:
        ValueError: If the method, or one of its parameters, is unknown.
        TypeError: If a parameter has the wrong type.
    """
    parameters = dict(fields)
    name = parameters.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"expected an objective among {', '.join(OBJECTIVES)}, got {name!r}")
    method = OBJECTIVES[name]
    known = set(method.__dataclass_fields__) - {"name"}
    if unknown := sorted(set(parameters) - known):
        raise ValueError(f"{name}: expected parameters among {sorted(known)}, got {', '.join(unknown)}")
    objective: Objective = method(**parameters)
    return objective
