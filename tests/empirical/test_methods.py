"""What each joint training method does to an ensemble, and that its loss is the one that its paper prints."""

import copy
import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from empirical import objectives
from empirical.accuracy import evaluate
from empirical.attacks import Attack
from empirical.config import TrainingConfig
from empirical.data import load_dataset
from empirical.ensemble import load_checkpoint
from empirical.models import ModelConfig, activation_layers, build_model
from empirical.objectives import (
    ADP,
    CKAE,
    DVERGE,
    GAL,
    OBJECTIVES,
    TRS,
    AdvT,
    CosOnly,
    Loss,
    Parameters,
    Step,
    TRSAdvT,
    Vanilla,
    objective_from_json,
    register,
)
from empirical.objectives.adp import ensemble_entropy, log_volume
from empirical.objectives.advt import adversarial_cross_entropy, attacked
from empirical.objectives.ckae import centred_gram, cka
from empirical.objectives.dverge import feature_distance, features
from empirical.objectives.gal import alignment
from empirical.objectives.gradients import LossGradients, clean_half
from empirical.robustness import robust_accuracy
from empirical.training import train
from estimators import cross_entropy, input_gradients

CONFIG = TrainingConfig(
    dataset="digits", model=ModelConfig("mlp", "gelu", (32, 32)), epochs=6, lr=1e-2, schedule="onecycle",
    ramp=0.3, device="cpu",
)  # fmt: skip


def a_step(**changes):
    """A step with a generator of its own, as it was seeded."""
    return Step(**{"epoch": 2, "epochs": 4, "ramp": 0.7, **changes})


@functools.cache
def digits():
    return load_dataset("digits")


@functools.cache
def trained(objective):
    return train(replace(CONFIG, objective=objective), data=digits(), progress=False)


def test_logits(ensemble):
    with torch.no_grad():
        return torch.stack([member(digits().test.x) for member in ensemble.members])


test_logits.__test__ = False


def loss_gradients_of(ensemble):
    points = digits().test
    return [input_gradients(member, cross_entropy, points.x, points.y) for member in ensemble.members]


def mean_cosine(ensemble, absolute=False):
    pairs = itertools.combinations(loss_gradients_of(ensemble), 2)
    cosines = torch.stack([functional.cosine_similarity(f.flatten(1), g.flatten(1)) for f, g in pairs])
    return (cosines.abs() if absolute else cosines).mean().item()


def members_of(n, *, dtype=torch.float64, batch_norm=False, seed=0, classes=6):
    """Networks with large random weights, in training mode."""
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d if batch_norm else nn.Identity
    members = [
        nn.Sequential(nn.Flatten(), nn.Linear(9, 8), middle(8), nn.Tanh(), nn.Linear(8, classes))
        for _ in range(n)
    ]
    for member in members:
        for weight in member.parameters():
            nn.init.normal_(weight)
    return nn.ModuleList(members).to(dtype).train()


def batch(n=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 3, 3, generator=generator, dtype=dtype), torch.arange(n) % 6


def of_all_methods():
    return [method() for method in OBJECTIVES.values()]


@pytest.mark.parametrize("objective", of_all_methods(), ids=lambda objective: objective.name)
@pytest.mark.parametrize("n", [2, 4])
def test_every_method_trains_exactly_the_members_of_the_stage(objective, n):
    members, (x, y) = members_of(n, batch_norm=True), batch()
    assert objective_from_json(objective.to_json()) == objective
    stages = objective.stages(n)
    for stage in range(stages):
        members.zero_grad()
        step = a_step(stage=stage, sample_weights=torch.ones(len(x), dtype=x.dtype))
        loss = objective(members, x, y, step)
        loss.total.backward()
        moved = [
            any(weight.grad is not None and weight.grad.any() for weight in member.parameters())
            for member in members
        ]
        boosted = objective.name in ("adaboost", "gradient-boost")
        assert moved == [index == stage or not boosted for index in range(n)]
        assert all(module.training for module in members.modules())
        assert all(weight.requires_grad for weight in members.parameters())
        assert not loss.logits.requires_grad
        assert x.grad is None


@pytest.mark.parametrize("objective", [ADP(), GAL(2.0), CKAE(2.0)])
def test_gradient_matches_finite_differences(objective):
    members, (x, y) = members_of(3), batch()
    objective(members, x, y, a_step()).total.backward()
    weights = list(members.parameters())
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]
    slope = sum((weight.grad * d).sum() for weight, d in zip(weights, directions, strict=True)).item()

    def shifted(h):
        moved = copy.deepcopy(members)
        with torch.no_grad():
            for weight, direction in zip(moved.parameters(), directions, strict=True):
                weight += h * direction
        return objective(moved, x, y, a_step()).total.item()

    assert slope == pytest.approx((shifted(1e-6) - shifted(-1e-6)) / 2e-6, rel=1e-6)


