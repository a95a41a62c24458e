"""Upper bounds on transferability: Theorems 3 and 4 (section 4.4, appendix C), repaired and refined."""

from __future__ import annotations

import sympy

from bounds.hypotheses import BOTH_LABELS, H0, H1, H2, NON_NEGATIVE_LOSS
from bounds.quantities import BETA, EPS, L_MIN, S_UPPER, XI_F, XI_G, B, Quantity, Range
from bounds.statement import Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict

xi_F, xi_G, l_min, eps, b, s_upper, beta = (
    quantity.symbol for quantity in (XI_F, XI_G, L_MIN, EPS, B, S_UPPER, BETA)
)

#: Cosine of half the angle between two vectors whose cosine is S_upper.
half_angle = sympy.sqrt((1 + s_upper) / 2)
#: Twice B times this bounds ||g_F + g_G|| for gradients of norm at most B and cosine at most S_upper.
_sum_factor = sympy.Max(half_angle, sympy.Rational(1, 2))
_PRINTED_DROP = eps * b * (1 + half_angle) + beta * eps**2
_SUM_DROP = 2 * eps * b * _sum_factor + beta * eps**2
_UNTARGETED_SUM_DROP = eps * b * (1 + _sum_factor) + beta * eps**2

_PRINTED = (xi_F + xi_G) / (l_min - _PRINTED_DROP)

_TARGETED_SUBJECT = r"\Pr(T_r(\mathcal F, \mathcal G, x, y_t) = 1)"
_TARGETED_PROPER = r"\Pr(T_r(\mathcal F, \mathcal G, x, y_t) = 1,\ y \neq y_t)"
_UNTARGETED_SUBJECT = r"\Pr(T_r(\mathcal F, \mathcal G, x) = 1)"

_RISKS = (
    Hypothesis("the empirical risk of F is >= 0", xi_F >= 0, erratum=4),
    Hypothesis("the empirical risk of G is >= 0", xi_G >= 0, erratum=4),
)
_MODELS = (NON_NEGATIVE_LOSS, BOTH_LABELS, H0, H1, H2)
_DENOMINATOR = Hypothesis(
    "the denominator l_min - eps B (1 + sqrt((1 + S_upper) / 2)) - beta eps^2 is positive",
    l_min - _PRINTED_DROP > 0,
    stated=False,
    erratum=3,
)
#: From the bound at radius 0 up: what steep, then similar, then curved losses add.
_TERMS = (
    Term("risks", {B: 0, BETA: 0}),
    Term("gradient size", {S_UPPER: -1, BETA: 0}),
    Term("similarity", {BETA: 0}),
    Term("smoothness"),
)
_TRENDS = {
    **dict.fromkeys(("xi_F", "xi_G", "eps", "B", "S_upper", "beta"), Trend.INCREASING),
    "l_min": Trend.DECREASING,
}

_S = S_UPPER.meaning_here(f"{S_UPPER.meaning}; at the true label (over more labels it is only larger)")
_S_BOTH = S_UPPER.meaning_here(f"{S_UPPER.meaning}; over both labels, the true one and y_t")
_B = B.meaning_here(f"{B.meaning}, of F and G, the true one and those the attack may reach")
_XI_F_PROPER = XI_F.meaning_here(
    "mean of l_F(x, y) over all points, counted as 0 where F or G errs or y = y_t",
    latex=r"\xi^E_{\mathcal F}",
)
_XI_G_PROPER = XI_G.meaning_here(
    "mean of l_G(x, y) over all points, counted as 0 where F or G errs or y = y_t",
    latex=r"\xi^E_{\mathcal G}",
)
_XI_F_RIGHT = XI_F.meaning_here(
    "mean of l_F(x, y) over all points, counted as 0 where F or G errs", latex=r"\xi^E_{\mathcal F}"
)
_XI_G_RIGHT = XI_G.meaning_here(
    "mean of l_G(x, y) over all points, counted as 0 where F or G errs", latex=r"\xi^E_{\mathcal G}"
)
_L_MIN_TARGET = L_MIN.meaning_here("infimum over the support of l_F(x, y_t) and l_G(x, y_t)")
_L_MIN_OTHERS = L_MIN.meaning_here(
    "infimum over the support and the labels y' != y of l_F(x, y') and l_G(x, y')"
)
_L_MIN_TARGET_RIGHT = L_MIN.meaning_here(
    "infimum of l_F(x, y_t) and l_G(x, y_t) over the support's points with both models right and y != y_t",
    latex=r"\ell^E_{\min}",
)
_L_MIN_OTHERS_RIGHT = L_MIN.meaning_here(
    "infimum of l_F(x, y') and l_G(x, y'), y' != y, over the support's points that both models get right",
    latex=r"\ell^E_{\min}",
)

