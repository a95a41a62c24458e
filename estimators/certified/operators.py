"""Linear maps between arrays, with what certificates need of them: adjoint, magnitude, rigorous norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

Shape = tuple[int, ...]

# Certified numbers are computed in float64 and inflated by this share of themselves. It covers the rounding
# of sums of up to a million terms, of singular values and of Fourier transforms (all below 1e-10 of the
# result), but it is no outward rounding: the claims read "up to float64 rounding".
ROUNDING = 1e-9

# Maps with at most this many entries are merged into a matrix; larger ones keep their structure.
_MERGED_ENTRIES = 1 << 19

# The exact spectral norm of a matrix of this size takes about a second.
_SMALL_ENTRIES = 1 << 21


# Rows of a Gram matrix that are computed at once.
_GRAM_ROWS = 512


class LinearMap(ABC):
    """A linear map A on rows: a batch (m, *in_shape) goes to (m, *out_shape).

    Attributes:
        in_shape: Shape of one argument, without the batch axis.
        out_shape: Shape of one result.
    """

    in_shape: Shape
    out_shape: Shape

    @abstractmethod
    def apply(self, rows: Tensor) -> Tensor:
        """A x for each row x, (m, *in_shape) to (m, *out_shape)."""

    @abstractmethod
    def adjoint(self, rows: Tensor) -> Tensor:
        """A^T y for each row y, (m, *out_shape) to (m, *in_shape)."""

    @property
    @abstractmethod
    def magnitude(self) -> LinearMap:
        """The map with the absolute values of the entries (of a composition: an upper bound on them)."""

    @property
    @abstractmethod
    def norm(self) -> float:
        """Upper bound on the spectral norm: exact up to rounding where the map is small."""

    @property
    @abstractmethod
    def row_norms(self) -> Tensor:
        """Upper bounds (*out_shape) on the l2 norms of the rows, that is on how much an output can move."""

    @property
    def is_small(self) -> bool:
        """Whether the dense matrix is affordable."""
        return math.prod(self.in_shape) * math.prod(self.out_shape) <= _SMALL_ENTRIES

    def matrix(self) -> Tensor:
        """The dense matrix (prod(out_shape), prod(in_shape))."""
        size = math.prod(self.in_shape)
        identity = torch.eye(size, dtype=torch.float64, device=self.row_norms.device)
        return self.apply(identity.reshape(size, *self.in_shape)).flatten(1).T.contiguous()

    @cached_property
    def absolute_gram(self) -> Tensor:
        """Absolute values of the inner products of all rows, in float32: (prod(out_shape),) * 2."""
        size = math.prod(self.out_shape)
        gram = torch.empty(size, size, dtype=torch.float32, device=self.row_norms.device)
        for start in range(0, size, _GRAM_ROWS):
            units = torch.zeros(min(_GRAM_ROWS, size - start), size, dtype=torch.float64, device=gram.device)
            units[:, start : start + len(units)].fill_diagonal_(1.0)
            rows = self.adjoint(units.reshape(-1, *self.out_shape))
            gram[start : start + len(units)] = self.apply(rows).flatten(1).abs()
        return gram

    @property
    @abstractmethod
    def single(self) -> LinearMap:
        """The map in float32."""

    @cached_property
    def exact_norm(self) -> float:
        """The spectral norm from the singular values of the dense matrix."""
        return float(torch.linalg.matrix_norm(self.matrix(), ord=2)) * (1 + ROUNDING)


class Dense(LinearMap):
    """A matrix (prod(out_shape), prod(in_shape))."""

    def __init__(self, weight: Tensor, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        self.weight, self.in_shape, self.out_shape = weight, tuple(in_shape), tuple(out_shape)

    def apply(self, rows: Tensor) -> Tensor:
        return (rows.flatten(1) @ self.weight.T).reshape(-1, *self.out_shape)

    def adjoint(self, rows: Tensor) -> Tensor:
        return (rows.flatten(1) @ self.weight).reshape(-1, *self.in_shape)

    @cached_property
    def magnitude(self) -> LinearMap:
        return Dense(self.weight.abs(), self.in_shape, self.out_shape)

    @cached_property
    def single(self) -> LinearMap:
        return Dense(self.weight.float(), self.in_shape, self.out_shape)

    @property
    def norm(self) -> float:
        return self.exact_norm

    @cached_property
    def row_norms(self) -> Tensor:
        return self.weight.norm(dim=1).reshape(self.out_shape)

    def matrix(self) -> Tensor:
        return self.weight


class Convolution(LinearMap):
    """A two-dimensional convolution with zero padding, as torch's conv2d without its bias.

    Average pooling with padding counted is one, with equal weights and a group for each channel.
    """

    def __init__(
        self,
        weight: Tensor,
        in_shape: Sequence[int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        self.weight, self.in_shape = weight, tuple(in_shape)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        sizes = [
            (size + 2 * pad - reach * (kernel - 1) - 1) // step + 1
            for size, pad, reach, kernel, step in zip(
                self.in_shape[1:], padding, dilation, weight.shape[2:], stride, strict=True
            )
        ]
        self.out_shape = (weight.shape[0], *sizes)

    @cached_property
    def _tile(self) -> float | None:
        """The weight of a pooling whose windows tile the input: much faster without a convolution."""
        kernel, plain = self.weight.shape[2:], self.padding == (0, 0) and self.dilation == (1, 1)
        tiles = plain and self.stride == tuple(kernel) and self.groups == self.in_shape[0] == len(self.weight)
        whole = all(size % step == 0 for size, step in zip(self.in_shape[1:], kernel, strict=True))
        equal = bool((self.weight == self.weight.flatten()[0]).all())
        return float(self.weight.flatten()[0]) if tiles and whole and equal else None

    def apply(self, rows: Tensor) -> Tensor:
        if self._tile is not None:
            return functional.avg_pool2d(rows, self.stride) * (self._tile * math.prod(self.stride))
        return functional.conv2d(
            rows, self.weight, None, self.stride, self.padding, self.dilation, self.groups
        )

    def adjoint(self, rows: Tensor) -> Tensor:
        if self._tile is not None:
            spread = (rows * self._tile).repeat_interleave(self.stride[0], 2)
            return spread.repeat_interleave(self.stride[1], 3)
        return conv2d_input(
            (len(rows), *self.in_shape), self.weight, rows,
            self.stride, self.padding, self.dilation, self.groups,
        )  # fmt: skip

    def with_weight(self, weight: Tensor) -> Convolution:
        """The same geometry with another kernel."""
        return Convolution(
            weight, self.in_shape, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups,
        )  # fmt: skip

    @cached_property
    def magnitude(self) -> LinearMap:
        return self.with_weight(self.weight.abs())

    @cached_property
    def single(self) -> LinearMap:
        return self.with_weight(self.weight.float())

    @cached_property
    def norm(self) -> float:
        if self.is_small:
            return self.exact_norm
        return min(self._torus_norm(), schur_norm(self))

    @cached_property
    def row_norms(self) -> Tensor:
        ones = torch.ones(1, *self.in_shape, dtype=self.weight.dtype, device=self.weight.device)
        return self.with_weight(self.weight.square()).apply(ones)[0].clamp_min(0.0).sqrt()

    def _torus_norm(self) -> float:
        """Norm of the periodic convolution of which this one is a restriction (rows and columns left out).

        On a torus large enough that no window wraps around onto itself, zero-padded inputs convolve as they
        do here; leaving out the other inputs and outputs can only lower the norm. Strides are removed first
        by splitting input and kernel into their residue classes (phases). The periodic convolution is
        block-diagonal under the Fourier transform, so its norm is the largest one over the frequencies.
        """
        phases, sizes = self._phase_kernel()
        spectrum = torch.fft.fft2(phases, s=sizes)
        blocks = spectrum.permute(0, 3, 4, 1, 2)  # (groups, *frequencies, out, in)
        return float(torch.linalg.matrix_norm(blocks, ord=2).max()) * (1 + ROUNDING)

    def _phase_kernel(self) -> tuple[Tensor, list[int]]:
        """Kernel (groups, out, in * phases, *reach) at stride 1, and the sizes of a torus that fits it."""
        kernel = _dilated(self.weight, self.dilation)
        sizes, reaches = [], []
        for axis, (size, pad, step) in enumerate(
            zip(self.in_shape[1:], self.padding, self.stride, strict=True)
        ):
            reach = -(-kernel.shape[2 + axis] // step)
            reaches.append(reach)
            sizes.append(-(-(size + 2 * pad) // step) + reach - 1)
        rows, columns = (reach * step for reach, step in zip(reaches, self.stride, strict=True))
        kernel = functional.pad(kernel, (0, columns - kernel.shape[3], 0, rows - kernel.shape[2]))
        outputs, inputs = kernel.shape[:2]
        kernel = kernel.reshape(outputs, inputs, reaches[0], self.stride[0], reaches[1], self.stride[1])
        kernel = kernel.permute(0, 1, 3, 5, 2, 4).reshape(outputs, -1, *reaches)
        return kernel.reshape(self.groups, outputs // self.groups, -1, *reaches), sizes


class Scaling(LinearMap):
    """Entrywise multiplication by fixed factors."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors
        self.in_shape = self.out_shape = tuple(factors.shape)

    def apply(self, rows: Tensor) -> Tensor:
        return rows * self.factors

    def adjoint(self, rows: Tensor) -> Tensor:
        return rows * self.factors

    @cached_property
    def magnitude(self) -> LinearMap:
        return Scaling(self.factors.abs())

    @cached_property
    def single(self) -> LinearMap:
        return Scaling(self.factors.float())

    @property
    def norm(self) -> float:
        return float(self.factors.abs().max())

    @property
    def row_norms(self) -> Tensor:
        return self.factors.abs()

    @property
    def channel_factors(self) -> Tensor | None:
        """One factor for each channel (first axis), if the factors are constant within channels."""
        flat = self.factors.flatten(1) if self.factors.dim() > 1 else self.factors.unsqueeze(1)
        return flat[:, 0] if bool((flat == flat[:, :1]).all()) else None


