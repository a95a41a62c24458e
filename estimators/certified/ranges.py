"""Certified ranges of logits and of cross-entropy over a box of inputs, by interval propagation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators.batching import check_inputs
from estimators.certified.network import Affine, Input, Network, Node, Pointwise, read_network
from estimators.certified.operators import ROUNDING, LinearMap

Interval = tuple[Tensor, Tensor]


def logit_gap_ranges(network: Network, low: Tensor, high: Tensor) -> Interval:
    """Ranges of all logit differences z_a - z_b over boxes of inputs.

    Every node's value is enclosed in an interval; where the logits are an affine map of an earlier node, the
    differences are taken in its rows, so that what two logits have in common cancels. Works with and without
    kinks.

    Args:
        network: The network.
        low: Lower corners (m, *shape) of m boxes, float64.
        high: Upper corners, the same shape.

    Returns:
        Lower and upper ends (m, K, K), entry (a, b) for z_a - z_b, up to float64 rounding: the intervals are
        widened by 1e-9 of the sizes involved. The diagonal is 0.

    Raises:
        ValueError: If shapes do not fit or a lower corner exceeds the upper one.
    """
    if low.shape != high.shape or tuple(low.shape[1:]) != network.shapes[0]:
        raise ValueError(
            f"expected corners of shape (m, {', '.join(map(str, network.shapes[0]))}), "
            f"got {tuple(low.shape)} and {tuple(high.shape)}"
        )
    if not bool((low <= high).all()):
        raise ValueError("expected lower corners that do not exceed the upper ones")
    known: list[Interval] = []
    for node in network.nodes[:-1]:
        known.append(_propagate(node, known, (low, high)))
    last = network.nodes[-1]
    if isinstance(last, Affine) and last.operator.is_small:
        gaps = _affine_gaps(last, *known[last.source])
    else:
        least, most = _propagate(last, known, (low, high))
        gaps = least.unsqueeze(2) - most.unsqueeze(1), most.unsqueeze(2) - least.unsqueeze(1)
    same = torch.eye(network.classes, dtype=torch.bool, device=low.device)
    return gaps[0].where(~same, 0.0), gaps[1].where(~same, 0.0)


def loss_range(model: nn.Module, x: Tensor, low: float, high: float) -> tuple[float, float]:
    """Range of cross-entropy over all inputs in the box [low, high]^d and all labels.

    The loss at label y is log(1 + sum over k != y of exp(z_k - z_y)) and grows with each of the differences,
    whose ranges are certified. It makes confidence intervals of mean losses (TRS, Definition 3, section 4.1)
    possible without an assumption on the distribution, other than that inputs lie in the box.

    Args:
        model: Network from (n, *shape) to logits (n, K), of layers that `read_network` knows.
        x: Inputs (n, *shape) in the model's dtype, inside the box.
        low: Smallest value of every input entry.
        high: Largest value of every input entry.

    Returns:
        0 and an upper bound in nats, up to float64 rounding.

    Raises:
        TypeError: If x is not floating-point.
        ValueError: If x does not fit the model or leaves the box, or a layer is not supported.
    """
    check_inputs((model,), x)
    least, most = float(x.detach().min()), float(x.detach().max())
    if not low <= least <= most <= high:
        raise ValueError(f"expected inputs in [{low:g}, {high:g}], got values in [{least:g}, {most:g}]")
    network = read_network(model, x)
    corner = torch.ones_like(x[:1], dtype=torch.float64)
    _, gaps = logit_gap_ranges(network, low * corner, high * corner)
    return 0.0, float(gaps[0].logsumexp(0).max()) * (1 + ROUNDING)


def _propagate(node: Node, known: list[Interval], box: Interval) -> Interval:
    """The interval of a node's value from those of the earlier nodes."""
    if isinstance(node, Input):
        return box
    if isinstance(node, Affine):
        return _affine(node.operator, node.bias, *known[node.source])
    if isinstance(node, Pointwise):
        return _widened(*node.curve.value_range(*known[node.source]))
    (first_low, first_high), (second_low, second_high) = (known[source] for source in node.sources)
    return first_low + second_low, first_high + second_high


def _affine(operator: LinearMap, bias: Tensor, low: Tensor, high: Tensor) -> Interval:
    centre, reach = (low + high) / 2, (high - low) / 2
    value = operator.apply(centre) + bias
    # The size of the terms, not of their sum, is what rounding is relative to.
    size = operator.magnitude.apply(centre.abs() + reach) + bias.abs()
    spread = operator.magnitude.apply(reach) + ROUNDING * size
    return value - spread, value + spread


def _affine_gaps(last: Affine, low: Tensor, high: Tensor) -> Interval:
    """Differences of the outputs of an affine map over boxes, (m, K, K)."""
    matrix = last.operator.matrix()
    centre, reach = ((high + low) / 2).flatten(1), ((high - low) / 2).flatten(1)
    value = centre @ matrix.T + last.bias
    value = value.unsqueeze(2) - value.unsqueeze(1)
    size = (centre.abs() + reach) @ matrix.abs().T + last.bias.abs()
    spread = torch.stack([reach @ (row - matrix).abs().T for row in matrix], 1)
    spread = spread + ROUNDING * (size.unsqueeze(2) + size.unsqueeze(1))
    return value - spread, value + spread


def _widened(low: Tensor, high: Tensor) -> Interval:
    return low - ROUNDING * low.abs(), high + ROUNDING * high.abs()
