"""Lemma 5 and Theorem 6 in each reading, on finite distributions where every quantity is exact."""

import itertools

import numpy as np
import pytest

from bounds import STATEMENTS, Status, evaluate

LEMMA_5, PRINTED, DEF2, MIXED, TRANSFER = (
    STATEMENTS[key]
    for key in ("lemma-5", "theorem-6", "theorem-6-def2", "theorem-6-mixed", "theorem-6-transfer")
)


def total_variation(attack, points):
    """Distance between the uniform distribution on the points and its image under the attack."""
    return np.abs(np.bincount(attack, minlength=points) - 1).sum() / (2 * points)


def checks(f, g, y, attack):
    """(statement, quantities, true subject) for every reading in a world of label arrays."""
    points = len(y)
    common = {"eps": max((f != y).mean(), (g != y).mean()), "rho": total_variation(attack, points)}
    wrong_f, changed_f = (f[attack] == y).mean(), (f[attack] == f).mean()
    wrong_g, changed_g = (g[attack] == y).mean(), (g[attack] == g).mean()
    transfer = ((f == y) & (g == y) & (f[attack] != y) & (g[attack] != y)).mean()
    return [
        (LEMMA_5, common, (f[attack] != g[attack]).mean()),
        (PRINTED, {**common, "delta": changed_f}, changed_g),
        (DEF2, {**common, "delta": wrong_f}, wrong_g),
        (MIXED, {**common, "delta": wrong_f}, changed_g),
        (MIXED, {**common, "delta": changed_f}, wrong_g),
        (TRANSFER, {**common, "delta": wrong_f}, transfer),
    ]


def random_world(rng):
    points, labels = rng.integers(2, 13), rng.integers(2, 4)
    y = rng.integers(0, labels, points)
    f, g = (np.where(rng.random(points) < 0.15, rng.integers(0, labels, points), y) for _ in range(2))
    attack = rng.permutation(points) if rng.random() < 0.5 else rng.integers(0, points, points)
    return f, g, y, attack


@pytest.mark.slow
def test_no_world_contradicts_any_reading():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        for statement, quantities, subject in checks(*random_world(rng)):
            value = float(statement(**quantities))
            assert not statement.contradicted_by(subject, value, tolerance=1e-12), statement.id


def sharpest(index, weaken):
    """Whether some small world breaks reading `index` after its constant times eps is lowered by `weaken`."""
    rng = np.random.default_rng(1)
    for _ in range(6000):
        statement, quantities, subject = checks(*random_world(rng))[index]
        sign = -1 if statement is TRANSFER else 1
        value = float(statement(**quantities)) - sign * weaken * quantities["eps"]
        if statement.contradicted_by(subject, value, tolerance=1e-9):
            return True
    return False


@pytest.mark.parametrize("index", range(6))
@pytest.mark.slow
def test_no_constant_can_be_lowered(index):
    """Every constant in front of eps is the best: one half less is contradicted by a small world."""
    assert sharpest(index, 0.5)


def test_swapped_labels():
    """Two points, perfect F = G, the attack swaps them: rho = eps = delta = 0, and both are always fooled."""
    y = np.array([0, 1])
    for statement, quantities, subject in checks(y, y, y, np.array([1, 0])):
        bound = evaluate(statement, quantities)
        assert bound.value == subject
        assert bound.status is Status.INFORMATIVE


@pytest.mark.parametrize(
    ("statement", "value"),
    [(LEMMA_5, 0.23), (PRINTED, 0.75), (DEF2, 0.53), (MIXED, 0.64), (TRANSFER, 0.25)],
    ids=lambda item: getattr(item, "id", ""),
)
def test_constants(statement, value):
    quantities = {"eps": 0.11, "rho": 0.01, "delta": 0.30}
    assert evaluate(statement, quantities).value == pytest.approx(value, abs=1e-15)


def test_exhaustively_on_two_points_and_three_labels():
    for f, g, y in itertools.product(itertools.product(range(3), repeat=2), repeat=3):
        for attack in itertools.product(range(2), repeat=2):
            for statement, quantities, subject in checks(*map(np.array, (f, g, y, attack))):
                assert not statement.contradicted_by(
                    subject, float(statement.formula(**quantities)), tolerance=1e-12
                )
