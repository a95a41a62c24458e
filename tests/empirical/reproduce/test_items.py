"""Items, scales and the paper's numbers: that they fit one another."""

import csv
from dataclasses import replace
from importlib.resources import files

import pytest

from empirical import data
from empirical.attacks import Attack, CarliniWagner, ball_attack
from empirical.presets import PRESETS, preset
from empirical.reproduce.claims import claims_on
from empirical.reproduce.items import ITEMS, BlackBox, Column, WhiteBox, Worst, choose_items
from empirical.reproduce.plan import make_plans
from empirical.reproduce.printed import TABLES, printed_numbers
from empirical.reproduce.scales import SCALES, SURROGATE_SEED, choose_settings, differences


@pytest.mark.parametrize("item", [item for item in ITEMS.values() if item.tables], ids=lambda item: item.name)
def test_every_number_of_the_paper_has_a_protocol_and_every_entry_a_number(item):
    printed = {place for table in item.tables for place in printed_numbers(table)}
    entries = {
        (row.dataset, row.label, row.parameter, column.label)
        for row in item.rows
        for column in item.columns
        if not isinstance(row.protocol, Worst)  # the paper has no such row
    }
    assert printed == entries


def test_counts_of_the_papers_numbers():
    """Rows times columns as printed; no line was lost or read twice."""
    counts = {table: len(printed_numbers(table)) for table in TABLES}
    assert counts == {
        "table-1": 144, "table-2": 144, "table-3": 48, "table-4": 60,
        "table-5": 40, "table-6": 40, "table-7": 128, "table-8": 64,
    }  # fmt: skip
    for table in TABLES:
        lines = (files("empirical.reproduce") / "paper" / f"{table}.csv").read_text().splitlines()
        assert len(list(csv.DictReader(lines))) == counts[table]


@pytest.mark.parametrize(
    ("table", "place", "percent"),
    [
        ("table-1", ("MNIST", "PGD (50)", "eps=0.15", "TRS"), 85.1),
        ("table-2", ("CIFAR-10", "CW", "c=0.01", "AdaBoost"), 36.2),
        ("table-3", ("MNIST", "PGD (1000)", "eps=0.1", "ADP"), 1.6),
        ("table-4", ("CIFAR-10", "black box", "eps=0.07", "TRS+AdvT"), 81.6),
        ("table-5", ("MNIST", "clean", "", "GAL"), 98.7),
        ("table-6", ("CIFAR-10", "black box", "eps=0.06", "TRS"), 22.4),
        ("table-7", ("MNIST", "EAD", "c=1.0", "TRS 500/2.5/0.4"), 2.6),
        ("table-8", ("CIFAR-100", "APGD-DLR", "eps=0.01", "TRS"), 22.2),
    ],
)
def test_numbers_are_the_papers(table, place, percent):
    assert printed_numbers(table)[place].percent == percent


def test_doubts_are_noted():
    assert "GST-TRS" in printed_numbers("table-8")["CIFAR-100", "EAD", "c=5.0", "TRS"].note
    assert "Table 7" in printed_numbers("table-1")["MNIST", "EAD", "c=5.0", "TRS"].note
    with pytest.raises(ValueError, match="table-9"):
        printed_numbers("table-9")


def test_rows_run_what_they_are_called():
    """The attack behind a label has the label's radius and steps."""
    for item in ITEMS.values():
        for row in item.rows:
            if isinstance(row.protocol, WhiteBox):
                attack, (name, value) = row.protocol.attack, row.parameter.split("=")
                assert getattr(attack, name) == float(value)
                if "(" in row.label:
                    assert f"({attack.steps})" in row.label
            elif isinstance(row.protocol, BlackBox):
                assert row.parameter == f"eps={row.protocol.eps:g}"


def test_names_of_items_are_checked():
    assert [item.name for item in choose_items(["figure-3", "table-1", "table-1"])] == ["table-1", "figure-3"]
    assert len(choose_items(["all"])) == 11
    assert choose_items(["all", "deviations"]) == tuple(ITEMS.values())
    with pytest.raises(ValueError, match="table-9"):
        choose_items(["table-1", "table-9"])


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_of_every_scale_can_be_described(scale):
    """Presets exist, attacks are admissible, keys tell cells apart."""
    for setting in SCALES[scale]:
        plans = make_plans(ITEMS.values(), choose_settings(scale, setting.dataset), 2)
        assert plans
        for plan in plans:
            before: set[str] = set()
            for cell in plan.cells:
                assert cell.key not in before
                assert before.issuperset(need.key for need in cell.needs)
                before.add(cell.key)


def test_radii_are_mapped_and_weights_are_not():
    (digits,) = {s.dataset: s for s in choose_settings("cpu", "digits").values()}.values()
    assert digits.attack(Attack("pgd", eps=0.1), "MNIST").eps == 0.1
    assert digits.attack(Attack("pgd", eps=0.03), "CIFAR-10").eps == 0.15
    assert digits.attack(CarliniWagner(0.1), "CIFAR-10").c == 0.1
    assert {attack.eps for attack in digits.attempts(0.07, "CIFAR-10")} == {0.35}
    assert len(digits.attempts(0.07, "CIFAR-10")) == 6