class Reshape(LinearMap):
    """The same numbers in another shape."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], device: torch.device) -> None:
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self._device = device

    def apply(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *self.out_shape)

    def adjoint(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *self.in_shape)

    @property
    def magnitude(self) -> LinearMap:
        return self

    @property
    def single(self) -> LinearMap:
        return self

    @property
    def norm(self) -> float:
        return 1.0

    @property
    def row_norms(self) -> Tensor:
        return torch.ones(self.out_shape, dtype=torch.float64, device=self._device)


class Composition(LinearMap):
    """Several maps, the first one applied first."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self.maps = tuple(maps)
        self.in_shape, self.out_shape = self.maps[0].in_shape, self.maps[-1].out_shape

    def apply(self, rows: Tensor) -> Tensor:
        for one in self.maps:
            rows = one.apply(rows)
        return rows

    def adjoint(self, rows: Tensor) -> Tensor:
        for one in reversed(self.maps):
            rows = one.adjoint(rows)
        return rows

    @cached_property
    def magnitude(self) -> LinearMap:
        return Composition([one.magnitude for one in self.maps])

    @cached_property
    def single(self) -> LinearMap:
        return Composition([one.single for one in self.maps])

    @cached_property
    def norm(self) -> float:
        if self.is_small:
            return self.exact_norm
        return min(math.prod(one.norm for one in self.maps), schur_norm(self))

    @cached_property
    def row_norms(self) -> Tensor:
        # A row of the composition is the last map's row, sent back through the adjoints of the others.
        before = math.prod(one.norm for one in self.maps[:-1])
        return self.maps[-1].row_norms * before


