"""From records to answers, on ensembles that were never trained and whose numbers have known relations."""

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from empirical.config import TrainingConfig
from empirical.files import ResultsError
from empirical.study.analysis import effect
from empirical.study.claims import FAILS, HOLDS, UNDECIDED, Claim, Evidence
from empirical.study.figures import _lines
from empirical.study.measure import Record
from empirical.study.observations import Ball, Table, column, tabulate
from empirical.study.pages import claim_table, page, write_pages
from empirical.study.plan import PLANS, Plan, Protocol, penalties
from empirical.study.result import analyse, load_study, save_study

# Four blocks of the crossed design.
PLAN: Plan = replace(
    PLANS["digits"], configs=PLANS["digits"].configs[:36], attacked=Protocol(5, (0.3,)), resamples=200
)


def record(config: TrainingConfig, cosine: float, beta: float, transfer: float, certified: float) -> Record:
    """A record whose pairs all have these numbers."""
    pairs = [(f, g) for f in range(config.members) for g in range(config.members) if f < g]
    ordered = [pair[::step] for pair in pairs for step in (1, -1)]
    ball: dict[str, Any] = {"norm": "l2", "eps": 0.3, "mode": "untargeted"}
    bound = {"statement": "theorem-4", "smoothness": "remainder", "attack": "pgd", **ball}
    return {
        "accuracy": 0.97,
        "member_accuracy": [0.96] * config.members,
        "loss": [0.1] * config.members,
        "gradient": [0.5] * config.members,
        "benign": {
            "members": [
                {"gradient_norm": 2.0 + index, "smoothness": {"lower": beta, "upper": 2 * beta}}
                for index in range(config.members)
            ],
            "pairs": [
                {"models": list(pair), "similarity_lower": -cosine, "similarity_upper": min(1.0, 2 * cosine),
                 "mean_absolute_cosine": cosine}
                for pair in pairs
            ],
        },
        "rates": [
            {"attack": "pgd", **ball, "models": list(pair), "transfer": transfer, "conditional": None,
             "alone": min(1.0, 2 * transfer)}
            for pair in ordered
        ],
        "bounds": [
            {**bound, "models": list(pair), "value": certified, "guaranteed": certified,
             "status": "informative", "measured": transfer}
            for pair in ordered
        ],
        "joint": [
            {"together": 2, **ball, "models": list(pair), "certified": certified, "must_transfer": 0.0,
             "found": transfer, "single": [0.9, 0.8]}
            for pair in pairs
        ],
        "verdicts": {"theorem-4": {"consistent": len(ordered)}},
        "evaluations": len(ordered),
        "violations": [],
    }  # fmt: skip


def records(seed: int = 0) -> dict[str, tuple[TrainingConfig, Record]]:
    """The ensembles of the plan: transfer follows the cosine closely, and beta not at all."""
    generator = np.random.default_rng(seed)
    found = {}
    for index, config in enumerate(PLAN.configs):
        cosine, beta = generator.uniform(0.05, 0.5), generator.uniform(5, 100)
        transfer = 0.4 * cosine + 0.02 * generator.uniform()
        found[f"ensemble-{index}"] = config, record(config, cosine, beta, transfer, transfer + 0.1)
    return found


TRANSFER = column("transfer", Ball("pgd", "l2", 0.3, "untargeted"))


@pytest.fixture(scope="module")
def study():
    return analyse("digits", PLAN, records(), {"python": "any"})


