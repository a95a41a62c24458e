"""From bounds on logit margins over balls to bounds on cross-entropy: softmax ranges, Hessian, gradient.

Write m^k = z_y - z_k, p for the softmax, q for the softmax over the labels other than y, s = 1 - p_y, and
M = log sum_{k != y} exp(-m^k), so that s = sigmoid(M). For the cross-entropy l = softplus(M) at label y

    grad l = -sum_k p_k grad m^k = s grad M,
    Hess l = sum_{k<l} p_k p_l g_kl g_kl^T - sum_k p_k Hess m^k          with g_kl = grad (z_k - z_l)
           = s Hess M + s (1 - s) grad M grad M^T,
    Hess M = sum_{k<l} q_k q_l g_kl g_kl^T - sum_k q_k Hess m^k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from estimators.certified.curvature import Weights, largest_eigenvalue
from estimators.certified.enclosure import Enclosure, Interval, Rows
from estimators.certified.operators import ROUNDING


@dataclass(frozen=True)
class MarginBounds:
    """Margins m^k = z_y - z_k over the balls; see `BallBounds` for the meaning of each.

    Attributes:
        margins: m^k at the centre, (n, K).
        kappa: Lower curvature, (n, K).
        kappa_plus: Upper curvature, (n, K).
        deviation: How far grad m^k moves, (n, K).
        reach: Bound on the rise of z_k - z_l over the ball by its global Lipschitz constant, (n, K, K).
    """

    margins: Tensor
    kappa: Tensor
    kappa_plus: Tensor
    deviation: Tensor
    reach: Tensor


class LossBounds:
    """Cross-entropy over the balls, from its margins and the rows and weights of the activations."""

    def __init__(
        self, enclosure: Enclosure, weights: Weights, bounds: MarginBounds, y: Tensor, radius: float
    ) -> None:
        self.enclosure, self.weights, self.bounds, self.radius = enclosure, weights, bounds, radius
        classes = enclosure.logits.shape[1]
        self.first, self.second = torch.triu_indices(classes, classes, 1, device=y.device)
        self.other = torch.arange(classes, device=y.device) != y.unsqueeze(1)
        centre = enclosure.logit_rows.centre
        self.label_rows = centre - centre.gather(2, y.reshape(-1, 1, 1).expand(-1, centre.shape[1], 1))
        gaps = -bounds.margins.masked_fill(~self.other, math.inf)
        self.share = gaps.softmax(1)
        self.level = gaps.logsumexp(1)
        self.direction = torch.einsum("nk,ndk->nd", self.share, self.label_rows)

    @cached_property
    def pair_rows(self) -> Rows:
        """The gradients g_kl, k < l."""
        kappa, kappa_plus, radius = self.bounds.kappa, self.bounds.kappa_plus, self.radius
        centre = self.label_rows[:, :, self.first] - self.label_rows[:, :, self.second]
        moved = self.bounds.deviation[:, self.first] + self.bounds.deviation[:, self.second]
        if radius > 0:
            bent = torch.maximum(
                kappa[:, self.first] + kappa_plus[:, self.second],
                kappa[:, self.second] + kappa_plus[:, self.first],
            )
            moved = torch.minimum(moved, radius * bent.clamp_min(0.0))
        # The Laplacian of the complete graph has norm K.
        classes = self.bounds.margins.shape[1]
        return Rows(centre, moved, math.sqrt(classes) * self.enclosure.logit_rows.spectral)

    @cached_property
    def pair_lengths(self) -> Tensor:
        """Bounds on ||g_kl|| over the ball, (n, pairs)."""
        return self.pair_rows.centre.norm(dim=1) + self.pair_rows.deviation

    @cached_property
    def rises(self) -> Tensor:
        """Upper bounds on z_k - z_l over the ball, (n, K, K)."""
        kappa, kappa_plus, radius = self.bounds.kappa, self.bounds.kappa_plus, self.radius
        gaps = self.bounds.margins.unsqueeze(1) - self.bounds.margins.unsqueeze(2)
        bent = (kappa.unsqueeze(2) + kappa_plus.unsqueeze(1)).clamp_min(0.0) * (radius / 2)
        lengths, moved = (
            self._square(part) for part in (self.pair_rows.centre.norm(dim=1), self.pair_rows.deviation)
        )
        if radius == 0:
            return gaps
        rise = radius * (lengths + torch.minimum(bent, moved))
        return gaps + torch.minimum(rise, self.bounds.reach)

    @cached_property
    def shares(self) -> Interval:
        """Range of q over the ball, (n, K); 0 at the label itself."""
        apart = ~(self.other.unsqueeze(1) & self.other.unsqueeze(2))
        high = torch.exp(-(-self.rises.masked_fill(apart, math.inf)).logsumexp(2))
        low = torch.exp(-self.rises.masked_fill(apart, -math.inf).logsumexp(1))
        return low.where(self.other, 0.0), high.clamp_max(1.0).where(self.other, 0.0)

    @cached_property
    def direction_shift(self) -> Tensor:
        """Bound on `||grad M - grad M(x)||`, (n,)."""
        low, high = self.shares
        change = torch.maximum(high - self.share, self.share - low)
        spread = (self.label_rows - self.direction.unsqueeze(2)).norm(dim=1)
        shift = self._mean(self.bounds.deviation, high) + (change * spread).sum(1)
        if self.radius > 0:
            shift = torch.minimum(shift, self.radius * torch.maximum(*self.level_curvature))
        return shift * (1 + ROUNDING)

    @cached_property
    def level_curvature(self) -> Interval:
        """Bounds (n,) on the largest eigenvalues of -Hess M and of Hess M, at least 0."""
        high = self.shares[1]
        variance = self._variance(self.shares, self.pair_lengths.where(self._pair_of(self.other), 0.0))
        upper = self._mean(self.bounds.kappa, high) + variance
        return self._mean(self.bounds.kappa_plus, high), upper

    @cached_property
    def direction_length(self) -> Tensor:
        """Bound on ||grad M|| over the ball, (n,)."""
        longest = (self.label_rows.norm(dim=1) + self.bounds.deviation).where(self.other, 0.0).amax(1)
        return torch.minimum(longest, self.direction.norm(dim=1) + self.direction_shift)

    @cached_property
    def error(self) -> Interval:
        """Range of s = 1 - p_y over the ball, (n,)."""
        wide = self.radius * (self.direction.norm(dim=1) + self.direction_shift)
        label = (~self.other).to(torch.int8).argmax(1).reshape(-1, 1, 1).expand(-1, len(self.other[0]), 1)
        highest = self.rises.gather(2, label).squeeze(2).masked_fill(~self.other, -math.inf).logsumexp(1)
        deepest = -self.rises.gather(1, label.mT).squeeze(1)
        lowest = deepest.masked_fill(~self.other, -math.inf).logsumexp(1)
        return (
            torch.sigmoid(torch.maximum(lowest, self.level - wide)),
            torch.sigmoid(torch.minimum(highest, self.level + wide)),
        )

    @cached_property
    def probabilities(self) -> Interval:
        """Range of p over the ball, (n, K)."""
        low = torch.exp(-self.rises.logsumexp(1))
        high = torch.exp(-(-self.rises).logsumexp(2))
        smallest, largest = (end.unsqueeze(1) for end in self.error)
        of_label = (1 - largest, 1 - smallest)
        of_others = (self.shares[0] * smallest, self.shares[1] * largest)
        return (
            torch.maximum(low, torch.where(self.other, of_others[0], of_label[0])),
            torch.minimum(high, torch.where(self.other, of_others[1], of_label[1])),
        )

    def hessian(self) -> Tensor:
        """Bound on the spectral norm of Hess l, (n,): the best of the forms above, on either side."""
        high = self.probabilities[1]
        smallest, largest = self.error
        rows = [*self.enclosure.rows, self.pair_rows]
        products = _product_ranges(self.probabilities, self.first, self.second)
        pull = self._mixed(-self.weights.high, -self.weights.low)
        joint = largest_eigenvalue(
            rows, torch.cat([pull[0], products[0]], 1), torch.cat([pull[1], products[1]], 1)
        )
        split = self._variance(self.probabilities, self.pair_lengths) + self._mean(
            self.bounds.kappa, high, largest
        )
        level = largest * self.level_curvature[1] + _bernoulli(smallest, largest) * self.direction_length**2
        upper = torch.minimum(torch.minimum(joint, split), level)
        joint = largest_eigenvalue(
            rows, torch.cat([-pull[1], -products[1]], 1), torch.cat([-pull[0], -products[0]], 1)
        )
        lower = torch.minimum(joint, self._mean(self.bounds.kappa_plus, high, largest))
        lower = torch.minimum(lower, largest * self.level_curvature[0])
        both = torch.maximum(upper, lower).clamp_min(0.0) * (1 + ROUNDING)
        return both.masked_fill(self.enclosure.kinked, math.inf)

    def gradient_range(self, hessian: Tensor) -> Interval:
        """Bounds (n,) on ||grad l|| over the ball, given one on its Hessian."""
        length = self.direction.norm(dim=1)
        centre = torch.sigmoid(self.level) * length
        wide = self.radius * hessian if self.radius > 0 else torch.zeros_like(hessian)
        smallest, largest = self.error
        low = torch.maximum(centre - wide, smallest * (length - self.direction_shift)).clamp_min(0.0)
        high = torch.minimum(centre + wide, largest * self.direction_length)
        return low * (1 - ROUNDING), high * (1 + ROUNDING)

    def _mean(self, values: Tensor, high: Tensor, total: Tensor | float = 1.0) -> Tensor:
        """Bound (n,) on `sum_k w_k v_k` over k != y, for 0 <= w_k <= high_k with sum at most `total`."""
        values = values.where(self.other, 0.0).clamp_min(0.0)
        weighed = (high * values).where(high > 0, 0.0).sum(1)
        return torch.minimum(weighed, total * values.amax(1))

    def _mixed(self, low: Tensor, high: Tensor) -> Interval:
        """Range of `sum_k p_k c^k` for weights c^k in [low, high], (n, K, M) each."""
        smallest, largest = (end.where(self.other, 0.0).unsqueeze(2) for end in self.probabilities)
        total = self.error[1].unsqueeze(1)
        top = torch.where(high > 0, largest * high, smallest * high).sum(1)
        bottom = torch.where(low < 0, largest * low, smallest * low).sum(1)
        return (
            torch.maximum(bottom, total * low.amin(1).clamp_max(0.0)),
            torch.minimum(top, total * high.amax(1).clamp_min(0.0)),
        )

    def _variance(self, weights: Interval, lengths: Tensor) -> Tensor:
        """Bound (n,) on the largest eigenvalue of `sum_{k<l} w_k w_l g_kl g_kl^T`, a variance."""
        products = _product_ranges(weights, self.first, self.second)
        popoviciu = lengths.amax(1).square() / 4
        form = largest_eigenvalue([self.pair_rows], *products)
        return torch.minimum(form.clamp_min(0.0), popoviciu)

    def _pair_of(self, labels: Tensor) -> Tensor:
        return labels[:, self.first] & labels[:, self.second]

    def _square(self, pairs: Tensor) -> Tensor:
        """A symmetric (n, K, K) array from its entries k < l."""
        classes = self.bounds.margins.shape[1]
        square = pairs.new_zeros(len(pairs), classes, classes)
        square[:, self.first, self.second] = pairs
        return square + square.mT


def _product_ranges(weights: Interval, first: Tensor, second: Tensor) -> Interval:
    """Ranges (n, pairs) of w_k w_l for weights in their ranges that sum to at most 1."""
    low, high = weights
    one, other = high[:, first], high[:, second]
    # On the line w_k + w_l = 1 the product is largest next to 1/2.
    crossing = torch.maximum(torch.minimum(one, torch.full_like(one, 0.5)), 1 - other)
    largest = torch.where(one + other > 1, crossing * (1 - crossing), one * other)
    return low[:, first] * low[:, second], largest


def _bernoulli(low: Tensor, high: Tensor) -> Tensor:
    """Largest s (1 - s) over an interval."""
    nearest = torch.minimum(torch.maximum(low, torch.full_like(low, 0.5)), high)
    return nearest * (1 - nearest)
