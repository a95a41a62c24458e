import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

import empirical.files
from empirical.ensemble import (
    SCHEMA,
    CheckpointError,
    Ensemble,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from empirical.models import ModelConfig, build_model

CONFIG = ModelConfig("mlp", "tanh", (5,))


def make_ensemble(seed=0, members=2, config=CONFIG, shape=(1, 4, 4)):
    torch.manual_seed(seed)
    return Ensemble(
        build_model(config, shape=shape, classes=3, mean=(0.2,), std=(0.7,)) for _ in range(members)
    ).eval()


@pytest.fixture
def saved(tmp_path):
    """A checkpoint on disk: its path, the ensemble, a batch."""
    path, ensemble = tmp_path / "trs.safetensors", make_ensemble()
    save_checkpoint(path, ensemble, {"dataset": "digits", "accuracy": [0.5, 0.75]})
    return path, ensemble, torch.rand(6, 1, 4, 4)


# The ensemble


def test_forward_is_the_log_of_the_mean_probability():
    """The vote is the mean of the members' softmax."""
    ensemble, x = make_ensemble(members=3), torch.rand(4, 1, 4, 4)
    mean = torch.stack([member(x).softmax(1) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble(x).exp(), mean)
    torch.testing.assert_close(ensemble(x).exp().sum(1), torch.ones(4))


def test_forward_stays_finite_where_probabilities_underflow():
    """Logits far apart keep finite log probabilities and gradients."""
    first, second = nn.Linear(1, 2), nn.Linear(1, 2)
    for layer, logits in ((first, [0.0, 1000.0]), (second, [0.0, 400.0])):
        layer.weight.data = torch.zeros(2, 1)
        layer.bias.data = torch.tensor(logits)
    x = torch.ones(1, 1, requires_grad=True)
    result = Ensemble([first, second])(x)
    torch.testing.assert_close(result, torch.tensor([[-400.0 - torch.tensor(2.0).log().item(), 0.0]]))
    result[0, 0].backward()
    assert first.bias.grad.isfinite().all()
    assert second.bias.grad.isfinite().all()


def test_one_member_votes_alone():
    """An ensemble of one gives its member's log softmax."""
    ensemble, x = make_ensemble(members=1), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(ensemble(x), ensemble.members[0](x).log_softmax(1))


def test_members_are_registered():
    """Mode and parameters of the members follow the ensemble."""
    ensemble = make_ensemble(config=ModelConfig("resnet8"), shape=(1, 8, 8))
    assert not any(module.training for module in ensemble.modules())
    assert sum(1 for _ in ensemble.parameters()) == 2 * sum(1 for _ in ensemble.members[0].parameters())


def test_bad_members():
    """No members, or members of different inputs or classes, are refused."""
    with pytest.raises(ValueError, match="at least one member in an ensemble, got none"):
        Ensemble([])
    other = build_model(CONFIG, shape=(1, 4, 4), classes=4)
    with pytest.raises(ValueError, match=r"one shape and number of classes, got .*4"):
        Ensemble([*make_ensemble().members, other])


# Checkpoints that are as they should be


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("linear"),
        CONFIG,
        ModelConfig("lenet", "relu"),
        ModelConfig("lenet", "silu"),
        ModelConfig("resnet8", "softplus(0.5)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, config, dtype):
    """What is loaded computes the same, bit for bit, in the same precision, batch statistics included."""
    ensemble = make_ensemble(config=config, shape=(1, 8, 8)).to(dtype)
    x = torch.rand(5, 1, 8, 8, dtype=dtype)
    ensemble.train()(x)
    ensemble.eval()
    path = tmp_path / "sub folder" / "a.b.safetensors"
    metadata = {
        "dataset": "digits",
        "training": {"seed": 3, "rates": [0.1, 1e-300]},
        "note": "é",
        "none": None,
    }
    save_checkpoint(path, ensemble, metadata)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.b.json", "a.b.safetensors"]
    loaded, loaded_metadata = load_checkpoint(path)
    assert loaded_metadata == metadata
    assert torch.equal(loaded(x), ensemble(x))
    assert [member.config for member in loaded.members] == [config, config]
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_metadata_comes_back_as_json_has_it(saved):
    """Tuples return as lists and number keys as strings, without upsetting the digest."""
    path, ensemble, _ = saved
    save_checkpoint(path, ensemble, {"hidden": (5, 3), "loss at epoch": {2: 0.5, 10: 0.25}})
    assert load_checkpoint(path)[1] == {"hidden": [5, 3], "loss at epoch": {"2": 0.5, "10": 0.25}}


def test_members_may_differ_in_architecture(tmp_path):
    """Each member is rebuilt as it was."""
    ensemble = Ensemble(
        build_model(config, shape=(1, 8, 8), classes=3)
        for config in (ModelConfig("linear"), ModelConfig("lenet"))
    )
    save_checkpoint(tmp_path / "mixed.safetensors", ensemble, {})
    loaded, _ = load_checkpoint(tmp_path / "mixed.safetensors")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), ensemble(x))


def test_loading_draws_no_random_numbers(saved):
    """The global generator is left where it was."""
    before = torch.get_rng_state()
    load_checkpoint(saved[0])
    assert torch.equal(before, torch.get_rng_state())


def test_loaded_weights_do_not_depend_on_the_file(saved):
    """Overwriting the file in place does not reach an ensemble that was loaded from it."""
    path, ensemble, x = saved
    loaded, _ = load_checkpoint(path)
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded(x), ensemble(x))


