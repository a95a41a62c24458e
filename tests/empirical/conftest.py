"""Comparisons made by hand: every number in them is known, and no model is trained."""

from itertools import permutations

import pytest

from bounds import STATEMENTS, Estimate, evaluate
from empirical.attacks import AttackHealth
from empirical.comparison.frontier import frontiers
from empirical.comparison.judge import judge
from empirical.comparison.results import Comparison, EnsembleResult, Settings
from empirical.comparison.rows import JointRow, Row

UNTARGETED = ("theorem-2", "theorem-4", "theorem-4-repaired", "refined-r3-untargeted")
TARGETED = ("theorem-1", "theorem-3", "theorem-3-repaired", "refined-r3", "refined-cantelli")
WORLD = {
    "alpha": 0.2, "eta_F": 0.02, "eta_G": 0.03, "c_F": 5.0, "c_G": 3.0, "S_lower": 0.1,
    "xi_F": 0.02, "xi_G": 0.03, "l_min": 1.0, "B": 1.0, "S_upper": 0.5, "beta": 2.0,
    "right_rate": 0.9, "margin_mean": 5.0, "margin_deviation": 1.0,
}  # fmt: skip


@pytest.fixture
def make_row():
    """A row of a pair, a statement and a radius; keywords change single quantities."""

    def make(statement, eps=0.1, pair=(0, 1), measured=0.01, attack="pgd", smoothness="segment", ensemble="a",
             norm="l2", **changes):  # fmt: skip
        known = {**WORLD, "eps": eps, **changes}
        quantities = {
            name: value if isinstance(value, Estimate) else Estimate.exact(value)
            for name in STATEMENTS[statement].names
            for value in (known[name],)
        }
        bound = evaluate(statement, quantities)
        measured = measured if isinstance(measured, Estimate) else Estimate.exact(measured)
        slack, verdict, reason = judge(bound, measured)
        mode = "targeted" if statement in TARGETED else "untargeted"
        return Row(ensemble, *pair, mode, norm, eps, attack, statement, smoothness, bound.to_json(),
                   quantities, measured, slack, verdict, reason)  # fmt: skip

    return make


@pytest.fixture
def make_joint():
    """A certificate about two members: R7, what was found, R2."""

    def make(lower, found, upper, eps=0.1, models=(0, 1), mode="untargeted", ensemble="a"):
        rate = Estimate.exact(found)
        return JointRow(
            ensemble, models, 2, mode, "l2", eps, Estimate.exact(0.95), Estimate(upper, lower, upper),
            Estimate.exact(lower), rate, {"pgd": rate}, (rate, rate), upper - found,
            "consistent", "certified",
        )  # fmt: skip

    return make


@pytest.fixture
def make_comparison(make_row, make_joint):
    """Ensembles with all statements on all pairs, at three radii, with certificates."""

    def make(names=("a", "b"), members=3, support="finite", joint=True, kinks=(), **changes):
        ensembles = []
        for place, name in enumerate(names):
            rows, certificates = [], []
            for eps in (0.02, 0.1, 0.4):
                for pair in permutations(range(members), 2):
                    for statement in (*UNTARGETED, *TARGETED):
                        for stand_in, beta in (("segment", 2.0 + place), ("remainder", 1.0 + place)):
                            world = {"beta": beta, **changes}
                            rows.append(
                                make_row(
                                    statement,
                                    eps,
                                    pair,
                                    eps / 100,
                                    smoothness=stand_in,
                                    ensemble=name,
                                    **world,
                                )
                            )
                    if joint and pair[0] < pair[1]:
                        certificates += [
                            make_joint(eps / 10, eps / 8, eps / 5, eps, pair, mode, name)
                            for mode in ("untargeted", "targeted")
                        ]
            ensembles.append(_ensemble(name, members, kinks, tuple(rows), tuple(certificates)))
        settings = Settings("digits", 100, 10, (0.02, 0.1, 0.4), (), 0, {"pgd": {"steps": 50, "eps": None}},
                            (0.1,), support, 0.95, 0)  # fmt: skip
        return Comparison(settings, {"python": "3", "torch": "2"}, tuple(ensembles))

    return make


def _ensemble(name, members, kinks, rows, joint):
    rate = Estimate.proportion(90, 100, confidence=0.95)
    smoothness = Estimate(20.0, 5.0, 20.0)
    benign = {
        "similarity_lower": -0.1,
        "similarity_upper": 0.5,
        "gradient_norm": 1.0,
        "smoothness": smoothness.to_json(),
    }
    health = AttackHealth(zero_gradients=0.01, monotone_loss=1.0, unchanged=0.0, black=0.0, out_of_range=0.0,
                          largest_norm=0.1)  # fmt: skip
    robustness = ({"attack": {"eps": 0.1}, "estimate": rate, "health": health.to_json()},)
    return EnsembleResult(name, members, rate, (rate,) * members, kinks, robustness, benign, (), rows, joint,
                          frontiers(rows, joint, members, {}), {"digest": "0"})  # fmt: skip
