"""The vector lemmas behind the theorems: Lemma 7 (appendix B), Lemma 8 (appendix C) and their sharp forms.

x and y are unit vectors in the lemmas, delta is the perturbation; every statement holds in any dimension.
"""

from __future__ import annotations

import sympy

from bounds.quantities import EPS, S_UPPER, Quantity, Range
from bounds.statement import Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict

COSINE = Quantity("cosine", Range.COSINE, "cosine of the angle between the two vectors", "m")
ALONG_Y = Quantity("d_y", Range.REAL, "inner product of delta and y", r"(\delta \cdot y)")
THRESHOLD = Quantity("c", Range.REAL, "the threshold of the conclusion, any real number", "c")
LENGTH = Quantity("delta_norm", Range.NON_NEGATIVE, "l2 norm of delta", r"\|\delta\|_2")
S = S_UPPER.meaning_here("the number S that the cosine is compared with", latex="S")
SHORTER = Quantity("a", Range.NON_NEGATIVE, "l2 norm of the shorter vector, g_1", "a")
LONGER = Quantity("b", Range.NON_NEGATIVE, "l2 norm of the longer vector, g_2", "b")
RADIUS = EPS.meaning_here("l2 radius of the ball that delta lies in")

cosine, d_y, c, length, s, a, b, eps = (
    quantity.symbol for quantity in (COSINE, ALONG_Y, THRESHOLD, LENGTH, S, SHORTER, LONGER, RADIUS)
)

_UNIT = Hypothesis("x and y are unit vectors")
_IN_BALL = Hypothesis("delta has l2 norm at most eps")
_REACH = Hypothesis(
    "delta . y is at most eps in absolute value (it is, by Cauchy and Schwarz)", eps >= sympy.Abs(d_y)
)

_turn = eps * sympy.sqrt(2 - 2 * cosine)
#: Below -eps m the ball already contains -eps x, so nothing better than -eps is known of delta . x.
_reached = sympy.Max(d_y, -eps * cosine)
_angular = _reached * cosine - sympy.sqrt((eps**2 - _reached**2) * (1 - cosine**2))

_LEMMA_7_QUANTITIES = (ALONG_Y, THRESHOLD, RADIUS, COSINE)
_LEMMA_7_TERMS = (Term("premise", {COSINE: 1}), Term("similarity"))
_LEMMA_7_TRENDS = {
    "d_y": Trend.INCREASING,
    "c": Trend.DECREASING,
    "eps": Trend.DECREASING,
    "cosine": Trend.INCREASING,
}

LEMMA_7 = Statement(
    id="lemma-7",
    title="Lemma 7: a large component along y is a large one along x",
    variant=Variant.PRINTED,
    sense=Sense.IMPLICATION,
    source="TRS, Lemma 7, appendix B",
    claim="If delta . y exceeds c + eps sqrt(2 - 2 m), then delta . x exceeds c.",
    subject=r"\delta \cdot x - c",
    expression=d_y - _turn - c,
    quantities=_LEMMA_7_QUANTITIES,
    hypotheses=(Hypothesis("delta . y > c + eps sqrt(2 - 2 m)", d_y > c + _turn), _UNIT, _IN_BALL),
    verdict=Verdict.TRUE,
    reason="Cauchy and Schwarz, since ||x - y||^2 = 2 - 2 m.",
    terms=_LEMMA_7_TERMS,
    trends=_LEMMA_7_TRENDS,
)

LEMMA_7_MIRROR = Statement(
    id="lemma-7-mirror",
    title="Lemma 7, mirrored: a small component along y is a small one along x",
    variant=Variant.REPAIRED,
    sense=Sense.IMPLICATION,
    source="TRS, Lemma 7, appendix B, for -delta and -c: the form that the proof of Theorem 2 needs",
    claim="If delta . y is below c - eps sqrt(2 - 2 m), then delta . x is below c.",
    subject=r"c - \delta \cdot x",
    expression=c - _turn - d_y,
    quantities=_LEMMA_7_QUANTITIES,
    hypotheses=(Hypothesis("delta . y < c - eps sqrt(2 - 2 m)", d_y < c - _turn), _UNIT, _IN_BALL),
    verdict=Verdict.TRUE,
    reason="Lemma 7 for -delta and -c.",
    terms=_LEMMA_7_TERMS,
    trends={**_LEMMA_7_TRENDS, "d_y": Trend.DECREASING, "c": Trend.INCREASING},
)

