"""Estimators, certificates and attacks go sample by sample: alike in shares, memory bounded by a batch."""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import estimators
from empirical.attacks import Attack, run_attack
from empirical.attacks.joint import JointAttack, joint_attack
from empirical.attacks.library import CarliniWagner, ElasticNet
from empirical.comparison.compare import compare
from empirical.data import Split
from empirical.ensemble import Ensemble
from estimators import BallSearch, cross_entropy
from estimators.certified import certify_transfer
from estimators.certified.ball import ball_bounds
from estimators.certified.network import read_network
from estimators.certified.segment import segment_bounds
from estimators.sharing import in_batches, sharing

INPUTS, CLASSES = 4, 3
Case = Callable[[int, Tensor, Tensor], Any]


def network(hidden: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(INPUTS, hidden), nn.Softplus(5), nn.Linear(hidden, CLASSES)
    return nn.Sequential(*layers).double()


def points(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 0.9 * torch.rand(samples, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.arange(samples) % CLASSES


def cases(hidden: int) -> dict[str, Case]:
    """By name what is called with a batch size on points and labels, on networks with one hidden layer."""
    f, g = network(hidden, 0), network(hidden, 1)
    loss, quick = cross_entropy, BallSearch(points=1, steps=2)

    def smoothness(method: str, radius: float = 0.1, **more: Any) -> Case:
        return lambda batch, x, y: estimators.sampled_smoothness(
            f, loss, x, y, method=method, radius=radius, batch_size=batch, points=2, steps=2, iterations=3,
            **{name: value(x) for name, value in more.items()},
        )  # fmt: skip

    def attack(settings: Any) -> Case:
        return lambda batch, x, y: run_attack(f, x, y, settings, batch_size=batch)

    return {
        "gradients": lambda b, x, y: estimators.input_gradients(f, loss, x, y, batch_size=b),
        "gradient norm": lambda b, x, y: estimators.gradient_norm(f, loss, x, y, batch_size=b),
        "similarity": lambda b, x, y: estimators.gradient_similarity(f, g, x, y, batch_size=b),
        "points": lambda b, x, y: estimators.measure_points([f, g], x, y, target=0, batch_size=b),
        "Hessian norms": lambda b, x, y: estimators.hessian_norms(
            f, loss, x, y[:, None].repeat(1, 2), iterations=3, batch_size=b
        ),
        "smoothness at points": smoothness("hessian"),
        "smoothness by ascent": smoothness("ascent"),
        "smoothness by quotients": smoothness("quotient"),
        "smoothness of segments": smoothness("segment", 0.0, x_end=shifted),
        "remainder": lambda b, x, y: estimators.remainder(f, loss, x, shifted(x), y, batch_size=b),
        "margin remainder": lambda b, x, y: estimators.margin_remainder(f, x, shifted(x), y, batch_size=b),
        "similarity over balls": lambda b, x, y: estimators.similarity_over_balls(
            f, g, x, y, 0.1, search=quick, batch_size=b
        ),
        "gradient norm over balls": lambda b, x, y: estimators.gradient_norm_over_balls(
            f, loss, x, y, 0.1, search=quick, batch_size=b
        ),
        "finite scale": lambda b, x, y: estimators.finite_scale_smoothness(
            f, loss, x, y, scale=0.02, radius=0.1, points=1, steps=1, batch_size=b
        ),
        "kinks": lambda b, x, y: estimators.divergence_test(f, loss, x, y, halvings=2, batch_size=4 * b),
        "certified balls": lambda b, x, y: ball_bounds(read_network(f, x), x, y, 0.1, batch_size=b),
        "certified transfer": lambda b, x, y: certify_transfer([f, g], x, y, 0.1, batch_size=b),
        "certified segments": lambda b, x, y: segment_bounds(read_network(f, x), x, shifted(x), y),
        "pgd": attack(Attack("pgd", "l2", 0.3, steps=3, restarts=2)),
        "mim": attack(Attack("mim", "linf", 0.1, steps=3, on_failure="clean")),
        "apgd": attack(Attack("apgd", "l2", 0.3, steps=5, loss="margin")),
        "cw": attack(CarliniWagner(steps=3)),
        "ead": attack(ElasticNet(steps=3)),
        "joint": lambda b, x, y: joint_attack(
            [f, g], x, y, JointAttack("l2", 0.3, steps=3), starts=[shifted(x)], batch_size=b
        ),
    }


def shifted(x: Tensor) -> Tensor:
    return (x + 0.1 * x.flip(1)).clamp(max=1)


def numbers(result: Any) -> list[float]:
    """All numbers in a result, whatever holds them."""
    if isinstance(result, Tensor | np.ndarray):
        return torch.as_tensor(result).double().flatten().tolist()
    if is_dataclass(result):
        return numbers([getattr(result, field.name) for field in fields(result)])
    if isinstance(result, Mapping):
        return numbers(list(result.values()))
    if isinstance(result, list | tuple):
        return [number for each in result for number in numbers(each)]
    return [float(result)] if isinstance(result, int | float) and not math.isinf(result) else []


class InTwo:
    """Two processes in one: each half of the rows by itself."""

    def __init__(self) -> None:
        self.halves: list[int] = []

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        middle = len(inputs[0]) // 2
        found = []
        for rows in (slice(middle), slice(middle, None)):
            self.halves.append(len(inputs[0][rows]))
            found.append(function(*(each[rows] for each in inputs)))
        return tuple(torch.cat(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("name", cases(2))
def test_a_set_in_two_shares_gives_what_it_gives_whole(name):
    case, (x, y) = cases(6)[name], points(7)
    whole = numbers(case(5, x, y))
    with sharing(shares := InTwo()):
        shared = numbers(case(5, x, y))
    assert len(whole) > 0
    assert shared == pytest.approx(whole, rel=1e-9, abs=1e-12, nan_ok=True)
    assert shares.halves[:2] == [3, 4]


class SmallDevice(TorchDispatchMode):
    """A device whose memory does not hold a matrix product with 5, 10 or 20 rows."""

    refused = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        products = [getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm")]
        if function.overloadpacket in products and result.shape[-2] in (5, 10, 20):
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("planted")
        return result


# Of the two left out one takes no size of a batch, and the other's products have rows that are no samples.
@pytest.mark.parametrize("name", sorted(set(cases(2)) - {"certified segments", "certified balls"}))
def test_a_batch_that_memory_does_not_hold_is_halved(name):
    """Batches of 5 are refused, those of 3 are not: the result is the same."""
    case, (x, y) = cases(6)[name], points(7)
    expected = numbers(case(5, x, y))
    with SmallDevice() as device:
        found = numbers(case(5, x, y))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    assert device.refused > 0


def test_a_single_row_that_memory_does_not_hold_is_an_error():
    def refuse(x: Tensor) -> tuple[Tensor]:
        raise torch.cuda.OutOfMemoryError("planted")

    with pytest.raises(torch.cuda.OutOfMemoryError, match="planted"):
        in_batches(refuse, 5, torch.rand(7, 2))


def test_halved_batches_cover_every_row_once():
    sizes = []

    def row_sums(x: Tensor) -> tuple[Tensor]:
        sizes.append(len(x))
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("planted")
        return (x.sum(1),)

    x = torch.rand(23, 2)
    assert torch.equal(in_batches(row_sums, 16, x)[0], x.sum(1))
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 3]


class LiveBytes(TorchDispatchMode):
    """Keeps count of the bytes of all tensors made inside, of the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, list | tuple) else [result]:
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.now -= size
            self.known.discard(key)

        weakref.finalize(storage, gone)


def growth(case: Case, batch: Callable[[int], int], fewer: int = 32, more: int = 160) -> float:
    """By how many bytes a sample the peak rises with the size of the set."""
    peaks = []
    for samples in (fewer, more):
        x, y = points(samples)
        with LiveBytes() as live:
            case(batch(samples), x, y)
        peaks.append(live.peak)
    return (peaks[1] - peaks[0]) / (more - fewer)


WIDE = 400
HIDDEN_LAYER = 8 * WIDE  # bytes of a sample's activations: what holds no more than a quarter holds no layer


@pytest.mark.parametrize("name", cases(2))
def test_memory_is_bounded_by_the_batch(name, monkeypatch):
    monkeypatch.setattr("estimators.certified.segment._SEGMENTS", 16)
    assert growth(cases(WIDE)[name], lambda samples: 16) < HIDDEN_LAYER / 4


@pytest.mark.parametrize("name", ["gradient norm", "Hessian norms", "remainder", "pgd", "joint"])
def test_a_batch_that_grows_with_the_set_is_noticed(name):
    assert growth(cases(WIDE)[name], lambda samples: samples) > HIDDEN_LAYER


@pytest.mark.slow
def test_a_comparison_holds_no_more_than_its_attacks():
    """Sets larger than the largest batch, 1024; networks with kinks, whose segments need no pieces."""
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(nn.Sequential(nn.Linear(INPUTS, WIDE), nn.ReLU(), nn.Linear(WIDE, CLASSES)).double())
    attack = Attack("pgd", steps=2)

    def compared(batch: int, x: Tensor, y: Tensor) -> Any:
        return compare(
            Ensemble(members), Split(x, y), name="wide", eps=[0.3], linf_eps=[0.1],
            attacks={"pgd": attack, "joint": JointAttack(steps=2)}, certificates=False,
            robust_eps=[0.1], robust_attack=attack,
        )  # fmt: skip

    assert growth(compared, lambda samples: 0, 1100, 1600) < HIDDEN_LAYER / 4
