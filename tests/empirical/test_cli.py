"""The two commands as a user runs them: one real run end to end, reuse, bad input, interrupts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from empirical import cli
from empirical.comparison import pipeline
from empirical.comparison.results import load_results
from empirical.data import load_dataset

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "--epochs", "2", "--methods", "vanilla", "trs", "--samples", "80", "--eps", "0.02", "0.3", "--linf-eps",
    "0.02",
]  # fmt: skip


def command(name, *arguments, **options):
    code = f"import sys; from empirical.cli import {name} as main; sys.exit(main())"
    # As many threads as here: results are reused only where everything that they depend on is the same.
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run(name, *arguments, **options):
    process = command(name, *arguments, **options)
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run of the main job, small, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("main job") / "a run"
    status, output, errors = run("bound_vs_empirical", *QUICK, "--output", folder)
    assert status == 0, errors
    return folder, output


@pytest.mark.slow
def test_the_main_job_leaves_results_figures_and_a_report(finished):
    folder, output = finished
    comparison = load_results(folder / "results.json")
    assert [result.name for result in comparison.ensembles] == ["vanilla", "trs"]
    for result in comparison.ensembles:
        assert result.members == 3
        # 6 ordered pairs, 3 balls, 6 untargeted and 7 targeted statements; two stand-ins for beta under PGD,
        # one under the joint attack
        assert len(result.rows) == 6 * 3 * (6 + 7) * (2 + 1)
        # 3 pairs, 2 of 3 and 3 of 3; 3 balls; 2 modes
        assert len(result.joint) == 5 * 3 * 2
        assert {row.verdict for row in result.rows} <= {
            "consistent",
            "inconclusive",
            "vacuous",
            "inapplicable",
        }
        assert 0.0 <= result.robust_accuracy(0.15).value <= result.robust_accuracy(0.1).value
        assert result.robust_accuracy(0.1).value <= result.accuracy.value
    for name in ("robust-accuracy", "eps-sweep", "slack-waterfall", "phase-diagram", "transfer-matrices"):
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "Theorem 4" in output
    assert "vanilla" in output


@pytest.mark.slow
def test_the_report_is_one_self_contained_page(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    fetched = re.findall(r'(?:src|href)="(?!#|data:|http://www\.w3\.org)([^"]*)"', page)
    assert fetched == []
    assert page.count("<svg") == 6
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.extend(value for name, value in attributes if name == "id")

    Reader().feed(page)
    assert len(seen) == len(set(seen)), "an identifier stands twice on the page"
    assert "NaN" not in page


@pytest.mark.slow
def test_a_second_call_reuses_what_is_finished(finished, capsys, monkeypatch):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    report = (folder / "report.html").read_bytes()
    monkeypatch.setattr(pipeline, "compare", None)  # would raise if anything were compared again
    assert cli.bound_vs_empirical([*QUICK, "--output", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before)
    assert (folder / "results.json").read_bytes() == before
    assert (folder / "report.html").read_bytes() == report


@pytest.mark.slow
def test_checkpoints_skip_training(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "train", None)  # would raise if anything were trained
    checkpoints = [str(finished[0] / f"{name}.safetensors") for name in ("vanilla", "trs")]
    again = [*QUICK[4 + 1 :], "--output", str(tmp_path), "--checkpoint", *checkpoints]
    assert cli.bound_vs_empirical(again) == 0
    first, second = (load_results(folder / "results.json") for folder in (finished[0], tmp_path))
    assert [result.to_json() for result in first.ensembles] == [
        result.to_json() for result in second.ensembles
    ]


@pytest.mark.slow
def test_another_configuration_in_the_same_folder_is_refused(finished, capsys):
    arguments = [*QUICK, "--output", str(finished[0])]
    arguments[1] = "3"
    assert cli.bound_vs_empirical(arguments) == 2
    assert "epochs" in one_line(capsys)


@pytest.mark.slow
def test_other_settings_never_replace_a_finished_comparison(finished, capsys):
    before = (finished[0] / "results.json").read_bytes()
    assert cli.bound_vs_empirical([*QUICK, "--target-label", "3", "--output", str(finished[0])]) == 2
    assert "target_label" in one_line(capsys)
    assert (finished[0] / "results.json").read_bytes() == before


def test_points_are_drawn_from_all_classes_of_a_sorted_set():
    split = load_dataset("blobs").test
    assert set(split.first(60).y.tolist()) == {0}
    drawn = pipeline.draw_points(split, 60)
    assert len(drawn) == 60
    assert min(drawn.y.bincount()) > 15
    assert pipeline.draw_points(split, 10**6) is split
    with pytest.raises(ValueError, match="0"):
        pipeline.draw_points(split, 0)


@pytest.mark.slow
def test_a_network_with_kinks_is_said_to_have_no_finite_beta(tmp_path, capsys):
    checkpoint = str(tmp_path / "kinked.safetensors")
    train = ["--preset", "digits-vanilla", "--members", "2", "--epochs", "1", "--activation", "relu"]
    assert cli.train_ensemble([*train, "--output", checkpoint]) == 0
    compared = [
        "--checkpoint",
        checkpoint,
        "--eps",
        "0.01",
        "--samples",
        "60",
        "--output",
        str(tmp_path / "run"),
    ]
    assert cli.bound_vs_empirical(compared) == 0
    output = capsys.readouterr().out
    assert "infinite (ReLU)" in output
    assert "beta is infinite" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_train_ensemble_saves_and_resumes(tmp_path, capsys):
    output = tmp_path / "pair.safetensors"
    arguments = ["--preset", "digits-vanilla", "--members", "2", "--epochs", "2", "--output", str(output)]
    assert cli.train_ensemble([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    accuracy = record["metrics"]["test_accuracy"]
    assert accuracy["weakest"] == min(accuracy["members"])
    assert len(accuracy["members"]) == 2
    assert cli.train_ensemble([*arguments, "--resume"]) == 0
    assert "weakest" in capsys.readouterr().out
    saved = output.read_bytes()
    assert cli.train_ensemble([*arguments, "--seed", "5"]) == 2
    assert "--resume" in one_line(capsys)
    assert output.read_bytes() == saved


def test_milestones_are_scaled_with_the_epochs_and_said(tmp_path, capsys):
    output = tmp_path / "short.safetensors"
    arguments = [
        "--preset",
        "paper-mnist-gal",
        "--data",
        "digits",
        "--architecture",
        "linear",
        "--epochs",
        "3",
    ]
    assert cli.train_ensemble([*arguments, "--output", str(output)]) == 0
    assert "of gal falls after epochs 1, 2 of 3, scaled from 40, 80 of 120" in capsys.readouterr().err
    saved = json.loads(output.with_suffix(".json").read_text())["metadata"]
    assert saved["training"]["milestones"] == [1, 2]
    rates = [record["learning_rate"] for record in saved["history"]]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5])


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_finished(tmp_path):
    arguments = ["--preset", "digits-vanilla", "--epochs", "500", "--output", tmp_path / "long.safetensors"]
    # A background job inherits an ignored SIGINT; the command is tested as a terminal would start it.
    process = command(
        "train_ensemble", *arguments, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "long.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors


BAD = {
    "unknown data set": (["--data", "nowhere"], "digits"),
    "missing data set": (["--data", "mnist", "--data-root", "nowhere", "--methods", "vanilla"], "mnist"),
    "unknown method": (["--methods", "magic"], "magic"),
    "eps zero": (["--eps", "0"], "positive"),
    "eps negative": (["--eps", "0.1", "-0.5"], "-0.5"),
    "no such class": (["--target-label", "11"], "11"),
    "no samples": (["--samples", "0"], "0"),
    "no epochs": (["--epochs", "0"], "epochs"),
    "missing checkpoint": (["--checkpoint", "nowhere.safetensors"], "nowhere"),
    "confidence": (["--confidence", "1.5"], "1.5"),
    "data beside checkpoint": (["--checkpoint", "x.safetensors", "--data", "digits"], "--data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, tmp_path, capsys, monkeypatch):
    arguments, words = BAD[case]
    monkeypatch.setattr(pipeline, "train_all", lambda *given, **named: pytest.fail("training began"))
    assert cli.bound_vs_empirical([*arguments, "--output", str(tmp_path)]) == 2
    assert words in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "digits-magic"], "digits-trs"),
        (["--preset", "digits-vanilla", "--lambda-a", "1"], "lambda_a"),
        (["--members", "1"], "members"),
        (["--activation", "sine"], "sine"),
        (["--data", "nowhere"], "nowhere"),
        (["--output", "weights.pt"], ".safetensors"),
    ],
)
def test_bad_training_input_is_one_line_and_status_2(arguments, words, capsys):
    assert cli.train_ensemble(arguments) == 2
    assert words in one_line(capsys)


def test_a_corrupt_or_foreign_checkpoint_is_one_line_and_status_2(tmp_path, capsys):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x05not a checkpoint")
    assert cli.bound_vs_empirical(["--checkpoint", str(bad), "--output", str(tmp_path)]) == 2
    assert "bad.safetensors" in one_line(capsys)


def one_line(capsys):
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors
