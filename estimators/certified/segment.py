"""Certified smoothness along given segments x -> x_end, such as the steps of an attack, by interval 2-jets.

Along a segment every unit of a network is a function of one variable t in [0, 1]. A 2-jet is its value, slope
and bend (second derivative in t). [0, 1] is cut into pieces; on each piece a jet is enclosed by its exact
value at the middle and a radius, propagated layer by layer:

- affine maps: the centre goes through A, the radius through |A|;
- activations: a' = sigma'(u) u' and a'' = sigma''(u) u'^2 + sigma'(u) u'', with the ranges of sigma' and
  sigma'' over the enclosure of u;
- at every layer the mean-value theorem bounds each radius by half the piece's length times the largest size
  of the next derivative;
- cross-entropy: phi'' = Var_p(z') + sum_k p_k (z_k - z_y)'', where only differences of logits occur, and
  these are taken before the radius.

The excess over the truth is proportional to a piece's length, so pieces that decide the maximum are bisected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import check_inputs, check_labels, check_same_shape
from estimators.certified.activations import Curve
from estimators.certified.network import Affine, Network, Node, Pointwise, Sum, read_network
from estimators.certified.operators import ROUNDING, LinearMap
from estimators.gradients import describe_labels
from estimators.losses import LossFunction, is_cross_entropy
from estimators.sharing import in_batches

DEFAULT_PIECES = 256
DEFAULT_TOLERANCE = 1.02

# Segments treated at once, and numbers in the widest layer of the pieces that are propagated at once.
_SEGMENTS = 256
_ENTRIES = 1 << 17

# Each segment starts as its two ends, pieces of no length, and this many equal pieces.
_FIRST_PIECES = 4
_FEWEST = _FIRST_PIECES + 2


@dataclass(frozen=True)
class SegmentBounds:
    """Curvature along the segments x + t (x_end - x), t in [0, 1], per squared l2 length of x_end - x.

    With phi the cross-entropy at label y and m^k = z_y - z_k as functions of t. All upper bounds hold up to
    float64 rounding. A segment of no length has 0 throughout.

    Attributes:
        upper: At least sup |phi''|, in the shape of y. Infinite for a network with kinks.
        lower: Largest |phi''| at the points looked at, in the shape of y. 0 for a network with kinks.
        kappa: At least max(0, sup -(m^k)''), the lower curvature of the margins, (*y.shape, K).
        kappa_plus: At least max(0, sup (m^k)''), the upper curvature.
        pieces: Pieces evaluated for each segment, (n,).
    """

    upper: Tensor
    lower: Tensor
    kappa: Tensor
    kappa_plus: Tensor
    pieces: Tensor


def segment_smoothness(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    *,
    pieces: int = DEFAULT_PIECES,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Estimate:
    """Smoothness of cross-entropy along given segments x -> x_end, certified from above.

    The largest |phi''(t)| / ||x_end - x||^2 over t in [0, 1] and over the segments. It bounds the Taylor
    remainder of each of these steps, in either direction, and so can stand for beta wherever the proofs of
    Theorems 1 to 4 expand the loss along the step of the one attack given (TRS, appendices B and C); it says
    nothing about another attack.

    Args:
        model: Network from (n, *shape) to logits (n, K), of the layers that `read_network` knows.
        loss: Cross-entropy.
        x: Starts (n, *shape) in the model's dtype.
        x_end: Ends (n, *shape).
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        pieces: Most pieces evaluated for a segment.
        tolerance: A bound within this factor of a value seen is not improved any further.

    Returns:
        Loss per squared l2 distance, `[seen, certified]`, valued at the certified end, which holds up to
        float64 rounding. For a network with kinks the value and the upper end are infinite.

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels, values, pieces or tolerance do not fit, the loss is not cross-entropy,
            or a layer is not supported.
    """
    classes = check_inputs((model,), x)
    x_end = check_same_shape(x_end, x, "x_end")
    y = check_labels(y, x, classes, several=True)
    if not is_cross_entropy(loss):
        raise ValueError("expected cross-entropy for a segment certificate, got another loss")
    network = read_network(model, x)
    found = largest_on_segments(
        network, x.detach().double(), x_end.detach().double(), y, pieces=pieces, tolerance=tolerance
    )
    method = "; ".join((found.method, describe_labels(y), *network.notes))
    return replace(found, method=method)


def largest_on_segments(
    network: Network,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    *,
    pieces: int = DEFAULT_PIECES,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Estimate:
    """The largest curvature over all the segments, from `segment_bounds` of those that may have it.

    A first look with the fewest pieces settles most segments: their bounds are below a value seen elsewhere.

    Args:
        network: The model, from `read_network`.
        x: Starts (n, *shape) in float64.
        x_end: Ends (n, *shape) in float64.
        y: Labels (n,), or (n, L).
        pieces: Most pieces evaluated for a segment.
        tolerance: A bound within this factor of a value seen is not improved any further.

    Returns:
        Loss per squared l2 distance, `[seen, certified]`, valued at the certified end. For a network with
        kinks the value and the upper end are infinite.

    Raises:
        ValueError: If shapes, pieces or tolerance do not fit.
    """
    first = segment_bounds(network, x, x_end, y, pieces=min(pieces, _FEWEST), tolerance=tolerance)
    lower, spent = float(first.lower.max()), int(first.pieces.sum())
    if network.kinks:
        why = f"infinite: no Lipschitz gradient because of {', '.join(network.kinks)}"
        return Estimate(math.inf, lower, math.inf, method=why, samples=len(x))
    most = first.upper.reshape(len(x), -1).amax(1)
    open_ = most > tolerance * lower
    upper = float(most.where(~open_, 0.0).max())
    if bool(open_.any()):
        refined = segment_bounds(
            network, x[open_], x_end[open_], y[open_], pieces=pieces, tolerance=tolerance
        )
        lower, upper = max(lower, float(refined.lower.max())), max(upper, float(refined.upper.max()))
        spent += int(refined.pieces.sum())
    method = (
        f"certified along {len(x)} given segments by interval 2-jets on {spent} pieces, up to float64 "
        "rounding; holds for these segments only; lower end: seen at the pieces' middles and at their ends"
    )
    return Estimate(upper, lower, upper, method=method, samples=len(x))


def segment_bounds(
    network: Network,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    *,
    pieces: int = DEFAULT_PIECES,
    tolerance: float = DEFAULT_TOLERANCE,
) -> SegmentBounds:
    """Enclose the largest curvature of cross-entropy along each segment.

    Pieces are bisected, those with the largest bound first, until the bound is within `tolerance` of a value
    seen or `pieces` pieces have been evaluated. A larger budget never gives a larger bound.

    Args:
        network: The model, from `read_network`.
        x: Starts (n, *shape) in float64.
        x_end: Ends (n, *shape) in float64.
        y: Labels (n,), or (n, L).
        pieces: Most pieces evaluated for a segment.
        tolerance: A bound within this factor of a value seen is not improved any further.

    Raises:
        ValueError: If there are too few pieces or the tolerance is not above 1.
    """
    if pieces < _FEWEST:
        raise ValueError(f"expected at least {_FEWEST} pieces for a segment, got {pieces}")
    if not tolerance > 1:
        raise ValueError(f"expected a tolerance above 1, got {tolerance}")
    if network.kinks:
        nothing = torch.zeros(y.shape, dtype=x.dtype, device=x.device)
        unknown = (nothing.unsqueeze(-1) + math.inf).expand(*y.shape, network.classes)
        return SegmentBounds(
            nothing + math.inf, nothing, unknown, unknown, torch.zeros_like(y[..., :1].flatten())
        )
    readout = _readout(network, x)

    def bounds(x: Tensor, x_end: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _bisected(_Lines(network, readout, x, x_end - x, labels), pieces, tolerance)

    upper, lower, spent = in_batches(bounds, _SEGMENTS, x, x_end, y.reshape(len(y), -1))
    square = (x_end - x).flatten(1).square().sum(1).reshape(-1, 1, 1)
    moved = square > 0
    scale = square.where(moved, 1.0)
    upper = (upper * (1 + ROUNDING) / scale).where(moved, 0.0).reshape(*y.shape, -1)
    lower = (lower / scale[:, 0]).where(moved[:, 0], 0.0).reshape(y.shape)
    largest, kappa, kappa_plus = upper.split([1, network.classes, network.classes], dim=-1)
    return SegmentBounds(largest.squeeze(-1), lower, kappa, kappa_plus, spent)


def _bisected(lines: _Lines, budget: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds (n, L, 1 + 2K) as from `_Lines.bends`, largest |phi''| seen (n, L), pieces spent (n,)."""
    count, device = len(lines.labels), lines.labels.device
    equal = (torch.arange(_FIRST_PIECES, dtype=torch.float64, device=device) + 0.5) / _FIRST_PIECES
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    middle = torch.cat([ends, equal]).repeat(count)
    half = torch.cat([0 * ends, 0 * equal + 0.5 / _FIRST_PIECES]).repeat(count)
    sample = torch.arange(count, device=device).repeat_interleave(_FEWEST)
    spent = torch.full((count,), _FEWEST, device=device)
    upper, seen = lines.bends(sample, middle, half)
    lower = _largest(seen, sample, torch.zeros_like(seen[:count]))
    while True:
        excess = (upper[:, :, 0] / lower[sample].clamp_min(torch.finfo(upper.dtype).tiny)).amax(1)
        unsettled = (excess > tolerance) & (half > 0)
        # Bisecting a piece costs two: each sample affords those that are worst.
        rank = _rank_within(sample, excess.where(unsettled, -math.inf))
        cut = unsettled & (2 * (rank + 1) <= (budget - spent)[sample])
        if not cut.any():
            return _largest(upper, sample, torch.zeros_like(upper[:count])), lower, spent
        quarter = half[cut] / 2
        parts, parts_half = sample[cut].repeat(2), quarter.repeat(2)
        parts_middle = torch.cat([middle[cut] - quarter, middle[cut] + quarter])
        parts_upper, seen = lines.bends(parts, parts_middle, parts_half)
        parts_upper = parts_upper.minimum(upper[cut].repeat(2, 1, 1))
        lower = _largest(seen, parts, lower)
        spent = spent.index_add(0, parts, torch.ones_like(parts))
        sample, middle = torch.cat([sample[~cut], parts]), torch.cat([middle[~cut], parts_middle])
        half, upper = torch.cat([half[~cut], parts_half]), torch.cat([upper[~cut], parts_upper])


