"""Bounds beside measurements: verdicts, directions, and a planted false statement that must be caught."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import sympy
import torch

from bounds import STATEMENTS, Estimate, evaluate
from empirical.attacks import Attack
from empirical.attacks.joint import JointAttack
from empirical.comparison import joint_rows, pair_rows
from empirical.comparison.compare import compare
from empirical.comparison.judge import judge
from empirical.comparison.results import (
    Comparison,
    EnsembleResult,
    Settings,
    load_results,
    save_results,
)
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.files import ResultsError

UPPER_INPUTS = {"xi_F": 0.02, "xi_G": 0.03, "l_min": 1.0, "eps": 0.1, "B": 1.0, "S_upper": 0.5, "beta": 0.1}
EPS = (0.05, 0.6)
LINF_EPS = (0.3,)
ATTACKS = {"pgd": Attack("pgd", steps=10), "joint": JointAttack(steps=5)}
# The printed hypothesis is looked at for one attack, what the proofs need of it for every one.
STAND_INS = {"pgd": (pair_rows.SEGMENT, pair_rows.REMAINDER), "joint": (pair_rows.REMAINDER,)}


def bound(**changes):
    return evaluate("theorem-4", UPPER_INPUTS | changes)


def test_a_guaranteed_bound_is_violated_by_a_measurement_beyond_it():
    value = bound().guaranteed
    assert judge(bound(), Estimate.exact(value / 2))[1] == "consistent"
    slack, verdict, reason = judge(bound(), Estimate.exact(value + 0.01))
    assert verdict == "violated"
    assert slack == pytest.approx(-0.01)
    assert "guaranteed" in reason


def test_an_interval_that_straddles_the_bound_is_inconclusive():
    value = bound().guaranteed
    assert judge(bound(), Estimate(value + 0.01, value - 0.01, value + 0.02))[1] == "inconclusive"


def test_a_heuristic_bound_is_never_violated():
    heuristic = bound(beta=Estimate.at_least(0.1, "sampled"))
    assert heuristic.guaranteed is None
    assert judge(heuristic, Estimate.exact(0.9))[1] == "inconclusive"
    assert judge(heuristic, Estimate.exact(0.0))[1] == "consistent"


def test_vacuous_and_inapplicable_bounds_say_why():
    _, verdict, reason = judge(bound(xi_F=5.0), Estimate.exact(0.5))
    assert verdict == "vacuous"
    assert "term" in reason
    slack, verdict, reason = judge(bound(eps=2.0), Estimate.exact(0.5))
    assert (slack, verdict) == (None, "inapplicable")
    assert "denominator" in reason


def test_a_lower_bound_is_judged_from_the_other_side():
    lower = replace(bound(), statement=STATEMENTS["theorem-2"], value=0.4, guaranteed=0.4)
    assert judge(lower, Estimate.exact(0.5))[:2] == (pytest.approx(0.1), "consistent")
    assert judge(lower, Estimate.exact(0.3))[1] == "violated"


@pytest.fixture(scope="module")
def flat_world():
    """Three linear members on well separated points with gentle slopes, so that upper bounds speak."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.stack([2.0 * y - 1.0, torch.zeros(60)], 1) * 2 + 0.05 * torch.randn(60, 2, generator=generator)
    members = []
    for tilt in (0.0, 0.5, -0.5):
        linear = torch.nn.Linear(2, 2)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[-1.5, tilt], [1.5, -tilt]]))
            linear.bias.zero_()
        members.append(linear)
    return Ensemble(members).eval(), Split(x, y)


@pytest.fixture(scope="module")
def result(flat_world):
    return compare(
        *flat_world,
        name="flat",
        eps=EPS,
        linf_eps=LINF_EPS,
        target_label=1,
        attacks=ATTACKS,
        pixel_range=None,
    )


def test_every_ordered_pair_radius_and_statement_has_a_row(result):
    seen = {
        (row.surrogate, row.target, row.norm, row.eps, row.statement, row.attack, row.smoothness)
        for row in result.rows
    }
    wanted = {
        (*pair, *ball, statement, attack, stand_in)
        for pair in permutations(range(3), 2)
        for ball in (*(("l2", eps) for eps in EPS), *(("linf", eps) for eps in LINF_EPS))
        for statements in pair_rows.STATEMENTS_BY_MODE.values()
        for statement in statements
        for attack, stand_ins in STAND_INS.items()
        for stand_in in stand_ins
    }
    assert seen == wanted
    assert len(result.rows) == len(wanted)


def test_upper_bounds_speak_and_hold_where_the_world_is_flat(result):
    speaking = [
        row
        for row in result.rows
        if row.statement.startswith("theorem-4") and row.bound["status"] == "informative"
    ]
    assert {row.eps for row in speaking} >= {0.05}
    assert {row.verdict for row in result.rows} <= {"consistent", "vacuous", "inapplicable"}
    for stand_in in (pair_rows.SEGMENT, pair_rows.REMAINDER):
        rows = [row for row in speaking if row.smoothness == stand_in]
        assert {row.bound["grade"] for row in rows} == {"certified"}


