"""The documentation holds: links and anchors resolve, code runs, commands exist, the reference is current."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from bounds.cli import check_statements
from empirical import attacks, cli, data, objectives, reference
from empirical.redraw import draw_figures
from empirical.reproduce.cli import reproduce
from empirical.smoothness.cli import estimate_smoothness
from empirical.study.cli import study_ensembles

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = {
    "bound-vs-empirical": cli.bound_vs_empirical,
    "train-ensemble": cli.train_ensemble,
    "estimate-smoothness": estimate_smoothness,
    "check-statements": check_statements,
    "draw-figures": draw_figures,
    "reproduce": reproduce,
    "study-ensembles": study_ensembles,
}
PARSERS = {parser.prog: parser for parser in reference.parsers()}
#: Pages whose commands are run, not only parsed.
RUNNABLE = {"extending.md", "reading-a-report.md", "your-own-model.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """A page, or the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(text: str) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`|\$[^$\n]+\$", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """What a link may point to: each heading in lower case, without punctuation, with hyphens for spaces."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken_links(path: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(prose(text_of(path))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(text_of(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name)
def test_links_resolve(path):
    assert not broken_links(path)


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One *thing*: a `b`\n[1](#one-thing-a-b) [2](#two) [3](no.md) `[4](no.md)` ![5](no.png)\n"
    )
    assert broken_links(page) == ["#two", "no.md", "no.png"]


def commands(text: str) -> list[list[str]]:
    """The calls of our commands in a page's code blocks, fenced or indented."""
    blocks = [code for language, code in FENCE.findall(text) if language != "python"]
    indented = re.findall(r"^    (.+)", FENCE.sub("", text), re.MULTILINE)
    lines = [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *indented]
    calls = (line.removeprefix("$ ").removeprefix("python3 start.py ") for line in lines)
    return [shlex.split(call, comments=True) for call in calls if call.split(" ")[0] in RUN]


def mentioned_options(text: str) -> list[tuple[str, str]]:
    """Commands with their options in running text, such as `reproduce --list`."""
    calls = [code.split() for code in re.findall(r"`([a-z-]+ [^`\n]*)`", FENCE.sub("", text))]
    return [(word[0], option) for word in calls if word[0] in RUN for option in word if option[:2] == "--"]


@pytest.mark.parametrize("path", [page for page in PAGES if page.name != "commands.md"], ids=name)
def test_commands_exist_with_their_options(path):
    """Each call is read by its own parser; what it does not know ends the process."""
    for program, *arguments in commands(text_of(path)):
        if "--help" not in arguments:
            PARSERS[program].parse_args(arguments)
    for program, option in mentioned_options(text_of(path)):
        assert option in PARSERS[program]._option_string_actions, f"{program} {option}"


def test_commands_are_found():
    text = "```sh\n$ reproduce all \\\n  --list # all\n```\n`check-statements --deep`, `reproduce`\n"
    text += "\n    train-ensemble\n"
    assert commands(text) == [["reproduce", "all", "--list"], ["train-ensemble"]]
    assert mentioned_options(text) == [("check-statements", "--deep")]


def test_the_reference_is_current():
    committed = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert committed == reference.page(), "run: python -m empirical.reference docs/commands.md"


def test_the_reference_has_every_command_and_option():
    page = reference.page()
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts.keys() == RUN.keys() == PARSERS.keys()
    for parser in PARSERS.values():
        for option in set(parser._option_string_actions) - {"-h", "--help"}:
            assert f"`{option}" in page


@contextmanager
def forgetting(folder: Path) -> Iterator[None]:
    """What is registered or imported from a folder meanwhile is unknown afterwards, as in another process."""
    registries = (objectives._METHODS, attacks.run._READERS, data._LOADERS)
    before = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, kept in zip(registries, before, strict=True):
            registry.clear()
            registry.update(kept)
        for name, module in list(sys.modules.items()):
            if str(folder) in str(getattr(module, "__file__", "")):
                del sys.modules[name]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working folder from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with forgetting(tmp_path):
        yield tmp_path


def known() -> dict[str, object]:
    """What the examples take for granted: some models and points."""
    torch.manual_seed(0)
    points = data.load_dataset("blobs").test.first(20)
    f, g, h = (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(3))
    return {"model": f, "other": g, "f": f, "g": g, "h": h, "x": points.x, "y": points.y}


def run_page(path: Path, folder: Path) -> int:
    """Run a page from top to bottom: files are written, code is executed, on runnable pages commands too."""
    module = ModuleType("example")
    vars(module).update(known())
    steps = 0
    for language, code in FENCE.findall(text_of(path)):
        file = re.match(r"# (\w+\.py)\n", code)
        if language == "python" and file:
            (folder / file[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            # Formulas of generated pages leave the numbers out.
            numbers = code.replace('"N": ...', '"N": 2').replace(": ...", ": 0.5")
            exec(compile(numbers, str(path), "exec"), vars(module))
        elif language == "sh" and path.name in RUNNABLE:
            for program, *arguments in commands(f"```sh\n{code}```"):
                with forgetting(folder):
                    assert RUN[program](arguments) == 0, f"{program} {shlex.join(arguments)}"
        else:
            continue
        steps += 1
    return steps


def takes_long(path: Path) -> bool:
    return path.name in RUNNABLE


WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", [page for page in WITH_CODE if not takes_long(page)], ids=name)
def test_code_runs(path, workplace):
    assert run_page(path, workplace)


@pytest.mark.slow
@pytest.mark.parametrize("path", [page for page in WITH_CODE if takes_long(page)], ids=name)
def test_code_and_commands_run(path, workplace):
    assert run_page(path, workplace)
