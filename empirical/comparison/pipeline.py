"""The main job: data, ensembles, comparison, then results, figures and the report in one folder.

What is finished is on disk at once, so an interrupted job that is called again goes on where it stopped:
trained ensembles are reused, half-trained ones resumed, compared ones not compared again.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from empirical.attacks import ATTACKS, AttackMethod, ball_attack
from empirical.attacks.joint import JointAttack
from empirical.comparison.compare import ROBUSTNESS_ATTACK, TRANSFER_ATTACKS, compare
from empirical.comparison.results import (
    Comparison,
    EnsembleResult,
    Settings,
    load_results,
    save_results,
    save_table,
)
from empirical.config import TrainingConfig
from empirical.data import Dataset, Split
from empirical.distributed import ALONE, Workers
from empirical.ensemble import Ensemble, load_checkpoint
from empirical.files import ResultsError, parse_json
from empirical.plots import save_figures
from empirical.report.page import write_report
from empirical.training import TrainingError, find_device, state_path, train

ROBUST_RADII = (0.1, 0.15)


@dataclass(frozen=True)
class Trained:
    """An ensemble with its name, its checkpoint's metadata, and a digest of both: measured once is enough."""

    name: str
    ensemble: Ensemble
    metadata: Mapping[str, Any]
    digest: str


def train_all(
    configs: Mapping[str, TrainingConfig],
    data: Dataset,
    folder: Path,
    *,
    progress: bool = True,
    workers: Workers = ALONE,
) -> list[Trained]:
    """Train an ensemble per configuration into `folder`, or take over what an earlier call left there.

    Several processes take turns: each trains whole ensembles, which works for every method and gives the
    weights of one process. They need a common folder.

    Raises:
        TrainingError: If the folder holds a run with another configuration, or a loss is not finite.
        TrainingInterrupted: On Ctrl-C; what was trained is kept.
        WorkerLost: If a process is gone.
    """
    for turn, (name, config) in enumerate(configs.items()):
        if turn % workers.size != workers.rank:
            continue
        checkpoint = folder / f"{name}.safetensors"
        resume = state_path(checkpoint).exists()
        try:
            train(config, data=data, output=checkpoint, resume=resume, progress=progress, workers=ALONE)
        except TrainingError as error:
            remedy = ": choose another --output" if resume else ""
            raise TrainingError(f"{error}{remedy}") from None
    workers.wait()
    return [load_trained(folder / f"{name}.safetensors", each.device) for name, each in configs.items()]


def load_trained(checkpoint: Path, device: str = "auto") -> Trained:
    """An ensemble from a checkpoint; its name is the file's.

    Raises:
        CheckpointError: If the file is missing, corrupt or foreign.
    """
    checkpoint = Path(checkpoint)
    ensemble, metadata = load_checkpoint(checkpoint, device=find_device(device))
    digest = parse_json(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))["digest"]
    return Trained(checkpoint.stem, ensemble, metadata, digest)


def common_dataset(trained: Sequence[Trained]) -> str:
    """The data set that all ensembles were trained on; it is the one to compare them on.

    Raises:
        ValueError: If they differ, or two ensembles have one name.
    """
    names = [each.name for each in trained]
    if len(set(names)) < len(names):
        raise ValueError(f"expected checkpoints with different file names, got {', '.join(names)}")
    datasets = {each.name: str(each.metadata.get("dataset")) for each in trained}
    if len(set(datasets.values())) != 1:
        raise ValueError(f"expected checkpoints of one data set, got {datasets}")
    return datasets[names[0]]


