"""Certified training: its terms by hand, its Lipschitz estimate, and what it does to certificates."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bounds import transfer_certificate
from empirical.config import TrainingConfig
from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from empirical.objectives import Certified, Step, Vanilla
from empirical.objectives.certified import Row, heaviest
from empirical.objectives.spectral import lipschitz_estimate
from empirical.training import train
from estimators import cross_entropy, input_gradients
from estimators.certified import certify_transfer, lipschitz_constants, read_network
from estimators.losses import margin


def members_of(n, hidden=8, classes=4):
    """Smooth networks with large random weights, in training mode."""
    torch.manual_seed(0)
    members = nn.ModuleList(
        nn.Sequential(nn.Flatten(), nn.Linear(9, hidden), nn.Tanh(), nn.Linear(hidden, classes))
        for _ in range(n)
    )
    for weight in members.parameters():
        nn.init.normal_(weight)
    return members.double().train()


def batch(n=10):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 3, 3, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def smooth_margin(member, sample, label):
    logits = member(sample.reshape(1, 1, 3, 3))[0]
    return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)


def second_order_row(members, shares, sample, label):
    """Weighted margin, its gradient and its Hessian at one sample."""

    def mixed(flat):
        return sum(
            share * smooth_margin(member, flat, label) for share, member in zip(shares, members, strict=True)
        )

    flat = sample.flatten()
    return (
        mixed(flat).item(),
        torch.autograd.functional.jacobian(mixed, flat),
        torch.autograd.functional.hessian(mixed, flat),
    )


def test_the_loss_is_the_loop_over_samples_and_pairs():
    members, (x, y) = members_of(3), batch()
    objective, eps = Certified(0.5, 0.3, 0.7, 2.0), 0.5 * 0.6
    softplus = np.log1p
    single, joint = [], []
    for sample, label in zip(x, y.tolist(), strict=True):
        for member in members:
            value, slope, _ = second_order_row([member], [1.0], sample, label)
            single.append(softplus(np.exp(eps * slope.norm().item() - value)))
        for pair in itertools.combinations(members, 2):
            rows = []
            for share in np.linspace(0, 1, 11):
                value, slope, hessian = second_order_row(pair, [share, 1 - share], sample, label)
                along = slope / slope.norm()
                rows.append((value - eps * slope.norm().item(), max(-(along @ hessian @ along).item(), 0.0)))
            first_order, bend = max(rows)
            joint.append(softplus(np.exp(2.0 * bend * eps**2 / 2 - first_order)))
    plain = np.mean([functional.cross_entropy(member(x), y).item() for member in members])
    loss = objective(members, x, y, Step(ramp=0.6))
    assert loss.total.item() == pytest.approx(plain + 0.3 * np.mean(single) + 0.7 * np.mean(joint), rel=1e-9)
    assert loss.terms["joint"].item() == pytest.approx(np.mean(joint), rel=1e-9)


@pytest.mark.parametrize("bound", ["taylor", "lipschitz"])
def test_without_a_radius_every_term_is_cross_entropy(bound):
    members, (x, y) = members_of(2), batch()
    loss = Certified(single=0.5, joint=0.0, bound=bound)(members, x, y, Step(ramp=0.0))
    plain = np.mean([cross_entropy(member(x), y).mean().item() for member in members])
    assert loss.total.item() == pytest.approx(1.5 * plain, rel=1e-9)


def test_the_heaviest_row_certifies_what_the_exact_certificate_does():
    generator = torch.Generator().manual_seed(2)
    margins = 0.7 * torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    slopes = torch.randn(2, 4000, 3, generator=generator, dtype=torch.float64)
    left = heaviest(Row(margins[0], slopes[0]), Row(margins[1], slopes[1]), 0.4).linear(0.4)
    exact = transfer_certificate(margins.T, slopes.transpose(0, 1), 0.0, 0.4).certified
    found = (left > 0).numpy()
    assert not (found & ~exact).any()
    assert found.sum() > 0.97 * exact.sum()  # the rest lies between two of the weights tried
    alone = ((margins - 0.4 * slopes.norm(dim=2)) > 0).any(0).numpy()
    assert (found & ~alone).sum() > 0.9 * (exact & ~alone).sum() > 50  # opposed slopes help


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig("mlp", "gelu", (12, 10)), (1, 4, 4)),
        (ModelConfig("lenet", "softplus(5)"), (1, 8, 8)),
        (ModelConfig("linear"), (1, 4, 4)),
    ],
)
def test_the_lipschitz_estimate_is_the_product_of_the_norms(config, shape):
    torch.manual_seed(3)
    model = build_model(config, shape=shape, classes=4, mean=[0.3], std=[0.4]).double().eval()
    estimate = lipschitz_estimate(model, shape, steps=60)
    certified = lipschitz_constants(read_network(model, torch.zeros(1, *shape, dtype=torch.float64)))
    # Certified ones may be smaller by what single entries know, or larger by how they bound convolutions.
    assert (estimate <= 1.35 * certified + 1e-9).all()
    assert (certified <= 1.35 * estimate + 1e-9).all()
    if config.architecture == "linear":
        torch.testing.assert_close(estimate, certified, rtol=1e-4, atol=1e-9)
    few = lipschitz_estimate(model, shape)
    assert (few <= estimate * (1 + 1e-6) + 1e-9).all()
    few.sum().backward()
    assert all(
        layer.weight.grad.any() for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    )


def test_the_lipschitz_loss_raises_every_logit_and_takes_the_better_member_of_a_pair():
    members, (x, y) = members_of(3), batch()
    logits = [member(x) for member in members]
    raised = torch.stack(
        [
            functional.cross_entropy(
                one + 0.3 * lipschitz_estimate(member, (1, 3, 3))[y], y, reduction="none"
            )
            for member, one in zip(members, logits, strict=True)
        ]
    )
    pairs = torch.stack([raised[list(pair)].amin(0) for pair in itertools.combinations(range(3), 2)])
    plain = torch.stack([functional.cross_entropy(one, y) for one in logits]).mean()
    loss = Certified(0.5, 0.3, 0.7, bound="lipschitz")(members, x, y, Step(ramp=0.6))
    assert loss.total.item() == pytest.approx((plain + 0.3 * raised.mean() + 0.7 * pairs.mean()).item())
    assert loss.terms["joint"] < loss.terms["single"]
    assert members.training


def test_a_network_with_branches_has_no_lipschitz_term():
    model = build_model(ModelConfig("resnet8", "tanh"), shape=(1, 8, 8), classes=3)
    with pytest.raises(ValueError, match="expected a chain of layers that ends in a linear one"):
        lipschitz_estimate(model, (1, 8, 8))


@pytest.mark.parametrize("field", ["radius", "single", "joint", "curvature"])
def test_parameters_are_checked(field):
    with pytest.raises(ValueError, match=f"certified: expected {field} finite and >= 0, got -1"):
        Certified(**{field: -1.0})


def test_an_unknown_bound_is_refused():
    with pytest.raises(ValueError, match="certified: expected the bound taylor or lipschitz, got 'interval'"):
        Certified(bound="interval")


DATA = load_dataset("digits")
CONFIG = TrainingConfig(
    model=ModelConfig("mlp", "softplus(2)", (48,)), members=2, epochs=12, lr=1e-2, schedule="onecycle",
    ramp=0.3, device="cpu",
)  # fmt: skip


def trained(objective, **changes):
    ensemble = train(replace(CONFIG, objective=objective, **changes), data=DATA, progress=False)
    return [member.double() for member in ensemble.members]


def certified_rate(members, radius):
    points = DATA.test.first(80)
    return certify_transfer(members, points.x.double(), points.y, radius).rate().upper


def test_certified_training_lowers_the_certified_rate_of_joint_fooling_below_that_of_one_model():
    plain, ours = trained(Vanilla()), trained(Certified())
    joint = certified_rate(ours, 0.3)
    assert joint < 0.5 * certified_rate(plain, 0.3)
    assert joint < 0.5 * min(certified_rate([member], 0.3) for member in ours)
    accuracies = [(member(DATA.test.x.double()).argmax(1) == DATA.test.y).double().mean() for member in ours]
    assert min(accuracies) > 0.9


def test_curvature_training_lowers_the_curvature_of_the_margins():
    x, y = DATA.test.x.double(), DATA.test.y

    def bending(members, size=0.3):
        """Mean share by which a margin's gradient changes on a step along it."""
        shares = []
        for member in members:
            before = input_gradients(member, margin, x, y).flatten(1)
            along = before / before.norm(dim=1, keepdim=True)
            after = input_gradients(member, margin, x + size * along.view_as(x), y).flatten(1)
            shares.append((after - before).norm(dim=1) / before.norm(dim=1))
        return torch.stack(shares).mean().item()

    assert bending(trained(Certified(curvature=8.0))) < 0.7 * bending(trained(Certified(curvature=0.0)))


def test_lipschitz_training_certifies_three_hidden_layers():
    deep = {"model": ModelConfig("mlp", "softplus(2)", (32, 32, 32))}

    def uncertified(members, radius=0.2):
        """Share of points at which no member's margin exceeds what its Lipschitz constants allow."""
        x, y = DATA.test.x.double(), DATA.test.y
        safe = torch.zeros_like(y, dtype=torch.bool)
        for member in members:
            constants = lipschitz_constants(read_network(member, x))
            lead = member(x).gather(1, y.unsqueeze(1)) - member(x) - radius * constants[y]
            safe |= (lead.scatter(1, y.unsqueeze(1), np.inf) > 0).all(1)
        return (~safe).double().mean().item()

    plain, ours = trained(Vanilla(), **deep), trained(Certified(0.2, 0.5, bound="lipschitz"), **deep)
    assert uncertified(plain) > 0.8
    assert uncertified(ours) < 0.4
