"""What the figures show: the sharpest rows, and envelopes that bound every pair and attack at once."""

from dataclasses import replace

import pytest

from bounds import Estimate
from empirical.plots.select import bound, envelope, sharpest, telling_radius

HALF_KNOWN = Estimate.at_least(2.0, "sampled")


def test_of_two_stand_ins_the_better_guarantee_is_shown(make_row):
    rough = make_row("theorem-4", beta=5.0)
    fine = make_row("theorem-4", beta=1.0, smoothness="remainder")
    heuristic = make_row("theorem-4", beta=Estimate(0.5, 0.5, float("inf")), smoothness="remainder")
    assert sharpest([rough, fine]) == [fine]
    assert bound(heuristic) < bound(rough)
    assert sharpest([heuristic, rough]) == [rough]


def test_a_statement_that_applies_beats_one_that_does_not(make_row):
    failing = make_row("theorem-4", beta=500.0)
    assert bound(failing) is None
    applying = make_row("theorem-4", smoothness="remainder")
    assert sharpest([failing, applying]) == [applying]
    assert sharpest([failing]) == [failing]


def test_rows_of_other_attacks_and_norms_stay_apart(make_row):
    rows = [
        make_row("theorem-4", attack=attack, norm=norm)
        for attack in ("pgd", "mim")
        for norm in ("l2", "linf")
    ]
    assert sharpest(rows) == rows


def test_an_envelope_is_the_weakest_case_of_the_sharpest_statement(make_row):
    rows = [
        make_row("refined-r3-untargeted", pair=(0, 1), xi_F=0.02),
        make_row("refined-r3-untargeted", pair=(1, 0), xi_F=0.2),
        make_row("theorem-4-repaired", pair=(1, 0), xi_F=0.2),
    ]
    found = envelope(rows, "refined", upper=True)
    assert found == {0.1: (pytest.approx(bound(rows[1])), True)}
    assert all(row.measured.value <= found[0.1][0] for row in rows)
    assert envelope(rows, "printed", upper=True) == {}
    assert envelope(rows, "refined", upper=False) == {}


def test_an_envelope_needs_every_pair_and_every_attack(make_row):
    rows = [make_row("theorem-4"), make_row("theorem-4", attack="mim", beta=500.0)]
    assert envelope(rows, "printed", upper=True) == {}
    assert envelope(rows[:1], "printed", upper=True)[0.1][0] == pytest.approx(bound(rows[0]))


def test_one_heuristic_case_makes_the_envelope_heuristic(make_row):
    sure = make_row("theorem-4")
    unsure = make_row("theorem-4", pair=(1, 0), beta=HALF_KNOWN)
    assert envelope([sure], "printed", upper=True)[0.1][1] is True
    assert envelope([sure, unsure], "printed", upper=True)[0.1][1] is False


def test_a_lower_envelope_lies_below_every_case(make_row):
    world = {"alpha": 0.0, "c_F": 0.3, "c_G": -2.0, "S_lower": 1.0, "eta_F": 0.0, "eta_G": 0.0}
    rows = [make_row("theorem-2", **world), make_row("theorem-2", pair=(1, 0), **{**world, "eta_G": 0.3})]
    low = min(map(bound, rows))
    assert envelope(rows, "printed", upper=False) == {0.1: (pytest.approx(low), True)}


def test_the_telling_radius_is_the_largest_with_half_of_the_informative_bounds(make_comparison):
    comparison = make_comparison()
    informative = {
        eps: sum(
            row.bound["status"] == "informative"
            and row.mode == "untargeted"
            and row.smoothness == "remainder"
            for row in comparison.rows()
            if row.eps == eps
        )
        for eps in comparison.settings.eps
    }
    most = max(informative.values())
    wanted = max(eps for eps, count in informative.items() if 2 * count >= most)
    assert telling_radius(comparison, "untargeted") == wanted


def test_a_statement_has_a_telling_radius_of_its_own(make_comparison):
    """Where it is informative, else where it applies, else none."""
    comparison = make_comparison(names=("a",))
    (result,) = comparison.ensembles

    def changed(bound):
        rows = [
            replace(row, bound={**row.bound, **bound(row)}) if row.statement == "theorem-4" else row
            for row in result.rows
        ]
        return replace(comparison, ensembles=(replace(result, rows=tuple(rows)),))

    near = changed(lambda row: {"guaranteed": 0.5 if row.eps < 0.05 else 2.0, "value": 2.0})
    assert telling_radius(near, "untargeted") > 0.05
    assert telling_radius(near, "untargeted", "theorem-4") == 0.02
    vacuous = changed(lambda row: {"guaranteed": 2.0, "value": 2.0} if row.eps == 0.02 else
                      {"guaranteed": None, "value": None})  # fmt: skip
    assert telling_radius(vacuous, "untargeted", "theorem-4") == 0.02
    assert telling_radius(comparison, "untargeted", "no-such") == 0.0
