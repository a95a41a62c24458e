"""The inner side R7: steps that must fool every model do; if affine, the certificate starts there."""

import numpy as np
import pytest

from bounds.certificate import transfer_certificate
from bounds.must_transfer import must_transfer


def curved_problem(seed: int, n: int = 500, models: int = 2, dimension: int = 4) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    margins, gradients = rng.normal(0.4, 0.3, (n, models)), rng.normal(size=(n, models, dimension))
    half = rng.normal(size=(n, models, dimension, dimension)) / 4
    return margins, gradients, half + half.swapaxes(2, 3)


def after(step: np.ndarray, margins: np.ndarray, gradients: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    linear = np.einsum("nd,nid->ni", step, gradients)
    return margins + linear + np.einsum("nd,nide,ne->ni", step, hessian, step) / 2


@pytest.mark.parametrize("models", [1, 2, 3])
def test_guaranteed_steps_fool_every_model(models):
    margins, gradients, hessian = curved_problem(models, models=models)
    upper = np.linalg.eigvalsh(hessian)[..., -1]
    found = must_transfer(margins, gradients, upper, 0.6)
    moved = after(found.direction, margins, gradients, hessian)
    assert (moved[found.guaranteed] < 0).all()
    assert (np.linalg.norm(found.direction, axis=1) <= 0.6).all()
    assert found.guaranteed.mean() > 0.1


def test_linf_steps_stay_in_the_cube_and_fool():
    margins, gradients, hessian = curved_problem(9)
    upper = 4.0 * np.linalg.eigvalsh(hessian)[..., -1]
    found = must_transfer(margins, gradients, np.maximum(upper, 0.0), 0.25, "linf")
    assert (after(found.direction, margins, gradients, hessian)[found.guaranteed] < 0).all()
    assert np.abs(found.direction).max() <= 0.25
    assert found.guaranteed.mean() > 0.1


def test_affine_margins_leave_no_gap_between_inner_and_outer():
    margins, gradients, _ = curved_problem(10, n=2000)
    outer = transfer_certificate(margins, gradients, 0.0, 0.5).certified
    inner = must_transfer(margins, gradients, 0.0, 0.5).guaranteed
    np.testing.assert_array_equal(inner, ~outer)
    assert 0.2 < inner.mean() < 0.8


def test_sandwich_around_the_best_attack_found():
    margins, gradients, hessian = curved_problem(11, n=300, dimension=2)
    curvature = np.linalg.eigvalsh(hessian)
    inner = must_transfer(margins, gradients, curvature[..., -1], 0.6)
    outer = ~transfer_certificate(margins, gradients, -curvature[..., 0], 0.6).certified
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    steps = (np.linspace(0.02, 0.6, 20)[:, None, None] * circle).reshape(-1, 2)
    moved = margins[:, :, None] + gradients @ steps.T
    moved += np.einsum("sd,nide,se->nis", steps, hessian, steps, optimize=True) / 2
    attacked = (moved < 0).all(axis=1).any(axis=1) | inner.guaranteed
    assert (after(inner.direction, margins, gradients, hessian)[inner.guaranteed] < 0).all()
    assert not (attacked & ~outer).any()
    assert inner.guaranteed.sum() < attacked.sum() < outer.sum()


def test_ignoring_upper_curvature_promises_too_much():
    margins, gradients, hessian = curved_problem(12)
    promised = must_transfer(margins, gradients, 0.0, 0.6)
    moved = after(promised.direction, margins, gradients, hessian)
    assert (moved[promised.guaranteed] >= 0).any()


def test_infinite_curvature_leaves_only_points_that_are_fooled_already():
    found = must_transfer([[-1.0], [1.0]], np.ones((2, 1, 3)), np.inf, 1.0)
    np.testing.assert_array_equal(found.guaranteed, [True, False])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="radius of at least 0, got -1"):
        must_transfer([[1.0]], [[[1.0]]], 0.0, -1)
