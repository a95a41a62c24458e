"""Time a TRS training step against the published one, at equal work and at each one's own settings.

    python benchmarks/training_step.py [--cases mlp:64 lenet:8 resnet20:4] [--rounds 9] [--limit SECONDS]
    python benchmarks/training_step.py --draw      # the figure anew, from the results

A case is a network and a batch: ensembles of three members, an MLP 784-128-128-10 and a LeNet on 28x28
images, ResNet-20 on 32x32 colour images, on random pixels (a step's time does not depend on them). The
published step is rendered in `published_trs.py`. What is compared:

- equal work: one search for all members, five steps of a quarter of the radius from the samples, whole batch;
- paper settings: the same, with one search for each pair of members;
- official preset: what the code itself does (six steps, half the batch, random start), by our readable
  rendering of it, `trs-official`.

Ours is measured as users get it ("fast") and with the switch off ("plain"), on one thread of a CPU. The
floor is what the step's convolutions and matrix products alone would take, each the longer of two times: its
operations at the rate of a large matrix product, and the bytes of its operands and result, each moved once,
at the rate of a copy that fits into a cache, both measured in the same run. `on_gpu.py` is for a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from published_trs import CODE, JOINT, PAPER, Search, published_step
from recording import CPU, RESULTS, Budget, in_turns, peak_memory, record, say, seconds, speed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from empirical.files import parse_json
from empirical.models import ModelConfig, build_model
from empirical.objectives import TRS, Step, TRSOfficial

SCHEMA = 2
MEMBERS = 3
CLASSES = 10
MODELS = {
    "mlp": (ModelConfig("mlp", "relu", (128, 128)), (1, 28, 28)),
    "lenet": (ModelConfig("lenet", "relu"), (1, 28, 28)),
    "lenet-gelu": (ModelConfig("lenet", "gelu"), (1, 28, 28)),
    "resnet20": (ModelConfig("resnet20", "relu"), (3, 32, 32)),
}
CASES = ("mlp:64", "mlp:128", "lenet:8", "lenet:64", "lenet-gelu:64", "resnet20:4", "resnet20:16")
COMPARED = ("equal work", "paper settings", "official preset")
WEIGHTS = (0.5, 0.1)
RADIUS = 0.1

Training = Callable[[], object]


def ensemble(name: str, device: torch.device) -> nn.ModuleList:
    """Fresh members, the same in every call."""
    config, shape = MODELS[name]
    torch.manual_seed(0)
    return nn.ModuleList(
        build_model(config, shape=shape, classes=CLASSES) for _ in range(MEMBERS)
    ).to(device)  # fmt: skip


def published(name: str, x: Tensor, y: Tensor, search: Search) -> Training:
    """The published step, with Adam."""
    members = ensemble(name, x.device)
    optimizer = torch.optim.Adam(members.parameters())
    return lambda: published_step(members, x, y, optimizer, RADIUS, WEIGHTS, search)


def ours(name: str, x: Tensor, y: Tensor, objective: TRS | TRSOfficial, fast: bool) -> Training:
    """Our step as `empirical.training` makes it, with Adam."""
    members = ensemble(name, x.device)
    weights = list(members.parameters())
    optimizer = torch.optim.Adam(weights, fused=fast)

    def step() -> float:
        loss = objective(members, x, y, Step(fast=fast))
        optimizer.zero_grad()
        loss.total.backward(inputs=weights)
        optimizer.step()
        return float(loss.total.detach())

    return step


def steps(name: str, x: Tensor, y: Tensor) -> dict[str, dict[str, Training]]:
    """Of each case the published step ("published") and ours."""
    pair = TRS(*WEIGHTS, RADIUS, RADIUS)
    joint = TRS(*WEIGHTS, RADIUS, RADIUS, "joint")
    official = TRSOfficial(*WEIGHTS, RADIUS, RADIUS, flips=False)
    return {
        "equal work": {
            "published": published(name, x, y, JOINT),
            "fast": ours(name, x, y, joint, True),
            "plain": ours(name, x, y, joint, False),
        },
        "paper settings": {
            "published": published(name, x, y, PAPER),
            "fast": ours(name, x, y, pair, True),
            "plain": ours(name, x, y, pair, False),
        },
        "official preset": {
            "published": published(name, x, y, CODE),
            "trs-official": ours(name, x, y, official, True),
        },
    }


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches, measured.

    Attributes:
        operations: Floating-point operations a second of the fastest of some float32 matrix products.
        bytes: Bytes read and written a second by the fastest of some copies.
    """

    operations: float
    bytes: float

    @classmethod
    def of(cls, device: torch.device) -> Ceilings:
        """Measure: the best of five at each size, after one that is not counted."""

        def best(work: Callable[[], object]) -> float:
            work()
            return min(seconds(work, device) for _ in range(5))

        small = device.type == "cpu"
        products = [torch.rand(n, n, device=device) for n in ((512, 1024) if small else (2048, 8192))]
        copies = [torch.rand(2**k, device=device) for k in ((15, 17, 20) if small else (20, 24, 27))]
        targets = [torch.empty_like(a) for a in copies]
        return cls(
            max(2 * len(a) ** 3 / best(lambda a=a: a @ a) for a in products),
            max(
                20 * 2 * a.nbytes / best(lambda a=a, b=b: [b.copy_(a) for _ in range(20)])
                for a, b in zip(copies, targets, strict=True)
            ),
        )


