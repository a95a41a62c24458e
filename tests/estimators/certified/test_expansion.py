"""Expansions over balls: no point of a ball leaves what they allow, and every part of them is needed."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators.certified import read_network
from estimators.certified.activations import gelu, silu, softplus, tanh
from estimators.certified.expansion import _merged_columns, expand
from estimators.certified.operators import Composition, Convolution
from estimators.certified.quadratic import quadratic_bounds
from estimators.certified.remainder import largest_scaled, mean_bend, spectral_bound

SEEDS = range(8)


def descended(function, x, radius, norm, generator):
    """Points (n, *shape) of the balls where projected descent leaves a function, summed over samples, low."""
    step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for turn in range(15):
        if norm == "l2":
            scale = radius / step.flatten(1).norm(dim=1).clamp_min(1e-12)
            scale = scale if turn == 0 else scale.clamp_max(1)
            step = step * scale.reshape(-1, *[1] * (x.dim() - 1))
        else:
            step = step.sign() * radius if turn == 0 else step.clamp(-radius, radius)
        step = step.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(x + step).sum(), step)
        if turn < 14:
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (x.dim() - 1))
            step = step.detach() - 0.3 * radius * (slope.sign() if norm == "linf" else slope / length)
    return x + step.detach()


def gaps(seed, random_network, norm, radius, *, smooth):
    """By how much the least of each functional exceeds its affine and its quadratic lower bound, (n, 2)."""
    model, x, classes = random_network(seed, smooth=smooth)
    seeds = torch.eye(classes, dtype=x.dtype)
    seeds = (seeds[:1] - seeds[1:]).expand(len(x), -1, -1)
    found = expand(read_network(model, x), x, radius, norm).functionals(seeds)
    label = 0
    value = lambda points: model(points) @ seeds[0, label]  # noqa: E731
    pairs = []
    generator = torch.Generator().manual_seed(seed)
    quadratic = quadratic_bounds(found, 1.0)
    if quadratic is not None:
        every = torch.arange(len(x))
        matrix = quadratic.matrices(every, torch.full_like(every, label))
        constant = quadratic.constants[:, label]

    def affine_gap(points):
        step = (points - x).flatten(1)
        linear = found.values[:, label] + (found.gradients[:, label] * step).sum(1)
        return value(points) - linear + found.fall[:, label]

    def quadratic_gap(points):
        step = (points - x).flatten(1)
        bend = torch.einsum("nd,nde,ne->n", step, matrix, step) / 2
        linear = found.values[:, label] + (found.gradients[:, label] * step).sum(1)
        return value(points) - linear + bend + constant

    for gap in [affine_gap] if quadratic is None else [affine_gap, quadratic_gap]:
        pairs.append(gap(descended(gap, x, radius, norm, generator)).detach())
    return torch.stack(pairs, 1), found.values.abs().max()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("smooth", [True, False])
def test_descent_never_gets_below_the_lower_bounds(random_network, norm, smooth):
    for seed in SEEDS:
        radius = (0.4, 0.05, 0.15)[seed // 2 % 3]
        found, size = gaps(seed, random_network, norm, radius, smooth=smooth)
        assert float(found.min()) >= -1e-9 * float(1 + size), (seed, radius)


def test_the_affine_bound_is_tight_where_it_can_be():
    """One unit with a convex activation: the chord is reached at the end of the ball."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(5.0, 50.0), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for weight, numbers in zip(
            model.parameters(), ([[1.0]], [0.0], [[-1.0], [0.0]], [0, 0]), strict=True
        ):
            weight.copy_(torch.tensor(numbers))
    x = torch.zeros(1, 1, dtype=torch.float64)
    found = expand(read_network(model, x), x, 0.5, "l2").functionals(torch.tensor([[[1.0, -1.0]]]).double())
    ends = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    logits = model(ends).detach() @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact = (found.values[0, 0] + found.gradients[0, 0, 0] * ends[:, 0] - logits).max()
    assert exact <= float(found.fall[0, 0]) <= 1.0001 * exact


