import copy
import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from empirical.objectives import OBJECTIVES, TRS, CosL2, CosOnly, Step, Vanilla, objective_from_json
from empirical.objectives.gradients import absolute_cosine, clean_half, loss_gradients
from empirical.objectives.trs import find_support, norm_sum

RANGE = (0.0, 1.0)
STEP = Step(epoch=2, epochs=4, ramp=0.7, pixel_range=RANGE)


def tanh_members(n, *, dtype=torch.float64, batch_norm=False, seed=0):
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d if batch_norm else nn.Identity
    members = [
        nn.Sequential(nn.Flatten(), nn.Linear(9, 8), middle(8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(n)
    ]
    for member in members:
        for weight in member.parameters():
            nn.init.normal_(weight)
    return nn.ModuleList(members).to(dtype).train()


def batch(n=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 3, 3, generator=generator, dtype=dtype), torch.arange(n) % 4


def slow_gradient(member, x, y):
    """Input gradient of the cross-entropy of one sample (1, *shape)."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(member(x), y), x, create_graph=True)
    return gradient.flatten(), x


def slow_support(members, x, y, delta, steps=5):
    """Five signed steps of delta / 4 for one sample, on the sum of the members' gradient norms."""
    point = x
    for _ in range(steps):
        ascent = torch.zeros_like(x)
        for member in members:
            gradient, at = slow_gradient(member, point, y)
            ascent += torch.autograd.grad(gradient.norm(), at)[0]
        point = (point + delta / 4 * ascent.sign()).detach()
        point = torch.minimum(torch.maximum(point, x - delta), x + delta).clamp(*RANGE)
    return point


def slow_loss(members, x, y, *, lambda_a, lambda_b, ramp, delta, search="pair"):
    """The loss of TRS, section 5.2, term by term: a loop over samples and pairs."""
    cross_entropy = sum(functional.cross_entropy(member(x), y) for member in members) / len(members)
    frozen = copy.deepcopy(members).eval()  # with the running statistics that the line above has moved
    regulariser = 0.0
    for sample, label in zip(x.split(1), y.split(1), strict=True):
        joint = slow_support(frozen, sample, label, delta)
        for f, g in itertools.combinations(frozen, 2):
            grad_f, grad_g = slow_gradient(f, sample, label)[0], slow_gradient(g, sample, label)[0]
            cosine = (grad_f @ grad_g / (grad_f.norm() * grad_g.norm())).abs()
            point = joint if search == "joint" else slow_support((f, g), sample, label, delta)
            size = sum(slow_gradient(member, point, label)[0].norm() for member in (f, g))
            regulariser += lambda_a * cosine.item() + lambda_b * size.item()
    n = len(members)
    return cross_entropy.item() + ramp * 2 / (n * (n - 1)) * regulariser / len(x)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize(
    ("objective", "delta", "search"),
    [
        (TRS(3.0, 2.0, 0.1, 0.3), 0.2, "pair"),
        (TRS(3.0, 2.0, 0.1, 0.3, "joint"), 0.2, "joint"),
        (CosL2(3.0, 2.0), 0.0, "pair"),
        (CosOnly(3.0), 0.0, "pair"),
        (Vanilla(), 0.0, "pair"),
    ],
)
def test_loss_equals_the_loop_over_samples_and_pairs(objective, delta, search, n, batch_norm):
    members = tanh_members(n, batch_norm=batch_norm)
    x, y = batch()
    weights = {name: getattr(objective, name, 0.0) for name in ("lambda_a", "lambda_b")}
    expected = slow_loss(copy.deepcopy(members), x, y, **weights, ramp=0.7, delta=delta, search=search)
    assert objective(members, x, y, STEP).total.item() == pytest.approx(expected, rel=1e-10)


def test_terms_are_unweighted_and_add_up():
    members, (x, y) = tanh_members(3), batch()
    loss = TRS(3.0, 2.0)(members, x, y, STEP)
    terms = loss.terms
    total = terms["cross_entropy"] + 0.7 * (3.0 * terms["similarity"] + 2.0 * terms["smoothness"])
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert loss.logits.shape == (3, 6, 4)
    assert not loss.logits.requires_grad


@pytest.mark.parametrize("objective", [Vanilla(), CosOnly(3.0), CosL2(3.0, 2.0), TRS(3.0, 2.0, 0.1, 0.3)])
def test_gradient_matches_finite_differences(objective):
    members, (x, y) = tanh_members(3), batch()
    objective(members, x, y, STEP).total.backward()
    weights = list(members.parameters())
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]
    slope = sum((weight.grad * d).sum() for weight, d in zip(weights, directions, strict=True)).item()

    def shifted(h):
        moved = copy.deepcopy(members)
        with torch.no_grad():
            for weight, direction in zip(moved.parameters(), directions, strict=True):
                weight += h * direction
        return objective(moved, x, y, STEP).total.item()

    h = 1e-6
    assert slope == pytest.approx((shifted(h) - shifted(-h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("search", ["pair", "joint"])
def test_search_climbs_inside_the_ball_and_the_pixel_range(search):
    members, (x, y) = tanh_members(3).eval(), batch(40)
    groups = TRS(search=search).groups(3)
    clean = clean_half(members, x, y, STEP)
    support = find_support(members, groups, clean, y, STEP, 0.2)
    assert support.shape == (3 if search == "pair" else 1, *x.shape)
    assert (support - x).abs().max() <= 0.2 + 1e-12
    assert (support - x).abs().max() > 0.19
    assert support.min() >= 0
    assert support.max() <= 1
    for group, found in zip(groups, support, strict=True):
        together = nn.ModuleList(members[index] for index in group)
        everyone = [tuple(range(len(group)))]
        before = norm_sum(together, everyone, clean.x[None], y, STEP)
        after = norm_sum(together, everyone, found[None], y, STEP)
        assert after > 1.1 * before


def test_search_without_a_pixel_range_leaves_the_unit_cube():
    members, (x, y) = tanh_members(2).eval(), batch(40)
    step = Step(pixel_range=None)
    support = find_support(members, [(0, 1)], clean_half(members, x, y, step), y, step, 0.5)
    assert support.min() < 0
    assert support.max() > 1


def test_pair_and_joint_search_agree_for_two_members_only():
    x, y = batch()
    for n, equal in ((2, True), (3, False)):
        members = tanh_members(n)
        losses = [
            TRS(1.0, 2.0, search=search)(members, x, y, STEP).total.item() for search in ("pair", "joint")
        ]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) is equal


def test_each_method_is_a_special_case_of_trs():
    members, (x, y) = tanh_members(3), batch()
    trs = TRS(3.0, 2.0, 0.0, 0.0)(members, x, y, STEP).total
    torch.testing.assert_close(trs, CosL2(3.0, 2.0)(members, x, y, STEP).total)
    without_smoothness = TRS(3.0, 0.0)(members, x, y, STEP).total
    torch.testing.assert_close(without_smoothness, CosOnly(3.0)(members, x, y, STEP).total)
    before_the_ramp = TRS(3.0, 2.0)(members, x, y, Step(ramp=0.0)).total
    torch.testing.assert_close(before_the_ramp, Vanilla()(members, x, y, STEP).total)


def test_radius_grows_linearly_to_its_final_value():
    radii = [TRS(delta_initial=0.1, delta_final=0.3).delta(Step(epoch=m, epochs=4)) for m in (1, 2, 3, 4)]
    assert radii == pytest.approx([0.15, 0.2, 0.25, 0.3])


@pytest.mark.parametrize("objective", [CosL2(), TRS()])
def test_running_statistics_move_once_and_modes_stay(objective):
    members, (x, y) = tanh_members(2, batch_norm=True), batch()
    reference = copy.deepcopy(members)
    Vanilla()(reference, x, y, STEP)
    objective(members, x, y, STEP)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(members.get_buffer(name), buffer, rtol=0, atol=0)
    assert all(module.training for module in members.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in members.parameters())


def test_gradients_are_those_of_cross_entropy():
    members, (x, y) = tanh_members(1), batch()
    x.requires_grad_()
    found = loss_gradients(members[0](x), x, y)
    (expected,) = torch.autograd.grad(functional.cross_entropy(members[0](x), y, reduction="sum"), x)
    torch.testing.assert_close(found.slope[:, None] * found.direction, expected.flatten(1))
    torch.testing.assert_close(found.norms, expected.flatten(1).norm(dim=1))


def test_cosine_survives_a_saturated_softmax():
    x, y = batch(dtype=torch.float32)
    x.requires_grad_()
    weights = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(3))
    sure = 60 * functional.one_hot(y, 4)  # 1 - p_y is about e^-60: the loss gradient underflows to exactly 0
    f, g = (loss_gradients(x.flatten(1) @ w + sure, x, y) for w in weights)
    wide = x.detach().double().requires_grad_()
    f_wide, g_wide = (loss_gradients(wide.flatten(1) @ w.double() + sure, wide, y) for w in weights)
    naive = functional.cross_entropy(x.flatten(1) @ weights[0] + sure, y, reduction="sum")
    assert torch.autograd.grad(naive, x)[0].abs().max() < 1e-20
    torch.testing.assert_close(
        absolute_cosine(f, g).double(), absolute_cosine(f_wide, g_wide), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("objective", [CosOnly(100.0), CosL2(100.0, 10.0), TRS(100.0, 10.0)])
@pytest.mark.parametrize("dead", [1, 2])
def test_zero_gradients_give_finite_loss_and_weights_gradients(objective, dead):
    members, (x, y) = tanh_members(2, dtype=torch.float32), batch(dtype=torch.float32)
    with torch.no_grad():
        for member in members[:dead]:
            for weight in member.parameters():
                weight.zero_()
    loss = objective(members, x, y, STEP)
    loss.total.backward()
    assert loss.terms["similarity"] == 0
    assert all(weight.grad.isfinite().all() for weight in members.parameters())
    assert all(weight.grad.abs().max() < 1e3 for weight in members.parameters())


@pytest.mark.parametrize("objective", [Vanilla(), CosOnly(), CosL2(), TRS()])
def test_mixed_precision_is_near_full_precision_but_not_equal(objective):
    members, (x, y) = tanh_members(2, dtype=torch.float32), batch(dtype=torch.float32)
    full = objective(members, x, y, Step())
    mixed = objective(members, x, y, Step(mixed_precision=True))
    mixed.total.backward()
    assert mixed.total.dtype == mixed.logits.dtype == torch.float32
    assert mixed.total.item() == pytest.approx(full.total.item(), rel=0.05)
    assert mixed.total.item() != full.total.item()
    assert all(weight.grad.isfinite().all() for weight in members.parameters())


@pytest.mark.parametrize(
    "objective", [Vanilla(), CosOnly(2.0), CosL2(2.0, 3.0), TRS(1.0, 2.0, 0.1, 0.2, "joint")]
)
def test_json_round_trip_through_the_registry(objective):
    assert type(objective) is OBJECTIVES[objective.name]
    assert objective_from_json(json.loads(json.dumps(objective.to_json()))) == objective


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TRS(lambda_a=-1.0), "trs: expected lambda_a finite and >= 0, got -1.0"),
        (lambda: TRS(delta_final=float("nan")), "trs: expected delta_final finite and >= 0, got nan"),
        (lambda: TRS(search="random"), "trs: expected search one of pair, joint, got 'random'"),
        (lambda: CosOnly(float("inf")), "cos-only: expected lambda_a finite and >= 0, got inf"),
        (lambda: CosL2(1.0, -0.5), "cos-l2: expected lambda_b finite and >= 0, got -0.5"),
        (lambda: CosL2(1.0, "2"), "cos-l2: expected a number for lambda_b, got '2'"),
        (
            lambda: objective_from_json({"name": "magic"}),
            "expected an objective among vanilla, .*, got 'magic'",
        ),
        (lambda: objective_from_json({"name": "cos-only", "lambda_b": 1.0}), "cos-only: expected parameters"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
