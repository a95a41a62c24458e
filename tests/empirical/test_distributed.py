"""Two processes that share the samples: same weights and measurements as one, and a lost one is said."""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from empirical.cli import bound_vs_empirical
from empirical.comparison import pipeline
from empirical.comparison.results import load_results
from empirical.config import TrainingConfig
from empirical.data import Dataset, Split
from empirical.distributed import Workers
from empirical.models import ModelConfig, build_model
from empirical.objectives import CKAE, GAL, OBJECTIVES, TRS, Step
from empirical.smoothness.cli import estimate_smoothness
from empirical.smoothness.result import load_study
from empirical.training import TrainingError, _check_shares, train

ROOT = Path(__file__).parents[2]
CONFIG = TrainingConfig(
    dataset="tiny", model=ModelConfig("mlp", "tanh", (6,)), objective=TRS(), epochs=3, batch_size=12, lr=1e-2,
    device="cpu",
)  # fmt: skip
NUMBER = r"-?\d+(\.\d+)?(e[+-]?\d+)?"
TRAIN = """
import os, signal, sys
from empirical.smoothness.cli import estimate_smoothness
from empirical.training import TrainingError, train
from test_distributed import CONFIG, odd_images

def last_words(record):
    if "kill" in sys.argv and record["epoch"] == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

try:
    train(CONFIG, data=odd_images(), output=sys.argv[1], progress=False, on_epoch=last_words)
except TrainingError as error:
    sys.exit(str(error))
"""
# Figures are drawn from the results alone, by the first process alone; they would take most of the time.
COMPARE = """
import os, signal, sys
from pathlib import Path
from empirical.cli import bound_vs_empirical
from empirical.comparison import pipeline
from empirical.distributed import joined
from empirical.smoothness.cli import estimate_smoothness
import torch

folder, kill = Path(sys.argv[1]), "kill" in sys.argv
compare = pipeline.compare
pipeline.save_figures = lambda *given: []

def watched(ensemble, data, *, name, **settings):
    with open(folder / f"compared-{os.environ['RANK']}", "a") as file:
        print(name, file=file)
    if kill and name == "advt" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return compare(ensemble, data, name=name, **settings)

pipeline.compare = watched
with joined(torch.device("cpu")):
    status = bound_vs_empirical(sys.argv[2].split())
    if status == 0:
        status = estimate_smoothness(sys.argv[3].split())
sys.exit(status)
"""


def odd_images(samples=31):
    """Batches of 12, 12 and 7: the last one cannot be halved."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 3
    x = (0.5 * torch.rand(samples, 1, 8, 8, generator=generator) + y[:, None, None, None] / 4).clamp(0, 1)
    return Dataset("tiny", Split(x, y), Split(x[:30], y[:30]), 3)


def launch(program, *arguments):
    """Two workers with the environment that torchrun gives them: exit codes, standard outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs, errors = zip(*(worker.communicate(timeout=600) for worker in workers), strict=True)
    return [worker.returncode for worker in workers], outputs, errors


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    codes, _, errors = launch(TRAIN, tmp_path / "two.safetensors")
    assert codes == [0, 0], errors
    one = train(CONFIG, data=odd_images(), output=tmp_path / "one.safetensors", progress=False)
    two = train(
        CONFIG, data=odd_images(), output=tmp_path / "two.safetensors", resume=True, progress=False
    )  # fmt: skip
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_what_was_done_is_kept(tmp_path):
    output = tmp_path / "run.safetensors"
    codes, _, errors = launch(TRAIN, output, "kill")
    assert codes == [1, -signal.SIGKILL]
    assert "another process of the run has ended" in errors[0]
    assert "the state after epoch 2 is kept" in errors[0]
    resumed = train(CONFIG, data=odd_images(), output=output, resume=True, progress=False)
    whole = train(CONFIG, data=odd_images(), progress=False)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_compare_as_one_also_when_one_was_killed(tmp_path, monkeypatch):
    """An odd number of points, a method whose training is not shared, and the second comparison killed."""
    options = "--data blobs --methods cos-only advt --epochs 2 --samples 13 --eps 1.5"
    of_smoothness = "--samples 13 --radius 0.5 --certify --method hessian"
    folder = tmp_path / "two"
    folder.mkdir()
    commands = [
        f"{options} --output {folder}",
        f"{folder}/cos-only.safetensors {of_smoothness} --output {folder}/beta",
    ]

    codes, _, errors = launch(COMPARE, folder, *commands, "kill")
    assert codes == [2, -signal.SIGKILL], errors
    assert "another process of the run has ended" in errors[0]
    assert "the same command goes on from there" in errors[0]
    first = load_results(folder / "results.json")
    assert [each.name for each in first.ensembles] == ["cos-only"]

    codes, outputs, errors = launch(COMPARE, folder, *commands)
    assert codes == [0, 0], errors
    for rank in range(2):
        assert (folder / f"compared-{rank}").read_text().split() == ["cos-only", "advt", "advt"]
    assert outputs[1] == ""
    assert "No guaranteed bound is contradicted" in outputs[0]

    monkeypatch.setattr(pipeline, "save_figures", lambda *given: [])
    assert bound_vs_empirical(f"{options} --output {tmp_path}/one".split()) == 0
    given = commands[1].replace("/two/beta", "/one/beta")
    assert estimate_smoothness(given.split()) == 0
    for name, load in (("results.json", load_results), ("beta/study.json", load_study)):
        one, two = (asdict(load(tmp_path / each / name)) for each in ("one", "two"))
        assert_same_numbers(one, two)


