"""Survival: the three accuracies, the worst case, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from empirical.protocols.survival import Survival, worst_case

CLEAN = (True, True, True, True, False)


def survival(*robust: bool, attacks: str = "A", **options: object) -> Survival:
    return Survival(CLEAN, robust, attacks, **options)


def test_three_rates_have_three_numerators_and_denominators() -> None:
    """4 of 5 clean, 2 of 5 robust, 2 of 4 conditionally; intervals at the confidence asked for."""
    found = survival(True, True, False, False, False, confidence=0.9)
    assert (found.clean_accuracy.value, found.clean_accuracy.samples) == (0.8, 5)
    assert (found.robust_accuracy.value, found.robust_accuracy.samples) == (0.4, 5)
    assert (found.conditional_robust_accuracy.value, found.conditional_robust_accuracy.samples) == (0.5, 4)
    interval = binomtest(2, 4).proportion_ci(0.9, method="exact")
    conditional = found.conditional_robust_accuracy
    assert (conditional.lower, conditional.upper) == pytest.approx((interval.low, interval.high))
    assert survival(*CLEAN, support="finite").robust_accuracy.is_exact


def test_a_model_that_is_never_right_has_no_conditional_rate() -> None:
    """None, and null in JSON."""
    nothing = Survival((False, False), (False, False), "A")
    assert nothing.conditional_robust_accuracy is None
    assert nothing.to_json()["conditional_robust_accuracy"] is None
    assert nothing.robust_accuracy.value == 0


def test_worst_case_is_pointwise() -> None:
    """Each attack fools another sample: together both."""
    first, second = (
        survival(True, False, True, True, False, attacks="A"),
        survival(False, True, True, True, False, attacks="B"),
    )
    both = worst_case([first, second])
    assert both.robust == (False, False, True, True, False)
    assert both.robust_accuracy.value < min(first.robust_accuracy.value, second.robust_accuracy.value)
    assert both.attacks == "the worst of A; B"
    assert worst_case([first]).robust == first.robust


@given(flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_json_round_trip(flags: list[tuple[bool, bool]]) -> None:
    """What to_json writes, from_json reads, strictly."""
    found = Survival(
        tuple(clean for clean, _ in flags), tuple(clean and robust for clean, robust in flags), "A"
    )
    assert Survival.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_inconsistent_survivals_are_refused() -> None:
    """One line each."""
    with pytest.raises(ValueError, match="as many clean as robust samples, got 5 and 1"):
        survival(True)
    with pytest.raises(ValueError, match="got 0 and 0"):
        Survival((), (), "A")
    with pytest.raises(ValueError, match="right on clean input"):
        survival(True, True, True, True, True)
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\), got 1.5"):
        survival(*CLEAN, confidence=1.5)
    with pytest.raises(ValueError, match="at least one attack"):
        worst_case([])
    with pytest.raises(ValueError, match="different clean predictions"):
        worst_case([survival(*CLEAN), Survival((True,) * 5, CLEAN, "B")])
    with pytest.raises(ValueError, match="one support and confidence"):
        worst_case([survival(*CLEAN), survival(*CLEAN, confidence=0.9)])
