import pytest
import torch
from torch.nn import functional

from empirical.augmentation import Augmentation


def windows(image, padding):
    """Every crop that padding allows, mirrored or not."""
    padded = functional.pad(image, (padding,) * 4)
    height, width = image.shape[-2:]
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(-1)


def test_augmented_images_are_crops():
    """Every result is one of the possible crops, and over many draws all of them come up."""
    image = torch.rand(2, 5, 4)
    batch = image.expand(2000, 2, 5, 4)
    result = Augmentation(padding=2, flip=True)(batch, torch.Generator().manual_seed(0))
    counts = {key: int((result == crop).flatten(1).all(1).sum()) for key, crop in windows(image, 2)}
    assert sum(counts.values()) == 2000
    # 50 equally likely results: 40 each on average, a standard deviation of 6.3.
    assert min(counts.values()) > 12
    assert max(counts.values()) < 70


def test_augmentation_does_not_mix_samples():
    """Each image of a batch is a crop of its own original."""
    batch = torch.arange(1.0, 9.0).reshape(8, 1, 1, 1).expand(8, 3, 6, 6)
    result = Augmentation(padding=2)(batch, torch.Generator().manual_seed(0))
    assert all(set(image.unique().tolist()) <= {0.0, float(i)} for i, image in enumerate(result, start=1))
    assert result.shape == batch.shape


def test_augmentation_is_driven_by_its_generator():
    """The same generator state gives the same batch, and the global generator is left alone."""
    batch, augmentation = torch.rand(16, 3, 8, 8), Augmentation()
    before = torch.get_rng_state()
    first, again = (augmentation(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    other = augmentation(batch, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_augmentation_is_the_same_on_every_device():
    """A CPU generator gives a batch on the GPU the crops that it gives on the CPU."""
    batch, augmentation = torch.rand(16, 3, 8, 8), Augmentation()
    here = augmentation(batch, torch.Generator().manual_seed(5))
    there = augmentation(batch.cuda(), torch.Generator().manual_seed(5))
    assert there.is_cuda
    assert torch.equal(here, there.cpu())
