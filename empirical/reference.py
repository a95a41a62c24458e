"""The reference of the commands, from their parsers: `python -m empirical.reference docs/commands.md`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from bounds import cli as check
from empirical import cli, redraw
from empirical.files import write_text
from empirical.reproduce import cli as reproduce
from empirical.smoothness import cli as smoothness
from empirical.study import cli as study

_INTRODUCTION = """# The commands

Written from the commands themselves by `python -m empirical.reference docs/commands.md`; do not edit by hand.
With the environment active they are called by name; `python3 start.py COMMAND ...` works without. Results go
to standard output, progress and remarks to standard error. Bad input is one line there
(after the usage, where an option is misspelt) and exit status 2."""

_WIDTH = 120


def parsers() -> tuple[argparse.ArgumentParser, ...]:
    """The parser of every console command, the main job first."""
    return (
        cli.bound_parser(),
        cli.train_parser(),
        smoothness.command_parser(),
        check.command_parser(),
        redraw.command_parser(),
        reproduce.command_parser(),
        study.command_parser(),
    )


def page() -> str:
    """The whole page, Markdown."""
    found = parsers()
    listed = "\n".join(f"- [`{parser.prog}`](#{parser.prog})" for parser in found)
    return "\n\n".join([_INTRODUCTION, listed, *map(section, found)]) + "\n"


def section(parser: argparse.ArgumentParser) -> str:
    """One command: what it does, how it is called, its options, what comes back."""
    # -h is the same for all.
    actions = [action for action in parser._actions if action.dest != "help"]
    places = [action for action in actions if not action.option_strings]
    usage = " ".join([parser.prog, *map(_place, places), "[options]"])
    rows = [f"| {_cell(_name(action))} | {_cell(_help(parser, action))} |" for action in actions]
    table = "\n".join(["| option | meaning |", "| --- | --- |", *rows])
    parts = [f"## {parser.prog}", _prose(parser, parser.description), f"    {usage}", table]
    return "\n\n".join([*parts, *([_prose(parser, parser.epilog)] if parser.epilog else [])])


def _prose(parser: argparse.ArgumentParser, text: str | None) -> str:
    """Text as it stands where its lines were laid out by hand, else one paragraph."""
    if parser.formatter_class is argparse.RawDescriptionHelpFormatter:
        return f"```text\n{text}\n```"
    return textwrap.fill(text or "", _WIDTH)


def _place(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest).upper()
    return f"[{name} ...]" if action.nargs == "*" else f"{name} [{name} ...]"


def _name(action: argparse.Action) -> str:
    """An option with the kind of value that it takes, as code."""
    if not action.option_strings:
        return f"`{_place(action)}`"
    option = ", ".join(action.option_strings)
    if action.nargs == 0:
        return f"`{option}`"
    choices = f"{{{','.join(action.choices)}}}" if action.choices else None
    value = str(action.metavar or choices or action.dest.upper())
    return f"`{option} {f'{value} [{value} ...]' if action.nargs == '+' else value}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    default = action.default
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    return (action.help or "") % {**vars(action), "default": shown, "prog": parser.prog}


def _cell(text: str) -> str:
    """A bare vertical bar would end the cell."""
    return text.replace("|", r"\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to a file."""
    parser = argparse.ArgumentParser(prog="python -m empirical.reference", description=__doc__)
    parser.add_argument("file", type=Path, help="where to write")
    write_text(parser.parse_args(arguments).file, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