class Counter(TorchDispatchMode):
    """Adds up a step's products by the formulas of torch's own counter, which trips on `autograd.grad`."""

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings, self.operations, self.bytes, self.floor = ceilings, 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            operations = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            moved = sum(each.nbytes for each in tree_leaves((args, out)) if isinstance(each, Tensor))
            self.operations += operations
            self.bytes += moved
            self.floor += max(operations / self.ceilings.operations, moved / self.ceilings.bytes)
        return out


def counted(step: Training, ceilings: Ceilings) -> Counter:
    """Operations, bytes and floor of a step's convolutions and matrix products."""
    with Counter(ceilings) as counter:
        step()
    return counter


def measure(
    case: str, rounds: int, budget: Budget, device: torch.device = CPU, compared: Iterable[str] = COMPARED
) -> list[dict[str, Any]]:
    """One record for each way of computing each thing that is compared and that there is time for."""
    name, batch = case.split(":")
    x = torch.rand(int(batch), *MODELS[name][1], device=device)
    y = torch.randint(CLASSES, (len(x),), device=device)
    ceilings = Ceilings.of(device)
    records = []
    for what, ways in steps(name, x, y).items():
        if what not in compared or budget.spent:
            continue
        for step in ways.values():
            step()  # allocations, choice of kernels
        counters = {way: counted(step, ceilings) for way, step in ways.items()}
        times = in_turns(ways, rounds, device, budget)
        for way, counter in counters.items():
            found = speed(times, way, "published")
            records.append({
                "model": name, "batch": len(x), "case": what, "way": way, **found,
                "gigaflop": counter.operations / 1e9, "gigabyte": counter.bytes / 1e9,
                "fraction_of_floor": counter.floor / found["seconds"],
                "gigaflop_per_second_ceiling": ceilings.operations / 1e9,
                "gigabyte_per_second_ceiling": ceilings.bytes / 1e9,
            })  # fmt: skip
            say(records[-1])
    return records


def draw(results: Path) -> None:
    """Speed-ups of the fast step, from the results into a figure beside them."""
    from matplotlib.figure import Figure

    from empirical.plots.style import COLOURS, MARKERS, plt, save

    rows = [row for row in parse_json(results.read_text())["cases"] if row["way"] == "fast"]
    labels = list(dict.fromkeys(f"{row['model']}\n{row['batch']}" for row in rows))

    def figure() -> Figure:
        made, axes = plt.subplots(figsize=(5.6, 2.6))
        for offset, (what, colour, marker) in enumerate(zip(COMPARED[:2], COLOURS, MARKERS, strict=False)):
            for row in (row for row in rows if row["case"] == what):
                place = labels.index(f"{row['model']}\n{row['batch']}") + 0.16 * (2 * offset - 1)
                around = [
                    [row["speedup"] - row["smallest_speedup"]],
                    [row["largest_speedup"] - row["speedup"]],
                ]
                axes.errorbar(place, row["speedup"], around, fmt=marker, color=colour, ms=5, capsize=2, lw=1)
            axes.plot([], [], marker, color=colour, label=what)
        axes.axhline(1, color="#6E6E6E", lw=0.8)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_ylim(0.8, None)
        axes.set_ylabel("times as fast as published")
        axes.set_xlabel("network and batch; median, smallest and largest round")
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
        return made

    save(figure, results.with_suffix(""))


def main() -> None:
    """Run every case and write the results after each, and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    possible = ", ".join(MODELS)
    parser.add_argument("--cases", nargs="+", default=CASES, help=f"NETWORK:BATCH, networks: {possible}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, help="no round or case begins after so many seconds")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json")
    parser.add_argument("--draw", action="store_true", help="only draw what the output holds")
    arguments = parser.parse_args()
    if not arguments.draw:
        torch.set_num_threads(1)
        budget = Budget(arguments.limit)
        cases: list[dict[str, Any]] = []
        for case in arguments.cases:
            cases += measure(case, arguments.rounds, budget)
            found = {"members": MEMBERS, "peak_memory_bytes": peak_memory(), "cases": cases}
            record(arguments.output, SCHEMA, found)
    draw(arguments.output)


if __name__ == "__main__":
    main()
