"""The console command `estimate-smoothness`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from empirical.cli import add_plugin_option, guarded

if TYPE_CHECKING:
    from empirical.distributed import Workers

METHODS = ("ascent", "quotient", "hessian")


def estimate_smoothness(arguments: list[str] | None = None) -> int:
    """Entry point of `estimate-smoothness`; returns the exit status."""
    return guarded(_estimate, command_parser().parse_args(arguments), "the same command")


def command_parser() -> argparse.ArgumentParser:
    """What `estimate-smoothness` takes."""
    parser = argparse.ArgumentParser(
        prog="estimate-smoothness",
        description="Bracket the smoothness beta, the gradient bound B and the gradient similarity of "
        "trained models: sampled from below, certified from above, on the data points, along the segments of "
        "an attack, in l2 balls and over the whole input space.",
        epilog="Called again with the same options it measures no model twice. "
        "Exit status: 0 fine, 2 bad input.",
    )
    parser.add_argument(
        "checkpoint", nargs="+", type=Path,
        help="ensembles of train-ensemble; with --model, safetensors files of your own weights",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODULE:FUNCTION",
        help="function without arguments that builds your torch module, (n, ...) to logits (n, K)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="NAME|FILE",
        help="data set, or a safetensors file with your x and y (default: what the checkpoint names)",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", default="data", metavar="FOLDER", help="where data files lie (default: data)"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is missing")
    parser.add_argument(
        "--samples", type=int, default=200, metavar="N", help="held-out points (default: 200)"
    )
    parser.add_argument(
        "--radius", type=float, default=0.1,
        help="l2 radius of the balls and of the attack; 0 for the points alone (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHODS, default="ascent",
        help="how the balls are sampled: ascent of Hessian norms, ascent of gradient quotients, or Hessian "
        "norms at random points (default: ascent)",
    )  # fmt: skip
    parser.add_argument(
        "--certify", action="store_true",
        help="add certified upper ends; a few seconds for an MLP, minutes for a convolutional network",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of samples and starting points (default: 0)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="run folder (default: below runs/)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    add_plugin_option(parser)
    return parser


def _estimate(options: argparse.Namespace) -> int:
    from empirical.distributed import joined
    from empirical.training import find_device

    with joined(find_device(options.device)) as workers:
        return _measured(options, workers)


def _measured(options: argparse.Namespace, workers: Workers) -> int:
    from tqdm import tqdm

    from empirical.plugins import load_plugins
    from empirical.smoothness import summary
    from empirical.smoothness.run import Request, run_study

    load_plugins(options.plugin)
    request = Request(
        checkpoints=tuple(options.checkpoint), factory=options.model, data=options.data,
        data_root=options.data_root, download=options.download, samples=options.samples,
        radius=options.radius, method=options.method, certify=options.certify, seed=options.seed,
        device=options.device,
    )  # fmt: skip
    folder = (
        options.output or Path("runs") / f"smoothness-{'-'.join(path.stem for path in options.checkpoint)}"
    )
    with tqdm(disable=None if workers.first else True, desc="measuring", unit="part") as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        study = run_study(request, folder, progress=report, workers=workers)
    if not workers.first:
        return 0
    if options.json:
        print(json.dumps(study.to_json(), allow_nan=False))
    else:
        print(summary.member_table(study).to_text(), end="\n\n")
        if study.pairs:
            print(summary.pair_table(study).to_text(), end="\n\n")
        print("\n".join(summary.remarks(study)))
    print(f"results and figure: {folder}", file=sys.stderr)
    return 0
