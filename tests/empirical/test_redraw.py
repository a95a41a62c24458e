"""`draw-figures`: from saved results to figures and a report, without models."""

import pytest

from empirical.comparison.results import save_results
from empirical.redraw import draw_figures


def test_a_saved_comparison_gives_figures_and_a_report(make_comparison, tmp_path, capsys):
    save_results(tmp_path / "results.json", make_comparison(names=("a",), members=2))
    assert draw_figures([str(tmp_path / "results.json")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "report.html") in told
    assert str(tmp_path / "figures" / "phase-diagram.png") in told
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "expected JSON"), ('{"schema": "transferbounds/comparison/0"}', "comparison/0"), ("[]", "None")],
)
def test_other_files_are_refused_before_anything_is_drawn(text, words, make_comparison, tmp_path, capsys):
    save_results(tmp_path / "results.json", make_comparison(names=("a",), members=2))
    (tmp_path / "other.json").write_text(text)
    assert draw_figures([str(tmp_path / "results.json"), str(tmp_path / "other.json")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_a_missing_file_is_named(tmp_path, capsys):
    assert draw_figures([str(tmp_path / "nowhere.json")]) == 2
    assert "nowhere.json" in capsys.readouterr().err
