"""Several processes, started by torchrun, that share the samples: each takes its part of every batch or set.

No sample is padded in or left out: parts may differ by one sample, and what is summed is weighted by it.
Where samples do not influence each other the result is that of one process, up to rounding. In training mode
batch normalisation does mix samples: as in torch's own data parallelism it sees those of its process alone,
and the running statistics are averaged, so that such networks train as with smaller batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

# How long a process waits for the others: longer than any of them is alone between two exchanges.
TIMEOUT = timedelta(minutes=30)


class WorkerLost(RuntimeError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Workers:
    """The processes that work together; a process on its own is the first of one.

    Attributes:
        rank: Number of this process, from 0. The first one writes files.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """This process' part of `count` samples: contiguous, together all, empty where there are too few."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over the processes in the place of each tensor, in one exchange.

        Raises:
            WorkerLost: If a process is gone.
        """
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
        with _lost_workers():
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
            with torch.no_grad():
                tensor.copy_(part.view_as(tensor))

    def measure(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, with each process computing the rows of its share, and all getting all.

        Args:
            function: Per-sample: from tensors (n, ...) to a tensor (n, ...), the same on every process.
                Random draws of its own (the random starts of PGD) are those of its rows, not of the set.
            inputs: (n, ...) the whole set, the same on every process.

        Raises:
            ValueError: If there are fewer samples than processes, or the result has not a row a sample.
            WorkerLost: If a process is gone.
        """
        count = len(inputs[0])
        if count < self.size:
            raise ValueError(f"expected at least a sample for each of {self.size} processes, got {count}")
        rows = self.share(count)
        mine = function(*(each[rows] for each in inputs))
        if len(mine) != rows.stop - rows.start:
            raise ValueError(f"expected {rows.stop - rows.start} rows, one a sample, got {len(mine)}")
        if self.size == 1:
            return mine
        # Every row has one process that knows it; to the others it is 0, and the sum is exact.
        whole = mine.new_zeros(
            count, *mine.shape[1:], dtype=torch.uint8 if mine.dtype == torch.bool else None
        )
        whole[rows] = mine
        with _lost_workers():
            distributed.all_reduce(whole)
        return whole.to(mine.dtype)


@contextmanager
def _lost_workers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerLost(f"another process of the run has ended: {str(error).splitlines()[0]}") from error


def launched_rank() -> int:
    """Number of this process among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """The processes that torchrun started together with this one; alone where it did not.

    They exchange by nccl on GPUs, each having the one of its local rank, else by gloo.

    Raises:
        WorkerLost: If they do not find each other.
    """
    if distributed.is_initialized():
        yield Workers(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _lost_workers():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Workers(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