def check_folder(folder: Path, settings: Settings) -> None:
    """Refuse a folder that cannot take the results, before any work; it is created where it is missing.

    Raises:
        ValueError: If it is a file, or holds a comparison with other settings, which would be lost.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the output, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        earlier = load_results(folder / "results.json").settings
    except ResultsError:
        return
    if earlier != settings:
        names = [
            field.name
            for field in fields(Settings)
            if getattr(earlier, field.name) != getattr(settings, field.name)
        ]
        raise ValueError(
            f"expected the settings of the comparison in {folder}, got others ({', '.join(names)}): "
            "choose another --output"
        )


def run_comparison(
    trained: Sequence[Trained],
    data: Dataset,
    settings: Settings,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
    workers: Workers = ALONE,
) -> Comparison:
    """Compare every ensemble, saving after each; then draw the figures and write the report.

    Args:
        trained: Ensembles on one device.
        data: The set whose held-out points are used.
        settings: What to compare, and how.
        folder: Where `results.json`, `rows.csv`, `figures/` and `report.html` go.
        progress: Called with a line of text when a part begins.
        workers: The processes that share the points; they see the same folder, and the first one writes.

    Raises:
        ValueError: If a setting is not admissible, or there are fewer points than processes.
        WorkerLost: If a process is gone.
    """
    workers.check_enough(settings.samples)
    device = next(trained[0].ensemble.parameters()).device
    points = draw_points(data.test, settings.samples).to(device)
    path = folder / "results.json"
    environment = describe_environment(device)
    known = _known_results(path, settings, environment)
    done = workers.agree([(each.name, each.digest) in known for each in trained])
    results: list[EnsembleResult] = []
    for each, finished in zip(trained, done, strict=True):
        if finished:
            results.append(known[each.name, each.digest])
        else:
            with workers.sharing():
                results.append(_compare(each, points, data, settings, progress))
        comparison = Comparison(settings, environment, tuple(results))
        if workers.first:
            save_results(path, comparison)
    if workers.first:
        save_table(folder / "rows.csv", comparison)
        figures = save_figures(comparison, folder / "figures")
        write_report(comparison, figures, folder / "report.html")
    return comparison


def draw_points(split: Split, samples: int) -> Split:
    """At most so many points, drawn without replacement by a fixed seed: a set may be sorted by class.

    Raises:
        ValueError: If the number is not positive.
    """
    if samples >= len(split):
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return Split(split.x[order], split.y[order]).first(samples)


def _compare(
    trained: Trained, points: Split, data: Dataset, settings: Settings, progress: Callable[[str], None]
) -> EnsembleResult:
    result = compare(
        trained.ensemble,
        points,
        name=trained.name,
        eps=settings.eps,
        linf_eps=settings.linf_eps,
        target_label=settings.target_label,
        attacks=transfer_attacks(settings.attacks, settings.seed),
        robust_eps=settings.robust_eps,
        robust_attack=replace(ROBUSTNESS_ATTACK, seed=settings.seed),
        support=settings.support,  # type: ignore[arg-type]
        confidence=settings.confidence,
        pixel_range=data.pixel_range,
        progress=progress,
    )
    history = {name: value for name, value in trained.metadata.items() if name != "history"}
    return replace(result, provenance={**history, "digest": trained.digest})


def _known_results(
    path: Path, settings: Settings, environment: Mapping[str, Any]
) -> dict[tuple[str, str], EnsembleResult]:
    """What an earlier call measured with these settings and versions, by name and digest of the weights."""
    try:
        earlier = load_results(path)
    except ResultsError:
        return {}
    if earlier.settings != settings or earlier.environment != environment:
        return {}
    return {(result.name, result.provenance["digest"]): result for result in earlier.ensembles}


def transfer_attacks(names: Iterable[str], seed: int) -> dict[str, AttackMethod | JointAttack]:
    """The transfer attacks of these names, with a seed: ours, or registered ones with their default settings.

    Raises:
        ValueError: If a name is unknown or of an attack without a ball, or there is none.
    """
    names = tuple(names)
    chosen = {name: _transfer_attack(name, seed) for name in names}
    if not set(names) - {"joint"}:
        raise ValueError(f"expected an attack on single members, got {', '.join(names) or 'none'}")
    return chosen


def _transfer_attack(name: str, seed: int) -> AttackMethod | JointAttack:
    if name in TRANSFER_ATTACKS:
        return replace(TRANSFER_ATTACKS[name], seed=seed)
    if name not in ATTACKS:
        raise ValueError(f"expected attacks among {', '.join({**TRANSFER_ATTACKS, **ATTACKS})}, got {name!r}")
    return replace(ball_attack(name), seed=seed)  # type: ignore[type-var]


def describe_attacks(names: Iterable[str], seed: int) -> dict[str, dict[str, Any]]:
    """The transfer attacks, without norm and radius, as the settings keep them."""
    return {
        name: {**attack.to_json(), "norm": None, "eps": None}
        for name, attack in transfer_attacks(names, seed).items()
    }


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware on which numbers depend."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({hardware})",
        "threads": str(torch.get_num_threads()),
    }
