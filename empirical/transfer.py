"""Measured transfer between models: the rate of TRS, Definition 7, beside those it is often confused with.

With F the surrogate on which the attack was built, G the target model and A(x) the attacked image:

- **transfer** (Definition 7): both models right on x and both fooled on A(x), over all samples;
- **attack success**: G fooled on A(x), over all samples (untargeted, G's own clean errors count as success);
- **conditional transfer**: Definition 7's count over the samples on which both models are right on x and F is
  fooled on A(x), so that a weak attack on F does not pass for low transfer.

Fooled means another prediction than the true label (untargeted), or the target label (targeted).

Definition 7 as printed counts a targeted sample whose true label already is the target: with F = G perfect
and no attack at all, the rate is Pr(y = y_t). The starred variant Tr* leaves these samples out of the count
and of the conditional denominator. Theorems 1 and 3 as printed speak of the printed rate, the repaired
Theorem 3 of the starred one. Untargeted, the two are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from empirical.attacks import AttackMethod, AttackResult, predict, run_attack
from empirical.data import Split
from empirical.rates import check_statistics, rate
from empirical.transfer_matrix import COUNTS, TransferMatrix
from estimators.batching import (
    DEFAULT_BATCH,
    Support,
    check_inputs,
    check_labels,
    check_same_shape,
    check_target,
)

Named = TypeVar("Named")


def transfer_events(
    surrogate: nn.Module,
    target: nn.Module,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    target_label: int | Tensor | None = None,
    *,
    starred: bool = False,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Definition 7's indicator Tr(F, G, x), sample by sample (TRS, section 4.2).

    The attacked images are given, so that one attack on the surrogate serves every target model.

    Args:
        surrogate: F, logits (n, K).
        target: G, logits (n, K).
        x: Clean images (n, *shape).
        y: True labels (n,).
        x_adv: Attacked images A(x), (n, *shape).
        target_label: y_t, one for all or per sample (n,); None for the untargeted definition.
        starred: Count only samples with y != y_t (Tr*). No effect on the untargeted definition.
        batch_size: Samples per forward pass.

    Returns:
        (n,) bool.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If a shape, a label or a value does not fit.
    """
    classes = check_inputs((surrogate, target), x, batch_size)
    y = check_labels(y, x, classes)
    x_adv = check_same_shape(x_adv, x, "x_adv")
    goal = None if target_label is None else check_target(target_label, x, classes)
    correct_surrogate = predict(surrogate, x, batch_size=batch_size) == y
    correct_target = predict(target, x, batch_size=batch_size) == y
    attacked_surrogate = predict(surrogate, x_adv, batch_size=batch_size)
    attacked_target = predict(target, x_adv, batch_size=batch_size)
    eligible = _eligible(correct_surrogate, correct_target, attacked_surrogate, y, goal, starred)
    return eligible & _fooled(attacked_target, y, goal)


