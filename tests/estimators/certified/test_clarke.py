"""Transfer certificates of trained models: no attack breaks one, and what must fool does."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from bounds.certificate import Certificate
from empirical.models import SOFTPLUS_THRESHOLD
from estimators.certified.clarke import certify_transfer, clarke_certificate

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


def joint_attack(models, x, y, radius, target=None, *, steps=40, restarts=2):
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
            offset = offset.detach() - 0.15 * radius * functional.normalize(slope)
            offset = offset * (radius / offset.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return fooled.numpy()


def fools(models, points, y, target=None):
    predictions = [model(points).argmax(1) for model in models]
    wrong = [p != y if target is None else p == target for p in predictions]
    return torch.stack(wrong).all(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("target", [None, 3])
def test_attack_lies_between_what_must_and_what_may_transfer(trained, digits, activation, target):
    """R7 <= strongest joint attack <= R2, sample by sample, and both sides say something."""
    models, (x, y) = trained(activation), (digits[0][:40], digits[1][:40])
    for radius in (0.04, 0.12):
        found = certify_transfer(models, x, y, radius, target=target)
        attacked = joint_attack(models, x, y, radius, target) & found.eligible
        certified = np.asarray(found.certificate)
        assert not (attacked & certified).any()
        assert certified.any()
        guaranteed = found.fooled.guaranteed
        steps = torch.from_numpy(found.fooled.direction)
        assert (steps.norm(dim=1) <= radius).all()
        assert fools(models, x + steps, y, target)[guaranteed].all()
        rate = found.rate()
        inner = (attacked | (guaranteed & found.eligible)).mean()
        assert rate.lower <= inner <= rate.upper
        assert rate.upper < 1.0
    if activation == "softplus" and target is None:
        assert guaranteed.sum() > 5  # the inner side is not empty either


def test_relu_certificates_are_not_far_from_the_attack(trained, digits):
    """At a small radius almost every sample is either certified or fooled."""
    models, (x, y) = trained("relu"), (digits[0][:40], digits[1][:40])
    found = clarke_certificate(models, x, y, 0.02)
    attacked = joint_attack(models, x, y, 0.02)
    open_ = ~np.asarray(found) & ~attacked
    assert open_.mean() < 0.05
    assert isinstance(found, Certificate)


@pytest.mark.slow
def test_curvature_and_clarke_together_certify_at_least_what_either_does(trained, digits):
    """For smooth models `certify_transfer` takes the better of both."""
    models, (x, y) = trained("tanh"), (digits[0][:40], digits[1][:40])
    both = np.asarray(certify_transfer(models, x, y, 0.08).certificate)
    clarke = np.asarray(clarke_certificate(models, x, y, 0.08))
    assert (both | ~clarke).all()
    assert both.sum() >= clarke.sum() > 0


def test_linear_models_are_decided_completely():
    """Affine margins: certified exactly where no joint perturbation exists."""
    torch.manual_seed(0)
    models = [nn.Linear(6, 2).double(), nn.Linear(6, 2).double()]
    x = torch.randn(60, 6, dtype=torch.float64)
    y = models[0](x).argmax(1)
    found = certify_transfer(models, x, y, 0.5)
    certified, guaranteed = np.asarray(found.certificate), found.fooled.guaranteed
    assert (certified ^ guaranteed).all()
    assert 0 < certified.sum() < 60


def test_radius_zero_certifies_what_is_right(trained, digits):
    """Without a perturbation the certificate is correctness of at least one model."""
    models, (x, y) = trained("softplus"), (digits[0][:40], digits[1][:40])
    found = certify_transfer(models, x, y, 0.0)
    wrong = fools(models, x, y)
    assert (np.asarray(found.certificate) == ~wrong).all()
    assert found.rate().upper == 0.0


def test_max_pooling_and_missing_models_are_refused():
    """By name, before any work."""
    x, y = torch.zeros(1, 1, 4, 4), torch.tensor([0])
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="MaxPool2d"):
        clarke_certificate([pooled], x, y, 0.1)
    with pytest.raises(ValueError, match="at least one model"):
        certify_transfer([], x, y, 0.1)
