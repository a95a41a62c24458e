"""The extremal families reach their stated values to 1e-6, through `evaluate` and exact transfer."""

import numpy as np
import pytest

from bounds import Status, evaluate, families

SIMILARITIES = [-0.5, -0.2, 0.0, 0.6, 0.9, 1.0]


def both(world, statement):
    """Value of a statement on a world, and the true rate that it bounds."""
    return evaluate(statement, world.quantities(statement)).value, world.subject(statement)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_theorem_3_sharp(similarity, beta):
    world = families.theorem_3_sharp(similarity, beta=beta, bound=1.3, eps=0.8)
    assert both(world, "refined-r3") == pytest.approx((1.0, 1.0), abs=1e-6)
    quantities = world.quantities("refined-r3")
    assert quantities["beta"] == pytest.approx(beta)
    assert quantities["S_upper"] == pytest.approx(similarity)
    assert 2.0 - 1e-6 <= both(world, "theorem-3")[0] <= 2.4 + 1e-6


@pytest.mark.parametrize(("similarity", "printed"), [(0.0, 0.2071), (0.9, 0.2006)])
def test_theorem_3_nonvacuous(similarity, printed):
    world = families.theorem_3_sharp(similarity, target_loss=10.0, rate=0.1)
    assert both(world, "refined-r3") == pytest.approx((0.1, 0.1), abs=1e-6)
    assert both(world, "theorem-3")[0] == pytest.approx(printed, abs=1e-4)
    assert evaluate("theorem-3", world.quantities("theorem-3")).status is Status.INFORMATIVE


def test_theorem_3_opposed():
    world = families.theorem_3_opposed(rate=0.1)
    assert world.quantities("theorem-3")["S_upper"] == pytest.approx(-1.0)
    assert both(world, "refined-r3") == pytest.approx((0.1, 0.1), abs=1e-6)
    assert both(world, "theorem-3")[0] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_theorem_4_half(similarity):
    world = families.theorem_4_half(similarity)
    assert both(world, "theorem-4") == pytest.approx((2.0, 1.0), abs=1e-6)
    assert both(world, "refined-r3-untargeted") == pytest.approx((1.0, 1.0), abs=1e-6)


@pytest.mark.parametrize(("slope", "printed"), [(1e-3, 1.004), (1e-6, 1.000004)])
def test_theorem_4_three_labels(slope, printed):
    world = families.theorem_4_three_labels(slope)
    assert both(world, "theorem-4") == pytest.approx((printed, 1.0), abs=1e-9)
    assert set(world.attacked_prediction.ravel()) == {1, 2}


def test_theorem_1_repaired_attained_where_the_printed_one_does_not_apply():
    world = families.theorem_1_repaired_attained(0.3)
    assert both(world, "theorem-1-repaired") == pytest.approx((1.0, 1.0), abs=1e-6)
    assert evaluate("theorem-1", world.quantities("theorem-1")).status is Status.INAPPLICABLE


def test_theorem_2_nearly_one():
    world = families.theorem_2_nearly_one()
    assert both(world, "theorem-2") == pytest.approx((98 / 99, 1.0), abs=1e-6)
    assert both(world, "refined-r6") == pytest.approx((1.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("models", [2, 3, 7, 20, 50])
def test_r5_attained(models):
    assert both(families.r5_attained(models), "refined-r5") == pytest.approx((1.0, 1.0), abs=1e-6)


def test_lemma_5_attained():
    world = families.lemma_5_attained()
    assert world.quantities("lemma-5") == pytest.approx({"eps": 1 / 3, "rho": 1 / 3})
    assert both(world, "lemma-5") == pytest.approx((1.0, 1.0), abs=1e-12)


@pytest.mark.parametrize("reading", ["theorem-6", "theorem-6-def2", "theorem-6-mixed", "theorem-6-transfer"])
def test_theorem_6_attained(reading):
    world = families.theorem_6_attained(reading)
    assert min(world.quantities(reading).values()) > 0.1
    value, truth = both(world, reading)
    assert value == pytest.approx(truth, abs=1e-12)


def test_theorem_6_swap():
    world = families.theorem_6_swap()
    assert world.quantities("theorem-6-transfer") == {"eps": 0.0, "rho": 0.0, "delta": 0.0}
    assert both(world, "theorem-6-transfer") == (1.0, 1.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"similarity in \[-1/2, 1\], got -0\.6"):
        families.theorem_3_sharp(-0.6)
    with pytest.raises(ValueError, match="similarity"):
        families.theorem_4_half(1.1)
    with pytest.raises(ValueError, match="got 'theorem-7'"):
        families.theorem_6_attained("theorem-7")


def test_attacks_stay_in_their_ball():
    with pytest.raises(ValueError, match="l2 norm at most eps"):
        families.LocalQuadratics.affine([1.0], [0], np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 1))).under(
            [[1.1]], 1.0
        )
