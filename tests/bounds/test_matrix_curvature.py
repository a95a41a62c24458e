"""R9: the trust-region subproblem is exact, the dual bound is sound, and R9 is never worse than R1."""

import itertools

import numpy as np
import pytest

from bounds.certificate import transfer_certificate
from bounds.matrix_curvature import (
    check_matrix_witness,
    low_rank_certificate,
    matrix_certificate,
    trust_region,
)


def value_at(step: np.ndarray, gradients: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    return (step * gradients).sum(1) - np.einsum("nd,nde,ne->n", step, matrices, step) / 2


def low_rank_problem(models: int, *, seed: int = 0, n: int = 400, dimension: int = 5, rank: int = 2):
    rng = np.random.default_rng(seed)
    margins, gradients = rng.normal(1.0, 0.7, (n, models)), rng.normal(size=(n, models, dimension))
    factors = 0.7 * rng.normal(size=(n, models, rank, dimension))
    return margins, gradients, factors, factors.swapaxes(2, 3) @ factors


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_trust_region_is_the_global_minimum(dimension):
    rng = np.random.default_rng(dimension)
    n, radius = 200, 1.3
    factors = rng.normal(size=(n, dimension, dimension)) * rng.choice([0.0, 1.0, 3.0], size=(n, 1, 1))
    matrices, gradients = factors @ factors.swapaxes(1, 2), rng.normal(size=(n, dimension))
    solved = trust_region(gradients, matrices, radius)
    sphere = rng.normal(size=(50_000, dimension))
    sphere *= radius / np.linalg.norm(sphere, axis=1, keepdims=True)
    brute = np.array(
        [
            (sphere @ g - np.einsum("sd,de,se->s", sphere, q, sphere, optimize=True) / 2).min()
            for g, q in zip(gradients, matrices, strict=True)
        ]
    )
    mine = value_at(solved.step, gradients, matrices)
    assert (mine <= brute + 1e-6).all()
    np.testing.assert_allclose(mine, brute, atol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(solved.step, axis=1), radius, rtol=1e-6)


@pytest.mark.parametrize("multiplicity", [1, 2])
def test_trust_region_solves_the_hard_case(multiplicity):
    """No gradient along the top eigenvectors, and too little elsewhere to reach the sphere."""
    rng = np.random.default_rng(multiplicity)
    n, dimension, radius = 50, 4, 1.0
    vectors = np.linalg.qr(rng.normal(size=(n, dimension, dimension)))[0]
    values = np.array([0.0, 0.5, 2.0 if multiplicity == 2 else 1.0, 2.0])
    matrices = np.einsum("nda,a,nea->nde", vectors, values, vectors)
    parts = 0.1 * rng.normal(size=(n, dimension)) * (values < 2.0)
    gradients = np.einsum("nda,na->nd", vectors, parts)
    solved = trust_region(gradients, matrices, radius)
    np.testing.assert_allclose(np.linalg.norm(solved.step, axis=1), radius, rtol=1e-8)
    np.testing.assert_allclose(solved.multiplier, 2.0, rtol=1e-8)
    dual = -(parts**2 / np.where(values < 2.0, 2.0 - values, 1.0)).sum(1) / 2 - 2.0 * radius**2 / 2
    np.testing.assert_allclose(value_at(solved.step, gradients, matrices), dual, rtol=1e-8)


@pytest.mark.parametrize("models", [1, 2, 3])
def test_never_worse_than_the_scalar_curvature(models):
    margins, gradients, _, matrices = low_rank_problem(models)
    norms = np.linalg.eigvalsh(matrices)[..., -1]
    scalar = transfer_certificate(margins, gradients, norms * (1 + 1e-9), 0.5).certified
    matrix = matrix_certificate(margins, gradients, matrices, 0.5).certified
    assert not (scalar & ~matrix).any()
    assert matrix.sum() > 1.1 * scalar.sum()


@pytest.mark.parametrize("models", [2, 3])
def test_no_perturbation_beats_the_certificate(models):
    margins, gradients, _, matrices = low_rank_problem(models, n=200, dimension=3)
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(5000, 3))
    steps *= 0.5 / np.linalg.norm(steps, axis=1, keepdims=True)
    bends = np.einsum("sd,nide,se->nis", steps, matrices, steps, optimize=True)
    fooled = (margins[:, :, None] + gradients @ steps.T - bends / 2 <= 0).all(axis=1).any(axis=1)
    certified = matrix_certificate(margins, gradients, matrices, 0.5).certified
    assert not (fooled & certified).any()
    assert (fooled | certified).mean() > 0.95
    assert min(fooled.sum(), certified.sum()) > 10