def test_adp_is_the_loop_over_samples():
    members, (x, y) = members_of(3), batch()
    expected = 0.0
    probabilities = np.stack([member(x).softmax(1).detach().numpy() for member in members], 1)
    for rows, label in zip(probabilities, y.tolist(), strict=True):
        mean = rows.mean(0)
        others = np.delete(rows, label, axis=1)
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        log_det = math.log(np.linalg.det(others @ others.T + 1e-6 * np.eye(3)))
        entropy = -(mean * np.log(mean)).sum()
        expected += -np.log(rows[:, label]).sum() - 0.7 * (2.0 * entropy + 0.5 * log_det)
    assert ADP()(members, x, y, a_step()).total.item() == pytest.approx(expected / len(x), rel=1e-9)


def test_volume_is_one_for_orthogonal_predictions_and_tiny_for_equal_ones():
    orthogonal = 200.0 * torch.eye(5, dtype=torch.float64)[None, 1:4].transpose(0, 1)
    y = torch.tensor([0])
    assert log_volume(orthogonal, y).item() == pytest.approx(3 * math.log(1 + 1e-6), rel=1e-6)
    equal = torch.zeros(3, 1, 5, dtype=torch.float64)
    assert log_volume(equal, y).item() == pytest.approx(math.log(1e-12 * (3 + 1e-6)), rel=1e-6)
    sure = equal + 80.0 * torch.eye(5, dtype=torch.float64)[0]  # the true class takes all the probability
    assert log_volume(sure, y).item() == pytest.approx(log_volume(equal, y).item())


def test_adp_raises_volume_and_entropy():
    labels = digits().test.y
    plain, diverse = (test_logits(trained(objective)) for objective in (Vanilla(), ADP()))
    assert log_volume(diverse, labels) > log_volume(plain, labels) + 2
    assert ensemble_entropy(diverse) > 2 * ensemble_entropy(plain)
    assert evaluate(trained(ADP()), digits().test).weakest > 0.8


def test_adp_needs_more_classes_than_members():
    with pytest.raises(ValueError, match="adp: expected at least 11 classes for 10 members, got 10"):
        train(replace(CONFIG, objective=ADP(), members=10), data=digits())
    ADP().check_fits(9, 10)


def test_gal_is_the_loop_over_samples_and_lowers_the_signed_cosine():
    members, (x, y) = members_of(3), batch()
    gradients = [
        torch.stack([torch.autograd.grad(functional.cross_entropy(member(s), label), s)[0].flatten()
                     for s, label in zip(x.clone().requires_grad_().split(1), y.split(1), strict=True)])
        for member in members
    ]  # fmt: skip
    sums = sum(functional.cosine_similarity(f, g).exp() for f, g in itertools.combinations(gradients, 2))
    found = alignment(clean_half(members, x, y, a_step()).gradients)
    assert found.item() == pytest.approx(sums.log().mean().item(), rel=1e-9)
    assert mean_cosine(trained(GAL())) < mean_cosine(trained(Vanilla())) - 0.3


def test_cos_only_lowers_the_absolute_cosine():
    assert mean_cosine(trained(CosOnly()), True) < 0.3 * mean_cosine(trained(Vanilla()), True)


def test_gal_adds_noise_to_half_of_the_samples():
    x = torch.zeros(2000, 1, 3, 3)
    noisy = GAL(noise=0.045).noisy(x, a_step())
    chosen = noisy.flatten(1).any(1)
    assert 0.45 < chosen.float().mean() < 0.55
    assert noisy[chosen].std() == pytest.approx(0.045, rel=0.03)
    assert GAL().noisy(x, a_step()) is x


def test_cka_is_the_printed_quotient_and_one_for_a_rotated_copy():
    generator = torch.Generator().manual_seed(0)
    f, g = (
        LossGradients(
            torch.randn(7, 5, generator=generator, dtype=torch.float64),
            torch.rand(7, generator=generator, dtype=torch.float64),
        )
        for _ in range(2)
    )
    rows = [(each.slope[:, None] * each.direction).numpy() for each in (f, g)]
    centring = np.eye(7) - 1 / 7

    def hsic(k, other):
        return np.trace(k @ centring @ other @ centring) / 36

    k, other = (each @ each.T for each in rows)
    expected = hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))
    assert cka(centred_gram(f), centred_gram(g)).item() == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    turned = LossGradients(1e-9 * f.direction @ rotation, f.slope)
    assert cka(centred_gram(f), centred_gram(turned)).item() == pytest.approx(1.0, rel=1e-9)
    nothing = LossGradients(0 * f.direction, f.slope)
    assert cka(centred_gram(f), centred_gram(nothing)) == 0


