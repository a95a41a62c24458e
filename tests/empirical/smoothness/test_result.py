"""Saved studies: strict JSON there and back, a figure and tables from the data alone."""

import json
import math

import pytest

from bounds import Estimate
from empirical.files import ResultsError
from empirical.smoothness import summary
from empirical.smoothness.figure import NAME, save_bracket
from empirical.smoothness.result import (
    BALLS,
    POINTS,
    SPACE,
    MemberStudy,
    PairStudy,
    Settings,
    SmoothnessStudy,
    load_study,
    save_study,
)


def member(name, smoothness, **changes):
    fields = {
        "digest": "0", "accuracy": Estimate.proportion(9, 10), "kinks": (), "uncertified": "",
        "smoothness": smoothness, "gradient": {POINTS: Estimate.exact(1.5)}, "remainder": Estimate.exact(1.0),
        "convergence": ((1.0, 1.0), (4.0, 1.5), (8.0, 2.0)), "divergence": None, "finite_scale": (),
        "seconds": {},
    }  # fmt: skip
    return MemberStudy(name=name, **{**fields, **changes})


@pytest.fixture
def study():
    smooth = member(
        "smooth",
        {POINTS: Estimate.at_least(1.0, "seen"), BALLS: Estimate(6.0, 2.0, 6.0), SPACE: Estimate(9, 2, 9)},
    )
    kinked = member(
        "kinked", {POINTS: Estimate(math.inf, 3.0, math.inf)}, kinks=("ReLU",),
        divergence={"slope": 1.0, "quotients": [1.0, 50.0], "scales": [0.1, 0.002]},
        finite_scale=((0.1, 4.0), (0.001, 400.0)),
    )  # fmt: skip
    pair = PairStudy("smooth", "kinked", {POINTS: Estimate.exact(-0.1)}, {POINTS: Estimate(0.4, 0.4, 0.9)})
    settings = Settings(data="digits", samples=10, radius=0.1, method="ascent", certify=True, seed=0)
    return SmoothnessStudy(settings, {"torch": "none"}, (smooth, kinked), (pair,))


def test_a_study_survives_saving(study, tmp_path):
    """Infinities included, without NaN or Infinity literals."""
    path = tmp_path / "study.json"
    save_study(path, study)
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} in strict JSON"))
    assert load_study(path) == study


def test_foreign_files_are_refused(tmp_path):
    """Missing, no JSON, another schema."""
    path = tmp_path / "study.json"
    for text, message in ((None, "found nothing"), ("{", "expected JSON"), ('{"schema": 1}', "schema")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ResultsError, match=message):
            load_study(path)


def test_tables_keep_sampled_and_certified_apart(study):
    """What is unknown says so, what is infinite says so, and the ratio needs both ends."""
    rows = {row[:2]: row[2:] for row in summary.member_table(study).rows}
    assert rows["smooth", POINTS][:3] == ("1", "unknown", "-")
    assert rows["smooth", BALLS][:3] == ("2", "6", "3")
    assert rows["kinked", POINTS][:3] == ("3", "infinite", "-")
    (pair,) = summary.pair_table(study).rows
    assert pair[2] == "-0.100 .. +0.900 (seen -0.100 .. +0.400)"


def test_remarks_tell_what_is_infinite_and_why(study):
    """ReLU by name, the growth of the quotients, and how far sampling had come."""
    text = "\n".join(summary.remarks(study))
    assert "kinked: beta is infinite, the gradient jumps in ReLU" in text
    assert "at least 0.001 apart the quotients reach 400" in text
    assert "smooth: the second half of the budget raised the sampled beta by 33.3%" in text


def test_the_figure_is_drawn_from_the_file_alone(study, tmp_path):
    """Twice the same bytes; both formats."""
    save_study(tmp_path / "study.json", study)
    first = save_bracket(load_study(tmp_path / "study.json"), tmp_path / "a")
    second = save_bracket(study, tmp_path / "b")
    assert [path.name for path in first] == [f"{NAME}.svg", f"{NAME}.png"]
    assert first[0].read_bytes() == second[0].read_bytes()
    assert "data" in first[0].read_text()