def measure_transfer(
    surrogate: nn.Module,
    target_model: nn.Module,
    data: Split,
    attack: AttackMethod,
    *,
    target: int | Tensor | None = None,
    starred: bool = False,
    support: Support = "population",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """Attack the surrogate and measure Pr(Tr(F, G, x) = 1) (TRS, Definition 7, section 4.2).

    Args:
        surrogate: F, on which the attack is built.
        target_model: G, on which it is tried.
        data: Samples; for "population" drawn independently of the models.
        attack: The attack.
        target: Target label y_t, one for all or per sample (n,); None for an untargeted attack.
        starred: Count only samples with y != y_t (Tr*).
        support: "finite": the exact rate on `data`. "population": Clopper-Pearson interval.
        confidence: Confidence of that interval.
        pixel_range: Range of valid values, None for data without one.
        batch_size: Samples per forward pass.

    Returns:
        A rate, two-sided; its failure probability is over the drawing of `data`, the attack's seed fixed.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If a shape, a label, a value, the support's name or the confidence does not fit.
    """
    check_statistics(support, confidence)
    check_inputs((surrogate, target_model), data.x, batch_size)
    result = run_attack(
        surrogate, data.x, data.y, attack, target=target, pixel_range=pixel_range, batch_size=batch_size
    )
    events = transfer_events(
        surrogate,
        target_model,
        data.x,
        data.y,
        result.x_adv,
        result.target,
        starred=starred,
        batch_size=batch_size,
    )
    name = f"{'Tr*' if starred else 'Tr'} under {attack}"
    return rate(int(events.sum()), len(events), name, support, confidence, seed=attack.seed)


def transfer_matrix(
    models: Mapping[str, nn.Module] | Iterable[nn.Module],
    data: Split,
    attack: AttackMethod,
    *,
    targets: Mapping[str, nn.Module] | Iterable[nn.Module] | None = None,
    target: int | Tensor | None = None,
    starred: bool = False,
    support: Support = "population",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = DEFAULT_BATCH,
) -> TransferMatrix:
    """Attack every surrogate once and try each attack on every target (TRS, Definition 7 and Figure 4).

    Args:
        models: Surrogates (rows) by name; without names they are numbered from 0.
        data: Samples; for "population" drawn independently of the models.
        attack: The attack on each surrogate.
        targets: Target models (columns); the surrogates unless given.
        target: Target label y_t, one for all or per sample (n,); None for an untargeted attack.
        starred: Count only samples with y != y_t (Tr*).
        support: "finite": exact rates on `data`. "population": Clopper-Pearson intervals.
        confidence: Confidence of each single interval.
        pixel_range: Range of valid values, None for data without one.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If there are no models, or a shape, a label, a value, the support's name or the confidence
            does not fit.
    """
    surrogates = _named(models, "surrogate")
    columns = surrogates if targets is None else _named(targets, "target model")
    check_statistics(support, confidence)
    check_inputs((*surrogates.values(), *columns.values()), data.x, batch_size)
    results = {
        name: run_attack(
            model, data.x, data.y, attack, target=target, pixel_range=pixel_range, batch_size=batch_size
        )
        for name, model in surrogates.items()
    }
    return matrix_from_attacks(
        surrogates,
        data,
        results,
        targets=columns,
        starred=starred,
        support=support,
        confidence=confidence,
        batch_size=batch_size,
    )


def matrix_from_attacks(
    models: Mapping[str, nn.Module] | Iterable[nn.Module],
    data: Split,
    results: Mapping[str, AttackResult] | Iterable[AttackResult],
    *,
    targets: Mapping[str, nn.Module] | Iterable[nn.Module] | None = None,
    starred: bool = False,
    support: Support = "population",
    confidence: float = 0.95,
    batch_size: int = DEFAULT_BATCH,
) -> TransferMatrix:
    """The transfer matrix of attacks that were run before: one result per surrogate, the same attack for all.

    Args:
        models: Surrogates (rows) by name; without names they are numbered from 0.
        data: The samples that were attacked.
        results: Results of the attack on each surrogate, under the names or in the order of `models`.
        targets: Target models (columns); the surrogates unless given.
        starred: Count only samples with y != y_t (Tr*).
        support: "finite": exact rates on `data`. "population": Clopper-Pearson intervals.
        confidence: Confidence of each single interval.
        batch_size: Samples per forward pass.

    Raises:
        TypeError: If images are not floating point or labels not integers.
        ValueError: If there are no models, the results do not fit them or come from different attacks, or a
            shape, a label, a value, the support's name or the confidence does not fit.
    """
    surrogates = _named(models, "surrogate")
    columns = surrogates if targets is None else _named(targets, "target model")
    check_statistics(support, confidence)
    classes = check_inputs((*surrogates.values(), *columns.values()), data.x, batch_size)
    y = check_labels(data.y, data.x, classes)
    attacks = _named(results, "attack result")
    attack, goal = _common_attack(surrogates, attacks)

    rows_correct = [predict(model, data.x, batch_size=batch_size) == y for model in surrogates.values()]
    columns_correct = rows_correct
    if targets is not None:
        columns_correct = [predict(model, data.x, batch_size=batch_size) == y for model in columns.values()]
    counts: dict[str, list[tuple[int, ...]]] = {name: [] for name in COUNTS}
    for (name, surrogate), correct in zip(surrogates.items(), rows_correct, strict=True):
        x_adv = check_same_shape(attacks[name].x_adv, data.x, "x_adv")
        attacked = predict(surrogate, x_adv, batch_size=batch_size)
        eligible = [_eligible(correct, other, attacked, y, goal, starred) for other in columns_correct]
        fooled = [
            _fooled(predict(model, x_adv, batch_size=batch_size), y, goal) for model in columns.values()
        ]
        counts["eligible"].append(tuple(int(event.sum()) for event in eligible))
        counts["fooled"].append(tuple(int(event.sum()) for event in fooled))
        counts["transferred"].append(
            tuple(int((one & other).sum()) for one, other in zip(eligible, fooled, strict=True))
        )
    return TransferMatrix(
        surrogates=tuple(surrogates),
        targets=tuple(columns),
        attack=attack,
        health=tuple(attacks[name].health for name in surrogates),
        mode="untargeted" if goal is None else "targeted",
        target_label=None if goal is None or bool((goal != goal[0]).any()) else int(goal[0]),
        starred=starred,
        samples=len(y),
        transferred=tuple(counts["transferred"]),
        fooled=tuple(counts["fooled"]),
        eligible=tuple(counts["eligible"]),
        support=support,
        confidence=confidence,
    )


def _eligible(
    correct_surrogate: Tensor,
    correct_target: Tensor,
    attacked_surrogate: Tensor,
    y: Tensor,
    target: int | Tensor | None,
    starred: bool,
) -> Tensor:
    """Definition 7 but for the target model under attack: the denominator of the conditional rate."""
    eligible = correct_surrogate & correct_target & _fooled(attacked_surrogate, y, target)
    return eligible & (y != target) if starred and target is not None else eligible


def _fooled(attacked: Tensor, y: Tensor, target: int | Tensor | None) -> Tensor:
    return attacked != y if target is None else attacked == target


def _named(items: Mapping[str, Named] | Iterable[Named], what: str) -> dict[str, Named]:
    named = dict(items) if isinstance(items, Mapping) else {str(i): item for i, item in enumerate(items)}
    if not named:
        raise ValueError(f"expected at least one {what}, got none")
    return named


def _common_attack(
    surrogates: Mapping[str, nn.Module], results: Mapping[str, AttackResult]
) -> tuple[AttackMethod, Tensor | None]:
    """The attack and the targets that all results share."""
    if set(results) != set(surrogates):
        raise ValueError(f"expected results for {', '.join(surrogates)}, got them for {', '.join(results)}")
    first, *others = results.values()
    for other in others:
        if other.attack != first.attack:
            raise ValueError(f"expected one attack for all surrogates, got {first.attack} and {other.attack}")
        targets = [result.target for result in (first, other) if result.target is not None]
        if len(targets) == 1 or (targets and not torch.equal(*targets)):
            raise ValueError("expected the same targets for all surrogates, got different ones")
    return first.attack, first.target
