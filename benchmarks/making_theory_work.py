"""How far certified training pushes the certificates: every goal of docs/making-theory-work.md, measured.

    OMP_NUM_THREADS=1 python benchmarks/making_theory_work.py --models FOLDER [--cases NAME ...]

For each case the preset is trained (or its checkpoint taken from the folder), and for each radius, norm and
group of members there is one row: the certified rate of joint fooling (R2, an upper bound for every attack in
the ball), the rate that R7 proves from the benign points alone, and, for two members or more, the rate that
the joint attack reached. Attacks may leave the pixel range here, as the certificates allow. Rates are about
the first held-out points, with support "finite". Rows of cases that are not run again stay in the file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, record

from empirical.attacks.joint import JointAttack, joint_attack
from empirical.data import Dataset, load_dataset
from empirical.ensemble import Ensemble
from empirical.files import parse_json
from empirical.presets import PRESETS
from empirical.training import evaluate, state_path, train
from estimators.certified import certify_groups, read_network

SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """A preset and where its members are measured.

    Attributes:
        preset: Name of the preset.
        samples: So many held-out points are certified and attacked; the accuracy is of all.
        l2: Radii of the l2 balls.
        linf: Radii of the linf balls.
        changes: Fields of the configuration that differ from the preset.
    """

    preset: str
    samples: int = 397
    l2: tuple[float, ...] = (0.3, 0.5)
    linf: tuple[float, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "digits, three members": Case("digits-certified", linf=(0.05,)),
    "digits, two members": Case("digits-certified", l2=(0.1, 0.3, 0.5), changes={"members": 2}),
    "digits, second seed": Case("digits-certified", changes={"members": 2, "seed": 1}),
    "digits, TRS": Case("digits-trs", linf=(0.05,)),
    "digits, three hidden layers": Case("digits-deep-certified", l2=(0.3,), changes={"members": 2}),
    "MNIST-5k, LeNet": Case("mnist5k-certified", samples=100, l2=(0.3,)),
    "Fashion-MNIST, LeNet": Case("fashion-mnist-certified", samples=100, l2=(0.3,)),
}


def members_of(case: Case, data: Dataset, path: Path) -> tuple[Ensemble, float | None]:
    """The trained ensemble, and the processor seconds that training took if all of it was done now."""
    config = replace(PRESETS[case.preset], **case.changes)
    resumed, start = state_path(path).exists(), time.process_time()
    ensemble = train(config, data=data, output=path, resume=resumed, progress=False)
    return ensemble, None if resumed else time.process_time() - start


def groups_of(members: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Members, and how many of them have to be fooled together, by what they are called in the rows."""
    everyone = tuple(range(members))
    groups = {f"member {one}": ((one,), 1) for one in everyone}
    groups |= {
        f"members {first} and {second}": ((first, second), 2) for first, second in combinations(everyone, 2)
    }
    if members > 2:
        groups |= {f"all {members}": (everyone, members), f"2 of {members}": (everyone, 2)}
    return groups


def measure(name: str, case: Case, folder: Path, data_root: Path) -> list[dict[str, Any]]:
    """One row for each norm, radius and group of members."""
    data = load_dataset(PRESETS[case.preset].dataset, data_root=data_root)
    ensemble, trained_in = members_of(
        case, data, folder / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
    )
    points = data.test.first(case.samples)
    x, y = points.x.double(), points.y
    accuracy = evaluate(ensemble, data.test)
    members = list(ensemble.double().members)
    networks, groups = [read_network(member, x) for member in members], groups_of(len(members))
    rows = []
    for norm, eps in [("l2", eps) for eps in case.l2] + [("linf", eps) for eps in case.linf]:
        start = time.process_time()
        certified = certify_groups(networks, x, y, eps, list(groups.values()), norm=norm)
        seconds = time.process_time() - start
        for (group, (chosen, together)), found in zip(groups.items(), certified, strict=True):
            reached = None
            if together > 1:
                attack = joint_attack(
                    [members[one].float() for one in chosen], points.x, y,
                    JointAttack(norm=norm, eps=eps, steps=100), together=together, pixel_range=None,
                )  # fmt: skip
                reached = float((attack.success.numpy() & found.eligible).mean())
            rate = found.rate()
            rows.append(
                {
                    "case": name, "preset": case.preset, "changes": case.changes, "norm": norm, "eps": eps,
                    "group": group, "certified": rate.upper, "proved": rate.lower, "attack": reached,
                    "weakest_accuracy": accuracy.weakest, "samples": len(y),
                    "certificate_seconds": seconds, "training_seconds": trained_in,
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        for member in members:
            member.double()
    return rows


def main() -> None:
    """Run the cases and write the results, after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "making_theory_work.json"
    parser.add_argument("--models", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, help="those to run")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder of the data sets in files"
    )
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.models.mkdir(parents=True, exist_ok=True)
    rows = parse_json(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    for name in arguments.cases:
        measured = measure(name, CASES[name], arguments.models, arguments.data_root)
        rows = [row for row in rows if row["case"] != name] + measured
        rows.sort(key=lambda row: list(CASES).index(row["case"]))
        record(arguments.output, SCHEMA, {"rows": rows})


if __name__ == "__main__":
    main()
