"""What is read off planted cells, its intervals, and the answers to the claims."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from bounds.estimate import Estimate
from empirical.protocols.slices import RAYS
from empirical.protocols.survival import Survival
from empirical.reproduce.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    UNMEASURED,
    Claim,
    Difference,
    claims_on,
    judge,
)
from empirical.reproduce.items import (
    CONDITIONAL,
    DEFINITION_7,
    ITEMS,
    ON_ITSELF,
    ON_OTHERS,
    WORST,
    Column,
    Row,
    Slice,
    WhiteBox,
)
from empirical.reproduce.plan import make_plans
from empirical.reproduce.printed import printed_numbers
from empirical.reproduce.queue import Store
from empirical.reproduce.readings import Reading, _values, read
from empirical.reproduce.scales import choose_settings

HERE = Column("TRS", "trs")


def exactly(value):
    """A quantity that two seeds agree on."""
    return Reading({seed: np.array([value]) for seed in range(2)}, {})


def row(measure, protocol=None):
    return Row("MNIST", "any", "", protocol or Slice(), measure)


def survival(clean, robust):
    flags = [tuple(mark == "1" for mark in marks) for marks in (clean, robust)]
    return Survival(*flags, "any").to_json()


def test_robust_and_conditional_rates():
    """Of 8 points 6 are right and 3 stay right: 3/8 and 3/6."""
    result = {"survival": survival("11111100", "11100000")}
    values, trials = _values("white-box", [result], row("robust accuracy"), "")
    assert (values.mean(), trials) == (3 / 8, 8)
    values, trials = _values("white-box", [result], row(CONDITIONAL), "")
    assert values.mean() == pytest.approx(0.5)
    assert trials == 6
    # The spread of a ratio: zero where the point is wrong without attack.
    assert values[-2:] == pytest.approx([0.5, 0.5])


def test_worst_of_attacks_is_pointwise():
    results = [{"survival": survival("1111", marks)} for marks in ("1100", "0110")]
    values, _ = _values("white-box", results, row("robust accuracy"), "")
    assert values.tolist() == [0, 1, 0, 0]


def test_black_box_reads_its_own_target():
    result = {"survivals": {"a": survival("1111", "1000"), "b": survival("1111", "1110")}}
    assert _values("black-box", [result], row("robust accuracy"), "b")[0].mean() == 0.75


def test_transfer_reads_diagonal_and_the_rest():
    counts = {"transferred": [[8, 2], [4, 6]], "fooled": [[9, 3], [5, 7]], "eligible": [[9, 9], [9, 9]]}
    attack = {"method": "pgd", "eps": 0.3}
    health = dict.fromkeys(
        ("zero_gradients", "monotone_loss", "unchanged", "black", "out_of_range", "largest_norm"), 0.0
    )
    result = {
        "surrogates": ["0", "1"], "targets": ["0", "1"], "attack": attack, "health": [health, health],
        "mode": "untargeted", "target_label": None, "starred": False, "samples": 10, "support": "population",
        "confidence": 0.95, "counts": counts,
    }  # fmt: skip
    read_off = {
        measure: _values("transfer", [result], row(measure), "")[0].item()
        for measure in (ON_OTHERS, ON_ITSELF, DEFINITION_7)
    }
    assert read_off == pytest.approx({ON_OTHERS: 0.4, ON_ITSELF: 0.8, DEFINITION_7: 0.3})


def test_distances_keep_points_without_gradient_out():
    result = {"distances": [[1.0, 2.0, 3.0, 4.0], None]}
    values, _ = _values("slices", [result], row(RAYS[2]), "")
    assert values[0] == 3.0
    assert math.isnan(values[1])
    assert Reading({0: values}, {0: 0}).estimate().value == 3.0


def test_interval_adds_seeds_and_points_in_quadrature():
    rates = {0: 0.5, 1: 0.6, 2: 0.7}
    flags = {seed: (np.arange(100) < 100 * rate).astype(float) for seed, rate in rates.items()}
    found = Reading(flags, dict.fromkeys(flags, 100), shares=True).estimate()
    seeds = t.ppf(0.975, 2) * np.std(list(rates.values()), ddof=1) / math.sqrt(3)
    points = Estimate.proportion(60, 100)
    assert found.value == pytest.approx(0.6)
    assert found.lower == pytest.approx(0.6 - math.hypot(seeds, 0.6 - points.lower))
    assert found.upper == pytest.approx(min(1.0, 0.6 + math.hypot(seeds, points.upper - 0.6)))


def test_one_seed_covers_the_points_alone():
    found = Reading({0: np.array([1.0] * 30 + [0.0] * 10)}, {0: 40}, shares=True).estimate()
    one = Estimate.proportion(30, 40)
    assert (found.lower, found.upper) == pytest.approx((one.lower, one.upper))
    assert "one seed" in found.method


def test_one_seed_says_nothing_where_points_are_unknown():
    """A difference of two transfer matrices, or a cosine: neither seeds nor points give it an interval."""
    found = Reading({0: np.array([0.4])}, {0: 0}).estimate()
    assert (found.lower, found.value, found.upper) == (-math.inf, 0.4, math.inf)
    where = row(ON_OTHERS)
    difference = Difference("A", ((1.0, where, HERE),))
    verdict = judge(
        Claim("A is positive", "here", (difference,)), lambda row, column: Reading({0: np.ones(1)}, {})
    )
    assert verdict.answer == UNDECIDED


def test_no_difference_on_few_points_is_no_proof_of_none():
    """Two methods that agree on 12 points may differ on a quarter of all."""
    same = Reading({0: np.zeros(12)}, {0: 12}, shares=True)
    found = (same + same * -1).estimate()
    assert found.value == 0
    assert found.upper == -found.lower == pytest.approx(-math.log(0.025) / 12)


def test_a_paired_difference_is_sharper_than_two_rates():
    """The same points serve both methods."""
    rng = np.random.default_rng(0)
    first = rng.random((3, 400)) < 0.5
    second = first.copy()
    second[:, :40] = False
    a, b = (
        Reading(dict(enumerate(each.astype(float))), dict.fromkeys(range(3), 400), shares=True)
        for each in (first, second)
    )
    found = (a + b * -1).estimate()
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.lower > 0
    assert a.estimate().lower < b.estimate().upper


def test_differences_use_common_seeds():
    a = Reading({0: np.ones(2), 1: np.ones(2)}, {}, shares=True)
    b = Reading({1: np.zeros(2), 2: np.zeros(2)}, {}, shares=True)
    assert list((a + b).values) == [1]


@pytest.mark.parametrize("item", [item for item in ITEMS.values() if item.tables], ids=lambda item: item.name)
def test_the_papers_own_numbers_pass_every_claim(item):
    """Our thresholds do not make of a claim something that the paper's table does not show."""
    printed = {place: number for table in item.tables for place, number in printed_numbers(table).items()}

    def look(row, column):
        number = printed[row.dataset, row.label, row.parameter, column.label]
        return exactly(number.percent / 100)

    claims = claims_on(item)
    assert bool(claims) == (item.name != "figure-3")
    for claim in claims:
        assert judge(claim, look).answer == HOLDS, claim.words


