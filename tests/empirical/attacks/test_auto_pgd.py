"""Auto-PGD: its step sizes on functions whose iterates are known, and its policies."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from empirical.attacks import Attack, predict, run_attack
from empirical.attacks.auto_pgd import _first_window, _next_window


class Recorded(nn.Module):
    """Margin of class 1 as a function of the first number; keeps the points where it was asked."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach()[:, 0].clone())
        return torch.stack([torch.zeros_like(x[:, 0]), self.margin(x[:, 0])], 1)


def iterates(margin: Callable[[Tensor], Tensor], attack: Attack, x: Tensor | None = None) -> Tensor:
    """The points (steps + 1, n) at which the attack evaluated the model, the start first."""
    model = Recorded(margin)
    x = torch.zeros(1, 1) if x is None else x
    run_attack(model, x, torch.zeros(len(x), dtype=torch.long), attack, pixel_range=None)
    return torch.stack(model.points[1:-1])  # the first call checks the input, the last one judges the result


def windows(steps: int) -> list[int]:
    """Lengths between checkpoints until the budget is spent."""
    lengths = [_first_window(steps)]
    while sum(lengths) < steps:
        lengths.append(_next_window(lengths[-1], steps))
    return lengths


def test_checkpoints_of_the_publication() -> None:
    """100 steps: at 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of them; tiny budgets end too."""
    assert windows(100)[:-1] == [22, 19, 16, 13, 10, 7, 6, 6]
    assert windows(1) == [1]
    assert sum(windows(7)) >= 7


def test_starts_on_the_surface_and_first_steps_twice_the_radius() -> None:
    """The start is at distance eps, and one step of 2 eps crosses the ball to its best corner."""
    x = torch.zeros(20, 3)
    for norm in ("linf", "l2"):
        points = iterates(lambda s: s, Attack("apgd", norm, 0.5, steps=1, loss="margin"), x[:, :1])
        assert torch.allclose(points[0].abs(), torch.full((20,), 0.5))
        assert torch.allclose(points[1], torch.full((20,), 0.5))
        assert points[0].unique().numel() == 2, "random starts on both sides"


def test_oscillation_halves_the_step_and_returns_to_the_best_point() -> None:
    """On a tent the first steps overshoot; after the checkpoints the iterate closes in on the top."""
    peak = 0.3
    attack = Attack("apgd", "linf", 1.0, steps=100, loss="margin")
    points = iterates(lambda s: -(s - peak).abs(), attack)[:, 0]
    distance = (points - peak).abs()
    assert distance[:20].min() > 0.02
    assert distance[-5:].max() < distance[:20].min()
    checkpoint = 22
    best = points[: checkpoint + 1][distance[: checkpoint + 1].argmin()]
    # Halved to a step of 1: three quarters of it from the best point, a quarter of the last move as momentum.
    moved = best + 0.75 * torch.sign(peak - best).clamp(-1 - best, 1 - best)
    last_move = best - points[checkpoint - 1]
    assert points[checkpoint + 1] == pytest.approx(float((moved + 0.25 * last_move).clamp(-1, 1)), abs=1e-5)


def test_a_best_loss_that_stands_still_halves_the_step() -> None:
    """All steps but the first raise the loss, none as far as the start's: at the second check it returns."""
    losses = iter([0.0, 100.0, *range(1, 200)])
    attack = Attack("apgd", "linf", 1.0, steps=100, loss="margin")
    points = iterates(lambda s: next(losses) + s - s.detach(), attack)[:, 0]
    start = points[0]
    assert start == pytest.approx(-1.0)
    assert torch.allclose(points[1:42], torch.ones(41))
    # A step of 1 forward, by three quarters, and a quarter of the way back from the corner.
    assert points[42] == pytest.approx(-1 + 0.75 - 0.5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adaptive_steps_beat_fixed_ones_of_the_first_size(norm: str) -> None:
    """A narrow hidden optimum inside the ball: fixed steps of 2 eps miss it, adaptive ones find it."""
    model = Recorded(lambda s: 0.02 - (s - 0.31).abs())
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    adaptive = run_attack(model, x, y, Attack("apgd", norm, 1.0, steps=60, loss="margin"), pixel_range=None)
    fixed = run_attack(
        model, x, y, Attack("pgd", norm, 1.0, steps=60, step_size=2.0, loss="margin"), pixel_range=None
    )
    assert adaptive.success.all()
    assert not fixed.success.any()


def test_policies_on_failure() -> None:
    """best: the point of largest loss; last: the final iterate; clean: the image itself."""
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    found = {}
    for policy in ("best", "last", "clean"):
        model = Recorded(lambda s: -0.1 - (s - 0.3).abs())
        attack = Attack("apgd", "linf", 1.0, steps=5, loss="margin", on_failure=policy)
        result = run_attack(model, x, y, attack, pixel_range=None)
        points = torch.cat(model.points[2:-1])
        found[policy] = (result.x_adv.item(), points)
        assert not result.success.any()
    image, points = found["best"]
    assert image == points[(points - 0.3).abs().argmin()]
    image, points = found["last"]
    assert image == points[-1]
    assert found["clean"][0] == 0.0
    assert found["best"][0] != found["last"][0]


def test_targeted_runs_aim_at_the_target() -> None:
    """Classes on a line: each target is reached from the middle where the ball allows it."""
    model = nn.Linear(1, 4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-4.0], [0.0], [4.0], [0.0]]))
        model.bias.copy_(torch.tensor([0.0, 1.0, 0.0, -3.0]))
    x = torch.zeros(4, 1)
    y = predict(model, x)
    assert (y == 1).all()
    target = torch.tensor([0, 2, 0, 2])
    for loss in ("ce", "margin", "dlr"):
        result = run_attack(
            model, x, y, Attack("apgd", eps=0.4, steps=20, loss=loss), target=target, pixel_range=None
        )
        assert result.success.all(), loss
        near = run_attack(
            model, x, y, Attack("apgd", eps=0.2, steps=20, loss=loss), target=target, pixel_range=None
        )
        assert not near.success.any(), loss
