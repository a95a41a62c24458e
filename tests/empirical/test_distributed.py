"""Two processes that share the samples: same weights and measurements as one, and a lost one is said."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from empirical.config import TrainingConfig
from empirical.data import Dataset, Split
from empirical.distributed import Workers
from empirical.models import ModelConfig
from empirical.objectives import TRS, AdvT
from empirical.training import TrainingError, _check_shares, train

ROOT = Path(__file__).parents[2]
CONFIG = TrainingConfig(
    dataset="tiny", model=ModelConfig("mlp", "tanh", (6,)), objective=TRS(), epochs=3, batch_size=12, lr=1e-2,
    device="cpu",
)  # fmt: skip
WORKER = """
import os, signal, sys, torch
from empirical.distributed import joined
from empirical.training import TrainingError, train
from estimators import cross_entropy, hessian_norms
from test_distributed import CONFIG, odd_images

def last_words(record):
    if "kill" in sys.argv and record["epoch"] == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

with joined(torch.device("cpu")) as workers:
    try:
        ensemble = train(CONFIG, data=odd_images(), output=sys.argv[1], progress=False, on_epoch=last_words)
    except TrainingError as error:
        sys.exit(str(error))
    data = odd_images().train
    model = ensemble.members[0]
    norms = workers.measure(lambda x, y: hessian_norms(model, cross_entropy, x, y), data.x, data.y)
    torch.save(norms, f"{sys.argv[1]}.norms{workers.rank}")
"""


def odd_images(samples=31):
    """Batches of 12, 12 and 7: the last one cannot be halved."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 3
    x = (0.5 * torch.rand(samples, 1, 8, 8, generator=generator) + y[:, None, None, None] / 4).clamp(0, 1)
    return Dataset("tiny", Split(x, y), Split(x[:30], y[:30]), 3)


def launch(output, *arguments):
    """Two workers with the environment that torchrun gives them; their exit codes and standard errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(output), *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    return [worker.returncode for worker in workers], errors


@pytest.mark.slow
def test_two_processes_train_and_measure_as_one(tmp_path):
    codes, errors = launch(tmp_path / "two.safetensors")
    assert codes == [0, 0], errors
    one = train(CONFIG, data=odd_images(), output=tmp_path / "one.safetensors", progress=False)
    two = train(
        CONFIG, data=odd_images(), output=tmp_path / "two.safetensors", resume=True, progress=False
    )  # fmt: skip
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-5)
    from estimators import cross_entropy, hessian_norms

    data = odd_images().train
    expected = hessian_norms(two.members[0], cross_entropy, data.x, data.y)
    for rank in range(2):
        found = torch.load(f"{tmp_path / 'two.safetensors'}.norms{rank}", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_what_was_done_is_kept(tmp_path):
    output = tmp_path / "run.safetensors"
    codes, errors = launch(output, "kill")
    assert codes == [1, -signal.SIGKILL]
    assert "another process of the run has ended" in errors[0]
    assert "the state after epoch 2 is kept" in errors[0]
    resumed = train(CONFIG, data=odd_images(), output=output, resume=True, progress=False)
    whole = train(CONFIG, data=odd_images(), progress=False)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [3, 7, 12, 31])
def test_shares_are_a_partition_without_padding(count):
    shares = [Workers(rank, 3).share(count) for rank in range(3)]
    assert [index for share in shares for index in range(count)[share]] == list(range(count))
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def test_what_would_differ_from_one_process_is_refused():
    two = Workers(0, 2)
    _check_shares(CONFIG, odd_images(), two)
    with pytest.raises(TrainingError, match=r"without random draws .*trs.* for 2 processes, got advt"):
        _check_shares(replace(CONFIG, objective=AdvT()), odd_images(), two)
    with pytest.raises(TrainingError, match="got a batch of 1"):
        _check_shares(replace(CONFIG, batch_size=30), odd_images(), two)


def test_measuring_needs_a_row_a_sample():
    with pytest.raises(ValueError, match="expected 4 rows, one a sample, got 1"):
        Workers().measure(lambda x: x[:1], torch.zeros(4, 2))
    with pytest.raises(ValueError, match="a sample for each of 2 processes, got 1"):
        Workers(0, 2).measure(lambda x: x, torch.zeros(1, 2))
