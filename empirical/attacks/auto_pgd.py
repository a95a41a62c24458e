"""Auto-PGD: gradient ascent that chooses its own step sizes (Croce and Hein 2020, algorithm 1).

Written out here because no library serves. Of those that have it one reseeds the global generator, cannot aim
at a given target and pins outdated packages; one goes through numpy, twice a step, begins targeted runs from
the wrong one of two points and needs memory quadratic in the batch for the ratio loss; one needs build tools
to install. All return the clean image or the start where they fail, which measured transfer must not have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from empirical.attacks.base import Goal, Iterates, better, evaluate, not_fallen
from empirical.attacks.perturbation import Ball, choose, direction_of_ascent, is_zero, spread
from empirical.pullback import WithPullback
from estimators.batching import check_finite

# Parameters of the publication: weight of the new step beside the momentum, and the share of steps between
# two checkpoints that must raise the loss, lest the step size be halved.
_NEW_STEP = 0.75
_RISING_SHARE = 0.75


def adaptive_steps(
    network: WithPullback, ball: Ball, start: Tensor, goal: Goal, loss: str, steps: int, first_step: float
) -> tuple[Iterates, Iterates, Tensor, Tensor]:
    """One run on one batch: kept iterates, last ones, zero gradients (n,), whether the loss never fell (n,).

    Steps carry momentum. At each checkpoint a sample's step size is halved, and it returns to the best point
    it has seen, if too few of the steps raised its loss, or if neither step size nor best loss has changed
    since the checkpoint before.
    """
    here, gradient = evaluate(network, ball.project(start), goal, loss)
    check_finite(here.loss, "the attack loss")
    best, best_gradient = here, gradient
    kept = here
    previous = here.x
    step_size = torch.full_like(here.loss, first_step)
    zeros = torch.zeros_like(here.fooled, dtype=torch.long)
    monotone = torch.ones_like(here.fooled)
    rises = torch.zeros_like(zeros)
    halved, best_loss_before = torch.ones_like(monotone), best.loss
    window, next_check = _first_window(steps), _first_window(steps)
    for step in range(steps):
        direction = direction_of_ascent(gradient, ball.norm)
        zeros += is_zero(direction)
        ahead = ball.project(here.x + spread(step_size, here.x) * direction)
        if step > 0:
            momentum = (1 - _NEW_STEP) * (here.x - previous)
            ahead = ball.project(here.x + _NEW_STEP * (ahead - here.x) + momentum)
        previous = here.x
        there, gradient = evaluate(network, ahead, goal, loss, with_gradient=step < steps - 1)
        monotone &= not_fallen(here.loss, there.loss)
        rises += there.loss > here.loss
        kept = there.clone() if step == 0 else better(kept, there)
        here = there
        if step == steps - 1:
            break
        improved = here.loss > best.loss
        best = here.where(improved, best)
        best_gradient = choose(improved, gradient, best_gradient)
        if step + 1 == next_check:
            halved = (rises <= _RISING_SHARE * window) | (~halved & (best.loss <= best_loss_before))
            best_loss_before = best.loss
            step_size = torch.where(halved, step_size / 2, step_size)
            here = best.where(halved, here)
            gradient = choose(halved, best_gradient, gradient)
            rises = torch.zeros_like(rises)
            window = _next_window(window, steps)
            next_check += window
    check_finite(here.loss, "the attack loss")
    return kept, here, zeros, monotone


def _first_window(steps: int) -> int:
    """Steps before the first checkpoint: 22 % of all."""
    return max(int(0.22 * steps), 1)


def _next_window(window: int, steps: int) -> int:
    """Steps until the next checkpoint: 3 % of all steps fewer than the last time, at least 6 %."""
    return max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
