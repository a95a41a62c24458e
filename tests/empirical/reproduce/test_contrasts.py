"""The item `deviations`: which trainings it compares, and what its tables, words and figure say of them."""

import math

import numpy as np
import pytest

from empirical.objectives.trs_official import DEVIATIONS
from empirical.presets import preset
from empirical.reproduce.cells import GeometryCell, TrainingCell, TransferCell, WhiteBoxCell
from empirical.reproduce.contrasts import contrasts, findings
from empirical.reproduce.items import GEOMETRY, ITEMS, ROBUST
from empirical.reproduce.pages import page, write_pages
from empirical.reproduce.plan import make_plans
from empirical.reproduce.queue import Store
from empirical.reproduce.scales import choose_settings
from empirical.reproduce.tables import collect, number_tables

ITEM = ITEMS["deviations"]
COLUMNS = {column.label: column for column in ITEM.columns}


def trained(label, dataset="digits"):
    setting = choose_settings("cpu", dataset)["MNIST"]
    return setting.training(COLUMNS[label], 0)


def switches(label):
    objective = trained(label).objective
    return {name for name in DEVIATIONS if getattr(objective, name)}


def test_each_deviation_is_put_on_alone_and_left_out_alone():
    for name in DEVIATIONS:
        assert switches(f"with {name}") == {name}
        assert switches(f"without {name}") == set(DEVIATIONS) - {name}
    assert switches("published code") == set(DEVIATIONS)
    both = {"squared_norms", "batch_gradient"}
    assert switches("with squared_norms and batch_gradient") == both
    assert switches("without squared_norms and batch_gradient") == set(DEVIATIONS) - both


@pytest.mark.parametrize(
    ("label", "weight_decay", "epsilon"),
    [
        ("TRS of the paper", 0, 1e-8), ("with flips", 0, 1e-8), ("with weight_decay", 1e-4, 1e-8),
        ("with adam_epsilon", 0, 1e-7), ("published code", 1e-4, 1e-7), ("without flips", 1e-4, 1e-7),
        ("without weight_decay", 0, 1e-7), ("without adam_epsilon", 1e-4, 1e-8),
    ],
)  # fmt: skip
def test_the_optimiser_deviates_only_where_it_says_so(label, weight_decay, epsilon):
    for dataset in ("digits", "mnist5k"):
        config = trained(label, dataset)
        assert (config.weight_decay, config.adam_epsilon) == (weight_decay, epsilon)


def test_both_ends_are_the_presets():
    """The paper's TRS is Table 1's on the digits, and the published code that of its preset."""
    assert trained("TRS of the paper").objective == preset("digits", "trs").objective
    assert trained("TRS of the paper", "mnist5k").objective.search == "pair"
    assert trained("published code").objective == preset("digits", "trs-official").objective
    assert trained("without the search (the driver)").objective == preset("digits", "cos-l2").objective
    table = next(column for column in ITEMS["table-1"].columns if column.label == "TRS")
    setting = choose_settings("cpu", "digits")["MNIST"]
    assert (
        TrainingCell(setting.training(table, 1)).key
        == TrainingCell(setting.training(COLUMNS["TRS of the paper"], 1)).key
    )


