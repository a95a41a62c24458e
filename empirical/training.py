"""Training of an ensemble: seeded, checkpointed, resumable.

What a run is, is a `TrainingConfig`; how the loss comes about, is its objective (see `empirical.objectives`).
Beside the checkpoint `name.safetensors` lies the run's state `name.resume.safetensors`: weights, optimiser,
schedule, generators and history in one file, so that it is replaced as a whole. A run that was stopped, at
whatever moment, and resumed goes through the same steps as one that was not. On the CPU it ends in
bit-identical weights (with the same number of threads); on a GPU as far as the kernels that torch chooses are
deterministic. Started by torchrun, several processes share every batch (see `empirical.distributed`).
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from tqdm import tqdm

from empirical.accuracy import count_correct, evaluate, share_correct
from empirical.config import TrainingConfig
from empirical.data import Dataset, load_dataset, validate
from empirical.distributed import WorkerLost, Workers, joined
from empirical.ensemble import Ensemble, Vote, load_tensors, save_checkpoint, save_tensors
from empirical.models import build_model
from empirical.objectives import OBJECTIVES, Step

_STATE_SCHEMA = "transferbounds-training-state/2"

# Fields that say where and how often, not what is computed: a resumed run may change them.
_FREE_ON_RESUME = ("data_root", "device", "checkpoint_every")


class TrainingError(ValueError):
    """Training that cannot start, go on or be resumed; the message is one line."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what was kept and how to resume."""


def state_path(output: str | Path) -> Path:
    """Where the state of a run lies whose checkpoint is `output`."""
    return Path(output).with_suffix(".resume.safetensors")


def train(
    config: TrainingConfig,
    *,
    data: Dataset | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    workers: Workers | None = None,
) -> Ensemble:
    """Train an ensemble.

    The weights depend on the configuration and the data alone; torch's global generator is left as it was.
    The checkpoint's metadata hold the data set's name, the configuration, versions, the record of every
    epoch, and the test accuracy (ensemble, members, weakest member).

    Args:
        config: What to train.
        data: The data set, if it is loaded already; else it is loaded by the name in the configuration.
        output: Checkpoint to write (a name ending in .safetensors), or None to keep nothing. It is first
            written after `checkpoint_every` epochs; what was there before stays until then.
        resume: Go on from the state beside `output`; a finished run is returned as it is.
        progress: Show a progress bar, if standard error is a terminal.
        on_epoch: Called after every epoch (and its checkpoint) with the epoch's record: number, means of the
            loss and its terms, train accuracies, learning rate at its start.
        workers: Who shares every batch; unless given, all processes that torchrun started.

    Returns:
        The trained ensemble, in evaluation mode, on the device of the run.

    Raises:
        TrainingError: If the data are not those of the configuration, the state to resume belongs to another
            run, or the loss or a weight is no longer finite; earlier checkpoints stay as they are.
        TrainingInterrupted: On Ctrl-C, if `output` was given; says what was kept and how to go on.
        DataError: If the data set is missing or broken.
        CheckpointError: If `output` has another ending, or the state to resume is missing or broken.
        ValueError: If there is no such device, the model or the method does not fit the data, or a boosted
            member has learned nothing.
        OSError: If `output` cannot be written, which shows before the first step.
    """
    device = find_device(config.device)
    if data is None:
        data = load_dataset(config.dataset, data_root=config.data_root)
    elif validate(data).name != config.dataset:
        raise TrainingError(f"expected the configured data set {config.dataset!r}, got {data.name!r}")
    config.objective.check_fits(config.members, data.classes)
    output = _check_output(output, resume)
    with joined(device) if workers is None else nullcontext(workers) as workers:
        _check_shares(config, data, workers)
        run = _Run(config, data.to(device), device, workers)
        if output and resume:
            run.load(output)
        elif output and workers.rank == 0:
            run.save_state(output)
        return _finished(run, output, progress, on_epoch or (lambda record: None))


