"""Bounds over the whole input space: Lipschitz constants and curvature of logit differences, beta and B.

Forwards, for the Jacobian of every node, norms and a matrix bound (see `factors`); backwards, for the
gradients lambda of the logit differences by every node, the same and an interval for each entry. With u the
argument of an activation sigma and lambda the gradient by its result, exactly

    Hess(z_a - z_b) = sum over activations of (D u)^T diag(lambda * sigma''(u)) (D u),

and each term is bounded in three ways (see `_largest_curvature`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from estimators.certified.activations import Curve
from estimators.certified.factors import activated, added, mapped, spectral_norm
from estimators.certified.network import Affine, Input, Network, Pointwise
from estimators.certified.operators import ROUNDING

# Differences of classes treated at once.
_PAIRS = 64

# Up to this size the curvature is bounded for each difference by itself, beyond it for all at once.
_EIGENVALUES = 600

# A network that has become too wide for matrix bounds gets a new one where it is as narrow as this.
_NARROW = 1024


@dataclass(frozen=True)
class WholeSpaceBounds:
    """What holds at every input; all entries are upper bounds up to float64 rounding.

    Attributes:
        lipschitz: (K, K); the l2 Lipschitz constant of z_a - z_b.
        bend: (K, K); the largest eigenvalue of the Hessian of z_a - z_b, or 0 if that is negative. Infinite
            where an activation has kinks.
        smoothness: (K,); beta of cross-entropy at each label, the spectral norm of its Hessian.
        gradient: (K,); B of cross-entropy at each label, the l2 norm of its gradient.
    """

    lipschitz: Tensor
    bend: Tensor
    smoothness: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class _Matrix:
    """Bounds on a matrix M that has a row for each entry of a node.

    Attributes:
        norm: On ||M||.
        rows: On the l2 norms of its rows, in the node's shape.
        factor: B (n, k) with M M^T <= B B^T, or None where it would be too large.
    """

    norm: float
    rows: Tensor
    factor: Tensor | None


@dataclass(frozen=True)
class _Gradients:
    """Bounds on the gradients of several logit differences by one node: entries (P, *shape), norms (P,)."""

    low: Tensor
    high: Tensor
    norm: Tensor


# Kept for the last few networks: the bounds over one ball after another are cut with these.
@lru_cache(maxsize=4)
def whole_space_bounds(network: Network) -> WholeSpaceBounds:
    """Bounds over all inputs on beta (TRS, Definition 6, section 4.1), B (Theorem 3) and their ingredients.

    Args:
        network: As read by `read_network`.

    Returns:
        Upper bounds, in units of the logits per l2 distance of the inputs, or per its square.
    """
    jacobians, transposed = _forwards(network), _backwards(network)
    classes = network.classes
    lipschitz, bend = torch.zeros(2, classes, classes, dtype=torch.float64, device=jacobians[0].rows.device)
    pairs = torch.triu_indices(classes, classes, 1, device=lipschitz.device)
    for first, second in zip(*(side.split(_PAIRS) for side in pairs), strict=True):
        identity = torch.eye(classes, dtype=torch.float64, device=lipschitz.device)
        differences = identity[first] - identity[second]
        gradients = _difference_gradients(network, transposed, differences)
        reach = torch.minimum(gradients[0].norm, _logit_reach(network, jacobians, differences))
        lipschitz[first, second] = lipschitz[second, first] = reach
        for node, after in zip(network.nodes, gradients, strict=True):
            if isinstance(node, Pointwise):
                upwards, downwards = _largest_curvature(node.curve, jacobians[node.source], after)
                bend[first, second] += upwards
                bend[second, first] += downwards
    lipschitz, bend = lipschitz * (1 + ROUNDING), bend * (1 + ROUNDING)
    beta, gradient = cross_entropy_bounds(lipschitz, bend)
    return WholeSpaceBounds(lipschitz, bend, beta * (1 + ROUNDING), gradient)


def cross_entropy_bounds(lipschitz: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothness beta and gradient bound B of cross-entropy at each label, from the logit differences.

    For a unit vector v, let t_k and c_k be the first and second derivative of z_k - z_y along v. Then
    v^T (Hess l_y) v = Var_p(t) + E_p(c) = E_p(t^2 + c) - (E_p t)^2 with the softmax p. Of p it depends only
    on the point (E_p t, E_p(t^2 + c)) of a plane, and rises with the second coordinate; so over all
    distributions p it is largest where only two classes a, b have weight, w and 1 - w. There it is at most

        w (1 - w) A^2 + w C_a + (1 - w) C_b,    A >= Lip(z_a - z_b), C_k >= sup c_k, C_y = 0,

    a parabola in w. Downwards, Var_p(t) + E_p(c) >= -max_k sup(-c_k). And grad l_y is the mean under p of the
    gradients of z_k - z_y.

    Args:
        lipschitz: (K, K) bounds on the Lipschitz constants of z_a - z_b.
        bend: (K, K) bounds, at least 0, on the largest eigenvalues of their Hessians.

    Returns:
        beta (K,) and B (K,).
    """
    of_a, of_b = bend.T.unsqueeze(2), bend.T.unsqueeze(1)  # [y, a, b] -> C_a and C_b at label y
    square, tilt = lipschitz.square(), of_a - of_b
    weight = (0.5 + tilt / (2 * square)).nan_to_num(0.5).clamp(0.0, 1.0)
    upwards = (of_b + weight * (square + tilt) - weight.square() * square).flatten(1).max(1).values
    beta = torch.maximum(upwards, bend.max(1).values)
    return beta.where(~bend.isinf().any(), math.inf), lipschitz.max(1).values