THEOREM_3 = Statement(
    id="theorem-3",
    title="Theorem 3: upper bound on targeted transferability",
    variant=Variant.PRINTED,
    sense=Sense.UPPER,
    source="TRS, Theorem 3, section 4.4; proof in appendix C",
    claim="No targeted attack in the l2 ball of radius eps transfers with more than this rate.",
    subject=_TARGETED_SUBJECT,
    expression=_PRINTED,
    quantities=(XI_F, XI_G, _L_MIN_TARGET, EPS, _B, _S, BETA),
    hypotheses=(_DENOMINATOR, *_RISKS, *_MODELS),
    verdict=Verdict.TRUE,
    reason=(
        "True where the denominator is positive, but never useful in practice: l_min also ranges over the "
        "points whose label is y_t, and one confidently right among them makes it almost 0. At least twice "
        "the true rate."
    ),
    terms=_TERMS,
    trends=_TRENDS,
    errata=(3, 4, 5, 6, 11, 12, 17),
)

THEOREM_3_REPAIRED = Statement(
    id="theorem-3-repaired",
    title="Theorem 3, repaired",
    variant=Variant.REPAIRED,
    sense=Sense.UPPER,
    source="TRS, Theorem 3, section 4.4, restricted to the points that can transfer",
    claim="The bound of Theorem 3 from the points alone with both models right and a label other than y_t.",
    subject=_TARGETED_PROPER,
    expression=_PRINTED,
    quantities=(_XI_F_PROPER, _XI_G_PROPER, _L_MIN_TARGET_RIGHT, EPS, _B, _S, BETA),
    hypotheses=(_DENOMINATOR, *_RISKS, *_MODELS),
    verdict=Verdict.TRUE,
    reason="The same proof on the smaller set; for cross-entropy l_min is then at least log 2.",
    terms=_TERMS,
    trends=_TRENDS,
    errata=(3,),
)

THEOREM_4 = Statement(
    id="theorem-4",
    title="Theorem 4: upper bound on untargeted transferability",
    variant=Variant.PRINTED,
    sense=Sense.UPPER,
    source="TRS, Theorem 4, section 4.4; proof in appendix C",
    claim="No untargeted attack in the l2 ball of radius eps transfers with more than this rate.",
    subject=_UNTARGETED_SUBJECT,
    expression=_PRINTED,
    quantities=(XI_F, XI_G, _L_MIN_OTHERS, EPS, _B, _S, BETA),
    hypotheses=(_DENOMINATOR, *_RISKS, *_MODELS),
    verdict=Verdict.TRUE,
    reason="True where the denominator is positive; sharp for three labels and opposite gradients.",
    terms=_TERMS,
    trends=_TRENDS,
    errata=(3, 4, 5, 6, 11, 12),
)

THEOREM_4_REPAIRED = Statement(
    id="theorem-4-repaired",
    title="Theorem 4, repaired",
    variant=Variant.REPAIRED,
    sense=Sense.UPPER,
    source="TRS, Theorem 4, section 4.4, restricted to the points that can transfer",
    claim="The bound of Theorem 4 from the points alone that both models get right.",
    subject=_UNTARGETED_SUBJECT,
    expression=_PRINTED,
    quantities=(_XI_F_RIGHT, _XI_G_RIGHT, _L_MIN_OTHERS_RIGHT, EPS, _B, _S, BETA),
    hypotheses=(_DENOMINATOR, *_RISKS, *_MODELS),
    verdict=Verdict.TRUE,
    reason="The same proof on the smaller set; for cross-entropy l_min is then at least log 2.",
    terms=_TERMS,
    trends=_TRENDS,
    errata=(3,),
)

_UNCERTIFIED = Quantity(
    "uncertified_rate",
    Range.PROBABILITY,
    "rate of points with both models right (and y != y_t) for which no weights certify that the ball is safe",
    r"\pi^+",
)
REFINED_R2 = Statement(
    id="refined-r2",
    title="R2: the rate of points without a certificate",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="replaces TRS, Theorems 3 and 4, section 4.4, by one certificate a point (bounds.certificate)",
    claim="No attack in the ball, however strong, transfers with more than this rate.",
    subject=r"\mathbb E\left[\sup_{\mathcal A} T_r^*\right]",
    expression=_UNCERTIFIED.symbol,
    quantities=(_UNCERTIFIED,),
    hypotheses=(
        H0,
        Hypothesis(
            "m_i(x + d) >= m_i(x) + d . grad m_i(x) - kappa_i ||d||^2 / 2 on the ball for both models, with "
            "kappa fixed before the sample is drawn"
        ),
    ),
    verdict=Verdict.TRUE,
    reason="A certified point cannot transfer. The event names no attack, so one bound covers them all.",
    terms=(Term("uncertified points"),),
    trends={"uncertified_rate": Trend.INCREASING},
)