def _check_shares(config: TrainingConfig, data: Dataset, workers: Workers) -> None:
    """Refuse what several processes cannot train to the same weights as one."""
    if workers.size == 1:
        return
    if not config.objective.sample_mean:
        known = ", ".join(name for name, method in OBJECTIVES.items() if method.sample_mean)
        raise TrainingError(
            f"expected a method whose loss is a mean over samples ({known}), "
            f"for {workers.size} processes, got {config.objective.name}"
        )
    last = len(data.train) % config.batch_size or config.batch_size
    if min(last, config.batch_size) < workers.size:
        raise TrainingError(
            f"expected a sample of every batch for each of {workers.size} processes, got a batch of {last}"
        )


def _finished(
    run: _Run, output: Path | None, progress: bool, on_epoch: Callable[[dict[str, Any]], None]
) -> Ensemble:
    try:
        run.finish(output, progress and run.workers.rank == 0, on_epoch)
    except WorkerLost as error:
        kept = f"; the state after epoch {run.saved} is kept in {state_path(output)}" if output else ""
        raise TrainingError(f"{error}{kept}") from error
    except KeyboardInterrupt:
        if output is None:
            raise
        raise TrainingInterrupted(
            f"interrupted after {run.epoch} of {run.epochs} epochs; "
            f"the state after epoch {run.saved} is kept in {state_path(output)}: "
            f"to go on, repeat the call with resume=True (command line: --resume)"
        ) from None
    return run.ensemble.eval()


def find_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is a GPU if there is one.

    Raises:
        ValueError: If a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for device = cuda, found none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _check_output(output: str | Path | None, resume: bool) -> Path | None:
    if output is None:
        if resume:
            raise TrainingError("expected the output of the run to resume, got none")
        return None
    output = Path(output)
    if output.suffix != ".safetensors":
        raise TrainingError(f"expected an output that ends in .safetensors, got {output}")
    return output


def _initial_ensemble(config: TrainingConfig, data: Dataset) -> Ensemble:
    mean, std = data.statistics()
    # Only the CPU's generator is borrowed, and given back: weights are drawn there for every device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return Ensemble(
            build_model(config.model, shape=data.shape, classes=data.classes, mean=mean, std=std)
            for _ in range(config.members)
        )


