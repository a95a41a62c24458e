"""Definition 7 against brute force, and the transfer matrix: its axes, counts, denominators and intervals."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from empirical import transfer
from empirical.attacks import Attack, CarliniWagner, predict, run_attack
from empirical.data import Split
from empirical.transfer import matrix_from_attacks, measure_transfer, transfer_events, transfer_matrix
from empirical.transfer_matrix import DENOMINATORS, TransferMatrix


class Table(nn.Module):
    """Predicts `labels[i]` on the input i."""

    def __init__(self, labels: Tensor, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.labels[x[:, 0].round().long()], self.classes).to(x.dtype)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Module:
    model = nn.Linear(len(weight[0]), len(bias))
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
        model.bias.copy_(torch.tensor(bias))
    return model


def random_linear(seed: int, dimension: int = 6, classes: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, dimension, generator=generator)
    return linear(weight.tolist(), (-weight.sum(1) / 2).tolist())


def cloud(n: int = 200, dimension: int = 6, classes: int = 3, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dimension, generator=generator)
    noisy = torch.randint(0, classes, (n,), generator=generator)
    y = torch.where(torch.rand(n, generator=generator) < 0.8, predict(random_linear(0), x), noisy)
    return Split(x, y)


F, G = random_linear(0), random_linear(1)


@pytest.mark.parametrize("starred", [False, True])
@pytest.mark.parametrize("target", [None, 0, 1, 2])
def test_definition_7_on_every_case(target: int | None, starred: bool) -> None:
    """All 243 combinations of F(x), G(x), F(A(x)), G(A(x)), y of three classes, against the formula."""
    cases = list(itertools.product(range(3), repeat=5))
    columns = torch.tensor(cases).T
    n = len(cases)
    ids = torch.arange(n, dtype=torch.float32)[:, None]
    surrogate = Table(torch.cat([columns[0], columns[2]]))
    other = Table(torch.cat([columns[1], columns[3]]))
    expected = [
        f == y and g == y and (
            (fa != y and ga != y) if target is None
            else (fa == target and ga == target and not (starred and y == target))
        )
        for f, g, fa, ga, y in cases
    ]  # fmt: skip
    events = transfer_events(surrogate, other, ids, columns[4], ids + n, target, starred=starred)
    assert events.dtype == torch.bool
    assert events.tolist() == expected
    assert 0 < sum(expected) < n


def test_identity_attack_and_the_label_that_already_is_the_target() -> None:
    """A perfect model and no attack at all: the printed rate is Pr(y = y_t), the starred one 0."""
    y = torch.arange(90) % 3
    x = torch.arange(90.0)[:, None]
    model = Table(y)
    assert transfer_events(model, model, x, y, x, 1).double().mean() == pytest.approx(1 / 3)
    assert not transfer_events(model, model, x, y, x, 1, starred=True).any()
    assert not transfer_events(model, model, x, y, x).any()


def test_per_sample_targets() -> None:
    """Targets given per sample are compared sample by sample."""
    y = torch.tensor([0, 0, 1])
    ids = torch.arange(3.0)[:, None]
    model = Table(torch.tensor([0, 0, 1, 1, 2, 2]))
    events = transfer_events(model, model, ids, y, ids + 3, torch.tensor([1, 1, 2]))
    assert events.tolist() == [True, False, True]


@pytest.mark.parametrize("target", [None, 1])
def test_measured_transfer_is_a_binomial_estimate(target: int | None) -> None:
    """Population: Clopper-Pearson at the confidence asked for. Finite: the exact rate."""
    data, attack = cloud(), Attack("pgd", "l2", 0.3, steps=5, seed=4)
    result = run_attack(F, data.x, data.y, attack, target=target)
    count = int(transfer_events(F, G, data.x, data.y, result.x_adv, target).sum())
    assert 5 < count < 195
    estimate = measure_transfer(F, G, data, attack, target=target, confidence=0.9)
    interval = binomtest(count, 200).proportion_ci(0.9, method="exact")
    assert estimate.value == count / 200
    assert (estimate.lower, estimate.upper) == pytest.approx((interval.low, interval.high))
    assert estimate.failure_probability == pytest.approx(0.1)
    assert (estimate.samples, estimate.seed) == (200, 4)
    exact = measure_transfer(F, G, data, attack, target=target, support="finite")
    assert exact.is_exact
    assert exact.value == count / 200


def test_starred_rate_is_smaller_where_the_target_class_is_present() -> None:
    """Samples of the target class count as printed and do not count starred."""
    data, attack = cloud(), Attack("bim", "l2", 0.3, steps=5)
    printed = measure_transfer(F, F, data, attack, target=1, support="finite").value
    starred = measure_transfer(F, F, data, attack, target=1, support="finite", starred=True).value
    own = ((data.y == 1) & (predict(F, data.x) == 1)).double().mean()
    assert printed - starred == pytest.approx(float(own))
    assert own > 0.1


@given(
    seed=st.integers(0, 50),
    eps=st.floats(0.01, 1.0),
    target=st.sampled_from([None, 0]),
    starred=st.booleans(),
)
def test_relations_between_the_rates(seed: int, eps: float, target: int | None, starred: bool) -> None:
    """Transfer is at most each model's own success, and its count is at most the eligible count."""
    data, models = cloud(60, seed=seed), [random_linear(seed), random_linear(seed + 1)]
    matrix = transfer_matrix(
        models, data, Attack("fgsm", eps=eps), target=target, starred=starred, support="finite"
    )
    moved, fooled, eligible = map(np.array, (matrix.transferred, matrix.fooled, matrix.eligible))
    assert (moved <= np.minimum(fooled, eligible)).all()
    assert (moved <= np.diag(moved)[:, None]).all(), "transfer needs the surrogate itself fooled"
    assert (np.diag(moved) == np.diag(eligible)).all(), (
        "a fooled surrogate is a fooled target on the diagonal"
    )
    assert (matrix.table() == moved / 60).all()
    assert (matrix.table("attack_success") == fooled / 60).all()


