"""Sample by sample: the one way in which estimators, certificates and attacks go through a set.

What is computed of each sample on its own is computed in batches, so that memory is bounded by the batch, and
where several processes work together (`sharing`) each does so for its share of the samples, and all get the
results of all. Everything else, drawing random starts and drawing conclusions among it, is done by every
process from the whole set, so that its numbers are those of one process up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from estimators.batching import fitting_batches

PerSample = Callable[..., tuple[Tensor, ...]]
"""From tensors (n, ...) to tensors (n, ...), row by row."""
Measure = Callable[..., tuple[Tensor, ...]]
"""From a `PerSample` and its inputs, the same on every process, to its results for the whole set."""

_measure: ContextVar[Measure | None] = ContextVar("measure", default=None)


@contextmanager
def sharing(measure: Measure) -> Iterator[None]:
    """Share out what is computed sample by sample, as `empirical.distributed.Workers.measure` does.

    Every process has to call the same functions on the same sets in the same order.
    """
    token = _measure.set(measure)
    try:
        yield
    finally:
        _measure.reset(token)


def in_batches(function: PerSample, batch_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`function` of batches of inputs (n, ...), as results (n, ...) of the whole set."""

    def own(*inputs: Tensor) -> tuple[Tensor, ...]:
        return _joined(fitting_batches(function, batch_size, *inputs))

    return shared(own, *inputs)


def pairs_in_batches(function: PerSample, batch_size: int, y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`function(labels, *inputs)` with a row for each pair of a sample and one of its labels.

    Args:
        function: From labels (m,) and inputs (m, ...) to results (m, ...).
        batch_size: Largest m.
        y: Labels (n,) or (n, L).
        inputs: (n, ...); every label of a sample meets the same row.

    Returns:
        Results (n * L, ...) in the order of `y.flatten()`.
    """

    def own(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        each = y[0].numel()

        def some(labels: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
            return function(labels, *(tensor[pairs // each] for tensor in inputs))

        pairs = torch.arange(y.numel(), device=y.device)
        columns = _joined(fitting_batches(some, batch_size, y.flatten(), pairs))
        return tuple(column.unflatten(0, (len(y), each)) for column in columns)

    return tuple(column.flatten(0, 1) for column in shared(own, y, *inputs))


def shared(function: PerSample, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`function` of the whole set, each process computing its share of the rows where the work is shared."""
    measure = _measure.get()
    if measure is None:
        return function(*inputs)
    token = _measure.set(None)  # a share is not shared out again
    try:
        return measure(function, *inputs)
    finally:
        _measure.reset(token)


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
