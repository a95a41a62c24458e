"""How tight and how quick the transfer certificates of trained networks are, in l2 and linf.

    OMP_NUM_THREADS=1 python benchmarks/transfer_certificates.py [--cases NAME ...] [--output FILE]

Two members are trained together for a margin less a multiple of its gradient's norm, with diverse gradients.
For each radius: R2 (no attack exceeds it), a joint attack by projected descent, R7 (some attack attains it),
the members' own certified errors, and processor time of one thread. Rates are over the test points named.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, record, say
from torch import Tensor, nn
from torch.nn import functional

from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model
from estimators.certified import certify_groups, read_network

SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """What is trained, on what, and the radii it is certified at."""

    dataset: str
    model: ModelConfig
    epochs: int
    batch: int
    rate: float
    penalty: float
    diversity: float
    seed: int
    points: int
    radii: tuple[tuple[str, float], ...]


_RADII = (("l2", 0.1), ("l2", 0.3), ("l2", 0.5), ("linf", 0.01), ("linf", 0.03), ("linf", 0.05))
CASES = {
    "one hidden layer": Case(
        "digits", ModelConfig("mlp", "softplus(5)", (256,)), 60, 128, 3e-3, 0.5, 0.5, 0, 397, _RADII
    ),
    "three hidden layers": Case(
        "digits", ModelConfig("mlp", "softplus(3)", (64, 64, 64)), 60, 128, 3e-3, 0.5, 0.3, 0, 397, _RADII
    ),
    "lenet 28x28": Case(
        "mnist5k", ModelConfig("lenet", "softplus(3)"), 8, 64, 1.5e-3, 0.5, 0.2, 1, 60,
        (("l2", 0.1), ("l2", 0.2), ("l2", 0.3), ("linf", 0.01)),
    ),
}  # fmt: skip


def trained(case: Case) -> list[nn.Module]:
    """Two members, in float64 and evaluation mode."""
    data = load_dataset(case.dataset).train
    torch.manual_seed(case.seed)
    members = [build_model(case.model, shape=data.x.shape[1:], classes=10) for _ in range(2)]
    steps = case.epochs * -(-len(data.x) // case.batch)
    optimiser = torch.optim.Adam([weight for one in members for weight in one.parameters()], case.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, case.rate, total_steps=steps)
    step = 0
    for _ in range(case.epochs):
        for some in torch.randperm(len(data.x)).split(case.batch):
            x, y = data.x[some].clone().requires_grad_(True), data.y[some]
            ramp = min(1.0, step / (0.3 * steps))
            loss, slopes = torch.zeros(()), []
            for member in members:
                logits = member(x)
                own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
                margin = own - logits.scatter(1, y.unsqueeze(1), -1e9).logsumexp(1)
                slope = torch.autograd.grad(margin.sum(), x, create_graph=True)[0].flatten(1)
                length = (slope.square().sum(1) + 1e-8).sqrt()
                loss = loss + functional.softplus(ramp * case.penalty * length - margin).mean()
                slopes.append(slope)
            for one, other in combinations(slopes, 2):
                loss = loss + ramp * case.diversity * functional.cosine_similarity(one, other).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
    return [member.double().eval() for member in members]


def attacked(members: list[nn.Module], x: Tensor, y: Tensor, norm: str, radius: float) -> Tensor:
    """Points (n,) for which 60 steps of projected descent of a smooth maximum of the margins fool both."""
    offset, fooled = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool)
    shape = (-1, *[1] * (x.dim() - 1))
    for step in range(60):
        offset = offset.detach().requires_grad_(True)
        margins = []
        for member in members:
            logits = member(x + offset)
            rest = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
            margins.append(logits.gather(1, y.unsqueeze(1)).squeeze(1) - rest)
        fooled |= (torch.stack(margins) < 0).all(0)
        (slope,) = torch.autograd.grad((3 * torch.stack(margins)).logsumexp(0).sum(), offset)
        pace = 0.3 * radius * max(1 - step / 60, 0.05)
        if norm == "l2":
            slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
            offset = offset.detach() - pace * slope
            size = offset.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(shape)
            offset = offset * (radius / size).clamp_max(1)
        else:
            offset = (offset.detach() - pace * slope.sign()).clamp(-radius, radius)
    return fooled


def measure(name: str, members: list[nn.Module]) -> list[dict[str, Any]]:
    """One row for each radius."""
    case = CASES[name]
    data = load_dataset(case.dataset).test.first(case.points)
    x, y = data.x.double(), data.y
    networks = [read_network(member, x) for member in members]
    with torch.no_grad():
        accuracy = [float((member(x).argmax(1) == y).double().mean()) for member in members]
    rows = []
    for norm, radius in case.radii:
        start = time.process_time()
        both, *alone = certify_groups(networks, x, y, radius, [((0, 1), 2), ((0,), 1), ((1,), 1)], norm=norm)
        seconds = time.process_time() - start
        found = attacked(members, x, y, norm, radius).numpy()
        if (found & both.certificate).any():
            raise RuntimeError(
                f"expected no attack against a certificate, got one at {name}, {norm} {radius}"
            )
        row = {
            "case": name, "points": len(x), "accuracy": accuracy, "norm": norm, "radius": radius,
            "certified_r2": both.rate().upper, "attack": float((found & both.eligible).mean()),
            "must_transfer_r7": both.rate().lower, "single": [one.rate().upper for one in alone],
            "cpu_seconds": seconds,
        }  # fmt: skip
        say(row)
        rows.append(row)
    return rows


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "transfer_certificates.json"
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, help="which networks")
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [row for name in arguments.cases for row in measure(name, trained(CASES[name]))]
    record(arguments.output, SCHEMA, {"cases": cases})


if __name__ == "__main__":
    main()