def assert_same_numbers(one, two, where="result"):
    """Of two runs everything but versions and times, numbers up to the rounding of float32."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one.keys() - {"environment", "provenance", "seconds"}:
            assert_same_numbers(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_same_numbers(*pair, f"{where}[{index}]")
    elif isinstance(one, str):
        assert re.sub(NUMBER, "#", one) == re.sub(NUMBER, "#", two), where
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6), where
    else:
        assert one == two, where


@pytest.mark.parametrize("count", [3, 7, 12, 31])
def test_shares_are_a_partition_without_padding(count):
    shares = [Workers(rank, 3).share(count) for rank in range(3)]
    assert [index for share in shares for index in range(count)[share]] == list(range(count))
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


@pytest.mark.parametrize("name", [name for name, method in OBJECTIVES.items() if method.sample_mean])
def test_the_gradients_of_two_shares_add_up_to_those_of_the_batch(name):
    """Weighted by their sizes, 3 and 4 of 7, with the batch's own random numbers and weights of samples."""
    objective = GAL(noise=0.1) if name == "gal" else OBJECTIVES[name]()
    x, y = odd_images().train.x[:7], odd_images().train.y[:7]
    torch.manual_seed(0)
    config = ModelConfig("mlp", "tanh", (6,))
    members = torch.nn.ModuleList(
        build_model(config, shape=(1, 8, 8), classes=4, mean=(0.5,), std=(0.2,)).double() for _ in range(3)
    )
    weights = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)

    def gradients(rows, **share):
        members.zero_grad()
        stage = min(1, objective.stages(3) - 1)
        step = Step(epoch=2, epochs=3, stage=stage, sample_weights=weights[rows], **share)
        objective(members, x[rows].double(), y[rows], step).total.backward()
        return torch.cat([each.grad.flatten() for each in members.parameters() if each.grad is not None])

    whole = gradients(slice(7))
    parts = [Workers(rank, 2).share(7) for rank in range(2)]
    shares = [(part.stop - part.start) / 7 * gradients(part, share=(7, part)) for part in parts]
    assert whole.norm() > 1e-3
    torch.testing.assert_close(sum(shares), whole, rtol=1e-8, atol=1e-10)


def test_what_would_differ_from_one_process_is_refused():
    two = Workers(0, 2)
    _check_shares(CONFIG, odd_images(), two)
    with pytest.raises(TrainingError, match=r"a mean over samples .*trs.* for 2 processes, got ckae"):
        _check_shares(replace(CONFIG, objective=CKAE()), odd_images(), two)
    with pytest.raises(TrainingError, match="got a batch of 1"):
        _check_shares(replace(CONFIG, batch_size=30), odd_images(), two)


def test_measuring_needs_a_row_a_sample():
    with pytest.raises(ValueError, match="expected 4 rows, one a sample, got 1"):
        Workers().measure(lambda x: (x[:1],), torch.zeros(4, 2))


def test_more_processes_than_samples_are_refused():
    Workers(0, 2).check_enough(2)
    with pytest.raises(ValueError, match="a sample for each of 2 processes, got 1"):
        Workers(0, 2).check_enough(1)


def test_processes_on_different_folders_are_refused(monkeypatch):
    """The first one says that something is there, which this one does not find."""
    monkeypatch.setattr(Workers, "add", lambda self, tensors: [tensor.fill_(1) for tensor in tensors])
    assert Workers(1, 2).agree([True, True]) == [True, True]
    with pytest.raises(ValueError, match="to see the folder of the first one"):
        Workers(1, 2).agree([True, False])
