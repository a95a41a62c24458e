"""Named training configurations, one per data set and method: `PRESETS["digits-trs"]`.

The paper's, `paper-mnist-*`, `paper-cifar10-*` and `paper-cifar100-*`, follow TRS, section 6.1 and appendices
D and G: three ResNet-20, Adam from 1e-3, the weights and radii of section 6.1, no ramp. It does not state the
batch size (128 here), nor parameters of its own for Cos-only and Cos-l2 (those of TRS here, without what they
leave out).

The small ones, `digits-*` and `fashion-mnist-*`, are ours, and serve other small sets unchanged.
Their activation is smooth, so that the smoothness constant of the theorems is finite. Their regularisers are
ramped up: at full weight from the start they can ruin the members before these have learned anything.
Fashion-MNIST is searched jointly, at half the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from empirical.config import TrainingConfig
from empirical.models import ModelConfig
from empirical.objectives import TRS, CosL2, CosOnly, Vanilla

_SMALL = {"digits": ("digits-0-1", "blobs", "blobs-tight"), "fashion-mnist": ("mnist", "mnist5k")}

_BASES: Mapping[str, tuple[TrainingConfig, TRS]] = {
    "digits": (
        TrainingConfig(
            dataset="digits",
            model=ModelConfig("mlp", "gelu", (64, 64)),
            epochs=20,
            lr=5e-3,
            schedule="onecycle",
            ramp=0.3,
        ),
        TRS(lambda_a=0.5, lambda_b=0.1, delta_initial=0.05, delta_final=0.15),
    ),
    "fashion-mnist": (
        TrainingConfig(
            dataset="fashion-mnist",
            model=ModelConfig("lenet", "gelu"),
            epochs=20,
            lr=3e-3,
            schedule="onecycle",
            ramp=0.3,
        ),
        TRS(lambda_a=0.5, lambda_b=0.1, delta_initial=0.05, delta_final=0.15, search="joint"),
    ),
    "paper-mnist": (
        TrainingConfig(
            dataset="mnist",
            model=ModelConfig("resnet20", "relu"),
            epochs=120,
            lr=1e-3,
            schedule="steps",
            milestones=(40, 80),
        ),
        TRS(lambda_a=100.0, lambda_b=2.5, delta_initial=0.1, delta_final=0.3),
    ),
    "paper-cifar10": (
        TrainingConfig(
            dataset="cifar10",
            model=ModelConfig("resnet20", "relu"),
            epochs=200,
            lr=1e-3,
            schedule="steps",
            milestones=(100, 150),
        ),
        TRS(lambda_a=20.0, lambda_b=2.5, delta_initial=0.01, delta_final=0.03),
    ),
}


def _methods(base: TrainingConfig, trs: TRS) -> dict[str, TrainingConfig]:
    """The four methods on one base; the ablations of TRS share its weights."""
    objectives = (Vanilla(), CosOnly(trs.lambda_a), CosL2(trs.lambda_a, trs.lambda_b), trs)
    return {objective.name: replace(base, objective=objective) for objective in objectives}


def _presets() -> dict[str, TrainingConfig]:
    cifar10, trs = _BASES["paper-cifar10"]
    bases = {**_BASES, "paper-cifar100": (replace(cifar10, dataset="cifar100"), trs)}
    for known, others in _SMALL.items():
        base, small_trs = _BASES[known]
        bases |= {name: (replace(base, dataset=name), small_trs) for name in others}
    return {
        f"{name}-{method}": config
        for name, base in bases.items()
        for method, config in _methods(*base).items()
    }


PRESETS: Mapping[str, TrainingConfig] = MappingProxyType(_presets())


def preset(base: str, method: str) -> TrainingConfig:
    """The preset of a base (`digits`, `fashion-mnist`, `paper-mnist`, ...) and a method (`trs`, ...).

    Raises:
        ValueError: If there is none.
    """
    name = f"{base}-{method}"
    if name not in PRESETS:
        raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
