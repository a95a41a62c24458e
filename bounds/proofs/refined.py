"""The refined results: certificate R1, upper bounds R3 to R5 and Cantelli's, lower bound R7, dominance."""

# Formulas read left to right, whichever side a module constant is on.
# ruff: noqa: SIM300

from __future__ import annotations

from collections.abc import Sequence

import sympy
import z3

from bounds.proofs.engine import Step, maximum
from bounds.proofs.translate import Stated, stated
from bounds.proofs.vectors import gradient_sum, gradient_sum_of_many, smallest_joint_step
from bounds.statement import Statement
from bounds.upper import (
    REFINED_R3,
    REFINED_R3_UNTARGETED,
    THEOREM_3_REPAIRED,
    count,
    half_angle,
    s_upper,
    weight,
    xi_F,
    xi_G,
    xi_sum,
)

EPS, BETA, B, S, L_MIN = z3.Reals("eps beta B S_upper l_min")
RATE = z3.Real("Pr(transfers)")
PROPER = [EPS > 0, BETA > 0, B > 0]
HALF_ANGLE_OR_MORE = sympy.Max(half_angle, sympy.Rational(1, 2))


class Fooled:
    """Several models fooled at one point, each by its own loss at y and at the label it now predicts."""

    def __init__(self, models: Sequence[str]) -> None:
        self.loss, self.other, self.slope, self.other_slope, self.conditions = [], [], [], [], []
        half = BETA * EPS * EPS / 2
        for i in models:
            loss, after, slope = z3.Reals(f"l_{i}(y) l_{i}^A(y) delta.grad_l_{i}(y)")
            other, other_after, other_slope = z3.Reals(f"l_{i}(y') l_{i}^A(y') delta.grad_l_{i}(y')")
            self.conditions += [
                other_after <= after,
                after <= loss + slope + half,
                other_after >= other + other_slope - half,
            ]
            self.loss.append(loss)
            self.other.append(other)
            self.slope.append(slope)
            self.other_slope.append(other_slope)


class Bound:
    """An upper bound of the form mean / denominator, both taken from the statement's own formula."""

    def __init__(self, statement: Statement, mean: sympy.Expr) -> None:
        self.formula: Stated = stated(statement)
        self.mean = self.formula.translation.term(mean)
        self.denominator = self.formula.translation.term(mean / statement.expression)

    @property
    def hypotheses(self) -> list[z3.BoolRef]:
        """The statement's hypotheses and what defines the roots."""
        return [*self.formula.hypotheses, *self.formula.translation.conditions]

    def markov(self) -> Step:
        """A non-negative number of at least D where the attack transfers has mean >= D Pr(transfers)."""
        where, elsewhere = z3.Reals("E[.;transfers] E[.;not]")
        group_means = [where >= self.denominator * RATE, elsewhere >= 0, self.mean == where + elsewhere]
        return Step(
            "Markov's inequality and the stated formula",
            [*self.hypotheses, RATE >= 0, *group_means],
            RATE <= self.formula.bound,
            [EPS > 0, BETA > 0, RATE > 0],
        )


def refined_r3(statement: Statement) -> list[Step]:
    """R3: add the two margin inequalities, then Markov's inequality for l_F + l_G."""
    bound, fooled = Bound(statement, xi_F + xi_G), Fooled("FG")
    longest = 2 * B * bound.formula.translation.term(HALF_ANGLE_OR_MORE)
    # Cauchy and Schwarz with the norm-sum inequality, at y and at y_t.
    sums = [z3.Sum(fooled.slope) <= EPS * longest, z3.Sum(fooled.other_slope) >= -EPS * longest]
    drop = EPS * longest + BETA * EPS * EPS
    margins = z3.Sum(fooled.other) - z3.Sum(fooled.loss)
    hypotheses = [*bound.hypotheses, *fooled.conditions, *sums]
    return [
        *gradient_sum(),
        Step("a point that transfers has m_F + m_G <= 2 r*", hypotheses, margins <= 2 * drop, PROPER),
        Step(
            "so l_F + l_G is at least the denominator there",
            [*bound.hypotheses, margins <= 2 * drop, *(other >= L_MIN for other in fooled.other)],
            z3.Sum(fooled.loss) >= bound.denominator,
            PROPER,
        ),
        bound.markov(),
    ]