@pytest.mark.parametrize("curve", [softplus(5.0), tanh(), gelu(), silu()], ids=lambda curve: curve.name)
def test_mean_second_derivatives_are_in_their_range(curve):
    value = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for reach in (0.02, 0.3, 2.0):
        low, high = mean_bend(curve, value, torch.full_like(value, reach))
        step = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(1) * reach
        rest = curve.value(value + step) - curve.value(value) - curve.slope(value) * step
        mean = 2 * rest / step.square()
        slack = 1e-14 / step.abs().min() ** 2
        assert bool((mean >= low - slack).all())
        assert bool((mean <= high + slack).all())
        # Sharper than the range of the second derivative itself.
        far_low, far_high = curve.bend_range(value - reach, value + reach)
        assert float((high - low).sum()) < 0.9 * float((far_high - far_low).sum())


def test_units_beyond_the_limit_fall_back_on_norms(random_network, monkeypatch):
    """Without the gradients of the units the bounds are wider, and hold."""
    model, x, classes = random_network(6)
    network, seeds = read_network(model, x), torch.eye(classes).double().expand(len(x), -1, -1)
    held = expand(network, x, 0.2, "l2").functionals(seeds)
    monkeypatch.setattr("estimators.certified.expansion.ROW_ENTRIES", 0)
    loose = expand(network, x, 0.2, "l2").functionals(seeds)
    assert quadratic_bounds(held, 1.0) is not None
    assert quadratic_bounds(loose, 1.0) is None
    assert bool((loose.fall >= held.fall * (1 - 1e-9)).all())
    assert float(loose.fall.sum()) > 1.05 * float(held.fall.sum())
    found, _ = gaps(6, lambda *_, **__: (model, x, classes), "l2", 0.2, smooth=True)
    assert float(found.min()) >= -1e-9


@pytest.mark.parametrize(("sign", "radius"), [(1.0, 0.5), (-1.0, 0.5), (-1.0, 0.01)])
def test_matrices_need_not_be_written_out(random_network, sign, radius):
    """The bound after a step, Q d, the size of Q and its dips, beside Q itself."""
    dipped = False
    for seed in range(0, 12, 2):
        model, x, classes = random_network(seed)
        seeds = torch.randn(len(x), 3, classes, generator=torch.Generator().manual_seed(seed)).double()
        found = quadratic_bounds(expand(read_network(model, x), x, radius, "l2").functionals(seeds), sign)
        samples, labels = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T
        matrices = found.matrices(samples, labels).reshape(4, 3, x.shape[1], -1)
        steps = torch.randn(4, 2, x.shape[1], generator=torch.Generator().manual_seed(1)).double()
        f = found.functionals
        linear = sign * (f.values.unsqueeze(1) + steps @ f.gradients.mT) - found.constants.unsqueeze(1)
        bend = torch.einsum("nsd,nlde,nse->nsl", steps, matrices, steps) / 2
        torch.testing.assert_close(found.at(steps), linear - bend)
        for chosen in (torch.arange(4), torch.tensor([1, 3])):
            labels = torch.tensor([[2, 0]]).expand(len(chosen), -1)
            pushed = found.pushed(chosen, labels, steps[chosen, 0])
            expected = torch.einsum("nlde,ne->nld", matrices[chosen][:, [2, 0]], steps[chosen, 0])
            torch.testing.assert_close(pushed, expected)
        values = torch.linalg.eigvalsh(matrices)
        assert bool((found.sizes >= values.abs().amax(2)).all())
        assert bool((found.dips >= -values[:, :, 0] * (1 - 1e-9)).all())
        dipped = dipped or bool((values[:, :, 0] < -1e-3).any())
    # In small balls the second derivatives have a sign, and so have some of the eigenvalues.
    assert dipped or radius > 0.1


