"""Theorems 1 to 4, printed and repaired, from one point's inequality to the formula that the statement holds.

A proof of this kind has three layers. (a) At one point: the two-sided quadratic bound that smoothness
gives, Lemma 7 or Lemma 8, and argmin prediction yield an inequality between numbers. (b) Over the
distribution: points are grouped by which events they belong to; the mean of a quantity over a group obeys
every linear inequality that each point of the group obeys, so masses and group means are all that the
Markov step sees. (c) Algebra down to the stated formula, which is translated from the statement itself. The
machine checks all three; what stays written is that smoothness gives the quadratic bound, and that a mean
over a group obeys the group's inequality.
"""

# Formulas read left to right, whichever side a module constant is on.
# ruff: noqa: SIM300

from __future__ import annotations

from itertools import product

import sympy
import z3

from bounds.lower import s_lower
from bounds.proofs.engine import Step
from bounds.proofs.translate import stated
from bounds.statement import Statement
from bounds.upper import half_angle, xi_F, xi_G

ALPHA, ETA_F, ETA_G, EPS, BETA, B = z3.Reals("alpha eta_F eta_G eps beta B")
C_F, C_G, L_MIN, XI_F, XI_G = z3.Reals("c_F c_G l_min xi_F xi_G")
# delta . u_F and delta . u_G, with u the unit gradient at the point in question.
ALONG_F, ALONG_G = z3.Reals("delta.u_F delta.u_G")
TURN = z3.Real("eps*sqrt(2-2S)")
STEP = z3.Real("|delta|")


class Point:
    """One point under one model: loss and gradient norm at a label, and its loss after the attack."""

    def __init__(self, model: str, along: z3.ArithRef) -> None:
        self.loss, self.after, self.norm = z3.Reals(f"l_{model} l_{model}^A |grad_{model}|")
        self.rest = z3.Real(f"min_l_{model}^A")
        self.constant = z3.Real("f" if model == "F" else "g")
        self.slope = self.norm * along

    def smooth(self, *, zero_gradient: bool = False) -> list[z3.BoolRef]:
        """The two-sided quadratic bound for a step no longer than eps."""
        half = BETA * EPS * EPS / 2
        change = self.after - self.loss - self.slope
        positive = self.norm >= 0 if zero_gradient else self.norm > 0
        return [EPS >= 0, BETA >= 0, positive, change <= half, change >= -half]

    def constant_is(self, sign: int) -> list[z3.BoolRef]:
        """The pointwise f or g: (min over labels - loss + sign * beta eps^2 / 2) / ||gradient||."""
        return [self.constant * self.norm == self.rest - self.loss + sign * BETA * EPS * EPS / 2]


def lower_bound(statement: Statement, *, targeted: bool) -> list[Step]:
    """Theorems 1 and 2: from the attack's rate on F to its rate on G.

    A targeted attack has hit where y_t attains the minimum, so `min` ranges over all labels in f, and over
    all or (repaired) over the others in g; an untargeted one has missed where y attains it.
    """
    f, g = Point("F", ALONG_F), Point("G", ALONG_G)
    # The sign of beta eps^2 / 2 in f and g, and the direction of the inequalities, differ between 1 and 2.
    up = 1 if targeted else -1

    def ordered(low: z3.ArithRef, high: z3.ArithRef) -> z3.BoolRef:
        return low <= high if targeted else high <= low

    # F hit: its loss at the label in question has reached (targeted) or left (untargeted) the minimum.
    hit = [ordered(f.after, f.rest), ordered(f.constant, C_F)]
    missed = [ordered(g.rest, g.after), ordered(C_G, g.constant)]
    return [
        Step(
            "where F is hit, delta.u_F is on F's side of c_F",
            [*f.smooth(), *f.constant_is(up), *hit],
            ordered(ALONG_F, C_F),
            [EPS > 0, BETA > 0],
        ),
        Step(
            "so delta.u_G is on F's side of c_F shifted by the turn (Lemma 7)",
            [ordered(ALONG_F, C_F), TURN >= 0, ordered(ALONG_G, ALONG_F + up * TURN)],
            ordered(ALONG_G, C_F + up * TURN),
        ),
        Step(
            "where G is missed, delta.u_G is on the other side of c_G",
            [*g.smooth(), *g.constant_is(-up), *missed],
            ordered(C_G, ALONG_G),
            [EPS > 0, BETA > 0],
        ),
        _union_bound(),
        _markov(statement, up),
    ]


def _groups(prefix: str, *events: str) -> dict[tuple[bool, ...], z3.ArithRef]:
    """A variable for each combination of events (`+` where one happens, `-` where it does not)."""
    names = product(*((event, f"not {event}") for event in events))
    flags = product((True, False), repeat=len(events))
    return {f: z3.Real(f"{prefix}[{', '.join(n)}]") for f, n in zip(flags, names, strict=True)}


def _is_law(mass: dict[tuple[bool, ...], z3.ArithRef]) -> list[z3.BoolRef]:
    return [*(m >= 0 for m in mass.values()), z3.Sum(list(mass.values())) == 1]


