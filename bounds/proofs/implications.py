"""The "Implications" that the paper draws from its theorems: signs of derivatives of the stated formulas.

TRS, sections 4.3 and 4.4. Each derivative is sympy's, of the expression that the statement holds; the
solver then decides its sign under the conditions given. What is false comes with a model.
"""

from __future__ import annotations

import sympy
import z3

from bounds.lower import alpha, c_F, c_G, s_lower
from bounds.proofs.engine import Identity, Step
from bounds.proofs.translate import Translation, stated
from bounds.registry import STATEMENTS
from bounds.upper import b, beta, eps, half_angle, l_min, s_upper, xi_F, xi_G

LOWER_1 = STATEMENTS["theorem-1"].expression
LOWER_2 = STATEMENTS["theorem-2"].expression
UPPER = STATEMENTS["theorem-3"].expression
DENOMINATOR = (xi_F + xi_G) / UPPER
TURN = eps * sympy.sqrt(2 - 2 * s_lower)


def _sign(
    name: str, statement: str, derivative: sympy.Expr, sign: str, *conditions: sympy.Basic, gated: bool = True
) -> Step:
    """A claim about a derivative's sign where the statement applies, or (not `gated`) as a bare formula."""
    translation = Translation()
    term = translation.term(sympy.simplify(derivative))
    extra = [translation.formula(condition) for condition in conditions]
    claim = {"> 0": term > 0, "< 0": term < 0, ">= 0": term >= 0, "<= 0": term <= 0}[sign]
    hypotheses = stated(STATEMENTS[statement]).hypotheses if gated else []
    return Step(f"{name} {sign}", [*hypotheses, *translation.conditions, *extra], claim)


def lower_in_similarity() -> list[Step]:
    """The lower bounds grow with S_lower where the denominator is positive, and shrink where negative."""
    inside = [eps > 0, alpha < 1, s_lower < 1, s_lower >= -1]
    steps = []
    for statement, bound, denominator in (
        ("theorem-1", LOWER_1, c_G + eps),
        ("theorem-2", LOWER_2, eps - c_G),
    ):
        slope = sympy.diff(bound, s_lower)
        for sign, side in (("> 0", denominator > 0), ("< 0", denominator < 0)):
            name = f"{statement}, denominator {sign}: d/dS"
            steps.append(_sign(name, statement, slope, sign, side, *inside, gated=False))
    return steps


def lower_in_constants() -> list[Step]:
    """The lower bounds shrink with beta: in Theorem 1 c_F grows with it and c_G shrinks, in 2 the reverse."""
    norm, gap = sympy.symbols("grad gap", real=True)
    constant = (gap + beta * eps**2 / 2) / norm
    # c_F >= delta.u_F >= -eps at a hit point of Theorem 1; c_F <= delta.u_F <= eps at one of Theorem 2.
    growth = Translation()
    slope = growth.term(sympy.diff(constant, beta))
    return [
        Step("d f / d beta >= 0", [growth.term(norm) > 0, *growth.conditions], slope >= 0),
        _sign("theorem-1: d/dc_F", "theorem-1", sympy.diff(LOWER_1, c_F), "<= 0"),
        _sign("theorem-1, c_F >= -eps: d/dc_G", "theorem-1", sympy.diff(LOWER_1, c_G), ">= 0", c_F >= -eps),
        _sign("theorem-2: d/dc_F", "theorem-2", sympy.diff(LOWER_2, c_F), ">= 0"),
        _sign("theorem-2, c_F <= eps: d/dc_G", "theorem-2", sympy.diff(LOWER_2, c_G), "<= 0", c_F <= eps),
    ]


def lower_in_constants_bare() -> list[Step]:
    """Without c_F >= -eps, which the hypotheses imply, the bare formula can grow as c_G shrinks."""
    return [_sign("theorem-1: d/dc_G", "theorem-1", sympy.diff(LOWER_1, c_G), ">= 0", eps > 0)]


def lower_in_radius_up() -> list[Step]:
    """Theorem 1 does not grow with eps in general, the constants held."""
    return [_sign("theorem-1: d/deps", "theorem-1", sympy.diff(LOWER_1, eps), ">= 0", c_F >= -eps, eps > 0)]