def test_the_papers_scale_is_the_papers():
    """Own data sets, factor 1, all steps and starts; nothing reduced."""
    settings = choose_settings("paper", None)
    assert {name: setting.dataset for name, setting in settings.items()} == {
        "MNIST": "mnist", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100",
    }  # fmt: skip
    for name, setting in settings.items():
        assert differences(setting) == {}
        assert setting.radius_factors == {name: 1.0}
        attack = Attack("pgd", eps=0.1, restarts=5, on_failure="last")
        assert setting.attack(attack, name) == attack
    config = settings["MNIST"].training(Column("TRS", "trs"), 3)
    assert config.objective == PRESETS["paper-mnist-trs"].objective
    assert (config.epochs, config.milestones, config.seed) == (120, (40, 80), 3)


def test_variants_and_surrogates():
    """Table 7's factors scale the weights of the scale's own TRS; surrogates share no seed with targets."""
    setting = choose_settings("cpu", "digits")["MNIST"]
    last = setting.training(ITEMS["table-7"].columns[-1], 1).objective
    own = preset("digits", "trs").objective
    assert last.lambda_a == pytest.approx(5 * own.lambda_a)
    assert last.lambda_b == pytest.approx(4 * own.lambda_b)
    assert last.delta_final == pytest.approx(own.delta_final * 4 / 3)
    assert last.delta_initial == own.delta_initial
    other = choose_settings("cpu", "mnist5k")["MNIST"].training(Column("TRS", "trs"), 0)
    assert (other.model.hidden, other.epochs, other.dataset) == ((128, 128), 10, "mnist5k")
    assert [config.members for config in setting.surrogates(2)] == [3, 5, 8]
    assert {config.seed for config in setting.surrogates(2)} == {SURROGATE_SEED + 2}


def test_scales_and_data_sets_are_checked():
    with pytest.raises(ValueError, match="expected a scale"):
        choose_settings("big", None)
    with pytest.raises(ValueError, match="expected a data set of scale cpu"):
        choose_settings("cpu", "cifar10")
    with pytest.raises(ValueError, match="at least one seed"):
        make_plans(ITEMS.values(), choose_settings("smoke", None), 0)


def test_items_share_cells():
    """Figure 3 needs nothing beyond Tables 5 and 6, and Table 3's 50 steps are Table 1's."""
    keys = {
        plan.item.name: {cell.key for cell in plan.cells}
        for plan in make_plans(ITEMS.values(), choose_settings("cpu", "digits"), 1)
    }
    assert keys["figure-3"] == keys["table-5"] | keys["table-6"]
    assert sum(key.startswith("white-box") for key in keys["table-3"] & keys["table-1"]) == 8


def test_own_methods_and_attacks_stand_beside_the_papers_and_change_nothing_of_them():
    """Cells and claims of the paper's stay; the new ones are there at every radius, mapped as well."""
    settings = choose_settings("cpu", None)
    for name in ("table-2", "table-6"):
        item = ITEMS[name]
        own = item.with_own(["gradient-penalty", "trs"], {"mine": ball_attack("mim")})
        assert own.papers == item
        assert claims_on(own.papers) == claims_on(item)
        assert [column.label for column in own.columns if column.own] == ["gradient-penalty"]
        (before,), (after,) = make_plans([item], settings, 1), make_plans([own], settings, 1)
        assert {cell.key for cell in before.cells} < {cell.key for cell in after.cells}
    rows = [row for row in ITEMS["table-2"].with_own([], {"mine": ball_attack("mim")}).rows if row.own]
    assert {row.parameter for row in rows} == {"eps=0.01", "eps=0.02"}
    (row,) = (row for row in rows if row.parameter == "eps=0.01")
    attack = settings["CIFAR-10"].attack(row.protocol.attack, "CIFAR-10")
    assert (attack.norm, attack.eps, attack.method) == ("linf", 0.05, "mim")
    with pytest.raises(ValueError, match=r"expected methods among .* got 'tsr'"):
        ITEMS["table-2"].with_own(["tsr"], {})


def test_a_data_set_of_ones_own_is_treated_as_the_first_of_a_scale(monkeypatch):
    monkeypatch.setitem(data._LOADERS, "mine", data._LOADERS["digits"])
    first = SCALES["cpu"][0]
    assert choose_settings("cpu", "mine") == dict.fromkeys(
        first.radius_factors, replace(first, dataset="mine")
    )
    assert choose_settings("cpu", "mine")["MNIST"].training(ITEMS["table-1"].columns[0], 0).dataset == "mine"
    with pytest.raises(ValueError, match="expected a data set of scale cpu"):
        choose_settings("cpu", "cifar10")
