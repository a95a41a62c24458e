"""Rigorous Lipschitz constants of logit differences from norms of the layers: cheap for any depth and size.

Two bounds are carried through the graph, for the inputs measured in l2 or in linf: the Lipschitz constant of
the whole value of a node, in l2, and one for each of its entries. An affine map multiplies the first by its
spectral norm; for an entry the smaller is kept of its row's length times the first, and of the weighted sum
of the entries that it sees. An activation multiplies both by its steepest slope. What `whole_space_bounds`
does beyond this, with matrices in the place of norms, is tighter and takes minutes where this takes less than
a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bounds.certificate import Norm
from estimators.certified.network import Affine, Input, Network, Pointwise
from estimators.certified.operators import ROUNDING, LinearMap


@dataclass(frozen=True)
class _Reach:
    """Lipschitz constants of a node by the input: of its value in l2, and of its entries, in their shape."""

    whole: float
    entries: Tensor

    def through(self, rows: Tensor, operator: LinearMap) -> Tensor:
        """Constants of `r . operator(value)` for each row r (m, *operator.out_shape): (m,)."""
        seen = operator.adjoint(rows).flatten(1)
        return torch.minimum(seen.norm(dim=1) * self.whole, seen.abs() @ self.entries.flatten())


@lru_cache(maxsize=16)
def lipschitz_constants(network: Network, norm: Norm = "l2") -> Tensor:
    """Upper bounds on the Lipschitz constants of all logit differences over all inputs.

    If `L[k, y] * eps` is smaller than `z_y(x) - z_k(x)`, no perturbation of that norm and of size up to eps
    makes the logit k overtake y: the simplest row of the certificate R1, and the one that survives depth.

    Args:
        network: As read by `read_network`; kinks do no harm.
        norm: Norm in which the inputs move, "l2" or "linf".

    Returns:
        (K, K), symmetric with zero diagonal: logits per unit of the norm, up to float64 rounding.

    Raises:
        ValueError: If the norm is neither.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"expected the norm l2 or linf, got {norm!r}")
    reaches: list[_Reach] = []
    device = next(node.bias.device for node in network.nodes if isinstance(node, Affine))
    for node in network.nodes:
        if isinstance(node, Input):
            ones = torch.ones(node.shape, dtype=torch.float64, device=device)
            reach = _Reach(1.0 if norm == "l2" else math.sqrt(ones.numel()), ones)
        elif isinstance(node, Affine):
            reach = _affine(reaches[node.source], node.operator)
        elif isinstance(node, Pointwise):
            before, steepest = reaches[node.source], max(map(abs, node.curve.slope_limits))
            reach = _Reach(steepest * before.whole, steepest * before.entries)
        else:
            first, second = (reaches[source] for source in node.sources)
            reach = _Reach(first.whole + second.whole, first.entries + second.entries)
        reaches.append(reach)
    constants = _differences(network, reaches)
    return constants * (1 + ROUNDING)


def _affine(before: _Reach, operator: LinearMap) -> _Reach:
    entries = torch.minimum(
        operator.row_norms * before.whole, operator.magnitude.apply(before.entries.unsqueeze(0))[0]
    )
    return _Reach(min(operator.norm * before.whole, float(entries.norm())), entries)


def _differences(network: Network, reaches: list[_Reach]) -> Tensor:
    """(K, K) for `z_a - z_b`; the last affine map is applied to the difference itself."""
    classes, last = network.classes, network.nodes[-1]
    identity = torch.eye(classes, dtype=torch.float64, device=reaches[-1].entries.device)
    rows = (identity.unsqueeze(1) - identity).flatten(0, 1)
    if isinstance(last, Affine):
        return reaches[last.source].through(rows, last.operator).reshape(classes, classes)
    entries = reaches[-1].entries
    constants = torch.minimum(rows.norm(dim=1) * reaches[-1].whole, rows.abs() @ entries)
    return constants.reshape(classes, classes)