@pytest.mark.parametrize("target", [None, 2, "per sample"])
@pytest.mark.parametrize("starred", [False, True])
def test_matrix_entries_equal_single_measurements(target: int | str | None, starred: bool) -> None:
    """Every entry of the matrix is what measure_transfer says of that ordered pair."""
    data, attack = cloud(), Attack("pgd", "l2", 0.25, steps=4, seed=2)
    goal = (data.y + 1) % 3 if target == "per sample" else target
    models = {"f": F, "g": G, "h": random_linear(2)}
    matrix = transfer_matrix(models, data, attack, target=goal, starred=starred)
    for (row, surrogate), (column, other) in itertools.product(models.items(), repeat=2):
        single = measure_transfer(surrogate, other, data, attack, target=goal, starred=starred)
        entry = matrix.estimate(row, column)
        assert (entry.value, entry.lower, entry.upper) == (single.value, single.lower, single.upper)
    assert matrix.fooled != tuple(zip(*matrix.fooled, strict=True)), "rows and columns can be told apart"
    assert matrix.mode == ("untargeted" if target is None else "targeted")
    assert matrix.target_label == (2 if target == 2 else None)


def test_rows_are_surrogates_and_columns_targets() -> None:
    """A fragile and a sturdy model: what fools the sturdy fools the fragile, not the other way round."""
    y = torch.arange(100) % 2
    x = torch.where(y == 1, 0.7, 0.3)[:, None] + torch.zeros(100, 2)
    fragile, sturdy = linear([[0, 0], [1, 0]], [0, -0.5]), linear([[0, 0], [1, 1]], [0, -1.0])
    # eps 0.3 along the first pixel moves both; eps 0.25 in l2 fools only the model that looks at one pixel.
    matrix = transfer_matrix(
        {"fragile": fragile, "sturdy": sturdy},
        Split(x, y),
        Attack("bim", "l2", 0.25, steps=10),
        support="finite",
    )
    assert matrix.estimate("fragile", "fragile").value == 1
    assert matrix.estimate("fragile", "sturdy").value == 0
    assert matrix.estimate("sturdy", "sturdy").value == 0
    assert matrix.fooled == ((100, 0), (0, 0))
    assert matrix.to_json()["axes"] == {"rows": "surrogate", "columns": "target"}


def test_three_rates_have_three_denominators() -> None:
    """Hand-made attack of four samples: 1 of 4 transfers, 2 of 4 fool the target, 1 of 2 conditionally."""
    y = torch.zeros(4, dtype=torch.long)
    ids = torch.arange(4.0)[:, None]
    surrogate = Table(torch.tensor([0, 0, 0, 0, 1, 1, 0, 1]))
    other = Table(torch.tensor([0, 0, 0, 1, 1, 0, 0, 1]))
    result = run_attack(F, torch.rand(4, 6), y, Attack("fgsm"))
    result = type(result)(ids + 4, result.success, result.health, result.attack)
    matrix = matrix_from_attacks([surrogate], Split(ids, y), [result], targets={"other": other})
    assert (matrix.transferred, matrix.fooled, matrix.eligible) == (((1,),), ((2,),), ((2,),))
    rates = {measure: matrix.estimate("0", "other", measure) for measure in DENOMINATORS}
    assert {name: rate.value for name, rate in rates.items()} == {
        "transfer": 0.25, "attack_success": 0.5, "conditional": 0.5,
    }  # fmt: skip
    assert [rate.samples for rate in rates.values()] == [4, 4, 2]
    for measure, rate in rates.items():
        assert DENOMINATORS[measure] in rate.method


