"""How tight certified smoothness is: sampled below, certified above, on trained models.

    OMP_NUM_THREADS=1 python benchmarks/certified_smoothness.py --models FOLDER [--output FILE]

Trains seven models (or takes their checkpoints from FOLDER), climbs Hessian norms from test points, and
certifies beta over the whole input space. "layerwise" is what the norms of the layers give by the chain rule
for the same model. "earlier" is what an earlier study measured on models of the same kind; its convolutional
network was another one.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, record, say
from torch import Tensor

from empirical.accuracy import evaluate
from empirical.config import TrainingConfig
from empirical.data import Dataset, load_dataset
from empirical.ensemble import Ensemble, load_checkpoint
from empirical.models import ModelConfig
from empirical.objectives import TRS
from empirical.training import train
from estimators.certified.network import Affine, Network, Pointwise, read_network
from estimators.certified.whole_space import cross_entropy_bounds, whole_space_bounds
from estimators.losses import cross_entropy
from estimators.smoothness import smoothness

SCHEMA = 1
DIGITS = TrainingConfig(dataset="digits", members=2, epochs=30, lr=5e-3, schedule="onecycle", device="cpu")
TANH = replace(DIGITS, model=ModelConfig("mlp", "tanh", (64,)))
SOFTPLUS = replace(DIGITS, model=ModelConfig("mlp", "softplus", (64,)))
LENET = replace(DIGITS, dataset="mnist5k", model=ModelConfig("lenet", "softplus"), epochs=6)
SMOOTH = TRS(lambda_a=0.0, lambda_b=0.5)

# name: (what to train, what an earlier study found below and above)
MODELS: dict[str, tuple[TrainingConfig, tuple[float, float]]] = {
    "linear": (replace(DIGITS, model=ModelConfig("linear")), (17.51, 17.89)),
    "tanh": (TANH, (218.0, 467.0)),
    "tanh, smooth term": (replace(TANH, objective=SMOOTH), (40.0, 106.0)),
    "softplus": (SOFTPLUS, (253.0, 337.0)),
    "softplus, smooth term": (replace(SOFTPLUS, objective=SMOOTH), (29.3, 56.9)),
    "convolutional": (LENET, (69.0, 39_540.0)),
    "convolutional, smooth term": (
        replace(LENET, objective=replace(SMOOTH, lambda_b=0.1), epochs=5), (18.0, 3_172.0),
    ),
}  # fmt: skip

# Where beta is climbed: in balls around test points, and from ties of two classes found without any limit.
RADIUS = 3.0
CLIMBED = 8
TIE_STEPS, TIE_RATE = 400, 0.05


def trained(config: TrainingConfig, data: Dataset, path: Path) -> Ensemble:
    """The ensemble, trained or taken from its checkpoint."""
    return load_checkpoint(path)[0] if path.exists() else train(config, data=data, output=path)


def tie_points(model: torch.nn.Module, x: Tensor, classes: int) -> Tensor:
    """Points (K(K-1)/2, *shape) that climb log(p_a p_b ||grad(z_a - z_b)||^2), one for each pair of classes.

    Where two classes share all the probability, the softmax part of the Hessian is a quarter of that gradient
    squared: the largest that it can be.
    """
    first, second = torch.triu_indices(classes, classes, 1)
    rows = torch.arange(len(first))
    points = x[rows].clone().requires_grad_()
    optimiser = torch.optim.Adam([points], TIE_RATE)
    best, highest = points.detach().clone(), torch.full((len(rows),), -math.inf, dtype=x.dtype)
    for _ in range(TIE_STEPS):
        logits = model(points)
        shares = logits.log_softmax(1)
        gap = (logits[rows, first] - logits[rows, second]).sum()
        (gradient,) = torch.autograd.grad(gap, points, create_graph=True)
        height = shares[rows, first] + shares[rows, second] + gradient.flatten(1).square().sum(1).log()
        (points.grad,) = torch.autograd.grad(-height.sum(), points)
        higher = height.detach() > highest
        best[higher], highest[higher] = points.detach()[higher], height.detach()[higher]
        optimiser.step()
    return best


def layerwise_smoothness(network: Network) -> float:
    """Beta by the chain rule from operator norms alone, for a chain of affine maps and activations.

    Bounds on ||D u|| and on the Lipschitz constant of D u go from layer to layer by products of norms; the
    last layer counts with the differences of its rows.
    """
    norm, turn = 1.0, 0.0
    for node in network.nodes[:-1]:
        if isinstance(node, Affine):
            rows = float(node.operator.row_norms.max()) * norm
            norm, turn = node.operator.norm * norm, node.operator.norm * turn
        elif isinstance(node, Pointwise):
            steepest = max(map(abs, node.curve.slope_limits))
            turn = max(map(abs, node.curve.bend_limits)) * rows * norm + steepest * turn
            norm = steepest * norm
    last = network.nodes[-1]
    assert isinstance(last, Affine)
    weight = last.operator.matrix()
    differences = torch.cdist(weight, weight)
    return float(cross_entropy_bounds(norm * differences, turn * differences)[0].max())


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Train, climb, certify."""
    config, (earlier_lower, earlier_upper) = MODELS[name]
    data = load_dataset(config.dataset)
    ensemble = trained(config, data, folder / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors")
    model = next(iter(ensemble.members)).double()
    x = data.test.x.double()
    ties = tie_points(model, x, data.classes)
    labels = torch.arange(data.classes).expand(len(x), data.classes)
    near, far = x[:CLIMBED], torch.cat([x[:CLIMBED], ties])
    lower = max(
        smoothness(model, cross_entropy, near, labels[:CLIMBED], radius=RADIUS, method="ascent").value,
        smoothness(model, cross_entropy, far, labels[: len(far)], method="hessian").value,
    )
    network = read_network(model, x[:8])
    start = time.process_time()
    bounds = whole_space_bounds(network)
    seconds = time.process_time() - start
    upper = float(bounds.smoothness.max())
    return {
        "model": name,
        "dataset": config.dataset,
        "architecture": config.model.architecture,
        "activation": None if config.model.architecture == "linear" else config.model.activation,
        "test_accuracy": evaluate(ensemble.float(), data.test).members[0],
        "sampled_lower": lower,
        "certified_upper": upper,
        "ratio": upper / lower,
        "certified_gradient": float(bounds.gradient.max()),
        "certified_bend": float(bounds.bend.max()),
        "layerwise_upper": layerwise_smoothness(network),
        "certificate_cpu_seconds": seconds,
        "earlier": {
            "sampled_lower": earlier_lower, "certified_upper": earlier_upper,
            "ratio": earlier_upper / earlier_lower,
        },
    }  # fmt: skip


def main() -> None:
    """Measure every model and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "certified_smoothness.json"
    parser.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.models.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "ascent": {"radius": RADIUS, "points": CLIMBED, "tie_steps": TIE_STEPS},
        "whole_space": [],
    }
    for name in MODELS:
        report["whole_space"].append(measure(name, arguments.models))
        say(report["whole_space"][-1])
        record(arguments.output, SCHEMA, report)


if __name__ == "__main__":
    main()
