"""Transfer under a bounded shift of the input distribution: Lemma 5 and Theorem 6 (appendix A)."""

from __future__ import annotations

from bounds.quantities import DELTA, EPS, RHO, Range
from bounds.statement import Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict

#: Here eps is not a radius. The paper reuses the letter, and so does the name.
RISK = EPS.meaning_here(
    "bound on the risk of either model: max(eta_F, eta_G); not an attack radius", range=Range.PROBABILITY
)
eps, rho, delta = RISK.symbol, RHO.symbol, DELTA.symbol

_CONSERVATIVE = Hypothesis(
    "the distribution of A(x) is within total variation distance rho of that of x (Definition 9)"
)
_RISKS = Hypothesis("F and G each err with probability at most eps")
_ANY_LABELS = Hypothesis("F, G and A are maps; the label set is finite, and need not be binary")
_STRUCTURE = (_CONSERVATIVE, _RISKS, _ANY_LABELS)

_MISSES_TRUTH = DELTA.meaning_here("Pr(F(A(x)) = y), failure rate of the attack on F by Definition 2")
_MISSES_CHANGE = DELTA.meaning_here("Pr(F(A(x)) = F(x)), rate at which the attack leaves F's label as it was")

_TERMS = (Term("risks", {RHO: 0, DELTA: 0}), Term("shift", {DELTA: 0}), Term("attack failure"))
_INCREASING = dict.fromkeys(("eps", "rho", "delta"), Trend.INCREASING)

LEMMA_5 = Statement(
    id="lemma-5",
    title="Lemma 5: low-risk classifiers agree under a conservative attack",
    variant=Variant.PRINTED,
    sense=Sense.UPPER,
    source="TRS, Lemma 5, appendix A",
    claim="Two classifiers of risk at most eps disagree on attacked inputs at most at this rate.",
    subject=r"\Pr(\mathcal F(\mathcal A(x)) \neq \mathcal G(\mathcal A(x)))",
    expression=2 * eps + rho,
    quantities=(RISK, RHO),
    hypotheses=_STRUCTURE,
    verdict=Verdict.TRUE,
    reason="True for any finite label set; the printed chain's 'eps + eps + rho' is an inequality.",
    terms=(Term("risks", {RHO: 0}), Term("shift")),
    trends={"eps": Trend.INCREASING, "rho": Trend.INCREASING},
)

THEOREM_6 = Statement(
    id="theorem-6",
    title="Theorem 6: an attack effective on F is effective on G",
    variant=Variant.PRINTED,
    sense=Sense.UPPER,
    source="TRS, Theorem 6, appendix A",
    claim="If the attack changes F's label but for a rate delta, it changes G's but for at most this rate.",
    subject=r"\Pr(\mathcal G(\mathcal A(x)) = \mathcal G(x))",
    expression=delta + 4 * eps + rho,
    quantities=(_MISSES_CHANGE, RISK, RHO),
    hypotheses=_STRUCTURE,
    verdict=Verdict.TRUE,
    reason=(
        "The printed constant belongs to the reading in which an attack succeeds where it changes the label. "
        "Labels in {-1, 1} are not needed, and the first printed proof has f and g swapped."
    ),
    terms=_TERMS,
    trends=_INCREASING,
    errata=(16,),
)

THEOREM_6_DEF2 = Statement(
    id="theorem-6-def2",
    title="Theorem 6, effectiveness as in Definition 2",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="TRS, Theorem 6, appendix A, read with Definition 2, section 3.1",
    claim="If A(x) is wrong on F but for a rate delta, it is wrong on G but for at most this rate.",
    subject=r"\Pr(\mathcal G(\mathcal A(x)) = y)",
    expression=delta + 2 * eps + rho,
    quantities=(_MISSES_TRUTH, RISK, RHO),
    hypotheses=_STRUCTURE,
    verdict=Verdict.TRUE,
    reason="G can be right on A(x) only where F is, or where the two disagree: Lemma 5 alone, once.",
    terms=_TERMS,
    trends=_INCREASING,
)

THEOREM_6_MIXED = Statement(
    id="theorem-6-mixed",
    title="Theorem 6, one reading on F and the other on G",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="TRS, Theorem 6, appendix A, the two readings mixed",
    claim="From 'A(x) is wrong on F' to 'A changes G's label', or the other way round, this much is lost.",
    subject=r"\Pr(\mathcal G(\mathcal A(x)) = \mathcal G(x))\ \text{or}\ \Pr(\mathcal G(\mathcal A(x)) = y)",
    expression=delta + 3 * eps + rho,
    quantities=(
        DELTA.meaning_here("failure rate of the attack on F, in the reading that is not G's"),
        RISK,
        RHO,
    ),
    hypotheses=_STRUCTURE,
    verdict=Verdict.TRUE,
    reason="One risk pays for the change of reading, two and the shift for the disagreement of Lemma 5.",
    terms=_TERMS,
    trends=_INCREASING,
)

THEOREM_6_TRANSFER = Statement(
    id="theorem-6-transfer",
    title="Theorem 6 as a lower bound on transferability",
    variant=Variant.REFINED,
    sense=Sense.LOWER,
    source="TRS, Theorem 6, appendix A, for the transferability of Definition 7",
    claim="An attack that is wrong on F but for a rate delta transfers at least at this rate.",
    subject=r"\Pr(T_r(\mathcal F, \mathcal G, x) = 1)",
    expression=1 - delta - 4 * eps - rho,
    quantities=(_MISSES_TRUTH, RISK, RHO),
    hypotheses=_STRUCTURE,
    verdict=Verdict.TRUE,
    reason="Both models right costs 2 eps, F not fooled delta, G right although F is fooled 2 eps + rho.",
    terms=(
        Term("certainty", {RISK: 0, RHO: 0, DELTA: 0}),
        Term("risks", {RHO: 0, DELTA: 0}),
        Term("shift", {DELTA: 0}),
        Term("attack failure"),
    ),
    trends=dict.fromkeys(("eps", "rho", "delta"), Trend.DECREASING),
)

SHIFT_RESULTS = (LEMMA_5, THEOREM_6, THEOREM_6_DEF2, THEOREM_6_MIXED, THEOREM_6_TRANSFER)
