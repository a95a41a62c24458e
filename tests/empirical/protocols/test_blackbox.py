"""The black-box protocol on boundaries that are known: who survives, and what each attempt did."""

import json

import pytest
import torch
from torch import nn

from empirical.attacks import Attack, predict, run_attack
from empirical.attacks.presets import black_box_attacks
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.protocols.blackbox import BlackBox, black_box


def line(axis: int, position: float = 0.5) -> nn.Module:
    """Class 1 beyond a position on one of two axes."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()[1, axis] = 1.0
        model.bias.copy_(torch.tensor([0.0, -position]))
    return model


def random_model(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1.5 * torch.randn(parameter.shape, generator=generator))
    return model


def diagonal() -> Split:
    """Both coordinates 0.05, 0.15, ... 0.95: every line at 0.5 is right everywhere."""
    first = torch.arange(0.05, 1, 0.1)
    return Split(torch.stack([first, first], 1), (first > 0.5).long())


def test_survivors_withstand_every_attempt_on_every_surrogate() -> None:
    """Surrogates on different axes, each fooling another target: a target on both axes meets both."""
    data = diagonal()
    attacks = [Attack("bim", eps=0.1, steps=10, on_failure="last")]
    found = black_box(
        {"first": line(0), "second": line(1)}, {"first": line(0), "blind": line(1)}, data, attacks
    )
    # The two samples nearest to 0.5 fall, each target by the surrogate of its own axis.
    assert [sum(survival.robust) for survival in found.survivals.values()] == [8, 8]
    assert [attempt.fooled for attempt in found.attempts] == [
        {"first": 2, "blind": 0},
        {"first": 0, "blind": 2},
    ]
    assert [attempt.fooled_surrogate for attempt in found.attempts] == [2, 2]
    assert [attempt.surrogate for attempt in found.attempts] == ["first", "second"]


def test_clean_errors_never_survive_and_are_left_out_of_the_conditional_rate() -> None:
    """A target with its boundary at 0.7 gets two samples wrong already."""
    found = black_box(
        {"surrogate": line(0)}, {"shifted": line(0, 0.7)}, diagonal(), [Attack("bim", eps=0.04, steps=5)]
    )
    survival = found.survivals["shifted"]
    assert sum(survival.clean) == 8
    assert survival.conditional_robust_accuracy.value == 1
    assert survival.robust_accuracy.value == 0.8


def test_outcome_is_the_intersection_over_all_attempts() -> None:
    """Eighteen attempts by hand: survived only if all fail; some attempt alone fools fewer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 4, generator=generator)
    target = random_model(9)
    data = Split(x, predict(target, x))
    surrogates = {str(n): Ensemble([random_model(10 * n + i) for i in range(n)]) for n in (3, 5, 8)}
    attacks = black_box_attacks(0.3, steps=4)
    found = black_box(surrogates, {"target": target}, data, attacks)
    robust = torch.ones(60, dtype=torch.bool)
    counts = []
    for model in surrogates.values():
        for attack in attacks:
            right = predict(target, run_attack(model, x, data.y, attack).x_adv) == data.y
            counts.append(int((~right).sum()))
            robust &= right
    assert len(found.attempts) == 18
    assert [attempt.fooled["target"] for attempt in found.attempts] == counts
    assert found.survivals["target"].robust == tuple(robust.tolist())
    assert sum(found.survivals["target"].robust) < 60 - max(counts)
    assert len(set(counts)) > 3, "losses, starts and surrogates all make a difference"


def test_losses_of_log_probabilities_are_both_alive() -> None:
    """On an ensemble of log-probabilities neither loss has zero gradients."""
    data = diagonal()
    found = black_box({"e": Ensemble([line(0), line(1)])}, {"t": line(0)}, data, black_box_attacks(0.1, 5))
    assert {attempt.attack.loss for attempt in found.attempts} == {"ce", "margin"}
    assert all(attempt.health.zero_gradients == 0 for attempt in found.attempts)
    assert all(attempt.fooled_surrogate == 2 for attempt in found.attempts)


def test_outcome_survives_json() -> None:
    """Strictly."""
    found = black_box({"s": line(0)}, {"t": line(1)}, diagonal(), [Attack("pgd", steps=2)], support="finite")
    assert BlackBox.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surrogates": {}}, "at least one surrogate, got none"),
        ({"targets": {}}, "at least one target, got none"),
        ({"attacks": []}, "at least one attack, got none"),
        ({"attacks": [Attack(on_failure="clean")]}, "keep their failures, got clean images from PGD-50"),
        ({"confidence": 0.0}, r"confidence in \(0, 1\), got 0.0"),
        ({"targets": {"t": nn.Linear(2, 3)}}, r"same number of classes, got \[2, 3\]"),
    ],
)
def test_bad_input_is_refused_before_any_attack(changes: dict, message: str) -> None:
    """One line each."""
    arguments = {
        "surrogates": {"s": line(0)}, "targets": {"t": line(1)}, "data": diagonal(),
        "attacks": [Attack(steps=10**9)], **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        black_box(**arguments)
