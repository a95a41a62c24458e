"""One activation over balls: its remainder beyond a fixed slope, and how far weighted sums of it can go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from estimators.certified.activations import Curve
from estimators.certified.operators import ROUNDING, LinearMap

Interval = tuple[Tensor, Tensor]

# The mean second derivative is bounded over this many nested intervals: with one it would be the supremum.
_SHELLS = 8
# Schur's test runs so many steps, in float32, on layers of at most so many units.
_POWER_STEPS = 3
_TESTED_UNITS = 5000
_SINGLE = 1e-3
# Differences of values of an activation are off by less than this share of them.
_CANCELLED = 1e-14
# Inner products of the units of a layer are held where it has no more units than this.
_GRAM_UNITS = 1024


@dataclass(frozen=True, eq=False)
class Layer:
    """An activation over the balls, its M entries flattened.

    Attributes:
        rows: Gradients r_k of what enters it at the centre, (n, d, M); (1, d, M) where they are the same for
            every sample; None where they would be too many.
        error: Bounds on `|t_k - r_k.d|`, (n, M), and
        error_norm: on the l2 norm of all of them, (n,).
        reach: Bounds on `|t_k|`, (n, M).
        spread: Bound on the l2 norm of all t_k together, (n,).
        slope: The slopes s, (n, M).
        bend: Range of q, each (n, M); None at a kink.
        remainder: Range of rho, each (n, M).
        radius: l2 radius of the balls; None for linf.
        large: Whether some activation of the network is too large for its rows: then l2 norms of whole layers
            are looked at too, which gain nothing where all rows are held.
        operator: The affine map that gives what enters it; None where a sum does.
        entering: Bound on the l2 norm of how far the argument of that map moves, (n,).
    """

    rows: Tensor | None
    error: Tensor
    error_norm: Tensor
    reach: Tensor
    spread: Tensor
    slope: Tensor
    bend: Interval | None
    remainder: Interval
    radius: float | None
    large: bool
    operator: LinearMap | None
    entering: Tensor

    @cached_property
    def squared_lengths(self) -> Tensor:
        """Squares of the lengths of the rows, (n, M) or (1, M)."""
        assert self.rows is not None
        return self.rows.square().sum(1)

    @cached_property
    def squared_gram(self) -> Tensor | None:
        """Squares of the inner products of the rows, (n, M, M) or (1, M, M)."""
        if self.rows is None or self.radius is None or self.rows.shape[2] > _GRAM_UNITS:
            return None
        return (self.rows.mT @ self.rows).square()

    def swing(self, adjoint: Tensor) -> Interval:
        """Upper bounds (n, R) on `-sum_k lambda_k rho_k` and on its opposite, for lambda (n, R, M)."""
        low, high = self.remainder
        size = adjoint.abs()
        # Positive and negative parts of lambda apart are halves of |lambda| + lambda and |lambda| - lambda.
        apart, lean = (
            (part @ ends.unsqueeze(2)).squeeze(2) / 2
            for part, ends in ((size, high - low), (adjoint, high + low))
        )
        # What cancels in the difference is below the rounding of the sum.
        apart = apart * (1 + ROUNDING)
        if self.bend is None:
            return apart - lean, apart + lean
        largest = (size * torch.maximum(self.bend[1], -self.bend[0]).unsqueeze(1)).amax(2)
        whole = largest * self.spread.square().unsqueeze(1) / 2
        if self.large:
            whole = torch.minimum(whole, adjoint.norm(dim=2) * self.remainder_norm.unsqueeze(1))
        fall, rise = torch.minimum(apart - lean, whole), torch.minimum(apart + lean, whole)
        if self.squared_gram is not None:
            fall = torch.minimum(fall, self._frobenius(adjoint) / 2)
            rise = torch.minimum(rise, self._frobenius(-adjoint) / 2)
        return fall, rise

    def weighted_error(self, weights: Tensor) -> Tensor:
        """Upper bound (n, R) on `sum_k w_k (t_k - r_k.d)^2` for weights w >= 0 of shape (n, R, M)."""
        apart = (weights @ self.error.square().unsqueeze(2)).squeeze(2)
        return torch.minimum(apart, weights.amax(2) * self.error_norm.square().unsqueeze(1))

    @cached_property
    def remainder_norm(self) -> Tensor:
        """Bound (n,) on the l2 norm of all rho_k together."""
        low, high = self.remainder
        apart = torch.maximum(high, -low).norm(dim=1)
        if self.bend is None or self.radius is None or not self.large:
            return apart
        # rho^2 <= (|q| reach / 2)^2 t^2.
        weights = (torch.maximum(self.bend[1], -self.bend[0]) * self.reach / 2).square()
        return torch.minimum(apart, self.square(weights).sqrt() * (1 + ROUNDING))

    def square(self, weights: Tensor) -> Tensor:
        """Upper bound (n,) on `sum_k w_k t_k^2` in l2, for weights w >= 0 of shape (n, M)."""
        assert self.radius is not None
        best = weights.amax(1) * self.spread.square()
        if self.rows is not None:
            scaled = self.rows * weights.sqrt().unsqueeze(1)
            wrong = self.weighted_error(weights.unsqueeze(1)).squeeze(1)
            return torch.minimum(best, (self.radius * spectral_bound(scaled) + wrong.sqrt()).square())
        return torch.minimum(best, self._schur(weights) * self.entering.square())

    def widest(self, steep: Tensor) -> Tensor:
        """Bound (n,) on the l2 norm of all `s_k t_k` together for `|s_k| <= steep`, (n, M)."""
        best = steep.amax(1) * self.spread
        if self.radius is None or not self.large:
            return best
        return torch.minimum(best, self.square(steep.square()).sqrt())

    def refined_fall(self, adjoint: Tensor, samples: Tensor) -> Tensor:
        """The first bound (m,) of `swing` for an adjoint (m, M) of each of some samples, looked at closer."""
        if self.bend is None or self.radius is None:
            return adjoint.new_full((len(adjoint),), math.inf)
        low, high = (adjoint * end[samples] for end in self.bend)
        weights = -torch.minimum(low, high).clamp_max(0)
        if self.rows is None:
            return self._schur(weights) * self.entering[samples].square() / 2
        rows = self.rows if len(self.rows) == 1 else self.rows[samples]
        apart = (weights * self.error[samples].square()).sum(1)
        wrong = torch.minimum(apart, weights.amax(1) * self.error_norm[samples].square())
        size = self.radius * spectral_bound(rows * weights.sqrt().unsqueeze(1))
        return (size + wrong.sqrt()).square() / 2

    def _schur(self, weights: Tensor) -> Tensor:
        """Upper bound (m,) on `sum_k w_k (A a)_k^2` over unit vectors a, for the affine map A before."""
        if self.operator is None:
            return weights.amax(1)
        if math.prod(self.operator.out_shape) > _TESTED_UNITS:
            return weights.amax(1) * self.operator.norm**2
        return largest_scaled(weights, self.operator.absolute_gram)

    def _frobenius(self, adjoint: Tensor) -> Tensor:
        """Upper bound (n, R) on `-sum_k lambda_k q_k t_k^2`, in l2.

        The norm of a matrix is at most its Frobenius norm, here of the rows scaled with the weights.
        """
        assert self.bend is not None
        assert self.squared_gram is not None
        assert self.radius is not None
        weights = -torch.minimum(*(adjoint * end.unsqueeze(1) for end in self.bend)).clamp_max(0)
        size = ((weights @ self.squared_gram) * weights).sum(2).clamp_min(0).sqrt()
        wrong = self.weighted_error(weights)
        return (self.radius * size.sqrt() + wrong.sqrt()).square()


def spectral_bound(matrices: Tensor) -> Tensor:
    """Upper bound (n,) on the spectral norms of matrices (n, a, b): too large by at most rank^(1/16).

    From the trace of the eighth power of the Gram matrix: a few products, where singular values take many
    times as long.
    """
    gram = matrices @ matrices.mT if matrices.shape[1] <= matrices.shape[2] else matrices.mT @ matrices
    scale = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(gram.dtype).tiny)
    power = gram / scale.reshape(-1, 1, 1)
    for _ in range(2):
        power = power @ power
    return (scale * torch.linalg.matrix_norm(power) ** 0.25).sqrt() * (1 + ROUNDING)


def largest_scaled(weights: Tensor, gram: Tensor) -> Tensor:
    """Upper bound (m,) on the largest eigenvalue of `diag(sqrt w) G diag(sqrt w)` for weights w >= 0 (m, M).

    It is that of G diag(w), so at most `max_k (|G| w v)_k / v_k` over w_k > 0 for every positive v (Schur's
    test, or Collatz and Wielandt); a few power steps make v nearly the best.

    Args:
        weights: (m, M).
        gram: |G|, (M, M), in float32; sums of its positive terms are off by less than `_SINGLE` of them.
    """
    single = weights.to(gram.dtype)
    scale = single.amax(1, keepdim=True)
    single = single / scale.clamp_min(torch.finfo(gram.dtype).tiny)
    vector = torch.ones_like(single)
    best = weights.new_full((len(weights),), math.inf)
    for _ in range(_POWER_STEPS):
        image = (single * vector) @ gram
        ratio = (image / vector).where(single > 0, 0.0).amax(1)
        best = torch.minimum(best, ratio.to(weights.dtype))
        # Entries that decay to zero would spoil the quotient; any positive vector will do.
        vector = (image / image.amax(1, keepdim=True)).clamp_min(1e-6).nan_to_num(1.0)
    return best * scale.squeeze(1).to(weights.dtype) * (1 + _SINGLE)


def after(curve: Curve, value: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """How far an activation's entries can move, and the steepest slope of each on the way."""
    low, high = curve.value_range(value - reach, value + reach)
    centre = curve.value(value)
    flat, steep = curve.slope_range(value - reach, value + reach)
    moved = torch.maximum(high - centre, centre - low)
    return moved * (1 + ROUNDING), torch.maximum(steep, -flat)


