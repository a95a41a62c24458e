"""Which ensembles the study trains: a crossed design over what the theory speaks about, and other methods.

The core crosses the two weights of the TRS loss, of gradient similarity (lambda_a) and of gradient size
(lambda_b), with activation, depth and the number of members. Within a block (activation, depth, members,
seed) ensembles differ in the two weights alone, down to the initial weights and the order of the data, so
that differences within a block are effects of these weights and not only correlations. The other methods
follow, so that what is found does not hang on one family of losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

from empirical.config import TrainingConfig
from empirical.models import ModelConfig
from empirical.objectives import (
    ADP,
    CKAE,
    DVERGE,
    GAL,
    TRS,
    AdvT,
    CosL2,
    CosOnly,
    Objective,
    TRSAdvT,
    Vanilla,
)

# Smooth ones: the theorems need a finite beta.
ACTIVATIONS = ("softplus(5)", "gelu", "tanh")
SIMILARITY_WEIGHTS = (0.0, 0.2, 1.0)
SIZE_WEIGHTS = (0.0, 0.1, 0.4)
OTHER_METHODS: tuple[Objective, ...] = (
    TRS(search="joint"), TRSAdvT(search="joint"), AdvT(), GAL(), ADP(), DVERGE(), CKAE(),
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """One comparison of every ensemble.

    Attributes:
        samples: Held-out points that are attacked.
        eps_l2: l2 radii of the attacks.
        eps_linf: linf radii of the attacks.
        attacks: Methods of the attacks on one member.
        steps: Their steps.
        certificates: Whether every ball is certified too, which costs more than the attacks.
    """

    samples: int
    eps_l2: tuple[float, ...]
    eps_linf: tuple[float, ...] = ()
    attacks: tuple[str, ...] = ("pgd", "fgsm")
    steps: int = 20
    certificates: bool = False


@dataclass(frozen=True)
class Plan:
    """What one run of the study trains and how it measures.

    Attributes:
        configs: The ensembles, each trained once.
        attacked: Several attacks and radii; the claims are answered at its largest l2 radius.
        certified: Certificates beside attacks, at fewer points and radii, none of them in `attacked`.
        resamples: Bootstrap resamples behind every interval.
    """

    configs: tuple[TrainingConfig, ...]
    attacked: Protocol
    certified: Protocol
    resamples: int


def penalties(objective: Objective) -> tuple[float, float] | None:
    """lambda_a and lambda_b of a method of the crossed design, None for another method."""
    match objective:
        case Vanilla():
            return 0.0, 0.0
        case CosOnly(lambda_a):
            return lambda_a, 0.0
        case CosL2(lambda_a, lambda_b):
            return lambda_a, lambda_b
    return None


def block(config: TrainingConfig) -> tuple[str, tuple[int, ...], int, int]:
    """What the ensembles of a block have in common: activation, hidden layers, members, seed."""
    return config.model.activation, config.model.hidden, config.members, config.seed


def _objective(lambda_a: float, lambda_b: float) -> Objective:
    if lambda_b:
        return CosL2(lambda_a, lambda_b)
    return CosOnly(lambda_a) if lambda_a else Vanilla()


def _crossed(
    base: TrainingConfig, models: Sequence[ModelConfig], members: Sequence[int], first_seed: int = 0
) -> list[TrainingConfig]:
    return [
        replace(base, model=model, members=count, objective=_objective(a, b), seed=seed)
        for seed, (model, count) in enumerate(product(models, members), first_seed)
        for a, b in product(SIMILARITY_WEIGHTS, SIZE_WEIGHTS)
    ]


def _others(
    base: TrainingConfig, kinds: Sequence[tuple[ModelConfig, int]], seeds: Sequence[int]
) -> list[TrainingConfig]:
    return [
        replace(base, model=model, members=count, objective=objective, seed=seed)
        for seed in seeds
        for model, count in kinds
        for objective in OTHER_METHODS
    ]


def _mlp(activation: str, *hidden: int) -> ModelConfig:
    return ModelConfig("mlp", activation, hidden)


def _digits(epochs: int) -> TrainingConfig:
    return TrainingConfig(
        dataset="digits", epochs=epochs, lr=5e-3, schedule="onecycle", ramp=0.3, checkpoint_every=epochs
    )


def _plans() -> dict[str, Plan]:
    shallow_and_deep = [
        _mlp(activation, *hidden) for hidden in ((64,), (64, 64)) for activation in ACTIVATIONS
    ]
    full = _digits(15)
    return {
        "smoke": Plan(
            tuple(_crossed(_digits(2), [_mlp("softplus(5)", 8)], (2,)))[::2],
            Protocol(samples=20, eps_l2=(0.5,), steps=3),
            Protocol(samples=5, eps_l2=(0.3,), attacks=("pgd", "joint"), steps=3, certificates=True),
            resamples=50,
        ),
        "digits": Plan(
            (
                *_crossed(full, shallow_and_deep, (2, 3)),
                *_crossed(full, [_mlp("softplus(5)", 48, 48, 48)], (2,), first_seed=50),
                *_others(full, [(_mlp("softplus(5)", 64), 2), (_mlp("gelu", 64, 64), 3)], (100, 101)),
            ),
            Protocol(samples=200, eps_l2=(0.05, 0.5), eps_linf=(0.1,)),
            Protocol(samples=100, eps_l2=(0.3,), attacks=("pgd", "joint"), certificates=True),
            resamples=1000,
        ),
    }


PLANS: Mapping[str, Plan] = MappingProxyType(_plans())
