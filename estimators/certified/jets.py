"""Interval 2-jets: value, slope and bend of every unit of a network along pieces of lines; see `segment`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators.certified.activations import Curve
from estimators.certified.network import Affine, Network, Node, Pointwise, Sum
from estimators.certified.operators import LinearMap

# Numbers in the widest layer of the pieces that are propagated at once.
_ENTRIES = 1 << 17


@dataclass(frozen=True)
class Jet:
    """Values, slopes and bends along pieces of lines: exact in the middle, and how far they are from it.

    Both tensors are (3, pieces, *shape).
    """

    centre: Tensor
    radius: Tensor

    def tightened(self, half: Tensor) -> Jet:
        """By the mean-value theorem over pieces of these half-lengths, (pieces,)."""
        half = half.reshape(-1, *[1] * (self.centre.dim() - 2))
        value, slope, bend = self.radius
        slope = torch.minimum(slope, half * (self.centre[2].abs() + bend))
        by_bend = half * self.centre[1].abs() + half.square() / 2 * (self.centre[2].abs() + bend)
        value = value.minimum(by_bend).minimum(half * (self.centre[1].abs() + slope))
        return Jet(self.centre, torch.stack([value, slope, bend]))


@dataclass(frozen=True, eq=False)
class LastMap:
    """The last affine map: logits are `weight` times the values of the node `source`, plus `bias`.

    Attributes:
        differences: |weight_k - weight_j| for all pairs of classes, (K * K, d).
    """

    source: int
    weight: Tensor
    bias: Tensor
    differences: Tensor


def last_map(network: Network, like: Tensor) -> LastMap:
    """The last affine map of a network, the identity where it ends with another layer."""
    last = network.nodes[-1]
    identity = torch.eye(network.classes, dtype=like.dtype, device=like.device)
    if isinstance(last, Affine):
        source, weight, bias = last.source, last.operator.adjoint(identity).flatten(1), last.bias
    else:
        source, weight, bias = len(network.nodes) - 1, identity, 0 * identity[0]
    differences = (weight.unsqueeze(1) - weight.unsqueeze(0)).abs().flatten(0, 1)
    return LastMap(source, weight, bias, differences)


class Lines:
    """The lines x + t step of a batch of samples, with what does not depend on the piece."""

    def __init__(self, network: Network, readout: LastMap, x: Tensor, step: Tensor, labels: Tensor) -> None:
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
            loss_bends(self._gaps(lines, at, reach), reach, self.labels[lines])
            for lines, at, reach in zip(*pieces, strict=True)
        ]
        upper, seen = (torch.cat(column) for column in zip(*parts, strict=True))
        return upper, seen

    def _gaps(self, sample: Tensor, middle: Tensor, half: Tensor) -> Jet:
        """Jets (3, pieces, K, K) of all differences z_k - z_j of logits."""
        jets: dict[int, Jet] = {}

        def jet(index: int) -> Jet:
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
        return Jet(gaps, radius.reshape(gaps.shape)).tightened(half)


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


def _on_line(value: Tensor, slope: Tensor, middle: Tensor, half: Tensor) -> Jet:
    middle, half = (tensor.reshape(-1, *[1] * (value.dim() - 1)) for tensor in (middle, half))
    nothing = torch.zeros_like(slope)
    centre = torch.stack([value + middle * slope, slope, nothing])
    return Jet(centre, torch.stack([half * slope.abs(), nothing, nothing]))


def _through(node: Node, sources: list[Jet]) -> Jet:
    if isinstance(node, Affine):
        centre = _rows(node.operator, sources[0].centre)
        centre[0] += node.bias
        return Jet(centre, _rows(node.operator.magnitude, sources[0].radius))
    if isinstance(node, Pointwise):
        return _activated(node.curve, sources[0])
    first, second = sources
    return Jet(first.centre + second.centre, first.radius + second.radius)


def _rows(operator: LinearMap, tensor: Tensor) -> Tensor:
    """The map applied along the two leading axes."""
    return operator.apply(tensor.flatten(0, 1)).reshape(*tensor.shape[:2], *operator.out_shape)


def _activated(curve: Curve, jet: Jet) -> Jet:
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
    return Jet(centre, radius)


def _reach(centre: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """How far an interval that contains the centre goes from it."""
    low, high = ends
    return torch.maximum(high - centre, centre - low).clamp_min(0.0)


def loss_bends(gaps: Jet, half: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What `Lines.bends` returns, from the jets of all differences of logits.

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
