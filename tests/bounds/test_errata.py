"""Every erratum runs: the printed claim fails on its counterexample, and the corrected one does not."""

import math

import pytest

from bounds import ERRATA, STATEMENTS, counterexamples
from bounds.statement import Verdict

PRINTED = {1: 1.0, 2: 8 / 7, 3: -1.0, 4: -470 / 7, 5: 0.0, 6: 0.2 / 1.998, 7: 0.0, 8: 1.0, 15: 2.0}
TRUTH = {1: 0.0, 2: 0.0, 3: 1.0, 4: 0.5, 5: 1.0, 6: 1.0, 7: 0.0, 8: -1.0, 9: 0.012, 10: 8.0, 15: 1.0}


def test_numbers_run_without_gaps():
    assert list(ERRATA) == list(range(1, len(ERRATA) + 1))
    assert all(number == erratum.number for number, erratum in ERRATA.items())


@pytest.mark.parametrize("number", list(ERRATA))
def test_printed_claim_fails_and_the_corrected_one_holds(number):
    outcome = ERRATA[number].run()
    assert outcome.printed_fails, outcome.details
    assert outcome.repaired_holds, outcome.details
    assert math.isfinite(outcome.printed)
    assert math.isfinite(outcome.truth)
    assert outcome.details


@pytest.mark.parametrize("number", sorted(PRINTED))
def test_printed_value(number):
    assert ERRATA[number].run().printed == pytest.approx(PRINTED[number], abs=1e-9)


@pytest.mark.parametrize("number", sorted(TRUTH))
def test_true_value(number):
    assert ERRATA[number].run().truth == pytest.approx(TRUTH[number], abs=1e-9)


def test_statements_refer_to_errata_that_exist():
    for statement in STATEMENTS.values():
        referred = {*statement.errata, *(h.erratum for h in statement.hypotheses if h.erratum is not None)}
        assert referred <= set(ERRATA), statement.id
        if statement.verdict is Verdict.FALSE:
            assert statement.errata, statement.id


def test_a_true_statement_does_not_fail_on_a_harmless_example():
    """The machinery of the first four errata can also say that nothing is wrong."""
    flat = [(0.0, 0.0), (4.0, 0.0)]
    outcome = counterexamples._gated("theorem-4", counterexamples._line(flat, flat))
    assert not outcome.printed_fails
    assert not outcome.repaired_holds  # it applies, so nothing had to be repaired
