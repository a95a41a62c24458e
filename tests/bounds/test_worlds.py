"""Exact worlds: their quantities are what they say, and no statement called true fails on 100,000 of them."""

import itertools

import numpy as np
import pytest

from bounds import STATEMENTS, Sense, transfer_certificate
from bounds.must_transfer import must_transfer
from bounds.scenario import F, G, Scenario
from bounds.statement import Verdict
from bounds.worlds import LabelShift, LinearSoftmax, LocalQuadratics, random_quadratics

SHAPES = [(1, 2, 1), (1, 2, 2), (2, 2, 2), (2, 3, 2), (3, 3, 3), (1, 3, 1), (1, 4, 2), (4, 2, 1)]
ON_SCENARIOS = [
    "theorem-1", "theorem-1-repaired", "theorem-2", "refined-r6", "refined-r6-pointwise", "theorem-3",
    "theorem-3-repaired", "refined-r3", "refined-r4", "refined-cantelli", "refined-r5", "theorem-4",
    "theorem-4-repaired", "refined-r3-untargeted",
]  # fmt: skip
ON_SHIFTS = ["lemma-5", "theorem-6", "theorem-6-def2", "theorem-6-mixed", "theorem-6-transfer"]
TOLERANCE = 1e-7


def steps_worth_trying(rng: np.random.Generator, world: LocalQuadratics) -> np.ndarray:
    """Unit perturbations (C, W, A, D): along gradients of one model, of both, and at random."""
    target = -world.margins(1).gradient
    true = np.take_along_axis(world.gradient, world.label[:, :, None, None, None], axis=3)[..., 0, :]
    directions = [rng.normal(size=true.shape[:2] + true.shape[3:])]
    for gradient in (target, true):
        directions += [gradient[:, :, F], gradient[:, :, G], gradient.sum(axis=2), -gradient[:, :, F]]
    steps = np.stack(directions)
    size = np.linalg.norm(steps, axis=-1, keepdims=True)
    return np.divide(steps, size, out=np.zeros_like(steps), where=size > 0)


def attacked(rng: np.random.Generator, world: LocalQuadratics, *, targeted: bool) -> Scenario:
    """Half of the worlds under the step that transfers most, half under one that fools F and spares G."""
    steps = steps_worth_trying(rng, world)
    scores = []
    for step in steps:
        scenario = world.under(step, 1.0)
        goal = 1 if targeted else world.label
        hit = scenario.attacked_prediction == (goal if targeted else -1)
        if not targeted:
            hit = scenario.attacked_prediction != goal[..., None]
        spread = rng.random(len(world.label))[:, None] < 0.5
        scores.append(2.0 * hit[..., F] + np.where(spread, hit[..., G], ~hit[..., G]))
    best = np.argmax(np.stack(scores) + 1e-3 * rng.random((len(steps), 1, 1)), axis=0)
    return world.under(np.take_along_axis(steps, best[None, :, :, None], axis=0)[0], 1.0)


def numerically_applicable(statement: str, quantities: dict) -> np.ndarray:
    """Where the statement applies with a denominator that is more than rounding noise."""
    if statement in ("theorem-1", "theorem-1-repaired"):
        return quantities["c_G"] + quantities["eps"] > 1e-6
    if statement == "theorem-2":
        return quantities["eps"] - quantities["c_G"] > 1e-6
    if statement == "refined-r6":  # a strict comparison of c_F - turn with c_G
        turn = quantities["eps"] * np.sqrt(2 - 2 * quantities["S_lower"])
        return (
            np.maximum(quantities["c_F"] - turn - quantities["c_G"], -quantities["eps"] - quantities["c_G"])
            > 1e-9
        )
    return np.ones(np.shape(next(iter(quantities.values()))), dtype=bool)


