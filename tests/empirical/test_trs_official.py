"""The published TRS: all switches off is the paper, all on is the published step, each does what it says."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from empirical.objectives import TRS, Step, TRSOfficial, Vanilla
from empirical.objectives.trs_official import DEVIATIONS

WEIGHTS = {"lambda_a": 3.0, "lambda_b": 2.0, "delta_initial": 0.1, "delta_final": 0.3}


def members_of(n=3, *, batch_norm=False, scale=1.0):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d if batch_norm else nn.Identity
    members = [
        nn.Sequential(nn.Flatten(), nn.Linear(9, 8), middle(8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(n)
    ]
    with torch.no_grad():
        for member in members:
            for weight in member.parameters():
                nn.init.normal_(weight)
            member[-1].weight *= scale
    return nn.ModuleList(members).double().train()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 3, 3, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def a_step(**changes):
    return Step(**{"epoch": 2, "epochs": 4, "ramp": 0.7, **changes})


def loss_of(objective, members=None, step=None):
    x, y = batch()
    return objective(members or members_of(), x, y, step or a_step())


def with_only(*names, **weights):
    return TRSOfficial.with_deviations(*names, **{**WEIGHTS, **weights})


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_without_deviations_it_is_the_papers_loss(n, batch_norm):
    found = loss_of(with_only(), members_of(n, batch_norm=batch_norm))
    expected = loss_of(TRS(**WEIGHTS), members_of(n, batch_norm=batch_norm))
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-10)
    assert found.terms.keys() == expected.terms.keys()
    joint = loss_of(with_only("joint_search"), members_of(n, batch_norm=batch_norm))
    expected = loss_of(TRS(**WEIGHTS, search="joint"), members_of(n, batch_norm=batch_norm))
    assert joint.total.item() == pytest.approx(expected.total.item(), rel=1e-10)


def published(members, x, y, delta, start):
    """One step of the published trainer: batch-mean losses, squared norms, gradients that add up."""

    def gradient(member, points, labels):
        loss = functional.cross_entropy(member(points), labels)
        return torch.autograd.grad(loss, points, create_graph=True)[0].flatten(1)

    x = x.clone().requires_grad_()
    gradients = [gradient(member, x, y) for member in members]
    cross_entropy = sum(functional.cross_entropy(member(x), y) for member in members)
    cosine = (
        sum(functional.cosine_similarity(f, g).abs().mean() for f, g in itertools.combinations(gradients, 2))
        / 3
    )
    half = len(x) // 2
    moved, total = start, torch.zeros_like(start)
    for _ in range(6):
        moved = moved.detach().requires_grad_()
        sizes = sum(2 * gradient(member, moved, y[half:]).square().sum(1).mean() for member in members) / 3
        total = total + torch.autograd.grad(sizes, moved)[0]
        moved = moved + delta / 3 * total.sign()
        moved = torch.maximum(torch.minimum(moved, x[half:] + delta), x[half:] - delta).clamp(0, 1)
    points = torch.cat([x[:half], moved]).detach().requires_grad_()
    smooth = sum(2 * gradient(member, points, y).square().sum(1).mean() for member in members) / 3
    return cross_entropy, cosine, smooth


@pytest.mark.parametrize("batch_norm", [False, True])
def test_with_all_deviations_it_is_the_published_step(batch_norm):
    x, y = batch()
    objective = TRSOfficial(**WEIGHTS)
    draws = a_step().generator
    mirrored = torch.rand(6, generator=draws) < 0.5
    seen = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    delta = 0.1 + 0.2 * 1 / 4  # the epoch before the second of four
    noise = torch.rand((3, 1, 3, 3), generator=draws).double()
    start = (seen[3:] + delta * (2 * noise - 1)).clamp(0, 1)
    expected = published(members_of(batch_norm=batch_norm), seen, y, delta, start)
    found = loss_of(objective, members_of(batch_norm=batch_norm))
    assert mirrored.any()
    assert found.terms["similarity"].item() == pytest.approx(expected[1].item(), rel=1e-9)
    assert found.terms["smoothness"].item() == pytest.approx(expected[2].item(), rel=1e-9)
    total = expected[0] + 0.7 * (3.0 * expected[1] + 2.0 * expected[2])
    assert found.total.item() == pytest.approx(total.item(), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in DEVIATIONS if name != "floored_cosine"])
def test_each_switch_alone_changes_the_loss(name):
    paper, deviating = (
        loss_of(with_only(*names), members_of(batch_norm=True)).total.item() for names in ((), (name,))
    )
    assert deviating != pytest.approx(paper, rel=1e-6)


def test_the_cross_entropy_is_summed():
    paper, summed = (loss_of(with_only(*names)) for names in ((), ("sum_cross_entropy",)))
    assert (summed.total - paper.total).item() == pytest.approx(2 * paper.terms["cross_entropy"].item())


def test_norms_are_squared_and_divided_by_the_batch():
    x, y = batch()
    here = {"delta_initial": 0.0, "delta_final": 0.0}
    x.requires_grad_()
    losses = [functional.cross_entropy(member(x), y, reduction="sum") for member in members_of()]
    norms = torch.stack([torch.autograd.grad(loss, x)[0].flatten(1).norm(dim=1) for loss in losses])

    def smoothness(*names):
        return loss_of(with_only(*names, **here)).terms["smoothness"].item()

    assert smoothness() == pytest.approx(2 * norms.mean().item())
    assert smoothness("squared_norms") == pytest.approx(2 * norms.square().mean().item())
    assert smoothness("batch_gradient") == pytest.approx(2 * norms.mean().item() / 6)
    both = smoothness("squared_norms", "batch_gradient")
    assert both == pytest.approx(2 * norms.square().mean().item() / 36)


def test_the_floor_lets_cosines_of_fitted_samples_fade():
    x, _ = batch()
    sure = members_of(scale=300.0)
    labels = torch.stack([member(x) for member in sure]).mean(0).argmax(1)
    paper, floored = (with_only(*names)(sure, x, labels, a_step()) for names in ((), ("floored_cosine",)))
    assert floored.terms["similarity"] < 0.9 * paper.terms["similarity"]


def test_only_half_of_the_batch_is_moved(monkeypatch):
    seen = []
    actual = TRSOfficial.size

    def recording(self, members, groups, points, y, step):
        seen.append(points.detach())
        return actual(self, members, groups, points, y, step)

    monkeypatch.setattr(TRSOfficial, "size", recording)
    loss_of(with_only("half_batch"))
    x, _ = batch()
    assert all(points.shape == (3, 3, 1, 3, 3) for points in seen[:-1])  # three pairs, half of six samples
    assert len(seen) == 5 + 1
    assert torch.equal(seen[-1][:, :3], x[:3].expand(3, 3, 1, 3, 3))
    assert (seen[-1][:, 3:] - x[3:]).abs().max() > 0.19
    seen.clear()
    loss_of(with_only("coarse_search", "joint_search"))
    assert len(seen) == 6 + 1
    assert seen[0].shape == (1, 6, 1, 3, 3)
    moved = (seen[1] - seen[0]).abs()
    assert moved.max().item() == pytest.approx(0.2 / 3)
    seen.clear()
    loss_of(with_only("random_start"))
    assert 0 < (seen[0] - x).abs().max() <= 0.2 + 1e-12
    assert not torch.equal(seen[0][0], seen[0][1])


def test_stale_gradients_point_where_the_sum_of_all_does(monkeypatch):
    slopes = iter([torch.tensor([[3.0]]), torch.tensor([[-1.0]]), torch.tensor([[-1.0]])] * 2)
    monkeypatch.setattr("empirical.objectives.trs_official.SEARCH_STEPS", 3)
    monkeypatch.setattr(
        TRSOfficial, "size", lambda self, members, groups, points, y, step: (points * next(slopes)).sum()
    )
    x, y = torch.full((1, 1), 0.5), torch.tensor([0])
    step = a_step(pixel_range=None)
    fresh, stale = (
        with_only(*names).search(members_of(2), [(0, 1)], x, y, step) for names in ((), ("stale_gradients",))
    )
    assert fresh.item() == pytest.approx(0.5 + (1 - 1 - 1) * 0.05)
    assert stale.item() == pytest.approx(0.5 + 3 * 0.05)


def test_training_mode_lets_the_search_move_running_statistics():
    reference = members_of(batch_norm=True)
    loss_of(Vanilla(), reference)
    quiet, moved = members_of(batch_norm=True), members_of(batch_norm=True)
    loss_of(with_only(), quiet)
    loss_of(with_only("training_mode"), moved)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(quiet.get_buffer(name), buffer, rtol=0, atol=0)
        assert not torch.equal(moved.get_buffer(name), buffer)


def test_the_radius_is_that_of_the_epoch_before():
    radii = [with_only("previous_epoch").delta(Step(epoch=m, epochs=4)) for m in (1, 2, 4)]
    assert radii == pytest.approx([0.1, 0.15, 0.25])


def test_images_are_mirrored_and_vectors_are_not():
    members, (x, y) = members_of(), batch()
    symmetric = (x + x.flip(-1)) / 2
    paper, flipped = (
        with_only(*names)(members, symmetric, y, a_step()).total.item() for names in ((), ("flips",))
    )
    assert flipped == pytest.approx(paper)
    paper, flipped = (
        with_only(*names)(copy.deepcopy(members), x.flatten(1), y, a_step()).total.item()
        for names in ((), ("flips",))
    )
    assert flipped == pytest.approx(paper)


def test_switches_are_named_and_checked():
    assert len(DEVIATIONS) == 12
    assert TRSOfficial() == TRSOfficial.with_deviations(*DEVIATIONS)
    assert replace(with_only(), flips=True) == with_only("flips")
    with pytest.raises(ValueError, match=r"expected deviations among sum_cross_entropy, .*, got sign"):
        TRSOfficial.with_deviations("sign")
    with pytest.raises(TypeError, match="trs-official: expected true or false for flips, got 1"):
        TRSOfficial(flips=1)
