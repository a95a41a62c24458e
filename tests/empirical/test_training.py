import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.nn import functional

from empirical.accuracy import Accuracy, evaluate
from empirical.augmentation import Augmentation
from empirical.config import TrainingConfig
from empirical.data import DataError, Dataset, Split, load_dataset
from empirical.ensemble import load_checkpoint
from empirical.models import ModelConfig
from empirical.objectives import TRS, CosOnly, Vanilla
from empirical.objectives.base import Loss, Parameters
from empirical.presets import preset
from empirical.training import TrainingError, state_path, train
from estimators import cross_entropy, input_gradients


def images(samples=40, seed=0, augmentation=None):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = (0.5 * torch.rand(samples, 1, 4, 4, generator=generator) + y[:, None, None, None] / 4).clamp(0, 1)
    return Dataset("tiny", Split(x, y), Split(x[:30], y[:30]), 3, augmentation=augmentation)


CONFIG = TrainingConfig(
    dataset="tiny", model=ModelConfig("mlp", "tanh", (6,)), epochs=4, batch_size=16, lr=1e-2, device="cpu"
)


def weights(ensemble):
    return torch.cat([weight.detach().flatten() for weight in ensemble.parameters()])


@dataclass(frozen=True)
class Recording(Vanilla):
    """Vanilla training that keeps what it is called with."""

    calls: ClassVar[list] = []

    def __call__(self, members, x, y, step) -> Loss:
        assert all(member.training for member in members)
        self.calls.append((x.clone(), y.clone(), step))
        return super().__call__(members, x, y, step)


@pytest.fixture
def recorded():
    Recording.calls.clear()
    return Recording.calls


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(train(CONFIG, data=images()))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights(train(CONFIG, data=images())), first)
    assert not torch.equal(weights(train(replace(CONFIG, seed=1), data=images())), first)


def test_members_start_from_different_weights():
    ensemble = train(replace(CONFIG, lr=1e-12, epochs=1), data=images())
    first, second, third = (member[2].weight for member in ensemble.members)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("objective", [Vanilla(), TRS(search="joint")])
def test_training_learns_with_any_number_of_members(members, objective):
    records = []
    config = replace(CONFIG, members=members, objective=objective, epochs=15)
    ensemble = train(config, data=images(), on_epoch=records.append)
    assert len(ensemble.members) == members
    assert not ensemble.training
    assert records[-1]["cross_entropy"] < 0.7 * records[0]["cross_entropy"]
    assert evaluate(ensemble, images().test).weakest > 0.8


def test_every_epoch_sees_every_sample_once_in_a_new_order(recorded):
    train(replace(CONFIG, objective=Recording()), data=images())
    assert [len(y) for _, y, _ in recorded[:3]] == [16, 16, 8]
    epochs = [torch.cat([x for x, _, _ in recorded[i : i + 3]]) for i in (0, 3)]
    expected = images().train.x.flatten(1).sum(1).sort().values
    for seen in epochs:
        torch.testing.assert_close(seen.flatten(1).sum(1).sort().values, expected)
    assert not torch.equal(*epochs)


def test_ramp_and_epoch_reach_the_objective(recorded):
    train(replace(CONFIG, objective=Recording(), ramp=0.5), data=images())
    assert [step.ramp for _, _, step in recorded] == pytest.approx(
        [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6] + [1] * 6
    )
    assert [(step.epoch, step.epochs) for _, _, step in recorded[2:4]] == [(1, 4), (2, 4)]
    recorded.clear()
    train(replace(CONFIG, objective=Recording()), data=images())
    assert {step.ramp for _, _, step in recorded} == {1.0}


def test_pixel_range_and_mixed_precision_reach_the_objective(recorded):
    data = replace(images(), pixel_range=None)
    train(replace(CONFIG, objective=Recording(), epochs=1, mixed_precision=True), data=data)
    assert recorded[0][2].pixel_range is None
    assert recorded[0][2].mixed_precision


def test_augmentation_has_its_own_seeded_generator(recorded):
    config = replace(CONFIG, objective=Recording(), epochs=1)
    train(config, data=images())
    plain = torch.cat([x for x, _, _ in recorded])
    seen = []
    for _ in range(2):
        recorded.clear()
        train(config, data=images(augmentation=Augmentation(padding=0, flip=True)))
        seen.append(torch.cat([x for x, _, _ in recorded]))
    assert torch.equal(*seen)
    flipped = (seen[0] != plain).flatten(1).any(1)
    assert 5 < flipped.sum() < 35
    assert torch.equal(seen[0][flipped], plain[flipped].flip(-1))  # the same order as without


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "steps", "milestones": (1, 3), "factor": 0.1}, [1.0, 0.1, 0.1, 0.01]),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_learning_rate_by_epoch(changes, expected, optimizer):
    records = []
    train(replace(CONFIG, **changes, optimizer=optimizer), data=images(), on_epoch=records.append)
    assert [record["learning_rate"] / 1e-2 for record in records] == pytest.approx(expected)


