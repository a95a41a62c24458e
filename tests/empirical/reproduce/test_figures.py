"""Regions of a boundary slice carry their label where there is room for it."""

import numpy as np

from empirical.reproduce.figures import _regions

OFFSETS = np.linspace(-4, 4, 41)


def test_each_large_region_is_named_inside_it_away_from_the_attacks_line():
    labels = np.full((41, 41), 3)
    labels[25:, :] = 7
    labels[0:3, 0:3] = 5  # too small
    named = _regions(labels, OFFSETS)
    assert sorted(label for label, _, _ in named) == [3, 7]
    for label, x, y in named:
        column, row = (int(np.abs(OFFSETS - place).argmin()) for place in (x, y))
        assert labels[row, column] == label
        assert abs(x) >= 0.4


def test_two_regions_of_one_label_are_both_named():
    labels = np.zeros((41, 41), dtype=int)
    labels[15:25, :] = 1
    assert sorted(label for label, _, _ in _regions(labels, OFFSETS)) == [0, 0, 1]
