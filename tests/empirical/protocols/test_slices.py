"""Slices through decision boundaries: a linear model's half planes and distances, and reproducibility."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from empirical.protocols.slices import RAYS, BoundarySlice, boundary_slice


def linear(weight: list[float], bias: float = 0.0) -> nn.Module:
    """Two classes; class 1 where weight . x + bias is positive."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weight), 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * len(weight), weight]))
        model[1].bias.copy_(torch.tensor([0.0, bias]))
    return model


X, Y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
DIRECTION = [1.0, 2.0, 2.0, 0.0]  # length 3; at X the score is 2.5


def test_linear_boundary_is_a_line_across_the_gradient() -> None:
    """Distance 1 along the gradient, none the other way or across; rows beyond it are class 1."""
    model = linear(DIRECTION, -5.5)
    found = boundary_slice(model, {"m": model}, X, Y, extent=3.0, spacing=0.5)
    distances = found.distances["m"]
    assert distances["gradient"] == pytest.approx(1.0, abs=1e-4)
    assert [distances[ray] for ray in RAYS[1:]] == [math.inf] * 3
    assert found.offsets == tuple(0.5 * step for step in range(-6, 7))
    for offset, row in zip(found.offsets, found.labels["m"], strict=True):
        if abs(offset - 1.0) > 1e-3:
            assert set(row) == {int(offset > 1.0)}


def test_axes_are_shared_by_all_models() -> None:
    """Another model in the same plane: its boundary is where its own weights say."""
    steepest, other = linear(DIRECTION, -5.5), linear([-1.0, -2.0, -2.0, 0.0], 1.0)
    found = boundary_slice(steepest, {"own": steepest, "other": other}, X, Y, extent=2.0, spacing=0.3)
    # The other model is class 0 at X with a score of -1.5 and turns 0.5 away against the first's gradient.
    assert found.distances["other"]["against gradient"] == pytest.approx(0.5, abs=1e-4)
    assert found.distances["other"]["gradient"] == math.inf
    assert found.distances["own"]["gradient"] == pytest.approx(1.0, abs=1e-4)


class Watched(nn.Module):
    """Keeps every point that it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.model(x)


@pytest.mark.parametrize("seed", [0, 1])
def test_grid_is_square_in_the_plane(seed: int) -> None:
    """Orthonormal axes, the first along the gradient; rows go along it; batches do not change a thing."""
    model = Watched(linear(DIRECTION, -5.5))
    found = boundary_slice(linear(DIRECTION, -5.5), {"m": model}, X, Y, extent=1.0, spacing=1.0, seed=seed)
    grid = next(points for points in model.seen if len(points) == 9).flatten(1) - X.flatten(1)
    unit = torch.tensor(DIRECTION) / 3
    torch.testing.assert_close(grid[4], torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(grid[7], unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(grid[1], -unit, atol=1e-5, rtol=0)
    across = grid[5]
    assert across.norm() == pytest.approx(1.0, abs=1e-5)
    assert abs(float(across @ unit)) < 1e-6
    torch.testing.assert_close(grid[8], unit + across, atol=1e-5, rtol=0)
    cut = boundary_slice(
        linear(DIRECTION, -5.5), {"m": linear(DIRECTION, -5.5)}, X, Y,
        extent=1.0, spacing=1.0, seed=seed, batch_size=2,
    )  # fmt: skip
    assert cut == found


def test_seed_turns_the_second_axis_alone() -> None:
    """A model that looks across the gradient sees another distance under another seed, the same under one."""
    steepest, across = linear(DIRECTION, -5.5), linear([0.0, 0.0, 0.0, 1.0], -0.7)
    found = [
        boundary_slice(steepest, {"m": across}, X, Y, extent=30.0, spacing=1.0, seed=s) for s in (3, 3, 4)
    ]
    sides = [min(f.distances["m"][ray] for ray in RAYS[2:]) for f in found]
    assert sides[0] == sides[1] != sides[2]
    assert all(math.isfinite(side) for side in sides)
    assert {f.distances["m"]["gradient"] for f in found} == {math.inf}
    for each in found:  # columns run along the ray "orthogonal", from its opposite
        centre = each.labels["m"][30]
        assert centre[60] == int(math.isfinite(each.distances["m"]["orthogonal"]))
        assert centre[0] == int(math.isfinite(each.distances["m"]["against orthogonal"]))
        assert centre[0] != centre[60]


def test_slice_survives_json() -> None:
    """Infinite distances too."""
    model = linear(DIRECTION, -5.5)
    found = boundary_slice(model, {"m": model}, X, Y, extent=2.0, spacing=0.5, seed=5)
    assert BoundarySlice.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert (found.label, found.seed) == (0, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.rand(2, 4), "y": torch.tensor([0, 1])}, "one sample"),
        ({"models": {}}, "at least one model to draw, got none"),
        ({"spacing": 0.0}, "0 < spacing <= extent"),
        ({"spacing": 3.0, "extent": 2.0}, "0 < spacing <= extent"),
        ({"steepest": linear([0.0] * 4)}, "zero gradient"),
        ({"y": torch.tensor([2])}, r"labels in 0\.\.1, got 2"),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    """One line each."""
    model = linear(DIRECTION)
    arguments = {"steepest": model, "models": {"m": model}, "x": X, "y": Y, **changes}
    with pytest.raises(ValueError, match=message):
        boundary_slice(**arguments)
