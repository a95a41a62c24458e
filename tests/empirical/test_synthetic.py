import pytest
import torch

from empirical.data import load_dataset


@pytest.mark.parametrize(
    ("name", "center", "deviations", "near"),
    [("blobs", 2.0, (0.2, 0.3), 8), ("blobs-tight", 1.5, (0.1, 0.1), 0)],
)
def test_blobs(name, center, deviations, near):
    """Clouds have the stated centres and spreads; near-boundary points are mirrored and in their range."""
    data = load_dataset(name)
    assert data.pixel_range is None
    for split in (data.train, data.test):
        assert len(split) == 300 + near
        assert torch.equal(split.y, (split.x[:, 0] > 0).long())
        close = split.x[:, 0].abs() < 0.5
        clouds = split.x[~close] - torch.stack(
            [center * (2 * split.y[~close] - 1.0), torch.zeros(300)], dim=1
        )
        # A mean of 300 has a standard error of sd / sqrt(300), its spread one of sd / sqrt(600).
        assert (clouds.mean(0).abs() < 4 * torch.tensor(deviations) / 300**0.5).all()
        assert ((clouds.std(0) / torch.tensor(deviations) - 1).abs() < 4 / 600**0.5).all()
        points = split.x[close]
        assert len(points) == near
        assert ((points[:, 0].abs() >= 0.03) & (points[:, 0].abs() <= 0.07)).all()
        mirrored = points * torch.tensor([-1.0, 1.0])
        assert sorted(points.tolist()) == sorted(mirrored.tolist())
    assert not torch.equal(data.train.x, data.test.x)
    assert not torch.equal(data.train.x, load_dataset(name, seed=1).train.x)
    assert torch.equal(data.train.x, load_dataset(name).train.x)
