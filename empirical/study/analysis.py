"""From tables of ensembles and pairs to rank correlations, partial ones, and effects of the loss weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from empirical.comparison.pair_rows import UNTARGETED
from empirical.study.measure import Record
from empirical.study.observations import PREDICTORS, Ball, Floats, Table, column
from empirical.study.plan import Plan
from empirical.study.statistics import Bootstrap, Interval, kendall, partial_spearman, spearman

# What a predictor is looked at given: mechanisms are controlled for by the other two and by accuracy.
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "cos": ("beta_sampled", "B", "accuracy"),
    "beta": ("cos_mean", "B", "accuracy"),
    "B": ("cos_mean", "beta_sampled", "accuracy"),
    "gradient": ("cos_mean", "beta_sampled", "accuracy"),
}
# Quantities that are compared by ratios.
_SCALES = ("beta_sampled", "beta_certified", "B", "gradient", "loss")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Correlation:
    """A rank correlation between what is known of the models and a measured rate.

    Attributes:
        unit: "ensemble" or "pair".
        predictor: Column of the table.
        outcome: Column of the table.
        measure: "spearman", "kendall" (tau-b) or "partial" (Spearman's).
        given: What was taken out, in words; empty if nothing.
        interval: The correlation; None where too few ensembles have both.
    """

    unit: str
    predictor: str
    outcome: str
    measure: str
    given: str
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True)
class BoundCorrelation:
    """How the values of a statement order the rates that it speaks about, over ordered pairs of members.

    Attributes:
        statement: Identifier in `bounds.STATEMENTS`.
        smoothness: Stand-in for beta, see `empirical.comparison.compare`.
        ball: The attack.
        rows: Ordered pairs looked at.
        applies: How many the statement applies to.
        informative: How many it says something about (an upper bound below 1, a lower one above 0).
        spearman: Of value and measured rate, where it applies.
        kendall: The same.
    """

    statement: str
    smoothness: str
    ball: str
    rows: int
    applies: int
    informative: int
    spearman: Interval | None
    kendall: Interval | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Effect:
    """What raising one weight of the loss does within blocks that have all else in common.

    Attributes:
        weight: "lambda_a" or "lambda_b".
        low: Its lower value.
        high: Its higher value.
        other: Values of the other weight that were averaged over.
        quantity: Column of the ensemble table.
        scale: "difference" (high minus low) or "ratio" (high over low, geometric mean).
        value: Mean over the blocks.
        lower: Lower end of Student's interval over the blocks.
        upper: Upper end.
        blocks: Number of blocks.
    """

    weight: str
    low: str
    high: str
    other: tuple[str, ...]
    quantity: str
    scale: str
    value: float
    lower: float
    upper: float
    blocks: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def bootstrap_of(table: Table, resamples: int) -> Bootstrap:
    """Resamples of whole ensembles."""
    return Bootstrap(table.ensembles, resamples=resamples, confidence=CONFIDENCE)


def known(*columns: Floats) -> Any:
    """Lines on which no column is missing."""
    return ~np.isnan(np.stack(columns)).any(0)


def correlations(table: Table, bootstrap: Bootstrap) -> list[Correlation]:
    """Spearman's and Kendall's correlation of every predictor with every measured rate."""
    found = []
    for predictor in predictors_of(table):
        for outcome in outcomes_of(table):
            x, y = table.numbers[predictor], table.numbers[outcome]
            for measure, statistic in (("spearman", spearman), ("kendall", kendall)):
                interval = bootstrap.interval(statistic(x, y), known(x, y))
                found.append(Correlation(table.unit, predictor, outcome, measure, "", interval))
    return found


def partial_correlations(table: Table, bootstrap: Bootstrap, outcomes: Sequence[str]) -> list[Correlation]:
    """Spearman's correlations given accuracy, given the method, and given the other mechanisms."""
    methods = table.labels["method"]
    found = []
    for predictor in predictors_of(table):
        others = _OTHERS.get(predictor.partition("_")[0], ())
        given: dict[str, tuple[tuple[str, ...], Sequence[str] | None]] = {
            "accuracy": (("accuracy",), None),
            "method": ((), methods),
            "method and accuracy": (("accuracy",), methods),
        }
        if others:
            given[other_mechanisms(predictor)] = (others, None)
        for outcome in outcomes:
            for words, (controls, categories) in given.items():
                if predictor in controls:
                    continue
                columns = [table.numbers[name] for name in (predictor, outcome, *controls)]
                statistic = partial_spearman(columns[0], columns[1], columns[2:], categories)
                interval = bootstrap.interval(statistic, known(*columns))
                found.append(Correlation(table.unit, predictor, outcome, "partial", words, interval))
    return found


def other_mechanisms(predictor: str) -> str:
    """What a predictor is looked at given besides method and accuracy, in words; empty if nothing."""
    return ", ".join(_OTHERS.get(predictor.partition("_")[0], ()))


def bound_correlations(records: Mapping[str, Record], resamples: int) -> list[BoundCorrelation]:
    """Every statement that was evaluated, with every stand-in for beta, under every attack."""
    lines: dict[tuple[str, str, Ball], list[tuple[str, float, float, str]]] = {}
    pairs: Counter[tuple[str, float, str]] = Counter()
    for key, record in records.items():
        members = len(record["member_accuracy"])
        for place in {(row["norm"], row["eps"], row["mode"]) for row in record["joint"]}:
            pairs[place] += members * (members - 1)
        for row in record["bounds"]:
            ball = Ball(row["attack"], row["norm"], row["eps"], row["mode"])
            line = key, float(row["value"]), float(row["measured"]), row["status"]
            lines.setdefault((row["statement"], row["smoothness"], ball), []).append(line)
    found = []
    for (statement, smoothness, ball), some in sorted(lines.items(), key=lambda item: str(item[0])):
        keys, values, measured, status = zip(*some, strict=True)
        bootstrap = Bootstrap(keys, resamples=resamples, confidence=CONFIDENCE)
        found.append(
            BoundCorrelation(
                statement, smoothness, str(ball), pairs[ball.norm, ball.eps, ball.mode], len(some),
                status.count("informative"),
                bootstrap.interval(spearman(values, measured)), bootstrap.interval(kendall(values, measured)),
            )
        )  # fmt: skip
    return found


def effect(table: Table, weight: str, quantity: str, other: Sequence[str] | None = None) -> Effect | None:
    """What raising a weight from its lowest to its highest value does to a quantity, block by block.

    Args:
        table: Of ensembles.
        weight: "lambda_a" or "lambda_b".
        quantity: Column of the table.
        other: Values of the other weight at which to compare; all by default.

    Returns:
        The effect; None with fewer than three blocks.
    """
    opposite = "lambda_b" if weight == "lambda_a" else "lambda_a"
    crossed = [index for index in range(len(table)) if table.labels[weight][index]]
    levels = sorted({table.labels[weight][index] for index in crossed}, key=float)
    others = sorted({table.labels[opposite][index] for index in crossed}, key=float)
    others = [level for level in others if other is None or level in other]
    scale = "ratio" if quantity in _SCALES else "difference"
    cells: dict[str, dict[tuple[str, str], float]] = {}
    for index in crossed:
        value = float(table.numbers[quantity][index])
        place = table.labels[weight][index], table.labels[opposite][index]
        cells.setdefault(table.labels["block"][index], {})[place] = (
            math.log(value) if scale == "ratio" else value
        )
    changes = []
    for cell in cells.values():
        places = [(cell.get((levels[0], level)), cell.get((levels[-1], level))) for level in others]
        steps = [high - low for low, high in places if low is not None and high is not None]
        if len(steps) == len(others) and all(map(math.isfinite, steps)):
            changes.append(sum(steps) / len(steps))
    if len(changes) < 3 or np.std(changes) == 0:
        return None
    student = stats.ttest_1samp(changes, 0.0).confidence_interval(CONFIDENCE)
    ends = [float(np.mean(changes)), float(student.low), float(student.high)]
    value, lower, upper = map(math.exp, ends) if scale == "ratio" else ends
    return Effect(
        weight, levels[0], levels[-1], tuple(others), quantity, scale, value, lower, upper, len(changes)
    )


def predictors_of(table: Table) -> list[str]:
    """The predictors that the table has."""
    return [name for name in PREDICTORS if name in table.numbers]


def outcomes_of(table: Table) -> list[str]:
    """The columns of measured transfer."""
    return [name for name in table.numbers if name.startswith(("transfer (", "conditional (", "found ("))]


def main_ball(plan: Plan) -> Ball:
    """The attack that the claims are answered at: untargeted PGD in the largest l2 ball."""
    return Ball("pgd", "l2", max(plan.attacked.eps_l2), UNTARGETED)


def certified_ball(plan: Plan) -> Ball:
    """Where certificates stand beside the strongest attack found."""
    return Ball("any", "l2", max(plan.certified.eps_l2), UNTARGETED)


def main_outcomes(plan: Plan) -> dict[str, str]:
    """The measured rates that claims are about: their columns by their short names."""
    attacked, certified = main_ball(plan), certified_ball(plan)
    return {
        **{name: column(name, attacked) for name in ("transfer", "conditional", "alone")},
        **{name: column(name, certified) for name in ("found", "certified", "must_transfer", "single")},
    }
