"""Files of a user's own that register something: run once, or refused with a line that says why."""

import sys
from dataclasses import dataclass

import pytest
import torch

from empirical import attacks, cli, data, objectives
from empirical.comparison.pipeline import transfer_attacks
from empirical.data import DataError, Dataset, Split, load_dataset, register_dataset
from empirical.objectives import Parameters, Vanilla, register
from empirical.plugins import PluginError, load_plugins
from empirical.presets import named_preset, preset

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from empirical.objectives import Vanilla, register

@register
@dataclass(frozen=True)
class Own(Vanilla):
    name: ClassVar[str] = "own"
    weight: float = 2.0
"""


@pytest.fixture(autouse=True)
def forgotten():
    """What a test registers is unknown to the next."""
    registries = (objectives._METHODS, data._LOADERS, attacks.run._READERS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)
    for name in [name for name in sys.modules if name.startswith("plugin:")]:
        del sys.modules[name]


def two_points(data_root, download, seed):
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    return Dataset("two-points", Split(x, y), Split(x, y), classes=2)


def test_a_method_from_a_file_has_a_preset_on_every_base(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    with pytest.raises(ValueError, match="expected a preset among"):
        preset("digits", "own")
    load_plugins([file, file])
    load_plugins([file])
    config = preset("fashion-mnist", "own")
    assert config.objective.weight == 2.0
    assert config.model == named_preset("fashion-mnist-vanilla").model
    assert named_preset("digits-0-1-own").dataset == "digits-0-1"
    assert named_preset("digits-trs").objective.name == "trs"


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for folder, word in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(OWN.replace('"own"', f'"{word}"'))
    load_plugins([tmp_path / "a" / "own.py", tmp_path / "b" / "own.py"])
    assert {"first", "second"} <= objectives.OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "found none at"),
        ("1 / 0", "own.py failed: ZeroDivisionError"),
        ("def f(:", "own.py failed: SyntaxError"),
        (OWN.replace('"own"', '"trs"'), "got 'trs', which is taken"),
        (OWN.replace("float = 2.0", "float"), "own: expected a default for every parameter, got none for"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(text, words, tmp_path, capsys):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    assert cli.train_ensemble(["--plugin", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    with pytest.raises(PluginError):
        load_plugins([file])


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "own.txt").write_text(OWN)
    with pytest.raises(PluginError, match=r"expected a Python file \(\.py\)"):
        load_plugins([tmp_path / "own.txt"])


def test_a_data_set_of_ones_own_takes_one_registration():
    with pytest.raises(DataError, match="expected a data set among"):
        load_dataset("two-points")
    register_dataset("two-points", two_points)
    assert len(load_dataset("two-points").train) == 2
    with pytest.raises(ValueError, match="got 'two-points', which is taken"):
        register_dataset("two-points", two_points)
    register_dataset("another", two_points)
    with pytest.raises(DataError, match="named 'another', got one named 'two-points'"):
        load_dataset("another")


def test_a_method_without_a_default_is_refused():
    @dataclass(frozen=True)
    class Bare(Parameters):
        name = "bare"
        weight: float

    with pytest.raises(
        TypeError, match="expected a default for every parameter, got none for \\['weight'\\]"
    ):
        register(Bare)
    assert "bare" not in objectives.OBJECTIVES
    assert objectives.OBJECTIVES["vanilla"] is Vanilla


@dataclass(frozen=True)
class Idle:
    """An attack that does nothing, with what a comparison sets."""

    norm: str = "l2"
    eps: float = 0.1
    seed: int = 0
    patience: int = 3

    @classmethod
    def from_json(cls, fields):
        return cls(**{name: value for name, value in fields.items() if name != "method"})


def test_a_registered_attack_can_stand_in_a_comparison():
    with pytest.raises(ValueError, match=r"expected attacks among .*, got 'idle'"):
        transfer_attacks(["pgd", "idle"], 0)
    attacks.register_attack("idle", Idle.from_json)
    assert transfer_attacks(["joint", "idle"], 7)["idle"] == Idle(seed=7)
    with pytest.raises(ValueError, match="an attack with fields norm, eps and seed, got 'cw' without"):
        transfer_attacks(["cw"], 0)
    with pytest.raises(ValueError, match="expected an attack on single members, got joint"):
        transfer_attacks(["joint"], 0)
