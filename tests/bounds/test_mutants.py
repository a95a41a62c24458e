"""Plausible wrong versions of the bounds, each shown false by an exact world on which the right one holds."""

import math

import numpy as np
import pytest

from bounds import evaluate, families, transfer_certificate
from bounds.worlds import LocalQuadratics


def r_star(q, factor):
    return 2 * q["eps"] * q["B"] * factor + q["beta"] * q["eps"] ** 2


def r_printed(q, h):
    return q["eps"] * q["B"] * (1 + h) + q["beta"] * q["eps"] ** 2


def half_angle(q):
    return math.sqrt((1 + q["S_upper"]) / 2)


def sum_bound(q, drop):
    assert q["l_min"] > drop
    return (q["xi_F"] + q["xi_G"]) / (2 * (q["l_min"] - drop))


def printed_bound(q, drop):
    assert q["l_min"] > drop
    return (q["xi_F"] + q["xi_G"]) / (q["l_min"] - drop)


R3_MUTANTS = {
    "h dropped": (0.9, 0.0, lambda q: sum_bound(q, r_star(q, 0.5))),
    "h replaced by S": (0.0, 0.0, lambda q: sum_bound(q, r_star(q, max(q["S_upper"], 0.5)))),
    "half of beta": (0.0, 0.7, lambda q: sum_bound(q, r_star({**q, "beta": q["beta"] / 2}, half_angle(q)))),
    "half of eps": (0.0, 0.0, lambda q: sum_bound(q, r_star({**q, "eps": q["eps"] / 2}, half_angle(q)))),
    "half of B": (0.0, 0.0, lambda q: sum_bound(q, r_star({**q, "B": q["B"] / 2}, half_angle(q)))),
    "one risk only": (
        0.0,
        0.0,
        lambda q: sum_bound({**q, "xi_G": 0.0}, r_star(q, half_angle(q))),
    ),
}


@pytest.mark.parametrize("mutant", R3_MUTANTS)
def test_sharp_theorem_3_has_no_slack_for(mutant):
    similarity, beta, formula = R3_MUTANTS[mutant]
    world = families.theorem_3_sharp(similarity, beta=beta)
    q, truth = world.quantities("refined-r3"), world.subject("refined-r3")
    assert formula(q) < truth - 0.01
    assert sum_bound(q, r_star(q, max(half_angle(q), 0.5))) >= truth


def test_the_floor_of_one_half_is_needed_below_minus_one_half():
    world = families.theorem_3_opposed()
    q = world.quantities("refined-r3")
    assert sum_bound(q, r_star(q, half_angle(q))) < 0.95
    assert sum_bound(q, r_star(q, 0.5)) >= world.subject("refined-r3") == 1.0


PRINTED_MUTANTS = {
    "h dropped": (1.0, 0.0, lambda q: printed_bound(q, r_printed(q, 0.0))),
    "h replaced by S": (0.0, 0.0, lambda q: printed_bound(q, r_printed(q, q["S_upper"]))),
    "half of beta": (
        1.0,
        4.0,
        lambda q: printed_bound(q, r_printed({**q, "beta": q["beta"] / 2}, half_angle(q))),
    ),
    "half of eps": (
        1.0,
        0.0,
        lambda q: printed_bound(q, r_printed({**q, "eps": q["eps"] / 2}, half_angle(q))),
    ),
    "a quarter": (1.0, 0.0, lambda q: printed_bound(q, r_printed(q, half_angle(q))) / 4),
}


@pytest.mark.parametrize("mutant", PRINTED_MUTANTS)
@pytest.mark.parametrize("statement", ["theorem-3", "theorem-3-repaired"])
def test_printed_theorem_3_is_not_true_with(statement, mutant):
    """A target loss just above r* leaves the numerator small, which a wrong denominator cannot survive."""
    similarity, beta, formula = PRINTED_MUTANTS[mutant]
    drop = 2 * math.sqrt((1 + similarity) / 2) + beta
    world = families.theorem_3_sharp(similarity, beta=beta, target_loss=1.02 * drop)
    q, truth = world.quantities(statement), world.subject(statement)
    assert formula(q) < truth - 0.01
    right = evaluate(statement, q).value
    assert right is None or right >= truth


@pytest.mark.parametrize("statement", ["theorem-4", "theorem-4-repaired"])
def test_half_of_theorem_4_fails_with_three_labels(statement):
    world = families.theorem_4_three_labels(1e-3)
    value, truth = evaluate(statement, world.quantities(statement)).value, world.subject(statement)
    assert value / 2 == pytest.approx(0.502)
    assert value / 2 < truth <= value


