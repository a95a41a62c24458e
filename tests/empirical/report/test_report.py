"""The report as a page: structure, accessibility, nothing fetched, formulas rendered; and in a browser."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from bounds import STATEMENTS
from empirical.plots import save_figures
from empirical.report.mathml import mathml
from empirical.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags in order, with their attributes and text; refuses tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.tags.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.tags.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *names):
        return [element for element in self.tags if element["tag"] in names]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Where a report of two ensembles lies; what makes it is a fixture per test."""
    return tmp_path_factory.mktemp("a report") / "report.html"


@pytest.fixture
def written(report, make_comparison):
    """The report's file, written on the first use."""
    if not report.exists():
        comparison = make_comparison()
        write_report(comparison, save_figures(comparison, report.parent / "figures"), report)
    return report


@pytest.fixture
def page(written):
    """The report, parsed."""
    return Page(written.read_text(encoding="utf-8"))


def test_the_verdict_comes_first_and_headings_go_down_one_level_at_a_time(page):
    levels = [int(heading["tag"][1]) for heading in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    titles = [heading["text"] for heading in page.all("h2")]
    assert titles[:3] == ["Verdict", "The tables that matter", "Figures"]
    assert titles[-1] == "Provenance"


def test_nothing_is_fetched_and_every_link_on_the_page_leads_somewhere(written, page):
    identifiers = [element["id"] for element in page.tags if "id" in element]
    assert len(identifiers) == len(set(identifiers)), "an identifier stands twice on the page"
    targets = [
        element[name] for element in page.tags for name in ("href", "src", "xlink:href") if element.get(name)
    ]
    assert targets
    inside = [target for target in targets if not target.startswith("data:")]
    assert {target[0] for target in inside} == {"#"}
    assert {target[1:] for target in inside} <= set(identifiers)
    assert not page.all("script", "iframe", "object", "audio", "video")
    text = written.read_text(encoding="utf-8")
    assert {match for match in re.findall(r"url\(([^)]*)\)", text) if not match.startswith("#")} == set()
    assert "@import" not in text
    # Names of XML languages are no addresses.
    assert set(re.findall(r'https?://[^"\s<]*', text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://www.w3.org/1998/Math/MathML",
    }  # fmt: skip
    assert "NaN" not in text


def test_every_figure_has_words_a_caption_and_its_numbers(page):
    drawn = page.all("svg")
    assert len(drawn) == 6
    for each in drawn:
        assert each["role"] == "img"
        assert len(each["aria-label"]) > 60
    assert len(page.all("figcaption")) == 6
    assert sum(each["text"] == "The numbers in this figure" for each in page.all("summary")) == 6
    for table in page.all("table"):
        assert table["text"].strip()
    assert len(page.all("caption")) == len(page.all("table"))
    assert {cell["scope"] for cell in page.all("th")} == {"col", "row"}
    assert page.all("html")[0]["lang"] == "en"
    scrolled = [each for each in page.tags if each.get("class") == "scroll"]
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)


def test_each_statement_has_a_section_with_its_formula_and_is_linked(written, page):
    headings = {
        each["id"]: each["text"] for each in page.all("h3") if each.get("id", "").startswith("statement-")
    }
    assert headings["statement-theorem-4"] == STATEMENTS["theorem-4"].title
    linked = {each["href"] for each in page.all("a")}
    assert {f"#{identifier}" for identifier in headings} <= linked
    assert len(page.all("math")) > 3 * len(headings)
    # Formulas are rendered, no LaTeX is left.
    visible = re.sub(
        r"<style>.*?</style>|<svg.*?</svg>", "", written.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert "\\" not in visible


def test_a_violation_is_told_in_the_first_sentence(make_comparison, make_row, tmp_path):
    comparison = make_comparison(names=("a",), members=2, joint=False)
    (result,) = comparison.ensembles
    object.__setattr__(result, "rows", (*result.rows, make_row("theorem-4", measured=0.9)))
    write_report(comparison, [], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.all("li")[8]["text"].startswith("1 of ")
    assert any(each.get("class") == "verdict bad" for each in page.tags)


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_every_formula_becomes_well_formed_mathml(statement):
    formulas = [statement.latex(), *(quantity.latex for quantity in statement.quantities)]
    formulas += [statement.latex_of(each.predicate) for each in statement.checkable]
    for latex in formulas:
        root = ElementTree.fromstring(mathml(latex, "block"))
        text = "".join(root.itertext())
        assert root.tag.endswith("math")
        assert text.strip()
        assert not set(text) & set("\\{}$"), text


class Browser:
    """Headless Chromium by its debugging pipe: commands out, results and events in, all JSON."""

    # File descriptors 3 and 4 are where Chromium expects the pipe; both ends are moved out of the way first.
    LAUNCH = (
        "import fcntl, os, sys\n"
        "r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])\n"
        "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
    )

    def __init__(self, profile):
        reading, self.out = os.pipe()
        self.into, writing = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.LAUNCH, str(reading), str(writing), CHROMIUM, *options],
            pass_fds=(reading, writing), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reading)
        os.close(writing)
        self.unread, self.count, self.events = b"", 0, []
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __call__(self, method, **parameters):
        self.count += 1
        command = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.out, json.dumps(command).encode() + b"\0")
        while (message := self.read()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def read(self):
        while b"\0" not in self.unread:
            part = os.read(self.into, 1 << 20)
            assert part, "Chromium went away"
            self.unread += part
        text, _, self.unread = self.unread.partition(b"\0")
        return json.loads(text)

    def wait(self, event):
        while not any(message.get("method") == event for message in self.events):
            self.events.append(self.read())

    def evaluate(self, script):
        return self("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def browser(tmp_path):
    """A browser of its own."""
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="no Chromium is installed")
def test_a_browser_shows_it_without_errors_fits_it_and_prints_it(written, browser):
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser(f"{domain}.enable")
    for width in (400, 1280):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser("Emulation.setDeviceMetricsOverride", **screen)
        browser.events.clear()
        browser("Page.navigate", url=written.as_uri())
        browser.wait("Page.loadEventFired")
        assert browser.evaluate("innerWidth") == width
        root = "document.documentElement"
        assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), "wider than the window"
        complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        assert [each for each in browser.events if each.get("method") in complaints] == []
        requests = [each for each in browser.events if each.get("method") == "Network.requestWillBeSent"]
        asked = {each["params"]["request"]["url"] for each in requests}
        assert {url for url in asked if not url.startswith("data:")} == {written.as_uri()}
    # Formulas take room: they are laid out, not left out.
    formulas = "[...document.querySelectorAll('.formula math')]"
    assert browser.evaluate(f"Math.min(...{formulas}.map(each => each.getBoundingClientRect().height))") > 10
    printed = base64.b64decode(browser("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