def planted_result(cell):
    """Everyone keeps 60 of 100 points, the published code and what deviates from it 40; norms count up."""
    objective = (cell if isinstance(cell, TrainingCell) else cell.target).config.objective
    deviating = sum(getattr(objective, name, False) for name in DEVIATIONS)
    if isinstance(cell, TrainingCell):
        return {"ensemble": 0.97, "members": [0.9, 0.95], "weakest": 0.9, "samples": 100}
    if isinstance(cell, GeometryCell):
        return {**dict.fromkeys(GEOMETRY.values(), 1.0 + deviating), "certified_beta": None}
    if isinstance(cell, TransferCell):
        names, grid = ["0", "1"], [[90, 30], [30, 90]]
        health = dict.fromkeys(
            ("zero_gradients", "monotone_loss", "unchanged", "black", "out_of_range", "largest_norm"), 0.0
        )
        return {
            "surrogates": names, "targets": names, "attack": cell.attack.to_json(),
            "health": [health, health], "mode": "untargeted", "target_label": None, "starred": False,
            "samples": 100, "support": "population", "confidence": 0.95,
            "counts": {"transferred": grid, "fooled": grid, "eligible": grid},
        }  # fmt: skip
    assert isinstance(cell, WhiteBoxCell)
    kept = 40 if deviating > 3 else 60
    survival = {
        "clean": "1" * 100, "robust": "1" * kept + "0" * (100 - kept), "attacks": "any",
        "support": "population", "confidence": 0.95,
    }  # fmt: skip
    health = {
        "zero_gradients": 0.0, "monotone_loss": 0.5, "unchanged": 0.1, "black": 0.0, "out_of_range": 0.0,
        "largest_norm": 0.1,
    }  # fmt: skip
    return {"attack": {}, "survival": survival, "health": health}


def planted(folder, seeds):
    (plan,) = make_plans([ITEM], choose_settings("cpu", "digits"), seeds)
    store = Store(folder)
    for cell in plan.cells:
        record = {"seconds": {"wall": 1.0, "cpu": 1.0}, "environment": {"python": "3.x"}}
        store.save(cell, {"result": planted_result(cell), **record})
    return collect(plan, "cpu", store), store


def test_contrasts_of_planted_results(tmp_path):
    outcome, store = planted(tmp_path / "run", 2)
    found = list(contrasts(outcome.entries))
    assert len(found) == (len(ITEM.columns) - 1) * (len(ITEM.rows) - 1)  # no certified beta was planted
    robust = {each.column.label: each for each in found if each.row.measure == ROBUST}
    assert robust["published code"].answer == "lower"
    assert robust["published code"].difference.value == pytest.approx(-0.2)
    assert robust["with flips"].answer == "open"
    assert robust["without flips"].answer == "open"
    cosine = {each.column.label: each.difference.value for each in found if each.row.measure == "mean |cos|"}
    assert cosine["published code"] == len(DEVIATIONS)
    assert cosine["without flips"] == -1
    sentence = next(each for each in findings(found) if each.startswith("PGD (50) eps=0.1, against TRS"))
    assert sentence.endswith(
        "against TRS of the paper: lower published code (-20.0); higher nowhere; open for 16 of 17."
    )
    values, alone, without = number_tables(outcome)
    assert len(values.rows) == len(ITEM.columns)
    assert (len(alone.rows), len(without.rows)) == (17, 15)
    line = next(line for line in alone.rows if line[0] == "published code")
    assert line[alone.header.index("PGD (50) eps=0.15")].startswith("**-20.0 [")
    assert values.rows[0][values.header.index("PGD (50) eps=0.1")] == "60.0"
    write_pages([outcome], store, tmp_path / "pages")
    assert (tmp_path / "pages" / "deviations.png").stat().st_size > 0
    text = page(outcome, drawn=True)
    assert "lower published code (-20.0)" in text


def test_one_seed_decides_nothing_about_what_has_no_points(tmp_path):
    """A rate of attacked points has an interval over these; a cosine or a transfer matrix has none."""
    outcome, _ = planted(tmp_path, 1)
    found = list(contrasts(outcome.entries))
    assert {each.answer for each in found if each.row.measure != ROBUST} == {"open"}
    decided = [each for each in found if each.answer != "open"]
    assert {each.column.label for each in decided} == {"published code"}
    ends = {each.difference.upper for each in found if each.row.measure == "mean |cos|"}
    assert ends == {math.inf}
    assert all(np.isfinite(each.difference.upper) for each in decided)
    assert outcome.to_json()["contrasts"][0]["difference"]["upper"] == "inf"
    _, alone, _ = number_tables(outcome)
    line = next(line for line in alone.rows if line[0] == "published code")
    assert line[alone.header.index("mean |cos|")] == "+12 [unknown]"
