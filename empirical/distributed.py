"""Several processes, started by torchrun, that share the samples: each takes its part of every batch or set.

No sample is padded in or left out: parts may differ by one sample, and what is summed is weighted by it.
Where samples do not influence each other the result is that of one process, up to rounding. In training mode
batch normalisation does mix samples: as in torch's own data parallelism it sees those of its process alone,
and the running statistics are averaged, so that such networks train as with smaller batches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from estimators.sharing import PerSample, sharing

# How long a process waits for the others, which may each be training an ensemble of its own. One that dies is
# noticed at once: its connections close, or torchrun ends the others.
TIMEOUT = timedelta(days=2)

Fetched = TypeVar("Fetched")


class WorkerLost(ConnectionError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Workers:
    """The processes that work together; a process on its own is the first of one.

    Attributes:
        rank: Number of this process, from 0.
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

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, estimators, certificates and attacks are shared out by samples (see `estimators.sharing`).

        Each process calls the same ones on the same whole sets and gets the results for the whole set. Random
        starts are those of the set, so that it does not matter by how many processes it is shared.
        """
        with nullcontext() if self.size == 1 else sharing(self.measure):
            yield

    def measure(self, function: PerSample, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`function(*inputs)`, with each process computing the rows of its share, and all getting all.

        Where there are fewer samples than processes each computes them all.

        Args:
            function: Per-sample: from tensors (n, ...) to tensors (n, ...), the same on every process.
            inputs: (n, ...) the whole set, the same on every process.

        Raises:
            ValueError: If a result has not a row a sample.
            WorkerLost: If a process is gone.
        """
        count = len(inputs[0])
        if count < self.size:
            return function(*inputs)
        rows = self.share(count)
        return tuple(self._whole(part, rows, count) for part in function(*(each[rows] for each in inputs)))

    def _whole(self, mine: Tensor, rows: slice, count: int) -> Tensor:
        """All rows, from those that each process has."""
        if len(mine) != rows.stop - rows.start:
            raise ValueError(f"expected {rows.stop - rows.start} rows, one a sample, got {len(mine)}")
        # Every row has one process that knows it; to the others it is 0, and the sum is exact.
        dtype = torch.uint8 if mine.dtype == torch.bool else mine.dtype
        whole = torch.zeros(count, *mine.shape[1:], dtype=dtype, device=mine.device)
        whole[rows] = mine
        with _lost_workers():
            distributed.all_reduce(whole)
        return whole.to(mine.dtype)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def check_enough(self, samples: int) -> None:
        """Refuse to share out fewer samples than there are processes.

        Raises:
            ValueError: If there are.
        """
        if samples < self.size:
            raise ValueError(f"expected a sample for each of {self.size} processes, got {samples}")

    def wait(self) -> None:
        """Go on when all have come here.

        Raises:
            WorkerLost: If a process is gone.
        """
        self.agree([True])

    def first_alone(self, fetch: Callable[[], Fetched]) -> Fetched:
        """What `fetch` gives: the first process calls it first, so that the others find what it downloads.

        Raises:
            WorkerLost: If a process is gone.
        """
        if self.first:
            found = fetch()
            self.wait()
            return found
        self.wait()
        return fetch()

    def agree(self, there: Sequence[bool]) -> list[bool]:
        """What the first process finds there, on every process; none goes on before all have come here.

        Raises:
            ValueError: If this one does not find it.
            WorkerLost: If a process is gone.
        """
        said = torch.tensor([each and self.first for each in there], dtype=torch.float64)
        self.add([said])
        first = [bool(each) for each in said]
        if any(each and not mine for each, mine in zip(first, there, strict=True)):
            raise ValueError("expected every process to see the folder of the first one, got another folder")
        return first


ALONE = Workers()


@contextmanager
def _lost_workers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Without the line of the library's source that it begins with, and the advice that it ends with.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise WorkerLost(f"another process of the run has ended: {reason}") from error


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """The processes that torchrun started together with this one; alone where it did not.

    They exchange by nccl what lies on GPUs, each having the one of its local rank, and by gloo what does not.

    Raises:
        WorkerLost: If they do not find each other.
    """
    if distributed.is_initialized():
        yield Workers(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _lost_workers():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
        )
    try:
        yield Workers(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
