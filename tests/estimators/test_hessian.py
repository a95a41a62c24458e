"""Hessian spectral norms against closed forms and exhaustive Hessians."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, vmap
from torch.nn import functional

from estimators import cross_entropy, hessian_norms
from estimators.hessian import KrylovSpace, top_curvature

ACTIVATIONS = [nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, lambda: nn.Softplus(3.0, 50)]


def quadratic(matrices):
    """A model and loss with l(x, y) = x' A_y x / 2 + sum x."""

    def loss(z, y):
        return torch.einsum("ni,nij,nj->n", z, matrices[y], z) / 2 + z.sum(1)

    return nn.Flatten(), loss


def exhaustive_norms(model, x, y):
    """Largest |eigenvalue| of each full Hessian, by forward over reverse on one sample at a time."""

    def loss(point, label):
        return functional.cross_entropy(model(point[None]), label[None])

    model.eval()
    dimension = x[0].numel()
    full = vmap(hessian(loss))(x, y).reshape(len(x), dimension, dimension)
    return torch.linalg.eigvalsh(full).abs().amax(1)


def random_net(seed, inputs=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    width = int(torch.randint(2, 9, (), generator=generator))
    activation = ACTIVATIONS[seed % len(ACTIVATIONS)]
    model = nn.Sequential(
        nn.Linear(inputs, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, classes),
    ).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(4, inputs, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(classes, (4,), generator=generator)


def test_quadratic_losses_give_the_largest_absolute_eigenvalue():
    spectra = torch.tensor([[1.0, 2, 3, 4], [-9, -1, 1, 2], [-3, -3, -3, -3], [0, 0, 0, 0], [0, 0, 0, -1e-3]])
    torch.manual_seed(0)
    bases = torch.linalg.qr(torch.randn(5, 4, 4, dtype=torch.float64)).Q
    model, loss = quadratic(bases @ torch.diag_embed(spectra.double()) @ bases.mT)
    x = torch.randn(5, 4, dtype=torch.float64)
    # Labels 0..3 exist for four logits; the fifth matrix takes the place of the first in a second call.
    found = hessian_norms(model, loss, x[:4], torch.arange(4))
    torch.testing.assert_close(found, torch.tensor([4.0, 9, 3, 0], dtype=torch.float64))
    model, loss = quadratic((bases @ torch.diag_embed(spectra.double()) @ bases.mT)[1:])
    torch.testing.assert_close(
        hessian_norms(model, loss, x[:1], torch.tensor([3])), torch.tensor([1e-3], dtype=torch.float64)
    )


def test_affine_loss_has_no_curvature():
    assert (
        hessian_norms(nn.Flatten(), lambda z, y: z.sum(1), torch.ones(3, 4), torch.zeros(3).long())
        .eq(0)
        .all()
    )


@given(st.integers(0, 100_000))
def test_random_nets_full_krylov_space_equals_the_exhaustive_hessian(seed):
    model, x, y = random_net(seed)
    truth = exhaustive_norms(model, x, y)
    torch.testing.assert_close(
        hessian_norms(model, cross_entropy, x, y, tolerance=0), truth, rtol=1e-7, atol=1e-12
    )


@given(st.integers(0, 100_000), st.integers(1, 4))
def test_random_nets_are_never_overestimated(seed, iterations):
    model, x, y = random_net(seed)
    truth = exhaustive_norms(model, x, y)
    found = hessian_norms(model, cross_entropy, x, y, iterations=iterations, seed=seed)
    assert (found <= truth * (1 + 1e-9) + 1e-12).all()
    single = hessian_norms(model.float(), cross_entropy, x.float(), y, iterations=iterations).double()
    assert (single <= truth * (1 + 1e-3) + 1e-4).all()


def test_convolution_with_batch_norm_equals_the_exhaustive_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(3, 4),
    )  # fmt: skip
    model(2 + 3 * torch.randn(32, 2, 4, 4))
    model.double()
    x, y = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.randint(4, (6,))
    truth = exhaustive_norms(model, x, y)
    model.train()
    found = hessian_norms(model, cross_entropy, x, y, tolerance=0, batch_size=4)
    torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-12)


def test_several_labels_give_one_norm_each():
    model, x, _ = random_net(3)
    labels = torch.arange(3).expand(4, 3)
    found = hessian_norms(model, cross_entropy, x, labels, batch_size=5, tolerance=0)
    assert found.shape == (4, 3)
    for label in range(3):
        torch.testing.assert_close(found[:, label], exhaustive_norms(model, x, labels[:, label].contiguous()))


def test_scaling_the_input_by_a_scales_norms_by_a_squared_and_rotations_change_nothing():
    model, x, y = random_net(7)
    plain = hessian_norms(model, cross_entropy, x, y, tolerance=0)
    torch.manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    first = nn.Linear(5, model[0].out_features).double()
    with torch.no_grad():
        first.bias.copy_(model[0].bias)
        first.weight.copy_(3 * model[0].weight @ rotation)
    moved = nn.Sequential(first, *list(model)[1:])
    found = hessian_norms(moved, cross_entropy, x @ rotation / 3, y, tolerance=0)
    torch.testing.assert_close(found, 9 * plain)


