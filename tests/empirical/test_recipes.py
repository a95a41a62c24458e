"""The recipes do what they are for: a statement of the paper says something certain about trained models."""

import functools

import pytest
import torch

from bounds import Status, evaluate
from empirical.attacks import Attack, run_attack
from empirical.data import load_dataset
from empirical.presets import PRESETS
from empirical.training import train
from estimators import cross_entropy, measure_quantities
from estimators.certified import segment_smoothness


@functools.cache
def trained(name):
    config = PRESETS[name]
    data = load_dataset(config.dataset)
    members = train(config, data=data, progress=False).members
    return [member.double() for member in members], data


def evaluated(name, statement, eps, target, label):
    """The statement's value for an l2 attack on the first member, and the rate that it is about."""
    (f, g), data = trained(name)
    keep = slice(None) if label is None else data.test.y == label
    x, y = data.test.x[keep].double(), data.test.y[keep]
    attack = Attack("bim", "l2", eps, steps=20)
    x_adv = run_attack(f, x, y, attack, target=target, pixel_range=data.pixel_range).x_adv
    labels = torch.tensor([0, 1]).expand(len(y), -1)
    betas = [segment_smoothness(model, cross_entropy, x, x_adv, labels) for model in (f, g)]
    beta = max(betas, key=lambda each: each.upper)
    quantities = measure_quantities(f, g, x, y, x_adv, eps=eps, beta=beta, target=target)
    bound = evaluate(statement, quantities[statement])
    with torch.no_grad():
        before, after = ([model(points).argmax(1) for model in (f, g)] for points in (x, x_adv))
    wanted = [(each != y) if target is None else (each == target) & (y != target) for each in after]
    fooled = wanted[0] & wanted[1] & (before[0] == y) & (before[1] == y)
    return bound, fooled.double().mean().item()


@pytest.mark.parametrize(
    ("name", "statement", "eps", "target", "label"),
    [
        ("digits-0-1-theorem-4", "theorem-4", 0.05, None, None),
        ("blobs-theorem-4", "theorem-4", 0.05, None, None),
        ("blobs-theorem-4", "theorem-4", 0.1, None, None),
        ("blobs-theorem-4-mlp", "theorem-4", 0.05, None, None),
        ("blobs-theorem-3", "theorem-3", 0.1, 0, 1),
        ("blobs-tight-theorem-2", "theorem-2", 2.8, None, 1),
        ("blobs-tight-theorem-2", "theorem-1-repaired", 2.8, 0, 1),
    ],
)
def test_the_statement_is_informative_certified_and_true(name, statement, eps, target, label):
    bound, measured = evaluated(name, statement, eps, target, label)
    assert bound.status == Status.INFORMATIVE
    assert bound.grade == "certified"
    if statement in ("theorem-3", "theorem-4"):
        assert measured <= bound.guaranteed < 0.6
    else:
        assert 0.25 < bound.guaranteed <= measured


def test_a_statement_is_silent_where_its_recipe_is_left():
    bound, _ = evaluated("blobs-theorem-4", "theorem-4", 1.0, None, None)
    assert bound.status == Status.INAPPLICABLE
    bound, _ = evaluated("blobs-tight-theorem-2", "theorem-2", 2.8, None, 0)
    assert bound.status != Status.INFORMATIVE
