"""Transfer certificates of trained models: no attack breaks one, and what must fool does."""

import functools
import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from empirical.models import SOFTPLUS_THRESHOLD
from estimators.certified import certify_goals, certify_groups, certify_transfer, read_network, transfer
from estimators.certified.ball_margins import refuted

ACTIVATIONS = {"relu": nn.ReLU, "softplus": lambda: nn.Softplus(1.0, SOFTPLUS_THRESHOLD), "tanh": nn.Tanh}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    pooled = functional.avg_pool2d(torch.tensor(images).reshape(-1, 1, 8, 8) / 16, 2)
    return pooled.flatten(1), torch.tensor(labels)


@pytest.fixture(scope="module")
def trained(digits):
    """(activation) -> two MLPs trained for a second, with two hidden layers for the second one."""
    pixels, labels = digits

    @functools.cache
    def train(activation):
        make = ACTIVATIONS[activation]
        models = []
        for seed, widths in enumerate([(16, 24, 10), (16, 16, 12, 10)]):
            torch.manual_seed(seed)
            layers = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), make()]
            model = nn.Sequential(*layers[:-1]).double()
            optimiser = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
            for _ in range(120):
                optimiser.zero_grad()
                functional.cross_entropy(model(pixels[300:]), labels[300:]).backward()
                optimiser.step()
            models.append(model)
        return models

    return train


