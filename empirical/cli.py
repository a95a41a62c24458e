"""The console commands `bound-vs-empirical` and `train-ensemble`; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from empirical.config import TrainingConfig
    from empirical.distributed import Workers

METHODS = ("vanilla", "cos-l2", "trs", "certified")
RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
ATTACKS = ("pgd", "joint")


def bound_vs_empirical(arguments: list[str] | None = None) -> int:
    """Entry point of `bound-vs-empirical`; returns the exit status."""
    return guarded(_bound_vs_empirical, bound_parser().parse_args(arguments), "the same command")


def train_ensemble(arguments: list[str] | None = None) -> int:
    """Entry point of `train-ensemble`; returns the exit status."""
    return guarded(_train_ensemble, train_parser().parse_args(arguments), "the same command with --resume")


def guarded(
    command: Callable[[argparse.Namespace], int], options: argparse.Namespace, how_to_go_on: str
) -> int:
    """Run a command; what the user can mend becomes one line and exit status 2, not a traceback."""
    try:
        return command(options)
    except (ValueError, OSError) as error:
        kept = f"; {how_to_go_on} goes on from there" if isinstance(error, ConnectionError) else ""
        print(f"error: {' '.join(str(error).split())}{kept}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was finished is kept: {how_to_go_on} goes on from there", file=sys.stderr)
        return 130


def bound_parser() -> argparse.ArgumentParser:
    """What `bound-vs-empirical` takes."""
    parser = argparse.ArgumentParser(
        prog="bound-vs-empirical",
        description="Train ensembles (or take checkpoints), measure every quantity of Theorems 1-4 of the "
        "TRS paper on held-out points, evaluate the theorems, attack, and show predicted beside measured "
        "transfer: tables, figures, results.json and a report that opens in any browser.",
        epilog="Called again with the same options, it reuses what is finished. Exit status: 0 fine, 1 a "
        "guaranteed bound was violated, 2 bad input.",
    )
    _add_data_options(parser, "digits")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=None,
        metavar="METHOD",
        help=f"training methods; an unknown one lists all (default: {' '.join(METHODS)})",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="compare these trained ensembles (.safetensors) instead of training, on the data set they name",
    )
    parser.add_argument(
        "--eps",
        nargs="+",
        type=float,
        default=list(RADII),
        metavar="RADIUS",
        help="l2 radii of the transfer attacks (default: %(default)s)",
    )
    parser.add_argument(
        "--linf-eps",
        nargs="+",
        type=float,
        default=[],
        metavar="RADIUS",
        help="linf radii of the transfer attacks (default: none)",
    )
    parser.add_argument(
        "--attacks",
        nargs="+",
        default=list(ATTACKS),
        metavar="ATTACK",
        help="transfer attacks: pgd, apgd and mim on each member, joint on several at once, or one that a "
        f"--plugin registers (default: {' '.join(ATTACKS)})",
    )
    parser.add_argument(
        "--target-label",
        type=int,
        default=0,
        metavar="LABEL",
        help="label y_t of the targeted attacks (default: 0)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=500,
        metavar="N",
        help="use at most N held-out points, drawn by a fixed seed (default: 500)",
    )
    parser.add_argument(
        "--support",
        choices=("finite", "population"),
        default="finite",
        help="what claims are about: the evaluated points, or their population (default: finite)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="confidence of statistical intervals (default: 0.95)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: below runs/)",
    )
    return parser


def train_parser() -> argparse.ArgumentParser:
    """What `train-ensemble` takes."""
    parser = argparse.ArgumentParser(
        prog="train-ensemble",
        description="Train an ensemble with a method of the TRS paper and save it as a checkpoint "
        "(safetensors and a JSON sidecar).",
        epilog="An interrupted run goes on with --resume and ends in the weights of an uninterrupted one.",
    )
    parser.add_argument(
        "--preset",
        default="digits-trs",
        help="training recipe, DATA-METHOD (default: digits-trs); an unknown one lists all",
    )
    _add_data_options(parser, "the preset's")
    parser.add_argument("--members", type=int, help="number of members N >= 2")
    parser.add_argument("--architecture", help="linear, mlp, lenet or resnetD with D = 6n + 2")
    parser.add_argument(
        "--activation",
        help="relu, leaky_relu(S), softplus, softplus(B), tanh, gelu or silu; without relu beta is finite",
    )
    parser.add_argument("--batch-size", type=int, help="samples per step")
    parser.add_argument("--lr", type=float, help="learning rate (under a one-cycle schedule the largest)")
    parser.add_argument("--lambda-a", type=float, help="weight of the similarity term")
    parser.add_argument("--lambda-b", type=float, help="weight of the smoothness term")
    parser.add_argument(
        "--search",
        choices=("pair", "joint"),
        help="search of support points: per pair of members, as in the paper, or one for all members",
    )
    parser.add_argument(
        "--mixed-precision", action="store_true", help="run the members' forward passes in bfloat16"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="checkpoint to write (default: runs/DATA-METHOD-seedSEED.safetensors)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last saved epoch of this output"
    )
    return parser


def _add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--data", help=f"data set; an unknown name lists all (default: {default})")
    parser.add_argument(
        "--data-root", default="data", metavar="FOLDER",
        help="where torchvision's files, or plain IDX(.gz) files, lie (default: data)",
    )  # fmt: skip
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is missing")
    parser.add_argument(
        "--epochs", type=int,
        help="passes over the training points, for boosting of each member and for dverge of each of its two "
        "stages; milestones of the learning rate are scaled along (default: the preset's)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of training and attacks (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    add_plugin_option(parser)


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Let a command take files that register what the user brings along."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="Python file of yours that registers a method, an attack or a data set; may be repeated",
    )


def _bound_vs_empirical(options: argparse.Namespace) -> int:
    from empirical.distributed import joined
    from empirical.training import find_device

    with joined(find_device(options.device)) as workers:
        return _compared(options, workers)


def _compared(options: argparse.Namespace, workers: Workers) -> int:
    from tqdm import tqdm

    from empirical.comparison import pipeline
    from empirical.comparison.compare import check_radii, check_target
    from empirical.comparison.results import Settings
    from empirical.data import load_dataset
    from empirical.plugins import load_plugins
    from empirical.rates import check_statistics
    from empirical.report import summary

    load_plugins(options.plugin)
    # Everything that can be wrong is looked at before the first long step.
    check_radii([*options.eps, *options.linf_eps])
    attacks = pipeline.describe_attacks(options.attacks, options.seed)
    if options.checkpoint:
        _refuse_with_checkpoints(options)
        trained = [pipeline.load_trained(path, options.device) for path in options.checkpoint]
        name = pipeline.common_dataset(trained)
        run = f"compare-{'-'.join(each.name for each in trained)}"
    else:
        trained, name, run = [], options.data or "digits", options.data or "digits"
        configs = _recipes(name, options)
    data = workers.first_alone(
        lambda: load_dataset(name, data_root=options.data_root, download=options.download)
    )
    check_target(options.target_label, data.classes)
    check_statistics(options.support, options.confidence)
    settings = Settings(
        dataset=name,
        samples=len(pipeline.draw_points(data.test, options.samples)),
        classes=data.classes,
        eps=tuple(sorted(set(options.eps))),
        linf_eps=tuple(sorted(set(options.linf_eps))),
        target_label=options.target_label,
        attacks=attacks,
        robust_eps=pipeline.ROBUST_RADII,
        support=options.support,
        confidence=options.confidence,
        seed=options.seed,
    )
    folder = options.output or Path("runs") / f"{run}-seed{options.seed}"
    workers.check_enough(settings.samples)
    pipeline.check_folder(folder, settings)

    if not options.checkpoint:
        shown = sys.stderr.isatty() and workers.first
        trained = pipeline.train_all(configs, data, folder, progress=shown, workers=workers)
    steps = len(trained) * (2 * len(settings.eps + settings.linf_eps) + 1)
    with tqdm(total=steps, disable=None if workers.first else True, desc="comparing", unit="part") as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        comparison = pipeline.run_comparison(
            trained, data, settings, folder, progress=report, workers=workers
        )
    if not workers.first:
        return 0
    if options.json:
        print(json.dumps(comparison.to_json(), allow_nan=False))
    else:
        print(comparison)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    return 1 if summary.verdict_counts(comparison)["violated"] else 0


def _recipes(name: str, options: argparse.Namespace) -> dict[str, TrainingConfig]:
    """The preset of each method on a data set: our small recipe, else the paper's, else that of digits.

    A set that a plug-in registered has neither; the network of digits takes samples of any shape.
    """
    from empirical.objectives import OBJECTIVES
    from empirical.presets import PRESETS, preset

    methods = options.methods or METHODS
    for method in methods:
        if method not in OBJECTIVES:
            raise ValueError(f"expected methods among {', '.join(OBJECTIVES)}, got {method!r}")
    base = next(base for base in (name, f"paper-{name}", "digits") if f"{base}-vanilla" in PRESETS)
    configs = {method: replace(preset(base, method), dataset=name) for method in methods}
    return {method: _configured(config, options, ("epochs",)) for method, config in configs.items()}


def _refuse_with_checkpoints(options: argparse.Namespace) -> None:
    for name in ("data", "methods", "epochs"):
        if getattr(options, name) is not None:
            raise ValueError(f"expected no --{name} beside --checkpoint, which skips training, got one")


def _train_ensemble(options: argparse.Namespace) -> int:
    from empirical.distributed import joined
    from empirical.training import find_device

    with joined(find_device(options.device)) as workers:
        return _trained(options, workers)


def _trained(options: argparse.Namespace, workers: Workers) -> int:
    from empirical.data import load_dataset
    from empirical.plugins import load_plugins
    from empirical.presets import named_preset
    from empirical.training import state_path, train

    load_plugins(options.plugin)
    changes = ("members", "epochs", "batch_size", "lr")
    config = _configured(named_preset(options.preset), options, changes)
    config = replace(config, mixed_precision=options.mixed_precision, data_root=options.data_root)
    model = {
        name: getattr(options, name) for name in ("architecture", "activation") if getattr(options, name)
    }
    config = replace(config, model=replace(config.model, **model))
    config = replace(config, objective=_reweighted(config.objective, options))
    if options.data:
        config = replace(config, dataset=options.data)
    run = f"{config.dataset}-{config.objective.name}-seed{options.seed}"
    output = options.output or Path("runs") / f"{run}.safetensors"
    if workers.first and not options.resume and state_path(output).exists():
        raise ValueError(f"found an earlier run at {output}: give --resume to go on, or another --output")
    data = workers.first_alone(
        lambda: load_dataset(config.dataset, data_root=options.data_root, download=options.download)
    )
    train(config, data=data, output=output, resume=options.resume, progress=sys.stderr.isatty())
    if not workers.first:
        return 0
    metadata = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["metadata"]
    accuracy = metadata["metrics"]["test_accuracy"]
    if options.json:
        print(json.dumps({"checkpoint": str(output), **metadata}, allow_nan=False))
    else:
        weakest, members = accuracy["weakest"], ", ".join(f"{value:.4f}" for value in accuracy["members"])
        print(f"test accuracy: ensemble {accuracy['ensemble']:.4f}, weakest {weakest:.4f} of {members}")
        print(f"checkpoint: {output}")
    return 0


def _configured(
    config: TrainingConfig, options: argparse.Namespace, names: tuple[str, ...]
) -> TrainingConfig:
    """A preset with the seed, the device and whatever else the command line gives."""
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    epochs = given.pop("epochs", config.epochs)
    rescaled = config.with_epochs(epochs)
    if rescaled.milestones != config.milestones:
        before, after = (", ".join(map(str, each.milestones)) or "none" for each in (config, rescaled))
        print(
            f"learning rate of {config.objective.name} falls after epochs {after} of {epochs}, "
            f"scaled from {before} of {config.epochs}",
            file=sys.stderr,
        )
    return replace(rescaled, seed=options.seed, device=options.device, **given)


def _reweighted(objective: Any, options: argparse.Namespace) -> Any:
    """The objective with the parameters given on the command line.

    Raises:
        ValueError: If the method has no such parameter.
    """
    given = {name: getattr(options, name) for name in ("lambda_a", "lambda_b", "search")}
    given = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in fields(objective)}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"expected parameters of {objective.name} among {', '.join(sorted(known)) or 'none'}, "
            f"got {', '.join(unknown)}"
        )
    return replace(objective, **given)
