"""The command `estimate-smoothness` as a user runs it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from empirical.config import TrainingConfig
from empirical.models import ModelConfig
from empirical.smoothness.cli import estimate_smoothness
from empirical.smoothness.result import BALLS, SPACE, load_study
from empirical.training import train

SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two members, one epoch on the embedded digits."""
    path = tmp_path_factory.mktemp("trained") / "net.safetensors"
    model = ModelConfig("mlp", "softplus(5)", hidden=(12,))
    train(TrainingConfig(members=2, epochs=1, model=model), output=path, progress=False)
    return path


def test_our_checkpoint_from_end_to_end(checkpoint, tmp_path, capsys):
    """Table, JSON file, figure; a second call measures nothing again."""
    arguments = [
        str(checkpoint),
        "--samples",
        "10",
        "--radius",
        "0.1",
        "--certify",
        "--output",
        str(tmp_path / "a"),
    ]
    assert estimate_smoothness(arguments) == 0
    printed = capsys.readouterr().out
    assert "net/0" in printed
    assert "net/0 / net/1" in printed
    study = load_study(tmp_path / "a" / "study.json")
    assert study.settings.data == "digits"
    for member in study.members:
        for where in (BALLS, SPACE):
            assert 0 < member.smoothness[where].lower <= member.smoothness[where].upper < float("inf")
    assert (tmp_path / "a" / "smoothness-bracket.svg").is_file()
    assert estimate_smoothness([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    # The recorded seconds would differ if anything had been measured anew.
    assert again["members"] == json.loads(json.dumps(study.to_json()))["members"]


def test_a_users_own_model_and_data(tmp_path, monkeypatch, capsys):
    """Weights and points from safetensors files, the module from the user's function."""
    (tmp_path / "own_smooth_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    save_file(net.state_dict(), "mine.safetensors")
    save_file({"x": torch.rand(20, 4), "y": torch.arange(20) % 3}, "points.safetensors")
    arguments = ["mine.safetensors", "--model", "own_smooth_net:build", "--data", "points.safetensors"]
    assert estimate_smoothness([*arguments, "--certify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["data"] == "points.safetensors"
    assert [member["name"] for member in found["members"]] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.safetensors"], "no such file"),
        (["{net}", "--radius", "-1"], "radius"),
        (["{net}", "--samples", "0"], "at least one sample"),
        (["{net}", "--data", "no-such-set"], "no-such-set"),
        (["{net}", "--data", "blobs"], "expected data that"),
        (["{net}", "--model", "collections:OrderedDict", "--data", "digits"], "torch module"),
        (["{net}", "--model", "nowhere:build"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    """Exit status 2 and one line, before any measurement."""
    monkeypatch.chdir(tmp_path)
    assert estimate_smoothness([part.format(net=checkpoint) for part in arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.rglob("study.json"))


def test_a_folder_with_another_study_is_left_alone(checkpoint, tmp_path, capsys):
    """Other settings do not overwrite what was measured."""
    arguments = [str(checkpoint), "--samples", "5", "--radius", "0", "--output", str(tmp_path)]
    assert estimate_smoothness(arguments) == 0
    before = (tmp_path / "study.json").read_bytes()
    assert estimate_smoothness([*arguments, "--seed", "1"]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert (tmp_path / "study.json").read_bytes() == before
