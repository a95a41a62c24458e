"""Lower bounds on transferability: Theorems 1 and 2 (section 4.3, appendix B), repaired and replaced."""

from __future__ import annotations

import sympy

from bounds.hypotheses import H0, H1, H2, NONZERO_GRADIENTS
from bounds.quantities import ALPHA, BETA, C_F, C_G, EPS, ETA_F, ETA_G, S_LOWER, Quantity, Range
from bounds.statement import Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict

alpha, eta_F, eta_G, eps, s_lower, c_F, c_G = (
    quantity.symbol for quantity in (ALPHA, ETA_F, ETA_G, EPS, S_LOWER, C_F, C_G)
)

#: The largest change of delta.u when the unit vector u turns by at most the angle with cosine S_lower.
turn = eps * sympy.sqrt(2 - 2 * s_lower)

_TARGETED = (
    (1 - alpha)
    - (eta_F + eta_G)
    - (eps * (1 + alpha) + c_F * (1 - alpha)) / (c_G + eps)
    - eps * (1 - alpha) / (c_G + eps) * sympy.sqrt(2 - 2 * s_lower)
)
_UNTARGETED = (
    (1 - alpha)
    - (eta_F + eta_G)
    - (eps * (1 + alpha) - c_F * (1 - alpha)) / (eps - c_G)
    - eps * (1 - alpha) / (eps - c_G) * sympy.sqrt(2 - 2 * s_lower)
)

_TARGETED_C_F = C_F.meaning_here(
    "supremum over the support of (min_y l_F(x^A, y) - l_F(x, y_t) + beta eps^2 / 2) / ||grad l_F(x, y_t)||"
)
_TARGETED_C_G = C_G.meaning_here(
    "infimum over the support of (min_y l_G(x^A, y) - l_G(x, y_t) - beta eps^2 / 2) / ||grad l_G(x, y_t)||"
)
_UNTARGETED_C_F = C_F.meaning_here(
    "infimum over the support of "
    "(min_{y' != y} l_F(x^A, y') - l_F(x, y) - beta eps^2 / 2) / ||grad l_F(x, y)||"
)
_UNTARGETED_C_G = C_G.meaning_here(
    "supremum over the support of "
    "(min_{y' != y} l_G(x^A, y') - l_G(x, y) + beta eps^2 / 2) / ||grad l_G(x, y)||"
)
_S_AT_TARGET = S_LOWER.meaning_here(f"{S_LOWER.meaning}; the label is y_t")
_S_AT_TRUTH = S_LOWER.meaning_here(f"{S_LOWER.meaning}; the label is the true one")
_BETA_INSIDE = BETA.meaning_here(f"{BETA.meaning}; it enters through c_F and c_G")

_TARGETED_POSITIVE = Hypothesis(
    "the denominator c_G + eps is positive", c_G + eps > 0, stated=False, erratum=1
)
_UNTARGETED_POSITIVE = Hypothesis(
    "the denominator eps - c_G is positive", eps - c_G > 0, stated=False, erratum=2
)


def _terms(trivial_c_f: sympy.Expr) -> tuple[Term, ...]:
    """From certainty (1) down: what the loss gaps, the angle, failed attacks and the risks each cost."""
    no_risk = {ETA_F: 0, ETA_G: 0}
    return (
        Term("certainty", {**no_risk, ALPHA: 0, S_LOWER: 1, C_F: trivial_c_f}),
        Term("loss gaps", {**no_risk, ALPHA: 0, S_LOWER: 1}),
        Term("similarity", {**no_risk, ALPHA: 0}),
        Term("attack failure", no_risk),
        Term("risks"),
    )


_TRENDS = {
    "eta_F": Trend.DECREASING,
    "eta_G": Trend.DECREASING,
    "S_lower": Trend.INCREASING,
    "alpha": Trend.EITHER,  # affine
    "c_G": Trend.EITHER,  # a constant over a positive denominator
}

THEOREM_1 = Statement(
    id="theorem-1",
    title="Theorem 1: lower bound on targeted transferability",
    variant=Variant.PRINTED,
    sense=Sense.LOWER,
    source="TRS, Theorem 1, section 4.3; proof in appendix B",
    claim="A targeted attack that fails on F at most at the rate alpha reaches G at least at this rate.",
    subject=r"\Pr(T_r(\mathcal F, \mathcal G, x, y_t) = 1)",
    expression=_TARGETED,
    quantities=(ALPHA, ETA_F, ETA_G, EPS, _S_AT_TARGET, _TARGETED_C_F, _TARGETED_C_G),
    background=(_BETA_INSIDE,),
    hypotheses=(_TARGETED_POSITIVE, NONZERO_GRADIENTS, H0, H1, H2),
    verdict=Verdict.VACUOUS,
    reason=(
        "True where c_G + eps > 0, but then never positive: some support point has F(x^A) = y_t, and there "
        "the minimum over all labels in c_F and c_G includes y_t, which makes the fraction at least 1."
    ),
    terms=_terms(-eps),
    trends={**_TRENDS, "c_F": Trend.DECREASING},
    errata=(1, 8, 9, 10, 17),
)