def merge(first: LinearMap, second: LinearMap) -> LinearMap:
    """The map `second(first(x))`, as one matrix or one convolution where that costs nothing."""
    if isinstance(first, Scaling) and isinstance(second, Scaling):
        return Scaling(first.factors * second.factors)
    if isinstance(first, Convolution) and isinstance(second, Scaling):
        after = second.channel_factors
        if after is not None:
            return first.with_weight(first.weight * after.view(-1, 1, 1, 1))
    if isinstance(first, Scaling) and isinstance(second, Convolution):
        before = first.channel_factors
        if before is not None:
            outputs, inputs = second.weight.shape[:2]
            groups = second.groups
            factors = before.view(groups, 1, inputs, 1, 1).expand(-1, outputs // groups, -1, 1, 1)
            return second.with_weight(second.weight * factors.reshape(outputs, inputs, 1, 1))
    maps = [*_parts(first), *_parts(second)]
    merged = Composition(maps)
    entries = math.prod(merged.in_shape) * math.prod(merged.out_shape)
    if entries <= _MERGED_ENTRIES and not all(isinstance(one, Reshape | Scaling) for one in maps):
        return Dense(merged.matrix(), merged.in_shape, merged.out_shape)
    return merged


def densified(one: LinearMap) -> LinearMap:
    """The map as a matrix if it has few entries, for which a product is faster than a convolution."""
    if isinstance(one, Convolution) and math.prod(one.in_shape) * math.prod(one.out_shape) <= _MERGED_ENTRIES:
        return Dense(one.matrix(), one.in_shape, one.out_shape)
    return one


def schur_norm(one: LinearMap, iterations: int = 20) -> float:
    """Upper bound on ||A||_2 by Schur's test: ||A||^2 <= max_j (M^T M v)_j / v_j for M = |A| and any v > 0.

    The bound holds for every positive v; a few power steps make it ||M||^2 nearly.
    """
    magnitude = one.magnitude
    weights = torch.ones(1, *one.in_shape, dtype=torch.float64, device=one.row_norms.device)
    best = math.inf
    for _ in range(iterations):
        image = magnitude.adjoint(magnitude.apply(weights))
        best = min(best, float((image / weights).max()))
        # Entries that decay to zero would spoil the quotient; any positive weight is admissible.
        weights = (image / image.max()).clamp_min(1e-6) if float(image.max()) > 0 else weights
    return math.sqrt(best) * (1 + ROUNDING)


def _parts(one: LinearMap) -> tuple[LinearMap, ...]:
    return one.maps if isinstance(one, Composition) else (one,)


def _dilated(weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    if dilation == (1, 1):
        return weight
    rows, columns = weight.shape[2:]
    spread = weight.new_zeros(
        *weight.shape[:2], (rows - 1) * dilation[0] + 1, (columns - 1) * dilation[1] + 1
    )
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread
