"""What is measured on one ensemble of the study: one comparison, cut down to what the analysis takes.

The comparison of an ensemble has thousands of rows. Kept are its rates, the values of the statements that
apply, the certificates, how often each verdict was given, and where each violation is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, ClassVar

from bounds.estimate import json_number
from empirical.attacks import Attack
from empirical.attacks.joint import JointAttack
from empirical.comparison.compare import compare
from empirical.comparison.results import SCHEMA, EnsembleResult
from empirical.comparison.rows import JointRow, Row
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.reproduce.cells import Bench, EnsembleCell
from empirical.study.plan import Protocol
from empirical.transfer_matrix import TransferMatrix
from estimators.points import measure_points

Record = dict[str, Any]


@dataclass(frozen=True)
class StudyCell(EnsembleCell):
    """A trained ensemble, attacked within itself, beside every statement about it."""

    kind: ClassVar[str] = "study"
    protocol: Protocol

    @property
    def label(self) -> str:
        config, what = self.target.config, "certify" if self.protocol.certificates else "attack"
        return (
            f"{what} {config.objective}, {config.members} x {config.model.activation} {config.model.hidden}"
        )

    @property
    def attacks(self) -> dict[str, Attack | JointAttack]:
        """The attacks by name, without their norm and radius."""
        steps = self.protocol.steps
        return {
            name: JointAttack(steps=steps) if name == "joint" else Attack(method=name, steps=steps)
            for name in self.protocol.attacks
        }

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "comparison": SCHEMA,
            **asdict(self.protocol),
            "attacks": {name: attack.to_json() for name, attack in self.attacks.items()},
        }

    def measure(self, bench: Bench) -> Record:
        protocol = self.protocol
        ensemble, points, pixel_range = self.loaded(bench, protocol.samples)
        result = compare(
            ensemble, points, name=self.target.key, eps=protocol.eps_l2, linf_eps=protocol.eps_linf,
            attacks=self.attacks, certificates=protocol.certificates, robust_eps=(),
            pixel_range=pixel_range,
        )  # fmt: skip
        return {**benign(ensemble, points), **outcomes(result)}


def merged(first: Record, *others: Record) -> Record:
    """The records of an ensemble under several protocols as one; what no attack changes is the first's."""
    every = (first, *others)
    counts: dict[str, Counter[str]] = {}
    for record in every:
        for name, found in record["verdicts"].items():
            counts.setdefault(name, Counter()).update(found)
    lists = ("rates", "bounds", "joint", "violations")
    return {
        **first,
        **{name: [line for record in every for line in record[name]] for name in lists},
        "verdicts": {name: dict(found) for name, found in sorted(counts.items())},
        "evaluations": sum(record["evaluations"] for record in every),
    }


def benign(ensemble: Ensemble, points: Split) -> Record:
    """Losses and gradients of the members at the clean points, at the true label."""
    members = list(ensemble.members)
    clean = measure_points(members, points.x, points.y)
    at_truth = points.y.reshape(1, -1, 1).expand(len(members), -1, 1)
    return {
        "loss": clean.losses.gather(2, at_truth).mean((1, 2)).tolist(),
        "gradient": clean.norms.gather(2, at_truth).mean((1, 2)).tolist(),
    }


def outcomes(result: EnsembleResult) -> Record:
    """What the analysis takes from a comparison, JSON-ready."""
    return {
        "accuracy": result.accuracy.value,
        "member_accuracy": [each.value for each in result.member_accuracy],
        "benign": dict(result.benign),
        "rates": [rate for matrix in result.matrices for rate in _rates(TransferMatrix.from_json(matrix))],
        "bounds": [_bound(row) for row in result.rows if row.verdict != "inapplicable"],
        "joint": [_joint(row) for row in result.joint],
        **verdicts(result.rows, result.joint),
    }


def verdicts(rows: Sequence[Row], joint: Sequence[JointRow]) -> Record:
    """How often each verdict was given, by statement; the guaranteed bounds looked at; each violation.

    A rate of one attack beside one guaranteed bound is one evaluation.
    """
    named: list[tuple[str, Row | JointRow]] = [(row.statement, row) for row in rows]
    named += [("refined-r2", row) for row in joint]
    by_statement: dict[str, Counter[str]] = {}
    for statement, row in named:
        by_statement.setdefault(statement, Counter())[row.verdict] += 1
    applied = [row for row in rows if row.verdict != "inapplicable" and row.bound["guaranteed"] is not None]
    certified = [row for row in joint if row.verdict != "inapplicable"]
    return {
        "verdicts": {statement: dict(counts) for statement, counts in sorted(by_statement.items())},
        "evaluations": len(applied) + sum(len(row.attacks) for row in certified),
        "violations": [_violation(statement, row) for statement, row in named if row.verdict == "violated"],
    }


def _violation(statement: str, row: Row | JointRow) -> Mapping[str, Any]:
    """Where to look, and the numbers in words."""
    about = {name: getattr(row, name) for name in ("ensemble", "mode", "norm", "eps", "reason")}
    if isinstance(row, JointRow):
        return {"statement": statement, **about, "models": list(row.models), "together": row.together}
    pair = {"models": [row.surrogate, row.target], "attack": row.attack, "smoothness": row.smoothness}
    return {"statement": statement, **about, **pair}


def _rates(matrix: TransferMatrix) -> list[Mapping[str, Any]]:
    """Of every ordered pair of members Definition 7's rate, the conditional one, and the attack on F."""
    attack = matrix.attack
    assert isinstance(attack, Attack)
    ball = {"attack": attack.method, "norm": attack.norm, "eps": attack.eps, "mode": matrix.mode}
    rates: list[Mapping[str, Any]] = []
    for f, g in permutations(range(len(matrix.surrogates)), 2):
        names = matrix.surrogates[f], matrix.targets[g]
        found = {measure: matrix.estimate(*names, measure) for measure in ("transfer", "conditional")}
        values = {measure: None if rate is None else rate.value for measure, rate in found.items()}
        alone = matrix.fooled[f][f] / matrix.samples
        rates.append({**ball, "models": [f, g], **values, "alone": alone})
    return rates


def _bound(row: Row) -> Mapping[str, Any]:
    numbers = {name: row.bound[name] for name in ("value", "guaranteed", "status")}
    about = {
        name: getattr(row, name) for name in ("statement", "smoothness", "attack", "norm", "eps", "mode")
    }
    measured = json_number(row.measured.value)
    return {**about, "models": [row.surrogate, row.target], **numbers, "measured": measured}


def _joint(row: JointRow) -> Mapping[str, Any]:
    """The strongest attack found and, where the members were certified, the certificates."""
    about = {name: getattr(row, name) for name in ("together", "norm", "eps", "mode")}
    found = {**about, "models": list(row.models), "found": row.found.value}
    if row.verdict == "inapplicable":
        return found
    return {
        **found,
        "certified": row.certified.upper,
        "must_transfer": row.must_transfer.value,
        "single": [each.upper for each in row.single],
    }