THEOREM_1_REPAIRED = Statement(
    id="theorem-1-repaired",
    title="Theorem 1, repaired",
    variant=Variant.REPAIRED,
    sense=Sense.LOWER,
    source="TRS, Theorem 1, section 4.3, with the minimum in c_G over the labels other than y_t",
    claim="The bound of Theorem 1 with a c_G that can exceed c_F.",
    subject=THEOREM_1.subject,
    expression=_TARGETED,
    quantities=(
        *THEOREM_1.quantities[:-1],
        C_G.meaning_here(
            "infimum over the support of "
            "(min_{y != y_t} l_G(x^A, y) - l_G(x, y_t) - beta eps^2 / 2) / ||grad l_G(x, y_t)||"
        ),
    ),
    background=THEOREM_1.background,
    hypotheses=(_TARGETED_POSITIVE, NONZERO_GRADIENTS, H0, H1, H2),
    verdict=Verdict.TRUE,
    reason=(
        "G(x^A) != y_t already implies that y_t costs at least the cheapest other label, so the proof goes "
        "through; the value is never below the printed one where that applies, and is 1 for F = G affine "
        "under a perfect attack on risk-free models."
    ),
    terms=THEOREM_1.terms,
    trends=THEOREM_1.trends,
    errata=(1,),
)

THEOREM_2 = Statement(
    id="theorem-2",
    title="Theorem 2: lower bound on untargeted transferability",
    variant=Variant.PRINTED,
    sense=Sense.LOWER,
    source="TRS, Theorem 2, section 4.3; proof in appendix B",
    claim="An untargeted attack that fails on F at most at the rate alpha reaches G at least at this rate.",
    subject=r"\Pr(T_r(\mathcal F, \mathcal G, x) = 1)",
    expression=_UNTARGETED,
    quantities=(ALPHA, ETA_F, ETA_G, EPS, _S_AT_TRUTH, _UNTARGETED_C_F, _UNTARGETED_C_G),
    background=(_BETA_INSIDE,),
    hypotheses=(_UNTARGETED_POSITIVE, NONZERO_GRADIENTS, H0, H1, H2),
    verdict=Verdict.TRUE,
    reason=(
        "True where eps - c_G > 0, but all or nothing: it is positive only if every point that fools F fools "
        "G, so the Markov step of the proof gains nothing (see refined-r6)."
    ),
    terms=_terms(eps),
    trends={**_TRENDS, "c_F": Trend.INCREASING},
    errata=(2, 8, 9, 10),
)

REFINED_R6 = Statement(
    id="refined-r6",
    title="R6: what Theorem 2 amounts to, without the Markov step",
    variant=Variant.REFINED,
    sense=Sense.LOWER,
    source="replaces TRS, Theorem 2, section 4.3",
    claim="If what fools F must fool G, the attack transfers where both models are right and F is fooled.",
    subject=THEOREM_2.subject,
    expression=1 - alpha - eta_F - eta_G,
    quantities=THEOREM_2.quantities,
    background=THEOREM_2.background,
    hypotheses=(
        Hypothesis(
            "c_F - eps sqrt(2 - 2 S_lower) exceeds c_G, or c_G is below -eps",
            sympy.Max(c_F - turn - c_G, -eps - c_G) > 0,
        ),
        NONZERO_GRADIENTS,
        H0,
        H1,
        H2,
    ),
    verdict=Verdict.TRUE,
    reason="It applies wherever the printed Theorem 2 is positive, and is then at least as large.",
    terms=(
        Term("certainty", {ALPHA: 0, ETA_F: 0, ETA_G: 0}),
        Term("attack failure", {ETA_F: 0, ETA_G: 0}),
        Term("risks"),
    ),
    trends=dict.fromkeys(("alpha", "eta_F", "eta_G"), Trend.DECREASING),
)

_LINKED = Quantity(
    "linked_rate",
    Range.PROBABILITY,
    "Pr(both correct, F fooled, f - eps sqrt(2 - 2 cos) > g), with f, g and cos of the single point",
    r"\pi",
)
REFINED_R6_POINTWISE = Statement(
    id="refined-r6-pointwise",
    title="R6, point by point",
    variant=Variant.REFINED,
    sense=Sense.LOWER,
    source="replaces TRS, Theorem 2, section 4.3",
    claim="The attack transfers at least where F is fooled and the point's own constants force G to follow.",
    subject=THEOREM_2.subject,
    expression=_LINKED.symbol,
    quantities=(_LINKED,),
    background=THEOREM_2.background,
    hypotheses=(H0, H1, H2),
    verdict=Verdict.TRUE,
    reason="The rate's event implies transfer at each of its points; no extreme over the support is taken.",
    terms=(Term("linked points"),),
    trends={"linked_rate": Trend.INCREASING},
)

_MUST_TRANSFER = Quantity(
    "must_transfer_rate",
    Range.PROBABILITY,
    "rate of points that both models get right and at which some step d in the ball makes every "
    "m_i + d . grad m_i + kappa_i^+ eps^2 / 2 negative: it provably fools both",
    r"\pi^-",
)
REFINED_R7 = Statement(
    id="refined-r7",
    title="R7: a rate that some attack must reach",
    variant=Variant.REFINED,
    sense=Sense.LOWER,
    source="counterpart of refined-r2; from margins, gradients and upper curvatures at benign points alone",
    claim="The strongest joint attack in the ball fools both models at least at this rate.",
    subject=r"\Pr(\text{both right},\ \exists\, \|\delta\|_2 \le \epsilon: "
    r"\mathcal F(x + \delta) \neq y \neq \mathcal G(x + \delta))",
    expression=_MUST_TRANSFER.symbol,
    quantities=(_MUST_TRANSFER,),
    hypotheses=(
        H0,
        Hypothesis(
            "m_i(x + d) <= m_i(x) + d . grad m_i(x) + kappa_i^+ ||d||^2 / 2 on the ball, for both models"
        ),
    ),
    verdict=Verdict.TRUE,
    reason="Each point in the rate has a step in the ball that makes both margins negative.",
    terms=(Term("certified points"),),
    trends={"must_transfer_rate": Trend.INCREASING},
)

LOWER_BOUNDS = (THEOREM_1, THEOREM_1_REPAIRED, THEOREM_2, REFINED_R6, REFINED_R6_POINTWISE, REFINED_R7)
