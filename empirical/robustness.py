"""Robust accuracy: the share of samples that a model still gets right when it is attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from bounds.estimate import Estimate
from empirical.attacks import Attack, AttackMethod, predict, run_attack
from empirical.data import Split
from empirical.rates import check_statistics, rate
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels, check_same_shape


def robust_accuracy(
    model: nn.Module,
    data: Split,
    attack: AttackMethod | Sequence[AttackMethod],
    *,
    support: Support = "population",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Share of all samples that stay right under untargeted attacks on the model (TRS, section 6.1).

    A sample that is wrong without an attack is not robust. Of several attacks each sample meets its worst.

    Args:
        model: A single model or an ensemble, (n, *shape) to logits or log-probabilities (n, K).
        data: Samples; for "population" drawn independently of the model.
        attack: The attack, or several.
        support: "finite": the exact rate on `data`. "population": Clopper-Pearson interval.
        confidence: Confidence of that interval.
        pixel_range: Range of valid values, None for data without one.
        batch_size: Samples per forward pass.

    Returns:
        The accuracy under these attacks, two-sided. Against the best attack in the ball it is lower or equal.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If there is no attack, or a shape, a label, a value, the support's name or the confidence
            does not fit.
    """
    check_statistics(support, confidence)
    attacks = tuple(attack) if isinstance(attack, Sequence) else (attack,)
    if not attacks:
        raise ValueError("expected at least one attack, got none")
    images = [
        run_attack(model, data.x, data.y, _quick(each), pixel_range=pixel_range, batch_size=batch_size).x_adv
        for each in attacks
    ]
    robust = survivors(model, data.x, data.y, images, batch_size=batch_size)
    name = f"robust accuracy under {'; '.join(map(str, attacks))}"
    return rate(int(robust.sum()), len(robust), name, support, confidence, seed=attacks[0].seed)


def _quick(attack: AttackMethod) -> AttackMethod:
    """An attack that fools the same samples with less work, its images and health not being asked for."""
    if isinstance(attack, Attack) and attack.on_failure in ("best", "clean"):
        return replace(attack, on_failure="any")
    return attack


def survivors(
    model: nn.Module, x: Tensor, y: Tensor, attacked: Sequence[Tensor], *, batch_size: int = DEFAULT_BATCH
) -> Tensor:
    """Samples that the model gets right without an attack and on every one of the attacked images.

    The images may come from attacks on other models: then this is the black-box protocol (TRS, section 6.1).

    Args:
        model: (n, *shape) to logits or log-probabilities (n, K).
        x: Clean images (n, *shape).
        y: True labels (n,).
        attacked: Attacked versions of `x`, each (n, *shape).
        batch_size: Samples per forward pass.

    Returns:
        (n,) bool.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If a shape, a label or a value does not fit.
    """
    y = check_labels(y, x, check_inputs((model,), x, batch_size))
    robust = predict(model, x, batch_size=batch_size) == y
    for x_adv in attacked:
        x_adv = check_same_shape(x_adv, x, "x_adv")
        robust &= predict(model, x_adv, batch_size=batch_size) == y
    return robust