REFINED_R3 = Statement(
    id="refined-r3",
    title="R3: Theorem 3, sharp",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="sharpens TRS, Theorem 3, section 4.4",
    claim="Adding the margins before Markov's inequality at least halves the repaired theorem (same S).",
    subject=_TARGETED_PROPER,
    expression=(xi_F + xi_G) / (2 * (l_min - _SUM_DROP)),
    quantities=(_XI_F_PROPER, _XI_G_PROPER, _L_MIN_TARGET_RIGHT, EPS, _B, _S_BOTH, BETA),
    hypotheses=(
        Hypothesis(
            "l_min exceeds 2 eps B max(sqrt((1 + S_upper) / 2), 1/2) + beta eps^2", l_min - _SUM_DROP > 0
        ),
        *_RISKS,
        *_MODELS,
    ),
    verdict=Verdict.TRUE,
    reason="The two gradients' sum is at most B max(1, sqrt(2 + 2 S)); attained for every S, so it is sharp.",
    terms=_TERMS,
    trends=_TRENDS,
)

_BEST_DENOMINATOR = sympy.Max(2 * (l_min - _UNTARGETED_SUM_DROP), l_min - _PRINTED_DROP)
REFINED_R3_UNTARGETED = Statement(
    id="refined-r3-untargeted",
    title="R3': Theorem 4 by the sum of the margins, or as repaired, whichever is smaller",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="sharpens TRS, Theorem 4, section 4.4",
    claim="Half of the repaired Theorem 4 from S_upper = -1/2 on, and never more than it.",
    subject=_UNTARGETED_SUBJECT,
    expression=(xi_F + xi_G) / _BEST_DENOMINATOR,
    quantities=THEOREM_4_REPAIRED.quantities,
    hypotheses=(_DENOMINATOR, *_RISKS, *_MODELS),
    verdict=Verdict.TRUE,
    reason=(
        "The two models may reach different labels, whose gradients need not oppose each other: only the "
        "true label's sum is bounded by S. For two labels refined-r3 applies instead, and is sharper."
    ),
    terms=_TERMS,
    trends=_TRENDS,
)

WEIGHT = Quantity("weight", Range.PROBABILITY, "weight of F's margin; 1 - weight is G's", r"\lambda")
L_MIN_F = Quantity(
    "l_min_F",
    Range.REAL,
    "infimum of l_F at y_t over the points with both models right, y != y_t",
    r"\ell^E_{\mathcal F}",
)
L_MIN_G = Quantity(
    "l_min_G",
    Range.REAL,
    "infimum of l_G at y_t over the points with both models right, y != y_t",
    r"\ell^E_{\mathcal G}",
)
MIXED = Quantity(
    "mixed_gradient",
    Range.NON_NEGATIVE,
    "supremum of the l2 norm of weight grad m_F + (1 - weight) grad m_G, margins of y to y_t",
    "M",
)
weight, l_min_f, l_min_g, mixed = (quantity.symbol for quantity in (WEIGHT, L_MIN_F, L_MIN_G, MIXED))
_MIXED_DENOMINATOR = weight * l_min_f + (1 - weight) * l_min_g - eps * mixed - beta * eps**2

REFINED_R4 = Statement(
    id="refined-r4",
    title="R4: any mixture of the two margins",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="generalises refined-r3",
    claim="Every weighting of the two models' margins gives an upper bound; take the best.",
    subject=_TARGETED_PROPER,
    expression=(weight * xi_F + (1 - weight) * xi_G) / _MIXED_DENOMINATOR,
    quantities=(WEIGHT, _XI_F_PROPER, _XI_G_PROPER, L_MIN_F, L_MIN_G, EPS, MIXED, BETA),
    hypotheses=(
        Hypothesis("the denominator of the mixture is positive", _MIXED_DENOMINATOR > 0),
        *_RISKS,
        *_MODELS,
    ),
    verdict=Verdict.TRUE,
    reason="The proof of refined-r3 with weights; the gradient of the mixed margin is measured, not bounded.",
    terms=(Term("risks", {MIXED: 0, BETA: 0}), Term("gradient size", {BETA: 0}), Term("smoothness")),
    trends={
        **dict.fromkeys(("xi_F", "xi_G", "eps", "mixed_gradient", "beta"), Trend.INCREASING),
        **dict.fromkeys(("l_min_F", "l_min_G"), Trend.DECREASING),
        "weight": Trend.EITHER,  # a ratio of affine functions, the denominator positive
    },
)