def refined_r3_untargeted(statement: Statement) -> list[Step]:
    """R3': the labels reached may differ, so their gradients are bounded one by one."""
    bound, fooled = Bound(statement, xi_F + xi_G), Fooled("FG")
    wide = bound.formula.translation.term(HALF_ANGLE_OR_MORE)
    repaired = bound.formula.translation.term((xi_F + xi_G) / THEOREM_3_REPAIRED.expression)
    drop = EPS * B * (1 + wide) + BETA * EPS * EPS
    sums = [z3.Sum(fooled.slope) <= EPS * 2 * B * wide, *(slope >= -EPS * B for slope in fooled.other_slope)]
    where, elsewhere = z3.Reals("E[l_F+l_G;transfers] E[l_F+l_G;not]")
    # Markov's inequality for the sum of the losses, and (Theorem 4, repaired) for each of them.
    by_sum = [where >= 2 * (L_MIN - drop) * RATE, elsewhere >= 0, bound.mean == where + elsewhere]
    by_each = repaired * RATE <= bound.mean
    return [
        *gradient_sum(),
        Step(
            "a point that transfers has l_F + l_G >= 2 (l_min - r)",
            [*bound.hypotheses, *fooled.conditions, *sums, *(other >= L_MIN for other in fooled.other)],
            z3.Sum(fooled.loss) >= 2 * (L_MIN - drop),
            PROPER,
        ),
        Step(
            "Markov's inequality, together with the repaired Theorem 4, and the stated formula",
            [*bound.hypotheses, RATE >= 0, *by_sum, by_each],
            RATE <= bound.formula.bound,
            [*PROPER, RATE > 0],
        ),
    ]


def refined_r4(statement: Statement) -> list[Step]:
    """R4: any convex combination of the two margins, with the norm of the combined margin gradient."""
    bound, fooled = Bound(statement, weight * xi_F + (1 - weight) * xi_G), Fooled("FG")
    share, longest = z3.Reals("weight mixed_gradient")
    slope_f, slope_g = (o - s for o, s in zip(fooled.other_slope, fooled.slope, strict=True))
    minima = [other >= z3.Real(f"l_min_{i}") for i, other in zip("FG", fooled.other, strict=True)]
    in_ball = share * slope_f + (1 - share) * slope_g >= -EPS * longest
    return [
        Step(
            "a point that transfers has lambda l_F + (1 - lambda) l_G at least the denominator",
            [*bound.hypotheses, *fooled.conditions, *minima, in_ball],
            share * fooled.loss[0] + (1 - share) * fooled.loss[1] >= bound.denominator,
            [EPS > 0, BETA > 0, share > 0, share < 1],
        ),
        bound.markov(),
    ]


def refined_cantelli(statement: Statement) -> list[Step]:
    """Cantelli's inequality for m_F + m_G given E, whose mean mu exceeds 2 r*."""
    formula, fooled = stated(statement), Fooled("FG")
    low, mean_low, mean_high = z3.Reals("Pr(m<=2r*|E) E[m|m<=2r*,E] E[m|m>2r*,E]")
    mu, sigma, right = z3.Reals("margin_mean margin_deviation right_rate")
    longest = 2 * B * formula.translation.term(HALF_ANGLE_OR_MORE)
    drop = EPS * longest + BETA * EPS * EPS
    groups = [low >= 0, low <= 1, low * mean_low + (1 - low) * mean_high == mu, mean_low <= 2 * drop]
    spread = sigma * sigma >= low * (mean_low - mu) ** 2 + (1 - low) * (mean_high - mu) ** 2
    gap = mu - 2 * drop
    sums = [z3.Sum(fooled.slope) <= EPS * longest, z3.Sum(fooled.other_slope) >= -EPS * longest]
    margins = z3.Sum(fooled.other) - z3.Sum(fooled.loss)
    few = low * (sigma * sigma + gap * gap) <= sigma * sigma
    return [
        *gradient_sum(),
        Step(
            "a point that transfers has m_F + m_G <= 2 r*",
            [*formula.hypotheses, *fooled.conditions, *sums],
            margins <= 2 * drop,
            PROPER,
        ),
        Step(
            "of the points in E few are that low (the variance is at least that of the two group means)",
            [*formula.hypotheses, *groups, gap > 0, spread],
            few,
            [*PROPER, low > 0, low < 1],
        ),
        Step(
            "the stated formula",
            [*formula.hypotheses, low >= 0, gap > 0, few, RATE <= right * low],
            RATE <= formula.bound,
            [*PROPER, RATE > 0],
        ),
    ]


