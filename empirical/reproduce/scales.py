"""At what scale the paper's experiments are repeated, and what becomes of its radii and steps there.

- `paper`: the paper's own data sets, recipes, attacks and test sets.
- `cpu`: small sets and recipes of ours, for one core; every reduction is a number here.
- `smoke`: whether everything runs at all; its numbers say nothing.

A radius of the paper does not mean the same on another data set. Where it is measured on another, a stated
factor maps it. Grey images stand in for MNIST with the radii as they are. For CIFAR they are multiplied by 5
on the small sets: our recipes train TRS up to radius 0.15 there, the paper up to 0.03 on CIFAR. The weights c
of CW and EAD stay. Each page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from empirical import data
from empirical.attacks import Attack, AttackMethod, CarliniWagner, ElasticNet
from empirical.attacks.presets import BLACK_BOX_MEMBERS, black_box_attacks
from empirical.config import TrainingConfig
from empirical.models import ModelConfig
from empirical.presets import preset
from empirical.reproduce.items import DATASETS, Column

# Surrogates share no seed with any target: the attacker has not seen these.
SURROGATE_SEED = 1000
_SMALL_FACTORS = MappingProxyType({"MNIST": 1.0, "CIFAR-10": 5.0, "CIFAR-100": 5.0})


@dataclass(frozen=True)
class Setting:
    """How the paper's experiments are run on one data set.

    Attributes:
        dataset: The data set that is measured on.
        base: Which presets train the methods on it.
        radius_factors: By which a radius of the paper is multiplied, for each of its data sets that this one
            may stand for.
        seeds: Number of ensembles trained for each method, unless the command says otherwise.
        epochs: Passes over the training points, None for the preset's.
        model: Architecture of the members, None for the preset's.
        samples: Most held-out points that are attacked.
        steps: Share of the paper's gradient steps.
        optimiser_steps: Share of the iterations of CW and EAD.
        restarts: Most random starts of a white-box attack, None for the paper's.
        slice_points: Number of points whose decision boundaries are measured.
        slice_extent: Half side of the drawn square, in l2.
        slice_spacing: Distance of its points.
    """

    dataset: str
    base: str
    radius_factors: Mapping[str, float]
    seeds: int = 3
    epochs: int | None = None
    model: ModelConfig | None = None
    samples: int = 100_000
    steps: float = 1.0
    optimiser_steps: float = 1.0
    restarts: int | None = None
    slice_points: int = 100
    slice_extent: float = 10.0
    slice_spacing: float = 0.2

    def training(self, column: Column, seed: int) -> TrainingConfig:
        """How the ensemble of a column is trained."""
        config = preset(self.base, column.method)
        changes = {name: factor * getattr(config.objective, name) for name, factor in column.factors}
        objective = replace(config.objective, **changes, **dict(column.parameters))  # type: ignore[type-var]
        return self._adapted(replace(config, objective=objective, seed=seed, **dict(column.recipe)))

    def surrogates(self, seed: int) -> tuple[TrainingConfig, ...]:
        """How the black-box surrogates for the targets of a seed are trained: no defence, 3, 5, 8 members."""
        config = self._adapted(replace(preset(self.base, "vanilla"), seed=SURROGATE_SEED + seed))
        return tuple(replace(config, members=members) for members in BLACK_BOX_MEMBERS)

    def radius(self, eps: float, dataset: str) -> float:
        """A radius of the paper on one of its data sets, as it is used here."""
        return float(f"{eps * self.radius_factors[dataset]:.9g}")  # 0.15 times 5 is 0.75, without a tail

    def attack(self, attack: AttackMethod, dataset: str) -> AttackMethod:
        """An attack of the paper on one of its data sets, as it is run here."""
        if isinstance(attack, CarliniWagner | ElasticNet):
            return replace(attack, steps=max(1, round(attack.steps * self.optimiser_steps)))
        if not isinstance(attack, Attack):  # the user's own, of which only the radius is known
            return replace(attack, eps=self.radius(attack.eps, dataset))  # type: ignore
        starts = attack.restarts if self.restarts is None else min(attack.restarts, self.restarts)
        eps = self.radius(attack.eps, dataset)
        return replace(attack, eps=eps, steps=self._share_of(attack.steps), restarts=starts)

    def attempts(self, eps: float, dataset: str) -> tuple[Attack, ...]:
        """The black-box attempts at a radius of the paper on one of its data sets."""
        return black_box_attacks(self.radius(eps, dataset), self._share_of(50))

    def _share_of(self, steps: int) -> int:
        return max(1, round(steps * self.steps))

    def _adapted(self, config: TrainingConfig) -> TrainingConfig:
        config = replace(config.with_epochs(self.epochs or config.epochs), model=self.model or config.model)
        # Often enough to lose little, seldom enough to cost little.
        return replace(config, dataset=self.dataset, checkpoint_every=max(1, config.epochs // 10))


def _small(dataset: str, **details: object) -> Setting:
    return Setting(dataset, dataset, _SMALL_FACTORS, **details)  # type: ignore[arg-type]


def _paper(dataset: str, base: str, **factors: float) -> Setting:
    return Setting(
        dataset, base, MappingProxyType({name.replace("_", "-"): f for name, f in factors.items()})
    )


_CPU: dict[str, dict[str, object]] = {
    "digits": {"samples": 200, "optimiser_steps": 0.2, "restarts": 2, "slice_points": 20,
               "slice_extent": 4.0, "slice_spacing": 0.1},
    "mnist5k": {"epochs": 10, "model": ModelConfig("mlp", "gelu", (128, 128)), "samples": 200,
                "optimiser_steps": 0.1, "restarts": 1, "slice_points": 20},
}  # fmt: skip
_SMOKE: dict[str, object] = {
    "epochs": 1, "seeds": 1, "samples": 12, "steps": 0.04, "optimiser_steps": 0.005, "restarts": 1,
    "slice_points": 2, "slice_extent": 2.0, "slice_spacing": 0.5,
}  # fmt: skip

_SETTINGS = {
    "smoke": [_small("digits", **_SMOKE)],
    "cpu": [
        *(_small(dataset, **details) for dataset, details in _CPU.items()),
        _small("fashion-mnist", **{**_CPU["mnist5k"], "epochs": 2}),
    ],
    "paper": [
        _paper("mnist", "paper-mnist", MNIST=1.0),
        _paper("cifar10", "paper-cifar10", CIFAR_10=1.0),
        _paper("cifar100", "paper-cifar100", CIFAR_100=1.0),
        # Grey images like MNIST's. The paper's own radii on CIFAR are a tenth of those on MNIST.
        _paper("fashion-mnist", "paper-mnist", MNIST=1.0, CIFAR_10=10.0, CIFAR_100=10.0),
    ],
}
SCALES: Mapping[str, tuple[Setting, ...]] = MappingProxyType(
    {name: tuple(settings) for name, settings in _SETTINGS.items()}
)


def choose_settings(scale: str, dataset: str | None) -> dict[str, Setting]:
    """For each of the paper's data sets, where and how it is repeated at a scale.

    Args:
        scale: One of `SCALES`.
        dataset: The data set that is to stand for all of the paper's, or None: at the scale `paper` each set
            of the paper is itself, elsewhere the scale's first set stands for all. One that the user
            registered is treated as the scale's first set is.

    Raises:
        ValueError: If the scale is unknown, or does not have the data set.
    """
    if scale not in SCALES:
        raise ValueError(f"expected a scale among {', '.join(SCALES)}, got {scale!r}")
    settings = {setting.dataset: setting for setting in SCALES[scale]}
    if dataset in data.DATASETS.keys() - data.SHIPPED:
        settings[dataset] = replace(SCALES[scale][0], dataset=dataset)
    if dataset is not None and dataset not in settings:
        raise ValueError(f"expected a data set of scale {scale} among {', '.join(settings)}, got {dataset!r}")
    if dataset is None and scale == "paper":
        return {ours: settings[DATASETS[ours]] for ours in DATASETS}
    chosen = settings[dataset] if dataset else SCALES[scale][0]
    return {ours: chosen for ours in DATASETS if ours in chosen.radius_factors}


def differences(setting: Setting) -> dict[str, object]:
    """What a setting has other than the paper's: its fields that differ from their defaults."""
    defaults = {field.name: field.default for field in fields(Setting)}
    return {
        name: getattr(setting, name)
        for name, default in defaults.items()
        if name not in ("dataset", "base", "radius_factors", "seeds") and getattr(setting, name) != default
    }
