"""Vectors to put Lemmas 7 and 8 and R8 to the test: a perturbation and two directions.

TRS, appendices B and C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Directions:
    """A perturbation delta and two nonzero vectors g_1 and g_2, whose unit vectors are the lemmas' x and y.

    Attributes:
        delta: The perturbation, shape (D,).
        first: g_1, shape (D,).
        second: g_2, shape (D,).
        slack: How much larger than ||delta|| the radius eps is, >= 0.
        threshold: The c of Lemma 7.
        similarity: The S of Lemma 8, in [-1, 1].

    Raises:
        ValueError: If a direction is zero.
    """

    delta: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    slack: float = 0.0
    threshold: float = 0.0
    similarity: float = 1.0

    def __post_init__(self) -> None:
        for name in ("delta", "first", "second"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if not (self.first.any() and self.second.any()):
            raise ValueError("expected two nonzero directions, got a zero one")

    def quantities(self, statement: str) -> dict[str, float]:
        """Exact quantities of one of the lemmas, or of R8.

        Raises:
            ValueError: If the statement is none of these.
        """
        x, y = _unit(self.first), _unit(self.second)
        length, cosine = float(np.linalg.norm(self.delta)), float(np.clip(x @ y, -1.0, 1.0))
        if statement.startswith("lemma-7"):
            values = {"d_y": float(self.delta @ y), "c": self.threshold, "eps": length + self.slack}
        elif statement.startswith("lemma-8"):
            values = {"delta_norm": length, "S_upper": self.similarity}
        elif statement == "refined-r8":
            norms = sorted((float(np.linalg.norm(self.first)), float(np.linalg.norm(self.second))))
            values = {"eps": length + self.slack, "a": norms[0], "b": norms[1]}
        else:
            raise ValueError(f"expected lemma-7, lemma-8 (any variant) or refined-r8; got {statement!r}")
        return {**values, "cosine": cosine}

    def subject(self, statement: str) -> float:
        """What the lemma bounds: delta.x - c and its mirror, or the smaller of the two components.

        Raises:
            ValueError: If the statement is none of the lemmas.
        """
        along = float(self.delta @ _unit(self.first))
        if statement == "lemma-7-mirror":
            return self.threshold - along
        if statement.startswith("lemma-7"):
            return along - self.threshold
        if statement.startswith("lemma-8"):
            return min(along, float(self.delta @ _unit(self.second)))
        if statement == "refined-r8":
            return min(float(self.delta @ self.first), float(self.delta @ self.second))
        raise ValueError(f"expected lemma-7, lemma-8 (any variant) or refined-r8; got {statement!r}")


def best_common_step(first: ArrayLike, second: ArrayLike, radius: float) -> NDArray[np.float64]:
    """The step of that length with the largest smaller component: along the segment's point nearest to 0."""
    g, h = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    apart = float((g - h) @ (g - h))
    share = 1.0 if apart == 0.0 else float(np.clip(h @ (h - g) / apart, 0.0, 1.0))
    nearest = share * g + (1.0 - share) * h
    length = math.sqrt(float(nearest @ nearest))
    return np.zeros_like(g) if length < 1e-12 else nearest * (radius / length)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return unit
