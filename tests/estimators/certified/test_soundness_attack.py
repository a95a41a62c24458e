"""Trained smooth networks attacked by ascent: nothing found leaves its certified range, sample by sample."""

import pytest
import torch

from empirical.config import TrainingConfig
from empirical.data import load_dataset
from empirical.models import ModelConfig
from empirical.training import train
from estimators import cross_entropy, sampled_smoothness
from estimators.certified import ball_bounds, cosine_range, read_network, segment_bounds, whole_space_bounds
from estimators.extremal_search import BallSearch, cosine_search, gradient_norm_search

SLACK = 1e-7
SEARCH = BallSearch(points=6, steps=30, seed=0)
MODELS = {
    "mlp": ModelConfig("mlp", "softplus(5)", hidden=(32, 32)),
    "tanh": ModelConfig("mlp", "tanh", hidden=(32,)),
    "lenet": ModelConfig("lenet", "softplus(2)"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    """Two members trained on digits, in float64, with held-out points; fewer for the convolutional net."""
    epochs = 4 if request.param == "lenet" else 12
    config = TrainingConfig(members=2, epochs=epochs, model=MODELS[request.param])
    members = [member.double().eval() for member in train(config, progress=False).members]
    data = load_dataset("digits").test.first(4 if request.param == "lenet" else 24)
    return members, data.x.double(), data.y


@pytest.mark.parametrize("radius", [0.05, 0.4])
def test_hessian_norms_and_quotients_stay_below_the_ball(trained, radius):
    (model, _), x, y = trained
    network = read_network(model, x)
    ball = ball_bounds(network, x, y, radius).hessian
    assert bool((ball <= whole_space_bounds(network).smoothness[y] * (1 + SLACK)).all())
    for method in ("ascent", "quotient"):
        seen = sampled_smoothness(
            model, cross_entropy, x, y, radius=radius, method=method, points=6, steps=30
        )
        assert bool((seen.per_sample <= ball * (1 + SLACK)).all())
        # The attack is no straw man: it goes beyond what the centres show.
        centres = sampled_smoothness(model, cross_entropy, x, y)
        assert seen.estimate.lower > centres.estimate.lower


@pytest.mark.parametrize("radius", [0.05, 0.4])
def test_gradient_norms_stay_in_their_range(trained, radius):
    (model, _), x, y = trained
    bounds = ball_bounds(read_network(model, x), x, y, radius)
    low, high = gradient_norm_search(model, cross_entropy, x, y, radius, search=SEARCH)
    assert bool((high <= bounds.gradient_high * (1 + SLACK)).all())
    assert bool((low >= bounds.gradient_low * (1 - SLACK)).all())


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_cosines_stay_in_their_range(trained, radius):
    models, x, y = trained
    lowest, highest = cosine_range(*models, x, y, radius)
    low, high = cosine_search(*models, x, y, radius, search=SEARCH)
    assert bool((low >= lowest - SLACK).all())
    assert bool((high <= highest + SLACK).all())
    if radius == 0.01:
        # The range says something.
        assert float((highest - lowest).median()) < 1.0


def test_segments_are_below_the_ball(trained):
    (model, _), x, y = trained
    network, radius = read_network(model, x), 0.3
    gradient = torch.autograd.functional.jacobian(lambda rows: cross_entropy(model(rows), y).sum(), x)
    step = radius * gradient / gradient.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
    along = segment_bounds(network, x, x + step, y)
    ball = ball_bounds(network, x, y, radius * (1 + 1e-9)).hessian
    assert bool((along.lower <= ball * (1 + SLACK)).all())
    # The certified segment constant may exceed a certified ball only by its own slack.
    assert bool((along.upper <= torch.maximum(ball, 1.05 * along.lower) * (1 + SLACK)).all())
