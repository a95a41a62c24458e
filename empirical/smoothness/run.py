"""From files to a saved study: loads models and data, measures, saves after each model, draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from empirical.comparison.pipeline import common_dataset, describe_environment, draw_points, load_trained
from empirical.data import Split, load_dataset
from empirical.distributed import ALONE, Workers
from empirical.files import ResultsError
from empirical.smoothness.figure import save_bracket
from empirical.smoothness.measure import Subject, study_member, study_pairs, weights_digest
from empirical.smoothness.result import (
    MemberStudy,
    Settings,
    SmoothnessStudy,
    load_study,
    save_study,
)
from empirical.training import find_device
from empirical.user_model import load_user_data, load_user_model
from estimators.smoothness import Sampling


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        checkpoints: Checkpoints of ours, or with a factory the user's own weights.
        factory: `module:function` that builds the user's module, or None.
        data: Name of a data set, a safetensors file with x and y, or None for what the checkpoints name.
        data_root: Folder of data sets that are read from files.
        download: Whether a missing data set may be fetched.
        samples: Most held-out points.
        radius: l2 radius of the balls and of the attack; 0 for the points alone.
        method: How the balls are sampled.
        certify: Whether to add certified upper ends.
        seed: Of samples and starting points.
        device: auto, cpu or cuda.
    """

    checkpoints: tuple[Path, ...]
    factory: str | None
    data: str | None
    data_root: str
    download: bool
    samples: int
    radius: float
    method: Sampling
    certify: bool
    seed: int
    device: str


def run_study(
    request: Request,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
    workers: Workers = ALONE,
) -> SmoothnessStudy:
    """Measure every model; `study.json` is saved after each, the figure drawn at the end.

    Args:
        request: What to measure.
        folder: Where `study.json` and the figure go; it is created.
        progress: Called with a line of text when a part begins.
        workers: The processes that share the points; they see the same folder, and the first one writes.

    Returns:
        The study. Models that an earlier call measured with the same settings and versions are taken over.

    Raises:
        ValueError: If an option, a file, a model or the data do not fit; named in one line, before any
            measurement. Also if there are fewer points than processes.
        WorkerLost: If a process is gone.
        RuntimeError: If a sampled value leaves its certified range.
    """
    if not (request.radius >= 0 and math.isfinite(request.radius)):
        raise ValueError(f"expected a finite radius of at least 0, got {request.radius}")
    if request.samples < 1:
        raise ValueError(f"expected at least one sample, got {request.samples}")
    device = find_device(request.device)
    models, data_name = _load_models(request, device)
    data, pixel_range = workers.first_alone(lambda: _load_data(request, data_name))
    points = draw_points(data, request.samples).to(device)
    workers.check_enough(len(points))
    _check_fit(models, points)
    settings = Settings(
        data=data_name, samples=len(points), radius=request.radius, method=request.method,
        certify=request.certify, seed=request.seed,
    )  # fmt: skip
    environment = describe_environment(device)
    path = folder / "study.json"
    earlier = _earlier(path, settings, environment)
    keys = [(name, weights_digest(model)) for name, model in models]
    done = workers.agree([key in earlier for key in keys])
    folder.mkdir(parents=True, exist_ok=True)

    subjects = [Subject.of(name, model, points.x, certify=request.certify) for name, model in models]
    members: list[MemberStudy] = []
    for subject, key, finished in zip(subjects, keys, done, strict=True):
        if finished:
            members.append(earlier[key])
        else:
            with workers.sharing():
                members.append(
                    study_member(subject, points, settings, pixel_range=pixel_range, progress=progress)
                )
        study = SmoothnessStudy(settings, environment, tuple(members), ())
        if workers.first:
            save_study(path, study)
    progress("pairs")
    with workers.sharing():
        study = replace(study, pairs=study_pairs(subjects, points, settings))
    if workers.first:
        save_study(path, study)
        save_bracket(study, folder)
    return study


def _load_models(request: Request, device: torch.device) -> tuple[list[tuple[str, nn.Module]], str]:
    """Named models, and the data they are to be measured on.

    Raises:
        ValueError: If a file or the factory does not fit, names repeat, or there is no data set to take.
    """
    if request.factory is not None:
        models = [
            (path.stem, load_user_model(path, request.factory, device=device)) for path in request.checkpoints
        ]
        if request.data is None:
            raise ValueError("expected --data beside --model: your weights do not name a data set")
        data = request.data
    else:
        trained = [load_trained(path, request.device) for path in request.checkpoints]
        models = [
            (f"{each.name}/{index}", member)
            for each in trained
            for index, member in enumerate(each.ensemble.members)
        ]
        data = request.data or common_dataset(trained)
    names = [name for name, _ in models]
    if len(set(names)) < len(names):
        raise ValueError(f"expected files with different names, got {', '.join(names)}")
    return models, data


def _load_data(request: Request, name: str) -> tuple[Split, tuple[float, float] | None]:
    if name.endswith(".safetensors"):
        return load_user_data(Path(name)), None
    data = load_dataset(name, data_root=request.data_root, download=request.download)
    return data.test, data.pixel_range


def _check_fit(models: Sequence[tuple[str, nn.Module]], data: Split) -> None:
    """Refuse data that a model does not take.

    Raises:
        ValueError: If a model rejects the samples, or a label is no class of it.
    """
    for name, model in models:
        try:
            with torch.no_grad():
                logits = model(data.x[:1])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"expected data that {name} takes, got samples of shape {tuple(data.x.shape[1:])}: {reason}"
            ) from None
        if logits.dim() != 2 or int(data.y.max()) >= logits.shape[1] or int(data.y.min()) < 0:
            raise ValueError(
                f"expected labels below the {logits.shape[-1]} classes of {name}, got {int(data.y.max())}"
            )


def _earlier(path: Path, settings: Settings, environment: object) -> dict[tuple[str, str], MemberStudy]:
    """What an earlier call measured with these settings and versions, by name and digest of the weights.

    Raises:
        ValueError: If the folder holds a study with other settings, which would be lost.
    """
    try:
        study = load_study(path)
    except ResultsError:
        return {}
    if study.settings != settings:
        raise ValueError(
            f"expected the settings of the study in {path.parent}, got others: choose another --output"
        )
    if study.environment != environment:
        return {}
    return {(member.name, member.digest): member for member in study.members}
