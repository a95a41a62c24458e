"""The fixed-step attacks: closed forms, the ball, the failure policies, and what they must leave alone."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from empirical.attacks import (
    ATTACKS,
    LOSSES,
    Attack,
    AttackHealth,
    CarliniWagner,
    ElasticNet,
    attack_from_json,
    dlr_loss,
    margin_loss,
    predict,
    register_attack,
    run_attack,
)
from empirical.attacks.base import TARGETED_LOSSES, Goal, Perturbed, PixelRange, targeted_dlr_loss
from estimators.batching import check_inputs

ITERATIVE = ("bim", "pgd", "mim", "apgd")
METHODS = ("fgsm", *ITERATIVE)


class Scalar(nn.Module):
    """Logits that are a function of the first number of each sample."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.flatten(1)[:, 0])


def linear(classes: int, dimension: int, seed: int = 0, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(dimension, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def norms(x: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    order = math.inf if norm == "linf" else 2
    return torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), order, dim=1)


def distances(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(n,) closed-form distance of a linear model's inputs to the nearest other class, 0 if misclassified."""
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    logits = x.flatten(1).double() @ weight.T + bias
    gaps = logits.gather(1, y[:, None]) - logits
    dual = torch.linalg.vector_norm(weight[y][:, None] - weight[None], 1 if norm == "linf" else 2, dim=2)
    ratios = (gaps / dual).scatter(1, y[:, None], math.inf)
    return ratios.amin(1).clamp(min=0)


# The closed form: the distance of a point to a linear decision boundary.


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_two_class_linear_flips_at_the_closed_form_distance(method: str, norm: str, loss: str) -> None:
    """Success switches within 1 % of the distance to the boundary, for every sample."""
    model, x = linear(2, 12), images(400, 3, 4)
    y = predict(model, x)
    distance = distances(model, x, y, norm)
    eps = float(distance.median())
    restarts = 3 if method == "pgd" else 1
    attack = Attack(method, norm, eps, steps=20, restarts=restarts, loss=loss)
    success = run_attack(model, x, y, attack, pixel_range=None).success
    assert success[distance < 0.99 * eps].all()
    assert not success[distance > 1.01 * eps].any()
    assert 100 < success.sum() < 300


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_two_class_targeted_flips_at_the_closed_form_distance(method: str, norm: str) -> None:
    """A targeted attack reaches the other class exactly where the boundary is within eps."""
    model, x = linear(2, 12), images(400, 12)
    y = predict(model, x)
    distance = distances(model, x, y, norm)
    eps = float(distance.median())
    result = run_attack(model, x, y, Attack(method, norm, eps, steps=20), target=1 - y, pixel_range=None)
    assert result.success[distance < 0.99 * eps].all()
    assert not result.success[distance > 1.01 * eps].any()
    assert torch.equal(result.target, 1 - y)


def test_linf_with_pixel_range_reaches_the_best_corner() -> None:
    """On a linear model the attacked margin is the closed-form optimum over box and pixel range."""
    model, x = linear(2, 9), images(200, 9)
    y = predict(model, x)
    eps = 0.3
    w = (model[1].weight[1 - y] - model[1].weight[y]).detach()
    room = torch.where(w > 0, 1 - x, x).clamp(max=eps)
    best = margin_loss(model(x), y) + (w.abs() * room).sum(1)
    for method in METHODS:
        x_adv = run_attack(model, x, y, Attack(method, "linf", eps, steps=40)).x_adv
        torch.testing.assert_close(margin_loss(model(x_adv), y), best, atol=1e-4, rtol=1e-4)


@given(
    method=st.sampled_from(METHODS), norm=st.sampled_from(["l2", "linf"]), classes=st.integers(2, 5),
    eps=st.floats(0.01, 2.0), seed=st.integers(0, 99), targeted=st.booleans(),
)  # fmt: skip
def test_no_success_beyond_the_distance(
    method: str, norm: str, classes: int, eps: float, seed: int, targeted: bool
) -> None:
    """No attack changes a linear model's correct prediction from farther than the closed-form distance."""
    model, x = linear(classes, 6, seed), images(30, 6, seed=seed)
    y = predict(model, x)
    target = (y + 1) % classes if targeted else None
    attack = Attack(method, norm, eps, steps=5, seed=seed)
    success = run_attack(model, x, y, attack, target=target, pixel_range=None).success
    assert not success[distances(model, x, y, norm) > eps * (1 + 1e-5)].any()


def test_targeted_and_untargeted_move_in_opposite_directions() -> None:
    """Aiming at the true label lowers its loss; the untargeted attack raises it."""
    model, x = linear(5, 8), images(50, 8)
    y = torch.arange(50) % 5
    attack = Attack("bim", "l2", 0.2, steps=5)
    before = nn.functional.cross_entropy(model(x), y, reduction="none")
    up = run_attack(model, x, y, attack).x_adv
    down = run_attack(model, x, y, attack, target=y).x_adv
    assert (nn.functional.cross_entropy(model(up), y, reduction="none") > before).all()
    assert (nn.functional.cross_entropy(model(down), y, reduction="none") < before).all()


def test_single_target_label_serves_all_samples() -> None:
    """An integer target equals the same label given per sample."""
    model, x = linear(4, 6), images(20, 6)
    y = predict(model, x)
    attack = Attack("pgd", "l2", 0.5, steps=5)
    one = run_attack(model, x, y, attack, target=2)
    many = run_attack(model, x, y, attack, target=torch.full((20,), 2))
    assert torch.equal(one.x_adv, many.x_adv)
    assert torch.equal(one.success, predict(model, one.x_adv) == 2)


# The ball, the pixel range and the sampling in it.


@given(
    method=st.sampled_from(METHODS), norm=st.sampled_from(["l2", "linf"]),
    shape=st.sampled_from([(2,), (1, 4, 4), (3, 8, 8)]), eps=st.floats(1e-9, 10.0),
    dtype=st.sampled_from([torch.float32, torch.float64]), ranged=st.booleans(), seed=st.integers(0, 99),
    on_failure=st.sampled_from(["best", "any", "last", "clean"]),
)  # fmt: skip
def test_ball_and_range_hold_exactly(
    method: str, norm: str, shape: tuple[int, ...], eps: float, dtype: torch.dtype, ranged: bool, seed: int,
    on_failure: str,
) -> None:  # fmt: skip
    """The stored images are inside the ball (in exact arithmetic of the stored numbers) and in range."""
    x = images(6, *shape, seed=seed).to(dtype)
    x[0] = 1.0
    if not ranged:
        x = 100 * x - 50
    model = linear(3, math.prod(shape), seed).to(dtype)
    y = torch.arange(6) % 3
    pixel_range = (0.0, 1.0) if ranged else None
    attack = Attack(method, norm, eps, steps=4, on_failure=on_failure, seed=seed)
    result = run_attack(model, x, y, attack, pixel_range=pixel_range)
    assert result.x_adv.dtype == dtype
    assert result.x_adv.shape == x.shape
    assert norms(x, result.x_adv, norm).max() <= eps * (1 + 1e-14)
    assert result.health.largest_norm == norms(x, result.x_adv, norm).max()
    if ranged:
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1
    assert result.health.out_of_range == 0
    assert torch.equal(result.success, predict(model, result.x_adv) != y)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_whole_radius_is_used(norm: str) -> None:
    """The ball is not shrunk: an attack on a linear model ends on its surface, also at the pixel range."""
    model, x = linear(2, 30), images(50, 30).round()
    result = run_attack(model, x, predict(model, x), Attack("bim", norm, 0.1, steps=30))
    assert norms(x, result.x_adv, norm).min() > 0.1 * (1 - 1e-4)


def test_step_size_defaults_to_a_fifth_of_the_radius() -> None:
    """One step goes eps / 5 far, a given step size as far as it says, and fgsm the whole eps."""
    model, x = linear(2, 5), images(4, 5)
    y = predict(model, x)
    for attack, length in (
        (Attack("bim", "l2", 0.5, steps=1), 0.1),
        (Attack("bim", "l2", 0.5, steps=1, step_size=0.03), 0.03),
        (Attack("fgsm", "l2", 0.5, step_size=0.03), 0.5),
        (Attack("bim", "linf", 0.5, steps=2), 0.2),
    ):
        moved = norms(x, run_attack(model, x, y, attack, pixel_range=None).x_adv, attack.norm)
        torch.testing.assert_close(moved, torch.full_like(moved, length), atol=1e-5, rtol=0)


# Seeds, batches, restarts.


def test_same_seed_same_images_other_seed_others() -> None:
    """The seed alone decides, whatever the global generator has done in between."""
    model, x = linear(3, 10), images(20, 10)
    y = predict(model, x)
    first = run_attack(model, x, y, Attack(steps=2, seed=1)).x_adv
    torch.rand(100)
    assert torch.equal(first, run_attack(model, x, y, Attack(steps=2, seed=1)).x_adv)
    assert not torch.equal(first, run_attack(model, x, y, Attack(steps=2, seed=2)).x_adv)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_result_does_not_depend_on_the_batch_size(norm: str, batch_size: int) -> None:
    """Random starts are drawn for the whole set, so cutting it otherwise changes nothing but rounding."""
    model, x = (
        nn.Sequential(linear(16, 12), nn.Softplus(), nn.Linear(16, 4)).double(),
        images(50, 12).double(),
    )
    y = predict(model, x)
    attack = Attack("pgd", norm, 0.2, steps=6, restarts=2)
    whole = run_attack(model, x, y, attack)
    cut = run_attack(model, x, y, attack, batch_size=batch_size)
    torch.testing.assert_close(cut.x_adv, whole.x_adv, atol=1e-9, rtol=0)
    assert torch.equal(cut.success, whole.success)
    assert cut.health.zero_gradients == whole.health.zero_gradients
    assert cut.health.monotone_loss == whole.health.monotone_loss


def test_restarts_only_add_successes() -> None:
    """The first restart is the same however many follow, and no success is lost; some are won."""
    model = Scalar(lambda s: torch.stack([torch.zeros_like(s), torch.sin(25 * s) - 0.9], 1))
    x = torch.linspace(-1, 1, 200)[:, None]
    y = torch.zeros(200, dtype=torch.long)
    one, many = (
        run_attack(
            model, x, y, Attack(eps=0.15, steps=1, step_size=0.01, restarts=r), pixel_range=None
        ).success
        for r in (1, 5)
    )
    assert (many | ~one).all()
    assert many.sum() > one.sum() > 0


# The failure policies, on functions whose iterates are known: BIM from 0 by steps of 0.3.


def tent(height: float) -> nn.Module:
    """Class 1 wins only near 0.62, where the tent is above 0; the gradient flips sign there."""
    return Scalar(lambda s: torch.stack([torch.zeros_like(s), height - (s - 0.62).abs()], 1))


ORIGIN = (torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("height", "on_failure", "image", "success"),
    [
        (0.1, "best", 0.6, True), (0.1, "last", 0.9, False), (0.1, "clean", 0.6, True),
        (-0.1, "best", 0.6, False), (-0.1, "last", 0.9, False), (-0.1, "clean", 0.0, False),
    ],
)  # fmt: skip
def test_failure_policy(height: float, on_failure: str, image: float, success: bool) -> None:
    """Iterates 0.3, 0.6, 0.9; only 0.6 may fool the model, and it has the largest loss."""
    attack = Attack("bim", "linf", 1.0, steps=3, step_size=0.3, on_failure=on_failure)
    result = run_attack(tent(height), *ORIGIN, attack, pixel_range=None)
    assert result.x_adv.item() == pytest.approx(image)
    assert bool(result.success) is success
    assert result.attack.on_failure == on_failure
    assert result.health.unchanged == float(image == 0.0)


def test_best_prefers_a_fooling_iterate_to_a_larger_loss() -> None:
    """The fooling iterate 0.3 (loss 0.8) is kept although 0.6 has loss 1.08 without fooling."""
    log_p = torch.tensor([[0.9, 0.05, 0.05], [0.45, 0.549, 0.001], [0.34, 0.33, 0.33]]).log()

    def logits(s: Tensor) -> Tensor:  # values from the table, a gradient that always points onwards
        onwards = (s - s.detach())[:, None] * torch.tensor([-1.0, 0.5, 0.5])
        return log_p[(s.detach() / 0.3).round().long()] + onwards

    attack = Attack("bim", "linf", 0.6, steps=2, step_size=0.3)
    assert run_attack(Scalar(logits), *ORIGIN, attack, pixel_range=None).x_adv.item() == pytest.approx(0.3)


def test_momentum_overshoots_where_bim_turns_back() -> None:
    """After three steps up the tent's far side, the sum of gradients still points onwards."""
    bim, mim = (
        run_attack(
            tent(-0.1), *ORIGIN, Attack(method, eps=2.0, steps=4, step_size=0.3, on_failure="last"),
            pixel_range=None,
        )
        for method in ("bim", "mim")
    )  # fmt: skip
    assert bim.x_adv.item() == pytest.approx(0.6)
    assert mim.x_adv.item() == pytest.approx(1.2)


def test_momentum_sums_l1_normalised_gradients() -> None:
    """A later gradient that is 1000 times larger does not outvote the two before it."""

    def logits(s: Tensor) -> Tensor:  # slope 1 up to 0.5, then -1000
        return torch.stack([torch.zeros_like(s), torch.where(s < 0.5, s, 0.5 - 1000 * (s - 0.5))], 1)

    attack = Attack("mim", eps=2.0, steps=3, step_size=0.3, on_failure="last", loss="margin")
    assert run_attack(Scalar(logits), *ORIGIN, attack, pixel_range=None).x_adv.item() == pytest.approx(0.9)


def test_misclassified_samples_are_attacked_too() -> None:
    """The attack is defined on wrong predictions: they move, and untargeted count as fooled."""
    model, x = linear(3, 6), images(30, 6)
    y = (predict(model, x) + 1) % 3
    result = run_attack(model, x, y, Attack("bim", "l2", 0.1, steps=3))
    assert result.success.all()
    assert result.health.unchanged == 0


# Health.


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_zero_gradient_is_a_zero_step_and_is_reported(norm: str) -> None:
    """A constant model leaves images as they are, without NaN; pgd keeps its random start."""
    model = Scalar(lambda s: torch.stack([0 * s + 1, 0 * s], 1))
    x, y = images(5, 4), torch.zeros(5, dtype=torch.long)
    for method in ("fgsm", "bim", "mim"):
        health = run_attack(model, x, y, Attack(method, norm, 0.1, steps=3)).health
        assert (health.zero_gradients, health.unchanged, health.monotone_loss) == (1, 1, 1)
        assert health.largest_norm == 0
    health = run_attack(model, x, y, Attack("pgd", norm, 0.1, steps=3)).health
    assert (health.zero_gradients, health.unchanged) == (1, 0)


def test_tiny_gradients_still_give_a_full_step() -> None:
    """Gradients of 1e-30, whose squares underflow in float32, are normalised, not lost."""
    model, x = linear(2, 6, scale=1e-30), images(10, 6)
    y = torch.zeros(10, dtype=torch.long)
    for method in METHODS:
        result = run_attack(model, x, y, Attack(method, "l2", 0.5, steps=30), pixel_range=None)
        assert result.health.zero_gradients == 0
        assert result.health.largest_norm == pytest.approx(0.5, rel=1e-4)


def test_share_of_zero_gradients_counts_samples_and_steps() -> None:
    """Half the samples sit on a plateau, for every one of the steps and restarts."""
    model = Scalar(lambda s: torch.stack([torch.zeros_like(s), s.clamp(min=0)], 1))
    x = torch.tensor([[-5.0, 0.0], [-6.0, 0.0], [5.0, 0.0], [6.0, 0.0]])
    attack = Attack("pgd", "linf", 0.5, steps=3, restarts=2)
    health = run_attack(model, x, torch.zeros(4, dtype=torch.long), attack, pixel_range=None).health
    assert health.zero_gradients == 0.5


def test_monotone_share() -> None:
    """The loss rises all along a slope and falls behind a tent's top."""
    attack = Attack("bim", "linf", 1.0, steps=3, step_size=0.3)
    assert run_attack(tent(-0.1), *ORIGIN, attack, pixel_range=None).health.monotone_loss == 0
    slope = Scalar(lambda s: torch.stack([torch.zeros_like(s), s], 1))
    assert run_attack(slope, *ORIGIN, attack, pixel_range=None).health.monotone_loss == 1


def test_black_images_are_those_that_turned_black() -> None:
    """An image driven to all zeros counts; one that was black before does not."""
    model = Scalar(lambda s: torch.stack([s, -s], 1))
    x = torch.tensor([[0.05], [0.0], [0.9], [0.8]])
    health = run_attack(model, x, torch.zeros(4, dtype=torch.long), Attack("fgsm", "linf", 0.1)).health
    assert health.black == 0.25
    assert health.unchanged == 0.25


# What must be left alone.


class Mixed(nn.Module):
    """Everything that an attack could disturb: BatchNorm, dropout, frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def mixed() -> Mixed:
    torch.manual_seed(0)
    model = Mixed()
    model(images(32, 6)).square().mean().backward()
    model.body[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = None
    return model


@pytest.mark.parametrize("method", METHODS)
def test_model_and_global_generator_are_left_as_found(method: str) -> None:
    """Modes, gradients, flags, buffers, weights and the global generator are bit for bit the same."""
    model, x = mixed(), images(40, 6)
    y = torch.arange(40) % 3

    def snapshot() -> dict[str, object]:
        return {
            "modes": [module.training for module in model.modules()],
            "flags": [parameter.requires_grad for parameter in model.parameters()],
            "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
            "generator": torch.get_rng_state().tolist(),
            "x": (x.tolist(), x.requires_grad, x.grad),
        }

    before = snapshot()
    assert before["modes"] != [True] * len(before["modes"])
    run_attack(model, x, y, Attack(method, steps=3))
    assert snapshot() == before
    with torch.no_grad():
        run_attack(model, x, y, Attack(method, steps=3), target=1)
        assert not torch.is_grad_enabled()
    assert snapshot() == before


def test_attack_runs_in_evaluation_mode() -> None:
    """A model left in training mode is attacked as one in evaluation mode: no dropout, running statistics."""
    model, x = mixed().train(), images(40, 6)
    y = torch.arange(40) % 3
    training = run_attack(model, x, y, Attack(steps=3)).x_adv
    assert torch.equal(training, run_attack(model.eval(), x, y, Attack(steps=3)).x_adv)


def test_model_is_restored_after_a_failure() -> None:
    """A model that breaks down midway gets its mode and flags back."""
    model = nn.Sequential(nn.Dropout(), Scalar(lambda s: torch.stack([s.log(), 0 * s], 1)), nn.Linear(2, 2))
    x = torch.tensor([[0.5], [0.0]])
    with pytest.raises(ValueError, match=r"^expected finite values in the attack loss, got 1 of 2 NaN"):
        run_attack(model.train(), x, torch.tensor([1, 1]), Attack("bim", steps=2))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# Descriptions and bad input.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 0.0}, "expected eps to be a positive finite number, got 0.0"),
        ({"eps": -1.0}, "expected eps to be a positive finite number, got -1.0"),
        ({"eps": math.nan}, "expected eps to be a positive finite number, got nan"),
        ({"eps": math.inf}, "expected eps to be a positive finite number, got inf"),
        ({"steps": 0}, "expected steps to be an integer of at least 1, got 0"),
        ({"steps": 2.5}, "expected steps to be an integer of at least 1, got 2.5"),
        ({"step_size": 0.0}, "expected step_size to be a positive finite number, got 0.0"),
        ({"restarts": 0}, "expected restarts to be an integer of at least 1, got 0"),
        ({"seed": -1}, "expected seed to be an integer of at least 0, got -1"),
        ({"method": "cw"}, "expected method to be one of fgsm, bim, pgd, mim, apgd, got 'cw'"),
        ({"norm": "l1"}, "expected norm to be one of linf, l2, got 'l1'"),
        ({"on_failure": "x"}, "expected on_failure to be one of best, any, last, clean, got 'x'"),
        ({"loss": "hinge"}, "expected loss to be one of ce, margin, dlr, got 'hinge'"),
        (
            {"method": "apgd", "step_size": 0.1},
            "expected step_size = None for apgd, which adapts its steps, got 0.1",
        ),
        ({"method": "bim", "restarts": 2}, "expected restarts = 1 for bim, which has no random start, got 2"),
    ],
)
def test_bad_attacks_are_refused(fields: dict, message: str) -> None:
    """One line that names what was expected and what came."""
    with pytest.raises(ValueError) as caught:
        Attack(**fields)
    assert str(caught.value) == message


NAN_IMAGE = torch.tensor([[0.5, math.nan]])


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (torch.rand(0, 2), torch.zeros(0, dtype=torch.long), {}, ValueError, "at least one sample"),
        (NAN_IMAGE, torch.tensor([0]), {}, ValueError, "finite values in x"),
        (torch.full((1, 2), 1.5), torch.tensor([0]), {}, ValueError, r"\[0.0, 1.0\], got \[1.5, 1.5\]"),
        (torch.full((1, 2), -0.1), torch.tensor([0]), {}, ValueError, r"inside pixel_range"),
        (torch.rand(1, 2), torch.tensor([0]), {"pixel_range": (1.0, 0.0)}, ValueError, "low < high"),
        (torch.rand(2, 2), torch.tensor([0]), {}, ValueError, r"labels of shape \(2,\)"),
        (torch.rand(1, 2), torch.tensor([0.0]), {}, TypeError, "integer"),
        (torch.ones(1, 2, dtype=torch.long), torch.tensor([0]), {}, TypeError, "floating-point"),
        (torch.rand(1, 2), torch.tensor([3]), {}, ValueError, r"0\.\.2, got 3"),
        (torch.rand(1, 2), torch.tensor([-1]), {}, ValueError, r"0\.\.2, got -1"),
        (torch.rand(1, 2), torch.tensor([0]), {"target": 3}, ValueError, r"0\.\.2, got 3"),
        (torch.rand(1, 2), torch.tensor([0]), {"target": -1}, ValueError, r"0\.\.2, got -1"),
        (torch.rand(2, 2), torch.tensor([0, 1]), {"target": torch.tensor([1])}, ValueError, r"shape \(2,\)"),
        (torch.rand(1, 2), torch.tensor([0]), {"batch_size": 0}, ValueError, "batch size"),
        (torch.rand(1, 5), torch.tensor([0]), {}, ValueError, "inputs that the model accepts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(
    x: Tensor, y: Tensor, options: dict, error: type[Exception], message: str
) -> None:
    """Before any work, with expected and actual."""
    with pytest.raises(error, match=message) as caught:
        run_attack(linear(3, 2), x, y, Attack(steps=10**9), **options)
    assert "\n" not in str(caught.value)


def test_attack_and_health_survive_json() -> None:
    """What to_json writes, from_json reads."""
    attack = Attack("mim", "l2", 0.25, steps=7, step_size=0.1, on_failure="last", seed=3, loss="margin")
    assert Attack.from_json(json.loads(json.dumps(attack.to_json(), allow_nan=False))) == attack
    model, x = linear(2, 3), images(4, 3)
    health = run_attack(model, x, predict(model, x), Attack(steps=2)).health
    assert AttackHealth.from_json(json.loads(json.dumps(health.to_json(), allow_nan=False))) == health


def test_attack_names_itself() -> None:
    """The words that reports use."""
    assert str(Attack("pgd", "linf", 0.1, steps=50, restarts=5)) == "PGD-50 x5, linf eps 0.1"
    assert str(Attack("fgsm", "l2", 0.5)) == "FGSM, l2 eps 0.5"
    assert str(Attack("bim", "l2", 0.5, loss="margin")) == "BIM-50 on margin, l2 eps 0.5"


def test_margin_loss_is_unmoved_by_log_softmax() -> None:
    """Log-probabilities, all negative, give the same margin as raw logits."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -1.0, -2.0]])
    y = torch.tensor([0, 2])
    torch.testing.assert_close(margin_loss(logits, y), torch.tensor([-1.5, 1.0]))
    torch.testing.assert_close(margin_loss(logits.log_softmax(1), y), torch.tensor([-1.5, 1.0]))


def test_dlr_loss_by_hand() -> None:
    """(best other - label) / (first - third), for a right and a wrong prediction."""
    logits = torch.tensor([[4.0, 1.0, 0.0, 2.0], [4.0, 1.0, 0.0, 2.0]])
    torch.testing.assert_close(dlr_loss(logits, torch.tensor([0, 1])), torch.tensor([-2 / 3, 3 / 3]))
    targeted = targeted_dlr_loss(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(targeted, torch.tensor([3 / 3.5, -2 / 3.5]))


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), loss=st.sampled_from(sorted(LOSSES)))
def test_losses_are_unmoved_by_log_softmax(seed: int, scale: float, loss: str) -> None:
    """Every loss of log-probabilities, all negative, is the loss of the raw logits, gradients included."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(7, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(5, (7,), generator=generator)
    for losses in (LOSSES, TARGETED_LOSSES):
        raw, log = losses[loss](logits, labels), losses[loss](logits.log_softmax(1), labels)
        torch.testing.assert_close(log, raw)
        gradients = [torch.autograd.grad(values.sum(), logits)[0] for values in (raw, log)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("classes", "target", "message"),
    [(2, None, "least 3 classes for the untargeted dlr loss, got 2"), (3, 1, "least 4 .* targeted dlr .* 3")],
)
def test_dlr_needs_enough_classes(classes: int, target: int | None, message: str) -> None:
    """Without a third (targeted: fourth) largest logit it is refused before any work."""
    attack = Attack("apgd", steps=10**9, loss="dlr")
    with pytest.raises(ValueError, match=message):
        run_attack(linear(classes, 3), images(4, 3), torch.zeros(4, dtype=torch.long), attack, target=target)


class Noisy(nn.Module):
    """A defence that draws from all three global generators."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return torch.stack([x.sum(1) + 1e-3 * noise, 1 - x.sum(1)], 1)


def test_generators_are_restored_after_a_model_that_draws() -> None:
    """torch's, numpy's and Python's global generators go on as if nothing had been attacked."""

    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002

    x, y = images(5, 2), torch.zeros(5, dtype=torch.long)
    check_inputs((Noisy(),), x)
    seed()
    check_inputs((Noisy(),), x)
    expected = draws()
    seed()
    run_attack(Noisy(), x, y, Attack(steps=3))
    assert draws() == expected


# Reading attacks back, and attacks of one's own.


@pytest.mark.parametrize(
    "attack",
    [
        Attack("apgd", "l2", 0.5, 20, loss="dlr"),
        CarliniWagner(0.5, steps=7),
        ElasticNet(2.0, beta=0.1, rule="l1", shrinkage="exact"),
    ],
)
def test_any_attack_is_read_back(attack: Attack | CarliniWagner | ElasticNet) -> None:
    """One reader for all attacks, by the name of the method."""
    assert attack_from_json(json.loads(json.dumps(attack.to_json(), allow_nan=False))) == attack


def test_unknown_attack_is_refused() -> None:
    """A description of no known attack."""
    with pytest.raises(ValueError, match=r"expected an attack among fgsm, .*ead.*, got 'jsma'"):
        attack_from_json({"method": "jsma"})


@dataclass(frozen=True)
class Darken:
    """An attack of one's own: black out the image."""

    depth: float
    norm: ClassVar[str] = "linf"
    seed: ClassVar[int | None] = None

    def check(self, classes: int, targeted: bool, pixel_range: PixelRange) -> None:
        if pixel_range is None:
            raise ValueError("expected a pixel_range, got None")

    def perturb(
        self, model: nn.Module, x: Tensor, goal: Goal, pixel_range: PixelRange, batch_size: int
    ) -> Perturbed:
        return Perturbed((x - self.depth).clamp(min=0), 0.0, 1.0)

    def to_json(self) -> dict[str, object]:
        return {"method": "darken", "depth": self.depth}

    @classmethod
    def from_json(cls, fields: dict[str, float]) -> "Darken":
        return cls(fields["depth"])


def test_an_attack_of_ones_own_runs_like_the_others() -> None:
    """A class with three methods and one registration; health and success are measured as for any."""
    model, x = Scalar(lambda s: torch.stack([s, 0.5 - s], 1)), torch.tensor([[0.3], [0.9]])
    result = run_attack(model, x, torch.zeros(2, dtype=torch.long), Darken(0.4))
    assert result.success.tolist() == [True, False]
    assert result.health.black == 0.5
    assert result.health.largest_norm == pytest.approx(0.4)
    with pytest.raises(ValueError, match="pixel_range"):
        run_attack(model, x, torch.zeros(2, dtype=torch.long), Darken(0.4), pixel_range=None)
    if "darken" not in ATTACKS:
        register_attack("darken", Darken.from_json)
    assert attack_from_json(Darken(0.4).to_json()) == Darken(0.4)
    with pytest.raises(ValueError, match="new name for an attack, got 'darken', which is taken"):
        register_attack("darken", Darken.from_json)


# The plain attack, written out with autograd, against the fast one.


def plainly(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, targeted: bool) -> Tensor:
    """PGD or MIM of one start, in the pixel range [0, 1], keeping the best iterate."""
    order = math.inf if attack.norm == "linf" else 2
    losses = TARGETED_LOSSES if targeted else LOSSES

    def judged(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = point.clone().requires_grad_()
        logits = model(point)
        loss = (-1 if targeted else 1) * losses[attack.loss](logits, y)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        return gradient, loss.detach(), (logits.argmax(1) == y) == targeted

    def inside(point: Tensor) -> Tensor:
        delta = point.clamp(0, 1) - x
        size = torch.linalg.vector_norm(delta, order, dim=1, keepdim=True)
        if attack.norm == "linf":
            return (x + delta.clamp(-attack.eps, attack.eps)).clamp(0, 1)
        return x + delta * (attack.eps / size).clamp(max=1)

    here, velocity = x.clone(), torch.zeros_like(x)
    best, best_loss, best_fooled = here, torch.full((len(x),), -math.inf).double(), torch.zeros(len(x)) > 0
    for _ in range(attack.steps):
        gradient = judged(here)[0]
        if attack.method == "mim":
            velocity = velocity + gradient / gradient.abs().sum(1, keepdim=True)
            gradient = velocity
        unit = gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        here = inside(here + attack.schedule[1] * (gradient.sign() if attack.norm == "linf" else unit))
        _, loss, fooled = judged(here)
        wins = (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss >= best_loss))
        best = torch.where(wins[:, None], here, best)
        best_loss, best_fooled = torch.where(wins, loss, best_loss), torch.where(wins, fooled, best_fooled)
    return best


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["bim", "mim"])
def test_equals_the_plain_attack(method: str, norm: str, loss: str, targeted: bool) -> None:
    """Written-out backward passes, fused steps and copies give what plain autograd gives, to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(linear(24, 20, scale=1.5), nn.Tanh(), nn.Linear(24, 5)).double()
    x = images(40, 20).double()
    y = predict(model, x)
    goal = (y + 1) % 5 if targeted else y
    eps = 0.3 if norm == "linf" else 1.0
    attack = Attack(method, norm, eps, steps=9, step_size=0.8 * eps, loss=loss)
    expected = plainly(model, x, goal, attack, targeted)
    found = run_attack(model, x, y, attack, target=goal if targeted else None).x_adv
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    last = run_attack(model, x, y, replace(attack, on_failure="last"), target=goal if targeted else None)
    if method == "bim":
        assert not torch.equal(found, last.x_adv), "some sample's best iterate is not its last one"


# Samples that are fooled are attacked no further.


class Counted(nn.Module):
    """A model that counts the rows it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targeted", [False, True])
