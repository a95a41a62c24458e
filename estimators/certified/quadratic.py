"""Quadratic bounds on the functionals of an expansion: R9's matrices, written out only on demand.

Where an activation is smooth its remainder is `q t^2 / 2` with q in a known range and t the displacement of
what enters it, which is `r.d` up to a known error. So each unit adds `w (r.d)^2 / 2` to a lower bound, with
the worse end of the range in w, and the matrix of the whole is `-sum_k w_k r_k r_k^T`. After a given step the
bound costs as little as a pass through the network; the matrix costs the input size times that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from estimators.certified.expansion import Functionals
from estimators.certified.operators import ROUNDING


@dataclass(frozen=True, eq=False)
class QuadraticBounds:
    """`s f(x + d) >= s (f(x) + g.d) - d^T Q d / 2 - c` in the ball, for L functionals f and a sign s.

    Q is symmetric and may be indefinite: where the second derivative is known to be positive, it helps.

    Attributes:
        functionals: f.
        sign: s.
        constants: c, (n, L).
        weights: w at each activation, (n, L, M), by the index of its node.
    """

    functionals: Functionals
    sign: float
    constants: Tensor
    weights: dict[int, Tensor] = field(repr=False)

    def matrices(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Q (m, d, d) of some functionals, by sample and label, both (m,)."""
        dimension = self.functionals.gradients.shape[2]
        matrix = self.constants.new_zeros(len(samples), dimension, dimension)
        for index, weights in self.weights.items():
            rows = self._rows(index)
            rows = rows if len(rows) == 1 else rows[samples]
            matrix -= (rows * weights[samples, labels].unsqueeze(1)) @ rows.mT
        return (matrix + matrix.mT) / 2

    def pushed(self, samples: Tensor, labels: Tensor, steps: Tensor) -> Tensor:
        """Q d, (m, P, d), of P functionals (m, P) of some samples (m,), after a step d (m, d) of each.

        Args:
            samples: Different ones, in ascending order.
            labels: Which functionals.
            steps: d.
        """
        total = self.constants.new_zeros(*labels.shape, steps.shape[1])
        for index, weights in self.weights.items():
            rows = self._rows(index)
            rows = rows[0] if len(rows) == 1 else rows if len(rows) == len(samples) else rows[samples]
            moved = steps.unsqueeze(1) @ rows
            total -= (weights[samples.unsqueeze(1), labels] * moved) @ rows.mT
        return total

    def at(self, steps: Tensor) -> Tensor:
        """The bounds (n, S, L) after S steps of each sample, (n, S, d)."""
        f = self.functionals
        total = self.sign * (f.values.unsqueeze(1) + steps @ f.gradients.mT) - self.constants.unsqueeze(1)
        for index, weights in self.weights.items():
            total = total + (steps @ self._rows(index)).square() @ weights.mT / 2
        return total

    @cached_property
    def sizes(self) -> Tensor:
        """Bounds (n, L) on the norm of Q; times d units in the last place, also on the rounding of Q d."""
        total = torch.zeros_like(self.constants)
        for index, weights in self.weights.items():
            rows = self._rows(index)
            # Sums over the units come before those over the inputs.
            longer = 2 + rows.shape[2] / rows.shape[1]
            total = total + longer * self._trace(index, weights.abs())
        return total

    @cached_property
    def dips(self) -> Tensor:
        """Bounds (n, L) on how far below zero the smallest eigenvalue of Q is."""
        total = torch.zeros_like(self.constants)
        for index, weights in self.weights.items():
            up, gram = weights.clamp_min(0), self.functionals.expansion.layers[index].squared_gram
            found = self._trace(index, up)
            if gram is not None:  # the norm of a matrix is at most its Frobenius norm
                found = torch.minimum(found, ((up @ gram) * up).sum(2).clamp_min(0).sqrt() * (1 + ROUNDING))
            total = total + found
        return total

    def _trace(self, index: int, weights: Tensor) -> Tensor:
        """`sum_k w_k ||r_k||^2`, (n, L)."""
        lengths = self.functionals.expansion.layers[index].squared_lengths
        return (weights @ lengths.unsqueeze(2)).squeeze(2) * (1 + ROUNDING)

    def _rows(self, index: int) -> Tensor:
        rows = self.functionals.expansion.layers[index].rows
        assert rows is not None
        return rows


def quadratic_bounds(functionals: Functionals, sign: float) -> QuadraticBounds | None:
    """Lower bounds on functionals, or with sign -1 on their opposites.

    Returns:
        None where an activation has a kink or its units' gradients are too many to be held.
    """
    layers = functionals.expansion.layers
    if any(layer.bend is None or layer.rows is None for layer in layers.values()):
        return None
    constants, weights = torch.zeros_like(functionals.values), {}
    for index, layer in layers.items():
        assert layer.bend is not None
        adjoint = sign * functionals.adjoints[index]
        low, high = (adjoint * end.unsqueeze(1) for end in layer.bend)
        weight = torch.minimum(low, high)
        size, error = weight.abs(), layer.error.square().unsqueeze(1)
        wrong = (size * error).sum(2, keepdim=True)
        whole = (size * layer.squared_lengths.unsqueeze(1)).sum(2, keepdim=True)
        whole = whole * functionals.expansion.radius**2
        # w (r.d + e)^2 >= (w - b |w|) (r.d)^2 - |w| (1 / b -+ 1) e^2 for every b > 0, - for w > 0.
        balance = (4 * wrong / whole).sqrt().where((wrong > 0) & (whole > 0), 0.0)
        lost = size * (1 / balance - weight.sign()) * error
        constants = constants + lost.where(wrong > 0, 0.0).clamp_min(0).sum(2) / 2
        weights[index] = weight - balance * size
    return QuadraticBounds(functionals, sign, constants * (1 + ROUNDING), weights)