def _forwards(network: Network) -> list[_Matrix]:
    """Bounds on the Jacobian of every node by the input."""
    goals = _middle_gradients(network)
    bounds: list[_Matrix] = []
    for index, node in enumerate(network.nodes):
        if isinstance(node, Input):
            size = math.prod(node.shape)
            one = torch.eye(size, dtype=torch.float64, device=goals[-1].device)
            bound = _Matrix(1.0, one.new_ones(node.shape), one)
        elif isinstance(node, Affine):
            before, operator = bounds[node.source], node.operator
            rows = torch.minimum(
                operator.row_norms * before.norm, operator.magnitude.apply(before.rows.unsqueeze(0))[0]
            )
            bound = _Matrix(operator.norm * before.norm, rows, mapped(before.factor, operator))
        elif isinstance(node, Pointwise):
            bound = _through_activation(bounds[node.source], node.curve, goals[index])
        else:
            bound = _added(*(bounds[source] for source in node.sources))
        bounds.append(_tightened(bound))
    return bounds


def _backwards(network: Network) -> list[_Matrix]:
    """Bounds on the transposed Jacobians of the logits, less their mean, by every node."""
    size = network.classes
    bounds: list[_Matrix | None] = [None] * len(network.nodes)
    centred = torch.eye(size, dtype=torch.float64, device=_device(network)) - 1 / size
    bounds[-1] = _Matrix(1.0, centred.norm(dim=1), centred)
    for index in reversed(range(len(network.nodes))):
        node, bound = network.nodes[index], bounds[index]
        assert bound is not None  # every node is used by a later one
        bounds[index] = bound = _tightened(bound)
        if isinstance(node, Affine):
            operator = node.operator
            rows = operator.magnitude.adjoint(bound.rows.unsqueeze(0))[0]
            factor = mapped(bound.factor, operator, backwards=True)
            bound = _Matrix(operator.norm * bound.norm, rows, factor)
        elif isinstance(node, Pointwise):
            bound = _through_activation(bound, node.curve, None)
        for source in node.sources:
            before = bounds[source]
            bounds[source] = bound if before is None else _added(before, bound)
    return [bound for bound in bounds if bound is not None]


def _difference_gradients(
    network: Network, transposed: list[_Matrix], differences: Tensor
) -> list[_Gradients]:
    """Bounds on the gradients of the logit differences (P, K) by every node."""
    bounds: list[_Gradients | None] = [None] * len(network.nodes)
    lengths = differences.norm(dim=1)
    bounds[-1] = _Gradients(differences, differences, lengths)
    for index in reversed(range(len(network.nodes))):
        node, bound = network.nodes[index], bounds[index]
        assert bound is not None  # every node is used by a later one
        # The differences have mean 0, so their gradients are images of them under the centred Jacobian.
        reach = transposed[index].rows * lengths.view(-1, *[1] * transposed[index].rows.dim())
        low, high = torch.maximum(bound.low, -reach), torch.minimum(bound.high, reach)
        hull = torch.maximum(low.abs(), high.abs()).flatten(1).norm(dim=1)
        norm = torch.minimum(torch.minimum(bound.norm, hull), transposed[index].norm * lengths)
        bounds[index] = bound = _Gradients(low, high, norm)
        if isinstance(node, Affine):
            middle = node.operator.adjoint((low + high) / 2)
            radius = node.operator.magnitude.adjoint((high - low) / 2)
            bound = _Gradients(middle - radius, middle + radius, node.operator.norm * norm)
        elif isinstance(node, Pointwise):
            corners = _corners(bound, node.curve.slope_limits)
            steepest = max(map(abs, node.curve.slope_limits))
            bound = _Gradients(corners.amin(0), corners.amax(0), steepest * norm)
        for source in node.sources:
            before = bounds[source]
            bounds[source] = (
                bound
                if before is None
                else _Gradients(before.low + bound.low, before.high + bound.high, before.norm + bound.norm)
            )
    return [bound for bound in bounds if bound is not None]


def _logit_reach(network: Network, jacobians: list[_Matrix], differences: Tensor) -> Tensor:
    """Bounds (P,) on the Lipschitz constants of logit differences (P, K), from the factors.

    A last hidden layer that is narrow gets multipliers of its own for each difference.
    """
    factor, reach = jacobians[-1].factor, differences.new_full((len(differences),), math.inf)
    if factor is not None:
        reach = (differences @ factor).norm(dim=1)
    last = network.nodes[-1]
    before = network.nodes[last.source] if isinstance(last, Affine) else last
    if not (isinstance(last, Affine) and isinstance(before, Pointwise)):
        return reach
    factor = jacobians[before.source].factor
    if factor is None or len(factor) > _EIGENVALUES:
        return reach
    rows = last.operator.adjoint(differences).flatten(1)
    own = [row @ activated(factor, before.curve, row.unsqueeze(0)) for row in rows]
    return torch.minimum(reach, torch.stack(own).norm(dim=1))


