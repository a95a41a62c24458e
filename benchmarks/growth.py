"""How time and memory grow with members N, samples M, input size d and classes K.

    python benchmarks/growth.py [--limit 600] [--output benchmarks/results/growth.json]
    python benchmarks/growth.py --draw     # the figure anew, from the results

What is measured: a TRS step (pair search, fast), PGD of 20 steps on the ensemble, Hessian norms of all
members, the transfer certificate R2 of all pairs, and all statements about one attack on all pairs, as the
comparison evaluates them. Networks are MLPs with two hidden layers of 32 softplus units and fresh weights, on
random inputs. One of the four numbers moves at a time; the others stay at their base.

Seconds are the smallest of some calls, in processor time of one thread. Memory is the largest that tensors
held at once, and the largest that numpy arrays did, added, above what was there before, in a call of its own.
An exponent is the slope of the least-squares line through the logarithms of the largest three sizes: what is
fixed weighs least there.
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import RESULTS, Budget, record, say, seconds
from torch import nn
from torch.profiler import ProfilerActivity, profile

from empirical.attacks import Attack, run_attack
from empirical.comparison.pair_rows import PairRows
from empirical.comparison.subject import Subject
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.files import parse_json
from empirical.models import ModelConfig, build_model
from empirical.objectives import TRS, Step
from estimators import cross_entropy, hessian_norms
from estimators.batching import double_copy
from estimators.certified import certify_groups, read_network
from estimators.distribution import Distribution
from estimators.points import measure_points

SCHEMA = 1
BASE = {"members": 3, "samples": 32, "inputs": 64, "classes": 10}
SIZES = {
    "members": (2, 3, 4, 6),
    "samples": (32, 64, 128, 256),
    "inputs": (16, 64, 128, 256),
    "classes": (3, 5, 10, 20),
}
SYMBOLS = {"members": "N", "samples": "M", "inputs": "d", "classes": "K"}
RADIUS = 0.05
REPETITIONS = 2
FITTED = 3


class Problem:
    """Fresh networks and random points of the sizes asked for, and the work to be measured on them."""

    def __init__(self, members: int, samples: int, inputs: int, classes: int) -> None:
        torch.manual_seed(0)
        config = ModelConfig("mlp", "softplus(5)", (32, 32))
        self.members = nn.ModuleList(
            build_model(config, shape=(inputs,), classes=classes) for _ in range(members)
        )
        self.x = torch.rand(samples, inputs)
        with torch.no_grad():  # labels that the first member agrees with: nothing is skipped as wrong
            self.y = self.members[0](self.x).argmax(1)

    def trs_step(self) -> None:
        """Loss and weight gradients."""
        loss = TRS(search="pair")(self.members.train(), self.x, self.y, Step())
        loss.total.backward(inputs=list(self.members.parameters()))

    def pgd(self) -> None:
        """Twenty steps on the mean probability of the members."""
        attack = Attack("pgd", "linf", RADIUS, 20, RADIUS / 5)
        run_attack(Ensemble(self.members).eval(), self.x, self.y, attack)

    def hessians(self) -> None:
        """One norm for each member and sample."""
        for member in self.members.eval():
            hessian_norms(member, cross_entropy, self.x, self.y)

    def certificates(self) -> None:
        """R2 of each pair, in l2, from one pass over each member."""
        networks = [read_network(member, self.x) for member in self.members.double().eval()]
        pairs = [(pair, 2) for pair in combinations(range(len(networks)), 2)]
        certify_groups(networks, self.x.double(), self.y, RADIUS, pairs, inner=False)
        self.members.float()

    def comparison(self) -> None:
        """The statements about one perturbation of each point, for each surrogate and target."""
        members, data = list(self.members.eval()), Split(self.x, self.y)
        points = measure_points(members, data.x, data.y)
        about = Distribution("finite", 0.95)
        exact = [double_copy(member) for member in members]
        subject = Subject("growth", members, exact, [None] * len(members), data, None, about)
        x_adv = (self.x + RADIUS * torch.randn_like(self.x).sign()).clamp(0, 1)
        pairs = list(permutations(range(len(members)), 2))
        PairRows(subject, points).rows("random", "linf", RADIUS, x_adv, pairs, ("remainder",))


WORK: dict[str, Callable[[Problem], None]] = {
    "TRS step": Problem.trs_step,
    "PGD": Problem.pgd,
    "Hessian norms": Problem.hessians,
    "certificates R2": Problem.certificates,
    "statements": Problem.comparison,
}


def peak_bytes(work: Callable[[], object]) -> int:
    """Most that tensors and that arrays held in a call: not less than together, for the peaks are added."""
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    changes = [
        event.nbytes() for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return int(np.cumsum([0, *changes]).max()) + arrays


def measure(name: str, axis: str, size: int) -> dict[str, Any]:
    """Time and memory of one kind of work at one size."""
    problem = Problem(**{**BASE, axis: size})

    def work() -> None:
        WORK[name](problem)

    memory = peak_bytes(work)
    return {
        "work": name, "axis": axis, "size": size, "seconds": min(seconds(work) for _ in range(REPETITIONS)),
        "peak_bytes": memory,
    }  # fmt: skip


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fitted powers of time and memory, of each kind of work along each axis."""
    fits = []
    for name in WORK:
        for axis in SIZES:
            last = [row for row in rows if row["work"] == name and row["axis"] == axis][-FITTED:]
            if len(last) == FITTED:
                sizes = np.log([row["size"] for row in last])
                slopes = {
                    what: float(np.polyfit(sizes, np.log([row[what] for row in last]), 1)[0])
                    for what in ("seconds", "peak_bytes")
                }
                fits.append({"work": name, "axis": axis, **slopes})
    return fits


