"""Boosting: SAMME's weights by hand, residuals, one member at a time, and how ensembles vote."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from empirical.accuracy import evaluate
from empirical.config import TrainingConfig
from empirical.data import Dataset, Split
from empirical.ensemble import CheckpointError, Ensemble, Vote, load_checkpoint, save_checkpoint
from empirical.models import ModelConfig, build_model
from empirical.objectives import AdaBoost, GradientBoost, Step
from empirical.objectives.adaboost import vote_of
from empirical.training import train

CONFIG = TrainingConfig(
    dataset="tiny", model=ModelConfig("mlp", "tanh", (6,)), epochs=5, batch_size=16, lr=2e-2, device="cpu"
)


def images(samples=45):
    """Three classes of which a small network gets most right."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 3
    x = (0.9 * torch.rand(samples, 1, 4, 4, generator=generator) + y[:, None, None, None] / 8).clamp(0, 1)
    return Dataset("tiny", Split(x, y), Split(x[:30], y[:30]), 3)


class Answers(nn.Module):
    """A member that looks its answers up: sample i is the number i."""

    def __init__(self, answers):
        super().__init__()
        self.register_buffer("logits", 3.0 * functional.one_hot(torch.tensor(answers), 3).double())

    def forward(self, x):
        return self.logits[x[:, 0].long()]


X, Y = torch.arange(5, dtype=torch.float64)[:, None], torch.tensor([0, 1, 2, 0, 1])


def test_samme_weights_match_a_case_worked_by_hand():
    members = nn.ModuleList([Answers([0, 1, 2, 0, 2]), Answers([1, 1, 2, 0, 1]), Answers([0, 1, 2, 0, 1])])
    boost, vote = AdaBoost(), Vote()
    # One of five samples wrong: e = 1/5, alpha = log(4) + log(2) = log(8).
    assert boost.sample_weights(members, vote, X, Y, 0).tolist() == [1.0] * 5
    vote = boost.vote(members, vote, X, Y, 0)
    assert vote.of == "probabilities"
    assert vote.weights == pytest.approx((math.log(8), 0.0, 0.0))
    # That sample now weighs 8 of 12; the next member errs on another, e = 1/12: alpha = log(11) + log(2).
    weights = boost.sample_weights(members, vote, X, Y, 1)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1, 1, 1, 8]).double() * 5 / 12)
    vote = boost.vote(members, vote, X, Y, 1)
    assert vote.weights == pytest.approx((math.log(8), math.log(22), 0.0))
    weights = boost.sample_weights(members, vote, X, Y, 2)
    torch.testing.assert_close(weights, torch.tensor([22.0, 1, 1, 1, 8]).double() * 5 / 33)
    # No error counts as half of the lightest sample: e = 1/66.
    assert boost.vote(members, vote, X, Y, 2).weights[2] == pytest.approx(math.log(65) + math.log(2))


def test_a_member_no_better_than_guessing_stops_the_training():
    members = nn.ModuleList([Answers([1, 2, 2, 0, 2])])
    with pytest.raises(
        ValueError, match=r"adaboost: expected .* below 1 - 1/3, that of guessing, got 0\.750"
    ):
        AdaBoost().vote(members, Vote(), X[[0, 1, 4, 2]], Y[[0, 1, 4, 2]], 0)
    assert vote_of(0.66, 3) > 0


def test_the_loss_weighs_samples():
    members = nn.ModuleList([Answers([0, 1, 2, 0, 2]), Answers([1, 1, 2, 0, 1])])
    weights = torch.tensor([0.0, 3.0, 0.5, 0.5, 1.0]).double()
    loss = AdaBoost()(members, X, Y, Step(stage=1, sample_weights=weights))
    losses = functional.cross_entropy(members[1](X), Y, reduction="none")
    assert loss.total.item() == pytest.approx((weights * losses).sum().item() / 5)
    assert torch.equal(loss.logits, members[1](X)[None])


def test_residuals_are_minus_the_gradient_of_the_loss_and_sum_to_zero():
    torch.manual_seed(0)
    members = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)]).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    for stage in range(3):
        total = sum((members[k](x) for k in range(stage)), torch.zeros(7, 3, dtype=torch.float64))
        total = total.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(total, y, reduction="sum"), total)
        found = GradientBoost().residuals(members, x, y, Step(stage=stage), 3)
        torch.testing.assert_close(found, -gradient)
        torch.testing.assert_close(found.sum(1), torch.zeros(7, dtype=torch.float64))
        loss = GradientBoost()(members, x, y, Step(stage=stage)).total
        assert loss.item() == pytest.approx((members[stage](x) - found).square().mean().item())
    assert all(weight.requires_grad for weight in members.parameters())