def test_the_remainder_is_the_smaller_stand_in(result):
    beta = {
        (row.surrogate, row.target, row.mode, row.eps, row.statement, row.smoothness): row.quantities["beta"]
        for row in result.rows
        if "beta" in row.quantities
    }
    compared = [
        (estimate, beta[*key, pair_rows.SEGMENT])
        for (*key, stand_in), estimate in beta.items()
        if stand_in == pair_rows.REMAINDER
    ]
    assert compared
    assert all(exact.value <= segment.upper * (1 + 1e-6) for exact, segment in compared)


def test_beta_of_the_members_is_bracketed(result):
    # max ||w_0 - w_1||^2 / 4 over the linear members, attained where both classes are equally likely.
    largest = max(9.0 + 4 * 0.25, 9.0) / 4
    assert 0 < result.beta.lower <= result.beta.upper
    assert result.beta.upper == pytest.approx(largest, rel=1e-6)


def test_every_subset_of_the_members_has_a_joint_row(result):
    seen = [(row.models, row.together, row.mode, row.norm, row.eps) for row in result.joint]
    subsets = [((0, 1), 2), ((0, 2), 2), ((1, 2), 2), ((0, 1, 2), 2), ((0, 1, 2), 3)]
    assert seen == [
        (*subset, mode, *ball)
        for mode in ("untargeted", "targeted")
        for ball in (("l2", 0.05), ("l2", 0.6), ("linf", 0.3))
        for subset in subsets
    ]


def test_no_attack_exceeds_the_certificates(result):
    assert {row.verdict for row in result.joint} == {"consistent"}
    for row in result.joint:
        assert set(row.attacks) == set(ATTACKS)
        assert row.found.value >= max(rate.value for rate in row.attacks.values())
        assert row.must_transfer.value <= row.certified.lower <= row.certified.upper == row.certified.value
        assert row.found.value <= row.certified.lower
        assert row.certified.value <= min(single.value for single in row.single) <= row.eligible.value
        assert row.slack == pytest.approx(row.certified.value - row.found.value)


def test_a_missing_curvature_is_found_out(flat_world, monkeypatch):
    """A certificate that calls every point safe is contradicted by the first attack that works."""
    real = joint_rows.certify_goals

    def boastful(*arguments, **options):
        return [
            [replace(found, certificate=np.ones_like(found.certificate)) for found in of_goal]
            for of_goal in real(*arguments, **options)
        ]

    monkeypatch.setattr(joint_rows, "certify_goals", boastful)
    planted = compare(*flat_world, name="flat", eps=(3.0,), target_label=1, attacks=ATTACKS, pixel_range=None)
    assert {row.verdict for row in planted.joint if row.found.value > 0} == {"violated"}
    assert "points that are certified" in planted.joint[0].reason


def test_certificates_can_be_left_out(result, flat_world):
    """Of the certificates nothing is left; all that was measured is the same."""
    ensemble, data = flat_world
    found = compare(
        ensemble, data, name="flat", eps=EPS[:1], target_label=1, attacks=ATTACKS, certificates=False,
        pixel_range=None,
    )  # fmt: skip
    assert {row.verdict for row in found.joint} == {"inapplicable"}
    assert {row.must_transfer.value for row in found.joint} == {0.0}
    rates = {(row.models, row.together, row.mode): row.found for row in found.joint}
    with_certificates = [row for row in result.joint if (row.norm, row.eps) == ("l2", EPS[0])]
    assert rates == {(row.models, row.together, row.mode): row.found for row in with_certificates}


def test_without_a_certificate_the_segment_rows_are_heuristic():
    torch.manual_seed(0)
    members = [
        torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.LayerNorm(4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        )
        for _ in range(2)
    ]
    data = Split(torch.randn(12, 2), torch.arange(12) % 2)
    found = compare(
        Ensemble(members).eval(),
        data,
        name="normed",
        eps=(0.001,),
        target_label=1,
        attacks=ATTACKS,
        pixel_range=None,
    )
    assert found.beta.upper == float("inf")
    assert {row.verdict for row in found.joint} == {"inapplicable"}
    assert {row.certified.value for row in found.joint} == {row.eligible.value for row in found.joint}
    grades = {
        row.bound["grade"]
        for row in found.rows
        if row.smoothness == pair_rows.SEGMENT and "beta" in row.quantities
    }
    assert "certified" not in grades
    assert "heuristic" in grades


def test_the_remainder_never_exceeds_the_certified_smoothness(result, flat_world):
    beta = max(9.0 + 4 * 0.25, 9.0) / 4  # max ||w_0 - w_1||^2 / 4 over the members
    for row in result.rows:
        if "beta" in row.quantities:
            assert row.quantities["beta"].value <= beta * (1 + 1e-6)


