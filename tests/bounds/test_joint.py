"""Certificates for many subsets at once agree with those for one, and no perturbation breaks them."""

import dataclasses
import itertools

import numpy as np
import pytest

import bounds.joint
from bounds.certificate import certify_targeted, certify_untargeted
from bounds.joint import JointCertificates, MarginBounds
from bounds.must_transfer import Curvature, must_transfer, must_transfer_curved

RADIUS = 0.6


def random_margins(seed=0, *, n=80, models=3, labels=3, dimension=4):
    rng = np.random.default_rng(seed)
    margins = rng.normal(1.2, 0.6, (n, models, labels))
    return margins, rng.normal(size=(n, models, labels, dimension))


def joint(margins, gradients, norm, *, targeted=False, matrices=None, refuted=None):
    order = 2 if norm == "l2" else 1
    models = []
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

        models.append(MarginBounds(offsets, gradients[:, i], floors, quadratic))
    return JointCertificates(models, RADIUS, norm, targeted=targeted, refuted=refuted)


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
    curvature = written_out(matrices)
    curved = must_transfer_curved(margins, gradients, curvature, RADIUS, plain.direction)
    step = curved.direction
    bend = np.einsum("nd,nide,ne->ni", step, matrices, step) / 2
    heights = margins + np.einsum("nd,nid->ni", step, gradients) + bend
    assert (heights[curved.guaranteed] < 0).all()
    assert (np.linalg.norm(step, axis=1) <= RADIUS).all()
    assert (curved.guaranteed | ~plain.guaranteed).all()
    assert curved.guaranteed.sum() > plain.guaranteed.sum() > 0
    with pytest.raises(ValueError, match=r"steps \(n, d\), sizes and dips \(n, N\) .* got .*\(80, 1\)"):
        must_transfer_curved(margins, gradients, written_out(matrices[:, :1]), RADIUS, plain.direction)


def written_out(matrices):
    """What the steps' search asks of curvature matrices (n, N, d, d)."""
    return Curvature(
        lambda samples, steps: (matrices[samples] @ steps[:, None, :, None])[..., 0],
        np.linalg.norm(matrices, axis=(2, 3)),
        np.maximum(-np.linalg.eigvalsh(matrices)[..., 0], 0.0),
    )


@pytest.mark.parametrize("bend", [0.1, 1.5])
def test_samples_without_a_step_leave_the_search_at_once_and_none_is_lost(bend):
    """The tangent's test against a search that never gives up, on margins of all curvatures."""
    margins, gradients = random_margins(7, n=400, labels=1, dimension=4)
    margins, gradients = margins[:, :2, 0], gradients[:, :2, 0]
    rng = np.random.default_rng(8)
    matrices = rng.normal(size=(*gradients.shape, 4))
    matrices = bend * (matrices + matrices.swapaxes(-1, -2))
    curvature, start, asked = written_out(matrices), np.zeros((400, 4)), []

    def counted(samples, steps):
        asked.append(len(samples))
        return curvature.push(samples, steps)

    never = dataclasses.replace(curvature, dips=np.full_like(curvature.dips, np.inf))
    patient = must_transfer_curved(margins, gradients, never, RADIUS, start)
    quick = must_transfer_curved(
        margins, gradients, dataclasses.replace(curvature, push=counted), RADIUS, start
    )
    np.testing.assert_array_equal(quick.guaranteed, patient.guaranteed)
    assert not start.any()
    assert 50 < quick.guaranteed.sum() < 350
    assert asked[0] == 400
    # What is neither found nor given up is a small rest.
    if bend < 1:
        assert asked[-1] < 0.5 * (400 - quick.guaranteed.sum())


@pytest.mark.parametrize("targeted", [False, True])
def test_refuted_samples_are_not_looked_at_and_the_others_as_before(targeted, monkeypatch):
    margins, gradients = random_margins(9)
    margins = margins - 1.4 if targeted else margins
    subsets = [(0, 1, 2), (1, 2), (0, 1), (0,)]
    plain = joint(margins, gradients, "l2", targeted=targeted)
    refuted = {subset: ~plain.certified(subset) for subset in subsets}
    looked_at = []
    real = bounds.joint.transfer_certificate

    def counted(offsets, *others):
        looked_at.append(len(offsets))
        return real(offsets, *others)

    monkeypatch.setattr(bounds.joint, "transfer_certificate", counted)
    rows = []
    for known in (None, refuted):
        looked_at.clear()
        found = joint(margins, gradients, "l2", targeted=targeted, refuted=known)
        for subset in subsets:
            np.testing.assert_array_equal(found.certified(subset), plain.certified(subset))
        rows.append(sum(looked_at))
    assert 0 < rows[1] < 0.7 * rows[0]
    # A sample is looked at for a pair as long as it is open for the triple, and certified for neither.
    wanted = bounds.joint.wanted((0, 1), refuted, 80)
    np.testing.assert_array_equal(wanted, ~refuted[0, 1, 2] | ~refuted[0, 1])
    everything = {subset: np.ones(80, dtype=bool) for subset in subsets}
    nothing = joint(margins, gradients, "l2", targeted=targeted, refuted=everything)
    assert nothing.certified((0, 1)).sum() < plain.certified((0, 1)).sum()