def test_onecycle_rises_to_the_rate_and_falls():
    records = []
    train(replace(CONFIG, schedule="onecycle", epochs=10), data=images(), on_epoch=records.append)
    rates = [record["learning_rate"] for record in records]
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates.index(max(rates)) == 3
    assert rates[-1] < 1e-3


def test_weight_decay_and_momentum_reach_the_optimizer():
    plain = weights(train(replace(CONFIG, optimizer="sgd"), data=images()))
    for changes in ({"weight_decay": 1.0}, {"momentum": 0.9}):
        assert not torch.allclose(
            weights(train(replace(CONFIG, optimizer="sgd", **changes), data=images())), plain
        )


def test_adams_epsilon_reaches_the_optimizer():
    """One that dwarfs every gradient leaves the weights where they were."""
    still = weights(train(replace(CONFIG, optimizer="adam", adam_epsilon=1e6, epochs=1), data=images()))
    start = weights(train(replace(CONFIG, optimizer="adam", lr=1e-12, epochs=1), data=images()))
    moved = weights(train(replace(CONFIG, optimizer="adam", epochs=1), data=images()))
    torch.testing.assert_close(still, start, atol=1e-6, rtol=0)
    assert (moved - start).abs().max() > 1e-4


def test_record_of_an_epoch_is_the_mean_over_its_samples(recorded):
    records = []
    config = replace(CONFIG, objective=Recording(), lr=1e-12, epochs=1, batch_size=32)
    ensemble = train(config, data=images(), on_epoch=records.append)
    data = images().train
    losses = [functional.cross_entropy(member(data.x), data.y) for member in ensemble.members]
    assert records[0]["cross_entropy"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert records[0]["loss"] == records[0]["cross_entropy"]
    assert records[0]["train_accuracy"] == evaluate(ensemble, data).to_json()


def test_accuracy_counts_votes_and_names_the_weakest():
    ensemble = train(CONFIG, data=images())
    split = images().test
    accuracy = evaluate(ensemble, split)
    hits = [(member(split.x).argmax(1) == split.y).float().mean().item() for member in ensemble.members]
    assert accuracy.members == pytest.approx(hits)
    assert accuracy.ensemble == pytest.approx((ensemble(split.x).argmax(1) == split.y).float().mean().item())
    assert Accuracy(0.9, (0.8, 0.3, 0.7)).to_json()["weakest"] == 0.3


def test_checkpoint_carries_everything_to_judge_the_run(tmp_path):
    output = tmp_path / "new" / "run.safetensors"
    config = replace(CONFIG, objective=CosOnly(0.25))
    ensemble = train(config, data=images(), output=output)
    loaded, metadata = load_checkpoint(output)
    assert torch.equal(weights(loaded), weights(ensemble))
    assert metadata["dataset"] == "tiny"
    assert TrainingConfig.from_json(metadata["training"]) == config
    assert metadata["epoch"] == 4
    assert [record["epoch"] for record in metadata["history"]] == [1, 2, 3, 4]
    assert set(metadata["history"][0]) >= {"loss", "cross_entropy", "similarity", "train_accuracy"}
    assert metadata["metrics"]["test_accuracy"] == evaluate(ensemble, images().test).to_json()
    assert metadata["versions"]["torch"] == torch.__version__


@dataclass(frozen=True)
class Breaking(Parameters):
    """Vanilla training with a second term that breaks at a certain call."""

    name: ClassVar[str] = "vanilla"
    calls: ClassVar[int] = 0
    bad: ClassVar[float] = math.nan
    break_weights: ClassVar[bool] = False

    def __call__(self, members, x, y, step) -> Loss:
        type(self).calls += 1
        loss = Vanilla()(members, x, y, step)
        broken = self.calls == 8
        if broken and self.break_weights:
            loss.total.register_hook(lambda gradient: gradient * math.nan)
            return loss
        term = torch.tensor(self.bad if broken else 0.0)
        return Loss(loss.total + term, {**loss.terms, "extra": term}, loss.logits)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_checkpoint_is_touched(tmp_path, bad):
    output = tmp_path / "run.safetensors"
    Breaking.calls, Breaking.bad, Breaking.break_weights = 0, bad, False
    kept = []
    with pytest.raises(TrainingError, match=f"got extra = {bad} in epoch 3, step 2 of 3"):
        train(
            replace(CONFIG, objective=Breaking()),
            data=images(),
            output=output,
            on_epoch=lambda record: kept.append((output.read_bytes(), state_path(output).read_bytes())),
        )
    assert (output.read_bytes(), state_path(output).read_bytes()) == kept[-1]
    assert load_checkpoint(output)[1]["epoch"] == 2


def test_weights_that_are_not_finite_stop_before_the_checkpoint_is_touched(tmp_path):
    output = tmp_path / "run.safetensors"
    Breaking.calls, Breaking.break_weights = 0, True
    config = replace(CONFIG, objective=Breaking(), batch_size=20)
    with pytest.raises(TrainingError, match=r"NaN or infinity in members\.0\..* after epoch 4"):
        train(config, data=images(), output=output)
    assert load_checkpoint(output)[1]["epoch"] == 3


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(TrainingError, match="expected the configured data set 'digits', got 'tiny'"):
        train(replace(CONFIG, dataset="digits"), data=images())
    broken = images()
    broken.train.x[3, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="NaN"):
        train(CONFIG, data=broken)
    with pytest.raises(DataError, match=r"expected a data set among .*, got 'tiny'"):
        train(CONFIG)
    with pytest.raises(TrainingError, match=r"expected an output that ends in \.safetensors, got run\.pt"):
        train(CONFIG, data=images(), output="run.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_refused():
    with pytest.raises(ValueError, match="expected a CUDA device"):
        train(replace(CONFIG, device="cuda"), data=images())


@pytest.mark.parametrize("objective", [Vanilla(), TRS(search="joint")])
def test_config_round_trip(objective):
    config = replace(CONFIG, objective=objective, schedule="steps", milestones=(1, 2), data_root="d")
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(TrainingConfig.from_json(config.to_json()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "expected members to be a whole number >= 2, got 1"),
        ({"members": 3.0}, "expected members to be a whole number >= 2, got 3.0"),
        ({"epochs": 0}, "expected epochs to be a whole number >= 1, got 0"),
        ({"batch_size": 0}, "expected batch_size to be a whole number >= 1, got 0"),
        ({"optimizer": "rmsprop"}, "expected optimizer to be adam or sgd, got 'rmsprop'"),
        ({"lr": 0.0}, "expected lr to be a number > 0, got 0.0"),
        ({"lr": math.nan}, "expected lr to be a number > 0, got nan"),
        ({"lr": "0.1"}, "expected lr to be a number > 0, got '0.1'"),
        ({"weight_decay": -1.0}, "expected weight_decay to be a number >= 0, got -1.0"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "expected momentum to be a number in [0, 1), got 1.0"),
        ({"momentum": 0.9}, "expected momentum 0 for adam, got 0.9"),
        ({"schedule": "cosine"}, "expected schedule to be constant, onecycle or steps, got 'cosine'"),
        ({"schedule": "steps"}, "expected milestones for the schedule steps only, got () for steps"),
        ({"milestones": (1,)}, "expected milestones for the schedule steps only, got (1,) for constant"),
        ({"schedule": "steps", "milestones": (2, 1)}, "expected milestones to be rising whole numbers >= 1"),
        ({"schedule": "steps", "milestones": (1, 4)}, "expected milestones below epochs = 4, got (1, 4)"),
        ({"factor": 0.0}, "expected factor to be a number in (0, 1], got 0.0"),
        ({"ramp": 1.5}, "expected ramp to be a number in [0, 1], got 1.5"),
        ({"seed": -1}, "expected seed to be a whole number in 0 .. 2^32 - 1, got -1"),
        ({"seed": 2**32}, "expected seed to be a whole number in 0 .. 2^32 - 1, got 4294967296"),
        ({"seed": True}, "expected seed to be a whole number in 0 .. 2^32 - 1, got True"),
        ({"device": "tpu"}, "expected device to be auto, cpu or cuda, got 'tpu'"),
        ({"mixed_precision": 1}, "expected mixed_precision to be true or false, got 1"),
        ({"checkpoint_every": 0}, "expected checkpoint_every to be a whole number >= 1, got 0"),
        ({"objective": "trs"}, "expected objective to be an objective such as TRS(), got 'trs'"),
        ({"model": "mlp"}, "expected model to be a ModelConfig, got 'mlp'"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match="expected") as caught:
        replace(CONFIG, **changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(ValueError, match=r"expected fields among .*, got epoch$"):
        TrainingConfig.from_json({"epoch": 3})


@pytest.mark.slow
def test_trs_lowers_similarity_and_worst_gradient_norm_on_digits():
    data = load_dataset("digits")
    points = data.test.first(200)
    signs = torch.empty_like(points.x).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)).sign()
    corners = (points.x + 0.15 * signs).clamp(0, 1)
    cosines, worst, weakest = {}, {}, {}
    for method in ("vanilla", "trs"):
        config = replace(preset("digits", method), epochs=10, device="cpu")
        ensemble = train(config, data=data, progress=False)
        f, g = (input_gradients(member, cross_entropy, points.x, points.y) for member in ensemble.members[:2])
        cosines[method] = functional.cosine_similarity(f.flatten(1), g.flatten(1)).abs().mean().item()
        around = input_gradients(ensemble.members[0], cross_entropy, corners, points.y).flatten(1).norm(dim=1)
        worst[method] = around.max().item()
        weakest[method] = evaluate(ensemble, data.test).weakest
    assert cosines["trs"] < 0.5 * cosines["vanilla"]
    assert worst["trs"] < 0.5 * worst["vanilla"]
    assert weakest["trs"] > 0.9
