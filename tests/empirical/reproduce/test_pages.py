"""Pages, CSV and JSON of planted results."""

import csv
import io
import json
import shutil

import numpy as np
import pytest

from empirical.attacks import Attack
from empirical.reproduce import tables
from empirical.reproduce.cells import BlackBoxCell, TrainingCell, TransferCell, WhiteBoxCell
from empirical.reproduce.items import ITEMS, WORST
from empirical.reproduce.pages import page, write_pages
from empirical.reproduce.plan import make_plans
from empirical.reproduce.queue import Store
from empirical.reproduce.scales import choose_settings
from empirical.reproduce.tables import claim_table, collect, side_by_side

HEALTHY = {
    "zero_gradients": 0.0, "monotone_loss": 0.5, "unchanged": 0.1, "black": 0.0, "out_of_range": 0.0,
    "largest_norm": 0.1,
}  # fmt: skip
RATES = {"trs": 0.8, "cos-only": 0.25}


def plant(plan, store, **health):
    """Results of every cell: TRS keeps 80 of 100 points, Cos-only 25, the others half; GAL is ill."""
    for cell in plan.cells:
        if isinstance(cell, TrainingCell):
            accuracy = {"ensemble": 0.97, "members": [0.9, 0.95], "weakest": 0.9 - cell.config.seed / 100}
            result = {**accuracy, "samples": 100}
        else:
            assert isinstance(cell, WhiteBoxCell)
            method = cell.target.config.objective.name
            robust = np.arange(100) < 100 * RATES.get(method, 0.5) + cell.target.config.seed
            survival = {
                "clean": "1" * 100, "robust": "".join("01"[each] for each in robust.astype(int)),
                "attacks": "any", "support": "population", "confidence": 0.95,
            }  # fmt: skip
            ill = health if method == "gal" else {}
            result = {"attack": {}, "survival": survival, "health": {**HEALTHY, **ill}}
        record = {"result": result, "seconds": {"wall": 2.0, "cpu": 1.5}, "environment": {"python": "3.x"}}
        store.save(cell, record)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def outcome(run):
    """Table 2 on digits, three seeds."""
    (plan,) = make_plans([ITEMS["table-2"]], choose_settings("cpu", "digits"), 3)
    store = Store(run)
    plant(plan, store, zero_gradients=0.4)
    return collect(plan, "cpu", store)


def test_paper_and_measured_stand_side_by_side(outcome):
    """With the radius that was measured, and what it was measured on."""
    table = side_by_side(outcome)
    lines = {row[1]: row for row in table.rows}
    line = lines["PGD (50) eps=0.01"]
    assert line[0] == "CIFAR-10"
    assert line[2].startswith("digits: PGD-50")
    assert "eps 0.05" in line[2]
    assert line[-1].startswith("47.3 / 81.0 [")
    assert line[table.header.index("Cos-only")].startswith("0.0 / 26.0 [")
    worst = lines[f"{WORST} eps=0.01"]
    assert worst[-1].startswith("81.0 [")  # the paper has no such number
    assert "5 attacks, linf 0.05" in worst[2]


def test_claims_of_planted_results(outcome):
    answers = {row[1]: (row[0], row[3]) for row in claim_table(outcome).rows}
    assert len(answers) == 6
    found = {words.split(", ", 1)[1][:32]: answer for words, answer in answers.items()}
    assert found == {
        "TRS is the most robust under BIM": ("holds", "digits"),
        "TRS is the most robust under CW ": ("holds", "digits"),
        "TRS is farther ahead of DVERGE u": ("undecided", "digits"),  # 30 points under every attack
        "TRS is less robust than DVERGE u": ("fails", "digits"),
        "Cos-only is much weaker than TRS": ("holds", "digits"),
        "Cos-l2 is weaker than TRS under ": ("holds", "digits"),
    }