LEMMA_7_ANGULAR = Statement(
    id="lemma-7-angular",
    title="Lemma 7, best possible",
    variant=Variant.REFINED,
    sense=Sense.IMPLICATION,
    source="sharpens TRS, Lemma 7, appendix B",
    claim="If eps cos(arccos(delta . y / eps) + arccos m) (-eps past a half turn) > c, so is delta . x.",
    subject=r"\delta \cdot x - c",
    expression=_angular - c,
    quantities=_LEMMA_7_QUANTITIES,
    hypotheses=(
        Hypothesis(
            "eps cos(arccos(delta . y / eps) + arccos m), or -eps past a half turn, exceeds c", _angular > c
        ),
        _REACH,
        _UNIT,
        _IN_BALL,
    ),
    verdict=Verdict.TRUE,
    reason="Angles on the sphere add; the value is attained, so no larger one is true.",
    terms=_LEMMA_7_TERMS,
    trends=_LEMMA_7_TRENDS,
)

_LEMMA_8_TERMS = (Term("orthogonal pair", {S: 0}), Term("similarity"))
_LEMMA_8 = length * sympy.sqrt((1 + s) / 2)

LEMMA_8 = Statement(
    id="lemma-8",
    title="Lemma 8: dissimilar directions cannot both be followed",
    variant=Variant.PRINTED,
    sense=Sense.UPPER,
    source="TRS, Lemma 8, appendix C",
    claim="If x . y < S, the smaller of delta . x and delta . y is below ||delta|| sqrt((1 + S) / 2).",
    subject=r"\min(\delta \cdot x, \delta \cdot y)",
    expression=_LEMMA_8,
    quantities=(LENGTH, S, COSINE),
    hypotheses=(Hypothesis("x . y < S", cosine < s), _UNIT),
    verdict=Verdict.FALSE,
    reason="At delta = 0 it says 0 < 0; true for every other delta.",
    terms=_LEMMA_8_TERMS,
    trends={"delta_norm": Trend.INCREASING, "S_upper": Trend.INCREASING},
    trivial=length,
    strict=True,
    errata=(7,),
)

LEMMA_8_REPAIRED = Statement(
    id="lemma-8-repaired",
    title="Lemma 8, repaired",
    variant=Variant.REPAIRED,
    sense=Sense.UPPER,
    source="TRS, Lemma 8, appendix C, with weak inequalities",
    claim="If x . y <= S, the smaller of delta . x and delta . y is at most ||delta|| sqrt((1 + S) / 2).",
    subject=LEMMA_8.subject,
    expression=_LEMMA_8,
    quantities=LEMMA_8.quantities,
    hypotheses=(Hypothesis("x . y <= S", cosine <= s), _UNIT),
    verdict=Verdict.TRUE,
    reason="The components sum to at most ||delta|| ||x + y||; tight for delta along x + y with x . y = S.",
    terms=_LEMMA_8_TERMS,
    trends=LEMMA_8.trends,
    trivial=length,
    errata=(7,),
)

#: The component of g_2 along g_1, cut where g_1 alone becomes the nearest point of the segment.
_shadow = sympy.Min(b * cosine, a)
_spread = a**2 + b**2 - 2 * a * _shadow

REFINED_R8 = Statement(
    id="refined-r8",
    title="R8: Lemma 8 for vectors of unequal length",
    variant=Variant.REFINED,
    sense=Sense.UPPER,
    source="sharpens TRS, Lemma 8, appendix C",
    claim="Over the ball of radius eps the smaller of delta . g_1 and delta . g_2 reaches exactly eps times "
    "the distance of the origin from the segment between g_1 and g_2.",
    subject=r"\min(\delta \cdot g_1, \delta \cdot g_2)",
    expression=eps * a * sympy.sqrt((b - _shadow) * (b + _shadow) / _spread),
    quantities=(RADIUS, SHORTER, LONGER, COSINE.meaning_here("cosine of the angle between g_1 and g_2")),
    hypotheses=(
        Hypothesis("g_1 is the shorter of the two", b >= a),
        Hypothesis("g_1 and g_2 differ", _spread > 0),
        _IN_BALL,
    ),
    verdict=Verdict.TRUE,
    reason="Minimax over the segment; attained at delta parallel to its point nearest to the origin.",
    terms=(Term("orthogonal pair", {COSINE: 0}), Term("similarity")),
    trends=dict.fromkeys(("eps", "a", "b", "cosine"), Trend.INCREASING),
    trivial=eps * a,
)

LEMMAS = (LEMMA_7, LEMMA_7_MIRROR, LEMMA_7_ANGULAR, LEMMA_8, LEMMA_8_REPAIRED, REFINED_R8)
