import pytest

from empirical.config import TrainingConfig
from empirical.data import DATASETS
from empirical.models import build_model
from empirical.objectives import OBJECTIVES, TRS, CosL2, CosOnly
from empirical.presets import PRESETS, preset
from estimators.kinks import kinks

BASES = (
    "digits", "digits-0-1", "blobs", "blobs-tight", "fashion-mnist", "mnist", "mnist5k",
    "paper-mnist", "paper-cifar10", "paper-cifar100",
)  # fmt: skip


def test_every_base_has_every_method():
    assert set(PRESETS) == {f"{base}-{method}" for base in BASES for method in OBJECTIVES}
    for name, config in PRESETS.items():
        assert name.endswith(f"-{config.objective.name}")
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


@pytest.mark.parametrize(("base", "shape"), [("digits", (1, 8, 8)), ("fashion-mnist", (1, 28, 28))])
def test_small_presets_are_smooth(base, shape):
    config = preset(base, "trs")
    assert kinks(build_model(config.model, shape=shape, classes=10)) == ()


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"expected a preset among digits-vanilla, .*, got 'digits-gal'"):
        preset("digits", "gal")
