"""Margins over balls: which steps overcome every bound on them."""

from dataclasses import replace

import pytest
import torch

from estimators.certified import read_network
from estimators.certified.ball_margins import ball_margins
from estimators.certified.expansion import expand


@pytest.mark.parametrize("targeted", [False, True])
def test_a_step_overcomes_a_margin_once_all_bounds_on_it_are_below_zero(random_network, targeted):
    """By the definition; the affine and the quadratic bound decide somewhere, the third one where planted."""
    decisive, overcome = torch.zeros(2, dtype=torch.long), 0
    for seed in range(0, 24, 2):
        model, x, classes = random_network(seed)
        generator = torch.Generator().manual_seed(seed)
        y = model(x).argmax(1)
        aim = (y + 1) % classes if targeted else y
        for radius in (0.05, 0.3, 1.0):
            found = ball_margins(expand(read_network(model, x), x, radius, "l2"), y, aim, targeted=targeted)
            steps = torch.randn(len(x), 6, *x.shape[1:], generator=generator, dtype=x.dtype)
            steps = radius * steps / steps.norm(dim=2, keepdim=True)
            f = found.functionals
            along = torch.einsum("nsd,nld->nsl", steps, f.gradients)
            bounds = torch.stack(
                [
                    f.values.unsqueeze(1) - f.fall.unsqueeze(1) + along,
                    found.below.at(steps),
                    (f.values - f.moves).unsqueeze(1).expand_as(along),
                ]
            )
            beaten = bounds.amax(0) <= 0
            expected = beaten.all(2) if targeted else beaten.any(2)
            assert (found.overcome(steps.numpy(), targeted=targeted) == expected.numpy()).all()
            overcome += int(expected.sum())
            for one in range(2):
                others = torch.cat([bounds[:one], bounds[one + 1 :]]).amax(0) <= 0
                decisive[one] += (others & ~beaten).sum()
            still = replace(found, functionals=replace(f, moves=torch.zeros_like(f.moves)))
            safe = (f.values > 0).any(1) if targeted else (f.values > 0).all(1)
            assert not still.overcome(steps.numpy(), targeted=targeted)[safe.numpy()].any()
    assert overcome > 0
    assert bool((decisive > 0).all())
