"""Run an attack on a model: any of the gradient attacks in a ball, CW and EAD, or one of your own.

What an attack is, `AttackMethod` says: settings that can perturb a batch. The ways of attacking are in
`gradient` (FGSM, BIM, PGD, MIM, Auto-PGD) and `library` (CW, EAD). Here inputs are checked,
the model is frozen and everything left as it was found, and the result's health is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from empirical.attacks.base import AttackMethod, Goal, PixelRange
from empirical.attacks.gradient import METHODS, Attack
from empirical.attacks.library import CarliniWagner, ElasticNet
from empirical.attacks.perturbation import ORDERS, sample_norms
from empirical.health import AttackHealth
from estimators.batching import (
    DEFAULT_BATCH,
    batched_logits,
    check_inputs,
    check_labels,
    check_target,
    frozen,
)

_READERS: dict[str, Callable[[dict[str, Any]], AttackMethod]] = {}
ATTACKS: Mapping[str, Callable[[dict[str, Any]], AttackMethod]] = MappingProxyType(_READERS)


def register_attack(method: str, from_json: Callable[[dict[str, Any]], AttackMethod]) -> None:
    """Make an attack known by its method's name, so that `attack_from_json` can read it back.

    Args:
        method: What its `to_json` writes under "method".
        from_json: Makes the attack from what its `to_json` wrote.

    Raises:
        ValueError: If another attack has the name.
    """
    if method in _READERS:
        raise ValueError(f"expected a new name for an attack, got {method!r}, which is taken")
    _READERS[method] = from_json


for _method in METHODS:
    register_attack(_method, Attack.from_json)
for _penalty in (CarliniWagner, ElasticNet):
    register_attack(_penalty.method, _penalty.from_json)


def attack_from_json(fields: Mapping[str, Any]) -> AttackMethod:
    """The attack that its `to_json` described.

    Raises:
        ValueError: If its method is unknown or a setting is out of range.
    """
    method = str(fields.get("method"))
    if method not in ATTACKS:
        raise ValueError(f"expected an attack among {', '.join(ATTACKS)}, got {method!r}")
    return ATTACKS[method](dict(fields))


def ball_attack(name: str) -> AttackMethod:
    """The attack of this name with its default settings, ready for any ball.

    Raises:
        ValueError: If the name is unknown, or of an attack without the fields norm, eps and seed.
    """
    attack: Any = attack_from_json({"method": name})
    missing = sorted({"norm", "eps", "seed"} - {each.name for each in fields(attack)})
    if missing:
        raise ValueError(
            f"expected an attack with fields norm, eps and seed, got {name!r} without {', '.join(missing)}"
        )
    return attack


@dataclass(frozen=True)
class AttackResult:
    """What an attack returned, and how it got there.

    Attributes:
        x_adv: Attacked images (n, *shape), dtype and device of the clean ones.
        success: (n,) bool: the attacked model misclassifies `x_adv` (untargeted; true as well where it
            misclassified the clean image and still does), or predicts the target (targeted).
        health: Signs that the attack did not work as meant.
        attack: The attack that was run, its failure policy included.
        target: (n,) target labels, or None for an untargeted attack.
    """

    x_adv: Tensor
    success: Tensor
    health: AttackHealth
    attack: AttackMethod
    target: Tensor | None = None


def run_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: AttackMethod,
    *,
    target: int | Tensor | None = None,
    pixel_range: PixelRange = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> AttackResult:
    """Attack every sample, leaving the model and the global random state as they were.

    Untargeted, the loss of the true label is maximised; targeted, the loss of the target is minimised (TRS,
    Definition 1, applied to misclassified samples too). The model runs in evaluation mode, each submodule
    gets its mode back, and no `.grad`, buffer or `requires_grad` flag is touched. Random starts are drawn for
    the whole set at once: `batch_size` changes the result only by the rounding of the model's arithmetic.

    Args:
        model: Maps (n, *shape) to logits or log-probabilities (n, K).
        x: Clean images (n, *shape), floating point.
        y: True labels (n,).
        attack: The attack to run.
        target: Target label, one for all or one per sample (n,); None for an untargeted attack. A target
            equal to the true label is allowed (the attack then strengthens the prediction).
        pixel_range: Smallest and largest valid value, or None for data without a range.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If `x` is not floating point, or labels are not integers.
        ValueError: If the set is empty, a shape does not fit, a value is not finite or outside the pixel
            range, a label is not one of the model's classes, the model's loss is not finite, or the attack
            cannot serve this number of classes or pixel range.
        ImportError: If the attack needs a library that is not installed.
    """
    classes = check_inputs((model,), x, batch_size)
    check_pixels(x, pixel_range)
    attack.check(classes, target is not None, pixel_range)
    y = check_labels(y, x, classes)
    labels = y if target is None else check_target(target, x, classes)
    goal = Goal(labels, target is not None)
    with frozen(model), generators_kept(x.device):
        x_adv, zero_gradients, monotone_loss = attack.perturb(model, x, goal, pixel_range, batch_size)
        success = goal.reached(predict(model, x_adv, batch_size=batch_size))
    health = AttackHealth(zero_gradients, monotone_loss, **_image_health(x, x_adv, attack.norm, pixel_range))
    return AttackResult(x_adv, success, health, attack, labels if goal.targeted else None)


def predict(model: nn.Module, x: Tensor, *, batch_size: int = DEFAULT_BATCH) -> Tensor:
    """Predicted labels (n,), the largest logit; in evaluation mode, which is undone afterwards."""
    return batched_logits(model, x, batch_size).argmax(1)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Give the global generators of torch, numpy and Python their states back, also after a failure."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _image_health(x: Tensor, x_adv: Tensor, norm: str, pixel_range: PixelRange) -> dict[str, float]:
    """The part of an attack's health that its images alone show."""
    norms = sample_norms(x_adv.double() - x.double(), ORDERS[norm])
    low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
    black = (low == 0) & (high == 0) & x.flatten(1).any(1)
    outside = torch.zeros_like(black)
    if pixel_range is not None:
        outside = (low < pixel_range[0]) | (high > pixel_range[1])
    return {
        "unchanged": _share(norms == 0),
        "black": _share(black),
        "out_of_range": _share(outside),
        "largest_norm": float(norms.max()),
    }


def _share(rows: Tensor) -> float:
    return float(rows.double().mean())


def check_pixels(x: Tensor, pixel_range: PixelRange) -> None:
    """Refuse a range that is none, and images outside it.

    Raises:
        ValueError: If low is not below high, or a pixel lies outside.
    """
    if pixel_range is None:
        return
    low, high = pixel_range
    if not low < high:
        raise ValueError(f"expected pixel_range (low, high) with low < high, got {pixel_range}")
    if x.min() < low or x.max() > high:
        raise ValueError(f"expected x inside pixel_range [{low}, {high}], got [{x.min():g}, {x.max():g}]")
