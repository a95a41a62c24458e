"""How tight certified smoothness over l2 balls is, on the models of `certified_smoothness.py`.

    OMP_NUM_THREADS=1 python benchmarks/certified_balls.py --models FOLDER [--output FILE]

For each test point and radius: the certified bound over the Hessian norm that ascent in the same ball finds,
the width of the certified range of the cosine of the members' gradients, and processor time of one thread.
"earlier" is the median ratio that an earlier study measured on models of the same kind; its convolutional
network was another one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from certified_smoothness import MODELS, trained
from recording import RESULTS, record, say

from empirical.data import load_dataset
from estimators import cross_entropy, sampled_smoothness
from estimators.certified import ball_bounds, read_network
from estimators.certified.cosine import cosines_between

SCHEMA = 1
RADII = (0.1, 0.5, 1.0)
SAMPLES = {"convolutional": 3, "convolutional, smooth term": 3}
EARLIER: dict[str, tuple[float, float, float]] = {
    "linear": (1.15, 1.63, 1.60),
    "tanh": (2.9, 5.0, 3.9),
    "softplus": (2.1, 5.0, 4.0),
    "convolutional": (16.5, 1710.0, 525.0),
}


def measure(name: str, folder: Path) -> list[dict[str, Any]]:
    """One row for each radius."""
    config, _ = MODELS[name]
    data = load_dataset(config.dataset)
    path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
    members = [member.double().eval() for member in trained(config, data, path).members]
    count = SAMPLES.get(name, 40)
    x, y = data.test.x[:count].double(), data.test.y[:count]
    networks = [read_network(member, x) for member in members]
    rows = []
    for place, radius in enumerate(RADII):
        start = time.process_time()
        first = ball_bounds(networks[0], x, y, radius)
        seconds = (time.process_time() - start) / count
        seen = sampled_smoothness(
            members[0], cross_entropy, x, y, radius=radius, method="ascent", points=8, steps=40
        ).per_sample
        ratio = first.hessian / seen
        low, high = cosines_between(first, ball_bounds(networks[1], x, y, radius))
        row = {
            "model": name, "radius": radius, "samples": count,
            "ratio_median": float(ratio.median()), "ratio_smallest": float(ratio.min()),
            "ratio_largest": float(ratio.max()),
            "earlier_ratio_median": EARLIER[name][place] if name in EARLIER else None,
            "cosine_width_median": float((high - low).median()),
            "cosine_informative": float(((high - low) < 1).double().mean()),
            "cpu_seconds_per_sample": seconds,
        }  # fmt: skip
        say(row)
        rows.append(row)
    return rows


def main() -> None:
    """Run every model and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "certified_balls.json"
    parser.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    parser.add_argument("--skip", nargs="*", default=[], choices=MODELS, help="models to leave out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = [name for name in MODELS if name not in arguments.skip]
    cases = [row for name in kept for row in measure(name, arguments.models)]
    record(arguments.output, SCHEMA, {"left_out": arguments.skip, "cases": cases})


if __name__ == "__main__":
    main()
