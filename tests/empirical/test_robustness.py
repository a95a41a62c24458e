"""Robust accuracy: clean errors, worst case over attacks, intervals, ensembles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from empirical.attacks import Attack, predict, run_attack
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.robustness import robust_accuracy, survivors


def line(position: float) -> nn.Module:
    """Class 1 right of a position on the first axis."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, -position]))
    return model


def points() -> Split:
    """First coordinates 0.05, 0.15, ... 0.95; labels of a boundary at 0.5, except that the last is wrong."""
    first = torch.arange(0.05, 1, 0.1)
    y = (first > 0.5).long()
    y[-1] = 0
    return Split(torch.stack([first, torch.full_like(first, 0.5)], 1), y)


@pytest.mark.parametrize(("eps", "robust"), [(0.01, 9), (0.1, 7), (0.2, 5), (0.3, 3)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_robust_accuracy_of_a_line_is_exact(norm: str, eps: float, robust: int) -> None:
    """Samples farther than eps from the boundary stay right; the clean error never counts."""
    data = points()
    estimate = robust_accuracy(line(0.5), data, Attack("pgd", norm, eps, steps=10), confidence=0.9)
    interval = binomtest(robust, 10).proportion_ci(0.9, method="exact")
    assert estimate.value == robust / 10
    assert (estimate.lower, estimate.upper) == pytest.approx((interval.low, interval.high))
    finite = robust_accuracy(line(0.5), data, Attack("pgd", norm, eps, steps=10), support="finite")
    assert finite.is_exact
    assert finite.value == robust / 10


def test_a_clean_error_that_the_attack_mends_is_not_robust() -> None:
    """Right on the attacked image alone is not enough."""
    x, y = torch.tensor([[0.4, 0.5], [0.6, 0.5]]), torch.tensor([1, 1])
    mended = torch.tensor([[0.7, 0.5], [0.7, 0.5]])
    assert survivors(line(0.5), x, y, [mended]).tolist() == [False, True]
    assert survivors(line(0.5), x, y, []).tolist() == [False, True]


def test_each_sample_meets_its_worst_attack() -> None:
    """Two sets of attacked images, each fooling another sample: neither sample survives."""
    x, y = torch.tensor([[0.6, 0.5], [0.7, 0.5], [0.8, 0.5]]), torch.tensor([1, 1, 1])
    first, second = x.clone(), x.clone()
    first[0, 0] = second[1, 0] = 0.4
    assert survivors(line(0.5), x, y, [first, second]).tolist() == [False, False, True]


@given(seed=st.integers(0, 30))
def test_more_attacks_never_raise_robust_accuracy(seed: int) -> None:
    """The worst of several attacks is at most each one of them, and equals the hand count."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(40, 5, generator=generator)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    data = Split(x, predict(model, x))
    attacks = [Attack("fgsm", "linf", 0.1), Attack("bim", "l2", 0.2, steps=4)]
    single = [robust_accuracy(model, data, attack).value for attack in attacks]
    both = robust_accuracy(model, data, attacks).value
    assert both <= min(single)
    success = torch.stack([run_attack(model, x, data.y, attack).success for attack in attacks])
    assert both == pytest.approx(float((~success.any(0)).double().mean()))


def test_ensemble_is_attacked_as_a_whole() -> None:
    """Boundaries at 0.3 and 0.7 vote with a boundary at 0.5."""
    ensemble = Ensemble([line(0.3), line(0.7)])
    ensemble.train()
    ensemble.members[0].eval()
    data = points()
    assert robust_accuracy(ensemble, data, Attack("pgd", "linf", 0.2, steps=10)).value == 0.5
    assert ensemble.training
    assert not ensemble.members[0].training


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        ([], {}, "at least one attack, got none"),
        (Attack(steps=10**9), {"support": "all"}, "support 'finite' or 'population', got 'all'"),
        (Attack(steps=10**9), {"confidence": 0.0}, r"confidence in \(0, 1\), got 0.0"),
    ],
)
def test_bad_input_is_refused(attack: Attack | list[Attack], options: dict, message: str) -> None:
    """Before any attack runs."""
    with pytest.raises(ValueError, match=message):
        robust_accuracy(line(0.5), points(), attack, **options)


def test_attacked_images_must_fit() -> None:
    """Attacked images of another shape are refused."""
    data = points()
    other: Tensor = data.x[:5]
    with pytest.raises(ValueError, match="shape of x"):
        survivors(line(0.5), data.x, data.y, [other])


@pytest.mark.parametrize("on_failure", ["best", "last", "clean"])
def test_stopping_early_changes_no_rate(on_failure: str) -> None:
    """Robust accuracy is that of the full attacks' images, from fewer rows where they need not be kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    nn.init.normal_(model[0].weight, std=2.0)  # type: ignore[arg-type]
    x = torch.rand(150, 6, dtype=torch.float64)
    data = Split(x, predict(model, x).where(torch.arange(150) % 9 > 0, 0))
    attacks = [
        Attack(method, norm, 0.1, 12, restarts=2, on_failure=on_failure)
        for method, norm in (("pgd", "linf"), ("apgd", "l2"))
    ]
    rows: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    full = [run_attack(model, data.x, data.y, attack) for attack in attacks]
    asked = sum(rows)
    expected = int(survivors(model, data.x, data.y, [result.x_adv for result in full]).sum())
    assert 30 < expected < 120
    rows.clear()
    assert robust_accuracy(model, data, attacks, support="finite").value == expected / 150
    assert (sum(rows) < asked) is (on_failure != "last")