@pytest.mark.parametrize(("models", "found_share"), [(2, 1.0), (3, 0.98)])
def test_the_search_finds_the_weights_that_a_grid_finds(models, found_share):
    """A gain over fixed weights is there to be found; with two models none of it may be missed."""
    margins, gradients, _, matrices = low_rank_problem(models, n=150)
    ticks = np.linspace(0.0, 1.0, 41 if models == 2 else 13)
    simplex = np.array([w for w in itertools.product(ticks, repeat=models) if abs(sum(w) - 1) < 1e-9])
    best = np.full(len(margins), -np.inf)
    for weights in simplex:
        gradient, matrix = (
            np.einsum("i,nid->nd", weights, gradients),
            np.einsum("i,nide->nde", weights, matrices),
        )
        step = trust_region(gradient, matrix, 0.5).step
        best = np.maximum(best, margins @ weights + value_at(step, gradient, matrix))
    certified = matrix_certificate(margins, gradients, matrices, 0.5).certified
    assert certified[best > 1e-6].mean() >= found_share
    vertex = [
        matrix_certificate(margins[:, [i]], gradients[:, [i]], matrices[:, [i]], 0.5).certified
        for i in range(models)
    ]
    assert certified.sum() > np.any(vertex, axis=0).sum() + 3


def test_half_the_curvature_is_falsified():
    margins, gradients, _, matrices = low_rank_problem(2, n=200, dimension=3)
    steps = np.random.default_rng(1).normal(size=(5000, 3))
    steps *= 0.5 / np.linalg.norm(steps, axis=1, keepdims=True)
    bends = np.einsum("sd,nide,se->nis", steps, matrices, steps, optimize=True)
    fooled = (margins[:, :, None] + gradients @ steps.T - bends / 2 <= 0).all(axis=1).any(axis=1)
    assert (fooled & matrix_certificate(margins, gradients, matrices / 2, 0.5).certified).any()


def test_zero_curvature_is_the_affine_certificate():
    margins, gradients, _, matrices = low_rank_problem(2)
    plain = transfer_certificate(margins, gradients, 0.0, 0.5).certified
    np.testing.assert_array_equal(matrix_certificate(margins, gradients, 0 * matrices, 0.5).certified, plain)


@pytest.mark.parametrize("dimension", [4, 12])
def test_low_rank_agrees_with_dense(dimension):
    """Below and above the dimension from which the problem is rotated into the span of its factors."""
    margins, gradients, factors, matrices = low_rank_problem(2, dimension=dimension)
    dense = matrix_certificate(margins, gradients, matrices, 0.4).certified
    weights = np.full((*margins.shape, 2), 4.0)
    low_rank = low_rank_certificate(margins, gradients, factors / 2, weights, 0.4).certified
    assert (dense != low_rank).mean() < 0.01
    assert 0.1 < dense.mean() < 0.95


def test_factors_shared_by_all_samples_broadcast():
    margins, gradients, factors, _ = low_rank_problem(2, n=50)
    weights = np.random.default_rng(2).random((50, 2, 2))
    shared = low_rank_certificate(margins, gradients, factors[0], weights, 0.4).certified
    spread = np.broadcast_to(factors[0], factors.shape)
    np.testing.assert_array_equal(
        shared, low_rank_certificate(margins, gradients, spread, weights, 0.4).certified
    )


def test_check_rejects_multipliers_below_the_top_eigenvalue():
    margins, gradients, _, matrices = low_rank_problem(2)
    found = matrix_certificate(margins, gradients, matrices, 0.4)
    arguments = (margins, gradients, matrices, 0.4)
    np.testing.assert_array_equal(
        check_matrix_witness(found.witness, found.multiplier, *arguments), found.certified
    )
    top = np.linalg.eigvalsh(np.einsum("ni,nide->nde", found.witness, matrices))[:, -1]
    assert not check_matrix_witness(found.witness, 0.99 * top, *arguments).any()
    assert not check_matrix_witness(-found.witness, found.multiplier, *arguments).any()


def test_a_wrong_multiplier_only_loses():
    margins, gradients, _, matrices = low_rank_problem(2)
    found = matrix_certificate(margins, gradients, matrices, 0.4)
    loose = check_matrix_witness(found.witness, 3 * found.multiplier + 1, margins, gradients, matrices, 0.4)
    assert not (loose & ~found.certified).any()
    assert loose.sum() < found.certified.sum()


def test_zero_radius_asks_for_a_positive_margin():
    margins, gradients, _, matrices = low_rank_problem(2, n=50)
    certified = matrix_certificate(margins, gradients, matrices, 0.0).certified
    np.testing.assert_array_equal(certified, (margins > 0).any(axis=1))


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (np.ones((1, 2, 2)), "matrices with 4 dimensions"),
        (np.ones((1, 2, 3, 3)), "matrices \\(n, N, d, d\\)"),
        (np.array([[[[1.0, 2.0], [0.0, 1.0]]] * 2]), "symmetric"),
        (np.full((1, 2, 2, 2), np.nan), "finite matrices"),
    ],
)
def test_bad_matrices_are_named(matrices, message):
    with pytest.raises(ValueError, match=message):
        matrix_certificate([[1.0, 1.0]], np.ones((1, 2, 2)), matrices, 1.0)


def test_bad_factors_are_named():
    good = ([[1.0, 1.0]], np.ones((1, 2, 2)), np.ones((2, 3, 2)), np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="weights of at least 0, got -1"):
        low_rank_certificate(*good[:3], -good[3], 1.0)
    with pytest.raises(ValueError, match="factors that broadcast to \\(1, 2, 3, 2\\)"):
        low_rank_certificate(*good[:2], np.ones((2, 4, 2)), good[3], 1.0)
    with pytest.raises(ValueError, match="radius"):
        low_rank_certificate(*good, -1.0)
