import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from empirical.augmentation import Augmentation
from empirical.config import TrainingConfig
from empirical.data import Dataset, Split
from empirical.ensemble import CheckpointError, load_checkpoint, load_tensors
from empirical.models import ModelConfig
from empirical.objectives import DVERGE, TRS, AdaBoost, AdvT, GradientBoost, Loss, Vanilla
from empirical.training import TrainingError, TrainingInterrupted, state_path, train

ROOT = Path(__file__).parents[2]


def images(samples=30, seed=0, augmentation=None):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = (0.5 * torch.rand(samples, 1, 8, 8, generator=generator) + y[:, None, None, None] / 4).clamp(0, 1)
    return Dataset("tiny", Split(x, y), Split(x[:30], y[:30]), 3, augmentation=augmentation)


ADAM = TrainingConfig(
    dataset="tiny", model=ModelConfig("mlp", "tanh", (6,)), objective=TRS(), epochs=4, batch_size=12,
    schedule="onecycle", lr=1e-2, ramp=0.5, device="cpu",
)  # fmt: skip
SGD = replace(
    ADAM, model=ModelConfig("resnet8", "softplus"), members=2, objective=Vanilla(), optimizer="sgd",
    momentum=0.9, weight_decay=1e-3, schedule="steps", milestones=(1, 3), ramp=0.0,
)  # fmt: skip
ATTACKED = replace(ADAM, objective=AdvT(steps=2))
BOOSTED = replace(ADAM, objective=AdaBoost(), epochs=2, members=2)
ADDED = replace(SGD, objective=GradientBoost(), epochs=2, milestones=(1,))
DISTILLED = replace(ADAM, objective=DVERGE(steps=2), epochs=2)
PLAIN_SGD = replace(SGD, model=ADAM.model, momentum=0.0, schedule="constant", milestones=())


@dataclass(frozen=True)
class Stopping(TRS):
    """TRS that interrupts its run, or kills its process, at a certain call; in files it is plain TRS."""

    calls: ClassVar[int] = 0
    last: ClassVar[int] = 0
    kill: ClassVar[bool] = False

    def __call__(self, members, x, y, step) -> Loss:
        type(self).calls += 1
        if self.calls > self.last:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return super().__call__(members, x, y, step)


def interrupt_after(epoch):
    def on_epoch(record):
        if record["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_epoch


def assert_same_run(one, other):
    """Bit-identical weights, and equal states of everything that the next step would depend on."""
    (a, description_a), (b, description_b) = (load_tensors(state_path(path)) for path in (one, other))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    assert description_a == description_b
    assert load_checkpoint(one)[1] == load_checkpoint(other)[1]


# Of the four epochs, the second is the end of a stage for the last three.
@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [ADAM, SGD, PLAIN_SGD, ATTACKED, BOOSTED, ADDED, DISTILLED],
    ids=["adam-onecycle", "sgd-steps-batchnorm", "sgd", "advt", "adaboost", "gradient-boost", "dverge"],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, config, epoch):
    data = images(augmentation=Augmentation(padding=1, flip=True))
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    expected = train(config, data=data, output=whole)
    with pytest.raises(TrainingInterrupted):
        train(config, data=data, output=parts, on_epoch=interrupt_after(epoch))
    resumed = train(config, data=data, output=parts, resume=True)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert_same_run(whole, parts)


@pytest.mark.parametrize("done", [0, 1, 4, 11])
def test_interrupt_within_an_epoch_costs_that_epoch_only(tmp_path, done):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(ADAM, data=images(), output=whole)
    Stopping.calls, Stopping.last = 0, done
    with pytest.raises(TrainingInterrupted) as caught:
        train(replace(ADAM, objective=Stopping()), data=images(), output=parts)
    epochs = done // 3  # three steps an epoch
    assert str(caught.value).startswith(
        f"interrupted after {epochs} of 4 epochs; the state after epoch {epochs} is kept in "
    )
    assert "resume=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    train(ADAM, data=images(), output=parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(ADAM, data=images(), output=whole)
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "import torch, test_resume as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "t.Stopping.last, t.Stopping.kill = 7, True\n"
        f"t.train(t.replace(t.ADAM, objective=t.Stopping()), data=t.images(), output={str(parts)!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(parts)[1]["epoch"] == 2
    train(ADAM, data=images(), output=parts, resume=True)
    assert_same_run(whole, parts)


