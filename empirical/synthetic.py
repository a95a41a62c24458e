"""Two-dimensional sets of two classes, on which the bounds say something after training.

The classes are normal clouds mirrored at the line x1 = 0: class 0 on the left, class 1 on the right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLOUD_SIZE = 150  # points of a class in each split, near-boundary points aside
NEAR_BOUNDARY_PAIRS = 4
NEAR_BOUNDARY_RANGE = (0.03, 0.07)

Points = tuple[NDArray[np.float32], NDArray[np.int64]]


def blobs(seed: int) -> tuple[Points, Points]:
    """Clouds at (-2, 0) and (2, 0) with standard deviations (.2, .3), and 8 points near the boundary.

    The near-boundary points come in 4 mirrored pairs (-u, v), (u, v) with u uniform in [.03, .07] and v as in
    the clouds. They are the ones that a small perturbation can move across a boundary at x1 = 0: 8 of the 308
    points of a split, so a measured transfer has something to find and stays small.

    Args:
        seed: Seed of the sampling; the two splits are independent.

    Returns:
        Training and held-out points (x (308, 2), y (308,)), 154 of each class.
    """
    train, test = np.random.default_rng(seed).spawn(2)
    return _blobs_split(train), _blobs_split(test)


def blobs_tight(seed: int) -> tuple[Points, Points]:
    """Clouds at (-1.5, 0) and (1.5, 0) with standard deviation .1 and nothing near the boundary.

    Args:
        seed: Seed of the sampling; the two splits are independent.

    Returns:
        Training and held-out points (x (300, 2), y (300,)), 150 of each class.
    """
    train, test = np.random.default_rng(seed).spawn(2)
    return _clouds(train, 1.5, (0.1, 0.1)), _clouds(test, 1.5, (0.1, 0.1))


def _clouds(generator: np.random.Generator, center: float, deviations: tuple[float, float]) -> Points:
    y = np.repeat(np.array([0, 1]), CLOUD_SIZE)
    x = generator.normal(size=(len(y), 2)) * np.array(deviations)
    x[:, 0] += center * (2 * y - 1)
    return x.astype(np.float32), y


def _blobs_split(generator: np.random.Generator) -> Points:
    x, y = _clouds(generator, 2.0, (0.2, 0.3))
    distance = generator.uniform(*NEAR_BOUNDARY_RANGE, size=NEAR_BOUNDARY_PAIRS)
    height = 0.3 * generator.normal(size=NEAR_BOUNDARY_PAIRS)
    left, right = np.stack([-distance, height], axis=1), np.stack([distance, height], axis=1)
    near_labels = np.repeat(np.array([0, 1]), NEAR_BOUNDARY_PAIRS)
    return np.concatenate([x, left, right]).astype(np.float32), np.concatenate([y, near_labels])
