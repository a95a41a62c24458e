"""The verdict in words, and the table of certificates."""

import re
from dataclasses import replace

import pytest

from empirical.report.verdict import certificate_table, findings, tables

VACUOUS = {"l_min": 1e-4, "margin_mean": 0.0}  # no hypothesis on a denominator holds


def test_the_reach_of_each_variant_is_told_with_its_best_statement(make_comparison):
    first, printed, repaired, refined, certificates, penalty = findings(make_comparison())
    assert first.startswith("No guaranteed bound is contradicted")
    assert printed.startswith("As printed")
    assert "up to l2 radius 0.4 for a (Theorem 4 as printed), 0.1 for b" in printed
    assert "Repaired, they guarantee something" in repaired
    assert "up to l2 radius 0.4 for a" in refined
    assert "below 0.5 up to l2 radius 0.4 for a (there at most 0.080, and 0.050 found)" in certificates
    assert "gradient norm B" in penalty


def test_where_nothing_is_said_the_hypotheses_in_the_way_are_named(make_comparison):
    printed = findings(make_comparison(names=("a",), **VACUOUS))[1]
    assert printed.startswith("As printed, the paper's theorems guarantee nothing about all pairs")
    assert "for the lower bounds “the denominator" in printed
    assert "for the upper bounds “the denominator l_min - eps B" in printed


def test_a_contradicted_certificate_is_told_first_too(make_comparison):
    comparison = make_comparison(names=("a",))
    (result,) = comparison.ensembles
    broken = replace(result.joint[0], verdict="violated")
    worse = replace(comparison, ensembles=(replace(result, joint=(broken, *result.joint[1:])),))
    assert findings(worse)[0].startswith("1 of ")


def test_of_pairs_with_the_same_certificate_the_one_that_is_fooled_most_is_told(make_comparison):
    comparison = make_comparison(names=("a",))
    (result,) = comparison.ensembles
    place = next(i for i, row in enumerate(result.joint) if (row.eps, row.models) == (0.4, (1, 2)))
    row = result.joint[place]
    more = replace(row, found=replace(row.found, value=0.07))
    joint = (*result.joint[:place], more, *result.joint[place + 1 :])
    told = findings(replace(comparison, ensembles=(replace(result, joint=joint),)))
    assert any("there at most 0.080, and 0.070 found" in sentence for sentence in told)


def test_kinks_are_told(make_comparison):
    comparison = make_comparison(names=("a",), kinks=("0: ReLU",), beta=float("inf"))
    assert any(sentence.startswith("a has kinks (0: ReLU)") for sentence in findings(comparison))


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"zero_gradients": 0.23}, "An attack met gradients of exactly zero, .*: a \\(23%\\)"),
        ({"black": 0.01}, "black or invalid images: a. "),
        ({"out_of_range": 0.01}, "black or invalid images: a. "),
    ],
)
@pytest.mark.parametrize("place", ["robustness", "matrices"])
def test_attacks_that_may_be_weaker_than_they_look_are_told(make_comparison, sign, words, place):
    comparison = make_comparison(names=("a", "b"))
    assert not any(re.search("An attack", sentence) for sentence in findings(comparison))
    ill, well = comparison.ensembles
    (entry,) = ill.robustness
    health = {**entry["health"], **sign}
    found = {
        "robustness": ({**entry, "health": health},), "matrices": ({"health": [entry["health"], health]},)
    }  # fmt: skip
    worse = replace(comparison, ensembles=(replace(ill, **{place: found[place]}), well))
    (told,) = (sentence for sentence in findings(worse) if sentence.startswith("An attack"))
    assert re.search(words, told)
    assert "b (" not in told


def test_the_table_of_certificates_shows_the_worst_pair_and_what_is_not_certified(make_comparison):
    comparison = make_comparison(names=("a",))
    (result,) = comparison.ensembles
    table = certificate_table(comparison)
    assert table.header == ("ensemble", "fooled together", "l2 0.02", "l2 0.1", "l2 0.4")
    assert table.rows == (("a", "worst pair", "0.003 / 0.004", "0.013 / 0.020", "0.050 / 0.080"),)
    # One pair worse than the others, and one radius at which nothing is certified.
    joint = [
        replace(row, verdict="vacuous") if row.eps == 0.4
        else replace(row, certified=replace(row.certified, value=0.3, upper=0.3)) if row.models == (0, 2)
        else row
        for row in result.joint
    ]  # fmt: skip
    changed = replace(comparison, ensembles=(replace(result, joint=tuple(joint)),))
    assert certificate_table(changed).rows[0][2:] == ("0.003 / 0.300", "0.013 / 0.300", "0.050 / -")


@pytest.mark.parametrize("joint", [True, False])
def test_the_terminal_and_the_report_show_the_same_tables(make_comparison, joint):
    shown = tables(make_comparison(names=("a",), joint=joint))
    assert len(shown) == 2 + joint
    assert all(table.to_text() for table in shown)