def test_reversed_numbers_fail_the_claims():
    """With TRS and Cos-only exchanged, their claim turns round, and the others are undecided at a tie."""
    item = ITEMS["table-1"]
    printed = printed_numbers("table-1")
    exchange = {"TRS": "Cos-only", "Cos-only": "TRS"}

    def look(row, column):
        label = exchange.get(column.label, column.label)
        return exactly(printed[row.dataset, row.label, row.parameter, label].percent / 100)

    answers = {claim.words: judge(claim, look).answer for claim in claims_on(item)}
    assert [answer for words, answer in answers.items() if "Cos-only is much weaker" in words] == [FAILS]
    assert [answer for words, answer in answers.items() if "most robust" in words] == [FAILS, FAILS]
    assert [answer for words, answer in answers.items() if "GAL loses" in words] == [HOLDS]


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ([0.9, 0.91, 0.92], [0.5, 0.51, 0.52], HOLDS),
        ([0.5, 0.51, 0.52], [0.9, 0.91, 0.92], FAILS),
        ([0.9, 0.91, 0.92], [0.85, 0.86, 0.87], FAILS),  # positive, but not by what is asked for
        ([0.9, 0.5, 0.7], [0.4, 0.6, 0.5], UNDECIDED),
        ([0.9, 0.91, 0.92], None, UNMEASURED),
    ],
)
def test_answers(first, second, answer):
    """A claim that asks for 0.1."""
    columns = Column("A", "trs"), Column("B", "gal")
    where = row("robust accuracy")
    rates = dict(zip(columns, (first, second), strict=True))

    def look(row, column):
        found = rates[column]
        return found and Reading({seed: np.array([rate]) for seed, rate in enumerate(found)}, {})

    difference = Difference("A - B", ((1.0, where, columns[0]), (-1.0, where, columns[1])), beyond=0.1)
    verdict = judge(Claim("A is better than B by 0.1", "here", (difference,)), look)
    assert verdict.answer == answer
    assert (verdict.decisive is None) == (answer == UNMEASURED)


def test_every_difference_counts():
    """One that is clear does not make up for one that is not, and one that is clearly wrong decides."""
    rates = {"clear": [0.8, 0.8], "open": [0.9, -0.7], "wrong": [-0.8, -0.8]}

    def look(row, column):
        return Reading({seed: np.array([rate]) for seed, rate in enumerate(rates[column.label])}, {})

    def answer(*names):
        where = row("robust accuracy")
        each = (Difference(name, ((1.0, where, Column(name, "trs")),)) for name in names)
        return judge(Claim("all", "here", tuple(each)), look).answer

    assert answer("clear") == HOLDS
    assert answer("clear", "open") == answer("open", "clear") == UNDECIDED
    assert answer("clear", "open", "wrong") == FAILS


def test_the_answer_names_the_difference_that_decides():
    a, b = (
        Difference(name, ((1.0, row("robust accuracy"), Column(name, "trs")),)) for name in ("small", "large")
    )
    rates = {"small": 0.1, "large": 0.9}

    def look(row, column):
        return exactly(rates[column.label])

    verdict = judge(Claim("both", "here", (b, a)), look)
    assert verdict.decisive[0].words == "small"


def test_claims_leave_the_worst_case_out():
    """The paper speaks of its own rows."""
    for item in ITEMS.values():
        for claim in claims_on(item):
            for difference in claim.differences:
                assert all(row.label != WORST for _, row, _ in difference.terms)


def test_reading_finished_cells_only(tmp_path):
    """Seeds without a result are left out; without any there is nothing to read."""
    (plan,) = make_plans([ITEMS["table-1"]], choose_settings("smoke", None), 3)
    store = Store(tmp_path)
    where = plan.item.rows[0]
    assert isinstance(where.protocol, WhiteBox)
    assert read(plan, store, where, HERE) is None
    for seed, marks in ((0, "1100"), (2, "1000")):
        (cell,) = plan.sources(where, HERE, seed)
        record = {"result": {"survival": survival("1111", marks)}, "seconds": {}, "environment": {}}
        store.save(cell, record)
    found = read(plan, store, where, HERE)
    assert found.by_seed == {0: 0.5, 2: 0.25}
    other = replace(plan.item.rows[1])
    assert read(plan, store, other, HERE) is None
