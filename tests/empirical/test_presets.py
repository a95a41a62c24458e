from dataclasses import replace

import pytest

from empirical.config import TrainingConfig
from empirical.data import DATASETS
from empirical.models import build_model
from empirical.objectives import (
    ADP,
    DVERGE,
    GAL,
    OBJECTIVES,
    TRS,
    AdaBoost,
    AdvT,
    CosL2,
    CosOnly,
    TRSAdvT,
    TRSOfficial,
)
from empirical.presets import PRESETS, preset
from estimators.kinks import kinks

BASES = (
    "digits", "digits-0-1", "blobs", "blobs-tight", "fashion-mnist", "mnist", "mnist5k",
    "paper-mnist", "paper-cifar10", "paper-cifar100",
)  # fmt: skip
RECIPES = {
    "digits-deep-certified", "digits-0-1-theorem-4", "blobs-theorem-4", "blobs-theorem-4-mlp",
    "blobs-theorem-3", "blobs-tight-theorem-2",
}  # fmt: skip


def test_every_base_has_every_method():
    two_classes = ("digits-0-1", "blobs", "blobs-tight")  # fewer than ADP needs for three members
    expected = {f"{base}-{method}" for base in BASES for method in OBJECTIVES}
    assert set(PRESETS) - RECIPES == expected - {f"{base}-adp" for base in two_classes}
    assert set(PRESETS) >= RECIPES
    for name, config in PRESETS.items():
        assert name in RECIPES or name.endswith(f"-{config.objective.name}")
        assert config.dataset in DATASETS
        assert TrainingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("base", "dataset", "objective", "epochs", "milestones"),
    [
        ("paper-mnist", "mnist", TRS(100, 2.5, 0.1, 0.3, "pair"), 120, (40, 80)),
        ("paper-cifar10", "cifar10", TRS(20, 2.5, 0.01, 0.03, "pair"), 200, (100, 150)),
        ("paper-cifar100", "cifar100", TRS(20, 2.5, 0.01, 0.03, "pair"), 200, (100, 150)),
    ],
)
def test_paper_presets_are_those_of_section_6_1_and_appendix_d(base, dataset, objective, epochs, milestones):
    config = preset(base, "trs")
    assert config.objective == objective
    assert (config.dataset, config.epochs, config.milestones) == (dataset, epochs, milestones)
    assert (config.optimizer, config.lr, config.schedule, config.factor) == ("adam", 1e-3, "steps", 0.1)
    assert (config.model.architecture, config.model.activation, config.members) == ("resnet20", "relu", 3)
    assert config.ramp == 0
    assert preset(base, "cos-only").objective == CosOnly(objective.lambda_a)
    assert preset(base, "cos-l2").objective == CosL2(objective.lambda_a, objective.lambda_b)


@pytest.mark.parametrize(
    ("name", "objective", "fields"),
    [
        ("paper-mnist-adp", ADP(2.0, 0.5), {"batch_size": 64, "epochs": 40, "milestones": (16, 31)}),
        ("paper-cifar10-adp", ADP(2.0, 0.5), {"batch_size": 64, "epochs": 180, "milestones": (81, 121, 161)}),
        ("paper-mnist-gal", GAL(0.5), {"optimizer": "adam", "lr": 1e-3, "epochs": 120}),
        ("paper-mnist-dverge", DVERGE(0.5, 10), {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}),
        ("paper-cifar10-dverge", DVERGE(0.07, 10), {"weight_decay": 1e-4, "milestones": (100, 150)}),
        ("paper-mnist-advt", AdvT(0.2), {}),
        ("paper-cifar10-advt", AdvT(0.03), {}),
        ("paper-mnist-trs-advt", TRSAdvT(100.0, 2.5, 0.1, 0.3, "pair", 0.2), {}),
        ("paper-mnist-trs-official", TRSOfficial(100.0, 2.5, 0.1, 0.3), {"milestones": (40, 80)}),
        (
            "paper-cifar10-trs-official",
            TRSOfficial(40.0, 2.5, 0.01, 0.03),
            {"milestones": (40, 80, 120, 160)},
        ),
        ("paper-cifar10-adaboost", AdaBoost(), {"epochs": 200, "milestones": (100, 150)}),
    ],
)
def test_paper_presets_of_the_baselines(name, objective, fields):
    config = PRESETS[name]
    assert config.objective == objective
    assert {field: getattr(config, field) for field in fields} == fields
    assert (config.members, config.model.architecture, config.factor) == (3, "resnet20", 0.1)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(12, (4, 8)), (240, (80, 160)), (10, (3, 7)), (2, (1,)), (1, ()), (120, (40, 80))],
)
def test_milestones_are_scaled_with_the_epochs(epochs, milestones):
    config = PRESETS["paper-mnist-trs"].with_epochs(epochs)
    assert (config.epochs, config.milestones) == (epochs, milestones)
    assert config.schedule == ("steps" if milestones else "constant")
    assert PRESETS["digits-trs"].with_epochs(epochs) == replace(PRESETS["digits-trs"], epochs=epochs)
    with pytest.raises(ValueError, match="expected epochs to be a whole number >= 1, got 0"):
        config.with_epochs(0)


@pytest.mark.parametrize("method", ["trs", "certified"])
@pytest.mark.parametrize(("base", "shape"), [("digits", (1, 8, 8)), ("fashion-mnist", (1, 28, 28))])
def test_small_presets_are_smooth(base, shape, method):
    config = preset(base, method)
    assert kinks(build_model(config.model, shape=shape, classes=10)) == ()


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"expected a preset among digits-vanilla, .*, got 'digits-magic'"):
        preset("digits", "magic")