def _make_optimizer(config: TrainingConfig, ensemble: nn.Module) -> torch.optim.Optimizer:
    weights = ensemble.parameters()
    if config.optimizer == "adam":
        return torch.optim.Adam(
            weights, config.lr, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=config.fast
        )
    return torch.optim.SGD(weights, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _make_schedule(config: TrainingConfig, optimizer: torch.optim.Optimizer, per_epoch: int) -> LRScheduler:
    """A schedule that is stepped after every batch."""
    if config.schedule == "onecycle":
        return OneCycleLR(optimizer, config.lr, total_steps=config.epochs * per_epoch, cycle_momentum=False)
    return MultiStepLR(optimizer, [epoch * per_epoch for epoch in config.milestones], gamma=config.factor)


class _Run:
    """A run of training between two epochs: all that its future depends on."""

    def __init__(self, config: TrainingConfig, data: Dataset, device: torch.device, workers: Workers) -> None:
        self.config = config
        self.workers = workers
        self.data = data
        self.ensemble = _initial_ensemble(config, data).to(device)
        self.stages = config.objective.stages(config.members)
        self.epochs = self.stages * config.epochs
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        # On the CPU, so that order and augmentation are the same on every device.
        self.generators = {
            "order": torch.Generator().manual_seed(config.seed),
            "augmentation": torch.Generator().manual_seed(config.seed + 1),
            "objective": torch.Generator().manual_seed(config.seed + 2),
        }
        self.epoch = 0
        self.saved = 0
        self.history: list[dict[str, Any]] = []
        self.start_stage(0)

    def start_stage(self, stage: int) -> None:
        """A fresh optimiser and schedule, and the weights of the samples in this stage."""
        self.stage = stage
        self.optimizer = _make_optimizer(self.config, self.ensemble)
        self.schedule = _make_schedule(self.config, self.optimizer, self.steps_per_epoch)
        members, train = self.ensemble.members, self.data.train
        self.sample_weights = self.config.objective.sample_weights(
            members, self.ensemble.vote, train.x, train.y, stage
        )

    def end_stage(self) -> None:
        """The vote that the stage ends with; then the next stage, if there is one."""
        members, train = self.ensemble.members, self.data.train
        self.ensemble.vote = self.config.objective.vote(
            members, self.ensemble.vote, train.x, train.y, self.stage
        )
        if self.stage + 1 < self.stages:
            self.start_stage(self.stage + 1)

    def finish(self, output: Path | None, progress: bool, on_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Run the epochs that are left."""
        with tqdm(
            desc=self.config.objective.name,
            total=self.epochs * self.steps_per_epoch,
            initial=self.epoch * self.steps_per_epoch,
            disable=None if progress else True,
        ) as bar:
            while self.epoch < self.epochs:
                record = self._run_epoch(bar)
                self.epoch += 1
                self.history.append(record)
                if self.epoch % self.config.epochs == 0:
                    self.end_stage()
                bar.set_postfix(loss=record["loss"], weakest=record["train_accuracy"]["weakest"])
                last = self.epoch == self.epochs
                if output and (last or self.epoch % self.config.checkpoint_every == 0):
                    self.save(output)
                on_epoch(record)

    def _run_epoch(self, bar: tqdm) -> dict[str, Any]:
        self.ensemble.train()
        rate = self.optimizer.param_groups[0]["lr"]
        sums: dict[str, float] = {}
        correct = torch.zeros((), dtype=torch.int64, device=self.data.train.x.device)
        draw = torch.rand((), generator=self.generators["objective"]).item()
        weights = list(self.ensemble.parameters())
        for number, (x, y, sample_weights, samples, rows) in enumerate(self._batches()):
            step = self._step(number, draw, sample_weights)
            if self.workers.size > 1:
                step = replace(step, share=(samples, rows))
            loss = self.config.objective(self.ensemble.members, x, y, step)
            self.optimizer.zero_grad()
            loss.total.backward(inputs=weights)  # and not by the inputs of the networks
            terms = {**loss.terms, "loss": loss.total.detach()}
            values = torch.stack(list(terms.values()))
            self._exchange(values, len(y) / samples)
            # One transfer from the device for all terms.
            for name, value in zip(terms, values.tolist(), strict=True):
                self._check_term(name, value, number)
                sums[name] = sums.get(name, 0.0) + value * samples
            self.optimizer.step()
            self.schedule.step()
            correct = correct + count_correct(loss.logits, y, Vote())
            bar.update()
        self.workers.add([correct])
        self._check_weights()
        samples = len(self.data.train)
        return {
            "epoch": self.epoch + 1,
            **({"stage": self.stage + 1} if self.stages > 1 else {}),
            **{name: value / samples for name, value in sums.items()},
            "train_accuracy": share_correct(correct, samples).to_json(),
            "learning_rate": rate,
        }

    def _exchange(self, terms: Tensor, share: float) -> None:
        """Gradients, terms and running statistics of the batch, from the means over the workers' shares."""
        if self.workers.size == 1:
            return
        gradients = [weight.grad for weight in self.ensemble.parameters() if weight.grad is not None]
        running = [each for name, each in self.ensemble.named_buffers() if ".running_" in name]
        shared = [*gradients, terms, *running]
        for tensor in shared:
            tensor.mul_(share)
        self.workers.add(shared)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None, int, slice]]:
        """This worker's samples of each batch, their weights, the batch's size, and their place in it."""
        split = self.data.train
        order = torch.randperm(len(split), generator=self.generators["order"]).to(split.x.device)
        for rows in order.split(self.config.batch_size):
            x = self.data.augment(split.x[rows], self.generators["augmentation"])
            mine = self.workers.share(len(rows))
            sample_weights = None if self.sample_weights is None else self.sample_weights[rows[mine]]
            yield x[mine], split.y[rows[mine]], sample_weights, len(rows), mine

    def _step(self, number: int, draw: float, sample_weights: Tensor | None) -> Step:
        ramp_steps = self.config.ramp * self.config.epochs * self.steps_per_epoch
        epoch = self.epoch - self.stage * self.config.epochs
        done = epoch * self.steps_per_epoch + number
        return Step(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            stage=self.stage,
            ramp=min(1.0, done / ramp_steps) if ramp_steps else 1.0,
            pixel_range=self.data.pixel_range,
            mixed_precision=self.config.mixed_precision,
            fast=self.config.fast,
            epoch_draw=draw,
            generator=self.generators["objective"],
            sample_weights=sample_weights,
        )

    def _check_term(self, name: str, value: float, number: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"expected a finite loss, got {name} = {value} "
                f"in epoch {self.epoch + 1}, step {number + 1} of {self.steps_per_epoch}"
            )

    def _check_weights(self) -> None:
        for name, tensor in self.ensemble.state_dict().items():
            if not tensor.isfinite().all():
                raise TrainingError(
                    f"expected finite weights, got NaN or infinity in {name} after epoch {self.epoch + 1}"
                )

    def save(self, output: Path) -> None:
        """Write the checkpoint, then the state from which to go on; the first of several workers does."""
        if self.workers.rank > 0:
            self.saved = self.epoch
            return
        metadata = {
            "dataset": self.data.name,
            "training": self.config.to_json(),
            "epoch": self.epoch,
            "history": self.history,
            "metrics": {"test_accuracy": evaluate(self.ensemble, self.data.test).to_json()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        save_checkpoint(output, self.ensemble, metadata)
        self.save_state(output)
        self.saved = self.epoch

    def save_state(self, output: Path) -> None:
        """Write all that `load` needs, as one file."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"weights/{name}": value for name, value in self.ensemble.state_dict().items()}
        tensors |= {
            f"optimizer/{index}/{name}": value
            for index, entries in optimizer["state"].items()
            for name, value in entries.items()
            if value is not None
        }
        tensors |= {f"generator/{name}": value.get_state() for name, value in self.generators.items()}
        save_tensors(
            state_path(output),
            tensors,
            {
                "schema": _STATE_SCHEMA,
                "training": self.config.to_json(),
                "data": self._data_digest,
                "epoch": self.epoch,
                "vote": asdict(self.ensemble.vote),
                "history": self.history,
                "param_groups": optimizer["param_groups"],
                "schedule": self.schedule.last_epoch,
            },
        )

    def load(self, output: Path) -> None:
        """Take over the state of an earlier run of the same configuration on the same data."""
        path = state_path(output)
        tensors, metadata = load_tensors(path)
        if metadata.get("schema") != _STATE_SCHEMA:
            found = metadata.get("schema")
            raise TrainingError(f"expected schema {_STATE_SCHEMA!r} in {path}, got {found!r}")
        _check_same_config(path, metadata["training"], self.config.to_json())
        if metadata["data"] != self._data_digest:
            raise TrainingError(f"expected the training points that {path} was trained on, got others")
        self.ensemble.load_state_dict(_below("weights", tensors))
        self.ensemble.vote = Vote(**metadata["vote"])
        self.epoch = self.saved = metadata["epoch"]
        self.history = metadata["history"]
        self.start_stage(min(self.epoch // self.config.epochs, self.stages - 1))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer", tensors).items():
            index, entry = name.split("/")
            state.setdefault(int(index), {})[entry] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": metadata["param_groups"]})
        # The rest of a schedule's state follows from the configuration.
        done = metadata["schedule"]
        self.schedule.load_state_dict({"last_epoch": done, "_step_count": done + 1})
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"generator/{name}"])

    @cached_property
    def _data_digest(self) -> str:
        digest = hashlib.sha256()
        for part in (self.data.train.x, self.data.train.y):
            digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}/")
    }


def _check_same_config(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    saved, wanted = _flatten(saved), _flatten(wanted)
    for name in sorted({*saved, *wanted} - set(_FREE_ON_RESUME)):
        if saved.get(name) != wanted.get(name):
            raise TrainingError(
                f"expected {name} = {saved.get(name)!r}, as in {path}, to resume, got {wanted.get(name)!r}"
            )


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= (
            {f"{name}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat
