"""The distance between benign and attacked inputs, and Lemma 5 and Theorem 6 on models that were trained."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from bounds import Estimate, Grade, Status
from bounds.definitions import total_variation
from empirical.attacks import Attack, run_attack
from empirical.data import load_dataset
from estimators.shift import distribution_shift, shift_statements, smoothed_shift_bound

EPSILONS = (0.1, 0.3, 0.6, 1.0)


def labels_world(rng):
    """Points 0 .. n-1 with labels, two models and an attack that is a map on the points."""
    n = int(rng.integers(2, 13))
    y = rng.integers(0, 3, n)
    f, g = (np.where(rng.random(n) < 0.2, rng.integers(0, 3, n), y) for _ in range(2))
    attack = rng.permutation(n) if rng.random() < 0.5 else rng.integers(0, n, n)
    return tuple(map(torch.from_numpy, (f, g, y, attack)))


def pairs(f, g):
    return torch.stack([f, g], 1)


def shift(distribution, attack, m):
    """Exact distance between the laws of x and attack(x), for x in 0 .. m-1."""
    return total_variation(distribution, np.bincount(attack, weights=distribution, minlength=m))


def test_finite_distance_counts_the_mass_that_moved_off():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0], [4.0, 5.0]])
    assert distribution_shift(x, x, support="finite") == Estimate.exact(
        0.0,
        "total variation between 4 points and their attacked images; exact for this finite set",
        samples=4,
    )
    assert distribution_shift(x, x.flip(0), support="finite").value == 0.0
    moved = x.clone()
    moved[1] += 1e-6
    assert distribution_shift(x, moved, support="finite").value == 0.25
    moved[1] = x[0]
    assert distribution_shift(x, moved, support="finite").value == 0.25
    assert distribution_shift(x, x + 1e-6, support="finite").value == 1.0


def test_finite_distance_on_random_worlds_and_of_what_is_computed_from_them():
    rng = np.random.default_rng(0)
    for _ in range(200):
        f, g, _, attack = labels_world(rng)
        n = len(f)
        points = torch.arange(n)
        rho = distribution_shift(points, attack, support="finite")
        assert rho.is_exact
        assert rho.value == pytest.approx(shift(np.full(n, 1 / n), attack.numpy(), n), abs=1e-12)
        seen = distribution_shift(pairs(f, g), pairs(f[attack], g[attack]), support="finite")
        assert seen.value <= rho.value + 1e-12


@pytest.mark.slow
def test_an_attack_that_keeps_the_law_is_not_accused_more_often_than_stated():
    """Every point moves, to the next of 6, and rho is 0."""
    rng = np.random.default_rng(1)
    found = []
    for seed in range(15):
        x = torch.from_numpy(rng.integers(0, 6, (60, 1)))
        found.append(distribution_shift(x, (x + 1) % 6, confidence=0.7, seed=seed))
    assert all(estimate.upper == 1.0 for estimate in found)
    assert sum(estimate.lower > 0 for estimate in found) <= binom.ppf(0.9999, 15, 0.3)


def test_what_the_classifier_learnt_by_heart_does_not_count():
    """Fresh draws of the same law, all different: a forest tells those apart that it was trained on."""
    draws = torch.from_numpy(np.random.default_rng(6).random((2, 80, 3)))
    assert distribution_shift(*draws).lower == 0.0


def test_the_identity_attack_shifts_nothing():
    x = torch.from_numpy(np.random.default_rng(1).random((60, 3)))
    same = distribution_shift(x, x)
    assert (same.value, same.lower, same.upper) == (0.0, 0.0, 1.0)
    assert same.failure_probability == pytest.approx(0.05)


@pytest.mark.slow
def test_the_lower_bound_holds_as_often_as_stated_and_approaches_the_distance():
    rng = np.random.default_rng(2)
    law, attack = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 0, 1, 3])
    rho = shift(law, attack, 4)
    lower = []
    for seed in range(25):
        x = torch.from_numpy(rng.choice(4, 200, p=law))
        lower.append(distribution_shift(x, torch.from_numpy(attack)[x], confidence=0.6, seed=seed).lower)
    assert rho == pytest.approx(0.3)
    assert 0 < sum(bound > rho for bound in lower) <= binom.ppf(0.9999, 25, 0.4)
    x = torch.from_numpy(rng.choice(4, 5000, p=law))
    found = distribution_shift(x, torch.from_numpy(attack)[x])
    assert 0.9 * rho < found.lower < rho
    assert 0.005 < found.value - found.lower < 0.05


def test_smoothing_is_exact_for_one_step_and_an_upper_bound_for_several():
    one = smoothed_shift_bound(torch.tensor([[3.0, 4.0]] * 5), 2.0)
    assert one.value == pytest.approx(2 * norm.cdf(5 / 4) - 1, rel=1e-12)
    assert (one.lower, one.upper, one.failure_probability) == (0.0, one.value, 0.0)
    grid, rng = np.linspace(-12, 12, 4001), np.random.default_rng(3)
    gaps = []
    for _ in range(20):
        x, deltas, sigma = rng.normal(size=(3, 1)), rng.normal(size=(3, 1)), rng.uniform(0.2, 1.5)
        before, after = (norm.pdf(grid, centre, sigma).mean(0) for centre in (x, x + deltas))
        distance = np.abs(before - after).sum() * (grid[1] - grid[0]) / 2
        gaps.append(smoothed_shift_bound(torch.from_numpy(deltas), sigma).upper - distance)
    assert 0 < min(gaps) < 0.1  # Some are nearly attained.


def test_smoothing_for_a_population_pays_for_the_sample():
    deltas = torch.from_numpy(np.random.default_rng(4).random((500, 2)))
    finite = smoothed_shift_bound(deltas, 0.5)
    population = smoothed_shift_bound(deltas, 0.5, support="population", confidence=0.9)
    assert population.value == finite.value < population.upper < finite.value + 0.05
    assert (population.lower, population.failure_probability) == (0.0, pytest.approx(0.1))
    assert smoothed_shift_bound(deltas, 1e-9).upper == 1.0
    assert smoothed_shift_bound(0 * deltas, 0.5).upper == 0.0


@pytest.mark.slow
def test_no_finite_world_contradicts_either_statement_and_some_attain_them():
    rng = np.random.default_rng(5)
    slack = {"lemma-5": math.inf, "theorem-6": math.inf}
    for _ in range(300):
        f, g, y, attack = labels_world(rng)
        labels = (f, g, y, f[attack], g[attack])
        inputs = distribution_shift(torch.arange(len(f)), attack, support="finite")
        outputs = distribution_shift(pairs(f, g), pairs(f[attack], g[attack]), support="finite")
        for rho in (inputs, outputs):
            found = shift_statements(*labels, rho)
            for bound, subject in ((found.lemma_5, found.disagreement), (found.theorem_6, found.unchanged)):
                assert bound.grade is Grade.CERTIFIED
                assert subject.is_exact
                gap = bound.guaranteed - subject.value
                assert gap >= -1e-9
                slack[bound.statement.id] = min(slack[bound.statement.id], gap)
            assert found.implied_rho.lower <= rho.value + 1e-12
    assert all(gap == pytest.approx(0.0, abs=1e-9) for gap in slack.values())


def test_the_quantities_by_hand():
    f, g, y = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 0])
    f_adv, g_adv = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 2, 1])
    found = shift_statements(f, g, y, f_adv, g_adv, Estimate.exact(0.125))
    assert found.lemma_5.value == 2 * 0.25 + 0.125
    assert found.theorem_6.value == 0.5 + 4 * 0.25 + 0.125
    assert (found.disagreement.value, found.unchanged.value) == (0.75, 0.75)
    rho = found.implied_rho
    assert (rho.lower, rho.value, rho.upper) == (0.25, 0.25, 1.0)
    sample = shift_statements(f, g, y, f_adv, g_adv, Estimate.exact(0.125), support="population")
    assert sample.lemma_5.grade is Grade.CONFIDENT
    assert sample.lemma_5.failure_probability == pytest.approx(0.1)
    assert sample.implied_rho.lower == 0.0
    assert sample.implied_rho.failure_probability == pytest.approx(0.15)
    assert sample.disagreement.lower < 0.75 < sample.disagreement.upper


def trained(data, seed):
    """A tanh network of one hidden layer, plainly trained on digits; float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(data.x.double()), data.y).backward()
        optimiser.step()
    return net


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return trained(data.train, 0), trained(data.train, 1), data.test.x.double(), data.test.y


def attacked(model, x, y, eps):
    return run_attack(model, x, y, Attack("pgd", "l2", eps, steps=10)).x_adv


def predicted(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.slow
def test_real_attacks_on_trained_models(digits):
    """Lemma 5 and Theorem 6 hold, say something, and read backwards agree with the two-sample test."""
    f, g, x, y = digits
    statuses = set()
    for eps in EPSILONS:
        x_adv = attacked(f, x, y, eps)
        labels = predicted(f, x), predicted(g, x), y, predicted(f, x_adv), predicted(g, x_adv)
        inputs = distribution_shift(x, x_adv, support="finite")
        outputs = distribution_shift(pairs(*labels[:2]), pairs(*labels[3:]), support="finite")
        assert inputs.value == 1.0  # No attacked image is one of the set.
        for rho in (inputs, outputs):
            found = shift_statements(*labels, rho)
            assert found.lemma_5.guaranteed >= found.disagreement.value
            assert found.theorem_6.guaranteed >= found.unchanged.value
            assert found.implied_rho.lower <= outputs.value <= inputs.value
            statuses.add((rho is outputs, found.lemma_5.status))
        tested = distribution_shift(x, x_adv)
        sample = shift_statements(*labels, tested, support="population")
        assert sample.lemma_5.guaranteed >= 1.0  # rho is known from below only.
        assert sample.implied_rho.lower < 0.5 < tested.lower <= inputs.value
    assert (True, Status.INFORMATIVE) in statuses
    assert (False, Status.INFORMATIVE) not in statuses


@pytest.mark.slow
def test_noise_makes_lemma_5_certain_and_informative_about_a_real_attack(digits):
    f, g, x, y = digits
    sigma = 0.2
    x_adv = attacked(f, x, y, 0.1)
    rho = smoothed_shift_bound(x_adv - x, sigma)
    noise = sigma * torch.randn((20, *x.shape), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    benign, moved = ((centre + noise).flatten(0, 1) for centre in (x, x_adv))
    truth = y.repeat(20)
    labels = predicted(f, benign), predicted(g, benign), truth, predicted(f, moved), predicted(g, moved)
    found = shift_statements(*labels, rho, support="population")
    assert found.lemma_5.grade is Grade.CONFIDENT
    assert found.lemma_5.guaranteed_status is Status.INFORMATIVE
    assert found.disagreement.upper < found.lemma_5.guaranteed
    assert found.implied_rho.lower <= rho.upper < 0.25


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: distribution_shift(x, x[1:]), r"shape of x, \(n, ...\), got \(5, 2\) and \(6, 2\)"),
        (lambda x: distribution_shift(x[:0], x[:0]), "got \\(0, 2\\)"),
        (lambda x: distribution_shift(x[:3], x[:3]), "at least 4 pairs"),
        (lambda x: distribution_shift(x, x / 0), "finite values in x_adv"),
        (lambda x: distribution_shift(x, x, support="all"), "'finite' or 'population'"),
        (lambda x: distribution_shift(x, x, confidence=1.0), "confidence"),
        (lambda x: smoothed_shift_bound(x, 0.0), "positive finite sigma, got 0.0"),
        (lambda x: smoothed_shift_bound(x[:0], 1.0), "perturbations of shape"),
        (lambda x: smoothed_shift_bound(x, 1.0, confidence=0.0), "confidence"),
        (lambda x: smoothed_shift_bound(x / 0, 1.0), "finite values in the perturbations"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(6, 2))


def test_labels_that_do_not_fit_are_named():
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels g_adv of shape \(n,\), as y of \(4,\), got \(3,\)"):
        shift_statements(y, y, y, y, y[:3], Estimate.exact(0.0))
