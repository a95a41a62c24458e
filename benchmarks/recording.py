"""What the benchmarks have in common: fair timing, what they ran on, and how results are written.

Ways of doing the same work are timed in turns, round by round, so that a busy machine slows all alike, in
processor time on the CPU and in wall time on a GPU; a speed-up is the median of the rounds' ratios.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from empirical.files import write_json

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")

Work = Callable[[], object]


class Budget:
    """A limit in wall-clock seconds, from when it is made; None is no limit."""

    def __init__(self, limit: float | None) -> None:
        self._end = None if limit is None else time.monotonic() + limit

    @property
    def spent(self) -> bool:
        """Whether the time is up."""
        return self._end is not None and time.monotonic() >= self._end


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages."""
    return {package: importlib.metadata.version(package) for package in packages}


def is_installed(package: str) -> bool:
    """Whether a package is there."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def environment(*packages: str, device: torch.device = CPU) -> dict[str, Any]:
    """Versions and hardware of this run; further packages by name."""
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(), **versions("torch", *packages), "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu", "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def record(
    output: Path, schema: int, results: Mapping[str, Any], *packages: str, device: torch.device = CPU
) -> None:
    """Write results as strict JSON, atomically, after the environment that they come from."""
    write_json(output, {"schema": schema, **environment(*packages, device=device), **results})


def seconds(work: Work, device: torch.device = CPU) -> float:
    """Of one call: processor time on the CPU, wall time until the device is done on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(
    ways: Mapping[str, Work], rounds: int, device: torch.device = CPU, budget: Budget | None = None
) -> dict[str, list[float]]:
    """Seconds of each way in each round: the first is made in any case, the others while there is time."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        if number and budget is not None and budget.spent:
            break
        for way, work in ways.items():
            times[way].append(seconds(work, device))
    return times


def speed(times: Mapping[str, list[float]], way: str, reference: str) -> dict[str, Any]:
    """Median seconds of a way, and how many times as fast as the reference it is, round by round."""
    ratios = [theirs / own for theirs, own in zip(times[reference], times[way], strict=True)]
    return {
        "seconds": statistics.median(times[way]), "speedup": statistics.median(ratios),
        "smallest_speedup": min(ratios), "largest_speedup": max(ratios), "rounds": len(ratios),
    }  # fmt: skip


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes: on the CPU the largest resident memory of this process so far, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def say(row: Mapping[str, Any]) -> None:
    """Print a result on one line."""
    print(" ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}"
                   for key, value in row.items()), flush=True)  # fmt: skip