def test_ckae_lowers_cka():
    def measured(ensemble):
        ones = torch.ones(len(digits().test))
        grams = [centred_gram(LossGradients(g.flatten(1), ones)) for g in loss_gradients_of(ensemble)]
        return np.mean([cka(k, other).item() for k, other in itertools.combinations(grams, 2)])

    assert measured(trained(CKAE())) < 0.6 * measured(trained(Vanilla()))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_distilled_inputs_have_the_features_of_the_target(layer):
    member, data = trained(Vanilla()).members[0], digits().test
    source, target = data.x[:60], data.x[60:120]
    step = a_step(epoch_draw=(layer + 0.5) / 3)
    found = DVERGE(0.3).distil(member, source, target, step)
    assert (found - source).abs().max() <= 0.3 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    with torch.no_grad():
        wanted = features(member, target, layer, step)
        before, after = (feature_distance(features(member, x, layer, step), wanted) for x in (source, found))
    assert after.mean() < 0.7 * before.mean()
    assert (after < before).float().mean() > 0.95


def test_distillation_takes_signed_steps_along_normalised_momentum():
    member, (x, _) = members_of(1).eval()[0], batch()
    target, point, momentum = x.flip(0), x, torch.zeros_like(x)
    step = a_step(epoch_draw=0.9)  # the last of two layers, the logits
    for _ in range(4):
        point = point.clone().requires_grad_()
        loss = (member(point) - member(target)).square().mean(1).sum()
        (gradient,) = torch.autograd.grad(-loss, point)
        momentum = momentum + gradient / gradient.flatten(1).abs().sum(1)[:, None, None, None]
        point = point.detach() + 0.05 * momentum.sign()
        point = torch.maximum(torch.minimum(point, x + 0.5), x - 0.5).clamp(0, 1)
    torch.testing.assert_close(DVERGE(0.5, steps=4).distil(member, x, target, step), point)


@pytest.mark.parametrize(
    ("architecture", "layers", "shapes"),
    [("mlp", 3, [(64,), (64,), (10,)]), ("lenet", 5, None), ("resnet20", 20, None)],
)
def test_feature_layers_are_what_enters_each_activation_and_the_logits(architecture, layers, shapes):
    model = build_model(ModelConfig(architecture, "tanh"), shape=(1, 8, 8), classes=10).eval()
    x = torch.rand(2, 1, 8, 8)
    assert len(activation_layers(model)) + 1 == layers
    found = [features(model, x, layer, a_step()) for layer in range(layers)]
    assert torch.equal(found[-1], model(x))
    if shapes:
        assert [tuple(each.shape[1:]) for each in found] == shapes
        assert torch.equal(found[0], model[2](model[1](model[0](x))))
        assert found[0].min() < -1e-3 or found[0].max() > 1e-3
    assert len({tuple(each.flatten().tolist()) for each in found}) == layers


def test_dverge_starts_with_vanilla_training_and_draws_a_layer_each_epoch(monkeypatch):
    members, (x, y) = members_of(2), batch()
    assert DVERGE().stages(5) == 2
    assert DVERGE()(members, x, y, a_step()).total == Vanilla()(members, x, y, a_step()).total
    seen = []
    actual = features

    def recording(member, x, layer, step):
        seen.append((step.stage, step.epoch, layer))
        return actual(member, x, layer, step)

    monkeypatch.setattr("empirical.objectives.dverge.features", recording)
    config = replace(CONFIG, members=2, objective=DVERGE(steps=1), batch_size=1400, epochs=8)
    train(config, data=digits())
    layers = dict.fromkeys((epoch, layer) for _, epoch, layer in seen)
    assert {stage for stage, _, _ in seen} == {1}
    assert [epoch for epoch, _ in layers] == list(range(1, 9))
    assert {layer for _, layer in layers} == {0, 1, 2}