def test_margin_identity_of_the_hessian():
    # Hess l = s Hess m + s (1 - s) grad m grad m^T with s = sigmoid(m), as products with a vector.
    from estimators import margin
    from estimators.hessian import gradient_and_product

    model, x, y = random_net(11)
    vector = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = x.clone().requires_grad_()
    values = margin(model(point), y)
    (slope,) = torch.autograd.grad(values.sum(), point)
    s = torch.sigmoid(values.detach())[:, None]
    curved = gradient_and_product(model, margin, x, y)[1](vector)
    expected = s * curved + s * (1 - s) * slope * (slope * vector).sum(1, keepdim=True)
    torch.testing.assert_close(gradient_and_product(model, cross_entropy, x, y)[1](vector), expected)


def test_ten_products_are_enough_for_a_spread_spectrum_of_either_sign():
    torch.manual_seed(0)
    dimension, count = 60, 40
    spectrum = torch.cat([torch.linspace(-1, 1, dimension - 2), torch.tensor([1.6, -2.0])]).double()
    bases = torch.linalg.qr(torch.randn(count, dimension, dimension, dtype=torch.float64)).Q
    matrices = bases @ torch.diag(spectrum) @ bases.mT
    start = torch.randn(count, dimension, dtype=torch.float64)
    space = KrylovSpace.from_start(start).grown(lambda v: torch.einsum("nij,nj->ni", matrices, v), 10)
    norms, vectors, _, _ = space.curvature(spent=10)
    assert (norms <= 2.0 + 1e-12).all()
    assert (norms >= 1.98).all()
    images = torch.einsum("nij,nj->ni", matrices, vectors).norm(dim=1)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(count, dtype=torch.float64))
    torch.testing.assert_close(images, norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_the_first_products_leave_open_go_on_until_they_settle(dtype):
    # Label 0: a spectrum that eight products settle. Labels 1 to 3: a long tail of either sign below the top.
    tail = torch.linspace(-0.9, 0.9, 59)
    tops = [torch.tensor([50.0]), torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([1.02])]
    spectra = torch.stack([torch.cat([tail, top]) for top in tops]).to(dtype)
    model, loss = quadratic(torch.diag_embed(spectra).repeat(15, 1, 1))
    x = torch.randn(40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    y = torch.arange(40) % 4
    truth = spectra.abs().amax(1)[y]
    few = hessian_norms(model, loss, x, y, iterations=8, tolerance=0)
    assert ((truth - few) > 1e-3 * truth).sum() > 10
    found = hessian_norms(model, loss, x, y, batch_size=16)
    assert (found <= truth * (1 + 1e-5)).all()
    assert (found >= 0.9999 * truth).all()
    noise = torch.full((60,), 60**-0.5, dtype=dtype)
    spent = top_curvature(model, loss, x, y, noise).spent
    assert (spent[y == 0] == 5).all()
    assert (spent[y == 1] > 10).all()
    # A gradient and 4 products; then, each with a gradient of the smaller batch, 8, 16 and 32 in all.
    assert set(spent.tolist()) <= {5, 10, 19, 36}


def test_growing_in_stages_with_fewer_samples_is_growing_at_once():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(5, 12, 12, generator=generator, dtype=torch.float64)
    matrices = matrices + matrices.mT
    start, rows = torch.randn(5, 12, generator=generator, dtype=torch.float64), torch.tensor([4, 1])

    def product(chosen):
        return lambda v: torch.einsum("nij,nj->ni", matrices[chosen], v)

    everything = torch.arange(5)
    at_once = KrylovSpace.from_start(start).grown(product(everything), 9).curvature(spent=9)
    some = KrylovSpace.from_start(start).grown(product(everything), 4).of(rows).grown(product(rows), 9)
    torch.testing.assert_close(some.curvature(spent=9).norms, at_once.norms[rows])
    torch.testing.assert_close(some.curvature(spent=9).residuals, at_once.residuals[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breakdown_of_some_samples_does_not_disturb_the_others(dtype):
    diagonals = torch.zeros(4, 30, dtype=dtype)
    diagonals[0, :2] = torch.tensor([-7.0, 3.0])
    diagonals[1] = -2.0
    diagonals[3] = torch.linspace(-5, 1, 30)
    start = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    norms = KrylovSpace.from_start(start).grown(lambda v: diagonals * v, 20).curvature(spent=20).norms
    torch.testing.assert_close(norms, torch.tensor([7.0, 2, 0, 5], dtype=dtype), rtol=1e-4, atol=0)


def test_bad_iterations_and_infinite_curvature_are_refused():
    model, x, y = random_net(0)
    with pytest.raises(ValueError, match="at least 1 Lanczos iteration, got 0"):
        hessian_norms(model, cross_entropy, x, y, iterations=0)
    with pytest.raises(ValueError, match=r"tolerance of at least 0, got -0\.1"):
        hessian_norms(model, cross_entropy, x, y, tolerance=-0.1)
    with pytest.raises(ValueError, match="finite values in the Hessians"):
        hessian_norms(
            nn.Flatten(), lambda z, k: z.abs().pow(1.5).sum(1), torch.zeros(1, 3), torch.tensor([0])
        )
