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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import check_inputs, check_labels, check_same_shape
from estimators.certified.jets import Lines, last_map
from estimators.certified.network import Network, read_network
from estimators.certified.operators import ROUNDING
from estimators.gradients import describe_labels
from estimators.losses import LossFunction, is_cross_entropy
from estimators.sharing import in_batches

DEFAULT_PIECES = 256
DEFAULT_TOLERANCE = 1.02

# Segments treated at once.
_SEGMENTS = 256

# Each segment starts as its two ends, pieces of no length, and this many equal pieces.
_FIRST_PIECES = 4
_FEWEST = _FIRST_PIECES + 2


# From lines to what `_bisected` says of them.
Look = Callable[[Lines], tuple[Tensor, Tensor, Tensor]]


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

    A glance at each segment as one piece settles most: their bounds are below a value seen elsewhere. A look
    with the fewest pieces settles most of the others.

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
    if network.kinks:
        why = f"infinite: no Lipschitz gradient because of {', '.join(network.kinks)}"
        return Estimate(math.inf, 0.0, math.inf, method=why, samples=len(x))
    samples, spent = len(x), len(x)
    glance = _bounds(network, x, x_end, y, _at_a_glance)
    left = glance.upper.reshape(samples, -1).amax(1) >= glance.lower.max()
    x, x_end, y = x[left], x_end[left], y[left]
    first = segment_bounds(network, x, x_end, y, pieces=min(pieces, _FEWEST), tolerance=tolerance)
    lower, spent = float(first.lower.max()), spent + int(first.pieces.sum())
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
        f"certified along {samples} given segments by interval 2-jets on {spent} pieces, up to float64 "
        "rounding; holds for these segments only; lower end: seen at the pieces' middles and at their ends"
    )
    return Estimate(upper, lower, upper, method=method, samples=samples)


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
    return _bounds(network, x, x_end, y, partial(_bisected, budget=pieces, tolerance=tolerance))


def _bounds(network: Network, x: Tensor, x_end: Tensor, y: Tensor, look: Look) -> SegmentBounds:
    """The bounds that a way of looking at the segments gives, a batch of them at a time."""
    readout = last_map(network, x)

    def bounds(x: Tensor, x_end: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return look(Lines(network, readout, x, x_end - x, labels))

    upper, lower, spent = in_batches(bounds, _SEGMENTS, x, x_end, y.reshape(len(y), -1))
    square = (x_end - x).flatten(1).square().sum(1).reshape(-1, 1, 1)
    moved = square > 0
    scale = square.where(moved, 1.0)
    upper = (upper * (1 + ROUNDING) / scale).where(moved, 0.0).reshape(*y.shape, -1)
    lower = (lower / scale[:, 0]).where(moved[:, 0], 0.0).reshape(y.shape)
    largest, kappa, kappa_plus = upper.split([1, network.classes, network.classes], dim=-1)
    return SegmentBounds(largest.squeeze(-1), lower, kappa, kappa_plus, spent)


def _at_a_glance(lines: Lines) -> tuple[Tensor, Tensor, Tensor]:
    """Each segment as one piece."""
    sample = torch.arange(len(lines.labels), device=lines.labels.device)
    half = torch.full(sample.shape, 0.5, dtype=torch.float64, device=sample.device)
    return *lines.bends(sample, half, half), torch.ones_like(sample)


def _bisected(lines: Lines, budget: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds (n, L, 1 + 2K) as from `Lines.bends`, largest |phi''| seen (n, L), pieces spent (n,)."""
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
