"""The strongest joint attack that we can build: one perturbation that fools k of N models at once.

The certificates R1 and R2 claim that no attack in the ball does. Here is the attack to try them with. Let h_i
be the amount by which model i is fooled: untargeted the best other logit minus the true label's, targeted the
target's minus the best other one, positive exactly where the model is fooled. The attack ascends the k-th
largest of h_1 .. h_N; for k = N that is the smallest. A smooth maximum stands in for the hard one and is
annealed to it, because the hard one's gradient jumps from model to model.

It starts, in this order, from the best of the given points (attacks on single models, or on fewer), from the
solution of the linearised problem (the step of refined result R7, with the margins' Taylor expansions
iterated), and from random points in the ball. A sample that is fooled leaves at once, and the result is never
weaker than the pointwise best of the given points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bounds.must_transfer import must_transfer
from empirical.attacks.base import Goal, PixelRange, check_integer, check_name, check_positive, margin_loss
from empirical.attacks.gradient import NORMS
from empirical.attacks.perturbation import (
    Ball,
    direction_of_ascent,
    sample_norms,
    spread,
    uniform_in_unit_ball,
)
from empirical.attacks.run import check_pixels, generators_kept
from empirical.rewriting import Network
from empirical.rewriting import together as all_together
from estimators.batching import (
    DEFAULT_BATCH,
    check_finite,
    check_inputs,
    check_labels,
    check_same_shape,
    check_target,
    frozen,
)
from estimators.sharing import in_batches

# Length of the first and of the last step as shares of the radius; between them it falls geometrically.
_STEPS = (1.0, 0.01)
# Temperature of the smooth maximum, as a share of what one step can change.
_TEMPERATURE = 0.5
_MOMENTUM = 0.75
# How often the linearised problem is solved anew where the last solution led.
_EXPANSIONS = 3


@dataclass(frozen=True)
class JointAttack:
    """What to run.

    Attributes:
        norm: Norm of the ball, "l2" or "linf".
        eps: Radius of the ball.
        steps: Steps from each start.
        restarts: Number of random starts, beside the two others.
        seed: Seed of the random starts.

    Raises:
        ValueError: If the norm is unknown or a number is out of range.
    """

    norm: str = "l2"
    eps: float = 0.1
    steps: int = 50
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_name("norm", self.norm, NORMS)
        check_positive("eps", self.eps)
        for name, least in (("steps", 1), ("restarts", 0), ("seed", 0)):
            check_integer(name, getattr(self, name), least)

    def __str__(self) -> str:
        return f"joint attack, {self.steps} steps x{self.restarts}, {self.norm} eps {self.eps:g}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields."""
        return {"method": "joint", **asdict(self)}


@dataclass(frozen=True)
class JointAttackResult:
    """What the attack found.

    Attributes:
        x_adv: Attacked images (n, *shape), inside the ball and the pixel range for the numbers as stored.
        fooled: (N, n) bool: models that `x_adv` fools.
        success: (n,) bool: at least `together` of them are fooled.
        together: The number k.
        attack: The settings.
    """

    x_adv: Tensor
    fooled: Tensor
    success: Tensor
    together: int
    attack: JointAttack