def _largest_curvature(curve: Curve, jacobian: _Matrix, gradients: _Gradients) -> tuple[Tensor, Tensor]:
    """Bounds (P,) on the largest eigenvalue of U^T diag(lambda * sigma''(u)) U, and on minus the smallest.

    With h >= lambda * sigma'' entry by entry, U U^T <= B B^T, and f_i the norms of U's rows: the smallest of
    ||B^T diag(h) B||; max_i h_i ||U||^2; and, since for a unit vector v and w = U v the sum over i of
    lambda_i sigma''_i w_i^2 is at most ||lambda|| sup|sigma''| (sum_i w_i^4)^(1/2) and w_i^4 <= f_i^2 w_i^2,

        ||lambda|| sup|sigma''| ||diag(f) B||.
    """
    corners = _corners(gradients, curve.bend_limits).nan_to_num(0.0, math.inf, -math.inf)  # 0 * infinity is 0
    sides = torch.stack([corners.amax(0), -corners.amin(0)]).clamp_min(0.0).flatten(2)
    if not bool(sides.isfinite().all()):
        return tuple(side.amax(1) for side in sides)
    steepest = max(map(abs, curve.bend_limits))
    bounds = sides.amax(2) * jacobian.norm**2
    rows = jacobian.rows.flatten()
    if jacobian.factor is None:
        fourth = float(rows.max()) * jacobian.norm
    else:
        fourth = spectral_norm(rows.unsqueeze(1) * jacobian.factor)
        bounds = torch.minimum(bounds, _weighted_norms(jacobian.factor, sides))
    bounds = torch.minimum(bounds, steepest * fourth * gradients.norm)
    return bounds[0], bounds[1]


def _weighted_norms(factor: Tensor, weights: Tensor) -> Tensor:
    """||B^T diag(h) B|| for h >= 0 (..., n), or one bound on them all where that is cheaper."""
    if min(factor.shape) > _EIGENVALUES:
        common = weights.flatten(0, -2).amax(0)
        level = spectral_norm(common.sqrt().unsqueeze(1) * factor) ** 2
        return weights.new_full(weights.shape[:-1], level)
    each = [spectral_norm(row.sqrt().unsqueeze(1) * factor) ** 2 for row in weights.flatten(0, -2)]
    return weights.new_tensor(each).reshape(weights.shape[:-1])


def _corners(gradients: _Gradients, limits: tuple[float, float]) -> Tensor:
    """The products of the ends of the intervals with two numbers, (4, P, *shape)."""
    return torch.stack([end * limit for end in (gradients.low, gradients.high) for limit in limits])


def _through_activation(bound: _Matrix, curve: Curve, goal: Tensor | None) -> _Matrix:
    steepest = max(map(abs, curve.slope_limits))
    factor = None if bound.factor is None else activated(bound.factor, curve, goal)
    return _Matrix(steepest * bound.norm, steepest * bound.rows, factor)


def _added(first: _Matrix, second: _Matrix) -> _Matrix:
    factor = None
    if first.factor is not None and second.factor is not None:
        factor = added(first.factor, second.factor)
    return _Matrix(first.norm + second.norm, first.rows + second.rows, factor)


def _tightened(bound: _Matrix) -> _Matrix:
    """The smaller of what is known and what follows from the factor."""
    size = bound.rows.numel()
    if bound.factor is None:
        narrow = (
            torch.eye(size, dtype=torch.float64, device=bound.rows.device) * bound.norm
            if size <= _NARROW
            else None
        )
        return _Matrix(bound.norm, bound.rows.clamp_max(bound.norm), narrow)
    norm = min(bound.norm, spectral_norm(bound.factor))
    rows = torch.minimum(bound.rows, bound.factor.norm(dim=1).reshape(bound.rows.shape))
    return _Matrix(norm, rows, bound.factor)


def _middle_gradients(network: Network) -> list[Tensor]:
    """Gradients (K, n) of the logits, less their mean, by every node if all slopes are in their middle."""
    size = network.classes
    gradients: list[Tensor | None] = [None] * len(network.nodes)
    gradients[-1] = torch.eye(size, dtype=torch.float64, device=_device(network)) - 1 / size
    for index in reversed(range(len(network.nodes))):
        node, gradient = network.nodes[index], gradients[index]
        assert gradient is not None  # every node is used by a later one
        if isinstance(node, Affine):
            gradient = node.operator.adjoint(gradient)
        elif isinstance(node, Pointwise):
            gradient = gradient * sum(node.curve.slope_limits) / 2
        for source in node.sources:
            before = gradients[source]
            gradients[source] = gradient if before is None else before + gradient
    return [gradient.flatten(1) for gradient in gradients if gradient is not None]


def _device(network: Network) -> torch.device:
    return next(node.bias.device for node in network.nodes if isinstance(node, Affine))
