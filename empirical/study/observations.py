"""The records of the ensembles as two tables: a line for each ensemble, and for each pair of members."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from empirical.config import TrainingConfig
from empirical.study.measure import Record
from empirical.study.plan import block, penalties

Floats = NDArray[np.float64]
ENSEMBLE, PAIR = "ensemble", "pair"
# What is known of the members without an attack, in the words of the tables.
PREDICTORS: Mapping[str, str] = {
    "cos_mean": "mean |cos| of the loss gradients",
    "cos_sup": "sup of cos (S upper)",
    "cos_inf": "inf of cos (S lower)",
    "beta_sampled": "beta, sampled at the points",
    "beta_certified": "beta, certified over all inputs",
    "B": "B, largest gradient norm",
    "gradient": "mean gradient norm",
    "loss": "mean loss",
    "accuracy": "accuracy of the weakest member",
}


@dataclass(frozen=True)
class Ball:
    """An attack, or all of them at once, in a ball.

    Attributes:
        attack: Its name; "any" for the pointwise worst case over the attacks.
        norm: Norm of the ball.
        eps: Radius.
        mode: "untargeted" or "targeted".
    """

    attack: str
    norm: str
    eps: float
    mode: str

    def __str__(self) -> str:
        return f"{self.attack}, {self.norm} {self.eps:g}, {self.mode}"


@dataclass(frozen=True)
class Table:
    """Units and what is known of them; a missing number is NaN.

    Attributes:
        unit: "ensemble" or "pair".
        names: What each line is about.
        ensembles: The ensemble of each line, by its key: lines of one ensemble are not independent.
        labels: Words about each line: method, activation, depth, members, seed, lambda_a, lambda_b.
        numbers: Columns (n,): the predictors, and "transfer", "conditional" and "alone" for every `Ball`,
            "found", "certified", "must_transfer" and "single" for the balls of all attacks.
    """

    unit: str
    names: tuple[str, ...]
    ensembles: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, column by column; a missing number is null."""
        numbers = {
            name: [None if math.isnan(value) else float(f"{value:.6g}") for value in column.tolist()]
            for name, column in self.numbers.items()
        }
        words = {name: list(column) for name, column in self.labels.items()}
        return {
            "unit": self.unit, "names": list(self.names), "ensembles": list(self.ensembles), "labels": words,
            "numbers": numbers,
        }  # fmt: skip

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Table:
        """The table that `to_json` described."""
        return cls(
            unit=fields["unit"],
            names=tuple(fields["names"]),
            ensembles=tuple(fields["ensembles"]),
            labels={name: tuple(column) for name, column in fields["labels"].items()},
            numbers={name: np.array(column, float) for name, column in fields["numbers"].items()},
        )


def column(measure: str, ball: Ball) -> str:
    """Name of an outcome's column."""
    return f"{measure} ({ball})"


def tabulate(records: Mapping[str, tuple[TrainingConfig, Record]], unit: str) -> Table:
    """A line for each ensemble, or for each pair of members of each.

    A pair's transfer is the mean of its two directions, an ensemble's the mean over its ordered pairs; its
    cosines are the mean |cos| over pairs and the extremes of all pairs, beta and B the largest of any.

    Args:
        records: Configuration and record of each ensemble, by its key.
        unit: "ensemble" or "pair".
    """
    lines: list[tuple[str, str, dict[str, str], dict[str, float]]] = []
    for key, (config, record) in records.items():
        pairs = list(combinations(range(config.members), 2))
        name = _name(config)
        for chosen in [pairs] if unit == ENSEMBLE else [[pair] for pair in pairs]:
            suffix = "" if unit == ENSEMBLE else f", {chosen[0][0]}+{chosen[0][1]}"
            numbers = {**_predictors(record, chosen), **_outcomes(record, chosen)}
            lines.append((name + suffix, key, _labels(config), numbers))
    columns = dict.fromkeys(key for line in lines for key in line[3])
    return Table(
        unit=unit,
        names=tuple(line[0] for line in lines),
        ensembles=tuple(line[1] for line in lines),
        labels={name: tuple(line[2][name] for line in lines) for name in lines[0][2]},
        numbers={name: np.array([line[3].get(name, math.nan) for line in lines]) for name in columns},
    )


def _name(config: TrainingConfig) -> str:
    model = config.model
    width = "-".join(map(str, model.hidden))
    method = f"{config.objective.name} {_weights(config)}"
    return f"{method}{model.activation} {width} x{config.members} s{config.seed}"


def _weights(config: TrainingConfig) -> str:
    found = penalties(config.objective)
    return "" if found is None else f"{found[0]:g}/{found[1]:g} "


def _labels(config: TrainingConfig) -> dict[str, str]:
    weights = penalties(config.objective)
    crossed = ("", "") if weights is None else tuple(f"{weight:g}" for weight in weights)
    return {
        "method": config.objective.name,
        "lambda_a": crossed[0],
        "lambda_b": crossed[1],
        "activation": config.model.activation,
        "depth": str(len(config.model.hidden)),
        "members": str(config.members),
        "seed": str(config.seed),
        "block": " ".join(map(str, block(config))),
    }


def _predictors(record: Record, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    members = sorted({member for pair in pairs for member in pair})
    known = {tuple(each["models"]): each for each in record["benign"]["pairs"]}
    cosines = [known[pair] for pair in pairs]
    benign = [record["benign"]["members"][member] for member in members]
    return {
        "cos_mean": _mean(each["mean_absolute_cosine"] for each in cosines),
        "cos_sup": _extreme(max, (each["similarity_upper"] for each in cosines)),
        "cos_inf": _extreme(min, (each["similarity_lower"] for each in cosines)),
        "beta_sampled": max(float(each["smoothness"]["lower"]) for each in benign),
        "beta_certified": max(float(each["smoothness"]["upper"]) for each in benign),
        "B": max(each["gradient_norm"] for each in benign),
        "gradient": _mean(record["gradient"][member] for member in members),
        "loss": _mean(record["loss"][member] for member in members),
        "accuracy": min(record["member_accuracy"][member] for member in members),
    }


def _outcomes(record: Record, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    wanted = {frozenset(pair) for pair in pairs}
    found: dict[str, list[float | None]] = {}
    for rate in record["rates"]:
        if frozenset(rate["models"]) in wanted:
            ball = Ball(rate["attack"], rate["norm"], rate["eps"], rate["mode"])
            for measure in ("transfer", "conditional", "alone"):
                found.setdefault(column(measure, ball), []).append(rate[measure])
    for row in record["joint"]:
        if frozenset(row["models"]) in wanted and row["together"] == 2:
            ball = Ball("any", row["norm"], row["eps"], row["mode"])
            for measure in ("found", "certified", "must_transfer"):
                if measure in row:
                    found.setdefault(column(measure, ball), []).append(row[measure])
            if "single" in row:
                found.setdefault(column("single", ball), []).append(min(row["single"]))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _extreme(choose: Callable[[list[float]], float], values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return choose(known) if known else math.nan
