"""Set up this checkout and run it: the only thing that a fresh machine needs is Python 3.11 to 3.13.

    python3 start.py              set up, then run the main job (bound-vs-empirical) on embedded data
    python3 start.py test         set up, then lint, check types and run every test
    python3 start.py COMMAND ...  set up, then run a console command, e.g. train-ensemble --help

The set-up makes a virtual environment in `.venv` beside this file and is skipped when it is already current.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "set-up-for"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Two processes of one thread each; a file's tests share one, so that what they train is trained once.
TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile")


def set_up() -> None:
    """Create `.venv` and install the project with its test tools, unless that was done for this pyproject."""
    project = (ROOT / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(project + str(ROOT).encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print("setting up .venv (minutes the first time: PyTorch is large) ...", file=sys.stderr, flush=True)
    try:
        # --clear: a set-up that was interrupted, or a checkout that was moved, starts over.
        # The resolved interpreter: the one that runs this may live in the environment to be cleared.
        python = Path(sys.executable).resolve()
        subprocess.run([str(python), "-m", "venv", "--clear", str(VENV)], check=True)
        install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--editable", ".[test]"]
        subprocess.run(install, cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        hint = "" if PYTHON.exists() else " (on Debian and Ubuntu venv is the package python3-venv)"
        words = " ".join(map(str, error.cmd))
        raise SystemExit(f"set-up failed: {words} exited {error.returncode}{hint}") from None
    STAMP.write_text(wanted)


def commands() -> dict[str, str]:
    """The console commands and what they call, `module:function`, as pyproject.toml names them."""
    import tomllib  # Python 3.11, which `main` asks for before

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(project["project"]["scripts"])


def run(*arguments: str) -> int:
    """Run the environment's Python in the checkout and return its exit status."""
    return subprocess.run([str(PYTHON), *arguments], cwd=ROOT).returncode


def test(arguments: list[str]) -> int:
    """Lint, types, then the fast tests and the slow ones; stop at the first step that fails."""
    if arguments:
        return run("-m", "pytest", *arguments)
    steps = (
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "mypy"),
        ("-m", "pytest", "-q", *TWO_AT_ONCE, "-m", "not slow"),
        ("-m", "pytest", "-q", *TWO_AT_ONCE, "-m", "slow"),
    )
    for step in steps:
        print("+", *step[1:], file=sys.stderr, flush=True)
        if status := run(*step):
            return status
    return 0


def main(arguments: list[str]) -> int:
    """Set up and run what the command line asks for."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = sys.version.split()[0]
        raise SystemExit(f"expected Python 3.11 to 3.13, got {found}: call start.py with another one")
    command, *rest = arguments or ["bound-vs-empirical"]
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    known = commands()
    if command != "test" and command not in known:
        print(f"expected test or one of {', '.join(known)}; got {command!r}", file=sys.stderr)
        return 2
    set_up()
    if command == "test":
        return test(rest)
    module, function = known[command].split(":")
    return run("-c", f"import sys; from {module} import {function} as main; sys.exit(main())", *rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
