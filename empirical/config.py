"""What a training run is: data, model, method, and how the loss is minimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from empirical.models import ModelConfig
from empirical.objectives import Objective, Vanilla, objective_from_json
from empirical.objectives.base import Parameters


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, holds: Callable[[float], bool]) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and holds(value)  # type: ignore[arg-type]


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a ModelConfig", lambda v: isinstance(v, ModelConfig)),
    "objective": ("an objective such as TRS()", lambda v: isinstance(v, Parameters)),
    "members": ("a whole number >= 2", lambda v: _is_whole(v, 2)),
    "epochs": ("a whole number >= 1", lambda v: _is_whole(v, 1)),
    "batch_size": ("a whole number >= 1", lambda v: _is_whole(v, 1)),
    "optimizer": ("adam or sgd", lambda v: v in ("adam", "sgd")),
    "lr": ("a number > 0", lambda v: _is_number(v, lambda x: x > 0)),
    "weight_decay": ("a number >= 0", lambda v: _is_number(v, lambda x: x >= 0)),
    "adam_epsilon": ("a number > 0", lambda v: _is_number(v, lambda x: x > 0)),
    "momentum": ("a number in [0, 1)", lambda v: _is_number(v, lambda x: 0 <= x < 1)),
    "schedule": ("constant, onecycle or steps", lambda v: v in ("constant", "onecycle", "steps")),
    "milestones": ("rising whole numbers >= 1", lambda v: _are_rising(v)),
    "factor": ("a number in (0, 1]", lambda v: _is_number(v, lambda x: 0 < x <= 1)),
    "ramp": ("a number in [0, 1]", lambda v: _is_number(v, lambda x: 0 <= x <= 1)),
    "seed": ("a whole number in 0 .. 2^32 - 1", lambda v: _is_whole(v, 0) and v < 2**32),
    "device": ("auto, cpu or cuda", lambda v: v in ("auto", "cpu", "cuda")),
    "fast": ("true or false", lambda v: isinstance(v, bool)),
    "mixed_precision": ("true or false", lambda v: isinstance(v, bool)),
    "checkpoint_every": ("a whole number >= 1", lambda v: _is_whole(v, 1)),
}


def _are_rising(values: tuple[Any, ...]) -> bool:
    return all(_is_whole(value, 1) for value in values) and list(values) == sorted(set(values))


@dataclass(frozen=True)
class TrainingConfig:
    """What to train.

    Attributes:
        dataset: Name of the data set.
        data_root: Folder of the sets that are read from files.
        model: Architecture and activation of each member.
        objective: Training method with its parameters.
        members: Number of members N, at least 2.
        epochs: Passes over the training points (M in TRS, Algorithm 1) in each stage of the objective: most
            have one, boosting has one for each member.
        batch_size: Samples per step; the last batch of an epoch may be smaller.
        optimizer: `adam` or `sgd`.
        lr: Learning rate, under `onecycle` the largest one.
        weight_decay: Weight of the squared weights (halved), as torch's optimisers have it.
        adam_epsilon: What `adam` adds to the root of its second moment.
        momentum: Momentum of `sgd`.
        schedule: Of the learning rate: `constant`, `onecycle` (up in the first 30 % of the steps, then down
            to about 0) or `steps`.
        milestones: Epochs after which `steps` multiplies the learning rate by `factor`.
        factor: That factor.
        ramp: The regularisers' weights rise from 0 to their values over this share of the steps.
        seed: Seed of initial weights, data order and augmentation.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        fast: Compute the same losses, up to rounding, with less work where the method knows how.
        mixed_precision: Run the members' forward passes in bfloat16. Weights, losses and norms stay float32.
        checkpoint_every: Save every so many epochs, and after the last one.

    Raises:
        ValueError: If a value is out of range or two do not go together; names expected and actual.
    """

    dataset: str = "digits"
    data_root: str = "data"
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Objective = field(default_factory=Vanilla)
    members: int = 3
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    momentum: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    ramp: float = 0.0
    seed: int = 0
    device: str = "auto"
    fast: bool = True
    mixed_precision: bool = False
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, (wanted, holds) in _RULES.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"expected {name} to be {wanted}, got {getattr(self, name)!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"expected momentum 0 for {self.optimizer}, got {self.momentum}")
        if bool(self.milestones) != (self.schedule == "steps"):
            raise ValueError(
                f"expected milestones for the schedule steps only, got {self.milestones} for {self.schedule}"
            )
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"expected milestones below epochs = {self.epochs}, got {self.milestones}")

    def with_epochs(self, epochs: int) -> TrainingConfig:
        """The same training in another number of epochs, with milestones at the same shares of it.

        Milestones that would fall together, or on the start or the end, are dropped; without any left, the
        learning rate is constant.

        Raises:
            ValueError: If the number is not a whole number >= 1.
        """
        if not self.milestones or not _is_whole(epochs, 1):
            return replace(self, epochs=epochs)
        scaled = {round(milestone * epochs / self.epochs) for milestone in self.milestones}
        milestones = tuple(sorted(scaled & set(range(1, epochs))))
        schedule = self.schedule if milestones else "constant"
        return replace(self, epochs=epochs, milestones=milestones, schedule=schedule)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        model = {**asdict(self.model), "hidden": list(self.model.hidden)}
        return {
            **values, "model": model, "objective": self.objective.to_json(), "milestones":
            list(self.milestones)
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration that `to_json` described; fields that are missing take their defaults.

        Raises:
            ValueError: If a field is unknown or its value is not admissible.
            TypeError: If a field of the model or of the objective is unknown or of the wrong type.
        """
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"expected fields among {', '.join(known)}, got {', '.join(unknown)}")
        changes = dict(values)
        if "model" in changes:
            changes["model"] = ModelConfig(**changes["model"])
        if "objective" in changes:
            changes["objective"] = objective_from_json(changes["objective"])
        return cls(**changes)
