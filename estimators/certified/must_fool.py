"""What must transfer (R7): steps that are proved to fool models, from bounds on their margins from above."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.certificate import Norm
from bounds.dual import Bools, Floats
from bounds.must_transfer import Curvature, MustTransfer, must_transfer, must_transfer_curved
from estimators.certified.ball_margins import BallMargins
from estimators.certified.quadratic import QuadraticBounds

# About so many choices of labels are tried.
_CHOICES = 9


def must_fool(
    members: Sequence[BallMargins], open_: Bools, radius: float, norm: Norm, *, targeted: bool
) -> MustTransfer:
    """R7 for all these models, the first choice of labels that is proved.

    Args:
        members: The models' margins, for the same samples.
        open_: Samples (n,) to look at.
        radius: Radius of the balls.
        norm: Of the balls.
        targeted: As for `ball_margins`.
    """
    n, _, dimension = members[0].slopes.shape
    guaranteed: Bools = np.zeros(n, dtype=bool)
    direction = np.zeros((n, dimension))
    for labels in _promising(members, radius, norm, targeted=targeted):
        samples = np.flatnonzero(open_ & ~guaranteed)
        if not len(samples):
            break
        found = _for_labels(members, samples, labels[samples], radius, norm)
        direction[samples] = found.direction
        guaranteed[samples] = found.guaranteed
    return MustTransfer(guaranteed, direction)


def _promising(
    members: Sequence[BallMargins], radius: float, norm: Norm, *, targeted: bool
) -> Iterator[NDArray[np.intp]]:
    """Choices (n, S, P) of the P margins of each of S models that a step might overcome.

    Targeted: all of them. Untargeted: one for each model, among those that seem nearest.
    """
    n, labels = members[0].values.shape
    if targeted:
        yield np.broadcast_to(np.arange(labels), (n, len(members), labels))
        return
    count = min(labels, max(1, round(_CHOICES ** (1 / len(members)))))
    nearest = []
    for one in members:
        pull = np.linalg.norm(one.slopes, ord=2 if norm == "l2" else 1, axis=2)
        order: NDArray[np.intp] = np.argsort(one.values + one.rise - radius * pull, axis=1)
        nearest.append(order[:, :count])
    for ranks in itertools.product(range(count), repeat=len(members)):
        yield np.stack([near[:, rank] for near, rank in zip(nearest, ranks, strict=True)], 1)[:, :, None]


def _for_labels(
    members: Sequence[BallMargins],
    samples: NDArray[np.intp],
    labels: NDArray[np.intp],
    radius: float,
    norm: Norm,
) -> MustTransfer:
    """R7 for the margins (m, S, P) of these samples."""
    rows = samples[:, None]
    chosen = list(zip(members, labels.swapaxes(0, 1), strict=True))
    margins, rise, slopes = (
        np.concatenate([getattr(one, name)[rows, label] for one, label in chosen], axis=1)
        for name in ("values", "rise", "slopes")
    )
    found = must_transfer(margins + rise, slopes, 0.0, radius, norm)
    rest = np.flatnonzero(~found.guaranteed)
    if len(rest) and norm == "l2" and all(one.above is not None for one in members):
        above = [one.above for one in members if one.above is not None]
        device = above[0].constants.device
        picked = (torch.from_numpy(each[rest]).to(device) for each in (samples, labels))
        curvature, constants = _curvature(above, *picked)
        curved = must_transfer_curved(
            margins[rest] + constants, slopes[rest], curvature, radius, found.direction[rest]
        )
        found.guaranteed[rest] = curved.guaranteed
        found.direction[rest] = curved.direction
    # What is wrong already needs no step, and no bound on the curvature.
    wrong: Bools = np.all(margins < 0, axis=1)
    return MustTransfer(
        found.guaranteed | wrong, np.where(wrong[:, None], 0.0, found.direction)
    )  # fmt: skip


def _curvature(
    bounds: Sequence[QuadraticBounds], samples: Tensor, labels: Tensor
) -> tuple[Curvature, Floats]:
    """The matrices of the margins (m, S, P) of these samples, and their constants (m, S P)."""

    def push(index: NDArray[np.intp], steps: Floats) -> Floats:
        at, step = torch.from_numpy(index).to(samples.device), torch.from_numpy(steps).to(samples.device)
        parts = [one.pushed(samples[at], labels[at, i], step) for i, one in enumerate(bounds)]
        return torch.cat(parts, 1).cpu().numpy()

    def column(name: str) -> Floats:
        rows = samples.unsqueeze(1)
        parts = [getattr(one, name)[rows, labels[:, i]] for i, one in enumerate(bounds)]
        return torch.cat(parts, 1).cpu().numpy()

    return Curvature(push, column("sizes"), column("dips")), column("constants")
