"""The attacks of the paper's tables, against what section 6.1 and the tables print."""

import pytest

from empirical.attacks import Attack, CarliniWagner, ElasticNet, attack_from_json
from empirical.attacks.presets import (
    ATTACK_PRESETS,
    BLACK_BOX_EPS,
    BLACK_BOX_MEMBERS,
    FIGURE_4,
    TABLES,
    attack_preset,
    black_box_attacks,
    convergence_attack,
)


def rows(table: str) -> list[tuple[str, str]]:
    return [(ATTACK_PRESETS[name].row, ATTACK_PRESETS[name].parameter) for name in TABLES[table]]


@pytest.mark.parametrize(
    ("table", "fgsm", "iterative", "cw", "ead"),
    [
        ("table-1", ("0.1", "0.2"), ("0.1", "0.15"), ("0.1", "1.0"), ("5.0", "10.0")),
        ("table-7", ("0.1", "0.2"), ("0.1", "0.15"), ("0.1", "1.0"), ("1.0", "5.0")),
        ("table-2", ("0.02", "0.04"), ("0.01", "0.02"), ("0.01", "0.1"), ("1.0", "5.0")),
        ("table-8", ("0.02", "0.04"), ("0.01", "0.02"), ("0.01", "0.1"), ("1.0", "5.0")),
    ],
)
def test_white_box_tables_have_the_printed_rows(
    table: str, fgsm: tuple, iterative: tuple, cw: tuple, ead: tuple
) -> None:
    """Sixteen rows each, as printed."""
    expected = {("FGSM", f"eps={eps}") for eps in fgsm}
    for name in ("BIM (50)", "PGD (50)", "MIM (50)", "APGD-DLR", "APGD-CE"):
        expected |= {(name, f"eps={eps}") for eps in iterative}
    expected |= {("CW", f"c={c}") for c in cw} | {("EAD", f"c={c}") for c in ead}
    assert set(rows(table)) == expected
    assert len(rows(table)) == 16


@pytest.mark.parametrize(("table", "eps"), [("table-4-mnist", "0.15"), ("table-4-cifar10", "0.02")])
def test_table_4_has_the_four_textbook_attacks(table: str, eps: str) -> None:
    """Two radii for each of FGSM, BIM, PGD, MIM."""
    assert len(rows(table)) == 8
    assert {row for row, _ in rows(table)} == {"FGSM", "BIM (50)", "PGD (50)", "MIM (50)"}
    assert ("PGD (50)", f"eps={eps}") in rows(table)


def test_parameters_of_section_6_1() -> None:
    """Steps, step sizes, starts, constants."""
    assert attack_preset("mnist-pgd-0.1").attack == Attack(
        "pgd", "linf", 0.1, 50, restarts=5, on_failure="last"
    )
    for method in ("bim", "pgd", "mim"):
        attack = attack_preset(f"cifar10-{method}-0.02").attack
        assert attack.schedule == (50, 0.02 / 5)
        assert attack.norm == "linf"
    assert attack_preset("mnist-apgd-dlr-0.15").attack == Attack("apgd", eps=0.15, steps=100, loss="dlr")
    assert attack_preset("mnist-cw-0.1").attack == CarliniWagner(0.1, steps=1000, confidence=0.1)
    assert attack_preset("mnist-ead-10").attack == ElasticNet(10.0, steps=1000, confidence=0.1, beta=0.01)
    assert convergence_attack(0.15, 500) == Attack("pgd", eps=0.15, steps=500, restarts=5, on_failure="last")
    assert {name: attack.eps for name, attack in FIGURE_4.items()} == {"mnist": 0.3, "cifar10": 0.04}
    assert all(attack.schedule[0] == 50 for attack in FIGURE_4.values())


def test_eighteen_black_box_attempts() -> None:
    """Two losses from three starts on three surrogates; the starts differ, the failures are kept."""
    attempts = black_box_attacks(0.2)
    assert len(attempts) * len(BLACK_BOX_MEMBERS) == 18
    assert len({(attack.loss, attack.seed) for attack in attempts}) == 6
    assert {attack.loss for attack in attempts} == {"ce", "margin"}
    assert {attack.schedule for attack in attempts} == {(50, 0.2 / 5)}
    assert {attack.on_failure for attack in attempts} == {"last"}
    assert BLACK_BOX_EPS["mnist"][0] == 0.1
    assert len(BLACK_BOX_EPS["mnist"]) == len(BLACK_BOX_EPS["cifar10"]) == 7


def test_every_preset_can_be_written_and_read() -> None:
    """JSON and back."""
    for preset in ATTACK_PRESETS.values():
        assert attack_from_json(preset.attack.to_json()) == preset.attack


def test_an_unknown_preset_is_refused() -> None:
    """With the known ones in the message."""
    with pytest.raises(ValueError, match=r"attack preset among mnist-fgsm-0.1, .*, got 'mnist-jsma'"):
        attack_preset("mnist-jsma")
