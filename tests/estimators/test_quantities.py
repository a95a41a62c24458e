"""What statements take about a pair and an attack, against worlds in which everything is known exactly."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bounds import STATEMENTS, Estimate, Sense, Status, evaluate, families
from bounds.worlds import LocalQuadratics, random_quadratics
from estimators.distribution import Distribution
from estimators.points import measure_attack, measure_points
from estimators.quantities import Pair, measure_quantities

UNTARGETED = (
    "theorem-2",
    "theorem-4",
    "theorem-4-repaired",
    "refined-r3-untargeted",
    "refined-r6",
    "refined-r6-pointwise",
)
TARGETED = (
    "theorem-1",
    "theorem-1-repaired",
    "theorem-3",
    "theorem-3-repaired",
    "refined-r3",
    "refined-r4",
    "refined-cantelli",
)
STARRED = ("theorem-3-repaired", "theorem-4-repaired", "refined-r3", "refined-r3-untargeted", "refined-r4")
APART = 1000.0


class WorldModel(nn.Module):
    """One model of a world of local quadratics: logits are minus the losses, around atoms far apart."""

    def __init__(self, world, model):
        super().__init__()
        self.parts = [
            torch.tensor(array[:, model]) for array in (world.value, world.gradient, world.curvature)
        ]

    def forward(self, x):
        atom = torch.round(x[:, 0].detach() / APART).long()
        value, gradient, curvature = (part[atom] for part in self.parts)
        d = x - functional.pad(APART * atom[:, None].to(x.dtype), (0, x.shape[1] - 1))
        bend = torch.einsum("nkde,nd,ne->nk", curvature, d, d)
        return -(value + torch.einsum("nkd,nd->nk", gradient, d) + bend / 2)


def own_loss(logits, labels):
    return -logits.gather(1, labels[:, None])[:, 0]


class Measured:
    """A world of uniform atoms under an attack: the exact scenario, and the measurements of its models."""

    def __init__(self, world, perturbation, eps, *, target=1, about=None):
        self.world, self.eps = world, eps
        self.scenario = world.under(perturbation, eps, target=target)
        self.models = [WorldModel(world, model) for model in range(2)]
        self.x = torch.zeros(len(world.label), world.gradient.shape[-1], dtype=torch.float64)
        self.x[:, 0] = APART * torch.arange(len(world.label))
        self.y, self.x_adv = torch.tensor(world.label), self.x + torch.tensor(perturbation)
        points = measure_points(self.models, self.x, self.y, loss=own_loss, target=target, batch_size=7)
        about = about or Distribution()
        self.pairs = {targeted: Pair(points, about, targeted) for targeted in (False, True)}
        self.attacked = measure_attack(self.models, self.x, self.x_adv, eps, loss=own_loss)

    def quantities(self, statement):
        """Exact and measured quantities, the latter None where nothing can transfer."""
        truth = self.scenario.quantities(statement)
        pair = self.pairs[statement in TARGETED]
        found = pair.quantities(self.attacked, eps=self.eps, beta=Estimate.exact(truth["beta"]))
        return truth, found.get(statement)


def random_world(seed, *, points=6, labels=3, dimension=2):
    rng = np.random.default_rng(seed)
    drawn = random_quadratics(rng, 1, points=points, labels=labels, dimension=dimension)
    uniform = np.full(points, 1 / points)
    world = LocalQuadratics(uniform, drawn.label[0], drawn.value[0], drawn.gradient[0], drawn.curvature[0])
    # Along F's gradient at the true label, as an attack would go.
    step = world.gradient[np.arange(points), 0, world.label] + 1e-3 * rng.normal(size=(points, dimension))
    return world, 0.999 * step / np.linalg.norm(step, axis=1, keepdims=True)


def close(found, truth):
    return math.isclose(found, truth, rel_tol=1e-8, abs_tol=1e-9)


@pytest.mark.parametrize("statement", UNTARGETED + TARGETED)
def test_quantities_are_those_of_the_exact_world(statement):
    compared = 0
    for seed in range(12):
        measured = Measured(*random_world(seed), 1.0)
        truth, found = measured.quantities(statement)
        if found is None:
            continue
        assert set(STATEMENTS[statement].names) <= set(found)
        # There S_upper runs over more labels, and R4's weight over a coarser grid.
        for name in set(truth) - {"S_upper", "weight", "mixed_gradient"}:
            assert close(found[name].value, truth[name]), (seed, name)
            assert found[name].is_exact
            compared += 1
        if "S_upper" in truth:
            labels = measured.scenario.is_label
            if statement in ("refined-r3", "refined-cantelli"):
                labels = labels | measured.scenario.is_target
            assert close(found["S_upper"].value, measured.scenario.similarity(labels)[1])
    assert compared > 10


def test_the_mixed_margin_gradient_is_its_largest_norm_where_transfer_is_possible():
    for seed in range(10):
        measured = Measured(*random_world(seed), 1.0)
        _, found = measured.quantities("refined-r4")
        if found is None:
            continue
        gradient, label = measured.scenario.gradient, measured.world.label
        slopes = gradient[:, :, 1] - gradient[np.arange(len(label)), :, label]
        weight = found["weight"].value
        mixed = np.linalg.norm(weight * slopes[:, 0] + (1 - weight) * slopes[:, 1], axis=1)
        assert close(found["mixed_gradient"].value, mixed[measured.scenario.proper].max())
        # The chosen weight is at least as good as each single model and the plain mean.
        bound = evaluate("refined-r4", found)
        exact = evaluate("refined-r4", measured.scenario.quantities("refined-r4"))
        if exact.value is not None:
            assert bound.value <= exact.value + 1e-9


def test_statements_evaluated_on_them_are_never_wrong_and_refinements_never_worse():
    informative = dict.fromkeys(UNTARGETED + TARGETED, 0)
    for seed in range(16):
        world, attack = random_world(seed, points=3)
        scale = 0.02 if seed % 2 else 1.0
        measured = Measured(world, scale * attack, scale)
        values = {}
        for statement in informative:
            _, found = measured.quantities(statement)
            if found is None:
                continue
            bound = evaluate(statement, found)
            informative[statement] += bound.status is Status.INFORMATIVE
            values[statement] = bound.value
            if bound.guaranteed is not None:
                rate = measured.scenario.subject(statement)
                upper = bound.statement.sense is Sense.UPPER
                assert (rate <= bound.guaranteed + 1e-9) if upper else (rate >= bound.guaranteed - 1e-9)
        for better, worse in (
            ("theorem-3-repaired", "theorem-3"),
            ("theorem-4-repaired", "theorem-4"),
            ("refined-r3-untargeted", "theorem-4-repaired"),
        ):
            if values.get(worse) is not None and values.get(better) is not None:
                assert values[better] <= values[worse] + 1e-9
    assert {name for name, count in informative.items() if count} >= {*UNTARGETED[1:4], *TARGETED[2:]}
    assert not informative["theorem-1"]  # as printed it never says anything


def test_repaired_theorem_1_speaks_where_the_printed_one_is_void():
    scenario = families.theorem_1_repaired_attained()
    world = LocalQuadratics.affine(scenario.probability, scenario.label, scenario.loss, scenario.gradient)
    measured = Measured(world, np.array([[-1.0]]), 1.0)
    printed, repaired = (measured.quantities(name)[1] for name in TARGETED[:2])
    assert evaluate("theorem-1", printed).status is Status.INAPPLICABLE
    assert evaluate("theorem-1-repaired", repaired).guaranteed == pytest.approx(1.0)


def test_theorem_2_and_its_replacements_speak_in_the_family_made_for_them():
    scenario = families.theorem_2_nearly_one()
    world = LocalQuadratics.affine(scenario.probability, scenario.label, scenario.loss, scenario.gradient)
    measured = Measured(world, np.array([[1.0]]), 1.0)
    wanted = {"theorem-2": 98 / 99, "refined-r6": 1.0, "refined-r6-pointwise": 1.0}
    for statement, value in wanted.items():
        bound = evaluate(statement, measured.quantities(statement)[1])
        assert bound.guaranteed == pytest.approx(value, abs=1e-6)


def softmax_pair(seed=0, count=40, classes=3):
    """Two linear classifiers, points that each gets mostly right, and a step along F's gradient."""
    torch.manual_seed(seed)
    y = torch.arange(count) % classes
    x = 2 * functional.one_hot(y, 4).double() + 0.3 * torch.randn(count, 4, dtype=torch.float64)
    models = [nn.Linear(4, classes).double() for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model.weight.copy_(torch.eye(classes, 4) + 0.2 * torch.randn(classes, 4))
            model.bias.zero_()
    x_adv = x + 0.05 * functional.normalize(torch.randn(count, 4, dtype=torch.float64), dim=1)
    return models, x, y, x_adv


@pytest.mark.parametrize("target", [None, 1])
def test_population_intervals_contain_the_sample_and_err_to_the_inside(target):
    models, x, y, x_adv = softmax_pair()
    given = {"eps": 0.05, "beta": Estimate.exact(1.0), "target": target}
    finite = measure_quantities(*models, x, y, x_adv, **given)
    drawn = measure_quantities(*models, x, y, x_adv, **given, support="population", loss_range=(0.0, 30.0))
    assert set(drawn) == set(finite)
    one_sided = {"B": "lower", "S_upper": "lower", "mixed_gradient": "lower", "S_lower": "upper"}
    one_sided |= dict.fromkeys(("l_min", "l_min_F", "l_min_G"), "upper")
    for statement, quantities in drawn.items():
        for name, estimate in quantities.items():
            exact = finite[statement][name]
            assert exact.is_exact
            if name == "weight":
                continue
            assert estimate.lower <= exact.value <= estimate.upper
            if name in one_sided:
                assert getattr(estimate, one_sided[name]) == exact.value
                assert not estimate.is_exact
            if name.startswith(("xi", "eta", "alpha", "right", "linked")):
                assert estimate.failure_probability == pytest.approx(0.05)
                assert estimate.lower < estimate.upper < 30
        for name in ("xi_F", "xi_G"):
            if name in quantities and statement in STARRED:
                # On the points that count cross-entropy is at most log K, so the interval is narrower.
                assert quantities[name].upper - quantities[name].lower < math.log(3)
                assert "[0, 1.098" in quantities[name].method
        if statement in STARRED and "l_min" in quantities:
            assert quantities["l_min"].lower == pytest.approx(math.log(2), abs=1e-5)


def test_without_a_range_a_population_mean_says_that_it_has_no_interval():
    models, x, y, x_adv = softmax_pair()
    found = measure_quantities(*models, x, y, x_adv, eps=0.05, beta=Estimate.exact(1.0), support="population")
    xi = found["theorem-4"]["xi_F"]
    assert 0.0 <= xi.lower < xi.value
    assert xi.upper == math.inf
    assert "no distribution-free interval" in xi.method
    assert found["theorem-4-repaired"]["xi_F"].upper < math.log(3)
    assert evaluate("theorem-4", found["theorem-4"]).guaranteed is None


def test_linked_rate_falls_with_the_angle_and_with_the_ends_of_beta():
    """F and G of the family of Theorem 2 at angles that cost 0, .9, .96 and 1.1 of what .98 may cost."""
    turn = np.array([0.0, 0.9, 0.96, 1.1])
    cosine = 1 - turn**2 / 2
    gradient = np.zeros((4, 2, 2, 2))
    gradient[:, :, 0, 0], gradient[:, :, 1, 0] = 1.0, -0.001
    gradient[:, 1, 0] = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    value = np.tile([[0.0, 0.991], [0.0, 0.011]], (4, 1, 1))
    world = LocalQuadratics.affine(np.full(4, 0.25), np.zeros(4, int), value, gradient)
    measured = Measured(world, np.tile([1.0, 0.0], (4, 1)), 1.0)

    def found(beta, statement="refined-r6-pointwise"):
        return measured.pairs[False].quantities(measured.attacked, eps=1.0, beta=beta)[statement]

    linked = found(Estimate(0.05, 0.01, 0.5))["linked_rate"]
    assert (linked.lower, linked.value, linked.upper) == (0.25, 0.5, 0.75)
    # Without an upper end of beta nothing is sure to be linked.
    unknown = Estimate.at_least(0.05, "seen")
    assert (found(unknown)["linked_rate"].lower, found(unknown)["linked_rate"].value) == (0.0, 0.5)
    assert found(unknown, "theorem-2")["c_F"].lower == -math.inf


def test_statements_about_points_that_can_transfer_are_missing_where_there_are_none():
    models, x, y, x_adv = softmax_pair()
    wrong = (y + 1) % 3
    keep = torch.stack([model(x).argmax(1) == y for model in models]).all(0)
    found = measure_quantities(*models, x[keep], wrong[keep], x_adv[keep], eps=0.05, beta=Estimate.exact(1.0))
    assert set(found) == {"theorem-2", "theorem-4", "refined-r6", "refined-r6-pointwise"}


class Flat(nn.Module):
    """Two constant logits: every gradient is zero."""

    def forward(self, x):
        return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)


