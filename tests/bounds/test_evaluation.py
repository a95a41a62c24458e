"""`evaluate`: hypotheses first, then the value, its guaranteed end and what stands behind it."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bounds import STATEMENTS, Estimate, Grade, Sense, Status, evaluate

THEOREM_3 = {"xi_F": 0.1, "xi_G": 0.2, "l_min": 5.0, "eps": 0.1, "B": 1.0, "S_upper": 0.0, "beta": 2.0}
THEOREM_2 = {
    "alpha": 0.1,
    "eta_F": 0.05,
    "eta_G": 0.02,
    "eps": 1.0,
    "S_lower": 0.999,
    "c_F": 0.9,
    "c_G": -0.5,
}
THEOREM_1 = {
    "alpha": 0.1,
    "eta_F": 0.05,
    "eta_G": 0.02,
    "eps": 1.0,
    "S_lower": 0.999,
    "c_F": -0.9,
    "c_G": 0.5,
}


def with_(quantities, **changes):
    return {**quantities, **changes}


def test_exact_numbers_are_certified():
    bound = evaluate("theorem-3", THEOREM_3)
    expected = 0.3 / (5 - 0.1 * (1 + math.sqrt(0.5)) - 2 * 0.01)
    assert bound.value == pytest.approx(expected, rel=1e-14)
    assert bound.value <= bound.guaranteed == pytest.approx(expected, rel=1e-12)
    assert (bound.status, bound.grade) == (Status.INFORMATIVE, Grade.CERTIFIED)
    assert (bound.failure_probability, bound.unmet, bound.gaps) == (0.0, (), ())
    assert bound.statement is STATEMENTS["theorem-3"]


def test_a_lower_bound_is_guaranteed_from_below():
    bound = evaluate("theorem-2", THEOREM_2)
    assert bound.guaranteed <= bound.value
    assert bound.guaranteed == pytest.approx(bound.value, rel=1e-12)
    assert bound.status is Status.INFORMATIVE


def test_a_statement_object_works_like_its_id():
    assert evaluate(STATEMENTS["theorem-3"], THEOREM_3) == evaluate("theorem-3", THEOREM_3)


@pytest.mark.parametrize(
    ("key", "quantities", "words"),
    [
        ("theorem-1", with_(THEOREM_1, c_G=-1.0), "c_G + eps is positive: the margin is 0, needed > 0"),
        ("theorem-2", with_(THEOREM_2, c_G=8.0), "denominator eps - c_G is positive: the margin is -7"),
        ("theorem-3", with_(THEOREM_3, B=100.0), "beta eps^2 is positive: the margin is -12.09"),
        ("theorem-4", with_(THEOREM_3, xi_F=-0.5), "risk of F is >= 0: the margin is -0.5, needed >= 0"),
        ("lemma-8", {"delta_norm": 1.0, "S_upper": 0.3, "cosine": 0.3}, "x . y < S: the margin is 0"),
        ("refined-r6", with_(THEOREM_2, c_F=-0.9), "exceeds c_G"),
    ],
)
def test_a_failed_hypothesis_comes_first_and_is_named_with_its_numbers(key, quantities, words):
    bound = evaluate(key, quantities)
    assert bound.status is Status.INAPPLICABLE
    assert (bound.value, bound.guaranteed, bound.terms) == (None, None, {})
    assert bound.grade is Grade.HEURISTIC
    assert words in " ".join(bound.unmet)
    assert "c_G = " in bound.unmet[0] or key not in ("theorem-1", "theorem-2")


@pytest.mark.parametrize("key", ["theorem-1", "theorem-1-repaired", "theorem-2", "refined-r6"])
def test_an_infinite_beta_inside_the_constants_makes_it_inapplicable(key):
    quantities = THEOREM_2 if "2" in key else THEOREM_1
    infinite = Estimate(math.inf, 3.0, math.inf, method="kinks: ReLU")
    bound = evaluate(key, with_(quantities, beta=infinite))
    assert bound.unmet == ("beta is infinite (kinks: ReLU): the statement needs a finite one",)
    assert evaluate("theorem-2", with_(THEOREM_2, beta=1.0)).value is not None


def test_an_infinite_beta_makes_an_upper_bound_inapplicable():
    bound = evaluate("theorem-4", with_(THEOREM_3, beta=math.inf))
    assert bound.status is Status.INAPPLICABLE
    assert "beta is infinite" in bound.unmet[0]


def test_informative_means_better_than_trivial():
    assert evaluate("theorem-3", with_(THEOREM_3, xi_F=6.0)).status is Status.VACUOUS
    assert evaluate("theorem-2", with_(THEOREM_2, S_lower=-1.0)).status is Status.VACUOUS
    longer = {"delta_norm": 2.0, "cosine": 0.0}
    assert evaluate("lemma-8-repaired", with_(longer, S_upper=0.5)).status is Status.INFORMATIVE
    assert evaluate("lemma-8-repaired", with_(longer, S_upper=1.0)).status is Status.VACUOUS
    implied = evaluate("lemma-7", {"d_y": 0.9, "c": 0.1, "eps": 1.0, "cosine": 0.9})
    assert implied.status is Status.INFORMATIVE
    assert implied.value == pytest.approx(0.9 - 0.1 - math.sqrt(0.2))


def test_the_guaranteed_end_has_a_status_of_its_own():
    """A value below 1 whose guaranteed end is above 1 must not pass for a guarantee."""
    bound = evaluate("theorem-3", with_(THEOREM_3, xi_F=Estimate(0.1, 0.0, 20.0)))
    assert bound.status is Status.INFORMATIVE
    assert bound.guaranteed > 1
    assert bound.guaranteed_status is Status.VACUOUS
    unknown = evaluate("theorem-3", with_(THEOREM_3, B=Estimate.at_least(1.0, "sampled")))
    assert unknown.guaranteed_status is Status.INAPPLICABLE


def test_a_one_sided_estimate_leaves_only_a_heuristic_value():
    bound = evaluate("theorem-3", with_(THEOREM_3, beta=Estimate.at_least(2.0, "sampled")))
    assert bound.value == evaluate("theorem-3", THEOREM_3).value
    assert (bound.guaranteed, bound.grade) == (None, Grade.HEURISTIC)
    assert bound.gaps == ("beta has no upper end",)
    assert bound.unmet == ()


def test_the_end_that_does_not_matter_may_be_infinite():
    bound = evaluate("theorem-3", with_(THEOREM_3, l_min=Estimate.at_least(5.0, "certified")))
    assert bound.grade is Grade.CERTIFIED
    assert bound.guaranteed == pytest.approx(bound.value)


def test_a_cosine_seen_from_one_side_is_still_a_cosine():
    """A sampled supremum of cosines is anything up to 1: the guarantee uses 1, and stays finite."""
    bound = evaluate("theorem-3", with_(THEOREM_3, S_upper=Estimate.at_least(0.0, "sampled")))
    worst = evaluate("theorem-3", with_(THEOREM_3, S_upper=1.0))
    assert bound.guaranteed == worst.guaranteed
    assert bound.grade is Grade.CERTIFIED


def test_a_hypothesis_that_may_fail_within_the_intervals_costs_the_guarantee():
    bound = evaluate("theorem-3", with_(THEOREM_3, l_min=Estimate(5.0, 0.1, 5.0)))
    assert bound.value is not None
    assert (bound.guaranteed, bound.grade) == (None, Grade.HEURISTIC)
    assert "may fail within the intervals" in bound.gaps[0]


def test_failure_probabilities_add_up():
    quantities = with_(
        THEOREM_3,
        xi_F=Estimate(0.1, 0.0, 0.2, 0.05),
        xi_G=Estimate(0.2, 0.1, 0.3, 0.025),
        l_min=Estimate.exact(5.0),
    )
    bound = evaluate("theorem-3", quantities)
    assert bound.failure_probability == pytest.approx(0.075)
    assert bound.grade is Grade.CONFIDENT
    assert bound.guaranteed == evaluate("theorem-3", with_(THEOREM_3, xi_F=0.2, xi_G=0.3)).guaranteed


def test_one_estimate_used_twice_fails_once():
    shared = Estimate(0.1, 0.0, 0.2, 0.05)
    assert evaluate("theorem-3", with_(THEOREM_3, xi_F=shared, xi_G=shared)).failure_probability == 0.05


def test_certain_failure_leaves_no_guarantee():
    doubtful = {name: Estimate(0.1, 0.0, 0.2, 0.6) for name in ("xi_F", "xi_G")}
    bound = evaluate("theorem-3", with_(THEOREM_3, **doubtful))
    assert (bound.failure_probability, bound.guaranteed, bound.grade) == (1.0, None, Grade.HEURISTIC)
    assert bound.gaps == ("the failure probabilities add up to 1",)


def test_quantities_of_other_statements_do_not_count():
    assert evaluate("theorem-3", with_(THEOREM_3, rho=Estimate(0.5, 0, 1, 0.5))) == evaluate(
        "theorem-3", THEOREM_3
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xi_F": math.nan}, "expected a real number for xi_F, got NaN"),
        ({"eps": -0.1}, "expected a number >= 0 for eps, got -0.1"),
        ({"beta": -1}, "expected a number >= 0 for beta, got -1"),
        ({"B": -math.inf}, "for B, got -inf"),
        ({"S_upper": 1.01}, r"expected a cosine in \[-1, 1\] for S_upper, got 1.01"),
        ({"S_upper": Estimate(-1.5, -2.0, 1.0)}, r"expected a cosine in \[-1, 1\] for S_upper, got -1.5"),
        ({"gamma": 1.0}, "unknown gamma; expected xi_F"),
    ],
)
def test_bad_quantities_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        evaluate("theorem-3", with_(THEOREM_3, **changes))


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="got 'theorem-9'"):
        evaluate("theorem-9", THEOREM_3)
    with pytest.raises(ValueError, match="theorem-3: missing xi_F, B"):
        evaluate("theorem-3", {k: v for k, v in THEOREM_3.items() if k not in ("xi_F", "B")})
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\] for alpha, got 1.5"):
        evaluate("theorem-2", with_(THEOREM_2, alpha=1.5))
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\] for eps, got 8"):
        evaluate("lemma-5", {"eps": 8.0, "rho": 0.1})
    with pytest.raises(ValueError, match=r"expected an integer >= 2 for N, got 2\.5"):
        evaluate(
            "refined-r5",
            {"N": 2.5, "xi_sum": 0.1, "l_min": 5.0, "eps": 0.1, "B": 1.0, "S_upper": 0.0, "beta": 0.0},
        )
    with pytest.raises(TypeError, match="expected a number or an Estimate for xi_F, got '1'"):
        evaluate("theorem-3", with_(THEOREM_3, xi_F="1"))
    with pytest.raises(TypeError, match="for xi_F, got True"):
        evaluate("theorem-3", with_(THEOREM_3, xi_F=True))


def test_numpy_numbers_count_as_numbers():
    assert evaluate("theorem-3", with_(THEOREM_3, xi_F=np.float64(0.1))) == evaluate("theorem-3", THEOREM_3)
    assert evaluate("theorem-3", with_(THEOREM_3, B=np.int64(1))) == evaluate("theorem-3", THEOREM_3)


def test_interval_outside_the_range_is_a_gap():
    bound = evaluate("theorem-3", with_(THEOREM_3, S_upper=Estimate(1.0, 1.5, 2.0)))
    assert bound.gaps == ("the interval of S_upper lies outside its range",)


def test_json_is_strict():
    for beta in (2.0, math.inf, Estimate.at_least(2.0, "sampled")):
        described = evaluate("theorem-3", with_(THEOREM_3, beta=beta)).to_json()
        assert json.loads(json.dumps(described, allow_nan=False)) == described
        assert described["statement"] == "theorem-3"
    overflow = evaluate("theorem-3", with_(THEOREM_3, xi_F=1e308, l_min=1e-300, eps=0.0)).to_json()
    assert (overflow["value"], overflow["guaranteed"]) == ("inf", None)
    json.dumps(overflow, allow_nan=False)


@st.composite
def interval(draw, low, high):
    ends = sorted((draw(st.floats(low, high)), draw(st.floats(low, high))))
    share = draw(st.floats(0, 1))
    return Estimate(min(max(ends[0] + share * (ends[1] - ends[0]), ends[0]), ends[1]), *ends)


PROBABILITY, COSINE, LENGTH, NUMBER = interval(0, 1), interval(-1, 1), interval(0, 2), interval(-3, 3)
EFFECTIVE = {"alpha": PROBABILITY, "eta_F": PROBABILITY, "eta_G": PROBABILITY}
GAPS = {**EFFECTIVE, "eps": LENGTH, "S_lower": COSINE, "c_F": NUMBER, "c_G": NUMBER}
BALL = {"eps": LENGTH, "B": LENGTH, "S_upper": COSINE, "beta": LENGTH}
RISKS = {"xi_F": LENGTH, "xi_G": LENGTH}
BOXES = {
    "theorem-1": GAPS,
    "theorem-2": GAPS,
    "theorem-3": {**RISKS, **BALL, "l_min": interval(3, 9)},
    "refined-r3-untargeted": {**RISKS, **BALL, "l_min": interval(3, 9)},
    "refined-r4": {
        **RISKS,
        "weight": PROBABILITY,
        "l_min_F": interval(3, 9),
        "l_min_G": interval(2, 5),
        "eps": LENGTH,
        "mixed_gradient": LENGTH,
        "beta": LENGTH,
    },
    "refined-cantelli": {
        **BALL,
        "right_rate": PROBABILITY,
        "margin_mean": interval(5, 9),
        "margin_deviation": LENGTH,
    },
    "lemma-7-angular": {
        "d_y": interval(-0.5, 1),
        "c": interval(-9, -7),
        "eps": interval(1, 2),
        "cosine": COSINE,
    },
    "refined-r8": {"eps": LENGTH, "a": interval(0, 1), "b": interval(1, 2), "cosine": interval(-1, 0.9)},
}


@pytest.mark.parametrize("key", BOXES)
@given(data=st.data())
def test_no_point_of_the_box_is_worse_than_the_guaranteed_end(key, data):
    quantities = {name: data.draw(estimate, label=name) for name, estimate in BOXES[key].items()}
    bound = evaluate(key, quantities)
    assume(bound.guaranteed is not None)
    statement, rng = STATEMENTS[key], np.random.default_rng(0)
    points = {
        name: np.clip(
            e.lower + rng.choice([0, 1, *rng.random(4)], 400) * (e.upper - e.lower), e.lower, e.upper
        )
        for name, e in quantities.items()
    }
    values = statement.formula(**points)
    assert statement.applicable(**points).all()
    slack = 1e-9 * (1 + np.abs(values).max())
    if statement.sense is Sense.UPPER:
        assert values.max() <= bound.guaranteed + slack
    else:
        assert values.min() >= bound.guaranteed - slack


@pytest.mark.parametrize("key", ["theorem-1", "theorem-2", "theorem-3"])
def test_the_guaranteed_end_is_reached_at_a_corner(key):
    """The worst case is no looser than the worst corner of the box: monotonicity, not a loose enclosure."""
    base = {"theorem-1": THEOREM_1, "theorem-2": THEOREM_2, "theorem-3": THEOREM_3}[key]
    ranges = {name: (v, v) if name == "eps" else (v - 0.001 * abs(v), v) for name, v in base.items()}
    bound = evaluate(key, {name: Estimate(high, low, high) for name, (low, high) in ranges.items()})
    grid = np.meshgrid(*ranges.values())
    corners = STATEMENTS[key](**dict(zip(ranges, map(np.ravel, grid), strict=True)))
    worst = corners.max() if key == "theorem-3" else corners.min()
    assert bound.guaranteed == pytest.approx(worst, rel=1e-11)
