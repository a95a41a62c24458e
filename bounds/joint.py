"""Which models can be fooled together: certificates R1 and R9 for many subsets of models at once.

A model is fooled into label l only where its margin m_l reaches zero or below. So a sample is certified for a
set of models once every choice of one label for each of them has weights lambda whose sum of lower bounds is
positive on the whole ball. A choice that is certified for some of the models is certified for more of them,
so work goes from single models to pairs to triples, each time on what is still open, and no subset is ever
looked at twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bounds.certificate import Norm, transfer_certificate
from bounds.dual import Bools, Floats
from bounds.matrix_curvature import matrix_certificate

Indices = NDArray[np.intp]
# From samples (m,) and labels (m,): constants (m,) and symmetric matrices (m, d, d).
Quadratic = Callable[[Indices, Indices], tuple[Floats, Floats]]

# Numbers in the gradients that are looked at together.
_ENTRIES = 1 << 22
# Choices of labels of a sample that get the quadratic certificate in one round, the most doubtful first.
_ROUND = 4


@dataclass(frozen=True)
class MarginBounds:
    """Lower bounds over a ball on the L margins that an attack on one model has to overcome.

    Attributes:
        offsets: p, shape (n, L), and
        slopes: g, shape (n, L, d): `m_l(x + d) >= p_l + d.g_l` in the ball.
        floors: Lower bounds on the margins over the ball, (n, L); a positive one rules its label out.
        quadratic: For samples (m,) and labels (m,): constants c (m,) and matrices Q (m, d, d), symmetric but
            maybe indefinite, with `m(x + d) >= c + d.g - d^T Q d / 2` in the ball; None where there is none.
    """

    offsets: Floats
    slopes: Floats
    floors: Floats
    quadratic: Quadratic | None = None


class JointCertificates:
    """Certificates for subsets of models, each computed once, from the bounds of each model on its own.

    Args:
        models: Bounds of each model, for the same samples and labels.
        radius: Radius of the balls.
        norm: "l2" or "linf".
        targeted: False: a model is fooled once any one of its margins is overcome. True: only once all of
            them are.
        refuted: By subset, samples (n,) with a step in the ball after which all the bounds that a certificate
            could rest on are overcome: none is looked for. Only the subsets among them may be asked about.
    """

    def __init__(
        self,
        models: Sequence[MarginBounds],
        radius: float,
        norm: Norm,
        *,
        targeted: bool,
        refuted: Mapping[tuple[int, ...], Bools] | None = None,
    ) -> None:
        self.models, self.radius, self.norm, self.targeted = models, radius, norm, targeted
        self.samples = len(models[0].offsets)
        self.refuted = refuted
        self._certified: dict[tuple[int, ...], Bools] = {}
        self._choices: dict[tuple[int, ...], tuple[Indices, Indices]] = {}

    def certified(self, models: Sequence[int], together: int | None = None) -> Bools:
        """Samples (n,) where no perturbation in the ball fools `together` of these models at once.

        Args:
            models: Positions of the models.
            together: How many at once; None for all.
        """
        size = len(models) if together is None else together
        subsets = itertools.combinations(sorted(models), size)
        return np.logical_and.reduce([self._whole(subset) for subset in subsets])

    def _whole(self, subset: tuple[int, ...]) -> Bools:
        if subset not in self._certified:
            if self.targeted:
                certified = self._certify_rows(subset)
            else:
                certified = self._wanted(subset)
                certified[self._open(subset)[0]] = False
            self._certified[subset] = certified
        return self._certified[subset]

    def _wanted(self, subset: tuple[int, ...]) -> Bools:
        """Samples (n,) for which something about these models, or about these and others, may be proved."""
        return wanted(subset, self.refuted, self.samples)

    def _open(self, subset: tuple[int, ...]) -> tuple[Indices, Indices]:
        """Samples (m,) and choices of labels (m, S) that are not ruled out for these models together."""
        if subset not in self._choices:
            if len(subset) == 1:
                samples, label = np.nonzero(self.models[subset[0]].floors <= 0)
                labels = label[:, None]
            else:
                samples, labels = self._joined(subset)
            wanted = self._wanted(subset)[samples]
            samples, labels = samples[wanted], labels[wanted]
            proved = np.zeros(len(samples), dtype=bool)
            if len(subset) > 1:
                proved = self._affine(subset, samples, labels)
                samples, labels = samples[~proved], labels[~proved]
            if len(subset) <= 2:
                proved = self._curved(subset, samples, labels)
                samples, labels = samples[~proved], labels[~proved]
            self._choices[subset] = samples, labels
        return self._choices[subset]

    def _joined(self, subset: tuple[int, ...]) -> tuple[Indices, Indices]:
        """Choices all of whose parts are open: of all but the last model, and of each pair with the last."""
        samples, labels = self._open(subset[:-1])
        allowed = np.ones((len(samples), self.models[0].offsets.shape[1]), dtype=bool)
        for position, model in enumerate(subset[:-1]):
            parts = [(subset[-1],)] if len(subset) == 2 else [(model, subset[-1])]
            for part in parts:
                table = self._table(part)
                allowed &= table[samples] if len(part) == 1 else table[samples, labels[:, position]]
        at, last = np.nonzero(allowed)
        return samples[at], np.concatenate([labels[at], last[:, None]], axis=1)

    def _table(self, subset: tuple[int, ...]) -> Bools:
        """The open choices of one or two models as booleans (n, L) or (n, L, L)."""
        samples, labels = self._open(subset)
        table = np.zeros((self.samples, *[self.models[0].offsets.shape[1]] * len(subset)), dtype=bool)
        table[(samples, *labels.T)] = True
        return table

    def _affine(self, subset: tuple[int, ...], samples: Indices, labels: Indices) -> Bools:
        """Which choices R1 rules out."""
        proved = np.zeros(len(samples), dtype=bool)
        for part in self._parts(len(samples), len(subset)):
            offsets, slopes = self._rows(subset, samples[part], labels[part])
            proved[part] = transfer_certificate(offsets, slopes, 0.0, self.radius, self.norm).certified
        return proved

    def _curved(self, subset: tuple[int, ...], samples: Indices, labels: Indices) -> Bools:
        """Which choices R9 rules out, in l2; a sample is given up with the first that it does not."""
        proved = np.zeros(len(samples), dtype=bool)
        if self.norm != "l2" or any(self.models[model].quadratic is None for model in subset):
            return proved
        doubt = np.max([self.models[m].floors[samples, labels[:, i]] for i, m in enumerate(subset)], axis=0)
        order = np.lexsort((doubt, samples))
        rank = np.arange(len(order)) - np.searchsorted(samples[order], samples[order])
        hopeless = np.zeros(self.samples, dtype=bool)
        for first in range(0, int(rank.max(initial=-1)) + 1, _ROUND):
            now = order[(rank >= first) & (rank < first + _ROUND) & ~hopeless[samples[order]]]
            for part in self._parts(len(now), 2 * len(subset) * self.models[0].slopes.shape[2]):
                at = now[part]
                slopes = self._rows(subset, samples[at], labels[at])[1]
                constants, matrices = zip(
                    *(self._quadratic(m, samples[at], labels[at, i]) for i, m in enumerate(subset)),
                    strict=True,
                )
                found = matrix_certificate(
                    np.stack(constants, 1), slopes, np.stack(matrices, 1), self.radius
                ).certified
                proved[at] = found
                hopeless[samples[at[~found]]] = True
        return proved

    def _quadratic(self, model: int, samples: Indices, labels: Indices) -> tuple[Floats, Floats]:
        quadratic = self.models[model].quadratic
        assert quadratic is not None
        return quadratic(samples, labels)

    def _certify_rows(self, subset: tuple[int, ...]) -> Bools:
        """Every model has to overcome all its margins: all of them are rows of one certificate."""
        certified = np.logical_or.reduce([(self.models[model].floors > 0).any(axis=1) for model in subset])
        samples = np.flatnonzero(~certified & self._wanted(subset))
        labels = self.models[0].offsets.shape[1]
        for part in self._parts(len(samples), len(subset) * labels):
            at = samples[part]
            offsets = np.concatenate([self.models[model].offsets[at] for model in subset], axis=1)
            slopes = np.concatenate([self.models[model].slopes[at] for model in subset], axis=1)
            certified[at] = transfer_certificate(offsets, slopes, 0.0, self.radius, self.norm).certified
        return certified

    def _rows(self, subset: tuple[int, ...], samples: Indices, labels: Indices) -> tuple[Floats, Floats]:
        pairs = [(self.models[model], labels[:, i]) for i, model in enumerate(subset)]
        return (
            np.stack([model.offsets[samples, label] for model, label in pairs], axis=1),
            np.stack([model.slopes[samples, label] for model, label in pairs], axis=1),
        )

    def _parts(self, length: int, rows: int) -> Iterator[slice]:
        """Slices that keep the numbers of so many rows of gradients bounded."""
        step = max(1, _ENTRIES // (rows * self.models[0].slopes.shape[2]))
        for start in range(0, length, step):
            yield slice(start, start + step)


def wanted(subset: Sequence[int], refuted: Mapping[tuple[int, ...], Bools] | None, samples: int) -> Bools:
    """Samples (n,) at which a subset that contains these models is not refuted; see `JointCertificates`."""
    if refuted is None:
        return np.ones(samples, dtype=bool)
    known = [~found for other, found in refuted.items() if set(subset) <= set(other)]
    return np.logical_or.reduce(known)