def _largest(values: Tensor, sample: Tensor, start: Tensor) -> Tensor:
    """Largest of each sample's rows of values (pieces, ...) and its row of `start` (n, ...)."""
    index = sample.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return start.scatter_reduce(0, index, values, "amax")


def _rank_within(sample: Tensor, key: Tensor) -> Tensor:
    """Place of each entry among those of its sample, the largest key first."""
    by_key = key.argsort(descending=True, stable=True)
    order = by_key[sample[by_key].argsort(stable=True)]
    grouped = sample[order]
    place = torch.arange(len(sample), device=sample.device)
    first = torch.searchsorted(grouped, grouped)
    return torch.empty_like(place).scatter(0, order, place - first)


@dataclass(frozen=True)
class _Jet:
    """Values, slopes and bends along pieces of lines: exact in the middle, and how far they are from it.

    Both tensors are (3, pieces, *shape).
    """

    centre: Tensor
    radius: Tensor

    def tightened(self, half: Tensor) -> _Jet:
        """By the mean-value theorem over pieces of these half-lengths, (pieces,)."""
        half = half.reshape(-1, *[1] * (self.centre.dim() - 2))
        value, slope, bend = self.radius
        slope = torch.minimum(slope, half * (self.centre[2].abs() + bend))
        by_bend = half * self.centre[1].abs() + half.square() / 2 * (self.centre[2].abs() + bend)
        value = value.minimum(by_bend).minimum(half * (self.centre[1].abs() + slope))
        return _Jet(self.centre, torch.stack([value, slope, bend]))


