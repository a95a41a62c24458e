"""Time per-sample Hessian norms, and compare them with public Hessian libraries called once per sample.

    python benchmarks/hessian_norms.py [--samples 10000] [--output benchmarks/results/hessian_norms.json]

The comparison needs `pip install curvlinops-for-pytorch pyhessian`; a library that is missing is left out
and named. Both work on parameters, so the input becomes one: a module whose only parameter is the input,
around a network whose weights are frozen. Each library is called on one sample at a time, as its interface
has it: PyHessian's power iteration to a tolerance of 1e-4 (the loosest power of ten at which it was within
1 % of ours), curvlinops' Hessian operator under scipy's Lanczos (eigsh) to 1e-3. They get our cross-entropy:
with torch's, which loses p - e_y to rounding in float32, some of their norms were off by more than half.
Medians over repetitions; processor time is what to compare on a busy machine. "wrong" labels are y + 1:
there the spectrum has two sides, and power iteration is slow.
Models are LeNets and MLPs for 28x28 images, trained for a few epochs on 4,000 handwritten digits;
the full run goes through the 5,000 digits again where more samples are asked for.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, is_installed, record, say
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from estimators import cross_entropy, hessian_norms

SCHEMA = 1
REPETITIONS = 3
LOOPED = 20
CHECKED = 200


class InputAsParameter(nn.Module):
    """A frozen network whose only parameter is one input (1, *shape)."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.network = [model]  # in a list, so that its weights are no parameters of this module
        self.point = nn.Parameter(x.clone())

    def forward(self, _: Tensor) -> Tensor:
        """Logits (1, K) at the input that this module holds."""
        return self.network[0](self.point)


class MeanCrossEntropy(nn.CrossEntropyLoss):
    """Our cross-entropy with the interface that the libraries expect."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over samples."""
        return cross_entropy(logits, labels).mean()


def by_pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Norms (n,) by PyHessian's power iteration, one sample at a time."""
    from pyhessian import hessian

    norms = []
    for point, label in zip(x, y, strict=True):
        held = InputAsParameter(model, point[None])
        found = hessian(held, MeanCrossEntropy(), data=(point[None], label[None]), cuda=False)
        norms.append(abs(found.eigenvalues(maxIter=100, tol=1e-4)[0][0]))
    return torch.tensor(norms)


def by_curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Norms (n,) by curvlinops' Hessian operator under eigsh, one sample at a time."""
    from curvlinops import HessianLinearOperator

    norms = []
    for point, label in zip(x, y, strict=True):
        held = InputAsParameter(model, point[None])
        operator = HessianLinearOperator(
            held, MeanCrossEntropy(), list(held.parameters()), [(point[None], label[None])],
            check_deterministic=False,
        )  # fmt: skip
        values = eigsh(operator.to_scipy(), k=1, which="LM", tol=1e-3, return_eigenvectors=False)
        norms.append(float(abs(values[0])))
    return torch.tensor(norms)


LIBRARIES = {"pyhessian": by_pyhessian, "curvlinops-for-pytorch": by_curvlinops}


def timed(function: Callable[[], Any], repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median wall and processor time of a call, after one call that is not counted."""
    function()
    wall, processor = [], []
    for _ in range(repetitions):
        start = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return {"wall_seconds": statistics.median(wall), "cpu_seconds": statistics.median(processor)}


def trained(architecture: str, activation: str, seed: int) -> nn.Module:
    """A classifier of the digits, good enough to have the curvature of a trained one."""
    digits = load_dataset("mnist5k").train
    torch.manual_seed(seed)
    model = build_model(ModelConfig(architecture, activation), shape=(1, 28, 28), classes=10)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(5):
        for rows in torch.randperm(len(digits)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(digits.x[rows]), digits.y[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def accuracy(name: str, model: nn.Module, x: Tensor, y: Tensor, labels: str) -> dict[str, Any]:
    """Relative error in float32 against 100 products in float64, and the cost, over some samples."""
    found = hessian_norms(model, cross_entropy, x, y).double()
    double = copy.deepcopy(model).double()
    truth = hessian_norms(double, cross_entropy, x.double(), y, iterations=100, tolerance=0)
    error = (found - truth).abs() / truth
    return {
        "case": "relative error against 100 products in float64", "model": name, "labels": labels,
        "samples": len(x), "median": float(error.median()), "largest": float(error.max()),
        "above_one_percent": int((error > 0.01).sum()),
    }  # fmt: skip


def against(library: str, name: str, model: nn.Module, x: Tensor, y: Tensor, labels: str) -> dict[str, Any]:
    """Seconds per sample of a loop of a library over single samples, and of ours for a batch."""
    loop = LIBRARIES[library]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        looped = timed(lambda: loop(model, x[:LOOPED], y[:LOOPED]))
        theirs = loop(model, x[:LOOPED], y[:LOOPED]).double()
    batched = timed(lambda: hessian_norms(model, cross_entropy, x, y))
    ours = hessian_norms(model, cross_entropy, x[:LOOPED], y[:LOOPED]).double()
    return {
        "case": f"against a loop of {library} over single samples", "model": name, "labels": labels,
        "version": importlib.metadata.version(library), "samples": len(x), "looped_samples": LOOPED,
        "milliseconds_per_sample": 1000 * batched["cpu_seconds"] / len(x),
        "library_milliseconds_per_sample": 1000 * looped["cpu_seconds"] / LOOPED,
        "ratio_cpu": looped["cpu_seconds"] / LOOPED / (batched["cpu_seconds"] / len(x)),
        "ratio_wall": looped["wall_seconds"] / LOOPED / (batched["wall_seconds"] / len(x)),
        "largest_relative_difference": float(((ours - theirs).abs() / ours).max()),
    }  # fmt: skip


def whole(models: list[nn.Module], x: Tensor, y: Tensor) -> dict[str, Any]:
    """All members at all samples, once."""
    start = time.perf_counter(), time.process_time()
    for model in models:
        hessian_norms(model, cross_entropy, x, y)
    return {
        "case": f"{len(models)} LeNets, all samples, measured once in full", "samples": len(x),
        "wall_seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1],
    }  # fmt: skip


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "hessian_norms.json"
    parser.add_argument("--samples", type=int, default=10_000, help="samples of the full run")
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    arguments = parser.parse_args()
    data = load_dataset("mnist5k")
    pool = torch.cat([data.test.x, data.train.x]), torch.cat([data.test.y, data.train.y])
    x, y = (part[:CHECKED] for part in pool)
    lenets = [trained("lenet", "softplus(5)", seed) for seed in range(3)]
    models = {"lenet": lenets[0], "mlp": trained("mlp", "softplus(5)", 0)}
    present = [library for library in LIBRARIES if is_installed(library)]
    for library in sorted(set(LIBRARIES) - set(present)):
        print(f"left out: {library} is not installed (pip install {library})")
    cases = []
    for name, model in models.items():
        for labels, kind in ((y, "own"), ((y + 1) % 10, "wrong")):
            cases.append(accuracy(name, model, x, labels, kind))
            cases += [against(library, name, model, x, labels, kind) for library in present]
    rows = torch.arange(arguments.samples) % len(pool[0])
    cases.append(whole(lenets, pool[0][rows], pool[1][rows]))
    found = {"left_out": sorted(set(LIBRARIES) - set(present)), "cases": cases}
    record(arguments.output, SCHEMA, found)
    for case in cases:
        say(case)


if __name__ == "__main__":
    main()