def joint_attack(models, x, y, radius, target=None, *, norm="l2", steps=40, restarts=2):
    """Samples (n,) for which projected descent on all models' margins together finds a perturbation."""
    generator = torch.Generator().manual_seed(0)
    fooled = torch.zeros(len(x), dtype=torch.bool)
    aim = y if target is None else torch.full_like(y, target)
    sign = 1.0 if target is None else -1.0
    for restart in range(restarts):
        offset = (
            restart * radius * functional.normalize(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        )
        for _ in range(steps):
            offset = offset.detach().requires_grad_(True)
            margins = []
            for model in models:
                logits = model(x + offset)
                rest = logits.scatter(1, aim.unsqueeze(1), -torch.inf).amax(1)
                margins.append(sign * (logits.gather(1, aim.unsqueeze(1)).squeeze(1) - rest))
            stacked = torch.stack(margins)
            fooled |= (stacked < 0).all(0)
            (slope,) = torch.autograd.grad(stacked.logsumexp(0).sum(), offset)
            if norm == "linf":
                offset = (offset.detach() - 0.15 * radius * slope.sign()).clamp(-radius, radius)
                continue
            offset = offset.detach() - 0.15 * radius * functional.normalize(slope)
            offset = offset * (radius / offset.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return fooled.numpy()


def fools(models, points, y, target=None):
    predictions = [model(points).argmax(1) for model in models]
    wrong = [p != y if target is None else p == target for p in predictions]
    return torch.stack(wrong).all(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softplus", "relu", "tanh"])
@pytest.mark.parametrize(("norm", "radii"), [("l2", (0.04, 0.12)), ("linf", (0.01, 0.04))])
@pytest.mark.parametrize("target", [None, 3])
def test_attack_lies_between_what_must_and_what_may_transfer(
    trained, digits, activation, norm, radii, target
):
    """R7 <= strongest joint attack <= R2, sample by sample, and both sides say something."""
    models, (x, y) = trained(activation), (digits[0][:40], digits[1][:40])
    for radius in radii:
        found = certify_transfer(models, x, y, radius, target=target, norm=norm)
        attacked = joint_attack(models, x, y, radius, target, norm=norm) & found.eligible
        assert not (attacked & found.certificate).any()
        assert found.certificate.any()
        guaranteed = found.fooled.guaranteed
        steps = torch.from_numpy(found.fooled.direction)
        assert (torch.linalg.vector_norm(steps, ord=2 if norm == "l2" else torch.inf, dim=1) <= radius).all()
        assert fools(models, x + steps, y, target)[guaranteed].all()
        rate = found.rate()
        inner = (attacked | (guaranteed & found.eligible)).mean()
        assert rate.lower <= inner <= rate.upper
        assert rate.upper < 1.0
        if radius == radii[0]:  # almost every sample is either certified or fooled
            assert rate.upper - inner <= 0.05
    if activation == "softplus" and target is None:
        assert guaranteed.sum() > 5  # the inner side is not empty either


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_models_are_decided_completely(norm):
    """Affine margins: certified exactly where no joint perturbation exists."""
    torch.manual_seed(0)
    models = [nn.Linear(6, 2).double(), nn.Linear(6, 2).double()]
    x = torch.randn(60, 6, dtype=torch.float64)
    y = models[0](x).argmax(1)
    found = certify_transfer(models, x, y, 0.5 if norm == "l2" else 0.2, norm=norm)
    certified, guaranteed = found.certificate, found.fooled.guaranteed
    if norm == "l2":
        assert (certified ^ guaranteed).all()
    else:  # sign steps may miss a joint perturbation
        assert not (certified & guaranteed).any()
        assert (certified ^ guaranteed).mean() > 0.9
    assert 0 < certified.sum() < 60


def test_radius_zero_certifies_what_is_right(trained, digits):
    """Without a perturbation the certificate is correctness of at least one model."""
    models, (x, y) = trained("softplus"), (digits[0][:40], digits[1][:40])
    for norm in ("l2", "linf"):
        found = certify_transfer(models, x, y, 0.0, norm=norm)
        wrong = fools(models, x, y)
        assert (found.certificate == ~wrong).all()
        assert found.rate().upper == 0.0


@pytest.mark.parametrize("target", [None, 3])
def test_groups_agree_with_single_calls_and_with_each_other(trained, digits, target):
    """2 of 3 is harder to certify than 3 of 3, and what fools two of three fools some pair."""
    models, (x, y) = [*trained("softplus"), trained("relu")[0]], (digits[0][:60], digits[1][:60])
    networks = [read_network(model, x) for model in models]
    pairs = list(itertools.combinations(range(3), 2))
    groups = [((0, 1, 2), 2), ((0, 1, 2), 3), *((pair, 2) for pair in pairs), ((2,), 1)]
    two, three, *rest, alone = certify_groups(networks, x, y, 0.1, groups, target=target, batch_size=17)
    assert (two.certificate == np.logical_and.reduce([pair.certificate for pair in rest])).all()
    assert (three.certificate | ~two.certificate).all()
    assert three.certificate.sum() > two.certificate.sum()
    assert (rest[2].certificate | ~alone.certificate).all()
    whole = certify_transfer(models, x, y, 0.1, target=target, together=2)
    assert (whole.certificate == two.certificate).all()
    assert (whole.fooled.guaranteed == two.fooled.guaranteed).all()
    assert (whole.eligible == two.eligible).all()
    steps = x + torch.from_numpy(two.fooled.direction)
    fooled = [fools([model], steps, y, target) for model in models]
    assert (np.sum(fooled, axis=0) >= 2)[two.fooled.guaranteed].all()


def test_goals_share_the_expansions_and_nothing_else(trained, digits, monkeypatch):
    """Untargeted and two targets at once, in batches, beside one at a time."""
    models, (x, y) = trained("softplus"), (digits[0][:30], digits[1][:30])
    groups, targets = [((0,), 1), ((0, 1), 2)], [None, 3, (y + 1) % 10]
    alone = [certify_groups(models, x, y, 0.1, groups, target=target) for target in targets]
    calls = []
    real = transfer.expand
    monkeypatch.setattr(transfer, "expand", lambda *given: calls.append(given) or real(*given))
    together = certify_goals(models, x, y, 0.1, groups, targets, batch_size=17)
    assert len(calls) == 4  # two models, two batches
    for found, expected in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        for name in ("certificate", "eligible"):
            assert (getattr(found, name) == getattr(expected, name)).all()
        assert (found.fooled.guaranteed == expected.fooled.guaranteed).all()
        assert found.fooled.direction.shape == expected.fooled.direction.shape


@pytest.mark.parametrize(
    ("target", "norm", "radius"), [(None, "l2", 0.2), (3, "l2", 0.25), (None, "linf", 0.05)]
)
def test_samples_refuted_by_a_step_are_those_that_no_certificate_is_found_for(
    trained, digits, monkeypatch, target, norm, radius
):
    """Looking for certificates everywhere finds the same ones, and the steps save most of the looking."""
    models, (x, y) = trained("softplus"), (digits[0][:80], digits[1][:80])
    groups = [((0,), 1), ((1,), 1), ((0, 1), 2)]
    found = certify_groups(models, x, y, radius, groups, target=target, norm=norm)
    kept = {}

    def nothing(members, subsets, *others, **more):
        kept.update(refuted(members, subsets, *others, **more))
        return dict.fromkeys(subsets, np.zeros(len(x), dtype=bool))

    monkeypatch.setattr("estimators.certified.transfer.refuted", nothing)
    everywhere = certify_groups(models, x, y, radius, groups, target=target, norm=norm)
    for quick, slow, (group, _) in zip(found, everywhere, groups, strict=True):
        assert (quick.certificate == slow.certificate).all()
        assert (quick.fooled.guaranteed == slow.fooled.guaranteed).all()
        lost = ~slow.certificate
        assert 0 < lost.sum() < len(x)
        assert kept[group][lost].mean() > 0.8
        assert not kept[group][~lost].any()


def test_what_an_attack_found_lifts_the_lower_end(trained, digits):
    """R7 and attacks are kept apart, and join only in the rate."""
    models, (x, y) = trained("relu"), (digits[0][:40], digits[1][:40])
    found = certify_transfer(models, x, y, 0.2)
    attacked = joint_attack(models, x, y, 0.2)
    proved = found.fooled.guaranteed & found.eligible
    assert found.rate().lower == proved.mean()
    assert found.rate(found=attacked).lower == (proved | (attacked & found.eligible)).mean() > proved.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "expected norm 'l2' or 'linf', got 'l1'"),
        ({"radius": -0.1}, "radius of at least 0, got -0.1"),
        ({"together": 3}, "together between 1 and the 2 models, got 3"),
        ({"models": []}, "at least one model"),
        ({"y": torch.tensor([5])}, "labels in 0..1, got 5"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    given = {"models": [nn.Linear(4, 2)] * 2, "x": torch.zeros(1, 4), "y": torch.tensor([0]), "radius": 0.1}
    with pytest.raises(ValueError, match=message):
        certify_transfer(**(given | changes))


def test_networks_of_other_samples_are_refused():
    read = read_network(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"samples \(3,\).*networks for samples \[\(4,\)\]"):
        certify_transfer([read], torch.zeros(1, 3), torch.tensor([0]), 0.1)
    with pytest.raises(ValueError, match="different models out of 1, got positions"):
        certify_groups([read], torch.zeros(1, 4), torch.tensor([0]), 0.1, [((0, 0), 2)])


def test_max_pooling_is_refused_by_name():
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="MaxPool2d"):
        certify_transfer([pooled], torch.zeros(1, 1, 4, 4), torch.tensor([0]), 0.1)
