"""The certificate R1: exact against independent solvers, sound against attacks, and hard to fool."""

import time

import numpy as np
import pytest
from scipy.optimize import linprog, nnls

from bounds import dual, transfer_certificate
from bounds.certificate import (
    certify_targeted,
    certify_untargeted,
    check_witness,
    transfer_certificate_gram,
)


def shortest_joint_crossing(p: np.ndarray, gradients: np.ndarray) -> float:
    """Smallest ||d||_2 with -g_i.d >= p_i for all i, by Lawson and Hanson's reduction to NNLS."""
    system = np.vstack([-gradients.T, p[None]])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    residual = system @ nnls(system, goal)[0] - goal
    return np.inf if np.linalg.norm(residual) < 1e-9 else float(np.linalg.norm(residual[:-1] / residual[-1]))


def largest_linf_surplus(p: np.ndarray, gradients: np.ndarray, radius: float) -> float:
    """Max over the simplex of lambda.p - eps ||sum lambda g||_1, by its primal linear program."""
    n, d = gradients.shape
    objective = np.append(np.zeros(d), 1.0)
    constraints = np.hstack([gradients, -np.ones((n, 1))])
    return float(linprog(objective, constraints, -p, bounds=[(-radius, radius)] * d + [(None, None)]).fun)


def awkward_problem(models: int, dimension: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Random margins and gradients, with ties, opposite, equal and zero gradients among them."""
    rng = np.random.default_rng(100 * models + dimension)
    margins, gradients = rng.normal(0.5, 1.0, (n, models)) / models, rng.normal(size=(n, models, dimension))
    gradients[:15], margins[:15] = np.round(gradients[:15]), np.round(2 * margins[:15]) / 2
    if models > 1:
        gradients[15:22, 1] = -2.0 * gradients[15:22, 0]
        gradients[22:28, 1] = gradients[22:28, 0]
    gradients[28:32] = 0.0
    return margins, gradients


@pytest.mark.parametrize("models", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dimension", [1, 2, 6])
@pytest.mark.parametrize("radius", [0.3, 1.0])
def test_l2_certificate_is_exact(models, dimension, radius):
    margins, gradients = awkward_problem(models, dimension)
    certificate = transfer_certificate(margins, gradients, 0.2, radius)
    distance = np.array(
        [shortest_joint_crossing(m - 0.1 * radius**2, g) for m, g in zip(margins, gradients, strict=True)]
    )
    clear = np.abs(distance - radius) > 1e-6
    np.testing.assert_array_equal(certificate.certified[clear], distance[clear] > radius)
    assert 0 < certificate.certified.mean() < 1


@pytest.mark.parametrize("models", [1, 2, 3, 4])
@pytest.mark.parametrize("dimension", [1, 2, 6])
def test_linf_certificate_is_exact(models, dimension):
    margins, gradients = awkward_problem(models, dimension)
    certificate = transfer_certificate(margins, gradients, 0.2, 0.4, "linf")
    surplus = np.array(
        [largest_linf_surplus(m - 0.1 * 0.4**2, g, 0.4) for m, g in zip(margins, gradients, strict=True)]
    )
    clear = np.abs(surplus) > 1e-8
    np.testing.assert_array_equal(certificate.certified[clear], surplus[clear] > 0)
    assert 0 < certificate.certified.mean() < 1


def test_two_models_match_the_closed_form_distance():
    margins, gradients = awkward_problem(2, 3, n=400)
    (p, q), a, b = margins.T, -gradients[:, 0], -gradients[:, 1]
    aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
    with np.errstate(all="ignore"):
        both = np.sqrt((p**2 * bb - 2 * p * q * ab + q**2 * aa) / (aa * bb - ab**2))
        rho = np.where(aa * bb - ab**2 > 1e-9, both, np.inf)
        rho = np.where((q > 0) & (q / bb * ab >= p), q / np.sqrt(bb), rho)
        rho = np.where((p > 0) & (p / aa * ab >= q), p / np.sqrt(aa), rho)
        rho = np.where((p <= 0) & (q <= 0), 0.0, rho)
    clear = (np.abs(rho - 0.7) > 1e-9) & (aa * bb > 0)
    certified = transfer_certificate(margins, gradients, 0.0, 0.7).certified
    np.testing.assert_array_equal(certified[clear], rho[clear] > 0.7)


def test_opposite_gradients_are_certified_at_any_radius():
    certificate = transfer_certificate([[1.0, 1.0]], [[[3.0, 0.0], [-1.0, 0.0]]], 0.0, 1e6)
    assert certificate.certified[0]
    np.testing.assert_allclose(certificate.witness[0], [0.25, 0.75])


def test_no_perturbation_of_a_curved_world_beats_the_certificate():
    rng = np.random.default_rng(1)
    n, models, dimension, eps = 400, 3, 3, 0.8
    margins, gradients = rng.normal(0.6, 0.5, (n, models)), rng.normal(size=(n, models, dimension))
    half = rng.normal(size=(n, models, dimension, dimension)) / 2
    hessian = half + half.swapaxes(2, 3)
    kappa = -np.linalg.eigvalsh(hessian)[..., 0]
    certified = transfer_certificate(margins, gradients, kappa, eps).certified
    steps = rng.normal(size=(4000, dimension))
    steps *= eps * rng.random((4000, 1)) ** (1 / 3) / np.linalg.norm(steps, axis=1, keepdims=True)
    moved = margins[:, :, None] + gradients @ steps.T
    moved += np.einsum("sd,nide,se->nis", steps, hessian, steps, optimize=True) / 2
    fooled = (moved <= 0).all(axis=1).any(axis=1)
    assert not (fooled & certified).any()
    assert fooled.sum() > 20
    assert certified.sum() > 20


def test_negative_curvature_buys_nothing():
    """The bound m - kappa ||d||^2 / 2 with kappa < 0 is m at d = 0, so p may not exceed m."""
    assert not transfer_certificate([[-0.1]], [[[0.0]]], -1.0, 1.0).certified[0]


def test_infinite_curvature_certifies_nothing_by_itself_and_spoils_nothing():
    margins, gradients = [[5.0, 5.0]], [[[1.0, 0.0], [0.0, 1.0]]]
    assert not transfer_certificate(margins, gradients, np.inf, 0.1).certified[0]
    assert transfer_certificate(margins, gradients, [[np.inf, 0.0]], 0.1).certified[0]
    assert transfer_certificate(margins, gradients, np.inf, 0.0).certified[0]
    assert not transfer_certificate(margins, gradients, np.inf, 1e-90).certified[0]


def test_linf_curvature_is_measured_in_linf():
    """An l2 curvature of 1 is d in linf: m = 1 - ||d||^2 / 2 in 4 dimensions falls to -1 in the unit cube."""
    margins, gradients = [[1.0]], np.zeros((1, 1, 4))
    assert not transfer_certificate(margins, gradients, 4 * 1.0, 1.0, "linf").certified[0]
    assert 1.0 - np.sum(np.ones(4) ** 2) / 2 < 0
    assert transfer_certificate(margins, gradients, 1.0, 1.0, "linf").certified[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_check_accepts_the_witness_at_any_scale_and_rejects_others(norm):
    margins, gradients = awkward_problem(3, 4)
    certificate = transfer_certificate(margins, gradients, 0.1, 0.4, norm)
    proved = certificate.certified
    arguments = (margins, gradients, 0.1, 0.4, norm)
    assert check_witness(7.0 * certificate.witness, *arguments)[proved].all()
    assert not check_witness(-certificate.witness, *arguments).any()
    assert not check_witness(0.0 * certificate.witness, *arguments).any()
    assert not check_witness(np.nan * certificate.witness, *arguments).any()


def test_a_broken_search_cannot_certify_falsely(monkeypatch):
    margins, gradients = awkward_problem(3, 4, n=300)
    honest = transfer_certificate(margins, gradients, 0.1, 0.4).certified
    rng = np.random.default_rng(0)
    monkeypatch.setattr("bounds.certificate.l2_witness", lambda p, gram, radius: rng.normal(size=p.shape))
    broken = transfer_certificate(margins, gradients, 0.1, 0.4).certified
    assert not (broken & ~honest).any()
    assert broken.sum() < honest.sum()


def test_rounding_counts_against_the_certificate():
    """At lambda.p = eps ||g|| exactly nothing may be certified; just above it, something must be."""
    gradients = np.array([[[3.0, 4.0], [3.0, 4.0]]])
    assert not transfer_certificate([[2.5, 2.5]], gradients, 0.0, 0.5).certified[0]
    assert transfer_certificate([[2.5 + 1e-12, 2.5]], gradients, 0.0, 0.5).certified[0]


def test_gram_form_agrees_with_the_gradients():
    margins, gradients = awkward_problem(4, 5, n=300)
    direct = transfer_certificate(margins, gradients, 0.1, 0.4)
    from_gram = transfer_certificate_gram(margins, gradients @ gradients.swapaxes(1, 2), 0.1, 0.4)
    assert not (from_gram.certified & ~direct.certified).any()
    assert (direct.certified != from_gram.certified).mean() < 0.02
    coarse = transfer_certificate_gram(
        margins, gradients @ gradients.swapaxes(1, 2), 0.1, 0.4, relative_error=0.1
    )
    assert coarse.certified.sum() < from_gram.certified.sum()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_untargeted_needs_every_combination_of_labels(norm):
    rng = np.random.default_rng(3)
    n, models, labels, eps = 120, 2, 3, 0.3
    margins, gradients = rng.normal(0.9, 0.4, (n, models, labels)), rng.normal(size=(n, models, labels, 4))
    certificate = certify_untargeted(margins, gradients, 0.1, eps, norm)
    every = np.ones(n, dtype=bool)
    for i in range(labels):
        for j in range(labels):
            pick = (margins[:, [0, 1], [i, j]], gradients[:, [0, 1], [i, j]])
            every &= transfer_certificate(*pick, 0.1, eps, norm).certified
    np.testing.assert_array_equal(certificate.certified, every)
    assert 0 < every.mean() < 1
    for position, choice in enumerate(certificate.choices):
        pick = (margins[:, [0, 1], choice][every], gradients[:, [0, 1], choice][every])
        assert check_witness(certificate.witness[every, position], *pick, 0.1, eps, norm).all()


def test_k_of_n_is_monotone_and_one_means_each_model_alone():
    rng = np.random.default_rng(4)
    n, models, labels, eps = 150, 3, 2, 0.3
    margins, gradients = rng.normal(1.0, 0.4, (n, models, labels)), rng.normal(size=(n, models, labels, 4))
    one, two, three = (
        certify_untargeted(margins, gradients, 0.0, eps, fooled=k).certified for k in (1, 2, 3)
    )
    assert not (one & ~two).any()
    assert not (two & ~three).any()
    assert one.sum() < two.sum() < three.sum()
    np.testing.assert_array_equal(one, (margins > eps * np.linalg.norm(gradients, axis=-1)).all(axis=(1, 2)))
    pairs = [
        certify_untargeted(margins[:, m], gradients[:, m], 0.0, eps).certified
        for m in ([0, 1], [0, 2], [1, 2])
    ]
    np.testing.assert_array_equal(two, np.all(pairs, axis=0))


def test_targeted_rows_of_all_labels_help_and_stay_sound():
    """To reach y_t every other label must lose, so a margin that cannot fall protects the sample."""
    rng = np.random.default_rng(5)
    n, models, labels, eps = 300, 2, 3, 0.5
    margins, gradients = rng.normal(0.5, 0.4, (n, models, labels)), rng.normal(size=(n, models, labels, 3))
    certificate = certify_targeted(margins, gradients, 0.0, eps)
    single = transfer_certificate(margins[:, :, 0], gradients[:, :, 0], 0.0, eps).certified
    assert not (single & ~certificate.certified).any()
    assert single.sum() < certificate.certified.sum() < n
    steps = rng.normal(size=(3000, 3))
    steps *= eps / np.linalg.norm(steps, axis=1, keepdims=True)
    reached = (margins[..., None] + gradients @ steps.T <= 0).all(axis=(1, 2)).any(axis=1)
    assert not (reached & certificate.certified).any()
    assert reached.any()
    assert certificate.witness.shape == margins.shape


def test_certificate_converts_to_its_booleans():
    certificate = transfer_certificate([[1.0]], [[[0.1]]], 0.0, 1.0)
    assert np.asarray(certificate).dtype == np.bool_
    assert np.asarray(certificate)[0]
    assert len(certificate) == 1


def test_no_samples_give_an_empty_certificate():
    certificate = transfer_certificate(np.zeros((0, 3)), np.zeros((0, 3, 2)), 0.0, 1.0)
    assert certificate.certified.shape == (0,)
    assert certificate.witness.shape == (0, 3)


GOOD = {"margins": [[1.0, 1.0]], "gradients": [[[1.0], [1.0]]], "curvature": 0.0, "radius": 1.0, "norm": "l2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margins": [1.0, 1.0]}, "margins with 2 dimensions, got shape \\(2,\\)"),
        ({"margins": [[np.nan, 1.0]]}, "finite margins, got 1 NaN"),
        ({"gradients": [[1.0, 1.0]]}, "gradients with 3 dimensions"),
        ({"gradients": [[[1.0]]]}, "gradients of shape \\(1, 2\\) \\+ \\(d,\\), got \\(1, 1, 1\\)"),
        ({"gradients": [[[np.inf], [1.0]]]}, "finite gradients"),
        ({"curvature": np.nan}, "curvature without NaN"),
        ({"curvature": [1.0, 2.0, 3.0]}, "broadcastable to \\(1, 2\\), got shape \\(3,\\)"),
        ({"radius": -1.0}, "radius of at least 0, got -1.0"),
        ({"radius": np.nan}, "finite radius"),
        ({"radius": "1"}, "radius"),
        ({"norm": "l1"}, "'l2' or 'linf', got 'l1'"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        transfer_certificate(**{**GOOD, **change})


def test_bad_composite_input_is_named():
    margins, gradients = np.ones((2, 2, 3)), np.ones((2, 2, 3, 4))
    with pytest.raises(ValueError, match="fooled between 1 and the 2 models, got 3"):
        certify_untargeted(margins, gradients, 0.0, 1.0, fooled=3)
    with pytest.raises(ValueError, match="margins with 3 dimensions"):
        certify_targeted(margins[0], gradients, 0.0, 1.0)
    with pytest.raises(ValueError, match="gram of shape"):
        transfer_certificate_gram(margins[:, :, 0], np.ones((2, 3, 3)), 0.0, 1.0)
    with pytest.raises(ValueError, match="witness of shape"):
        check_witness([[1.0]], margins[:, :, 0], gradients[:, :, 0], 0.0, 1.0)


@pytest.mark.slow
def test_ten_classes_and_ten_thousand_samples_take_a_moment():
    """810,000 certificates, none of them skipped: a fraction of a second of one processor, 2 allowed."""
    rng = np.random.default_rng(8)
    margins, gradients = rng.normal(5.0, 0.3, (10_000, 2, 9)), rng.normal(size=(10_000, 2, 9, 32))
    start = time.process_time()
    certificate = certify_untargeted(margins, gradients, 0.1, 0.1)
    assert time.process_time() - start < 2.0
    assert certificate.certified.all()
    assert certificate.witness.shape == (10_000, 81, 2)


def test_simplex_projection_is_the_nearest_point():
    rng = np.random.default_rng(7)
    points = rng.normal(size=(200, 4))
    projected = dual.project_to_simplex(points)
    np.testing.assert_allclose(projected.sum(axis=1), 1.0)
    assert (projected >= 0).all()
    others = rng.dirichlet(np.ones(4), size=(200, 50))
    nearest = np.linalg.norm(points - projected, axis=1)
    assert (nearest[:, None] <= np.linalg.norm(points[:, None] - others, axis=2) + 1e-12).all()
