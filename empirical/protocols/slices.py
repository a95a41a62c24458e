"""Decision boundaries around a sample, in a plane through it (TRS, Figure 5).

One axis of the plane is the gradient of a model's loss at the sample (for log-probabilities the negative
gradient of the true class's output, which the paper draws), the other a random direction orthogonal to it.
Points may leave the pixel range: a slice shows the function, not what an attacker may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bounds.estimate import json_number
from empirical.attacks import predict
from empirical.attacks.base import Goal, evaluate
from empirical.attacks.perturbation import normalised
from empirical.pullback import with_pullback
from estimators.batching import DEFAULT_BATCH, check_inputs, check_labels, frozen

RAYS = ("gradient", "against gradient", "orthogonal", "against orthogonal")
_HALVINGS = 20


@dataclass(frozen=True)
class BoundarySlice:
    """Predicted labels on a square grid around one sample.

    Attributes:
        offsets: Positions (R,) of rows and columns, in l2 length from the sample; rows go along the gradient
            of the loss, columns along the orthogonal direction.
        labels: For each model by name the predicted labels, R rows of R columns.
        distances: For each model and each of `RAYS` the l2 distance from the sample at which its prediction
            first changes: between two neighbouring offsets found by bisection, so that a change and back
            within one spacing may be missed. Infinite if none is seen.
        label: The sample's true label.
        seed: Seed of the orthogonal direction.
    """

    offsets: tuple[float, ...]
    labels: Mapping[str, tuple[tuple[int, ...], ...]]
    distances: Mapping[str, Mapping[str, float]]
    label: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; an infinite distance becomes the string "inf"."""
        return {
            "offsets": list(self.offsets),
            "labels": {name: [list(row) for row in grid] for name, grid in self.labels.items()},
            "distances": {
                name: {ray: json_number(value) for ray, value in rays.items()}
                for name, rays in self.distances.items()
            },
            "label": self.label,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BoundarySlice:
        """The slice that `to_json` described."""
        return cls(
            tuple(fields["offsets"]),
            {name: tuple(map(tuple, grid)) for name, grid in fields["labels"].items()},
            {
                name: {ray: float(value) for ray, value in rays.items()}
                for name, rays in fields["distances"].items()
            },
            fields["label"],
            fields["seed"],
        )


def boundary_slice(
    steepest: nn.Module,
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    extent: float = 10.0,
    spacing: float = 0.2,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> BoundarySlice:
    """Predict on a grid of `spacing` up to `extent` in both directions of both axes.

    Args:
        steepest: The model, usually the ensemble, whose cross-entropy gradient is the first axis.
        models: The models to draw, by name: the ensemble, its members.
        x: One sample (1, *shape).
        y: Its true label (1,).
        extent: How far the grid reaches, in l2.
        spacing: Distance of neighbouring points of the grid.
        seed: Seed of the second axis.
        batch_size: Points per forward pass.

    Raises:
        TypeError: If the image is not floating point or the label no integer.
        ValueError: If there is not one sample or no model, extent or spacing are not positive, the sample has
            fewer than two numbers, or the gradient is zero, which leaves the plane undefined.
    """
    if len(x) != 1 or x[0].numel() < 2:
        raise ValueError(f"expected one sample (1, ...) of at least two numbers, got {tuple(x.shape)}")
    if not models:
        raise ValueError("expected at least one model to draw, got none")
    if not 0 < spacing <= extent < float("inf"):
        raise ValueError(f"expected 0 < spacing <= extent, got spacing {spacing} and extent {extent}")
    classes = check_inputs((steepest, *models.values()), x, batch_size)
    y = check_labels(y, x, classes)

    axes = _axes(steepest, x, y, seed)
    count = int(extent / spacing + 1e-9)
    offsets = spacing * torch.arange(-count, count + 1, dtype=x.dtype, device=x.device)
    side = len(offsets)
    plane = torch.cartesian_prod(offsets, offsets)  # the first axis outermost: rows
    labels, distances = {}, {}
    for name, model in models.items():
        parts = (predict(model, _points(x, axes, part)) for part in plane.split(batch_size))
        grid = torch.cat(tuple(parts))
        labels[name] = tuple(map(tuple, grid.view(side, side).tolist()))
        distances[name] = _ray_distances(model, x, axes, offsets[count:])
    return BoundarySlice(tuple(offsets.tolist()), labels, distances, int(y), seed)


def _axes(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """(2, *shape): the normalised gradient of the loss, and a random unit direction orthogonal to it."""
    with frozen(model):
        _, gradient = evaluate(with_pullback(model), x, Goal(y, targeted=False), "ce")
    if not gradient.any():
        raise ValueError("expected a sample where the loss has a gradient, got a zero gradient")
    first = normalised(gradient, 2)
    generator = torch.Generator(x.device).manual_seed(seed)
    second = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    for _ in range(2):  # once more against rounding
        second = normalised(second - (second * first).sum() * first, 2)
    return torch.cat([first, second])


def _points(x: Tensor, axes: Tensor, coordinates: Tensor) -> Tensor:
    """Points (m, *shape) at coordinates (m, 2) in the plane."""
    return x + torch.tensordot(coordinates, axes, dims=1)


def _ray_distances(model: nn.Module, x: Tensor, axes: Tensor, reach: Tensor) -> dict[str, float]:
    """Distance along each ray at which the prediction first changes, as far as the grid shows."""
    # The four rays as unit vectors of the plane's coordinates.
    rays = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=x.dtype, device=x.device)
    here = predict(model, x)

    def changed(lengths: Tensor) -> Tensor:
        """(4, m) whether the prediction differs at lengths (4, m) along the rays."""
        coordinates = lengths[..., None] * rays[:, None]
        predicted = predict(model, _points(x, axes, coordinates.view(-1, 2)))
        return (predicted != here).view(lengths.shape)

    seen = changed(reach.expand(4, -1))
    first = seen.long().argmax(1)
    high, low = reach[first], reach[(first - 1).clamp(min=0)]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = changed(middle[:, None])[:, 0]
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    found = torch.where(seen.any(1), high, torch.inf)
    return dict(zip(RAYS, found.tolist(), strict=True))
