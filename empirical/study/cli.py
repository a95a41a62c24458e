"""The console command `study-ensembles`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from empirical.cli import guarded

SCALES = ("smoke", "digits")


def study_ensembles(arguments: list[str] | None = None) -> int:
    """Entry point of `study-ensembles`; returns the exit status."""
    return guarded(_study, command_parser().parse_args(arguments), "the same command")


def command_parser() -> argparse.ArgumentParser:
    """The parser of `study-ensembles`."""
    parser = argparse.ArgumentParser(
        prog="study-ensembles",
        description="Train many ensembles, measure transfer within each beside every statement, and answer "
        "the implications that the TRS paper draws: rank correlations with bootstrap intervals over "
        "ensembles, partial correlations, effects of the loss weights.",
        epilog="Called again, it goes on where it stopped and measures nothing twice. Call it several "
        "times at once with the same options: they share the work. Exit status: 0 fine, 1 an ensemble "
        "could not be measured or a measured rate lies outside a guaranteed bound, 2 bad input.",
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="digits",
        help="digits: 145 small ensembles; smoke: five tiny ones that say nothing (default: digits)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("runs/study"), metavar="FOLDER",
        help="folder of cells and results, one for all scales (default: runs/study)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    return parser


def _study(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from empirical.comparison.pipeline import describe_environment
    from empirical.reproduce.cells import Bench, TrainingCell, with_needs
    from empirical.reproduce.queue import Store, run_cells
    from empirical.study.measure import StudyCell, merged
    from empirical.study.pages import claim_table, write_pages
    from empirical.study.plan import PLANS
    from empirical.study.result import analyse
    from empirical.training import find_device

    plan = PLANS[options.scale]
    environment = describe_environment(find_device(options.device))
    store = Store(options.output)
    bench = Bench(store.ensembles, device=options.device)
    targets = [TrainingCell(config) for config in plan.configs]
    studied = [(StudyCell(target, plan.attacked), StudyCell(target, plan.certified)) for target in targets]
    cells = with_needs([cell for both in studied for cell in both])
    with tqdm(total=len(cells), disable=None, desc="studying", unit="cell") as bar:

        def report(message: str, finished: int) -> None:
            bar.n = finished
            bar.set_postfix_str(message)

        failures = run_cells(cells, store, bench, environment, progress=report)
    for cell in cells:
        if cell.key in failures:
            print(f"not measured: {cell.label}: {failures[cell.key]}", file=sys.stderr)
    records = {}
    for both in studied:
        found = [store.load(cell)["result"] for cell in both if store.finished(cell)]
        if store.finished(both[0]):
            records[both[0].target.key] = both[0].target.config, merged(*found)
    if not records:
        return 1
    study = analyse(options.scale, plan, records, environment)
    pages = options.output / options.scale
    write_pages(study, pages)
    if options.json:
        print(json.dumps(study.to_json(), allow_nan=False))
    else:
        print(claim_table(study).to_text(), end="\n\n")
        print(f"{study.evaluations} rates beside guaranteed bounds, {len(study.violations)} outside")
    print(f"page, tables and figures: {pages}", file=sys.stderr)
    return 1 if failures or study.violations else 0
