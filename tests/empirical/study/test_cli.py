"""The command, from training to the page, at the scale that only tells whether everything runs."""

import json

import pytest

from empirical.study import cli
from empirical.study.cli import study_ensembles
from empirical.study.plan import PLANS
from empirical.study.result import load_study


def test_the_scales_of_the_command_are_those_of_the_plans():
    assert set(cli.SCALES) == set(PLANS)


def test_a_scale_that_is_not_there_is_bad_input(capsys):
    with pytest.raises(SystemExit) as stopped:
        study_ensembles(["--scale", "galactic"])
    assert stopped.value.code == 2
    assert "galactic" in capsys.readouterr().err


@pytest.mark.slow
def test_smoke_trains_measures_and_answers_and_measures_nothing_twice(tmp_path, capsys, monkeypatch):
    arguments = ["--scale", "smoke", "--output", str(tmp_path), "--device", "cpu", "--json"]
    assert study_ensembles(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    study = load_study(tmp_path / "smoke" / "study.json")
    assert study.to_json() == printed
    assert len(study.ensembles) == len(PLANS["smoke"].configs)
    assert study.evaluations > 0
    assert study.violations == []
    assert "refined-r2" in study.verdicts
    certified = study.settings["outcomes"]["certified"]
    found = study.settings["outcomes"]["found"]
    assert (study.pairs.numbers[certified] >= study.pairs.numbers[found]).all()
    # With fewer ensembles than an interval needs, nothing is answered.
    assert {claim["answer"] for claim in study.claims} == {"undecided"}

    def never(*_, **__):
        raise AssertionError("measured twice")

    monkeypatch.setattr("empirical.study.measure.compare", never)
    monkeypatch.setattr("empirical.reproduce.cells.train_all", never)
    assert study_ensembles(arguments) == 0
    assert json.loads(capsys.readouterr().out) == printed
