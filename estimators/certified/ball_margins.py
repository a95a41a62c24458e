"""The margins of one model over balls, from every side that a transfer certificate looks at.

First what is cheap, for every sample: a tangent with its offset, floors, and quadratic bounds that are not
written out. Then, only where a certificate may still be found (`refuted`), the closer look (`refined`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.certificate import Norm
from bounds.dual import Bools, Floats
from bounds.joint import MarginBounds
from bounds.must_transfer import must_transfer
from estimators.certified.expansion import Expansion, Functionals, dual_norm
from estimators.certified.quadratic import QuadraticBounds, quadratic_bounds

# Symmetric eigenvalue problems are solved up to this input size.
_MATRIX_INPUTS = 256
# Numbers in the matrices that are looked at together.
_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False)
class BallMargins:
    """The L margins that an attack on one model has to overcome, over the balls around n samples.

    Attributes:
        functionals: The margins, expanded.
        below: Quadratic bounds from below, and
        above: from above; None where there are none.
        values: At the centres, (n, L).
        slopes: Their gradients there, (n, L, d).
        rise: Bounds on how far they rise above their tangents, (n, L).
        offsets: p with `m(x + d) >= p + d.g`, (n, L).
        floors: Lower bounds on them over the balls, (n, L).
        right: Whether the model is right at the centres, (n,).
    """

    functionals: Functionals
    below: QuadraticBounds | None
    above: QuadraticBounds | None
    values: Floats
    slopes: Floats
    rise: Floats
    offsets: Floats
    floors: Floats
    right: Bools

    def overcome(self, steps: Floats, *, targeted: bool) -> Bools:
        """Whether steps (n, S, d) overcome the lower bounds, all of them at once, (n, S).

        Untargeted those on one margin, targeted those on every margin.
        """
        if self.below is None:
            return np.zeros(steps.shape[:2], dtype=bool)
        f = self.functionals
        after = torch.from_numpy(steps).to(f.values)
        affine = (f.values - f.fall).unsqueeze(1) + after @ f.gradients.mT
        heights = torch.maximum(self.below.at(after), affine)
        beaten = torch.maximum(heights, (f.values - f.moves).unsqueeze(1)) <= 0
        return (beaten.all(2) if targeted else beaten.any(2)).cpu().numpy()


def ball_margins(expansion: Expansion, y: Tensor, aim: Tensor, *, targeted: bool) -> BallMargins:
    """Bound a network's margins over balls, as far as it is cheap.

    Args:
        expansion: The network over the balls.
        y: True labels (n,).
        aim: Labels (n,) that the margins are about: the true ones, or those that a targeted attack wants.
        targeted: Untargeted, margin k is z_y - z_k; targeted it is z_k - z_t, and all have to be overcome.
    """
    radius, norm, logits = expansion.radius, expansion.norm, expansion.logits
    identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    others = torch.arange(len(identity), device=logits.device).expand(len(y), -1)
    others = others[others != aim.unsqueeze(1)].reshape(len(y), -1)
    seeds = identity[aim].unsqueeze(1) - identity[others]
    margins = expansion.functionals(-seeds if targeted else seeds)
    affordable = margins.gradients.shape[2] <= _MATRIX_INPUTS
    below, above = (quadratic_bounds(margins, sign) if affordable else None for sign in (1.0, -1.0))
    offsets = margins.values - margins.fall
    floors = torch.maximum(_lowest(offsets, margins.gradients, radius, norm), margins.values - margins.moves)
    right = logits.argmax(1) == y
    numbers = (margins.values, margins.gradients, margins.rise, offsets, floors, right)
    return BallMargins(margins, below, above, *(each.cpu().numpy() for each in numbers))


def refuted(
    members: Sequence[BallMargins],
    subsets: Sequence[tuple[int, ...]],
    radius: float,
    norm: Norm,
    *,
    targeted: bool,
) -> dict[tuple[int, ...], Bools]:
    """By subset, samples (n,) for which one step overcomes every bound that a certificate could rest on.

    The step that would do so if the margins were affine is tried, of every subset for all of them. It costs a
    look at the quadratic bounds after that step, and saves their matrices; no certificate is lost by it.
    """
    steps = np.stack(
        [
            _likely_step([members[model] for model in subset], radius, norm, targeted=targeted)
            for subset in subsets
        ],
        axis=1,
    )
    overcome = [one.overcome(steps, targeted=targeted) for one in members]
    return {
        subset: np.logical_and.reduce([overcome[model] for model in subset]).any(axis=1) for subset in subsets
    }


def _likely_step(members: Sequence[BallMargins], radius: float, norm: Norm, *, targeted: bool) -> Floats:
    """Steps (n, d) that overcome the affine bounds of these models, where there are such."""
    step = np.zeros_like(members[0].slopes[:, 0])
    open_ = [(one.floors <= 0).all(axis=1) if targeted else (one.floors <= 0).any(axis=1) for one in members]
    samples = np.flatnonzero(np.logical_and.reduce(open_))
    if not len(samples):
        return step
    every = np.arange(members[0].floors.shape[1])[None]
    # Untargeted, of each model the margin that is the nearest to being overcome.
    labels = [every if targeted else one.floors[samples].argmin(axis=1)[:, None] for one in members]
    rows = samples[:, None]
    offsets = [one.offsets[rows, label] for one, label in zip(members, labels, strict=True)]
    slopes = [one.slopes[rows, label] for one, label in zip(members, labels, strict=True)]
    found = must_transfer(np.concatenate(offsets, 1), np.concatenate(slopes, 1), 0.0, radius, norm)
    step[samples] = found.direction
    return step


def refined(one: BallMargins, wanted: Bools, radius: float, norm: Norm, *, targeted: bool) -> MarginBounds:
    """Bounds from below, looked at closer for the wanted samples (n,) where they decide nothing yet."""
    f = one.functionals
    offsets, floors = (torch.from_numpy(each).to(f.values) for each in (one.offsets, one.floors))
    open_ = (floors <= 0) & torch.from_numpy(wanted).to(floors.device).unsqueeze(1)
    # One margin that cannot be overcome settles a targeted attack.
    open_ = torch.nonzero(open_ & ~((floors > 0).any(1, keepdim=True) & targeted))
    dimension = f.gradients.shape[2]
    if radius > 0:
        offsets = offsets.clone()
        for part in open_.split(max(1, _ENTRIES // dimension**2)):
            samples, labels = part.unbind(1)
            if one.below is None:
                fall = f.refined_fall(samples, labels)
            else:
                bend = _bend(one.below.matrices(samples, labels), norm)
                fall = one.below.constants[samples, labels] + bend * radius**2 / 2
            better = f.values[samples, labels] - fall
            offsets[samples, labels] = torch.maximum(offsets[samples, labels], better)
        floors = torch.maximum(floors, _lowest(offsets, f.gradients, radius, norm))
    quadratic = None if norm == "linf" or one.below is None else partial(_matrices, one.below)
    return MarginBounds(offsets.cpu().numpy(), one.slopes, floors.cpu().numpy(), quadratic)


def _matrices(
    below: QuadraticBounds, samples: NDArray[np.intp], labels: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """`MarginBounds.quadratic`."""
    values = below.functionals.values
    where = torch.from_numpy(samples).to(values.device), torch.from_numpy(labels).to(values.device)
    return (values[where] - below.constants[where]).cpu().numpy(), below.matrices(*where).cpu().numpy()


def _lowest(offsets: Tensor, slopes: Tensor, radius: float, norm: Norm) -> Tensor:
    """The least that `p + d.g` can be in the ball, (n, L), rounded down."""
    return offsets - radius * dual_norm(slopes, norm, 2) * (1 + 1e-12)


def _bend(matrices: Tensor, norm: Norm) -> Tensor:
    """Upper bound (m,) on `d^T Q d` over the unit ball, for symmetric Q (m, d, d)."""
    size = torch.linalg.matrix_norm(matrices)
    top = (torch.linalg.eigvalsh(matrices)[:, -1] + 1e-9 * size).clamp_min(0.0)
    if norm == "l2":
        return top
    # In linf: the trace of any diagonal matrix above Q; these two are the plainest.
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    entries = matrices.abs().sum((1, 2)) - diagonal.abs().sum(1) + diagonal.clamp_min(0.0).sum(1)
    return torch.minimum(entries * (1 + 1e-9), matrices.shape[1] * top)