def test_zero_gradients_void_the_lower_bounds_and_do_no_harm_to_the_upper_ones():
    models, x, y, _ = softmax_pair(classes=2)
    given = {"eps": 0.005, "beta": Estimate.exact(1.0)}
    found = measure_quantities(Flat(), models[1], x, y * 0, x, **given)
    assert found["theorem-4"]["S_upper"].value == -1.0
    assert "no cosine is defined" in found["theorem-4"]["S_upper"].method
    assert found["refined-r6-pointwise"]["linked_rate"].value == 0.0
    assert f"zero gradient at {len(x)} points" in found["theorem-2"]["c_F"].method
    assert evaluate("theorem-2", found["theorem-2"]).status is Status.INAPPLICABLE
    assert evaluate("theorem-4", found["theorem-4"]).value is not None


def test_bad_input_is_refused():
    models, x, y, x_adv = softmax_pair()
    beta = Estimate.exact(1.0)
    with pytest.raises(ValueError, match=r"eps = 0\.01, got 0\.05"):
        measure_quantities(*models, x, y, x_adv, eps=0.01, beta=beta)
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, got 3"):
        measure_quantities(*models, x, y, x_adv, eps=0.05, beta=beta, target=3)
    with pytest.raises(ValueError, match="confidence in"):
        measure_quantities(*models, x, y, x_adv, eps=0.05, beta=beta, confidence=1.0)
    points = measure_points(models, x, y)
    with pytest.raises(ValueError, match="measured with a target"):
        Pair(points, Distribution(), targeted=True).quantities(
            measure_attack(models, x, x_adv, 0.05), eps=0.05, beta=beta
        )
