"""The command `reproduce` as a user runs it."""

import json

import pytest
import torch

from empirical.reproduce.cli import reproduce
from empirical.reproduce.items import ITEMS

TEN_MINUTES = 600  # all of it has to fit into continuous integration
FILES = {"": ("md", "csv", "json"), "figure": ("md", "csv", "json", "svg", "png")}


def test_listing_needs_nothing(capsys):
    assert reproduce(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ITEMS)
    assert "mnist5k" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected an item"),
        (["table-9"], "table-9"),
        (["table-1", "--dataset", "cifar10"], "expected a data set of scale cpu"),
        (["table-1", "--seeds", "0"], "at least one seed"),
        (["table-2", "--scale", "paper", "--data-root", "/nowhere"], "cifar10"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys, tmp_path):
    assert reproduce([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("cells/*"))


@pytest.fixture
def one_thread():
    """Networks this small are slower with two, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_everything_at_the_smallest_scale(tmp_path, capsys):
    """Every table and figure; a second call measures nothing and prints the same."""
    arguments = ["all", "deviations", "--scale", "smoke", "--output", str(tmp_path), "--json"]
    assert reproduce(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert [each["item"] for each in first] == list(ITEMS)
    assert sum(each["cpu_seconds"] for each in first) < TEN_MINUTES
    pages = tmp_path / "smoke-digits"
    for outcome in first:
        assert outcome["missing_cells"] == 0
        assert all(entry["measured"] is not None for entry in outcome["entries"])
        for ending in FILES["" if outcome["item"].startswith("table") else "figure"]:
            assert (pages / f"{outcome['item']}.{ending}").stat().st_size > 0
        assert "its numbers say nothing" in (pages / f"{outcome['item']}.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert reproduce(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == times
    assert reproduce(["table-3", "--scale", "smoke", "--output", str(tmp_path)]) == 0
    assert "69.2 / " in capsys.readouterr().out