def test_each_surrogate_is_attacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attack serves the whole row; further targets cost no attack."""
    attacked = []

    def counted(model: nn.Module, *args: object, **options: object) -> object:
        attacked.append(model)
        return run_attack(model, *args, **options)

    monkeypatch.setattr(transfer, "run_attack", counted)
    targets = {"f": F, "g": G, "h": random_linear(2)}
    matrix = transfer_matrix({"f": F, "g": G}, cloud(), Attack("fgsm"), targets=targets)
    assert attacked == [F, G]
    assert matrix.table().shape == (2, 3)
    assert len(matrix.health) == 2


@pytest.mark.parametrize("target", [None, 1])
def test_matrix_survives_strict_json(target: int | None) -> None:
    """Counts, names, attack, health and settings come back; the written rates are the computed ones."""
    matrix = transfer_matrix(
        [F, G], cloud(), Attack("pgd", steps=3), target=target, starred=target is not None
    )
    text = json.dumps(matrix.to_json(), allow_nan=False)
    assert TransferMatrix.from_json(json.loads(text)) == matrix
    written = json.loads(text)
    assert written["rate"] == matrix.table().tolist()
    assert written["upper"] == matrix.table(end="upper").tolist()
    assert written["conditional"]["rate"] == matrix.table("conditional").tolist()
    assert written["attack_success"]["denominator"] == "all samples"


def test_matrix_of_a_penalised_attack_survives_json() -> None:
    """CW has no ball and no seed; its matrix is written and read like any."""
    matrix = transfer_matrix([F, G], cloud(20), CarliniWagner(1.0, steps=5))
    assert TransferMatrix.from_json(json.loads(json.dumps(matrix.to_json(), allow_nan=False))) == matrix


def test_undefined_conditional_rate_is_null() -> None:
    """A surrogate that is never fooled has no conditional rate: None, NaN in a table, null in JSON."""
    sturdy = linear([[0, 0], [0, 0]], [0.0, -1.0])
    data = Split(torch.rand(5, 2), torch.zeros(5, dtype=torch.long))
    matrix = transfer_matrix([sturdy], data, Attack("fgsm"))
    assert matrix.estimate("0", "0", "conditional") is None
    assert math.isnan(matrix.table("conditional")[0, 0])
    assert json.loads(json.dumps(matrix.to_json(), allow_nan=False))["conditional"]["rate"] == [[None]]
    assert matrix.estimate("0", "0").value == 0


def test_finite_support_makes_every_entry_exact() -> None:
    """On a finite set all three rates are exact."""
    matrix = transfer_matrix([F, G], cloud(), Attack("fgsm"), support="finite")
    for measure in DENOMINATORS:
        assert matrix.estimate("0", "1", measure).is_exact


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": "sample"}, "support 'finite' or 'population', got 'sample'"),
        ({"confidence": 1.0}, r"confidence in \(0, 1\), got 1.0"),
        ({"target": 3}, r"0\.\.2, got 3"),
        ({"pixel_range": (0.0, 0.5)}, "inside pixel_range"),
    ],
)
def test_bad_options_are_refused_before_the_attack(options: dict, message: str) -> None:
    """Single measurements and matrices refuse alike, before an endless attack."""
    endless = Attack(steps=10**9)
    with pytest.raises(ValueError, match=message):
        measure_transfer(F, G, cloud(), endless, **options)
    with pytest.raises(ValueError, match=message):
        transfer_matrix([F, G], cloud(), endless, **options)


def test_bad_models_and_results_are_refused() -> None:
    """No models, models of different tasks, results of other attacks, unknown names."""
    data = cloud(20)
    attack = Attack("fgsm")
    first, second = (run_attack(model, data.x, data.y, attack) for model in (F, G))
    with pytest.raises(ValueError, match="at least one surrogate, got none"):
        transfer_matrix([], data, attack)
    with pytest.raises(ValueError, match=r"same number of classes, got \[2, 3\]"):
        measure_transfer(F, linear([[0.0] * 6] * 2, [0.0, 0.0]), data, attack)
    with pytest.raises(ValueError, match="results for 0, 1, got them for 0"):
        matrix_from_attacks([F, G], data, [first])
    other = run_attack(G, data.x, data.y, Attack("fgsm", eps=0.2))
    with pytest.raises(ValueError, match=r"one attack for all surrogates, got FGSM, linf eps 0.1 and FGSM"):
        matrix_from_attacks([F, G], data, [first, other])
    with pytest.raises(ValueError, match="same targets"):
        matrix_from_attacks([F, G], data, [first, run_attack(G, data.x, data.y, attack, target=1)])
    with pytest.raises(ValueError, match="shape of x"):
        matrix_from_attacks([F, G], cloud(10), [first, second])
    matrix = matrix_from_attacks([F, G], data, [first, second])
    for names in (("2", "0"), ("0", "2"), ("0", "0", "rate")):
        with pytest.raises(ValueError, match="expected one of"):
            matrix.estimate(*names)
