"""What stands in the figures, and that each is drawn from saved results alone, whatever they look like."""

from dataclasses import replace

import numpy as np
import pytest

from bounds import STATEMENTS, Estimate
from empirical.comparison.results import load_results, save_results
from empirical.plots import FIGURES, save, save_figures
from empirical.plots.matrices import matrices
from empirical.plots.phase import frontier, surface, worst
from empirical.plots.scatter import table as scatter_table
from empirical.plots.style import plt
from empirical.plots.sweep import _measured
from empirical.plots.sweep import table as sweep_table
from empirical.plots.waterfall import steps

NAMES = [
    "eps-sweep", "bound-against-measured", "slack-waterfall", "phase-diagram", "transfer-matrices",
    "robust-accuracy",
]  # fmt: skip


@pytest.fixture
def saved(make_comparison, tmp_path):
    """Results that went to the disk and came back."""
    save_results(tmp_path / "results.json", make_comparison(members=2))
    return load_results(tmp_path / "results.json")


def test_every_figure_comes_as_svg_and_png_the_same_each_time(saved, tmp_path):
    first = save_figures(saved, tmp_path / "first")
    assert [figure.name for figure in first] == NAMES
    for figure in first:
        assert figure.png.read_bytes()[:4] == b"\x89PNG"
        assert figure.svg.read_text(encoding="utf-8").lstrip().startswith("<?xml")
        assert figure.table.rows
        assert {len(row) for row in figure.table.rows} == {len(figure.table.header)}
        assert "{" not in figure.caption
    again = save(lambda: FIGURES[0].draw(saved), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [first[0].svg.read_bytes(), first[0].png.read_bytes()]


@pytest.mark.parametrize(
    "world",
    [
        {"members": 3},
        {"joint": False},
        {"kinks": ("0: ReLU",), "beta": float("inf")},  # Theorems 1-4 apply to nothing
        {"l_min": 1e-4},  # nothing applies at all, but Cantelli
        {"support": "population", "xi_F": Estimate(0.02, 0.01, 0.05, 0.01)},
        {"beta": Estimate.at_least(2.0, "sampled")},
        {"beta": 0.0, "S_upper": -1.0},
    ],
    ids=["three members", "no certificates", "kinks", "inapplicable", "population", "heuristic", "linear"],
)
def test_unusual_results_are_drawn_too(make_comparison, world):
    comparison = make_comparison(**{"names": ("alone",), "members": 2, **world})
    for each in FIGURES:
        figure = each.draw(comparison)
        figure.canvas.draw()
        plt.close(figure)
        assert {len(row) for row in each.table(comparison).rows} <= {len(each.table(comparison).header)}


def test_measured_transfer_is_that_of_attacks_on_one_member(make_row):
    rows = [
        make_row("theorem-4-repaired", measured=0.1),
        make_row("theorem-4-repaired", pair=(1, 0), measured=0.3),
        replace(make_row("theorem-4-repaired", measured=0.9), attack="joint"),
    ]
    low, middle, high = _measured(rows)
    assert middle == {0.1: pytest.approx(0.2)}
    assert low[0.1] <= 0.1 < 0.3 <= high[0.1] < 0.9


def test_the_waterfall_goes_from_the_measured_rate_to_the_bound(make_row):
    rows = [make_row("theorem-4", measured=0.02), make_row("theorem-4", pair=(1, 0), xi_F=0.3, measured=0.04)]
    path = steps(rows)
    assert list(path) == ["averaging", "gradient size", "similarity", "smoothness"]
    assert 0.03 + sum(path.values()) == pytest.approx(np.mean([row.bound["value"] for row in rows]))
    assert path["averaging"] == pytest.approx((0.05 + 0.33) / 2 - 0.03)
    assert min(path.values()) > 0
    assert steps([make_row("theorem-4", measured=0.9)])["averaging"] < 0


def test_the_phase_diagram_takes_what_is_worst_for_the_bound(make_row):
    rows = [make_row("theorem-4", B=1.0, l_min=0.7), make_row("theorem-4", B=3.0, l_min=2.0)]
    assert worst(rows, "theorem-4") == {"xi_F": 0.02, "xi_G": 0.03, "l_min": 0.7, "eps": 0.1, "B": 3.0}
    wide = [make_row("theorem-4", xi_F=Estimate(0.02, 0.01, 0.06))]
    assert worst(wide, "theorem-4")["xi_F"] == 0.06


def test_the_frontier_solves_the_bound_for_beta(make_row):
    rows = [make_row("theorem-4")]
    # (xi_F + xi_G) / (l_min - eps B (1 + h) - beta eps^2) = 1
    beta = (1.0 - 0.05 - 0.1 * (1 + np.sqrt(0.75))) / 0.1**2
    assert frontier(rows, "theorem-4", 0.5) == pytest.approx(beta)
    plane = surface(rows, "theorem-4", np.array([0.5, 0.5, 0.5]), beta * np.array([0.999, 1.001, 2.0]))
    assert plane[0] < 1 < plane[1]
    assert plane[2] == np.inf
    assert frontier([make_row("theorem-4", l_min=0.01)], "theorem-4", 0.5) == 0.0
    assert frontier([make_row("theorem-4", eps=1e-9)], "theorem-4", 0.5) == np.inf


def test_a_matrix_shows_the_sharpest_guarantee_for_all_attacks(make_comparison):
    (result,) = make_comparison(names=("a",), joint=False).ensembles
    found = matrices(result, 0.1)
    rows = [row for row in result.rows if row.eps == 0.1 and row.mode == "untargeted"]
    best = min(row.bound["guaranteed"] for row in rows if STATEMENTS[row.statement].sense == "upper bound")
    assert found["at most"][0, 1] == pytest.approx(best)
    assert found["found"][0, 1] == pytest.approx(0.001)
    assert found["at least"][0, 1] == 0.0
    assert np.isnan(found["at most"].diagonal()).all()


def test_certificates_bound_both_directions_of_a_pair_and_each_member_alone(make_comparison):
    (result,) = make_comparison(names=("a",), l_min=1e-4).ensembles  # no statement applies
    found = matrices(result, 0.1)
    assert found["at most"][0, 1] == found["at most"][1, 0] == pytest.approx(0.02)
    assert found["at least"][0, 1] == found["at least"][1, 0] == pytest.approx(0.01)  # R7
    assert found["at most"][0, 0] == pytest.approx(0.0125)  # the member alone
    (bare,) = make_comparison(names=("a",), l_min=1e-4, joint=False).ensembles
    assert matrices(bare, 0.1)["at most"][0, 1] == 1.0


def test_heuristic_bounds_are_no_guarantee_in_a_matrix(make_comparison):
    (result,) = make_comparison(names=("a",), joint=False, beta=Estimate.at_least(2.0, "sampled")).ensembles
    assert matrices(result, 0.1)["at most"][0, 1] == 1.0


def test_the_sweeps_table_holds_what_is_drawn(make_comparison):
    table = sweep_table(make_comparison(names=("a",)))
    line = dict(
        zip(table.header, next(row for row in table.rows if row[1:3] == ("untargeted", "0.1")), strict=True)
    )
    assert line["measured"] == "0.001 [0.001, 0.001]"
    assert (line["R7"], line["found"], line["R2"]) == ("0.01", "0.0125", "0.02")
    assert 0.01 < float(line["refined upper"]) < float(line["repaired upper"]) <= float(line["printed upper"])


def test_a_violation_shows_in_the_numbers_behind_the_scatter(make_comparison, make_row):
    comparison = make_comparison(names=("a",))
    (result,) = comparison.ensembles
    broken = make_row("theorem-4", measured=0.9)
    assert broken.verdict == "violated"
    object.__setattr__(result, "rows", (*result.rows, broken))
    table = scatter_table(comparison)
    place = table.header.index("violated")
    assert [row[place] for row in table.rows if row[1:3] == ("printed", "upper")] == ["1"]