def test_page_says_how_it_was_measured(outcome):
    text = page(outcome, drawn=False)
    assert "Scale: **cpu**" in text
    assert "The paper's CIFAR-10 is measured on **digits**, radii of the paper times 5, 3 seeds" in text
    assert "Not complete" not in text
    assert "| digits | TRS | 97.0 | 88.0 |" in text
    assert "- PGD-50 x2, linf eps 0.05: 40% to 40% of the gradients were zero, in 3 of 27 runs" in text
    assert "python 3.x" in text
    assert "onecycle" in text
    assert f"{1.5 * len(outcome.plan.cells):.0f} s" in text
    assert "no number" not in text


def test_an_incomplete_page_says_so(outcome, run, tmp_path):
    store = Store(shutil.copytree(run, tmp_path / "copy"))
    cells = [cell for cell in outcome.plan.cells if isinstance(cell, WhiteBoxCell)]
    for cell in cells[:2]:
        (store.cells / f"{cell.key}.json").unlink()
    partial = collect(outcome.plan, "cpu", store)
    assert "**Not complete**: 2 cells have no result yet." in page(partial, drawn=False)
    assert len(partial.entries) == len(outcome.entries)


def test_files_hold_every_number(outcome, run, tmp_path):
    """CSV and JSON agree with one another and name paper, measured, interval and scale."""
    write_pages([outcome], Store(run), tmp_path / "pages")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "pages" / "table-2.csv").read_text())))
    found = json.loads((tmp_path / "pages" / "table-2.json").read_text())
    assert len(lines) == len(found["entries"]) == 144 + 2 * 9
    line = next(each for each in lines if (each["row"], each["column"]) == ("CW", "TRS"))
    assert (float(line["paper"]), float(line["measured"])) == (75.8, 81.0)
    assert float(line["lower"]) < 81 < float(line["upper"])
    assert line["scale"] == "cpu"
    assert line["by_seed"] == "0:80.0 1:81.0 2:82.0"
    entry = next(each for each in found["entries"] if (each["row"], each["column"]) == ("CW", "TRS"))
    assert entry["by_seed"] == {"0": 80.0, "1": 81.0, "2": 82.0}
    assert {claim["answer"] for claim in found["claims"]} == {"holds", "fails", "undecided"}
    index = (tmp_path / "pages" / "README.md").read_text()
    assert "[Table 2](table-2.md)" in index
    (line,) = (each for each in index.splitlines() if "TRS is less robust than DVERGE" in each)
    assert line.startswith("| fails | On CIFAR-10,")
    assert line.endswith("| digits | [Table 2](table-2.md) |")
    assert "| digits | cpu | 3 |" in index


def test_radii_of_a_worst_case_are_one():
    rows = [row for item in ITEMS.values() for row in item.rows if row.label == WORST]
    assert rows
    assert all(f"eps={row.protocol.eps:g}" == row.parameter for row in rows)


def test_health_of_every_kind_of_attack_is_looked_at():
    """One attempt on a surrogate is black, one attack on a member has no gradient: both are named."""
    plans = make_plans([ITEMS["table-5"], ITEMS["figure-4"]], choose_settings("smoke", None), 1)
    records = {}
    for plan in plans:
        for cell in plan.cells:
            attack = Attack("pgd", eps=0.1, on_failure="last").to_json()
            if isinstance(cell, BlackBoxCell):
                attempts = [{"attack": attack, "health": {**HEALTHY, "black": black}} for black in (0.0, 0.5)]
                records[cell] = {"result": {"attempts": attempts}}
            elif isinstance(cell, TransferCell):
                records[cell] = {"result": {"health": [{**HEALTHY, "zero_gradients": 0.9}, HEALTHY, HEALTHY]}}
    assert records
    found = list(tables._warnings(records))
    black, members = (
        sum(isinstance(cell, kind) for cell in records) for kind in (BlackBoxCell, TransferCell)
    )
    assert (
        f"PGD-50, linf eps 0.1 on a surrogate: black images or invalid pixels, in {black} of {2 * black} runs"
        in found
    )
    assert sum("on a member: 90% to 90% of the gradients were zero" in each for each in found) == 2
    assert members == 14
