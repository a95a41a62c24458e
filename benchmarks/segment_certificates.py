"""Tightness and cost of segment certificates along the steps of attacks on really trained networks.

    OMP_NUM_THREADS=1 python benchmarks/segment_certificates.py [--output FILE] [--only NAME]

Each network is trained here, in seconds to a minute. The steps are those of 20 steps of l2 projected gradient
ascent; "excess" is the certified bound over the largest curvature on a dense grid of each step, which is a
lower bound on the truth. Times are processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, record, say
from torch import Tensor, nn
from torch.func import jvp

from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from estimators import cross_entropy
from estimators.certified.network import read_network
from estimators.certified.segment import segment_bounds

SCHEMA = 1
RADII = (0.3, 1.0)
GRID = 129
# name: data, architecture, activation, hidden widths, epochs, test samples, largest number of pieces
CASES: dict[str, tuple[str, str, str, tuple[int, ...], int, int, int]] = {
    "linear": ("digits", "linear", "tanh", (), 20, 100, 256),
    "MLP 64, tanh": ("digits", "mlp", "tanh", (64,), 20, 100, 256),
    "MLP 64, softplus(5)": ("digits", "mlp", "softplus(5)", (64,), 20, 100, 256),
    "MLP 64-64, softplus(5)": ("digits", "mlp", "softplus(5)", (64, 64), 20, 100, 256),
    "MLP 64-64-64-64, tanh": ("digits", "mlp", "tanh", (64, 64, 64, 64), 20, 100, 256),
    "LeNet, digits, softplus(5)": ("digits", "lenet", "softplus(5)", (), 15, 50, 256),
    "LeNet, digits, tanh": ("digits", "lenet", "tanh", (), 15, 50, 256),
    "LeNet, 5,000 MNIST digits, softplus(5)": ("mnist5k", "lenet", "softplus(5)", (), 4, 20, 256),
    "LeNet, 5,000 MNIST digits, tanh": ("mnist5k", "lenet", "tanh", (), 4, 20, 256),
    "ResNet-8, digits, tanh": ("digits", "resnet8", "tanh", (), 4, 8, 1024),
}


def trained(data: Any, config: ModelConfig, epochs: int) -> nn.Module:
    """A network in float64, trained by Adam on the cross-entropy."""
    torch.manual_seed(0)
    model = build_model(config, shape=data.train.x.shape[1:], classes=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.train.x[rows]), data.train.y[rows]).mean().backward()
            optimizer.step()
    return model.eval().double()


def attacked(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int = 20) -> Tensor:
    """20 steps of l2 projected gradient ascent of the loss."""
    column = (-1, *[1] * (x.dim() - 1))
    offset = torch.zeros_like(x)
    for _ in range(steps):
        offset.requires_grad_(True)
        (uphill,) = torch.autograd.grad(cross_entropy(model(x + offset), y).sum(), offset)
        length = uphill.flatten(1).norm(dim=1).reshape(column)
        moved = offset.detach() + 2.5 * radius / steps * uphill / length.clamp_min(1e-300)
        offset = moved * (radius / moved.flatten(1).norm(dim=1).reshape(column).clamp_min(radius))
    return x + offset.detach()


def dense(model: nn.Module, x: Tensor, x_end: Tensor, y: Tensor) -> Tensor:
    """Largest |phi''| over a grid of each segment, per squared length."""
    step = x_end - x
    largest = torch.zeros(len(x), dtype=x.dtype)
    ones = torch.ones_like(largest)

    def along(t: Tensor) -> Tensor:
        return cross_entropy(model(x + t.reshape(-1, *[1] * (x.dim() - 1)) * step), y)

    for share in torch.linspace(0, 1, GRID, dtype=x.dtype):
        bend = jvp(lambda t: jvp(along, (t,), (ones,))[1], (share * ones,), (ones,))[1]
        largest = torch.maximum(largest, bend.abs())
    return largest / step.flatten(1).square().sum(1)


def measure(name: str) -> list[dict[str, Any]]:
    """One network at every radius."""
    source, architecture, activation, hidden, epochs, samples, pieces = CASES[name]
    data = load_dataset(source)
    model = trained(data, ModelConfig(architecture, activation, hidden or (64,)), epochs)
    correct = (model(data.test.x.double()).argmax(1) == data.test.y).double().mean()
    x, y = data.test.x[:samples].double(), data.test.y[:samples]
    network = read_network(model, x)
    rows = []
    for radius in RADII:
        x_end = attacked(model, x, y, radius)
        start = time.process_time()
        found = segment_bounds(network, x, x_end, y, pieces=pieces)
        seconds = (time.process_time() - start) / samples
        excess = found.upper / dense(model, x, x_end, y)
        rows.append(
            {
                "network": name,
                "test_accuracy": float(correct),
                "radius": radius,
                "samples": samples,
                "excess_median": float(excess.median()),
                "excess_max": float(excess.max()),
                "excess_min": float(excess.min()),
                "pieces_mean": float(found.pieces.double().mean()),
                "pieces_max": int(found.pieces.max()),
                "cpu_seconds_per_sample": seconds,
            }
        )
        say(rows[-1])
    return rows


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "segment_certificates.json"
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    parser.add_argument("--only", choices=CASES, help="one network instead of all, printed and not written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        measure(arguments.only)
        return
    cases = [row for name in CASES for row in measure(name)]
    record(arguments.output, SCHEMA, {"grid": GRID, "cases": cases})


if __name__ == "__main__":
    main()