def remainder(curve: Curve, value: Tensor, reach: Tensor) -> tuple[Tensor, Interval | None, Interval]:
    """Slopes s, the range of q if there is one, and the range of rho, for entries (n, M)."""
    ends = value - reach, value + reach
    moved = [curve.value(end) - curve.value(value) for end in ends]
    if curve.smooth:
        low, high = mean_bend(curve, value, reach)
        slope, half = curve.slope(value), reach.square() / 2
        # Where sigma is convex or concave all over, rho is extreme at an end or, with value 0, at the centre.
        over = curve.bend_range(*ends)
        bent = (over[0] >= 0) | (over[1] <= 0)
        apart = torch.stack([moved[0] + slope * reach, moved[1] - slope * reach])
        allowance = ROUNDING * apart.abs().amax(0) + _CANCELLED * (1 + value.abs() + reach)
        least = torch.maximum(low * half, apart.amin(0) - allowance).where(bent, low * half)
        most = torch.minimum(high * half, apart.amax(0) + allowance).where(bent, high * half)
        return slope, (low, high), (least.clamp_max(0), most.clamp_min(0))
    crosses = (ends[0] < 0) & (ends[1] > 0)
    slope = ((moved[1] - moved[0]) / (2 * reach)).where(crosses, curve.slope(value))
    # Piecewise linear: the extremes are at the ends, at the kink and, with value 0, at the centre.
    at_kink = (slope * value - curve.value(value)).where(crosses, 0.0)
    apart = torch.stack([moved[0] + slope * reach, moved[1] - slope * reach, at_kink])
    allowance = ROUNDING * (value.abs() + reach)
    low, high = apart.amin(0).clamp_max(0) - allowance, apart.amax(0).clamp_min(0) + allowance
    return slope, None, (low.where(crosses, 0.0), high.where(crosses, 0.0))


def mean_bend(curve: Curve, value: Tensor, reach: Tensor) -> Interval:
    """Range of `q(t) = 2 (sigma(u + t) - sigma(u) - sigma'(u) t) / t^2` over |t| <= reach.

    q is the mean of sigma'' along [u, u + t] with weight 2 (1 - s) at u + s t: over nested intervals the
    supremum of sigma'' grows, and the weights of the shells between them are known. Each side apart.
    """
    shares = torch.linspace(0, 1, _SHELLS + 1, dtype=value.dtype)
    weights = (2 * shares - shares.square()).diff().tolist()
    sides = []
    for side in (-1, 1):
        low = high = torch.zeros_like(value)
        for share, weight in zip(shares[1:].tolist(), weights, strict=True):
            far = value + side * share * reach
            shell = curve.bend_range(torch.minimum(value, far), torch.maximum(value, far))
            low, high = low + weight * shell[0], high + weight * shell[1]
        sides.append((low, high))
    low, high = torch.minimum(sides[0][0], sides[1][0]), torch.maximum(sides[0][1], sides[1][1])
    allowance = ROUNDING * torch.maximum(high.abs(), low.abs())
    return low - allowance, high + allowance
