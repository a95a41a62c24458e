"""The console command `reproduce`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from empirical.cli import add_plugin_option, guarded

SCALES = ("smoke", "cpu", "paper")


def reproduce(arguments: list[str] | None = None) -> int:
    """Entry point of `reproduce`; returns the exit status."""
    return guarded(_reproduce, command_parser().parse_args(arguments), "the same command")


def command_parser() -> argparse.ArgumentParser:
    """What `reproduce` takes."""
    parser = argparse.ArgumentParser(
        prog="reproduce",
        description="Measure tables and figures of the TRS paper anew, at a scale of your choice, beside the "
        "paper's numbers.",
        epilog="Called again, it goes on where it stopped and measures nothing twice. Call it several times "
        "at once with the same options, also from machines that share the output folder: they share the "
        "work. Exit status: 0 fine, 1 a part could not be measured, 2 bad input.",
    )
    parser.add_argument(
        "item",
        nargs="*",
        help="table-1 ... table-8, figure-3, figure-4, figure-5, the word all for these, or deviations",
    )
    parser.add_argument("--list", action="store_true", help="show what can be measured, and at which scales")
    parser.add_argument("--plan", action="store_true", help="show how much work is left, and do none of it")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="default: cpu")
    parser.add_argument(
        "--dataset", metavar="NAME",
        help="data set that stands for the paper's (default: at scale paper each itself, else digits)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="ensembles per method (default: 3, at scale smoke 1)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="NAME",
        help="further methods, each a column in every item; yours are named by a plug-in",
    )  # fmt: skip
    parser.add_argument(
        "--attacks", nargs="+", default=[], metavar="NAME",
        help="further attacks, with the fields norm, eps and seed, each a row at every radius of the "
        "white-box tables",
    )  # fmt: skip
    add_plugin_option(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reproduce"), metavar="FOLDER",
        help="folder of cells and pages, one for all scales (default: runs/reproduce)",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", default="data", metavar="FOLDER", help="where data files lie (default: data)"
    )
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from empirical.attacks import ball_attack
    from empirical.comparison.pipeline import describe_environment
    from empirical.plugins import load_plugins
    from empirical.reproduce.cells import Bench, with_needs
    from empirical.reproduce.items import choose_items
    from empirical.reproduce.pages import write_pages
    from empirical.reproduce.plan import make_plans
    from empirical.reproduce.queue import Store, run_cells
    from empirical.reproduce.scales import choose_settings
    from empirical.reproduce.tables import claim_table, collect, number_tables
    from empirical.reproduce.workload import workload_table
    from empirical.training import find_device

    if options.list:
        print(_listing())
        return 0
    if not options.item:
        raise ValueError("expected an item such as table-1, or all, or --list, got none")
    load_plugins(options.plugin)
    attacks = {name: ball_attack(name) for name in options.attacks}
    items = [item.with_own(options.methods, attacks) for item in choose_items(options.item)]
    settings = choose_settings(options.scale, options.dataset)
    plans = make_plans(items, settings, options.seeds)
    if not plans:
        raise ValueError(f"expected an item that scale {options.scale} has data for, got {options.item}")
    store = Store(options.output)
    cells = with_needs([cell for plan in plans for cell in plan.cells])
    if options.plan:
        print(workload_table(cells, store).to_text())
        return 0
    environment = describe_environment(find_device(options.device))
    bench = Bench(store.ensembles, options.data_root, options.download, options.device, sys.stderr.isatty())
    if not all(map(store.finished, cells)):
        for name in sorted({setting.dataset for plan in plans for setting in plan.settings.values()}):
            bench.data(name)  # a missing one shows before any work
    with tqdm(total=len(cells), disable=None, desc="reproducing", unit="cell") as bar:

        def report(message: str, finished: int) -> None:
            bar.n = finished
            bar.set_postfix_str(message)

        failures = run_cells(cells, store, bench, environment, progress=report)
    sets = {setting.dataset for setting in settings.values()}
    pages = options.output / (options.scale if len(sets) > 1 else f"{options.scale}-{min(sets)}")
    outcomes = [collect(plan, options.scale, store) for plan in plans]
    write_pages(outcomes, store, pages)
    if options.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], allow_nan=False))
    else:
        for outcome in outcomes:
            item = outcome.plan.item
            print(f"{item.name}: {item.title} (scale {options.scale})")
            for table in number_tables(outcome):
                print(table.to_text(), end="\n\n")
            if outcome.verdicts:
                print(claim_table(outcome).to_text(), end="\n\n")
    labels = {cell.key: cell.label for cell in cells}
    for key, reason in failures.items():
        print(f"not measured: {labels[key]}: {reason}", file=sys.stderr)
    print(f"pages: {pages}", file=sys.stderr)
    return 1 if failures else 0


def _listing() -> str:
    """Items, and what each scale has."""
    from empirical.reproduce.items import ITEMS
    from empirical.reproduce.scales import SCALES as SETTINGS

    items = [f"{item.name:10} {item.title}" for item in ITEMS.values()]
    scales = [f"{name:10} {', '.join(each.dataset for each in found)}" for name, found in SETTINGS.items()]
    return "\n".join([*items, "", "scale      data sets", *scales])