def evaluated(statement: str, scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Values (NaN where inapplicable) and true rates of a batch."""
    quantities = scenario.quantities(statement)
    value = STATEMENTS[statement](**{name: quantities[name] for name in STATEMENTS[statement].names})
    return np.where(numerically_applicable(statement, quantities), value, np.nan), scenario.subject(statement)


@pytest.mark.slow
def test_no_true_statement_fails_on_100_000_random_worlds():
    rng = np.random.default_rng(20)
    total, informative = 0, dict.fromkeys(ON_SCENARIOS, 0)
    for (points, labels, dimension), targeted in itertools.product(SHAPES, (True, False)):
        world = random_quadratics(rng, 6250, points=points, labels=labels, dimension=dimension)
        scenario = attacked(rng, world, targeted=targeted)
        total += 6250
        for name in ON_SCENARIOS:
            statement = STATEMENTS[name]
            assert statement.verdict is not Verdict.FALSE
            value, truth = evaluated(name, scenario)
            applies = ~np.isnan(value)
            if statement.sense is Sense.LOWER:
                assert (truth >= value - TOLERANCE)[applies].all(), name
                informative[name] += int((value[applies] > TOLERANCE).sum())
            else:
                assert (truth <= value + TOLERANCE)[applies].all(), name
                informative[name] += int((value[applies] < 1.0).sum())
    assert total == 100_000
    # V1: the printed Theorem 1 is never positive where it applies; everything else says something, often.
    assert informative.pop("theorem-1") == 0
    assert min(informative.values()) > 2000, informative


@pytest.mark.slow
def test_dominance_chain_on_random_worlds():
    """R2 <= sum of margins <= R3 <= repaired / 2 <= printed / 2, and R4 <= R3, each where it applies."""
    rng = np.random.default_rng(21)
    strict = np.zeros(4, dtype=int)
    for points, labels, dimension in SHAPES:
        world = random_quadratics(rng, 3000, points=points, labels=labels, dimension=dimension)
        scenario = attacked(rng, world, targeted=True)
        margins = world.margins(1)
        uncertified = scenario.rate(scenario.proper & ~margins.certified(1.0))
        q = scenario.quantities("refined-r3")
        drop = 2 * q["B"] * np.maximum(np.sqrt((1 + q["S_upper"]) / 2), 0.5) + q["beta"]
        near = margins.value.sum(axis=-1) <= 2 * drop[:, None]
        sum_rate = scenario.rate(scenario.proper & near)
        r3, r4, repaired, printed = (
            evaluated(name, scenario)[0]
            for name in ("refined-r3", "refined-r4", "theorem-3-repaired", "theorem-3")
        )
        assert (scenario.subject("refined-r3") <= uncertified + 1e-12).all()
        chain = [uncertified, sum_rate, r3, repaired / 2, printed / 2]
        for step, (smaller, larger) in enumerate(itertools.pairwise(chain)):
            known = ~np.isnan(larger) & ~np.isnan(smaller)
            assert (smaller <= larger + TOLERANCE)[known].all(), step
            assert not (np.isnan(smaller) & ~np.isnan(larger)).any(), step
            strict[step] += int((smaller < larger - 1e-3)[known].sum())
        assert (r4 <= r3 + TOLERANCE)[~np.isnan(r3)].all()
    assert (strict > 500).all()


@pytest.mark.slow
def test_positive_theorem_2_leaves_no_point_that_fools_f_alone():
    rng = np.random.default_rng(22)
    positive = 0
    for points, labels, dimension in SHAPES:
        world = random_quadratics(rng, 6000, points=points, labels=labels, dimension=dimension)
        scenario = attacked(rng, world, targeted=False)
        says = evaluated("theorem-2", scenario)[0] > TOLERANCE
        wrong = scenario.attacked_prediction != scenario.label[..., None]
        f_alone = (scenario.support & wrong[..., F] & ~wrong[..., G]).any(axis=-1)
        assert not (says & f_alone).any()
        positive += says.sum()
        assert f_alone.any()
    assert positive > 1000


def test_sandwich_on_random_worlds():
    """Must transfer <= strongest attack tried <= not certified, point by point."""
    rng = np.random.default_rng(23)
    counts = np.zeros(3, dtype=int)
    for points, labels, dimension in SHAPES[:5]:
        world = random_quadratics(rng, 1500, points=points, labels=labels, dimension=dimension)
        if labels > 2:
            continue  # with two labels one margin per model decides
        other = 1 - world.label
        margins = world.margins(other)
        inner, step = margins.must_transfer(1.0)
        outer = ~margins.certified(1.0)
        hit = np.stack(
            [
                (world.under(d, 1.0).attacked_prediction == other[..., None]).all(axis=-1)
                for d in (*steps_worth_trying(rng, world), step)
            ]
        )
        assert hit[-1][inner].all()
        assert not (hit.any(axis=0) & (margins.value > 0).any(axis=-1) & ~outer).any()
        right = (margins.value > 0).all(axis=-1)
        counts += [(side & right).sum() for side in (inner, hit.any(axis=0), outer)]
    assert 0 < counts[0] < counts[1] < counts[2]


@pytest.mark.slow
def test_no_true_statement_fails_on_100_000_random_shifts():
    rng = np.random.default_rng(24)
    attained = dict.fromkeys(ON_SHIFTS, 0)
    for inputs, labels in itertools.product((2, 3, 4, 6, 8), (2, 3)):
        size = (10_000, inputs)
        truth = rng.integers(0, labels, size)
        f, g = (np.where(rng.random(size) < 0.15, (truth + 1) % labels, truth) for _ in range(2))
        attack = rng.permuted(np.tile(np.arange(inputs), (size[0], 1)), axis=1)
        attack = np.where(rng.random(size) < 0.15, rng.integers(0, inputs, size), attack)
        uniform = rng.random((size[0], 1)) < 0.5
        probability = np.where(uniform, 1.0 / inputs, rng.dirichlet(np.ones(inputs), size[0]))
        world = LabelShift(probability, truth, f, g, attack)
        for name in ON_SHIFTS:
            quantities, rate = world.quantities(name), world.subject(name)
            value = STATEMENTS[name](**quantities)
            slack = value - rate if STATEMENTS[name].sense is Sense.UPPER else rate - value
            assert (slack > -1e-9).all(), name
            attained[name] += int(((np.abs(slack) < 1e-9) & (quantities["eps"] > 0)).sum())
    assert min(attained.values()) > 10, attained


def test_a_false_statement_is_noticed_on_random_worlds():
    """R3 with half of the gradient bound is false, and the same worlds show it."""
    rng = np.random.default_rng(25)
    world = random_quadratics(rng, 6000, points=1, labels=2, dimension=2)
    scenario = attacked(rng, world, targeted=True)
    quantities = scenario.quantities("refined-r3")
    quantities = {**quantities, "B": quantities["B"] / 2}
    value = STATEMENTS["refined-r3"](**quantities)
    assert (scenario.subject("refined-r3") > value + TOLERANCE)[~np.isnan(value)].any()


def test_quantities_match_plain_loops():
    """Definitions 2-6 and the constants of Theorems 1-4, spelled out point by point."""
    rng = np.random.default_rng(26)
    world = random_quadratics(rng, 40, points=3, labels=3, dimension=2)
    batch = attacked(rng, world, targeted=True)
    every = {
        name: batch.quantities(name)
        for name in ("theorem-1", "theorem-1-repaired", "theorem-2", "theorem-3", "theorem-4-repaired")
    }
    for w in range(40):
        p, y, loss, g, after = (
            a[w] for a in (batch.probability, batch.label, batch.loss, batch.gradient, batch.attacked_loss)
        )
        beta, t, points = batch.smoothness[w], 1, range(3)
        n = np.linalg.norm(g, axis=-1)
        beta_t = max(beta[a, m, t] for a in points for m in (0, 1))
        c_f = max((min(after[a, 0]) - loss[a, 0, t] + beta_t / 2) / n[a, 0, t] for a in points)
        c_g = min((min(after[a, 1]) - loss[a, 1, t] - beta_t / 2) / n[a, 1, t] for a in points)
        c_g_star = min((min(after[a, 1, [0, 2]]) - loss[a, 1, t] - beta_t / 2) / n[a, 1, t] for a in points)
        cos = [[g[a, 0, k] @ g[a, 1, k] / n[a, 0, k] / n[a, 1, k] for k in range(3)] for a in points]
        expected = {
            "alpha": 1 - sum(p[a] for a in points if after[a, 0].argmin() == t),
            "eta_F": sum(p[a] for a in points if loss[a, 0].argmin() != y[a]),
            "eta_G": sum(p[a] for a in points if loss[a, 1].argmin() != y[a]),
            "eps": 1.0,
            "beta": beta_t,
            "S_lower": min(cos[a][t] for a in points),
            "c_F": c_f,
            "c_G": c_g,
        }
        assert {k: v[w] for k, v in every["theorem-1"].items()} == pytest.approx(expected)
        assert every["theorem-1-repaired"]["c_G"][w] == pytest.approx(c_g_star)

        beta_y = max(beta[a, m, y[a]] for a in points for m in (0, 1))
        gap = [
            [min(after[a, m, k] for k in range(3) if k != y[a]) - loss[a, m, y[a]] for m in (0, 1)]
            for a in points
        ]
        two = every["theorem-2"]
        assert two["c_F"][w] == pytest.approx(min((gap[a][0] - beta_y / 2) / n[a, 0, y[a]] for a in points))
        assert two["c_G"][w] == pytest.approx(max((gap[a][1] + beta_y / 2) / n[a, 1, y[a]] for a in points))
        assert two["S_lower"][w] == pytest.approx(min(cos[a][y[a]] for a in points))
        assert two["alpha"][w] == pytest.approx(sum(p[a] for a in points if after[a, 0].argmin() == y[a]))

        three = every["theorem-3"]
        pairs = [(a, k) for a in points for k in {t, y[a]}]
        assert three["xi_F"][w] == pytest.approx(sum(p[a] * loss[a, 0, y[a]] for a in points))
        assert three["l_min"][w] == pytest.approx(min(loss[a, m, t] for a in points for m in (0, 1)))
        assert three["B"][w] == pytest.approx(max(n[a, m, k] for a, k in pairs for m in (0, 1)))
        assert three["S_upper"][w] == pytest.approx(max(cos[a][k] for a, k in pairs))
        assert three["beta"][w] == pytest.approx(max(beta[a, m, k] for a, k in pairs for m in (0, 1)))

        right = [a for a in points if loss[a, 0].argmin() == loss[a, 1].argmin() == y[a]]
        four = every["theorem-4-repaired"]
        assert four["xi_G"][w] == pytest.approx(sum(p[a] * loss[a, 1, y[a]] for a in right))
        wrong = [loss[a, m, k] for a in right for m in (0, 1) for k in range(3) if k != y[a]]
        assert four["l_min"][w] == pytest.approx(min(wrong, default=np.inf))
        assert four["B"][w] == pytest.approx(n.max())


def test_a_single_world_gives_floats_and_agrees_with_its_batch():
    rng = np.random.default_rng(27)
    batch = random_quadratics(rng, 5, points=2, labels=3, dimension=2)
    step = np.zeros((5, 2, 2))
    for name in ON_SCENARIOS:
        many = batch.under(step, 1.0)
        one = LocalQuadratics(
            batch.probability[3], batch.label[3], batch.value[3], batch.gradient[3], batch.curvature[3]
        ).under(step[3], 1.0)
        alone, together = one.quantities(name), many.quantities(name)
        assert all(isinstance(value, float) for value in alone.values())
        assert alone == pytest.approx({key: value[3] for key, value in together.items()}, nan_ok=True)
        assert one.subject(name) == pytest.approx(many.subject(name)[3])


def test_margins_expand_the_losses_exactly():
    rng = np.random.default_rng(28)
    world = random_quadratics(rng, 50, points=2, labels=3, dimension=3)
    reached = rng.integers(0, 3, world.label.shape)
    d = rng.normal(size=(50, 2, 3))
    margins = world.margins(reached)
    after = world.loss_after(d)
    want = np.take_along_axis(after, reached[..., None, None], -1) - np.take_along_axis(
        after, world.label[..., None, None], -1
    )
    bend = np.einsum("wamde,wad,wae->wam", margins.hessian, d, d)
    got = margins.value + np.einsum("wamd,wad->wam", margins.gradient, d) + bend / 2
    np.testing.assert_allclose(got, want[..., 0], atol=1e-12)
    assert (margins.lower_curvature >= 0).all()
    size = (d**2).sum(-1)[..., None]
    assert (bend >= -margins.lower_curvature * size - 1e-12).all()
    assert (bend <= margins.upper_curvature * size + 1e-12).all()


def test_linear_softmax_gradients_are_derivatives():
    rng = np.random.default_rng(29)
    model = LinearSoftmax(rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4)))
    points, h = rng.normal(size=(6, 3)), 1e-6
    for axis in range(3):
        shift = h * np.eye(3)[axis]
        numeric = (model.loss(points + shift) - model.loss(points - shift)) / (2 * h)
        np.testing.assert_allclose(model.gradient(points)[..., axis], numeric, atol=1e-8)


def test_two_label_smoothness_is_exact_on_the_ball():
    rng = np.random.default_rng(30)
    model = LinearSoftmax(rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 2)))
    points, eps = 2.0 * rng.normal(size=(8, 2)), 0.4
    beta = model.smoothness(points, eps)[..., 0]
    apart = model.weights[:, 0] - model.weights[:, 1]
    along = np.linspace(-eps, eps, 4001)
    for m in (0, 1):
        unit = apart[m] / np.linalg.norm(apart[m])
        gap = (points @ apart[m] + model.bias[m, 0] - model.bias[m, 1])[:, None] + along * (unit @ apart[m])
        p = 1 / (1 + np.exp(-gap))
        np.testing.assert_allclose(beta[:, m], (p * (1 - p)).max(axis=1) * (apart[m] @ apart[m]), rtol=1e-5)
        assert (beta[:, m] < 0.25 * apart[m] @ apart[m] + 1e-12).all()


def test_more_label_smoothness_bounds_the_gradient_quotients():
    rng = np.random.default_rng(31)
    model = LinearSoftmax(rng.normal(size=(2, 4, 3)), np.zeros((2, 4)))
    points = rng.normal(size=(300, 3))
    near = points + 0.1 * rng.normal(size=points.shape)
    change = np.linalg.norm(model.gradient(points) - model.gradient(near), axis=-1)
    quotient = change / np.linalg.norm(points - near, axis=-1)[:, None, None]
    beta = model.smoothness(points, 0.1)
    assert (quotient <= beta).all()
    assert quotient.max() > 0.4 * beta.max()


def test_r1_is_complete_for_linear_softmax():
    """Affine margins: every point is certified or comes with a step that really fools both models."""
    rng = np.random.default_rng(32)
    model = LinearSoftmax(rng.normal(size=(2, 2, 5)), np.zeros((2, 2)))
    points = 0.5 * rng.normal(size=(400, 5))
    label = model.loss(points)[:, 0].argmin(axis=1)
    margins, slopes = model.margins(points, label)
    margins, slopes = margins[:, :, 0], slopes[:, :, 0]
    certified = transfer_certificate(margins, slopes, 0.0, 0.3).certified
    found = must_transfer(margins, slopes, 0.0, 0.3)
    after = model.under(points, label, found.direction, 0.3)
    fooled = (after.attacked_prediction != label[:, None]).all(axis=1)
    np.testing.assert_array_equal(found.guaranteed, ~certified)
    np.testing.assert_array_equal(fooled[found.guaranteed], True)
    assert 0.05 < certified.mean() < 0.95


def test_linear_softmax_margins_are_logit_gaps():
    rng = np.random.default_rng(33)
    model = LinearSoftmax(rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4)))
    points, label = rng.normal(size=(5, 3)), np.array([0, 1, 2, 3, 1])
    margins, slopes = model.margins(points, label)
    loss = model.loss(points)
    for a, y in enumerate(label):
        others = [k for k in range(4) if k != y]
        np.testing.assert_allclose(margins[a], loss[a][:, others] - loss[a][:, [y]], atol=1e-12)
    d = rng.normal(size=3)
    moved = model.margins(points + d, label)[0]
    np.testing.assert_allclose(moved, margins + slopes @ d, atol=1e-12)


@pytest.mark.slow
def test_statements_hold_on_linear_softmax():
    """Cross-entropy of linear models under gradient steps: the same statements, exact quantities."""
    rng = np.random.default_rng(34)
    informative = 0
    for _ in range(120):
        labels = int(rng.integers(2, 4))
        shared = rng.normal(size=(1, labels, 2))
        weights = (shared + 0.2 * rng.normal(size=(2, labels, 2))) * rng.choice([0.3, 1.0, 3.0])
        model = LinearSoftmax(weights, np.zeros((2, labels)))
        points, eps = rng.normal(size=(20, 2)) * 2, float(rng.choice([0.02, 0.1, 0.5]))
        label = model.loss(points).sum(axis=1).argmin(axis=1)
        step = np.take_along_axis(model.gradient(points).sum(axis=1), label[:, None, None], axis=1)[:, 0]
        step *= eps / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-300)
        scenario = model.under(points, label, step, eps)
        for name in ON_SCENARIOS:
            quantities = scenario.quantities(name)
            value = float(STATEMENTS[name](**{key: quantities[key] for key in STATEMENTS[name].names}))
            if np.isnan(value) or not numerically_applicable(name, quantities).all():
                continue
            assert not STATEMENTS[name].contradicted_by(scenario.subject(name), value, tolerance=1e-9), name
            informative += value < 1.0 if STATEMENTS[name].sense is Sense.UPPER else value > 0.0
    assert informative > 100


def test_shift_distance_is_the_largest_difference_over_events():
    rng = np.random.default_rng(35)
    for _ in range(20):
        probability, attack = rng.dirichlet(np.ones(4)), rng.integers(0, 4, 4)
        world = LabelShift(probability, *np.zeros((3, 4)), attack)
        moved = np.bincount(attack, probability, minlength=4)
        events = itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(5))
        largest = max(abs(probability[list(e)].sum() - moved[list(e)].sum()) for e in events)
        assert world.rho == pytest.approx(largest)


def test_bad_worlds_are_named():
    good = {
        "probability": [1.0], "label": [0], "value": np.zeros((1, 2, 2)),
        "gradient": np.zeros((1, 2, 2, 1)), "curvature": np.zeros((1, 2, 2, 1, 1)),
    }  # fmt: skip
    for change, message in [
        ({"probability": [0.9]}, "sum to 1, got sums 0.9"),
        ({"label": [2]}, "labels below 2, got 2 to 2"),
        ({"value": np.zeros((1, 1, 2))}, "at least two models"),
        ({"gradient": np.zeros((1, 2, 3, 1))}, r"gradient of shape \(1, 2, 2, 1\), got \(1, 2, 3, 1\)"),
        ({"curvature": np.full((1, 2, 2, 1, 1), np.nan)}, "finite numbers in curvature"),
    ]:
        with pytest.raises(ValueError, match=message):
            LocalQuadratics(**{**good, **change})
    with pytest.raises(ValueError, match="l2 norm at most eps"):
        LocalQuadratics(**good).under([[2.0]], 1.0)
    with pytest.raises(ValueError, match="l2 norm at most eps"):
        LocalQuadratics(**good).under([[np.nan]], 1.0)
    with pytest.raises(ValueError, match="got 'theorem-9'"):
        LocalQuadratics(**good).under([[0.0]], 1.0).quantities("theorem-9")
    with pytest.raises(ValueError, match=r"truth of shape \(2,\)"):
        LabelShift([0.5, 0.5], [0], [0, 0], [0, 0], [0, 1])
    with pytest.raises(ValueError, match="attack within 0"):
        LabelShift([0.5, 0.5], [0, 0], [0, 0], [0, 0], [0, 2])