def _without(mass: dict[tuple[bool, ...], z3.ArithRef], event: int) -> z3.ArithRef:
    """Probability that an event does not happen."""
    return z3.Sum([m for flags, m in mass.items() if not flags[event]])


MISSED = z3.Real("Pr(G not hit)")


def _union_bound() -> Step:
    mass = _groups("Pr", "F right", "G right", "F hit", "G hit")
    rates = [_without(mass, event) <= bound for event, bound in enumerate((ETA_F, ETA_G, ALPHA, MISSED))]
    transfer = mass[(True, True, True, True)]
    return Step(
        "union bound: what does not transfer fails in one of four ways",
        [*_is_law(mass), *rates],
        transfer >= 1 - ETA_F - ETA_G - ALPHA - MISSED,
    )


def _markov(statement: Statement, up: int) -> Step:
    """Markov's inequality for eps - delta.u_G (up = 1) or eps + delta.u_G, down to the stated formula."""
    formula = stated(statement)
    mass = _groups("Pr", "F hit", "G hit")
    # The mean of up * delta.u_G over a group, times the group's mass.
    total = _groups("E delta.u_G", "F hit", "G hit")
    threshold = up * C_F + EPS * formula.translation.term(sympy.sqrt(2 - 2 * s_lower))
    means = []
    for flags, m in mass.items():
        means += [total[flags] <= EPS * m, total[flags] >= -EPS * m]
        means += [total[flags] <= threshold * m] if flags[0] else []
        means += [] if flags[1] else [total[flags] >= up * C_G * m]
    return Step(
        "Markov's inequality and the stated formula",
        [
            *formula.hypotheses,
            *_is_law(mass),
            *means,
            _without(mass, 0) <= ALPHA,
            MISSED == _without(mass, 1),
        ],
        1 - ETA_F - ETA_G - ALPHA - MISSED >= formula.bound,
        [EPS > 0, ALPHA < 1, ALPHA > 0],
    )


def _denominator(statement: Statement) -> tuple[list[z3.BoolRef], z3.ArithRef, z3.ArithRef]:
    """The hypotheses, the denominator of (xi_F + xi_G) / D as the statement holds it, and sqrt((1 + S)/2)."""
    as_stated = stated(statement)
    denominator = as_stated.translation.term((xi_F + xi_G) / statement.expression)
    half = as_stated.translation.term(half_angle)
    return [*as_stated.hypotheses, *as_stated.translation.conditions], denominator, half


def upper_bound(statement: Statement) -> list[Step]:
    """Theorems 3 and 4: a point that transfers has a large true-label loss on one of the models."""
    hypotheses, denominator, half = _denominator(statement)
    before, other = Point("F", ALONG_F), Point("F(y')", z3.Real("delta.u_F(y')"))
    one_model = [*before.smooth(zero_gradient=True), *other.smooth(zero_gradient=True)]
    short = [before.norm <= B, other.norm <= B, z3.Real("delta.u_F(y')") >= -EPS]
    return [
        Step(
            "Lemma 8 within the ball: one of the models gains at most eps h per unit of gradient",
            [
                *_half_of(half),
                z3.Or(ALONG_F <= STEP * half, ALONG_G <= STEP * half),
                STEP >= 0,
                STEP <= EPS,
            ],
            z3.Or(ALONG_F <= EPS * half, ALONG_G <= EPS * half),
            [EPS > 0],
        ),
        Step(
            "that model, fooled into y', has a true-label loss of at least the denominator",
            [
                *hypotheses,
                *one_model,
                *short,
                ALONG_F <= EPS * half,
                other.after <= before.after,
                other.loss >= L_MIN,
            ],
            before.loss >= denominator,
            [EPS > 0, BETA > 0, B > 0],
        ),
        _markov_on_losses(statement),
    ]


def _half_of(half: z3.ArithRef) -> list[z3.BoolRef]:
    s_upper = z3.Real("S_upper")
    return [half >= 0, 2 * half * half == 1 + s_upper, s_upper <= 1, s_upper >= -1]


def _markov_on_losses(statement: Statement) -> Step:
    """Markov's inequality for each loss: the points that transfer are covered by two events."""
    hypotheses, denominator, _ = _denominator(statement)
    mass = _groups("Pr", "transfers", "l_F >= D", "l_G >= D")
    means = []
    for event, xi in ((1, XI_F), (2, XI_G)):
        # The mean of the loss over a group, times the group's mass: at least D where the event says so.
        total = _groups("E l_F" if event == 1 else "E l_G", "transfers", "l_F >= D", "l_G >= D")
        means += [total[f] >= (denominator * m if f[event] else 0) for f, m in mass.items()]
        means.append(z3.Sum(list(total.values())) == xi)
    covered = mass[(True, False, False)] == 0
    transfer = z3.Sum([m for flags, m in mass.items() if flags[0]])
    return Step(
        "Markov's inequality for each loss, and the stated formula",
        [*hypotheses, *_is_law(mass), *means, covered],
        transfer <= stated(statement).bound,
        [EPS > 0, B > 0, transfer > 0],
    )
