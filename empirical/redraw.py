"""The console command `draw-figures`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from empirical.cli import guarded


def draw_figures(arguments: list[str] | None = None) -> int:
    """Entry point of `draw-figures`; returns the exit status."""
    return guarded(_draw, command_parser().parse_args(arguments), "the same command")


def command_parser() -> argparse.ArgumentParser:
    """The options of `draw-figures`."""
    parser = argparse.ArgumentParser(
        prog="draw-figures",
        description="Draw figures anew from saved results alone, without models and data, as SVG and PNG: "
        "of a comparison (results.json of bound-vs-empirical) all its figures and the report, of a "
        "smoothness study (study.json of estimate-smoothness) the bracket.",
        epilog="The figures of reproduce are drawn anew when it is called again. Exit status: 0 fine, 2 bad "
        "input.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="saved results")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="folder that gets figures/ and report.html, or the bracket (default: the folder of each file)",
    )  # fmt: skip
    return parser


def _draw(options: argparse.Namespace) -> int:
    from empirical.comparison.results import SCHEMA, load_results
    from empirical.files import read_results
    from empirical.plots import save_figures
    from empirical.report.page import write_report
    from empirical.smoothness import result as study
    from empirical.smoothness.figure import save_bracket

    kinds = {path: read_results(path, SCHEMA, study.SCHEMA)["schema"] for path in options.results}
    for path, kind in kinds.items():
        folder = options.output or path.parent
        if kind == SCHEMA:
            comparison = load_results(path)
            figures = save_figures(comparison, folder / "figures")
            write_report(comparison, figures, folder / "report.html")
            files = [*(figure.png for figure in figures), folder / "report.html"]
        else:
            files = save_bracket(study.load_study(path), folder)
        print("\n".join(map(str, files)), file=sys.stderr)
    return 0
