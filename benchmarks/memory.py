"""Peak memory of an estimation over many samples: bounded by the batch, not by their number.

    python benchmarks/memory.py [--data-root /usr/share/datasets/fashion-mnist]

Gradient norms and similarity of two LeNets, and Hessian norms of one over a part, on Fashion-MNIST's 60,000
training images; the process' own peak resident memory after each, libraries and data included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, peak_memory, record

from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from estimators import cross_entropy, gradient_norm, gradient_similarity, hessian_norms

SCHEMA = 1


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--hessians", type=int, default=5_000, help="samples of the Hessian norms")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    train = load_dataset("fashion-mnist", data_root=arguments.data_root).train
    x, y = train.x[: arguments.samples], train.y[: arguments.samples]
    torch.manual_seed(0)
    f, g = (build_model(ModelConfig("lenet", "gelu"), shape=(1, 28, 28), classes=10) for _ in range(2))
    few = slice(arguments.hessians)
    cases: dict[str, tuple[int, Callable[[], Any]]] = {
        "data and libraries": (len(x), lambda: None),
        "gradient norms, 1,000 samples": (1000, lambda: gradient_norm(f, cross_entropy, x[:1000], y[:1000])),
        "gradient norms": (len(x), lambda: gradient_norm(f, cross_entropy, x, y)),
        "similarity of two networks": (len(x), lambda: gradient_similarity(f, g, x, y)),
        "Hessian norms": (len(x[few]), lambda: hessian_norms(f, cross_entropy, x[few], y[few])),
    }
    records = []
    for name, (samples, estimate) in cases.items():
        start = time.process_time()
        estimate()
        records.append({
            "case": name, "samples": samples, "cpu_seconds": time.process_time() - start,
            "peak_bytes_so_far": peak_memory(),
        })  # fmt: skip
        print(*records[-1].values(), flush=True)
        found = {"batch_size": "the default of each estimator", "cases": records}
        record(arguments.output, SCHEMA, found)


if __name__ == "__main__":
    main()
