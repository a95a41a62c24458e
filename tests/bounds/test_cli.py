"""The command from the outside: tables, JSON, exit codes, and the claims that the documentation shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bounds import STATEMENTS
from bounds.cli import check_statements

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check-statements.md").read_text()
#: The page's code by the file name in its first line.
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bounds.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def written(folder: Path, name: str) -> str:
    (folder / name).write_text(BLOCKS[name])
    return str(folder / name)


def test_the_documented_claim_that_fails_fails_with_a_minimal_world(tmp_path: Path) -> None:
    """Exit 1, and one point in one dimension is what is left of the counterexample."""
    done = run("--claim", written(tmp_path, "one_gradient.py"), "--json")
    assert done.returncode == 1, done.stderr
    (finding,) = json.loads(done.stdout)["statements"]
    assert finding["outcome"] == "falsified"
    found = finding["counterexample"]
    assert found["measured"] > found["value"]
    assert found["world"]["world"]["probability"] == [1.0]
    assert len(found["world"]["perturbation"][0]) == 1


def test_the_table_shows_a_claim_with_its_counterexample(tmp_path: Path) -> None:
    """One row, then the quantities with both numbers, then the world."""
    lines = run("--claim", written(tmp_path, "one_gradient.py")).stdout.splitlines()
    assert len(lines) == 4
    assert re.match(r"one-gradient +refined .* falsified$", lines[1])
    assert re.search(r"xi_F = .*: says \S+, true is \S+", lines[2])
    assert "perturbation = " in lines[3]


def test_the_documented_claim_that_holds_survives(tmp_path: Path) -> None:
    """Exit 0, hypotheses met, and the bound approached."""
    done = run("--claim", written(tmp_path, "half.py"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"half-of-theorem-3 +repaired +\d+ +\d{3,} +\S+ +survived", done.stdout)


def test_the_documented_test_runs(tmp_path: Path) -> None:
    """The example for one's own tests works as it stands."""
    script = written(tmp_path, "in_a_test.py")
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_default_run_contradicts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Each statement meets worlds and its bound is approached; only Lemma 8 as printed falls, as it must."""
    assert check_statements(["--json"]) == 0
    findings = {row["id"]: row for row in json.loads(capsys.readouterr().out)["statements"]}
    assert set(findings) == set(STATEMENTS)
    outcomes = {name: row["outcome"] for name, row in findings.items() if row["outcome"] != "survived"}
    assert outcomes == {"lemma-8": "falsified", "theorem-1": "vacuous"}
    assert all(row["met"] >= 10 for row in findings.values())
    assert all(abs(row["slack"]) < 0.01 for name, row in findings.items() if name != "theorem-1")


def test_json_is_strict_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row carries outcome, counts, proof and scope; progress stays off standard output."""
    arguments = ["--statement", "lemma-8", "--statement", "theorem-1", "--examples", "40", "--json"]
    assert check_statements(arguments) == 0
    output = capsys.readouterr()
    report = json.loads(output.out, parse_constant=lambda text: pytest.fail(f"not strict JSON: {text}"))
    lemma, theorem = report["statements"]
    assert lemma["outcome"] == "falsified"
    assert lemma["called"] == "false as printed"
    assert lemma["counterexample"]["quantities"]["delta_norm"] == 0.0
    assert lemma["proof"]["verdict"] == "refuted"
    assert theorem["outcome"] == "vacuous"
    assert theorem["proof"]["scope"]
    assert theorem["vacuity"]["verdict"] == "proved"
    assert "2/2 theorem-1" in output.err


def test_the_table_names_the_proof_and_the_counterexample(capsys: pytest.CaptureFixture[str]) -> None:
    """What a reader sees of Lemma 8: refuted, known to be false, at delta = 0."""
    assert check_statements(["--statement", "lemma-8", "--seed", "5"]) == 0
    table = capsys.readouterr().out
    assert "falsified (known to be false); refuted by z3" in table
    assert "delta_norm = 0" in table


def test_deep_runs_the_slower_proofs(capsys: pytest.CaptureFixture[str]) -> None:
    """Lemma 5 is proved only with --deep."""
    arguments = ["--statement", "lemma-5", "--examples", "10", "--json"]
    check_statements(arguments)
    assert json.loads(capsys.readouterr().out)["statements"][0]["proof"] is None
    check_statements([*arguments, "--deep"])
    assert json.loads(capsys.readouterr().out)["statements"][0]["proof"]["verdict"] == "proved"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found none at"),
        ("x = 1\n", "to define a bounds.Statement"),
        (
            "from bounds import STATEMENTS\ntheorem = STATEMENTS['theorem-3']\n",
            "to define a bounds.Statement",
        ),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_file_without_a_claim_is_one_line_and_exit_2(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, empty, only ours, broken: each says what was expected."""
    file = tmp_path / "claim.py"
    if text is not None:
        file.write_text(text)
    assert check_statements(["--claim", str(file)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err


def test_an_unknown_id_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The id is named, and so are the known ones."""
    assert check_statements(["--statement", "theorem-99"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "theorem-99" in error
    assert "theorem-3-repaired" in error


def test_a_claim_about_unknown_quantities_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before any search."""
    code = BLOCKS["one_gradient.py"].replace(
        "quantities=(XI_F,", "quantities=(__import__('dataclasses').replace(XI_F, name='heat'), XI_F,"
    )
    (tmp_path / "claim.py").write_text(code)
    assert check_statements(["--claim", str(tmp_path / "claim.py")]) == 2
    assert "heat" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--examples", "0"], ["--examples", "many"], ["--no-such-option"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    """The argument parser's own errors."""
    with pytest.raises(SystemExit) as stopped:
        check_statements(arguments)
    assert stopped.value.code == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts, exit status and examples are in --help."""
    with pytest.raises(SystemExit) as stopped:
        check_statements(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("survived", "vacuous", "exit status", "--claim my_claim.py"))


def test_the_command_imports_nothing_heavy_until_it_runs() -> None:
    """Asking for help needs neither the solver nor the search."""
    code = "import sys, bounds.cli; print({'z3', 'hypothesis', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
