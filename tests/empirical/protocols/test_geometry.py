"""Similarity, gradient size and smoothness of an ensemble against what is known in closed form."""

import json

import pytest
import torch
from torch import nn

from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.protocols.geometry import Geometry, measure_geometry


def linear(weight: torch.Tensor) -> nn.Module:
    """Two classes whose logits are +-weight . x / 2: the loss is softplus of the margin weight . x."""
    model = nn.Linear(len(weight), 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-weight, weight]) / 2)
    return model


@pytest.fixture
def data() -> Split:
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    return Split(x, torch.zeros(40, dtype=torch.long))


def test_linear_members_have_closed_forms(data):
    """Gradient sigmoid(w . x) w, Hessian sigmoid' w w^T, so cosines and certified beta do not depend on x."""
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 3.0])
    found = measure_geometry(Ensemble([linear(first), linear(second)]), data)
    assert found.mean_cosine == pytest.approx(0.5**0.5, rel=1e-5)
    assert found.largest_cosine == pytest.approx(-(0.5**0.5), rel=1e-5)
    slopes = [torch.sigmoid(data.x @ weight) for weight in (first, second)]
    norms = torch.stack(
        [slope * weight.norm() for slope, weight in zip(slopes, (first, second), strict=True)]
    )
    assert found.mean_norm == pytest.approx(float(norms.mean()), rel=1e-5)
    # B is over both labels: at label 1 the slope is 1 - sigmoid.
    other = torch.stack(
        [(1 - slope) * weight.norm() for slope, weight in zip(slopes, (first, second), strict=True)]
    )
    assert found.largest_norm == pytest.approx(float(torch.maximum(norms, other).max()), rel=1e-5)
    curved = max(
        float((slope * (1 - slope)).max() * weight.square().sum())
        for slope, weight in zip(slopes, (first, second), strict=True)
    )
    assert found.sampled_beta == pytest.approx(curved, rel=1e-3)
    assert found.certified_beta == pytest.approx(18 / 4, rel=1e-3)


def test_kinks_have_no_certified_smoothness(data):
    """And what is seen is still there, as JSON that can be read back."""
    members = [nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    found = measure_geometry(Ensemble(members), data)
    assert found.certified_beta is None
    assert found.sampled_beta >= 0
    assert Geometry.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_without_gradients_there_is_no_similarity(data):
    with pytest.raises(ValueError, match="expected a point at which two members have a gradient"):
        measure_geometry(Ensemble([linear(torch.zeros(2)), linear(torch.ones(2))]), data)