RIGHT_RATE = Quantity("right_rate", Range.PROBABILITY, "Pr(E): both models right and y != y_t", r"\Pr(E)")
MEAN_MARGIN = Quantity(
    "margin_mean", Range.REAL, "mean of m_F + m_G given E, margins l(x, y_t) - l(x, y)", r"\mu"
)
MARGIN_DEVIATION = Quantity(
    "margin_deviation", Range.NON_NEGATIVE, "standard deviation of m_F + m_G given E", r"\sigma"
)
right, mean, deviation = (quantity.symbol for quantity in (RIGHT_RATE, MEAN_MARGIN, MARGIN_DEVIATION))
_REST = mean - 2 * _SUM_DROP

REFINED_CANTELLI = Statement(
    id="refined-cantelli",
    title="Cantelli: two moments of the margins instead of one of the losses",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="sharpens TRS, Theorem 3, section 4.4, where margins are large and concentrated",
    claim="If the mean joint margin exceeds what the ball takes away, its deviation bounds the transfer.",
    subject=_TARGETED_PROPER,
    expression=right * deviation**2 / (deviation**2 + _REST**2),
    quantities=(RIGHT_RATE, MEAN_MARGIN, MARGIN_DEVIATION, EPS, _B, _S_BOTH, BETA),
    hypotheses=(
        Hypothesis(
            "the mean margin exceeds 2 (2 eps B max(sqrt((1 + S_upper) / 2), 1/2) + beta eps^2)", _REST > 0
        ),
        BOTH_LABELS,
        H0,
        H1,
        H2,
    ),
    verdict=Verdict.TRUE,
    reason="Transfer needs m_F + m_G <= 2 r*, far below the mean; the one-sided Chebyshev inequality.",
    terms=(Term("margin spread", {B: 0, BETA: 0}), *_TERMS[1:]),
    trends={
        **dict.fromkeys(("right_rate", "margin_deviation", "eps", "B", "S_upper", "beta"), Trend.INCREASING),
        "margin_mean": Trend.DECREASING,
    },
)

MODELS = Quantity("N", Range.COUNT, "number of models", "N")
XI_SUM = Quantity(
    "xi_sum",
    Range.REAL,
    "sum over the models of the mean loss, 0 where a model errs or y = y_t",
    r"\textstyle\sum_i \xi_i",
)
count, xi_sum = MODELS.symbol, XI_SUM.symbol
_N_DROP = 2 * eps * b * sympy.sqrt((1 + (count - 1) * sympy.Max(s_upper, 0)) / count) + beta * eps**2

REFINED_R5 = Statement(
    id="refined-r5",
    title="R5: N models into one label",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="extends TRS, Theorem 3, section 4.4, to N models",
    claim="No attack in the ball drives all N models into y_t with more than this rate.",
    subject=r"\Pr(\text{all right},\ y \neq y_t,\ "
    r"\mathcal F_1(x^{\mathcal A}) = \dots = \mathcal F_N(x^{\mathcal A}) = y_t)",
    expression=xi_sum / (count * (l_min - _N_DROP)),
    quantities=(
        MODELS,
        XI_SUM,
        L_MIN.meaning_here("infimum of every l_i(x, y_t) where all models are right and y != y_t"),
        EPS,
        B.meaning_here(f"{B.meaning}, of all models, the true one and y_t"),
        S_UPPER.meaning_here(
            "supremum of the cosine between any two models' loss gradients, labels y and y_t"
        ),
        BETA,
    ),
    hypotheses=(
        Hypothesis(
            "l_min exceeds 2 eps B sqrt((1 + (N - 1) max(S_upper, 0)) / N) + beta eps^2", l_min - _N_DROP > 0
        ),
        Hypothesis("the empirical risks sum to at least 0", xi_sum >= 0),
        *_MODELS,
    ),
    verdict=Verdict.TRUE,
    reason="N gradients of norm B sum to at most B sqrt(N + N (N - 1) S+); attained by orthogonal gradients.",
    terms=(
        Term("risks", {B: 0, BETA: 0}),
        Term("gradient size", {S_UPPER: 0, BETA: 0}),
        Term("similarity", {BETA: 0}),
        Term("smoothness"),
    ),
    trends={
        **dict.fromkeys(("xi_sum", "eps", "B", "S_upper", "beta"), Trend.INCREASING),
        "l_min": Trend.DECREASING,
    },
)

UPPER_BOUNDS = (
    THEOREM_3,
    THEOREM_3_REPAIRED,
    THEOREM_4,
    THEOREM_4_REPAIRED,
    REFINED_R2,
    REFINED_R3,
    REFINED_R3_UNTARGETED,
    REFINED_R4,
    REFINED_CANTELLI,
    REFINED_R5,
)