def draw(results: dict[str, Any], stem: Path) -> None:
    """Time above, memory below, one column for each axis."""
    from matplotlib.figure import Figure

    from empirical.plots.style import COLOURS, MARKERS, plt, save

    def figure() -> Figure:
        made, panels = plt.subplots(2, len(SIZES), figsize=(11, 5.4), sharex="col", sharey="row")
        for column, axis in enumerate(SIZES):
            for row, (what, unit) in enumerate((("seconds", 1.0), ("peak_bytes", 1e6))):
                axes = panels[row, column]
                for name, colour, marker in zip(WORK, COLOURS, MARKERS, strict=False):
                    found = [one for one in results["cases"] if one["work"] == name and one["axis"] == axis]
                    axes.plot(
                        [one["size"] for one in found], [one[what] / unit for one in found], marker=marker,
                        color=colour, ms=4, lw=1, label=name,
                    )  # fmt: skip
                axes.set_xscale("log")
                axes.set_yscale("log")
            panels[1, column].set_xlabel(f"{axis} {SYMBOLS[axis]}")
            panels[1, column].set_xticks(SIZES[axis], [str(size) for size in SIZES[axis]])
            panels[1, column].minorticks_off()
        made.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper center", ncols=5, frameon=False)
        panels[0, 0].set_ylabel("seconds")
        panels[1, 0].set_ylabel("peak memory, MB")
        return made

    save(figure, stem, dpi=90)


def main() -> None:
    """Measure along every axis, write the results after each kind of work, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--limit", type=float, default=600, help="no measurement begins after so many seconds"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--draw", action="store_true", help="only draw what the output holds")
    arguments = parser.parse_args()
    if not arguments.draw:
        torch.set_num_threads(1)
        budget = Budget(arguments.limit)
        for name in WORK:  # what is loaded at the first call is not counted
            measure(name, "members", BASE["members"])
        rows: list[dict[str, Any]] = []
        for axis, sizes in SIZES.items():
            for name in WORK:
                for size in sizes:
                    if not budget.spent:
                        rows.append(measure(name, axis, size))
                        say(rows[-1])
                results = {
                    "base": BASE,
                    "repetitions": REPETITIONS,
                    "cases": rows,
                    "exponents": exponents(rows),
                }
                record(arguments.output, SCHEMA, results)
    draw(parse_json(arguments.output.read_text()), arguments.output.with_suffix(""))


if __name__ == "__main__":
    main()