def test_sidecar_reads_well(saved):
    """The sidecar alone tells a reader schema, members and metadata."""
    content = json.loads(saved[0].with_suffix(".json").read_text())
    assert content["schema"] == SCHEMA
    assert content["members"][0]["config"] == {"architecture": "mlp", "activation": "tanh", "hidden": [5]}
    assert (content["members"][0]["shape"], content["members"][0]["classes"]) == ([1, 4, 4], 3)
    assert content["metadata"]["accuracy"] == [0.5, 0.75]
    assert "replaces" not in content


def test_tensors_round_trip(tmp_path):
    """Named tensors of any type and layout come back as they were, with their metadata."""
    path = tmp_path / "state.safetensors"
    square = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "transposed": square.T,
        "shared": square,
        "step": torch.tensor(7),
        "generator": torch.get_rng_state(),
        "empty": torch.zeros(0, 3),
        "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
    }
    save_tensors(path, tensors, {"epoch": 3, "betas": (0.9, 0.999)})
    loaded, metadata = load_tensors(path)
    assert metadata == {"epoch": 3, "betas": [0.9, 0.999]}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_round_trip_across_devices(saved, tmp_path):
    """What was saved from a GPU loads on the CPU, and the other way round."""
    path, ensemble, x = saved
    on_gpu, _ = load_checkpoint(path, device="cuda")
    assert all(tensor.is_cuda for tensor in on_gpu.state_dict().values())
    save_checkpoint(tmp_path / "gpu.safetensors", on_gpu, {})
    assert torch.equal(load_checkpoint(tmp_path / "gpu.safetensors")[0](x), ensemble(x))


# Crashes


def crash_at_write(monkeypatch, number):
    """Make the `number`-th file fail to take its name."""
    replace, calls = os.replace, []

    def counted(source, destination):
        calls.append(destination)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(empirical.files.os, "replace", counted)


@pytest.mark.parametrize(("crash", "survivor"), [(1, "old"), (2, "old"), (3, "new")])
def test_crash_while_saving_leaves_a_checkpoint(saved, monkeypatch, crash, survivor):
    """Wherever a save stops, the previous checkpoint or the new one loads whole; a retry succeeds."""
    path, old, x = saved
    new = make_ensemble(seed=1)
    with monkeypatch.context() as patch:
        crash_at_write(patch, crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, new, {"dataset": "new"})
    loaded, metadata = load_checkpoint(path)
    assert torch.equal(loaded(x), (new if survivor == "new" else old)(x))
    assert metadata["dataset"] == {"new": "new", "old": "digits"}[survivor]
    assert len(list(path.parent.iterdir())) == 2
    save_checkpoint(path, new, {"dataset": "again"})
    assert torch.equal(load_checkpoint(path)[0](x), new(x))


