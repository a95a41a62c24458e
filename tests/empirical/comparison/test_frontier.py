"""Frontiers: gaps end them, every pair and the best pair are kept apart, and bisection finds the crossing."""

import pytest

from bounds import Estimate, evaluate
from empirical.comparison.frontier import R2, R2_LEVEL, frontiers
from empirical.comparison.rows import JointRow, Row

GRID = (0.1, 0.2, 0.4)
# With these numbers Theorem 4 as printed is 0.1 / (2 - 4 eps - eps^2).
KNOWN = {"xi_F": 0.05, "xi_G": 0.05, "l_min": 2.0, "B": 2.0, "S_upper": 1.0, "beta": 1.0}


def row(eps, surrogate=0, target=1, attack="pgd", **changes):
    quantities = {name: Estimate.exact(value) for name, value in (KNOWN | changes | {"eps": eps}).items()}
    bound = evaluate("theorem-4", quantities)
    return Row(
        ensemble="any", surrogate=surrogate, target=target, mode="untargeted", norm="l2", eps=eps,
        attack=attack, statement="theorem-4", smoothness="remainder", bound=bound.to_json(),
        quantities=quantities, measured=Estimate.exact(0.0), slack=None, verdict="consistent", reason="",
    )  # fmt: skip


def joint(eps, rate, models=(0, 1), together=2):
    known = Estimate.exact(rate)
    return JointRow(
        ensemble="any", models=models, together=together, mode="untargeted", norm="l2", eps=eps,
        eligible=Estimate.exact(1.0), certified=known, must_transfer=Estimate.exact(0.0),
        found=Estimate.exact(0.0), attacks={"pgd": Estimate.exact(0.0)}, single=(known,) * len(models),
        slack=rate, verdict="consistent", reason="",
    )  # fmt: skip


def test_every_pair_the_best_pair_and_the_crossing_between_two_radii():
    rows = [row(eps) for eps in (*GRID, 0.6)] + [row(eps, 1, 0, B=6.0) for eps in (*GRID, 0.6)]
    (found,) = frontiers(rows, [], 2, {})
    # 0.1 = 2 - 2 B eps - eps^2 at eps = .4485 for B = 2; with B = 6 the bound fails from .16 on.
    assert (found.guaranteed, found.guaranteed_best) == (0.1, 0.4)
    assert found.refined == pytest.approx(0.42899, abs=0.2 / 32)
    assert found.refined < 0.42899


def test_one_attack_under_which_a_pair_is_not_informed_is_enough():
    rows = [row(eps) for eps in GRID] + [row(eps, attack="joint", beta=20.0 * eps) for eps in GRID]
    (found,) = frontiers(rows, [], 2, {})
    assert found.guaranteed == found.guaranteed_best == 0.2
    # Between .2 and .4 the larger beta, 8, counts: 0.1 = 2 - 4 eps - 8 eps^2 at eps = .2977.
    assert found.refined == pytest.approx(0.2977, abs=0.2 / 32)


def test_a_gap_ends_the_frontier():
    (found,) = frontiers([row(0.1), row(0.2, beta=1e3), row(0.4)], [], 2, {})
    assert found.guaranteed == 0.1


@pytest.mark.parametrize(("level_at", "refined"), [(0.65, 0.6), (0.5, 0.4)])
def test_certificates_are_tried_between_the_radii_of_the_grid(level_at, refined):
    asked = []

    def certify(eps):
        asked.append(eps)
        return {((0, 1), 2): eps + R2_LEVEL - level_at, ((0,), 1): 1.0}

    (found,) = frontiers([], [joint(eps, eps) for eps in (0.2, 0.4, 0.8)], 2, {("untargeted", "l2"): certify})
    assert (found.statement, found.level) == (R2, R2_LEVEL)
    assert found.guaranteed == 0.4
    assert found.refined == pytest.approx(refined)
    assert asked == pytest.approx([0.6])


def test_what_the_grid_does_not_bracket_is_not_refined():
    never = frontiers([], [joint(0.2, 0.7)], 2, {("untargeted", "l2"): lambda eps: {}})
    always = frontiers([], [joint(0.2, 0.1)], 2, {("untargeted", "l2"): lambda eps: {}})
    assert [(each.guaranteed, each.refined) for each in (*never, *always)] == [(None, None), (0.2, None)]
