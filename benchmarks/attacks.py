"""Time PGD and Auto-PGD against attack libraries: same model, images, steps and radius.

    python benchmarks/attacks.py [--samples 128] [--rounds 7]

The libraries come with the extra `test`; one that is missing is left out and named. All attack in the linf
ball of radius 0.1 by cross-entropy, one random start. Ours keeps the best of all iterates and measures the
attack's health beside it. Two more ways of ours are timed: "ours, last iterate" returns what the libraries'
PGD does, and "ours, until fooled" is what robust accuracy runs. All interleave, round by round, and a ratio
is the median of the rounds' ratios in processor time; robust accuracies stand beside them, for a fast attack
that finds less is no gain.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, in_turns, is_installed, record, say, speed
from torch import Tensor, nn

from empirical.attacks import Attack, predict, run_attack
from empirical.data import load_dataset
from empirical.models import ModelConfig, build_model

SCHEMA = 2
EPS = 0.1
STEPS = 20
MODELS = {"mlp": ModelConfig("mlp", "relu", (128, 128)), "lenet": ModelConfig("lenet", "relu"),
          "resnet8": ModelConfig("resnet8", "relu")}  # fmt: skip

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


def ours(method: str, on_failure: str = "best") -> Run:
    """This project's attack."""
    step_size = EPS / 5 if method == "pgd" else None
    attack = Attack(method, "linf", EPS, STEPS, step_size, on_failure=on_failure)
    return lambda model, x, y: run_attack(model, x, y, attack).x_adv


def by_torchattacks(method: str) -> Run:
    """The library's attack of that name."""
    import torchattacks

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if method == "pgd":
            attack = torchattacks.PGD(model, eps=EPS, alpha=EPS / 5, steps=STEPS)
        else:
            attack = torchattacks.APGD(model, eps=EPS, steps=STEPS, loss="ce")
        found: Tensor = attack(x, y)
        return found

    return run


def by_foolbox(method: str) -> Run:
    """The library's PGD; it has no Auto-PGD."""
    import foolbox

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 5, steps=STEPS, random_start=True)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        found: Tensor = attack(wrapped, x, y, epsilons=EPS)[1]
        return found

    return run


def by_art(method: str) -> Run:
    """The Adversarial Robustness Toolbox: its attacks take and return numpy arrays."""
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
        )
        common = {"norm": "inf", "eps": EPS, "max_iter": STEPS, "batch_size": len(x), "verbose": False}
        if method == "pgd":
            attack = ProjectedGradientDescentPyTorch(wrapped, eps_step=EPS / 5, num_random_init=1, **common)
        else:
            attack = AutoProjectedGradientDescent(
                wrapped, eps_step=2 * EPS, nb_random_init=1, loss_type="cross_entropy", **common
            )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return run


LIBRARIES = {
    "torchattacks": (by_torchattacks, ("pgd", "apgd")),
    "foolbox": (by_foolbox, ("pgd",)),
    "adversarial-robustness-toolbox": (by_art, ("pgd", "apgd")),
}


def trained(name: str) -> nn.Module:
    """A classifier of the 5,000 handwritten digits, after one epoch."""
    digits = load_dataset("mnist5k").train
    torch.manual_seed(0)
    model = build_model(MODELS[name], shape=(1, 28, 28), classes=10)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for rows in torch.randperm(len(digits)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.x[rows]), digits.y[rows]).backward()
        optimizer.step()
    return model.eval()


def measure(name: str, samples: int, rounds: int, libraries: list[str]) -> list[dict[str, Any]]:
    """One record for each attack and way of computing it."""
    model, test = trained(name), load_dataset("mnist5k").test
    x, y = test.x[:samples], test.y[:samples]
    records = []
    for method in ("pgd", "apgd"):
        ways = {"ours": ours(method), "ours, until fooled": ours(method, "any")}
        ways |= {"ours, last iterate": ours(method, "last")} if method == "pgd" else {}
        ways |= {
            library: LIBRARIES[library][0](method) for library in libraries if method in LIBRARIES[library][1]
        }
        robust = {
            way: float((predict(model, run(model, x, y)) == y).float().mean()) for way, run in ways.items()
        }
        times = in_turns({way: partial(run, model, x, y) for way, run in ways.items()}, rounds)
        for way in ways:
            faster = {own: speed(times, own, way)["speedup"] for own in ways if own.startswith("ours")}
            records.append({
                "model": name, "attack": method, "way": way, "samples": samples, "steps": STEPS,
                "seconds": statistics.median(times[way]), "speedup_of": faster,
                "robust_accuracy": robust[way],
            })  # fmt: skip
            say(records[-1])
    return records


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "attacks.json")
    arguments = parser.parse_args()
    present = [library for library in LIBRARIES if is_installed(library)]
    missing = sorted(set(LIBRARIES) - set(present))
    cases = []
    for name in arguments.models:
        cases += measure(name, arguments.samples, arguments.rounds, present)
    results = {"left_out": missing, "rounds": arguments.rounds, "cases": cases}
    record(arguments.output, SCHEMA, results, *present)


if __name__ == "__main__":
    main()
