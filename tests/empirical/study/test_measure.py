"""What is kept of a comparison: every violation named, every rate beside a guarantee counted."""

from dataclasses import replace

import pytest

from bounds import Estimate, evaluate
from empirical.comparison.judge import judge
from empirical.comparison.rows import JointRow, Row
from empirical.reproduce.cells import TrainingCell
from empirical.study.measure import StudyCell, merged, verdicts
from empirical.study.plan import PLANS

RATE = Estimate.exact(0.1)


def row(measured: float, beta: float = 0.0) -> Row:
    """The repaired Theorem 4 beside a rate; all of it exact, so what it says is guaranteed."""
    values = {"eps": 0.1, "beta": beta, "B": 1.0, "S_upper": 0.0, "xi_F": 0.1, "xi_G": 0.1, "l_min": 1.0}
    known = {name: Estimate.exact(value) for name, value in values.items()}
    bound, found = evaluate("theorem-4-repaired", known), Estimate.exact(measured)
    slack, verdict, reason = judge(bound, found)
    return Row(
        ensemble="a", surrogate=0, target=1, mode="untargeted", norm="l2", eps=0.1, attack="pgd",
        statement="theorem-4-repaired", smoothness="segment", bound=bound.to_json(), quantities=known,
        measured=found, slack=slack, verdict=verdict, reason=reason,
    )  # fmt: skip


def joint_row(verdict: str) -> JointRow:
    return JointRow(
        ensemble="a", models=(0, 1), together=2, mode="untargeted", norm="l2", eps=0.1, eligible=RATE,
        certified=RATE, must_transfer=RATE, found=RATE, attacks={"pgd": RATE, "joint": RATE},
        single=(RATE, RATE), slack=0.0, verdict=verdict, reason="as planted",
    )  # fmt: skip


def test_a_rate_beyond_a_guarantee_is_named_and_one_within_only_counted():
    inside, beyond = row(0.1), row(0.9)
    found = verdicts([inside, inside, beyond], [])
    assert found["verdicts"] == {"theorem-4-repaired": {"consistent": 2, "violated": 1}}
    assert found["evaluations"] == 3
    (violation,) = found["violations"]
    assert violation["reason"] == beyond.reason
    assert (violation["statement"], violation["models"], violation["attack"]) == (
        beyond.statement,
        [0, 1],
        "pgd",
    )


def test_what_does_not_apply_is_no_evaluation():
    inapplicable = row(0.9, beta=1000.0)
    found = verdicts([inapplicable], [joint_row("inapplicable")])
    assert found["verdicts"] == {"refined-r2": {"inapplicable": 1}, "theorem-4-repaired": {"inapplicable": 1}}
    assert (found["evaluations"], found["violations"]) == (0, [])


def test_every_attack_beside_a_certificate_is_an_evaluation():
    found = verdicts([], [joint_row("consistent"), joint_row("violated")])
    assert found["verdicts"] == {"refined-r2": {"consistent": 1, "violated": 1}}
    assert found["evaluations"] == 4
    assert [each["reason"] for each in found["violations"]] == ["as planted"]


def test_records_of_both_protocols_add_up():
    first = {"loss": [0.1], "rates": [1], "bounds": [], "joint": [2], **verdicts([row(0.1)], [])}
    second = {"loss": [0.2], "rates": [3], "bounds": [4], "joint": [], **verdicts([row(0.9)], [])}
    both = merged(first, second)
    assert (both["loss"], both["rates"], both["bounds"], both["joint"]) == ([0.1], [1, 3], [4], [2])
    assert both["verdicts"] == {"theorem-4-repaired": {"consistent": 1, "violated": 1}}
    assert (both["evaluations"], len(both["violations"])) == (2, 1)


@pytest.mark.parametrize("change", [{"samples": 7}, {"steps": 7}, {"eps_l2": (7.0,)}, {"attacks": ("mim",)}])
def test_another_measurement_is_another_cell(change):
    plan = PLANS["smoke"]
    target = TrainingCell(plan.configs[0])
    assert StudyCell(target, plan.attacked).key == StudyCell(target, replace(plan.attacked)).key
    assert StudyCell(target, plan.attacked).key != StudyCell(target, replace(plan.attacked, **change)).key
