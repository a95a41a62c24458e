"""Definitions 1 to 9, and the traps in their wording."""

import numpy as np
import pytest

from bounds import definitions as d

LABELS = np.array([0, 0, 1, 1, 2])
F = np.array([0, 1, 1, 1, 2])
G = np.array([0, 0, 1, 1, 0])
F_ADV = np.array([1, 1, 0, 1, 1])
G_ADV = np.array([1, 1, 1, 0, 1])


def test_every_definition_is_there_and_its_functions_exist():
    assert list(d.DEFINITIONS) == list(range(1, 10))
    for definition in d.DEFINITIONS.values():
        assert all(callable(getattr(d, name)) for name in definition.functions)


def test_definition_1_is_about_the_norm():
    x, step = np.zeros((2, 2, 2)), np.array([[[0.3, 0.4], [0, 0]], [[0.1, 0.1], [0.1, 0.1]]])
    np.testing.assert_allclose(d.perturbation_norms(x, x + step), [0.5, 0.2])
    np.testing.assert_allclose(d.perturbation_norms(x, x + step, norm="linf"), [0.4, 0.1])
    assert d.is_evasion_attack(x, x + step, 0.5)
    assert not d.is_evasion_attack(x, x + step, 0.49)
    assert d.is_evasion_attack(x, x + step, 0.4, norm="linf")
    with pytest.raises(ValueError, match="got 'l1'"):
        d.perturbation_norms(x, x, norm="l1")
    with pytest.raises(ValueError, match="attacked inputs of shape"):
        d.perturbation_norms(x, x[:1])


def test_definition_2_is_unconditional():
    assert d.attack_failure(F_ADV, LABELS) == pytest.approx(1 / 5)
    assert d.attack_failure(F_ADV, LABELS, target=1) == pytest.approx(1 / 5)
    assert d.attack_failure(F, LABELS) == pytest.approx(1 - d.risk(F, LABELS))
    assert d.attack_failure(F_ADV, LABELS, weights=[0, 0, 0, 1, 0]) == 1.0


def test_definition_3():
    assert d.risk(F, LABELS) == pytest.approx(0.2)
    assert d.risk(F, LABELS, weights=[0.1, 0.6, 0.1, 0.1, 0.1]) == pytest.approx(0.6)
    assert d.empirical_risk([1.0, 3.0]) == 2.0
    assert d.empirical_risk([1.0, 3.0], weights=[0.75, 0.25]) == 1.5


def test_definitions_4_and_5_leave_zero_gradients_out():
    f = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    g = np.array([[0.0, 3.0], [0.0, -1.0], [1.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(d.gradient_cosines(f, g), [0, -1, np.nan, 1], atol=1e-15)
    assert d.lower_similarity(f, g) == pytest.approx(-1)
    assert d.upper_similarity(f, g) == pytest.approx(1)
    with pytest.raises(ValueError, match="nonzero gradients, got none"):
        d.lower_similarity(f[2:3], g[2:3])
    with pytest.raises(ValueError, match="gradients of shape"):
        d.upper_similarity(f, g[:2])


def test_definition_6_on_the_data_alone_misses_what_lies_between():
    """Erratum 5: 10 (3x^2 - 2x^3) + x/100 has the same slope at 0 and 1, and a steep one in between."""

    def slope(x):
        return 60 * x * (1 - x) + 0.01

    ends, inside = np.array([[0.0], [1.0]]), np.linspace(0, 1, 11)[:, None]
    assert d.smoothness_quotient(ends, slope(ends)) == 0
    assert d.smoothness_quotient(inside, slope(inside)) == pytest.approx(54)
    with pytest.raises(ValueError, match="two that coincide"):
        d.smoothness_quotient(ends[[0, 0]], ends)
    with pytest.raises(ValueError, match="two or more points"):
        d.smoothness_quotient(ends[:1], ends[:1])


def test_definition_7():
    untargeted = d.transfers(LABELS, F, G, F_ADV, G_ADV)
    assert untargeted.tolist() == [True, False, False, False, False]
    assert d.transfers(LABELS, F, G, F_ADV, G_ADV, target=1).tolist() == [True, False, False, False, False]


def test_definition_7_targeted_counts_points_already_at_the_target():
    same = d.transfers(LABELS, LABELS, LABELS, LABELS, LABELS, target=1)
    assert same.mean() == np.mean(LABELS == 1)
    assert not d.transfers(LABELS, LABELS, LABELS, LABELS, LABELS, target=1, proper=True).any()


def test_definition_8_is_half_the_l1_distance():
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert d.total_variation(p, q) == 1.0
    assert np.abs(p - q).sum() == 2.0
    assert d.total_variation([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) == pytest.approx(0.3)


def test_definition_8_is_the_largest_difference_over_events():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 2)
    events = (np.arange(32)[:, None] >> np.arange(5)) & 1
    assert d.total_variation(p, q) == pytest.approx(np.abs(events @ (p - q)).max())


def test_definition_9():
    assert d.is_conservative([0.5, 0.5], [0.4, 0.6], 0.1 + 1e-12)
    assert not d.is_conservative([0.5, 0.5], [0.4, 0.6], 0.09)


def test_bad_distributions_and_labels_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        d.total_variation([0.5, 0.6], [0.5, 0.5])
    with pytest.raises(ValueError, match="on the same points"):
        d.total_variation([1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="one shape"):
        d.risk(F, LABELS[:2])
    with pytest.raises(ValueError, match="expected 5 weights"):
        d.risk(F, LABELS, weights=[0.5, 0.5])
