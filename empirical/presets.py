"""Named training configurations, one per data set and method: `PRESETS["digits-trs"]`.

The paper's, `paper-mnist-*`, `paper-cifar10-*` and `paper-cifar100-*`, follow TRS, section 6.1 and appendices
D and G: three ResNet-20, Adam from 1e-3, the weights and radii of section 6.1, no ramp. It does not state the
batch size (128 here), nor parameters of its own for Cos-only and Cos-l2 (those of TRS here, without what they
leave out), for boosting (the schedule of the others, for each member), for CKAE (a weight of 1), and for the
search of adversarial training (10 steps). The baselines have what their own papers and code state:

- ADP: batches of 64, 40 epochs with x0.1 after 16 and 31 on MNIST, 180 with 81, 121 and 161 on CIFAR;
- GAL: its weight, on the common model and schedule; its leaky ReLU and its noise are parameters;
- DVERGE: SGD from 0.1, momentum 0.9, weight decay 1e-4, the whole schedule twice: vanilla, then itself;
- trs-official: the published code, with a learning rate that falls every 40 epochs, weight decay 1e-4, Adam's
  epsilon 1e-7, and on CIFAR the weight 40 that its authors name.

The small ones, `digits-*` and `fashion-mnist-*`, are ours, and serve other small sets unchanged.
Their activation is smooth, so that the smoothness constant of the theorems is finite. Their regularisers are
ramped up: at full weight from the start they can ruin the members before these have learned anything.
Fashion-MNIST is searched jointly, at half the work. `*-certified` have networks of their own, for which
certificates are tight: one hidden layer that bends little, or a depth that Lipschitz constants reach. The
recipes, `digits-deep-certified` and `*-theorem-*`, are settings in which a statement says something. All
other methods have the same optimiser and epochs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from empirical.config import TrainingConfig
from empirical.models import ModelConfig
from empirical.objectives import (
    ADP,
    CKAE,
    DVERGE,
    GAL,
    OBJECTIVES,
    TRS,
    AdaBoost,
    AdvT,
    Certified,
    CosL2,
    CosOnly,
    GradientBoost,
    GradientPenalty,
    Objective,
    TRSAdvT,
    TRSOfficial,
    Vanilla,
)

_SMALL = {"digits": ("digits-0-1", "blobs", "blobs-tight"), "fashion-mnist": ("mnist", "mnist5k")}
_TWO_CLASSES = _SMALL["digits"]


@dataclass(frozen=True)
class _Base:
    """What the methods have in common on a data set, and the radii that depend on it.

    Attributes:
        config: The configuration, but for the objective.
        trs: TRS, whose weights its ablations and variants share.
        delta_adv: Radius of adversarial training.
        distill_eps: Radius of DVERGE's distillation.
        ckae: Weight of CKAE.
        certified: Certified training.
        official: Weights of the published TRS, where they differ.
        changes: Fields of the configuration that differ, by method.
    """

    config: TrainingConfig
    trs: TRS
    delta_adv: float
    distill_eps: float
    ckae: float = 1.0
    certified: Certified = field(default_factory=Certified)
    official: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def objectives(self) -> tuple[Objective, ...]:
        """Every method with its parameters here."""
        trs, weights = self.trs, asdict(self.trs)
        search = weights.pop("search")
        return (
            Vanilla(),
            AdaBoost(),
            GradientBoost(),
            CKAE(self.ckae),
            ADP(),
            GAL(),
            DVERGE(self.distill_eps),
            CosOnly(trs.lambda_a),
            CosL2(trs.lambda_a, trs.lambda_b),
            trs,
            TRSOfficial(**{**weights, **self.official}),
            AdvT(self.delta_adv),
            TRSAdvT(**weights, search=search, delta_adv=self.delta_adv),
            self.certified,
            GradientPenalty(),
        )

    def on(self, dataset: str) -> dict[str, TrainingConfig]:
        """The configuration of every method, by name."""
        return {
            objective.name: replace(
                self.config, dataset=dataset, objective=objective, **self.changes.get(objective.name, {})
            )
            for objective in self.objectives()
        }


_DVERGE_SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
_OFFICIAL_ADAM = {"weight_decay": 1e-4, "adam_epsilon": 1e-7}

# For networks whose curvature no certificate sees well.
_DEEP = Certified(radius=0.3, single=0.5, joint=1.0, bound="lipschitz")

_BASES: Mapping[str, _Base] = {
    "digits": _Base(
        TrainingConfig(
            dataset="digits",
            model=ModelConfig("mlp", "gelu", (64, 64)),
            epochs=20,
            lr=5e-3,
            schedule="onecycle",
            ramp=0.3,
        ),
        TRS(lambda_a=0.5, lambda_b=0.1, delta_initial=0.05, delta_final=0.15),
        delta_adv=0.15,
        distill_eps=0.3,
        changes={"certified": {"model": ModelConfig("mlp", "softplus(1)", (256,)), "epochs": 80}},
    ),
    "fashion-mnist": _Base(
        TrainingConfig(
            dataset="fashion-mnist",
            model=ModelConfig("lenet", "gelu"),
            epochs=20,
            lr=3e-3,
            schedule="onecycle",
            ramp=0.3,
        ),
        TRS(lambda_a=0.5, lambda_b=0.1, delta_initial=0.05, delta_final=0.15, search="joint"),
        delta_adv=0.15,
        distill_eps=0.3,
        certified=replace(_DEEP, radius=0.2),
        changes={"certified": {"model": ModelConfig("lenet", "softplus(5)"), "lr": 5e-3, "members": 2}},
    ),
    "paper-mnist": _Base(
        TrainingConfig(
            dataset="mnist",
            model=ModelConfig("resnet20", "relu"),
            epochs=120,
            lr=1e-3,
            schedule="steps",
            milestones=(40, 80),
        ),
        TRS(lambda_a=100.0, lambda_b=2.5, delta_initial=0.1, delta_final=0.3),
        delta_adv=0.2,
        distill_eps=0.5,
        changes={
            "adp": {"batch_size": 64, "epochs": 40, "milestones": (16, 31)},
            "dverge": _DVERGE_SGD,
            "trs-official": _OFFICIAL_ADAM,
        },
    ),
    "paper-cifar10": _Base(
        TrainingConfig(
            dataset="cifar10",
            model=ModelConfig("resnet20", "relu"),
            epochs=200,
            lr=1e-3,
            schedule="steps",
            milestones=(100, 150),
        ),
        TRS(lambda_a=20.0, lambda_b=2.5, delta_initial=0.01, delta_final=0.03),
        delta_adv=0.03,
        distill_eps=0.07,
        official={"lambda_a": 40.0},
        changes={
            "adp": {"batch_size": 64, "epochs": 180, "milestones": (81, 121, 161)},
            "dverge": _DVERGE_SGD,
            "trs-official": {**_OFFICIAL_ADAM, "milestones": (40, 80, 120, 160)},
        },
    ),
}


def _recipes() -> dict[str, TrainingConfig]:
    """Two members of a shape and a training for which a statement says something; see the guide."""
    linear, digits = ModelConfig("linear"), _BASES["digits"].config
    fashion = _BASES["fashion-mnist"].config
    blobs = TrainingConfig(
        dataset="blobs", model=linear, objective=GradientPenalty(0.1), members=2, epochs=60, lr=0.05,
        weight_decay=1e-3, schedule="onecycle",
    )  # fmt: skip
    return {
        "digits-deep-certified": replace(
            digits, model=ModelConfig("mlp", "softplus(2)", (64, 64, 64)), objective=_DEEP, epochs=60
        ),
        "fashion-mnist-certified": replace(
            fashion, model=ModelConfig("lenet", "softplus(5)"), objective=replace(_DEEP, radius=0.05),
            members=2, epochs=8, batch_size=256, lr=5e-3,
        ),
        "digits-0-1-theorem-4": replace(
            digits, dataset="digits-0-1", model=ModelConfig("mlp", "softplus(5)", (32,)), members=2
        ),
        "blobs-theorem-4": blobs,
        "blobs-theorem-4-mlp": replace(blobs, model=ModelConfig("mlp", "softplus(1)", (8,))),
        "blobs-theorem-3": replace(blobs, objective=GradientPenalty(0.01)),
        "blobs-tight-theorem-2": TrainingConfig(
            dataset="blobs-tight", model=linear, objective=GradientPenalty(16.0, ((1.0, 1.08), (1.08, 1.0))),
            members=2, epochs=1200, batch_size=300, lr=0.02, schedule="onecycle",
        ),
    }  # fmt: skip


def _presets() -> dict[str, TrainingConfig]:
    known = {name: (base, base.config.dataset) for name, base in _BASES.items()}
    known["paper-cifar100"] = (_BASES["paper-cifar10"], "cifar100")
    known |= {name: (_BASES[base], name) for base, others in _SMALL.items() for name in others}
    methods = {
        f"{name}-{method}": config
        for name, (base, dataset) in known.items()
        for method, config in base.on(dataset).items()
        if not (method == ADP.name and name in _TWO_CLASSES)  # ADP needs more classes than members
    }
    return methods | _recipes()


PRESETS: Mapping[str, TrainingConfig] = MappingProxyType(_presets())


def preset(base: str, method: str) -> TrainingConfig:
    """The preset of a base (`digits`, `fashion-mnist`, `paper-mnist`, ...) and a method (`trs`, ...).

    A method that was registered beside ours has its default parameters, on the model and schedule of vanilla.

    Raises:
        ValueError: If there is none.
    """
    return named_preset(f"{base}-{method}")


def named_preset(name: str) -> TrainingConfig:
    """The preset of a name such as `digits-trs`, base and method; see `preset`.

    Raises:
        ValueError: If there is none.
    """
    if name in PRESETS:
        return PRESETS[name]
    for vanilla in (known for known in PRESETS if known.endswith("-vanilla")):
        method = name.removeprefix(vanilla.removesuffix("vanilla"))
        if method in OBJECTIVES:
            return replace(PRESETS[vanilla], objective=OBJECTIVES[method]())
    raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}")
