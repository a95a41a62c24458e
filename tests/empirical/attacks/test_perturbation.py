"""Perturbation balls: projection, rounding, and uniform sampling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from empirical.attacks.perturbation import Ball, sample_norms, uniform_in_unit_ball


@pytest.mark.parametrize(("norm", "dimension"), [("l2", 3), ("l2", 20), ("linf", 5)])
def test_random_start_is_uniform_in_the_ball(norm: str, dimension: int) -> None:
    """The radius has the law r^d, and every direction is as likely as its opposite."""
    sample = uniform_in_unit_ball(torch.zeros(4000, dimension), norm, torch.Generator().manual_seed(3))
    radius = sample_norms(sample, math.inf if norm == "linf" else 2).numpy()
    assert radius.max() <= 1 + 1e-6
    assert kstest(radius**dimension, "uniform").pvalue > 1e-3
    assert np.abs(sample.mean(0).numpy()).max() < 0.06


@given(norm=st.sampled_from(["l2", "linf"]), eps=st.floats(1e-3, 3.0), seed=st.integers(0, 99))
def test_projection_keeps_inside_points_and_is_idempotent(norm: str, eps: float, seed: int) -> None:
    """Points well inside stay where they are; projecting twice is projecting once."""
    x = torch.rand(8, 7, generator=torch.Generator().manual_seed(seed))
    noise = uniform_in_unit_ball(x, norm, torch.Generator().manual_seed(seed))
    ball = Ball(x, norm, eps, None)
    torch.testing.assert_close(ball.project(x + 0.9 * eps * noise), x + 0.9 * eps * noise)
    once = ball.project(x + 5 * eps * noise)
    torch.testing.assert_close(ball.project(once), once)


def test_rounding_does_not_leave_the_pixel_range() -> None:
    """Far below its upper end, the way back from it is rounded coarsely; the range holds all the same."""
    x = torch.linspace(-5, 0.9, 1000)[:, None]
    projected = Ball(x, "l2", 1e3, (-5.0, 0.9)).project(x + 10)
    assert projected.max() <= torch.tensor(0.9)
    torch.testing.assert_close(projected, torch.full_like(x, 0.9))