def test_a_planted_false_statement_is_violated(flat_world, monkeypatch):
    true = STATEMENTS["theorem-4"]
    false = replace(true, expression=true.expression - sympy.Rational(1, 2), terms=true.terms)
    monkeypatch.setattr(pair_rows, "STATEMENTS", {**STATEMENTS, "theorem-4": false})
    monkeypatch.setattr(pair_rows, "STATEMENTS_BY_MODE", {"untargeted": ("theorem-4",), "targeted": ()})
    monkeypatch.setattr(
        pair_rows, "evaluate", lambda name, given: evaluate(pair_rows.STATEMENTS[name], given)
    )
    planted = compare(
        *flat_world, name="flat", eps=(0.05,), target_label=1, attacks=ATTACKS, pixel_range=None
    )
    verdicts = {(row.smoothness, row.verdict) for row in planted.rows}
    assert (pair_rows.REMAINDER, "violated") in verdicts
    assert (pair_rows.SEGMENT, "violated") in verdicts


def test_population_mode_gives_intervals_and_no_certified_extremes(flat_world):
    found = compare(
        *flat_world,
        name="flat",
        eps=(0.05,),
        target_label=1,
        attacks=ATTACKS,
        pixel_range=None,
        support="population",
    )
    for row in found.rows:
        assert row.measured.lower < row.measured.upper
        # A rate of single points has an interval; extremes of a sample have none.
        rate = row.statement == "refined-r6-pointwise"
        assert row.bound["grade"] == ("confident" if rate else "heuristic")


def test_kinks_make_the_theorems_inapplicable_but_not_the_remainder():
    torch.manual_seed(0)
    members = [
        torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)) for _ in range(2)
    ]
    data = Split(torch.randn(12, 2), torch.arange(12) % 2)
    found = compare(
        Ensemble(members).eval(),
        data,
        name="relu",
        eps=(0.01,),
        target_label=1,
        attacks=ATTACKS,
        pixel_range=None,
    )
    assert found.kinks == ("ReLU",)
    for row in found.rows:
        if row.smoothness == pair_rows.SEGMENT:
            assert row.verdict == "inapplicable"
        elif "beta" in row.quantities:
            assert row.quantities["beta"].upper < float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": ()}, "positive radii"),
        ({"eps": (0.1, -1.0)}, "positive radii"),
        ({"target_label": 2}, "0..1"),
        ({"linf_eps": (0.0,)}, "positive radii"),
        ({"attacks": {}}, "attack on single members"),
    ],
)
def test_bad_input_is_refused(flat_world, changes, words):
    arguments = {"name": "flat", "eps": EPS, "target_label": 1, "pixel_range": None} | changes
    with pytest.raises(ValueError, match=words):
        compare(*flat_world, **arguments)


def test_a_single_member_is_refused(flat_world):
    with pytest.raises(ValueError, match="two members"):
        compare(Ensemble([flat_world[0].members[0]]), flat_world[1], name="one", eps=EPS)


@pytest.fixture
def comparison(result):
    settings = Settings("flat", 60, 2, EPS, (), 1, {"pgd": {"method": "pgd"}}, (0.1, 0.15), "finite", 0.95, 0)
    return Comparison(settings, {"torch": torch.__version__}, (result,))


def test_saved_results_come_back_as_they_were(comparison, tmp_path):
    save_results(tmp_path / "results.json", comparison)
    assert load_results(tmp_path / "results.json").to_json() == comparison.to_json()
    assert isinstance(load_results(tmp_path / "results.json").ensembles[0], EnsembleResult)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other/1"}'])
def test_a_foreign_results_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match="expected"):
        load_results(tmp_path / "results.json")


def test_a_missing_results_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="found nothing"):
        load_results(tmp_path / "results.json")


def test_starred_statements_take_their_quantities_from_the_event(result, flat_world):
    """xi^E is E[l 1_event] and l_min runs over the event, by definition and for either order of the pair."""
    ensemble, data = flat_world
    losses = [
        torch.nn.functional.cross_entropy(member(data.x), data.y, reduction="none")
        for member in ensemble.members
    ]
    at_target = [
        torch.nn.functional.cross_entropy(member(data.x), torch.ones_like(data.y), reduction="none")
        for member in ensemble.members
    ]
    rows = [row for row in result.rows if row.statement == "theorem-3-repaired"]
    assert rows
    for row in rows:
        f, g = row.surrogate, row.target
        event = data.y != 1
        for member in (f, g):
            event = event & (ensemble.members[member](data.x).argmax(1) == data.y)
        assert 0 < event.sum() < len(data)
        wanted = {"xi_F": (losses[f] * event).mean(), "xi_G": (losses[g] * event).mean()}
        wanted["l_min"] = torch.minimum(at_target[f], at_target[g])[event].min()
        for name, value in wanted.items():
            assert row.quantities[name].value == pytest.approx(value.item(), rel=1e-5)


def test_printed_statements_take_theirs_from_the_whole_set(result, flat_world):
    ensemble, data = flat_world
    for row in (row for row in result.rows if row.statement == "theorem-4"):
        for name, member in (("xi_F", row.surrogate), ("xi_G", row.target)):
            loss = torch.nn.functional.cross_entropy(ensemble.members[member](data.x), data.y)
            assert row.quantities[name].value == pytest.approx(float(loss), rel=1e-5)
