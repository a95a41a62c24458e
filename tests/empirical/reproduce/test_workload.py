"""Work counted before it is done, against counts by hand."""

from empirical.reproduce.cli import reproduce
from empirical.reproduce.items import ITEMS
from empirical.reproduce.plan import make_plans
from empirical.reproduce.queue import Store
from empirical.reproduce.scales import choose_settings
from empirical.reproduce.workload import workload_table


def table(store, *names):
    plans = make_plans([ITEMS[name] for name in names], choose_settings("paper", None), 1)
    cells = {cell.key: cell for plan in plans for cell in plan.cells}
    return {line[0]: line[1:] for line in workload_table(tuple(cells.values()), store).rows}, cells


def test_black_box_of_the_paper(tmp_path):
    """Table 5: 120 epochs but for ADP, DVERGE twice; attacks on 16 members, 6 times 50 steps, 7 radii."""
    lines, _ = table(Store(tmp_path), "table-5")
    assert lines["ensemble"] == ("8", "0", f"{3 * 120 + 3 * 120 + 40 + 2 * 120:,}", "0")
    assert lines["black-box"] == ("7", "0", "0", f"{7 * 6 * 50 * (3 + 5 + 8):,}")


def test_white_box_of_the_paper(tmp_path):
    """Table 3 on MNIST and CIFAR-10: 4 methods, 4 radii, 1550 steps from 5 starts, 3 members."""
    lines, _ = table(Store(tmp_path), "table-3")
    assert lines["white-box"] == ("48", "0", "0", f"{4 * 4 * 1550 * 5 * 3:,}")


def test_finished_cells_are_no_work(tmp_path):
    store = Store(tmp_path)
    _, cells = table(store, "figure-4")
    for cell in cells.values():
        store.save(cell, {"result": {}, "seconds": {}, "environment": {}})
    lines, _ = table(store, "figure-4")
    assert lines["transfer"][1:] == ("14", "0", "0")
    assert lines["ensemble"][1:] == ("14", "0", "0")


def test_the_command_counts_without_data(tmp_path, capsys):
    """Nothing is read, trained or written beside the empty folders."""
    arguments = ["all", "--scale", "paper", "--data-root", "/nowhere", "--output", str(tmp_path), "--plan"]
    assert reproduce(arguments) == 0
    printed = capsys.readouterr().out
    assert "epochs left" in printed
    assert "24,360" in printed
    assert not list((tmp_path / "cells").iterdir())