def test_the_sum_bound_of_two_labels_fails_with_three():
    """R3 itself is not true of Theorem 4's attack, which may reach two different labels."""
    world = families.theorem_4_half(0.0)
    q = world.quantities("refined-r3-untargeted")
    assert sum_bound(q, r_star(q, half_angle(q))) < world.subject("refined-r3-untargeted") - 0.01


def attacked_margins(beta):
    """Margins of T3-sharp towards y_t, their gradients and the exact lower curvature 2 beta."""
    world = families.theorem_3_sharp(0.3, beta=beta)
    assert world.subject("refined-r3") == 1.0
    margins = (
        (world.loss[:1, :, 1] - world.loss[:1, :, 0]),
        (world.gradient[:1, :, 1] - world.gradient[:1, :, 0]),
    )
    return *margins, 2 * beta


@pytest.mark.parametrize(
    ("kappa_factor", "radius", "beta"), [(0.0, 1.0, 0.7), (0.5, 1.0, 0.7), (1.0, 0.5, 0.0), (1.0, 0.99, 0.0)]
)
def test_certificate_is_false_with_too_little_curvature_or_radius(kappa_factor, radius, beta):
    margins, gradients, kappa = attacked_margins(beta)
    assert transfer_certificate(margins, gradients, kappa_factor * kappa, radius).certified[0]
    assert not transfer_certificate(margins, gradients, kappa, 1.0).certified[0]


def test_certificate_is_attained_from_above_and_below():
    margins, gradients, kappa = attacked_margins(0.7)
    assert transfer_certificate(margins * (1 + 1e-6), gradients, kappa, 1.0).certified[0]
    assert not transfer_certificate(margins * (1 - 1e-6), gradients, kappa, 1.0).certified[0]


THEOREM_6 = {"theorem-6": 4, "theorem-6-def2": 2, "theorem-6-mixed": 3}


@pytest.mark.parametrize("reading", THEOREM_6)
@pytest.mark.parametrize("weakened", ["eps", "rho", "delta"])
def test_theorem_6_constants_cannot_be_lowered(reading, weakened):
    world = families.theorem_6_attained(reading)
    q, truth = world.quantities(reading), world.subject(reading)
    constants = {"eps": THEOREM_6[reading], "rho": 1, "delta": 1}
    assert sum(c * q[name] for name, c in constants.items()) >= truth - 1e-12
    constants[weakened] *= 0.9
    assert sum(c * q[name] for name, c in constants.items()) < truth - 0.01


@pytest.mark.parametrize("weakened", ["eps", "rho", "delta"])
def test_theorem_6_transfer_constants_cannot_be_lowered(weakened):
    world = families.theorem_6_attained("theorem-6-transfer")
    q, truth = world.quantities("theorem-6-transfer"), world.subject("theorem-6-transfer")
    constants = {"eps": 4, "rho": 1, "delta": 1}
    constants[weakened] *= 0.9
    assert 1 - sum(c * q[name] for name, c in constants.items()) > truth + 0.01


@pytest.mark.parametrize("factor", [1, 1.9])
def test_lemma_5_constant_cannot_be_lowered(factor):
    world = families.lemma_5_attained()
    q = world.quantities("lemma-5")
    assert factor * q["eps"] + q["rho"] < world.subject("lemma-5") - 0.01


@pytest.mark.parametrize("models", [2, 5, 50])
def test_r5_cannot_average_more_than_the_square_root(models):
    world = families.r5_attained(models)
    q, truth = world.quantities("refined-r5"), world.subject("refined-r5")
    mutant = q["xi_sum"] / (q["N"] * (q["l_min"] - 2 * q["eps"] * q["B"] / q["N"]))
    assert mutant < truth - 0.01


def test_theorem_2_without_the_turn_is_false():
    """Orthogonal gradients fool F alone; without eps sqrt(2 - 2S) the bound would promise transfer."""
    value = np.array([[[0.0, 0.99], [0.0, 0.01]]])
    gradient = np.array([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]])
    world = LocalQuadratics.affine([1.0], [0], value, gradient).under([[1.0, 0.0]], 1.0)
    q, truth = world.quantities("theorem-2"), world.subject("theorem-2")
    mutant = evaluate("theorem-2", {**q, "S_lower": 1.0}).value
    assert mutant > 0.9 > truth == 0.0
    assert evaluate("theorem-2", q).value <= truth