def test_crash_while_only_the_metadata_changes(saved, monkeypatch):
    """Equal weights under new metadata are still the previous checkpoint until they are written."""
    path, old, _ = saved
    with monkeypatch.context() as patch:
        crash_at_write(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, old, {"dataset": "new"})
    assert load_checkpoint(path)[1]["dataset"] == "digits"


def test_crash_of_the_first_save(tmp_path, monkeypatch):
    """A sidecar without weights is reported as such."""
    with monkeypatch.context() as patch:
        crash_at_write(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "a.safetensors", make_ensemble(), {})
    with pytest.raises(CheckpointError, match="found no such file"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_save_over_a_corrupt_checkpoint(saved):
    """A broken file does not stand in the way of a new one."""
    path, ensemble, x = saved
    path.write_bytes(b"broken")
    save_checkpoint(path, ensemble, {})
    assert torch.equal(load_checkpoint(path)[0](x), ensemble(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_do_not_replace_good_ones(saved, value):
    """Saving NaN or infinite weights is refused, and the checkpoint before it stays."""
    path, ensemble, x = saved
    broken = make_ensemble()
    broken.members[1][2].weight.data[0, 0] = value
    with pytest.raises(
        CheckpointError, match=r"finite weights to save, got NaN or infinity in members.1.2.weight"
    ):
        save_checkpoint(path, broken, {})
    assert torch.equal(load_checkpoint(path)[0](x), ensemble(x))


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (object(), TypeError)])
def test_bad_metadata_does_not_replace_good(saved, value, error):
    """Metadata that JSON cannot hold is refused before anything is written."""
    path, ensemble, _ = saved
    with pytest.raises(error, match="JSON"):
        save_checkpoint(path, ensemble, {"loss": value})
    assert load_checkpoint(path)[1]["dataset"] == "digits"


def test_foreign_members_and_names_are_refused(tmp_path):
    """Only what can be rebuilt is saved, under the name that is looked for."""
    with pytest.raises(CheckpointError, match="members made by build_model, got Linear"):
        save_checkpoint(tmp_path / "a.safetensors", Ensemble([nn.Linear(2, 2)]), {})
    with pytest.raises(CheckpointError, match=r"ends in .safetensors, got .*a.pt"):
        save_checkpoint(tmp_path / "a.pt", make_ensemble(), {})
    assert not list(tmp_path.iterdir())


# Files that are not as they should be


def refuses(path, message):
    """Loading fails with one line that matches."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_files(saved, tmp_path):
    """Missing weights, a missing sidecar, a folder and a wrong suffix are named."""
    path = saved[0]
    refuses(
        tmp_path / "other.safetensors", "expected a checkpoint at .*other.safetensors, found no such file"
    )
    refuses(tmp_path / "weights.pt", "ends in .safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refuses(tmp_path / "folder.safetensors", "found no such file")
    path.with_suffix(".json").unlink()
    refuses(path, "expected the sidecar .*trs.json beside trs.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, -1])
def test_truncated(saved, keep):
    """A file cut off anywhere is not loaded."""
    path = saved[0]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refuses(path, "expected a safetensors file at .* truncated or foreign")


def test_every_changed_byte_is_noticed(saved):
    """A single flipped bit anywhere in the file, header or weights, is an error and never a wrong model."""
    path = saved[0]
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_pickle_is_not_opened(tmp_path):
    """A pickled file under our name is foreign, and nothing in it runs."""

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled a stranger's file",))

    path = tmp_path / "trap.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    refuses(path, "truncated or foreign")
    import pickle

    path.write_bytes(pickle.dumps(Trap()))
    refuses(path, "truncated or foreign")


def test_foreign_safetensors(tmp_path, saved):
    """Weights of another program are refused, with or without a sidecar that looks right."""
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    refuses(path, "expected a transferbounds header .* foreign safetensors file")
    path.with_suffix(".json").write_text(saved[0].with_suffix(".json").read_text())
    refuses(path, "foreign safetensors file")
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"transferbounds": "{}"})
    refuses(path, "expected a digest and metadata in the header")


def test_tensors_that_are_no_checkpoint(saved):
    """A resume state under a checkpoint's name has no schema."""
    save_tensors(saved[0], {"step": torch.tensor(1)}, {"epoch": 3})
    refuses(saved[0], f"expected schema {SCHEMA} in .*trs.safetensors, got None")


def edit(path, **changes):
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "transferbounds-checkpoint/99"}, "expected schema .*/1 in .*json, got '.*/99'"),
        ({"metadata": {"dataset": "mnist"}}, "expected the metadata stored in trs.safetensors"),
        ({"members": []}, "expected the members stored in trs.safetensors"),
        ({"digest": "0" * 64}, "digest 000000000000 .* different saves"),
        ({"metadata": float("nan")}, "strict JSON in .*NaN"),
    ],
)
def test_edited_sidecar(saved, changes, message):
    """A sidecar that contradicts the weights file is an error, not a second truth."""
    edit(saved[0], **changes)
    refuses(saved[0], message)


