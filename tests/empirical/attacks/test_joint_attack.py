"""The joint attack: exact on affine models, never weaker than its starts, nothing left behind."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from bounds import transfer_certificate
from empirical.attacks import Attack, run_attack
from empirical.attacks.joint import JointAttack, joint_attack


def affine(count, dimension, classes, seed):
    torch.manual_seed(seed)
    models = [nn.Linear(dimension, classes).double() for _ in range(count)]
    x = torch.randn(60, dimension, dtype=torch.float64)
    return models, x


def agreed(models, x):
    """The samples on which all models agree, with that label."""
    labels = torch.stack([model(x).argmax(1) for model in models])
    same = (labels == labels[0]).all(0)
    return x[same], labels[0][same]


def smallest_joint_radius(models, x, y, norm):
    """Bisection on R1, which is complete for affine margins of two classes."""
    samples = torch.arange(len(x))
    with torch.no_grad():
        logits = [model(x) for model in models]
    margins = np.stack([(z[samples, y] - z[samples, 1 - y]).numpy() for z in logits], 1)
    rows = [m.weight[y] - m.weight[1 - y] for m in models]
    gradients = torch.stack(rows, 1).detach().numpy()
    low, high = np.zeros(len(x)), np.full(len(x), 50.0)
    for _ in range(30):
        middle = (low + high) / 2
        # Scaling the gradients by a radius of each sample's own lets one call serve all samples.
        scaled = gradients * middle[:, None, None]
        safe = np.asarray(transfer_certificate(margins, scaled, 0.0, 1.0, norm))
        low, high = np.where(safe, middle, low), np.where(safe, high, middle)
    return high


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("count", [2, 3])
def test_affine_models_are_fooled_together_as_soon_as_they_can_be(norm, count):
    models, x = affine(count, 6, 2, seed=1)
    x, y = agreed(models, x)
    assert len(x) > 10
    exact = smallest_joint_radius(models, x, y, norm)
    for radius in np.quantile(exact[exact < 40], [0.3, 0.7]):
        found = joint_attack(models, x, y, JointAttack(norm, float(radius)), pixel_range=None)
        assert not found.success.numpy()[exact > radius * (1 + 1e-6)].any()
        assert found.success.numpy()[exact < radius * 0.97].all()


def test_the_ascent_alone_comes_close_to_the_exact_radius(monkeypatch):
    models, x = affine(2, 6, 2, seed=1)
    x, y = agreed(models, x)
    exact = smallest_joint_radius(models, x, y, "l2")
    radius = float(np.median(exact))
    monkeypatch.setattr("empirical.attacks.joint._linearised", lambda problem: problem.ball.x)
    found = joint_attack(models, x, y, JointAttack("l2", radius), pixel_range=None)
    assert found.success.numpy()[exact < radius * 0.95].all()


@pytest.fixture(scope="module")
def curved():
    """Three small smooth networks that were fitted to one rule, and the points that all get right."""
    torch.manual_seed(0)
    x = torch.rand(160, 8)
    label = (x[:, :4].sum(1) * 1.4 + 1.5 * torch.sin(5 * x[:, 4])).floor().clamp(0, 3).long()
    models = [nn.Sequential(nn.Linear(8, 24), nn.Softplus(), nn.Linear(24, 4)) for _ in range(3)]
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), 0.03)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), label).backward()
            optimizer.step()
    right = torch.stack([model(x).argmax(1) == label for model in models]).all(0)
    return models, x[right], label[right]


def fooled(models, x_adv, y, target):
    reached = torch.stack([model(x_adv).argmax(1) for model in models])
    return reached != y if target is None else reached == target


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("target", [None, 2])
@pytest.mark.parametrize("together", [2, 3])
def test_it_is_never_weaker_than_its_starts(curved, norm, target, together):
    models, x, y = curved
    eps = 0.2 if norm == "l2" else 0.07
    single = Attack("pgd", norm=norm, eps=eps, steps=10)
    starts = [run_attack(model, x, y, single, target=target).x_adv for model in models]
    before = torch.stack([fooled(models, start, y, target).sum(0) >= together for start in starts]).any(0)
    found = joint_attack(
        models, x, y, JointAttack(norm, eps, steps=20), target=target, together=together, starts=starts
    )
    assert found.success[before].all()
    # Towards one label the single attacks may do all that can be done; away from one they never do here.
    assert found.success.sum() > before.sum() or target is not None
    assert (found.fooled == fooled(models, found.x_adv, y, target)).all()
    assert (found.success == (found.fooled.sum(0) >= together)).all()
    size = torch.linalg.vector_norm(found.x_adv.double() - x.double(), 2 if norm == "l2" else math.inf, dim=1)
    assert size.max() <= eps
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1


def test_fewer_models_are_easier_to_fool(curved):
    models, x, y = curved
    rates = [
        float(joint_attack(models, x, y, JointAttack("l2", 0.15), together=k).success.double().mean())
        for k in (1, 2, 3)
    ]
    assert rates[0] > rates[1] > rates[2] > 0


def test_models_and_generators_stay_as_they_were_and_batches_do_not_matter(curved):
    models, x, y = curved
    models = [nn.Sequential(deepcopy(model), nn.Dropout(0.5)).train() for model in models]
    state = torch.get_rng_state()
    whole = joint_attack(models, x, y, JointAttack("l2", 0.15, steps=10))
    parts = joint_attack(models, x, y, JointAttack("l2", 0.15, steps=10), batch_size=37)
    assert torch.equal(torch.get_rng_state(), state)
    assert (whole.success == parts.success).double().mean() > 0.98
    assert torch.allclose(whole.x_adv, parts.x_adv, atol=1e-3)
    for model in models:
        assert model.training
        assert all(weight.requires_grad and weight.grad is None for weight in model[0].parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"together": 4}, "together between 1 and the 3"),
        ({"together": 0}, "together between 1 and the 3"),
        ({"target": 9}, "labels in 0..3"),
        ({"pixel_range": (0.4, 0.6)}, "inside pixel_range"),
        ({"starts": [torch.zeros(2, 8)]}, "a start"),
    ],
)
def test_bad_input_is_refused(curved, changes, words):
    models, x, y = curved
    with pytest.raises(ValueError, match=words):
        joint_attack(models, x, y, JointAttack(), **changes)


@pytest.mark.parametrize(
    "settings", [{"norm": "l1"}, {"eps": 0.0}, {"steps": 0}, {"restarts": -1}, {"seed": -1}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        JointAttack(**settings)