def test_sparse_checkpoints_resume_from_the_last_one(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(ADAM, data=images(), output=whole)
    sparse = replace(ADAM, checkpoint_every=2)
    with pytest.raises(TrainingInterrupted, match="after 3 of 4 epochs; the state after epoch 2 is kept"):
        train(sparse, data=images(), output=parts, on_epoch=interrupt_after(3))
    assert load_checkpoint(parts)[1]["epoch"] == 2
    resumed = train(ADAM, data=images(), output=parts, resume=True)  # checkpoint_every may change
    for name, tensor in load_checkpoint(whole)[0].state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_last_epoch_is_saved_whatever_the_interval(tmp_path):
    output = tmp_path / "run.safetensors"
    train(replace(PLAIN_SGD, checkpoint_every=3), data=images(), output=output)
    assert load_checkpoint(output)[1]["epoch"] == 4


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    output = tmp_path / "run.safetensors"
    trained = train(ADAM, data=images(), output=output)
    before = output.read_bytes()
    again = train(ADAM, data=images(), output=output, resume=True, on_epoch=interrupt_after(4))
    assert output.read_bytes() == before
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not again.training


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 5}, "epochs = 4, as in .*, to resume, got 5"),
        ({"objective": TRS(lambda_b=0.2)}, "objective.lambda_b = 0.1, .* got 0.2"),
        ({"objective": Vanilla()}, "objective.delta_final = 0.15, .* got None"),
        ({"model": ModelConfig("mlp", "gelu", (6,))}, "model.activation = 'tanh', .* got 'gelu'"),
        ({"seed": 1}, "seed = 0, .* got 1"),
    ],
)
def test_another_configuration_is_refused_by_field(tmp_path, changes, field):
    output = tmp_path / "run.safetensors"
    with pytest.raises(TrainingInterrupted):
        train(ADAM, data=images(), output=output, on_epoch=interrupt_after(1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match=field):
        train(replace(ADAM, **changes), data=images(), output=output, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_training_points_are_refused(tmp_path):
    output = tmp_path / "run.safetensors"
    train(replace(ADAM, epochs=1), data=images(), output=output)
    with pytest.raises(TrainingError, match=r"expected the training points that .* was trained on"):
        train(replace(ADAM, epochs=1), data=images(seed=1), output=output, resume=True)


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.resume\.safetensors"):
        train(ADAM, data=images(), output=tmp_path / "none.safetensors", resume=True)
    with pytest.raises(TrainingError, match="expected the output of the run to resume"):
        train(ADAM, data=images(), resume=True)


def test_foreign_and_damaged_states_are_refused(tmp_path):
    output = tmp_path / "run.safetensors"
    train(replace(ADAM, epochs=1), data=images(), output=output)
    state = state_path(output)
    content = state.read_bytes()
    state.write_bytes(output.read_bytes())
    with pytest.raises(TrainingError, match="expected schema 'transferbounds-training-state/2'"):
        train(replace(ADAM, epochs=1), data=images(), output=output, resume=True)
    state.write_bytes(content[:-7])
    with pytest.raises(CheckpointError):
        train(replace(ADAM, epochs=1), data=images(), output=output, resume=True)


def test_interrupt_without_output_is_passed_on():
    with pytest.raises(KeyboardInterrupt) as caught:
        train(ADAM, data=images(), on_epoch=interrupt_after(1))
    assert not isinstance(caught.value, TrainingInterrupted)