@pytest.mark.parametrize("text", ["", "[]", '"text"', "{", "\udcff"])
def test_unreadable_sidecar(saved, text):
    """A sidecar that is no JSON object is refused."""
    saved[0].with_suffix(".json").write_bytes(text.encode(errors="surrogateescape"))
    refuses(saved[0], "expected (strict JSON|schema)")


def test_files_of_different_saves(saved, tmp_path):
    """Weights beside another save's sidecar are refused, also those of the save before the last."""
    path = saved[0]
    before = path.read_bytes()
    save_checkpoint(path, make_ensemble(seed=1), {})
    path.write_bytes(before)
    refuses(path, "the two files come from different saves")


def forge(path, tensors, **description):
    """A checkpoint with a right digest around any content."""
    content = {
        "schema": SCHEMA,
        "members": [
            {
                "config": {"architecture": "linear", "activation": "tanh", "hidden": []},
                "shape": [2],
                "classes": 3,
            }
        ],
        "metadata": {},
        **description,
    }
    save_tensors(path, tensors, content)
    header = json.loads(safetensors.safe_open(path, "pt").metadata()["transferbounds"])
    path.with_suffix(".json").write_text(json.dumps({**content, "digest": header["digest"]}))


def linear_state():
    return Ensemble([build_model(ModelConfig("linear"), shape=(2,), classes=3)]).state_dict()


def test_forged_checkpoint_with_right_content_loads(tmp_path):
    """The forgeries below fail for the one thing that each gets wrong."""
    forge(tmp_path / "a.safetensors", linear_state())
    load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "members.0.2.weight",
            torch.ones(3, 4),
            r"shape \(3, 2\) for members.0.2.weight in .*, got \(3, 4\)",
        ),
        ("members.0.2.weight", torch.full((3, 2), float("nan")), "finite weights .* in members.0.2.weight"),
        ("members.0.2.bias", torch.tensor([0, float("inf"), 0]), "finite weights .* in members.0.2.bias"),
        (
            "members.0.2.bias",
            torch.ones(3, dtype=torch.int64),
            "torch.float32 for members.0.2.bias .* torch.int64",
        ),
        ("members.0.2.bias", None, "expected 4 tensors in .*, got 3: members.0.2.bias is missing"),
        ("members.1.2.bias", torch.ones(3), "expected 4 tensors in .*, got 5: members.1.2.bias is unknown"),
    ],
)
def test_wrong_weights(tmp_path, name, value, message):
    """Wrong shapes, types, names and values are told with what was expected and what came."""
    tensors = {**linear_state(), name: value}
    forge(tmp_path / "a.safetensors", {k: v for k, v in tensors.items() if v is not None})
    refuses(tmp_path / "a.safetensors", message)


@pytest.mark.parametrize(
    "members",
    [
        None,
        [],
        [{}],
        [{"config": {"architecture": "vgg"}, "shape": [2], "classes": 3}],
        [{"config": {"depth": 3}, "shape": [2], "classes": 3}],
        [{"config": {}, "shape": [2], "classes": "3"}],
        [{"config": {}, "shape": 2, "classes": 3}],
    ],
)
def test_wrong_description(tmp_path, members):
    """A description that names no ensemble is refused."""
    forge(tmp_path / "a.safetensors", linear_state(), members=members)
    refuses(tmp_path / "a.safetensors", "expected the description of an ensemble in")