def test_gradient_boosting_lowers_the_loss_member_by_member():
    data, losses = images(), []
    config = replace(CONFIG, objective=GradientBoost(), epochs=30)
    ensemble = train(config, data=data)
    for count in range(4):
        logits = sum((member(data.train.x) for member in ensemble.members[:count]), torch.zeros(45, 3))
        losses.append(functional.cross_entropy(logits, data.train.y).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[1]
    assert ensemble.vote == Vote("logits", (1.0, 1.0, 1.0))
    torch.testing.assert_close(ensemble(data.train.x), logits.log_softmax(1))


@pytest.mark.parametrize("objective", [AdaBoost(), GradientBoost()])
def test_one_member_is_trained_at_a_time_with_the_whole_schedule(objective, tmp_path):
    records, members = [], []
    output = tmp_path / "run.safetensors"

    def on_epoch(record):
        records.append(record)
        loaded, _ = load_checkpoint(output)
        members.append([torch.cat([w.flatten() for w in m.parameters()]) for m in loaded.members])

    config = replace(CONFIG, objective=objective, schedule="steps", milestones=(3,))
    ensemble = train(config, data=images(), output=output, on_epoch=on_epoch)
    assert [(record["epoch"], record["stage"]) for record in records] == [
        (epoch, 1 + (epoch - 1) // 5) for epoch in range(1, 16)
    ]
    assert [record["learning_rate"] for record in records] == pytest.approx(([2e-2] * 3 + [2e-3] * 2) * 3)
    for epoch in range(1, 15):
        changed = [not torch.equal(a, b) for a, b in zip(members[epoch - 1], members[epoch], strict=True)]
        assert changed == [index == epoch // 5 for index in range(3)]
    assert evaluate(ensemble, images().train).ensemble > 0.6


def test_later_members_are_trained_on_the_samples_that_earlier_ones_got_wrong():
    data = images()
    ensemble = train(replace(CONFIG, objective=AdaBoost(), epochs=20, lr=1e-2), data=data)
    first, second, _ = ensemble.members
    wrong = first(data.train.x).argmax(1) != data.train.y
    assert 0 < wrong.sum() < 15

    def loss(member):
        return functional.cross_entropy(member(data.train.x)[wrong], data.train.y[wrong])

    assert loss(second) < 0.5 * loss(first)
    assert all(weight > 0 for weight in ensemble.vote.weights)


@pytest.mark.parametrize(
    "vote", [Vote("probabilities", (2.0, 0.5, 0.0)), Vote("logits", (1.0, 3.0, 0.0)), None]
)
def test_checkpoints_keep_the_vote(tmp_path, vote):
    torch.manual_seed(0)
    members = [build_model(ModelConfig("mlp", "tanh", (5,)), shape=(4,), classes=3) for _ in range(3)]
    ensemble, x = Ensemble(members, vote), torch.randn(6, 4)
    save_checkpoint(tmp_path / "a.safetensors", ensemble, {})
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.vote == (vote or Vote())
    assert torch.equal(loaded(x), ensemble(x))


def test_votes_are_weighted_means_of_probabilities_or_sums_of_logits():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)
    mean = Vote("probabilities", (2.0, 1.0, 0.0)).log_probabilities(logits)
    torch.testing.assert_close(mean, ((2 * p[0] + p[1]) / 3).log())
    total = Vote("logits", (2.0, 1.0, 0.0)).log_probabilities(logits)
    torch.testing.assert_close(total, (2 * logits[0] + logits[1]).log_softmax(-1))
    torch.testing.assert_close(Vote().log_probabilities(logits), p.mean(0).log())
    far = Vote("probabilities", (1.0, 1e-3)).log_probabilities(torch.tensor([[[0.0, 900]], [[0.0, 800]]]))
    assert far.isfinite().all()  # e^-800 is 0 in floating point; its logarithm is not lost
    logits.requires_grad_()
    Vote("probabilities", (2.0, 1.0, 0.0)).log_probabilities(logits)[:, 0].sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[2].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vote("ranks"), "expected a vote of probabilities or logits, got 'ranks'"),
        (lambda: Vote("logits", (1.0, -1.0)), "expected finite weights >= 0"),
        (lambda: Vote("logits", (0.0, 0.0)), "expected finite weights >= 0, not all 0"),
        (lambda: Vote("logits", (math.inf,)), "expected finite weights >= 0"),
        (
            lambda: Ensemble([nn.Linear(2, 2)], Vote("logits", (1.0, 1.0))),
            "expected 1 weights of the vote, got 2",
        ),
    ],
)
def test_bad_votes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checkpoint_with_a_vote_of_another_size_is_refused(tmp_path):
    ensemble = Ensemble([build_model(ModelConfig("linear"), shape=(2,), classes=3)])
    ensemble.vote = Vote("logits", (1.0, 2.0))
    save_checkpoint(tmp_path / "a.safetensors", ensemble, {})
    with pytest.raises(CheckpointError, match="expected the description of an ensemble"):
        load_checkpoint(tmp_path / "a.safetensors")