def test_dverge_trains_on_the_others_distilled_inputs_with_the_source_labels():
    members, (x, y) = members_of(3), batch()
    step = a_step(stage=1, epoch_draw=0.4)
    objective = DVERGE(0.2, steps=3)
    loss = objective(members, x, y, step)
    targets = x[torch.randperm(len(x), generator=a_step().generator)]
    for member in members:
        member.eval()
    distilled = [objective.distil(member, x, targets, step) for member in members]
    expected = sum(
        functional.cross_entropy(members[i](distilled[j]), y) for i, j in itertools.permutations(range(3), 2)
    )
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-9)
    # Nothing flows through the search: these are the gradients of fixed inputs.
    loss.total.backward()
    found = [weight.grad.clone() for weight in members.parameters()]
    members.zero_grad()
    expected.backward()
    for weight, gradient in zip(members.parameters(), found, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_adversarial_points_stay_in_the_ball_and_raise_the_ensembles_loss():
    ensemble, data = trained(Vanilla()), digits().test
    points = attacked(ensemble.members, data.x, data.y, a_step(), 0.1, steps=10)
    assert 0.099 < (points - data.x).abs().max() <= 0.1 + 1e-6
    assert points.min() >= 0
    assert points.max() <= 1
    before, after = (functional.nll_loss(ensemble(x), data.y).item() for x in (data.x, points))
    assert after > 5 * before


def test_advt_raises_robust_accuracy():
    attack = Attack("pgd", "linf", 0.1, 20, seed=0)
    plain, hardened = (
        robust_accuracy(trained(objective), digits().test, attack, support="finite").value
        for objective in (Vanilla(), AdvT(steps=5))
    )
    assert hardened > plain + 0.1
    assert evaluate(trained(AdvT(steps=5)), digits().test).weakest > 0.9


def test_the_radius_of_adversarial_training_grows_with_the_ramp():
    x, y = batch()
    totals = [
        objective(members_of(2), x, y, a_step(ramp=ramp)).total.item()
        for objective, ramp in ((AdvT(0.2), 0.0), (Vanilla(), 0.0), (AdvT(0.2), 0.5), (AdvT(0.1), 1.0))
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)
    assert totals[2] == pytest.approx(totals[3], rel=1e-12)
    assert totals[2] > totals[1]


def test_trs_advt_is_the_regulariser_on_top_of_adversarial_training():
    x, y = batch()

    def total(objective):
        return objective(members_of(3), x, y, a_step()).total.item()

    trs = {"lambda_a": 3.0, "lambda_b": 2.0}
    assert total(TRSAdvT(0.0, 0.0, delta_adv=0.2)) == pytest.approx(total(AdvT(0.2)), rel=1e-12)
    assert total(TRSAdvT(**trs, delta_adv=0.0)) == pytest.approx(total(TRS(**trs)), rel=1e-12)
    both = total(TRS(**trs)) - total(Vanilla()) + total(AdvT(0.2))
    assert total(TRSAdvT(**trs, delta_adv=0.2)) == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize("objective", [AdvT(0.2), TRSAdvT(delta_adv=0.2)])
def test_adversarial_points_alone_move_running_statistics(objective):
    members, (x, y) = members_of(2, batch_norm=True), batch()
    reference = copy.deepcopy(members)
    adversarial_cross_entropy(reference, x, y, a_step(), 0.2, 10)
    objective(members, x, y, a_step())
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(members.get_buffer(name), buffer, rtol=0, atol=0)
        assert not name.endswith("num_batches_tracked") or buffer == 1  # the search leaves them alone


@dataclass(frozen=True)
class Smoothed(Parameters):
    """A method of a user's own: cross-entropy with label smoothing."""

    name: ClassVar[str] = "smoothed"
    amount: float = 0.2

    def __call__(self, members, x, y, step) -> Loss:
        logits = torch.stack([step.logits(member, x) for member in members])
        losses = [functional.cross_entropy(each, y, label_smoothing=self.amount) for each in logits]
        total = torch.stack(losses).mean()
        return Loss(total, {"smoothed": total.detach()}, logits.detach())


def test_a_method_of_ones_own_takes_one_registration(tmp_path):
    output = tmp_path / "own.safetensors"
    try:
        assert register(Smoothed) is Smoothed
        config = replace(CONFIG, objective=Smoothed(0.3), epochs=2)
        ensemble = train(config, data=digits(), output=output)
        loaded, metadata = load_checkpoint(output)
        assert TrainingConfig.from_json(metadata["training"]) == config
        assert metadata["history"][-1]["smoothed"] < metadata["history"][0]["smoothed"]
        x = digits().test.x
        assert torch.equal(loaded(x), ensemble(x))
        with pytest.raises(ValueError, match="expected a new name for a method, got 'smoothed'"):
            register(Smoothed)
    finally:
        objectives._METHODS.pop("smoothed")
    with pytest.raises(TypeError, match="expected a subclass of Parameters"):
        register(dict)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ADP(alpha=-1.0), "adp: expected alpha finite and >= 0, got -1.0"),
        (lambda: GAL(noise=math.nan), "gal: expected noise finite and >= 0, got nan"),
        (lambda: CKAE("1"), "ckae: expected a number for weight, got '1'"),
        (lambda: DVERGE(steps=0), "dverge: expected steps a whole number >= 1, got 0"),
        (lambda: AdvT(steps=2.0), "advt: expected steps a whole number >= 1, got 2.0"),
        (lambda: TRSAdvT(search="both"), "trs-advt: expected search one of pair, joint, got 'both'"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
