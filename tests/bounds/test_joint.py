"""Certificates for many subsets at once agree with those for one, and no perturbation breaks them."""

import itertools

import numpy as np
import pytest

from bounds.certificate import certify_targeted, certify_untargeted
from bounds.joint import JointCertificates, MarginBounds
from bounds.must_transfer import must_transfer, must_transfer_curved

RADIUS = 0.6


def random_margins(seed=0, *, n=80, models=3, labels=3, dimension=4):
    rng = np.random.default_rng(seed)
    margins = rng.normal(1.2, 0.6, (n, models, labels))
    return margins, rng.normal(size=(n, models, labels, dimension))


def joint(margins, gradients, norm, *, targeted=False, matrices=None):
    order = 2 if norm == "l2" else 1
    bounds = []
    for i in range(margins.shape[1]):
        bend = (
            0.0 if matrices is None else np.linalg.eigvalsh(matrices[:, i])[..., -1].clip(0) * RADIUS**2 / 2
        )
        offsets = margins[:, i] - bend
        floors = offsets - RADIUS * np.linalg.norm(gradients[:, i], ord=order, axis=2) * (1 + 1e-12)
        quadratic = None
        if matrices is not None:

            def quadratic(samples, chosen, i=i):
                return margins[samples, i, chosen], matrices[samples, i, chosen]

        bounds.append(MarginBounds(offsets, gradients[:, i], floors, quadratic))
    return JointCertificates(bounds, RADIUS, norm, targeted=targeted)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_subset_is_certified_as_if_it_were_alone(norm):
    margins, gradients = random_margins()
    gradients = gradients if norm == "l2" else gradients / 2
    found = joint(margins, gradients, norm)
    seen = []
    for size in (1, 2, 3):
        for subset in itertools.combinations(range(3), size):
            alone = certify_untargeted(margins[:, subset], gradients[:, subset], 0.0, RADIUS, norm).certified
            np.testing.assert_array_equal(found.certified(subset), alone)
            seen.append(alone.mean())
    assert min(seen) > 0.05
    assert max(seen) < 0.95
    for together in (1, 2):
        alone = certify_untargeted(margins, gradients, 0.0, RADIUS, norm, fooled=together).certified
        np.testing.assert_array_equal(found.certified((0, 1, 2), together), alone)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_targeted_subsets_take_all_their_rows(norm):
    margins, gradients = random_margins(1)
    margins = margins - 1.4
    found = joint(margins, gradients, norm, targeted=True)
    for subset in [(1,), (0, 2), (0, 1, 2)]:
        alone = certify_targeted(margins[:, subset], gradients[:, subset], 0.0, RADIUS, norm).certified
        np.testing.assert_array_equal(found.certified(subset), alone)
        assert 0.05 < alone.mean() < 0.95


def test_curvature_matrices_certify_more_and_are_not_broken():
    """Margins that are exactly quadratic, with indefinite matrices, under a dense search of the ball."""
    margins, gradients = random_margins(2, dimension=3)
    rng = np.random.default_rng(3)
    matrices = rng.normal(size=(*gradients.shape, 3))
    matrices = 1.5 * (matrices + matrices.swapaxes(-1, -2))
    plain = joint(margins, gradients, "l2", matrices=matrices)
    for model in plain.models:
        object.__setattr__(model, "quadratic", None)
    curved = joint(margins, gradients, "l2", matrices=matrices)
    steps = rng.normal(size=(4000, 3))
    length = RADIUS * rng.uniform(size=(4000, 1)) ** (1 / 6) / np.linalg.norm(steps, axis=1, keepdims=True)
    steps = steps * length
    bend = np.einsum("sd,nmlde,se->snml", steps, matrices, steps, optimize=True) / 2
    values = margins + np.einsum("sd,nmld->snml", steps, gradients) - bend
    wrong = (values <= 0).any(3)
    for subset in [(0,), (1, 2), (0, 1, 2)]:
        broken = wrong[:, :, list(subset)].all(2).any(0)
        certified = curved.certified(subset)
        assert not (certified & broken).any()
        assert (certified | ~plain.certified(subset)).all()
        assert certified.sum() > plain.certified(subset).sum()
        # Little is left open (the certificate is complete for one margin alone).
        assert (certified | broken).mean() > 0.8


def test_a_model_that_is_wrong_already_leaves_its_partners_to_decide():
    margins, gradients = random_margins(4, models=2)
    margins[:, 0] = -1.0
    found = joint(margins, gradients, "l2")
    assert not found.certified((0,)).any()
    assert (found.certified((0, 1)) | ~found.certified((1,))).all()


def test_curved_steps_fool_and_find_more_than_the_affine_ones():
    """Upper bounds that are exactly quadratic: the step overcomes them, and descent starts from R7's."""
    margins, gradients = random_margins(5, labels=1, dimension=4)
    margins, gradients = margins[:, :2, 0], gradients[:, :2, 0]
    rng = np.random.default_rng(6)
    matrices = rng.normal(size=(*gradients.shape, 4))
    matrices = matrices + matrices.swapaxes(-1, -2)
    top = np.linalg.eigvalsh(matrices)[..., -1]
    plain = must_transfer(margins, gradients, top, RADIUS)
    curved = must_transfer_curved(margins, gradients, matrices, RADIUS, plain.direction)
    step = curved.direction
    bend = np.einsum("nd,nide,ne->ni", step, matrices, step) / 2
    heights = margins + np.einsum("nd,nid->ni", step, gradients) + bend
    assert (heights[curved.guaranteed] < 0).all()
    assert (np.linalg.norm(step, axis=1) <= RADIUS).all()
    assert (curved.guaranteed | ~plain.guaranteed).all()
    assert curved.guaranteed.sum() > plain.guaranteed.sum() > 0
    with pytest.raises(ValueError, match=r"matrices \(n, N, d, d\) and steps \(n, d\)"):
        must_transfer_curved(margins, gradients, matrices[:, :1], RADIUS, plain.direction)