def test_the_test_of_schur_bounds_the_largest_eigenvalue():
    """From above, whatever the signs; and exactly for a Gram matrix without negative entries."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    weights = torch.rand(20, 30, generator=generator, dtype=torch.float64)
    weights[:, ::3] = 0.0
    for one, slack in ((rows, 5.0), (rows.abs(), 1.01)):
        exact = torch.linalg.eigvalsh((one.T * weights.unsqueeze(1)) @ one)[:, -1]
        found = largest_scaled(weights, (one @ one.T).abs().float())
        assert bool((found >= exact).all())
        assert bool((found <= slack * exact).all())


@pytest.mark.parametrize("limit", [0, 40])
def test_layers_without_gradients_are_refined_and_the_bounds_hold(random_network, monkeypatch, limit):
    """With no gradients held, and with those of the narrow layers only."""
    monkeypatch.setattr("estimators.certified.expansion.ROW_ENTRIES", limit)
    gains = []
    for seed in range(5):
        model, x, classes = random_network(seed)
        seeds = torch.eye(classes).double().expand(len(x), -1, -1)
        found = expand(read_network(model, x), x, 0.3, "l2").functionals(seeds)
        every = torch.arange(len(x))
        refined = found.refined_fall(every, torch.zeros_like(every))
        assert bool((refined <= found.fall[:, 0] * (1 + 1e-8)).all())

        def gap(points, model=model, found=found, refined=refined, x=x):
            linear = found.values[:, 0] + (found.gradients[:, 0] * (points - x).flatten(1)).sum(1)
            return model(points)[:, 0] - linear + refined

        least = gap(descended(gap, x, 0.3, "l2", torch.Generator().manual_seed(seed))).detach()
        assert float(least.min()) >= -1e-9
        gains.append(float((refined / found.fall[:, 0]).mean()))
    assert min(gains) < 0.95


def test_displacements_stay_in_their_reach(random_network, monkeypatch):
    """Unit by unit and layer by layer, at random points on the spheres."""
    generator = torch.Generator().manual_seed(0)
    for limit in (0, 40, 1 << 18):
        monkeypatch.setattr("estimators.certified.expansion.ROW_ENTRIES", limit)
        for seed in range(4):
            model, x, _ = random_network(seed)
            network = read_network(model, x)
            found = expand(network, x, 0.5, "l2")
            centre = network.values(x)
            for _ in range(30):
                step = torch.randn(x.shape, generator=generator, dtype=x.dtype).flatten(1)
                step = (0.5 * step / step.norm(dim=1, keepdim=True)).reshape(x.shape)
                for index, layer in found.layers.items():
                    source = network.nodes[index].source
                    moved = (network.values(x + step)[source] - centre[source]).flatten(1)
                    assert bool((moved.abs() <= layer.reach).all())
                    assert bool((moved.norm(dim=1) <= layer.spread).all())


def test_merged_columns_have_the_lengths_of_the_rows():
    """Fewer columns than inputs, and the same sums of squares for any slopes between the two maps."""
    generator = torch.Generator().manual_seed(0)

    def kernel(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first = Convolution(kernel(2, 1, 3, 3), (1, 16, 16), padding=(1, 1))
    pooling = Convolution(torch.full((2, 1, 2, 2), 0.25).double(), (2, 16, 16), stride=(2, 2), groups=2)
    second = Composition([pooling, Convolution(kernel(3, 2, 3, 3), (2, 8, 8), padding=(1, 1))])
    slopes = torch.rand(2, 16, 16, generator=generator, dtype=torch.float64)
    merged = second.apply(_merged_columns(first, second).double() * slopes).flatten(1)
    every = second.apply(first.apply(torch.eye(256).double().reshape(-1, 1, 16, 16)) * slopes).flatten(1)
    assert len(merged) < 256 / 2
    assert torch.allclose(merged.square().sum(0), every.square().sum(0), rtol=1e-4)


def test_the_spectral_bound_is_an_upper_bound_and_close():
    matrices = torch.randn(30, 20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.linalg.matrix_norm(matrices, ord=2)
    for some in (matrices, matrices.mT):
        found = spectral_bound(some)
        assert bool((found >= exact).all())
        assert bool((found <= 1.25 * exact).all())
    assert float(spectral_bound(torch.zeros(1, 3, 4).double())) < 1e-100


def test_at_radius_zero_everything_is_exact(random_network):
    for seed in range(4):
        model, x, classes = random_network(seed)
        found = expand(read_network(model, x), x, 0.0, "l2").functionals(
            torch.eye(classes).double().expand(len(x), -1, -1)
        )
        points = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(points)[:, 0].sum(), points)
        assert torch.allclose(found.values, model(x))
        assert torch.allclose(found.gradients[:, 0], slope.flatten(1))
        assert float(found.fall.abs().max()) == 0.0
        assert functional.relu(-found.rise).max() == 0
