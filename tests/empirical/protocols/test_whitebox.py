"""White-box cells and convergence, on models whose robust accuracy is known."""

import json

import pytest
import torch
from torch import Tensor, nn

from empirical.attacks import Attack, CarliniWagner, ElasticNet
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.protocols.convergence import Convergence, convergence
from empirical.protocols.survival import worst_case
from empirical.protocols.whitebox import WhiteBoxCell, white_box_cell
from empirical.robustness import robust_accuracy


def line(position: float) -> nn.Module:
    """Class 1 right of a position on the first axis."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, -position]))
    return model


def points() -> Split:
    """First coordinates 0.05, 0.15, ... 0.95; labels of a boundary at 0.5, except that the last is wrong."""
    first = torch.arange(0.05, 1, 0.1)
    y = (first > 0.5).long()
    y[-1] = 0
    return Split(torch.stack([first, torch.full_like(first, 0.5)], 1), y)


@pytest.mark.parametrize(("eps", "robust"), [(0.01, 9), (0.1, 7), (0.2, 5)])
def test_cell_of_a_line_is_exact(eps: float, robust: int) -> None:
    """Nine of ten are clean; those nearer than eps fall; the clean error is no survivor."""
    cell = white_box_cell(line(0.5), points(), Attack("bim", eps=eps, steps=10), confidence=0.9)
    assert sum(cell.survival.clean) == 9
    assert not cell.survival.clean[-1]
    assert sum(cell.survival.robust) == robust
    assert cell.survival.conditional_robust_accuracy.value == robust / 9
    other = robust_accuracy(line(0.5), points(), cell.attack, confidence=0.9)
    mine = cell.survival.robust_accuracy
    assert (mine.value, mine.lower, mine.upper) == (other.value, other.lower, other.upper)
    assert cell.health.zero_gradients == 0


def test_cell_agrees_with_robust_accuracy_of_an_ensemble() -> None:
    """The worst case over cells equals the robust accuracy under the same attacks."""
    ensemble, data = Ensemble([line(0.3), line(0.7)]), points()
    attacks = [
        Attack("fgsm", eps=0.1),
        Attack("pgd", "l2", 0.2, steps=5),
        CarliniWagner(1.0, steps=20, step_size=0.05),
        ElasticNet(1.0, steps=20),
    ]
    cells = [white_box_cell(ensemble, data, attack) for attack in attacks]
    worst = worst_case([cell.survival for cell in cells])
    assert worst.robust_accuracy.value == robust_accuracy(ensemble, data, attacks).value
    for cell in cells:
        assert WhiteBoxCell.from_json(json.loads(json.dumps(cell.to_json(), allow_nan=False))) == cell


class Hill(nn.Module):
    """Class 1 wins beyond 0.35, uphill from everywhere: a longer attack gets there from farther away."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0] - 0.35], 1)


def test_convergence_counts_what_more_steps_fool() -> None:
    """Steps of 0.02 from 0, 0.1, 0.2, 0.3: 5 steps fool the last sample, 10 the last two, 20 all."""
    data = Split(torch.tensor([[0.0], [0.1], [0.2], [0.3]]), torch.zeros(4, dtype=torch.long))
    cells = [
        white_box_cell(Hill(), data, Attack("bim", eps=0.38, steps=steps, step_size=0.02, on_failure="last"))
        for steps in (20, 5, 10)
    ]
    found = convergence(cells)
    assert found.steps == (5, 10, 20)
    assert [sum(cell.survival.robust) for cell in found.cells] == [3, 2, 0]
    assert (found.lost, found.regained) == ((1, 2), (0, 0))
    assert Convergence.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


class Band(nn.Module):
    """Class 1 wins between 0.35 and 0.45 alone, uphill throughout: a longer attack overshoots."""

    def forward(self, x: Tensor) -> Tensor:
        slope = x[:, 0] - x[:, 0].detach()
        inside = ((x[:, 0].detach() - 0.4).abs() < 0.05).to(x.dtype)
        return torch.stack([torch.zeros_like(slope), slope + inside - 0.5], 1)


def test_convergence_shows_what_more_steps_lose_again() -> None:
    """The last iterate leaves the band, which the best one of the same run does not."""
    data = Split(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    for policy, regained in (("last", (1,)), ("best", (0,))):
        cells = [
            white_box_cell(Band(), data, Attack("bim", eps=0.9, steps=s, step_size=0.1, on_failure=policy))
            for s in (4, 8)
        ]
        assert (convergence(cells).lost, convergence(cells).regained) == ((0,), regained)


def test_cells_that_do_not_belong_together_are_refused() -> None:
    """Different attacks, one cell, equal steps, attacks without steps."""
    data = points()
    one, two, other = (
        white_box_cell(line(0.5), data, attack)
        for attack in (Attack("bim", steps=2), Attack("bim", steps=4), Attack("pgd", steps=8))
    )
    with pytest.raises(ValueError, match="at least two numbers of steps, got 1"):
        convergence([one])
    with pytest.raises(ValueError, match="rising numbers of steps, got 2, 2"):
        convergence([one, one])
    with pytest.raises(ValueError, match="one attack with more and more steps"):
        convergence([one, other])
    elsewhere = white_box_cell(line(0.3), data, Attack("bim", steps=8))
    with pytest.raises(ValueError, match="different clean predictions"):
        convergence([two, elsewhere])
    fgsm = white_box_cell(line(0.5), data, Attack("fgsm"))
    with pytest.raises(ValueError, match="iterative gradient attack, got FGSM"):
        convergence([fgsm, one])


def test_bad_input_is_refused_before_the_attack() -> None:
    """As everywhere."""
    with pytest.raises(ValueError, match="support 'finite' or 'population', got 'all'"):
        white_box_cell(line(0.5), points(), Attack(steps=10**9), support="all")


class Peak(nn.Module):
    """Class 1 wins within 0.1 of 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x[:, 0]), 0.1 - (x[:, 0] - 0.5).abs()], 1)


def test_a_clean_error_that_the_attack_mends_is_not_robust() -> None:
    """One long step jumps over the peak, where the model is right again."""
    data = Split(torch.tensor([[0.45], [0.1]]), torch.zeros(2, dtype=torch.long))
    cell = white_box_cell(Peak(), data, Attack("fgsm", eps=0.25))
    assert (cell.survival.clean, cell.survival.robust) == ((False, True), (False, True))
