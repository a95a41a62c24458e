"""Training methods, one file each. A new method is a file like these and a line that registers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from empirical.objectives.adaboost import AdaBoost
from empirical.objectives.adp import ADP
from empirical.objectives.advt import AdvT
from empirical.objectives.base import Loss, Objective, Parameters, Step
from empirical.objectives.certified import Certified
from empirical.objectives.ckae import CKAE
from empirical.objectives.cos_l2 import CosL2
from empirical.objectives.cos_only import CosOnly
from empirical.objectives.dverge import DVERGE
from empirical.objectives.gal import GAL
from empirical.objectives.gradient_boost import GradientBoost
from empirical.objectives.gradient_penalty import GradientPenalty
from empirical.objectives.trs import TRS
from empirical.objectives.trs_advt import TRSAdvT
from empirical.objectives.trs_official import TRSOfficial
from empirical.objectives.vanilla import Vanilla

_METHODS: dict[str, type[Any]] = {}
OBJECTIVES: Mapping[str, type[Any]] = MappingProxyType(_METHODS)

__all__ = [
    "ADP",
    "CKAE",
    "DVERGE",
    "GAL",
    "OBJECTIVES",
    "TRS",
    "AdaBoost",
    "AdvT",
    "Certified",
    "CosL2",
    "CosOnly",
    "GradientBoost",
    "GradientPenalty",
    "Loss",
    "Objective",
    "Parameters",
    "Step",
    "TRSAdvT",
    "TRSOfficial",
    "Vanilla",
    "objective_from_json",
    "register",
]


def register(method: type[Any]) -> type[Any]:
    """Make a method known by its name, so that configurations and checkpoints can hold it.

    Args:
        method: A frozen dataclass that extends `Parameters`, with a `name`, a `__call__` and a default for
            every parameter; see `Objective`.

    Returns:
        The method itself, so that this serves as a decorator too.

    Raises:
        TypeError: If it does not extend `Parameters`, or a parameter has no default.
        ValueError: If another method has the name.
    """
    if not (isinstance(method, type) and issubclass(method, Parameters)):
        raise TypeError(f"expected a subclass of Parameters to register, got {method!r}")
    bare = [each.name for each in fields(method) if each.default is each.default_factory is MISSING]
    if bare:
        raise TypeError(f"{method.name}: expected a default for every parameter, got none for {bare}")
    if method.name in _METHODS:
        raise ValueError(f"expected a new name for a method, got {method.name!r}, which is taken")
    _METHODS[method.name] = method
    return method


for _method in (
    Vanilla, AdaBoost, GradientBoost, CKAE, ADP, GAL, DVERGE, CosOnly, CosL2, TRS, TRSOfficial, AdvT, TRSAdvT,
    Certified, GradientPenalty,
):  # fmt: skip
    register(_method)


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