def joint_attack(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    attack: JointAttack,
    *,
    target: int | Tensor | None = None,
    together: int | None = None,
    starts: Sequence[Tensor] = (),
    pixel_range: PixelRange = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> JointAttackResult:
    """Look for one perturbation of each sample that fools `together` of the models at once.

    Untargeted, each model may be driven to a wrong label of its own; targeted, all to the target. Models and
    global random state are left as they were, as by `run_attack`.

    Args:
        models: N models from (n, *shape) to logits or log-probabilities (n, K).
        x: Clean images (n, *shape), floating point.
        y: True labels (n,).
        attack: What to run.
        target: Target label, one for all or one per sample; None for an untargeted attack.
        together: How many models have to be fooled at once; None for all.
        starts: Points (n, *shape) such as attacks on single models; they are projected, and the best of them
            for each sample is one to start from.
        pixel_range: Smallest and largest valid value, or None for data without a range.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If images are not floating point, or labels are not integers.
        ValueError: If there is no model, `together` is not in 1 .. N, a shape, a label or a value does not
            fit, or a model's logits are not finite.
    """
    models = tuple(models)
    classes = check_inputs(models, x, batch_size)
    check_pixels(x, pixel_range)
    wanted = len(models) if together is None else together
    if not 1 <= wanted <= len(models):
        raise ValueError(f"expected together between 1 and the {len(models)} models, got {together}")
    y = check_labels(y, x, classes)
    goal = Goal(y, False) if target is None else Goal(check_target(target, x, classes), True)
    starts = [check_same_shape(start, x, "a start") for start in starts]
    offsets = _random_offsets(x, attack)

    def attacked(x: Tensor, labels: Tensor, *points: Tensor) -> tuple[Tensor, Tensor]:
        ball = Ball(x, attack.norm, attack.eps, pixel_range)
        problem = _Problem(network, len(models), goal._replace(labels=labels), wanted, ball)
        found, heights = _attack(problem, points[: len(starts)], points[len(starts) :], attack)
        return found, heights.T

    with frozen(*models), generators_kept(x.device):
        network = all_together(nn.ModuleList(models))
        x_adv, heights = in_batches(attacked, batch_size, x, goal.labels, *starts, *offsets)
    fooled = heights.T > 0
    return JointAttackResult(x_adv, fooled, fooled.sum(0) >= wanted, wanted, attack)


def _random_offsets(x: Tensor, attack: JointAttack) -> list[Tensor]:
    """Drawn for the whole set, so that the size of a batch changes nothing."""
    generator = torch.Generator(x.device).manual_seed(attack.seed)
    return [attack.eps * uniform_in_unit_ball(x, attack.norm, generator) for _ in range(attack.restarts)]


@dataclass(frozen=True)
class _Problem:
    """A batch: what is wanted of which models, and where the perturbation may go.

    Attributes:
        network: All models, (N, n, *shape) to (N, n, K).
        members: N.
        goal: What is wanted of each sample.
        together: How many models have to be fooled at once.
        ball: Where the perturbation may go.
    """

    network: Network
    members: int
    goal: Goal
    together: int
    ball: Ball

    def at(self, rows: Tensor) -> _Problem:
        """The problem for some of the samples."""
        return replace(self, goal=self.goal.at(rows), ball=self.ball.at(rows))

    def heights(self, x: Tensor) -> Tensor:
        """By how much each model is fooled, (N, n)."""
        logits = self.network(x.expand(self.members, *x.shape))
        labels = self.goal.labels.expand(self.members, -1)
        found = margin_loss(logits.flatten(0, 1), labels.flatten()).reshape(labels.shape)
        found = -found if self.goal.targeted else found
        check_finite(found.detach(), "the attack loss")
        return found

    def height(self, heights: Tensor) -> Tensor:
        """What is ascended, hard: the k-th largest, (n,)."""
        return heights.topk(self.together, 0).values[-1]

    def smooth(self, heights: Tensor, temperature: Tensor) -> Tensor:
        """The same, smooth: a soft minimum of the k largest, (n,)."""
        largest = heights.topk(self.together, 0).values
        return -temperature * torch.logsumexp(-largest / temperature, 0)

    def change(self, gradient: Tensor) -> Tensor:
        """What a step of length 1 can change at most, to first order, (n,)."""
        dual = 2 if self.ball.norm == "l2" else 1
        return sample_norms(gradient, dual).to(gradient.dtype)


def _attack(
    problem: _Problem, given: Sequence[Tensor], offsets: Sequence[Tensor], attack: JointAttack
) -> tuple[Tensor, Tensor]:
    """The best point of every sample of a batch, and the heights there (N, n)."""
    best = problem.ball.x.clone()
    with torch.no_grad():
        heights = problem.heights(best)
        for start in given:
            inside = problem.ball.project(start)
            best, heights = _better(problem, best, heights, inside, problem.heights(inside))
    # From the best of the given points, from the solution of the linearised problem, from random points.
    for point in (best, None, *(problem.ball.x + offset for offset in offsets)):
        left = (problem.height(heights) <= 0).nonzero().squeeze(1)
        if not len(left):
            break
        rest = problem.at(left)
        first = _linearised(rest) if point is None else rest.ball.project(point[left])
        found, its_heights = _ascend(rest, first, attack)
        chosen, chosen_heights = _better(rest, best[left], heights[:, left], found, its_heights)
        best, heights = best.index_copy(0, left, chosen), heights.index_copy(1, left, chosen_heights)
    return best, heights


def _better(
    problem: _Problem, best: Tensor, heights: Tensor, found: Tensor, its_heights: Tensor
) -> tuple[Tensor, Tensor]:
    """Per sample the higher of two points."""
    wins = problem.height(its_heights) > problem.height(heights)
    return torch.where(spread(wins, best), found, best), torch.where(wins, its_heights, heights)


def _ascend(problem: _Problem, start: Tensor, attack: JointAttack) -> tuple[Tensor, Tensor]:
    """The highest iterate of every sample from one start; samples that are fooled leave."""
    best = start.clone()
    with torch.no_grad():
        best_heights = problem.heights(best)
    rows = torch.arange(len(start), device=start.device)
    here, before, gradient = start, start, None
    for step in range(attack.steps + 1):
        length = attack.eps * _STEPS[0] * (_STEPS[1] / _STEPS[0]) ** (step / attack.steps)
        with torch.enable_grad():
            point = here.detach().requires_grad_()
            heights = problem.heights(point)
            scale = heights.detach().abs().mean(0) if gradient is None else length * problem.change(gradient)
            smooth = problem.smooth(heights, (_TEMPERATURE * scale).clamp_min(1e-12))
            gradient = torch.autograd.grad(smooth.sum(), point)[0]
        heights = heights.detach()
        best[rows], best_heights[:, rows] = _better(problem, best[rows], best_heights[:, rows], here, heights)
        stay = (problem.height(heights) <= 0).nonzero().squeeze(1)
        if not len(stay) or step == attack.steps:
            break
        if len(stay) < len(rows):
            rows, problem = rows[stay], problem.at(stay)
            here, before, gradient = here[stay], before[stay], gradient[stay]
        ahead = here + length * direction_of_ascent(gradient, attack.norm)
        if step:
            ahead = ahead + (1 - _MOMENTUM) * (here - before)
        before, here = here, problem.ball.project(ahead)
    return best, best_heights


def _linearised(problem: _Problem) -> Tensor:
    """Where the smallest step that fools the easiest k models would lead if all margins were affine.

    Solved at the clean image, then expanded anew where the solution led: exact for affine margins at once.
    """
    ball, point = problem.ball, problem.ball.project(problem.ball.x)
    for _ in range(_EXPANSIONS):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            heights = problem.heights(point)
            slopes = torch.stack(
                [torch.autograd.grad(height.sum(), point, retain_graph=True)[0] for height in heights]
            )
        back = (ball.x - point.detach()).flatten(1)
        slopes = slopes.flatten(2).transpose(0, 1)
        margins = -(heights.detach().T + torch.einsum("nid,nd->ni", slopes, back))
        # The easiest models are those whose boundary is nearest.
        order = 2 if ball.norm == "l2" else 1
        distance = margins / torch.linalg.vector_norm(slopes, order, dim=2).clamp_min(1e-30)
        easiest = distance.topk(problem.together, 1, largest=False).indices
        step = must_transfer(
            margins.gather(1, easiest).double().cpu().numpy(),
            -slopes.gather(1, easiest.unsqueeze(2).expand(-1, -1, slopes.shape[2])).double().cpu().numpy(),
            0.0, ball.eps, ball.norm,  # type: ignore[arg-type]
        ).direction  # fmt: skip
        moved = torch.from_numpy(step).to(ball.x).reshape(ball.x.shape)
        point = ball.project(ball.x + moved)
    return point
