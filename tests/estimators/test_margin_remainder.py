"""Margin curvature along attacks: exact on quadratic worlds, zero for linear softmax, inside what holds."""

import numpy as np
import pytest
import torch
from torch import nn

from bounds.worlds import random_quadratics
from estimators.margin_remainder import margin_remainder


class Quadratic(nn.Module):
    """Logits z_k = v_k + g_k.x + x^T C_k x / 2."""

    def __init__(self, seed, labels=4, dimension=3):
        super().__init__()
        world = random_quadratics(
            np.random.default_rng(seed), 1, points=1, labels=labels, dimension=dimension
        )
        self.value, self.gradient, self.curvature = (
            torch.tensor(array[0, 0, 0]) for array in (world.value, world.gradient, world.curvature)
        )

    def forward(self, x):
        return self.value + x @ self.gradient.T + torch.einsum("kde,nd,ne->nk", self.curvature, x, x) / 2


@pytest.mark.parametrize("seed", range(5))
def test_on_quadratic_logits_it_is_the_curvature_along_the_step(seed):
    model = Quadratic(seed)
    torch.manual_seed(seed)
    x, step = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    y = torch.arange(7) % 4
    found = margin_remainder(model, x, x + step, y, batch_size=3)
    # The margin of k is z_y - z_k.
    along = torch.einsum("kde,nd,ne->nk", model.curvature, step, step) / step.square().sum(1, keepdim=True)
    torch.testing.assert_close(found, along.gather(1, y[:, None]) - along, rtol=1e-8, atol=1e-10)
    extreme = torch.linalg.eigvalsh(model.curvature[y].unsqueeze(1) - model.curvature)
    assert (found <= extreme[..., -1] + 1e-9).all()
    assert (found >= extreme[..., 0] - 1e-9).all()
    # A loss of the user's own has the same margins up to what all labels share.
    own = margin_remainder(
        model, x, x + step, y, loss=lambda z, k: z.square().sum(1) - z.gather(1, k[:, None])[:, 0]
    )
    torch.testing.assert_close(own, found, rtol=1e-6, atol=1e-8)


def test_linear_softmax_has_no_margin_curvature_and_resting_pairs_count_as_none():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    x_end = x + 0.5 * torch.randn(6, 4) * (torch.arange(6) > 2)[:, None]
    found = margin_remainder(model, x, x_end, torch.arange(6) % 3)
    assert found.dtype == torch.float64
    assert not found[:3].any()
    assert found.abs().max() < 1e-12


def test_the_expansion_is_completed_exactly_for_a_deep_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    step = 0.7 * torch.randn(5, 3, dtype=torch.float64)
    found = margin_remainder(model, x, x + step, y)
    for i in range(5):
        for k in range(4):
            point = x[i].clone().requires_grad_(True)
            logits = model(point[None])[0]
            margin = logits[y[i]] - logits[k]
            (slope,) = torch.autograd.grad(margin, point)
            end = model((x[i] + step[i])[None])[0]
            left = end[y[i]] - end[k] - margin - step[i] @ slope
            assert found[i, k].item() == pytest.approx(
                2 * left.item() / step[i].square().sum().item(), abs=1e-9
            )
