"""Time a TRS training step against the published one, at equal work and at each one's own settings.

    python benchmarks/training_step.py [--models mlp lenet resnet20] [--device cpu] [--batch 64] [--rounds 9]

On a GPU, one command, made to end well inside ten minutes:

    python benchmarks/training_step.py --device cuda --models resnet20 --batch 128 --rounds 9

Three ensembles of three members: an MLP 784-128-128-10 and a LeNet on 28x28 images, ResNet-20 on 32x32 colour
images, on random pixels (a step's time does not depend on them). The published step is rendered in
`published_trs.py`. Cases:

- equal work: one search for all members, five steps of a quarter of the radius from the samples, whole batch;
- paper settings: the same, with one search for each pair of members;
- official preset: what the code itself does (six steps, half the batch, random start), by our readable
  rendering of it, `trs-official`.

Ours is measured as users get it ("fast") and with the switch off ("plain"). Steps are interleaved, so that a
busy machine slows all alike; a ratio is the median of the rounds' ratios, in processor time on the CPU.
The floor is the time of the step's convolutions and matrix products alone, counted by torch's own counter of
floating-point operations, at the rate that a large matrix product reaches on the device in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from published_trs import CODE, JOINT, PAPER, Search, published_step
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from empirical.files import write_json
from empirical.models import ModelConfig, build_model
from empirical.objectives import TRS, Step, TRSOfficial

SCHEMA = 1
MEMBERS = 3
CLASSES = 10
MODELS = {
    "mlp": (ModelConfig("mlp", "relu", (128, 128)), (1, 28, 28)),
    "lenet": (ModelConfig("lenet", "relu"), (1, 28, 28)),
    "resnet20": (ModelConfig("resnet20", "relu"), (3, 32, 32)),
}
WEIGHTS = (0.5, 0.1)
RADIUS = 0.1

Training = Callable[[], object]


def ensemble(name: str, device: torch.device) -> nn.ModuleList:
    """Fresh members, the same in every call."""
    config, shape = MODELS[name]
    torch.manual_seed(0)
    return nn.ModuleList(
        build_model(config, shape=shape, classes=CLASSES) for _ in range(MEMBERS)
    ).to(device)  # fmt: skip


def published(name: str, x: Tensor, y: Tensor, search: Search) -> Training:
    """The published step, with Adam."""
    members = ensemble(name, x.device)
    optimizer = torch.optim.Adam(members.parameters())
    return lambda: published_step(members, x, y, optimizer, RADIUS, WEIGHTS, search)


def ours(name: str, x: Tensor, y: Tensor, objective: TRS | TRSOfficial, fast: bool) -> Training:
    """Our step as `empirical.training` makes it, with Adam."""
    members = ensemble(name, x.device)
    weights = list(members.parameters())
    optimizer = torch.optim.Adam(weights, fused=fast)

    def step() -> float:
        loss = objective(members, x, y, Step(fast=fast))
        optimizer.zero_grad()
        loss.total.backward(inputs=weights)
        optimizer.step()
        return float(loss.total.detach())

    return step


def steps(name: str, x: Tensor, y: Tensor) -> dict[str, dict[str, Training]]:
    """Of each case the published step ("published") and ours."""
    pair = TRS(*WEIGHTS, RADIUS, RADIUS)
    joint = TRS(*WEIGHTS, RADIUS, RADIUS, "joint")
    official = TRSOfficial(*WEIGHTS, RADIUS, RADIUS, flips=False)
    return {
        "equal work": {
            "published": published(name, x, y, JOINT),
            "fast": ours(name, x, y, joint, True),
            "plain": ours(name, x, y, joint, False),
        },
        "paper settings": {
            "published": published(name, x, y, PAPER),
            "fast": ours(name, x, y, pair, True),
            "plain": ours(name, x, y, pair, False),
        },
        "official preset": {
            "published": published(name, x, y, CODE),
            "trs-official": ours(name, x, y, official, True),
        },
    }


def seconds(step: Training, device: torch.device) -> float:
    """Of one step: processor time on the CPU, wall time on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class OperationCounter(TorchDispatchMode):
    """Counts with the formulas of torch's own counter, which itself trips over `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def operations(step: Training) -> int:
    """Floating-point operations of a step's convolutions and matrix products."""
    with OperationCounter() as counter:
        step()
    return counter.total


def ceiling(device: torch.device, size: int = 1024) -> float:
    """Floating-point operations per second of a large float32 matrix product: the best of five."""
    a = torch.rand(size, size, device=device)
    return max(2 * size**3 / seconds(lambda: a @ a, device) for _ in range(5))


def measure(name: str, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One record for each case and way of computing it."""
    _, shape = MODELS[name]
    x = torch.rand(batch, *shape, device=device)
    y = torch.randint(CLASSES, (batch,), device=device)
    records = []
    for case, ways in steps(name, x, y).items():
        for step in ways.values():
            step()  # allocations, choice of kernels
        flops = {way: operations(step) for way, step in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, step in ways.items():
                times[way].append(seconds(step, device))
        rate = ceiling(device)
        for way, found in times.items():
            ratios = [a / b for a, b in zip(times["published"], found, strict=True)]
            record = {
                "model": name, "batch": batch, "case": case, "way": way,
                "seconds": statistics.median(found), "speedup": statistics.median(ratios),
                "smallest_speedup": min(ratios), "largest_speedup": max(ratios),
                "gigaflop": flops[way] / 1e9,
                "fraction_of_floor": flops[way] / rate / statistics.median(found),
            }  # fmt: skip
            records.append(record)
            print(" ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value)
                           for key, value in record.items()), flush=True)  # fmt: skip
    return records


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="default: results/training_step[_cuda].json here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cases = []
    for name in arguments.models:
        cases += measure(name, arguments.batch, arguments.rounds, device)
    suffix = "_cuda" if device.type == "cuda" else ""
    output = arguments.output or Path(__file__).parent / "results" / f"training_step{suffix}.json"
    cuda = device.type == "cuda"
    write_json(output, {
        "schema": SCHEMA, "python": platform.python_version(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else "cpu", "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "rounds": arguments.rounds, "members": MEMBERS,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "cases": cases,
    })  # fmt: skip


if __name__ == "__main__":
    main()