def test_any_fools_the_samples_that_best_fools(method: str, norm: str, loss: str, targeted: bool) -> None:
    """The same successes, from fewer rows; where nothing fools the model the same images."""
    torch.manual_seed(0)
    model = Counted(nn.Sequential(linear(24, 20, scale=1.5), nn.Tanh(), nn.Linear(24, 5)).double())
    x = images(80, 20).double()
    y = predict(model, x)
    eps = 0.12 if norm == "linf" else 0.5
    restarts = 3 if method in ("pgd", "apgd") else 1
    best = Attack(method, norm, eps, steps=9, restarts=restarts, loss=loss)
    target = (y + 1) % 5 if targeted else None
    model.rows = 0
    full = run_attack(model, x, y, best, target=target)
    asked, model.rows = model.rows, 0
    quick = run_attack(model, x, y, replace(best, on_failure="any"), target=target)
    assert torch.equal(quick.success, full.success)
    assert 0 < full.success.sum() < 80
    missed = ~full.success
    torch.testing.assert_close(quick.x_adv[missed], full.x_adv[missed], rtol=0, atol=1e-9)
    assert model.rows < asked if method != "fgsm" else model.rows == asked
    assert norms(x, quick.x_adv, norm).max() <= eps * (1 + 1e-14)


def test_health_of_any_counts_what_was_done() -> None:
    """Of two samples one is fooled by the first of four steps, the other has no gradient: 4 of 5 are zero."""
    model = Scalar(lambda s: torch.stack([torch.zeros_like(s), (s - 0.5).clamp(min=-0.3)], 1))
    x, y = torch.tensor([[0.45], [0.1]]), torch.zeros(2, dtype=torch.long)
    attack = Attack("bim", eps=0.1, steps=4, step_size=0.1, loss="margin", on_failure="any")
    result = run_attack(model, x, y, attack)
    assert result.success.tolist() == [True, False]
    assert result.health.zero_gradients == 4 / 5
    assert result.health.monotone_loss == 1
    full = run_attack(model, x, y, replace(attack, on_failure="best"))
    assert full.health.zero_gradients == 4 / 8
