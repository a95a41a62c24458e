"""Everything that a GPU is to be measured on, in one command that ends by itself.

    python benchmarks/on_gpu.py [--device cuda] [--limit 480] [--output benchmarks/results/on_gpu.json]

In this order, each as long as there is time:

- the TRS step with three members against the published one (`training_step.py`): ResNet-20 at batch 128,
  equal work and paper settings, then the MLP and LeNet at batch 128, with the fraction of the floor;
- PGD and Auto-PGD of 20 steps on ResNet-20, 512 images, against torchattacks where that is installed;
- Hessian norms of ResNet-20 with softplus, 128 images at once against one at a time.

No round begins after the limit, and results are written after every part: what was not reached is named in
`left_out`. A round of one part may run over the limit; keep a minute in hand. `--device cpu --tiny` runs the
same code on small networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attacks import by_torchattacks, ours
from recording import RESULTS, Budget, in_turns, is_installed, peak_memory, record, say, speed
from torch import Tensor, nn
from training_step import CLASSES, COMPARED, MEMBERS
from training_step import measure as measure_step

from empirical.attacks import predict
from empirical.models import ModelConfig, build_model
from estimators import cross_entropy, hessian_norms

SCHEMA = 1
ROUNDS = 9
STEPS = ("resnet20:128", "mlp:128", "lenet:128")
TINY_STEPS = ("mlp:8",)

Rows = list[dict[str, Any]]


def problem(
    activation: str, count: int, device: torch.device, *, tiny: bool
) -> tuple[nn.Module, Tensor, Tensor]:
    """A fresh network in evaluation mode, random pixels, and the labels that it gives them."""
    torch.manual_seed(0)
    config = ModelConfig("resnet8" if tiny else "resnet20", activation)
    model = build_model(config, shape=(3, 32, 32), classes=CLASSES).to(device).eval()
    count = 4 if tiny else count
    x = torch.rand(count, 3, 32, 32, device=device)
    return model, x, predict(model, x)


def attacks(device: torch.device, budget: Budget, *, tiny: bool) -> Rows:
    """Seconds of our attacks, and of torchattacks' over them."""
    model, x, y = problem("relu", 512, device, tiny=tiny)
    rows = []
    for method in ("pgd", "apgd"):
        ways = {"ours": ours(method)}
        if is_installed("torchattacks"):
            ways["torchattacks"] = by_torchattacks(method)
        works = {way: (lambda run=run: run(model, x, y)) for way, run in ways.items()}
        rows += compare(works, "ours", {"part": method, "images": len(x)}, device, budget)
    return rows


def hessians(device: torch.device, budget: Budget, *, tiny: bool) -> Rows:
    """Seconds for a batch at once, and for some of its samples one at a time: compare those per image."""
    model, x, y = problem("softplus(5)", 128, device, tiny=tiny)
    works: dict[str, Callable[[], object]] = {
        "at once": lambda: hessian_norms(model, cross_entropy, x, y),
        "one at a time": lambda: hessian_norms(model, cross_entropy, x[:8], y[:8], batch_size=1),
    }
    rows = compare(works, "at once", {"part": "Hessian norms"}, device, budget)
    for row, images in zip(rows, (len(x), len(x[:8])), strict=True):
        row["seconds_per_image"] = row["seconds"] / images
        say(row)
    return rows


def compare(
    works: dict[str, Callable[[], object]], reference: str, about: dict[str, Any], device: torch.device,
    budget: Budget,
) -> Rows:  # fmt: skip
    """Time ways in turns."""
    for work in works.values():
        work()
    times = in_turns(works, ROUNDS, device, budget)
    rows = [{**about, "way": way, **speed(times, way, reference)} for way in works]
    for row in rows:
        say(row)
    return rows


def main() -> None:
    """Run every part that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--limit", type=float, default=480, help="no round begins after so many seconds")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the code")
    parser.add_argument("--output", type=Path, default=RESULTS / "on_gpu.json")
    arguments = parser.parse_args()
    device, tiny, budget = arguments.device, arguments.tiny, Budget(arguments.limit)

    def step(case: str) -> Callable[[], Rows]:
        return lambda: measure_step(case, ROUNDS, budget, device, COMPARED[:2])

    parts = {f"TRS step, {case}": step(case) for case in (TINY_STEPS if tiny else STEPS)}
    parts["attacks"] = lambda: attacks(device, budget, tiny=tiny)
    parts["Hessian norms"] = lambda: hessians(device, budget, tiny=tiny)
    done: dict[str, Rows] = {}
    for name, part in parts.items():
        if not budget.spent:
            done[name] = part()
        left_out = [name for name in parts if name not in done]
        found = {
            "members": MEMBERS,
            "peak_memory_bytes": peak_memory(device),
            "left_out": left_out,
            "parts": done,
        }
        record(arguments.output, SCHEMA, found, device=device)


if __name__ == "__main__":
    main()
