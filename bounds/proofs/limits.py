"""How little Theorems 1 and 2 can say, R6 that replaces the second, and who is never worse than whom."""

# Formulas read left to right, whichever side a module constant is on.
# ruff: noqa: SIM300

from __future__ import annotations

import z3

from bounds.lower import THEOREM_2
from bounds.proofs.engine import Step
from bounds.proofs.theorems import ALONG_F, ALONG_G, ALPHA, BETA, C_F, C_G, EPS, ETA_F, ETA_G, Point
from bounds.proofs.translate import stated
from bounds.statement import Statement

TURN = z3.Real("sqrt(2-2S)")


def _with_turn(statement: Statement) -> tuple[list[z3.BoolRef], z3.ArithRef]:
    """The statement's hypotheses with its root named, and its bound."""
    formula = stated(statement)
    turn = [TURN >= 0, TURN * TURN == 2 - 2 * z3.Real("S_lower")]
    return [*formula.hypotheses, *turn], formula.bound


# Lemma 7 and its mirror together: delta.u_F and delta.u_G differ by at most eps sqrt(2 - 2 S).
LEMMA_7 = [ALONG_F - ALONG_G <= EPS * TURN, ALONG_G - ALONG_F <= EPS * TURN]


def theorem_1_vacuous(statement: Statement) -> list[Step]:
    """V1: the printed Theorem 1 is never positive, wherever its denominator is and the attack ever hits F."""
    f, g = Point("F", ALONG_F), Point("G", ALONG_G)
    target_is_minimal = [f.rest == f.after, g.rest <= g.after]
    hypotheses, bound = _with_turn(statement)
    return [
        Step(
            "at a support point where F is hit: c_F >= f >= delta.u_F",
            [*f.smooth(), *f.constant_is(1), *target_is_minimal, f.constant <= C_F],
            ALONG_F <= C_F,
            [EPS > 0, BETA > 0],
        ),
        Step(
            "at that point, as y_t is among the labels of the minimum: c_G <= g <= delta.u_G",
            [*g.smooth(), *g.constant_is(-1), *target_is_minimal, C_G <= g.constant],
            C_G <= ALONG_G,
            [EPS > 0, BETA > 0],
        ),
        Step(
            "so the stated formula is at most -(alpha + eta_F + eta_G)",
            [*hypotheses, *LEMMA_7, ALONG_F <= C_F, C_G <= ALONG_G, ALONG_G <= EPS, ALPHA < 1],
            bound <= -(ALPHA + ETA_F + ETA_G),
            [EPS > 0, ALPHA > 0],
        ),
    ]


def theorem_2_all_or_nothing(statement: Statement) -> list[Step]:
    """V2: Theorem 2 is positive only if no support point fools F and leaves G right."""
    hypotheses, bound = _with_turn(statement)
    return [
        Step(
            "otherwise the stated formula is at most -(alpha + eta_F + eta_G)",
            [*hypotheses, C_F - EPS * TURN <= C_G, -EPS <= C_G, ALPHA < 1],
            bound <= -(ALPHA + ETA_F + ETA_G),
            [EPS > 0, ALPHA > 0],
        ),
        *_fooling_carries_over("a point that fools F and not G", C_F, C_G),
    ]


def _fooling_carries_over(name: str, c_f: z3.ArithRef, c_g: z3.ArithRef) -> list[Step]:
    """Where F is fooled, G right after the attack, the constants cannot be apart."""
    f, g = Point("F", ALONG_F), Point("G", ALONG_G)
    fooled = [*f.smooth(), *f.constant_is(-1), f.rest <= f.after, c_f <= f.constant]
    right = [*g.smooth(), *g.constant_is(1), g.after <= g.rest, g.constant <= c_g]
    turn = [TURN >= 0, *LEMMA_7]
    in_ball = [ALONG_F <= EPS, ALONG_F >= -EPS, ALONG_G <= EPS, ALONG_G >= -EPS]
    return [
        Step(
            f"{name}: c_F - eps sqrt(2 - 2 S) <= c_G and -eps <= c_G",
            [*fooled, *right, *turn, *in_ball],
            z3.And(c_f - EPS * TURN <= c_g, -EPS <= c_g),
            [EPS > 0, BETA > 0],
        )
    ]


def refined_r6(statement: Statement) -> list[Step]:
    """R6: Theorem 2 without the Markov step, and that it is never below a positive Theorem 2."""
    formula = stated(statement)
    printed, bound = _with_turn(THEOREM_2)
    missed = z3.Real("Pr(F fooled, G not)")
    transfer = z3.Real("Pr(transfers)")
    return [
        *_fooling_carries_over("so, the constants being apart, no point fools F and not G", C_F, C_G),
        Step(
            "union bound and the stated formula",
            [*formula.hypotheses, missed == 0, transfer >= 1 - ETA_F - ETA_G - ALPHA - missed],
            transfer >= formula.bound,
        ),
        Step(
            "where Theorem 2 is positive, R6 applies and is no smaller (c_F <= eps as the attack hits F)",
            [*printed, bound > 0, ALPHA < 1, C_F <= EPS],
            z3.And(*formula.hypotheses, formula.bound >= bound),
            [EPS > 0, ALPHA > 0],
        ),
    ]


def refined_r6_pointwise(_: Statement) -> list[Step]:
    """R6 at one point: f - eps sqrt(2 - 2 cos) > g and F fooled imply that G is fooled."""
    f, g = z3.Reals("f g")
    return _fooling_carries_over("the same with the point's own f, g and cosine", f, g)