@dataclass(frozen=True, eq=False)
class _Readout:
    """The last affine map: logits are `weight` times the values of the node `source`, plus `bias`.

    Attributes:
        differences: |weight_k - weight_j| for all pairs of classes, (K * K, d).
    """

    source: int
    weight: Tensor
    bias: Tensor
    differences: Tensor


def _readout(network: Network, like: Tensor) -> _Readout:
    last = network.nodes[-1]
    identity = torch.eye(network.classes, dtype=like.dtype, device=like.device)
    if isinstance(last, Affine):
        source, weight, bias = last.source, last.operator.adjoint(identity).flatten(1), last.bias
    else:
        source, weight, bias = len(network.nodes) - 1, identity, 0 * identity[0]
    differences = (weight.unsqueeze(1) - weight.unsqueeze(0)).abs().flatten(0, 1)
    return _Readout(source, weight, bias, differences)


class _Lines:
    """The lines x + t step of a batch of samples, with what does not depend on the piece."""

    def __init__(self, network: Network, readout: _Readout, x: Tensor, step: Tensor, labels: Tensor) -> None:
        self.network, self.readout, self.labels = network, readout, labels
        self.straight = _straight(network, x, step)
        widest = max(math.prod(shape) for shape in (*network.shapes, (network.classes,) * 2))
        self.at_once = max(1, _ENTRIES // widest)
        self.last_use = {source: index for index, node in enumerate(network.nodes) for source in node.sources}

    def bends(self, sample: Tensor, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds on |phi''|, -(m^k)'' and (m^k)'' over the pieces middle +- half, and |phi''| inside.

        In this order along the last axis of (pieces, L, 1 + 2K); the values in the middle are (pieces, L).
        """
        pieces = (tensor.split(self.at_once) for tensor in (sample, middle, half))
        parts = [
            _loss_bends(self._gaps(lines, at, reach), reach, self.labels[lines])
            for lines, at, reach in zip(*pieces, strict=True)
        ]
        upper, seen = (torch.cat(column) for column in zip(*parts, strict=True))
        return upper, seen

    def _gaps(self, sample: Tensor, middle: Tensor, half: Tensor) -> _Jet:
        """Jets (3, pieces, K, K) of all differences z_k - z_j of logits."""
        jets: dict[int, _Jet] = {}

        def jet(index: int) -> _Jet:
            if index in self.straight:
                value, slope = (tensor[sample] for tensor in self.straight[index])
                return _on_line(value, slope, middle, half)
            return jets[index]

        for index, node in enumerate(self.network.nodes[: self.readout.source + 1]):
            if index in self.straight:
                continue
            jets[index] = _through(node, [jet(source) for source in node.sources]).tightened(half)
            for source in node.sources:
                if self.last_use[source] == index:
                    jets.pop(source, None)
        hidden = jet(self.readout.source)
        logits = hidden.centre.flatten(2) @ self.readout.weight.T
        logits[0] += self.readout.bias
        radius = hidden.radius.flatten(2) @ self.readout.differences.T
        gaps = logits.unsqueeze(3) - logits.unsqueeze(2)
        return _Jet(gaps, radius.reshape(gaps.shape)).tightened(half)


def _straight(network: Network, x: Tensor, step: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """The nodes that are affine in the input, and so along the lines: their values at x and their slopes."""
    known = {0: (x, step)}
    for index, node in enumerate(network.nodes):
        if isinstance(node, Affine) and node.source in known:
            value, slope = known[node.source]
            known[index] = node.operator.apply(value) + node.bias, node.operator.apply(slope)
        elif isinstance(node, Sum) and all(source in known for source in node.sources):
            (value, slope), (other, other_slope) = (known[source] for source in node.sources)
            known[index] = value + other, slope + other_slope
    return known


def _on_line(value: Tensor, slope: Tensor, middle: Tensor, half: Tensor) -> _Jet:
    middle, half = (tensor.reshape(-1, *[1] * (value.dim() - 1)) for tensor in (middle, half))
    nothing = torch.zeros_like(slope)
    centre = torch.stack([value + middle * slope, slope, nothing])
    return _Jet(centre, torch.stack([half * slope.abs(), nothing, nothing]))


def _through(node: Node, sources: list[_Jet]) -> _Jet:
    if isinstance(node, Affine):
        centre = _rows(node.operator, sources[0].centre)
        centre[0] += node.bias
        return _Jet(centre, _rows(node.operator.magnitude, sources[0].radius))
    if isinstance(node, Pointwise):
        return _activated(node.curve, sources[0])
    first, second = sources
    return _Jet(first.centre + second.centre, first.radius + second.radius)


def _rows(operator: LinearMap, tensor: Tensor) -> Tensor:
    """The map applied along the two leading axes."""
    return operator.apply(tensor.flatten(0, 1)).reshape(*tensor.shape[:2], *operator.out_shape)


def _activated(curve: Curve, jet: _Jet) -> _Jet:
    """The jet of sigma(u): sigma' u' and sigma'' u'^2 + sigma' u''."""
    u, du, ddu = jet.centre
    r, dr, ddr = jet.radius
    slope, bend = curve.slope(u), curve.bend(u)
    slope_radius = _reach(slope, curve.slope_range(u - r, u + r))
    bend_radius = _reach(bend, curve.bend_range(u - r, u + r))
    square = du.square()
    square_radius = dr * (2 * du.abs() + dr)
    slope_size = slope.abs() + slope_radius
    centre = torch.stack([curve.value(u), slope * du, bend * square + slope * ddu])
    radius = torch.stack(
        [
            slope_size * r,
            slope_size * dr + slope_radius * du.abs(),
            (bend.abs() + bend_radius) * square_radius
            + bend_radius * square
            + slope_size * ddr
            + slope_radius * ddu.abs(),
        ]
    )
    return _Jet(centre, radius)


def _reach(centre: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """How far an interval that contains the centre goes from it."""
    low, high = ends
    return torch.maximum(high - centre, centre - low).clamp_min(0.0)


def _loss_bends(gaps: _Jet, half: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What `_Lines.bends` returns, from the jets of all differences of logits.

    With d_k = z_k' - m, where m(t) is the mean of the slopes under the *middle's* probabilities p, and
    w_k = (z_k - z_y)'', phi'' at t is E_t[d^2 + w] - E_t[d]^2, E_t the mean under the probabilities at t.
    """
    half = half.unsqueeze(1)
    log_p = -torch.logsumexp(-gaps.centre[0], 2)
    p = log_p.exp().unsqueeze(1)
    high = -torch.logsumexp(-gaps.centre[0] - gaps.radius[0], 2)
    low = -torch.logsumexp(-gaps.centre[0] + gaps.radius[0], 2)
    d, d_radius = (p * gaps.centre[1]).sum(2), (p * gaps.radius[1]).sum(2)
    # p_k' = p_k (d_k - E_t[d]), and E_t[d] = sum_k (p_k(t) - p_k) d_k(t) is of the order of the length.
    drift = (_reach(log_p.exp(), (low.exp(), high.exp())) * (d.abs() + d_radius)).sum(1, keepdim=True)
    turn = half * (d.abs() + d_radius + drift)
    high, low = high.minimum(log_p + turn).exp(), low.maximum(log_p - turn).exp()
    moves = _reach(log_p.exp(), (low, high))
    drift = drift.minimum((moves * (d.abs() + d_radius)).sum(1, keepdim=True))
    covariance_radius = moves * d.abs() + high * d_radius + drift * moves

    def largest_mean(v: Tensor) -> Tensor:
        """Of E_t[v] over the piece, for constants v (pieces, L, K): (E_t[v])' is the covariance of z', v."""
        mean = (p * v).sum(2, keepdim=True)
        rest = v - mean
        covariance = (p * d.unsqueeze(1) * rest).sum(2).abs()
        covariance += (covariance_radius.unsqueeze(1) * rest.abs()).sum(2)
        return mean.squeeze(2) + torch.minimum(half * covariance, (moves.unsqueeze(1) * rest.abs()).sum(2))

    index = labels.unsqueeze(2).expand(-1, -1, d.shape[1])
    bend, bend_radius = (part[2].transpose(1, 2).gather(1, index) for part in (gaps.centre, gaps.radius))
    squares_high = (d.abs() + d_radius).square().unsqueeze(1)
    squares_low = (d.abs() - d_radius).clamp_min(0.0).square().unsqueeze(1)
    above = largest_mean(squares_high + bend + bend_radius)
    below = largest_mean(bend_radius - bend - squares_low) + drift.square()
    seen = (p * (d.square().unsqueeze(1) + bend)).sum(2).abs()
    upper = torch.cat([torch.maximum(above, below).unsqueeze(2), bend_radius + bend, bend_radius - bend], 2)
    return upper.nan_to_num(nan=math.inf, posinf=math.inf), seen
