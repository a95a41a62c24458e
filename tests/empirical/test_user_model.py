"""A user's own module and data from safetensors files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from empirical.data import DataError
from empirical.ensemble import CheckpointError
from empirical.user_model import load_user_data, load_user_model

SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

def number():
    return 3

def wants(width):
    return nn.Linear(width, 2)
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a user's source file, as the working folder."""
    (tmp_path / "own_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_weights_come_back(workplace):
    """The module built by the factory computes what the saved one did."""
    saved = _module()
    save_file(saved.state_dict(), workplace / "net.safetensors")
    loaded = load_user_model(workplace / "net.safetensors", "own_net:build")
    x = torch.rand(5, 4)
    assert torch.equal(loaded(x), saved(x))
    assert not loaded.training


def test_bad_models_are_refused(workplace):
    """Each mistake gets a line that names it."""
    path = workplace / "net.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_user_model(path, "own_net:build")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="foreign"):
        load_user_model(path, "own_net:build")
    save_file({"0.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"1\.weight"):
        load_user_model(path, "own_net:build")
    save_file(
        {name: torch.full_like(value, torch.nan) for name, value in _module().state_dict().items()}, path
    )
    with pytest.raises(CheckpointError, match="finite weights"):
        load_user_model(path, "own_net:build")
    for factory, message in (
        ("own_net", "module:function"),
        ("no_such_net:build", "no_such_net"),
        ("own_net:absent", "found none"),
        ("own_net:number", "torch module, got int"),
        ("own_net:wants", "own_net:wants to build a model, got TypeError: .*width"),
    ):
        with pytest.raises(ValueError, match=message):
            load_user_model(path, factory)


def test_data_comes_back(tmp_path):
    """Samples and labels are read as float32 and int64."""
    x, y = torch.rand(6, 1, 2, 2, dtype=torch.float64), torch.arange(6, dtype=torch.int32) % 2
    save_file({"x": x, "y": y}, tmp_path / "points.safetensors")
    split = load_user_data(tmp_path / "points.safetensors")
    assert torch.equal(split.x, x.float())
    assert torch.equal(split.y, y.long())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.rand(3, 2)}, "x and y"),
        (
            {"x": torch.zeros(3, 2, dtype=torch.int64), "y": torch.arange(3)},
            "floating-point x",
        ),
        ({"x": torch.full((3, 2), torch.nan), "y": torch.arange(3)}, "finite"),
        ({"x": torch.rand(3, 2), "y": torch.arange(4)}, "integer y"),
        ({"x": torch.rand(3, 2), "y": torch.zeros(3)}, "integer y"),
    ],
)
def test_bad_data_is_refused(tmp_path, tensors, message):
    """Each mistake gets a line that names it."""
    save_file(tensors, tmp_path / "points.safetensors")
    with pytest.raises(DataError, match=message):
        load_user_data(tmp_path / "points.safetensors")