def lower_in_radius_down() -> list[Step]:
    """Theorem 1 does not shrink with eps in general, the constants held."""
    return [_sign("theorem-1: d/deps", "theorem-1", sympy.diff(LOWER_1, eps), "<= 0", c_F >= -eps, eps > 0)]


def lower_in_failures() -> list[Step]:
    """Exactly when the lower bounds shrink with alpha, and that clipping t and s makes them do so."""
    t, s = c_F + TURN, c_F - TURN
    steps = []
    for statement, bound, shrinks in (
        ("theorem-1", LOWER_1, 2 * eps + c_G - t),
        ("theorem-2", LOWER_2, s - c_G + 2 * eps),
    ):
        slope = sympy.diff(bound, alpha)
        for sign, side in (("<= 0", shrinks >= 0), ("> 0", shrinks < 0)):
            steps.append(_sign(f"{statement}: d/dalpha", statement, slope, sign, side))
    clipped, clipped_mirror = sympy.symbols("t s", real=True)
    once = sympy.diff(LOWER_1.subs(c_F, clipped - TURN), alpha)
    mirror = sympy.diff(LOWER_2.subs(c_F, clipped_mirror + TURN), alpha)
    return [
        *steps,
        _sign("theorem-1, t <= eps: d/dalpha", "theorem-1", once, "<= 0", clipped <= eps),
        _sign("theorem-2, s >= -eps: d/dalpha", "theorem-2", mirror, "<= 0", clipped_mirror >= -eps),
    ]


def upper_in_everything() -> list[Step | Identity]:
    """The upper bound grows with beta, B, eps and S_upper where its denominator is positive."""
    slope = sympy.diff(UPPER, s_upper)
    closed = (xi_F + xi_G) * eps * b / (4 * half_angle * DENOMINATOR**2)
    return [
        Identity("d UB / d S = xi eps B / (4 h D^2)", slope, closed),
        _sign("d/dS", "theorem-3", slope, "> 0", s_upper > -1, eps > 0, b > 0, xi_F + xi_G > 0),
        *(
            _sign(f"d/d{name}", "theorem-3", sympy.diff(UPPER, name), ">= 0", s_upper > -1)
            for name in (beta, b, eps)
        ),
        _sign("d/dl_min", "theorem-3", sympy.diff(UPPER, l_min), "<= 0", s_upper > -1),
    ]


def upper_across_zero() -> list[Step]:
    """Past a denominator of zero the formula turns negative, so it is not monotone in beta throughout."""
    translation = Translation()
    more = sympy.Symbol("beta_larger", real=True)
    first, second = translation.term(UPPER), translation.term(UPPER.subs(beta, more))
    second_denominator = translation.term(DENOMINATOR.subs(beta, more))
    return [
        Step(
            "UB(beta) <= UB(beta') for beta <= beta'",
            [
                *stated(STATEMENTS["theorem-3"]).hypotheses,
                *translation.conditions,
                z3.Real("beta_larger") >= z3.Real("beta"),
                second_denominator != 0,
                z3.Real("xi_F") > 0,
            ],
            first <= second,
        )
    ]


def smoothness_and_sensitivity() -> list[Step]:
    """Smoother models make the bounds *less* sensitive to similarity: the slopes in S grow with beta."""
    upper = sympy.diff(UPPER, s_upper, beta)
    factor = sympy.diff(eps * (1 - alpha) * sympy.sqrt(2) / (c_G + eps), c_G)
    return [
        _sign("d2 UB / dS dbeta", "theorem-3", upper, ">= 0", s_upper > -1),
        _sign(
            "k of Theorem 1 shrinks as c_G grows, which falls with beta: dk/dc_G", "theorem-1", factor, "<= 0"
        ),
    ]


def upper_scale_invariance() -> list[Identity]:
    """Scaling the losses (xi, l_min, B and beta together) changes nothing: only ratios matter."""
    scale = sympy.Symbol("scale", positive=True)
    scaled = {quantity: scale * quantity for quantity in (xi_F, xi_G, l_min, b, beta)}
    return [Identity("UB(c xi, c l_min, c B, c beta) = UB", UPPER.subs(scaled, simultaneous=True), UPPER)]
