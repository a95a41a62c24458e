"""Linear maps against their dense matrices: adjoints, magnitudes, rows, norms that are never too small."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from estimators.certified.network import Affine, read_network
from estimators.certified.operators import (
    Composition,
    Convolution,
    Dense,
    Reshape,
    Scaling,
    densified,
    merge,
    schur_norm,
)


def draws(seed):
    return torch.Generator().manual_seed(seed)


def dense(one):
    """The matrix column by column, from nothing but `apply`."""
    size = math.prod(one.in_shape)
    identity = torch.eye(size, dtype=torch.float64).reshape(size, *one.in_shape)
    return one.apply(identity).reshape(size, -1).T


def spectral(matrix):
    return float(torch.linalg.svdvals(matrix)[0])


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel, dilation, stride = ([draw(st.integers(1, top)) for _ in range(2)] for top in (4, 2, 3))
    padding = [draw(st.integers(0, 3)) for _ in range(2)]
    sizes = [
        draw(st.integers(max(1, reach * (width - 1) + 1 - 2 * pad), 8))
        for width, reach, pad in zip(kernel, dilation, padding, strict=True)
    ]
    channels, outputs = draw(st.integers(1, 2)) * groups, draw(st.integers(1, 2)) * groups
    weight = torch.randn(
        outputs, channels // groups, *kernel, generator=draws(draw(st.integers(0, 9999))), dtype=torch.float64
    )
    if draw(st.booleans()):
        weight = weight.abs()  # the largest singular vector is then smooth, the torus almost exact
    return Convolution(
        weight, (channels, *sizes), stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation),
        groups=groups,
    )  # fmt: skip


def maps():
    """One of each kind, with compositions."""
    generator = draws(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first = Convolution(normal(4, 2, 3, 3), (2, 5, 6), stride=(2, 1), padding=(1, 2))
    pooling = Convolution(torch.full((4, 1, 2, 2), 0.25).double(), first.out_shape, stride=(2, 2), groups=4)
    flat = Reshape(pooling.out_shape, (math.prod(pooling.out_shape),), torch.device("cpu"))
    last = Dense(normal(3, *flat.out_shape), flat.out_shape, (3,))
    return {
        "dense": Dense(normal(6, 4), (4,), (2, 3)),
        "convolution": first,
        "pooling": pooling,
        "scaling": Scaling(normal(2, 3)),
        "reshape": Reshape((2, 3), (6,), torch.device("cpu")),
        "composition": Composition([first, pooling, flat, last]),
    }


@pytest.mark.parametrize("kind", maps())
def test_every_map_keeps_its_promises(kind):
    one = maps()[kind]
    matrix = dense(one)
    x = torch.randn(7, *one.in_shape, generator=draws(1), dtype=torch.float64)
    y = torch.randn(7, *one.out_shape, generator=draws(2), dtype=torch.float64)
    torch.testing.assert_close(one.apply(x).flatten(1), x.flatten(1) @ matrix.T)
    inner = (one.apply(x) * y).flatten(1).sum(1)
    torch.testing.assert_close(inner, (x * one.adjoint(y)).flatten(1).sum(1))
    torch.testing.assert_close(one.matrix(), matrix)
    assert (dense(one.magnitude) >= matrix.abs() - 1e-12).all()
    assert (one.row_norms.flatten() >= matrix.norm(dim=1) * (1 - 1e-12)).all()
    assert spectral(matrix) * (1 - 1e-12) <= one.norm <= spectral(matrix) * (1 + 1e-6)
    if kind != "composition":
        torch.testing.assert_close(dense(one.magnitude), matrix.abs())
        wide = kind == "convolution"  # its padded windows see fewer inputs
        torch.testing.assert_close(
            one.row_norms.flatten(), matrix.norm(dim=1), rtol=1e-9 + wide * 1e-9, atol=0
        )


@settings(max_examples=40)
@given(convolutions())
def test_convolution_norms_are_never_below_the_dense_ones(one):
    truth = spectral(dense(one))
    assert truth * (1 - 1e-10) <= one.norm <= truth * (1 + 1e-6) + 1e-12
    assert one._torus_norm() >= truth * (1 - 1e-10)
    assert schur_norm(one) >= truth * (1 - 1e-10)
    torch.testing.assert_close(one.row_norms.flatten(), dense(one).norm(dim=1))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_torus_bound_is_close_for_a_padded_convolution(kernel, stride):
    weight = torch.randn(4, 3, kernel, kernel, generator=draws(3), dtype=torch.float64)
    one = Convolution(weight, (3, 12, 12), stride=(stride,) * 2, padding=(kernel // 2,) * 2)
    truth = spectral(dense(one))
    assert truth <= one._torus_norm() <= 1.1 * truth


def test_large_convolutions_take_the_smaller_of_two_sound_bounds(monkeypatch):
    monkeypatch.setattr("estimators.certified.operators._SMALL_ENTRIES", 0)
    weight = torch.randn(4, 3, 3, 3, generator=draws(4), dtype=torch.float64)
    for signed in (weight, weight.abs()):
        one = Convolution(signed, (3, 8, 8), padding=(1, 1))
        truth = spectral(dense(one))
        assert not one.is_small
        assert truth * (1 - 1e-10) <= one.norm <= 1.1 * truth
        assert one.norm == min(one._torus_norm(), schur_norm(one))
        chain = Composition([one, Scaling(torch.full(one.out_shape, 2.0).double())])
        assert 2 * truth * (1 - 1e-10) <= chain.norm <= 2.3 * truth


def test_schur_is_exact_for_nonnegative_maps():
    one = Dense(torch.rand(6, 5, generator=draws(6), dtype=torch.float64), (5,), (6,))
    assert schur_norm(one, 200) == pytest.approx(spectral(one.weight), rel=1e-8)
    assert schur_norm(Dense(torch.zeros(2, 2).double(), (2,), (2,))) == 0


def test_the_usual_shortcuts_are_unsound():
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    one = Convolution(ones, (1, 8, 8), padding=(1, 1))
    truth = spectral(dense(one))
    reshaped_kernel = spectral(ones.flatten(1))
    assert reshaped_kernel < 0.4 * truth <= 0.4 * one.norm

    # On a torus of the kernel's size, or of the image's, the window meets itself: a map of smaller norm.
    kernel = torch.tensor([-1.0, 1.0, 0.0, 1.0, -1.0]).double()
    wide = Convolution(kernel.reshape(1, 1, 1, 5), (1, 1, 5), padding=(0, 4))
    too_small = float(torch.fft.fft(kernel, n=5).abs().max())
    assert too_small < 0.7 * spectral(dense(wide)) <= 0.7 * wide._torus_norm() * (1 + 1e-9)

    vector = torch.randn(1, 1, 8, 8, generator=draws(0), dtype=torch.float64)
    wave = Convolution(
        torch.randn(1, 1, 3, 3, generator=draws(1), dtype=torch.float64), (1, 8, 8), padding=(1, 1)
    )
    for _ in range(10):
        vector = wave.adjoint(wave.apply(vector / vector.norm()))
    power_iteration = float(wave.apply(vector / vector.norm()).norm())
    assert power_iteration < spectral(dense(wave)) * (1 - 1e-4) < wave.norm


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3)])
def test_average_pooling_stays_below_its_closed_form(kernel, stride):
    model = nn.Sequential(nn.AvgPool2d(kernel, stride), nn.Flatten())
    network = read_network(model, torch.zeros(1, 2, 7, 7, dtype=torch.float64))
    one = network.nodes[-1].operator
    assert one.norm == pytest.approx(spectral(dense(one)), rel=1e-8)
    assert one.norm <= math.ceil(kernel / stride) / kernel * (1 + 1e-9)


def test_batch_norm_is_folded_with_its_running_statistics():
    layer = nn.BatchNorm2d(2, eps=0.0).double()
    with torch.no_grad():
        layer.running_var.copy_(torch.tensor([4.0, 0.25]))
        layer.weight.copy_(torch.tensor([3.0, -1.0]))
    model = nn.Sequential(layer, nn.Flatten()).eval()
    affine = read_network(model, torch.randn(3, 2, 2, 2, dtype=torch.float64)).nodes[-1]
    assert isinstance(affine, Affine)
    assert affine.operator.norm == pytest.approx(2.0, rel=1e-8)
    expected = torch.tensor([1.5] * 4 + [-2.0] * 4, dtype=torch.float64)
    torch.testing.assert_close(dense(affine.operator), expected.diag())


@pytest.mark.parametrize(
    "before", [Scaling(torch.tensor([[[2.0]], [[-3.0]]]).double().expand(2, 4, 4).contiguous()), None]
)
def test_merging_changes_no_result(before):
    convolution = Convolution(
        torch.randn(4, 1, 3, 3, generator=draws(7), dtype=torch.float64), (2, 4, 4), groups=2
    )
    factors = torch.randn(4, 1, 1, generator=draws(8), dtype=torch.float64).expand(4, 2, 2).contiguous()
    chain = [one for one in (before, convolution, Scaling(factors)) if one is not None]
    merged = chain[0]
    for one in chain[1:]:
        merged = merge(merged, one)
    x = torch.randn(3, 2, 4, 4, generator=draws(9), dtype=torch.float64)
    torch.testing.assert_close(merged.apply(x), Composition(chain).apply(x))
    torch.testing.assert_close(densified(merged).apply(x), merged.apply(x))
    assert merged.norm <= math.prod(one.norm for one in chain) * (1 + 1e-8)