def refined_r5(statement: Statement) -> list[Step]:
    """R5: N models into the same label, for every N."""
    bound = Bound(statement, xi_sum)
    term = bound.formula.translation.term
    n, positive = z3.Real("N"), maximum(S, 0)
    factor = term(sympy.sqrt((1 + (count - 1) * sympy.Max(s_upper, 0)) / count))
    losses, others, slopes, other_slopes = z3.Reals("sum_l(y) sum_l(y_t) sum_slope(y) sum_slope(y_t)")
    length, square = z3.Reals("|sum_of_gradients| |sum_of_gradients|^2")
    bends = n * BETA * EPS * EPS
    return [
        *gradient_sum_of_many(),
        Step(
            "that is, ||g_1 + ... + g_N|| <= N B sqrt((1 + (N - 1) S+) / N)",
            [
                *bound.hypotheses,
                length >= 0,
                square == length * length,
                square <= n * B * B * (1 + (n - 1) * positive),
            ],
            length <= n * B * factor,
            PROPER,
        ),
        Step(
            "summed over the models, each fooled into y_t: the losses sum to at least the denominator",
            [
                *bound.hypotheses,
                others + other_slopes <= losses + slopes + bends,
                slopes <= EPS * n * B * factor,
                other_slopes >= -EPS * n * B * factor,
                others >= n * L_MIN,
            ],
            losses >= bound.denominator,
            PROPER,
        ),
        bound.markov(),
    ]


def certificate(_: Statement) -> list[Step]:
    """R1: with one lambda >= 0 whose combination exceeds what the ball allows, no step fools all."""
    total, term, reach, weight, p, a_d = z3.Reals("sum_lambda_p lambda_p sum_lambda_a.d lambda p a.d")
    margin, slope, curvature, size = z3.Reals("m d.grad_m kappa ||d||")
    return [
        Step(
            "a fooled model: a.d = -d.grad m >= p = m - kappa eps^2 / 2",
            [
                margin + slope - curvature * size * size / 2 <= 0,
                curvature >= 0,
                size >= 0,
                size <= EPS,
                a_d == -slope,
                p == margin - curvature * EPS * EPS / 2,
            ],
            a_d >= p,
            [EPS > 0, curvature > 0],
        ),
        Step(
            "one model more in the sum over models of lambda p <= lambda a.d",
            [total <= reach, weight >= 0, a_d >= p, term == weight * p],
            total + term <= reach + weight * a_d,
            [weight > 0],
        ),
        Step(
            "so lambda.p <= eps ||sum lambda a||, whatever the norm and its dual",
            [total <= reach, reach <= EPS * z3.Real("||sum_lambda_a||*")],
            total <= EPS * z3.Real("||sum_lambda_a||*"),
        ),
        *smallest_joint_step(),
    ]


def must_transfer(_: Statement) -> list[Step]:
    """R7: a negative upper quadratic fools; the step along -grad m_F fools G under the stated inequality."""
    margin, after, slope, curvature, norm, cosine = z3.Reals("m m(x+d) d.grad_m kappa^+ ||grad_m_G|| cos")
    quadratic = curvature * EPS * EPS / 2
    return [
        Step(
            "m + d.grad m + kappa+ ||d||^2 / 2 < 0 with ||d|| = eps fools",
            [after <= margin + slope + quadratic, margin + slope + quadratic < 0],
            after < 0,
            [EPS > 0, curvature > 0],
        ),
        Step(
            "d = -eps grad m_F / ||grad m_F|| has d.grad m_G = -eps ||grad m_G|| cos",
            [
                slope == -EPS * norm * cosine,
                margin < EPS * norm * cosine - quadratic,
                after <= margin + slope + quadratic,
            ],
            after < 0,
            [EPS > 0, curvature > 0, norm > 0],
        ),
    ]


def dominance(_: Statement) -> list[Step]:
    """R3 <= half of the repaired Theorem 3, R3' likewise from S = -1/2 on, and repaired <= printed."""
    sharp, untargeted, repaired = map(stated, (REFINED_R3, REFINED_R3_UNTARGETED, THEOREM_3_REPAIRED))
    hypotheses = [*repaired.hypotheses, *sharp.hypotheses, *untargeted.hypotheses]
    risk, drop = z3.Reals("xi drop")
    risk_all, l_all = z3.Reals("xi_everywhere l_min_everywhere")
    return [
        Step(
            "R3 applies where the repaired Theorem 3 does, at half of it or less",
            repaired.hypotheses + sharp.translation.conditions,
            z3.And(*sharp.hypotheses, sharp.bound <= repaired.bound / 2),
            PROPER,
        ),
        Step("R3' <= repaired Theorem 4", hypotheses, untargeted.bound <= repaired.bound, PROPER),
        Step(
            "R3' <= half of it where S >= -1/2",
            [*hypotheses, S >= z3.Q(-1, 2)],
            untargeted.bound <= repaired.bound / 2,
            PROPER,
        ),
        Step(
            "repaired <= printed, whose xi is no smaller and whose l_min is no larger",
            [risk >= 0, risk <= risk_all, l_all <= L_MIN, l_all - drop > 0],
            risk / (L_MIN - drop) <= risk_all / (l_all - drop),
            [risk > 0, drop > 0],
        ),
    ]