def test_tables_have_a_line_for_each_ensemble_and_for_each_pair():
    ensembles, pairs = (tabulate(records(), unit) for unit in ("ensemble", "pair"))
    expected = sum(config.members * (config.members - 1) // 2 for config in PLAN.configs)
    assert (len(ensembles), len(pairs)) == (len(PLAN.configs), expected)
    assert set(pairs.ensembles) == set(ensembles.ensembles)


def test_a_line_takes_means_of_rates_and_extremes_of_constants():
    config = next(config for config in PLAN.configs if config.members == 3)
    one = record(config, 0.2, 10.0, 0.1, 0.3)
    one["rates"][0]["transfer"] = 0.4  # one direction of the pair 0, 1
    one["benign"]["pairs"][0]["mean_absolute_cosine"] = 0.5
    one["benign"]["members"][2]["smoothness"]["lower"] = 30.0
    (ensemble,), (first, second, _) = (
        [{name: values[line] for name, values in table.numbers.items()} for line in range(len(table))]
        for table in (tabulate({"a": (config, one)}, unit) for unit in ("ensemble", "pair"))
    )
    assert ensemble[TRANSFER] == pytest.approx(0.15)
    assert (first[TRANSFER], second[TRANSFER]) == pytest.approx((0.25, 0.1))
    assert (ensemble["cos_mean"], first["cos_mean"], second["cos_mean"]) == pytest.approx((0.3, 0.5, 0.2))
    assert (ensemble["beta_sampled"], first["beta_sampled"], second["beta_sampled"]) == (30.0, 10.0, 30.0)
    assert math.isnan(ensemble[TRANSFER.replace("transfer", "conditional")])


def test_a_relation_that_is_there_is_found_and_one_that_is_not_is_not(study):
    strong = study.correlation("cos_mean", TRANSFER)
    absent = study.correlation("beta_sampled", TRANSFER)
    assert strong["lower"] > 0.9
    assert absent["lower"] < 0 < absent["upper"]
    assert study.correlation("cos_mean", TRANSFER, "partial", given="method")["lower"] > 0.9
    assert study.correlation("cos_mean", TRANSFER, unit="pair")["groups"] == len(PLAN.configs)


def test_the_claims_are_answered_as_they_were_fabricated(study):
    answers = {claim["name"]: claim["answer"] for claim in study.claims}
    assert answers["highly-correlated"] == HOLDS
    assert answers["certificate-orders"] == HOLDS
    assert answers["smoothness"] == answers["gap"] == UNDECIDED
    assert answers["similarity"] == UNDECIDED  # lambda_a was given no effect


def test_a_bound_is_correlated_with_the_rate_that_it_is_about(study):
    (bound,) = study.bounds
    assert (bound["statement"], bound["applies"], bound["informative"]) == (
        "theorem-4",
        bound["rows"],
        bound["rows"],
    )
    assert bound["spearman"]["value"] == pytest.approx(1.0)


def test_an_effect_is_the_difference_within_blocks():
    """lambda_a multiplies beta by e^-1 and adds -0.1 to transfer, on top of what blocks differ in."""
    fabricated = {}
    for index, config in enumerate(PLAN.configs):
        weights = penalties(config.objective)
        if weights is not None:
            level = 0.3 + 0.001 * config.seed + (0.0005 * config.seed - 0.1) * weights[0]
            beta = (10 + config.seed) * math.exp(-weights[0] * (1 + 0.001 * config.seed))
            fabricated[str(index)] = config, record(config, 0.2, beta, level, 0.5)
    table = tabulate(fabricated, "ensemble")
    transfer, beta = effect(table, "lambda_a", TRANSFER), effect(table, "lambda_a", "beta_sampled")
    blocks = {config.seed for config, _ in fabricated.values()}
    drift = sum(blocks) / len(blocks)
    assert (transfer.scale, transfer.blocks) == ("difference", len(blocks))
    assert transfer.value == pytest.approx(0.0005 * drift - 0.1)
    assert transfer.lower < transfer.value < transfer.upper < 0
    assert beta.scale == "ratio"
    assert beta.value == pytest.approx(math.exp(-1 - 0.001 * drift))
    assert effect(table, "lambda_b", TRANSFER) is None  # no change at all has no spread to judge by


def test_a_claim_fails_by_one_deciding_interval_on_the_other_side():
    def claim(*intervals: tuple[float, float]) -> str:
        found = tuple(Evidence("", low, low, high, 30, 0.0, 1, True) for low, high in intervals)
        beside = Evidence("", -1.0, -1.0, -0.5, 30, 0.0, 1, False)
        return Claim("", "", "", "", (*found, beside)).answer

    assert claim((0.1, 0.2), (0.3, 0.4)) == HOLDS
    assert claim((0.1, 0.2), (-0.3, 0.4)) == UNDECIDED
    assert claim((0.1, 0.2), (-0.3, -0.1)) == FAILS
    assert claim() == UNDECIDED
    assert Evidence("", -0.3, -0.4, -0.2, 30, 0.0, -1, True).speaks == HOLDS
    assert Evidence("", 0.9, 0.8, 0.95, 12, 1.0, -1, True).speaks == HOLDS
    assert Evidence("", None, None, None, 0, 0.0, 1, True).speaks == UNDECIDED


def test_a_planted_violation_is_reported():
    fabricated = records()
    row = {"ensemble": "ensemble-7", "statement": "theorem-4", "norm": "l2", "eps": 0.3, "mode": "untargeted",
           "reason": "measured 0.5 lies beyond the guaranteed 0.1"}  # fmt: skip
    fabricated["ensemble-7"][1]["violations"].append(row)
    fabricated["ensemble-7"][1]["verdicts"]["theorem-4"] = {"violated": 1}
    study = analyse("digits", PLAN, fabricated, {})
    assert study.violations == [row]
    assert study.verdicts["theorem-4"]["violated"] == 1
    text = page(study, {})
    assert "**1** lies outside" in text
    assert "**violated**: ensemble-7, theorem-4, l2 0.3, untargeted: measured 0.5 lies beyond" in text


def test_pages_and_figures_are_drawn_from_the_saved_study_alone(study, tmp_path):
    save_study(tmp_path, study)
    loaded = load_study(tmp_path / "study.json")
    write_pages(loaded, tmp_path / "pages")
    names = {path.name for path in (tmp_path / "pages").iterdir()}
    figures = {name for name in names if name.endswith(".svg")}
    assert len(figures) == 4
    assert {name.replace(".svg", ".png") for name in figures} < names
    assert {"README.md", "study.json", "ensembles.csv", "pairs.csv", "correlations.csv", "bounds.csv"} < names
    text = (tmp_path / "pages" / "README.md").read_text()
    assert all(f"({name.replace('.svg', '.png')})" in text for name in figures)
    assert all(claim["text"] in text for claim in loaded.claims)
    assert (tmp_path / "pages" / "study.json").read_text() == (tmp_path / "study.json").read_text()
    assert "holds" in claim_table(loaded).to_text()


def test_weights_that_a_design_leaves_out_are_left_out_of_the_lines():
    """One pair of weights has no ensemble, another one no number; the mean and error are of what there is."""
    levels = {
        ("0", "0"): [1.0, 2.0, math.nan],
        ("0.5", "0"): [math.nan],
        ("1", "0"): [4.0],
        ("1", "1"): [5.0],
    }
    lines = [(*weights, value) for weights, values in levels.items() for value in values]
    first, second, numbers = zip(*lines, strict=True)
    labels = {"lambda_a": first, "lambda_b": second}
    table = Table("ensemble", first, first, labels, {"transfer": np.array(numbers)})
    axes = Figure().add_subplot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _lines(axes, table, "transfer")
    drawn, alone = (container.lines[0] for container in axes.containers)
    np.testing.assert_allclose(drawn.get_xydata(), [[-0.06, 1.5], [1.94, 4.0]])
    np.testing.assert_allclose(alone.get_xydata(), [[2.0, 5.0]])
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[1.0, 2.0], [4.0, 4.0]])


def test_a_table_reads_back_what_it_wrote():
    table = tabulate(records(), "pair")
    again = Table.from_json(table.to_json())
    assert again.to_json() == table.to_json()
    assert math.isnan(again.numbers[TRANSFER.replace("transfer", "conditional")][0])


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "transferbounds/comparison/2"}', "[1, 2]"])
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ResultsError, match="expected"):
        load_study(tmp_path / "study.json")
