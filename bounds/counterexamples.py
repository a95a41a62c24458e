"""The counterexamples behind `bounds.errata`, one function each.

Each builds its example, evaluates what the paper prints on it and what is true, and checks the corrected
claim on the same example: that it holds there, or that a hypothesis which the paper leaves out fails, so
that the statement does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial

from bounds.evaluation import Status, evaluate
from bounds.families import theorem_3_sharp, theorem_6_attained
from bounds.registry import STATEMENTS
from bounds.scenario import F, G, Scenario
from bounds.worlds import LabelShift, LinearSoftmax, LocalQuadratics


@dataclass(frozen=True)
class Outcome:
    """What running a counterexample showed.

    Attributes:
        printed: The number that the printed claim gives on the example.
        truth: The number that it is a claim about, as it really is.
        printed_fails: Whether the two contradict the printed claim.
        repaired_holds: Whether the corrected claim holds on the example, or rightly does not apply to it.
        details: The numbers, in a sentence.
    """

    printed: float
    truth: float
    printed_fails: bool
    repaired_holds: bool
    details: str


def _line(f: list[tuple[float, float]], g: list[tuple[float, float]], step: float = 1.0) -> Scenario:
    """One point x = 0 on the line, y = 0, y_t = 1, eps = 1: losses `value + slope x` per label."""
    table = np.array([[f, g]])
    world = LocalQuadratics.affine([1.0], [0], table[..., 0], table[..., 1:])
    return world.under([[step]], 1.0)


def _bare(statement: str, quantities: Mapping[str, Any]) -> float:
    """The printed formula, hypotheses unchecked."""
    names = STATEMENTS[statement].names
    return float(STATEMENTS[statement].formula(**{name: quantities[name] for name in names}))


def _gated(statement: str, scenario: Scenario, quantities: Mapping[str, Any] | None = None) -> Outcome:
    """The printed formula on a scenario, against the hypotheses that it leaves out."""
    numbers = scenario.quantities(statement) if quantities is None else dict(quantities)
    printed, truth = _bare(statement, numbers), scenario.subject(statement)
    checked = evaluate(statement, scenario.quantities(statement))
    return Outcome(
        printed,
        truth,
        STATEMENTS[statement].contradicted_by(truth, printed, tolerance=1e-9),
        checked.status is Status.INAPPLICABLE,
        f"the formula says {printed:.6g}, the true rate is {truth:.6g}; inapplicable because "
        + "; ".join(checked.unmet),
    )


# Losses per label as (value, slope); see `_line`.
_E1 = [(2.0, 1.0), (3.0, -2.0)], [(2.0, 1.0), (10.0, -1.0)]
_E2 = [(1.0, 2.0), (2.0, -1.0)], [(1.0, 1.0), (10.0, -1.0)]


def negative_denominator_theorem_1() -> Outcome:
    """Erratum 1: c_G = -7 at eps = 1, the formula says 1 and nothing transfers."""
    return _gated("theorem-1", _line(*_E1))


def negative_denominator_theorem_2() -> Outcome:
    """Erratum 2: c_G = 8 at eps = 1, the formula says 8/7 and nothing transfers."""
    return _gated("theorem-2", _line(*_E2))


def negative_denominator_theorem_4() -> Outcome:
    """Erratum 3: a denominator of -2, the formula says -1 and everything transfers."""
    both = [(1.0, 2.0), (2.0, -1.0)]
    return _gated("theorem-4", _line(both, both))


def negative_loss() -> Outcome:
    """Erratum 4: a loss of -97 at one of two points makes the formula -470/7."""
    value = np.array([[[3.0, 3.5]] * 2, [[3.0 - 100.0, 3.5 - 0.1]] * 2])
    slope = np.array([[[[1.0], [0.001]]] * 2] * 2)
    world = LocalQuadratics.affine([0.5, 0.5], [0, 0], value, slope)
    return _gated("theorem-4", world.under([[1.0], [1.0]], 1.0))


def gap_in_the_domain() -> Outcome:
    """X = {0, 1}: q = 10 (3x^2 - 2x^3) + x/100 has the same slope at both, and climbs by 10 between."""
    q = Polynomial([0.0, 0.01, 30.0, -20.0])
    slope, bend = q.deriv(), q.deriv(2)
    on_x_alone = abs(slope(1.0) - slope(0.0))
    on_the_segment = max(abs(bend(0.0)), abs(bend(1.0)))  # linear in x, so the ends decide
    numbers = {
        "xi_F": q(0.0),
        "xi_G": q(0.0),
        "l_min": 10.02 - q(0.0),
        "eps": 1.0,
        "B": max(slope(0.0), slope(1.0)),
        "S_upper": 1.0,
    }
    printed = _bare("theorem-4", {**numbers, "beta": on_x_alone})
    truth = float(q(1.0) > 10.02 - q(1.0))
    checked = evaluate("theorem-4", {**numbers, "beta": on_the_segment})
    return Outcome(
        printed,
        truth,
        truth > printed,
        checked.status is Status.INAPPLICABLE,
        f"beta over X is {on_x_alone:.3g} and the formula says {printed:.3g}, the true rate is "
        f"{truth:.3g}; on the "
        f"segment beta is {on_the_segment:.3g} and the theorem inapplicable",
    )


def one_label_only() -> Outcome:
    """B of the true label alone, then beta of the true label alone; the other label does the damage."""
    by_slope = _line([(0.1, 0.001), (2.0, -2.0)], [(0.1, 0.001), (2.0, -2.0)])
    slope_only = _gated("theorem-4", by_slope, {**by_slope.quantities("theorem-4"), "B": 0.001})
    value, slope, bend = [0.1, 2.0], [[0.001], [-0.001]], [[[0.0]], [[-4.0]]]
    by_bend = LocalQuadratics(
        np.ones(1),
        np.zeros(1, dtype=np.int64),
        np.array([[value] * 2]),
        np.array([[slope] * 2]),
        np.array([[bend] * 2]),
    ).under([[1.0]], 1.0)
    bend_only = _gated("theorem-4", by_bend, {**by_bend.quantities("theorem-4"), "beta": 0.0})
    return Outcome(
        max(slope_only.printed, bend_only.printed),
        min(slope_only.truth, bend_only.truth),
        slope_only.printed_fails and bend_only.printed_fails,
        slope_only.repaired_holds and bend_only.repaired_holds,
        f"B of label y alone: {slope_only.details}. beta of label y alone: {bend_only.details}",
    )


def lemma_8_at_zero() -> Outcome:
    """Erratum 7: at delta = 0 the lemma says 0 < 0."""
    x, y = np.array([1.0, 0.0]), np.array([-0.75, np.sqrt(1.0 - 0.75**2)])
    delta = np.zeros(2)
    numbers = {"delta_norm": 0.0, "S_upper": -0.5, "cosine": float(x @ y)}
    printed, truth = _bare("lemma-8", numbers), float(min(delta @ x, delta @ y))
    repaired = evaluate("lemma-8-repaired", numbers).value
    return Outcome(
        printed,
        truth,
        not truth < printed,
        repaired is not None and truth <= repaired,
        f"x.y = {x @ y:.2f} < S = -0.5 and delta = 0: the lemma says {truth:g} < {printed:g}",
    )


def positive_constants() -> Outcome:
    """C - k sqrt(1 - S) with positive C and k is negative at S = 1/2; and C itself need not be positive."""

    def parts(c_f: float) -> tuple[float, float]:
        numbers = {"alpha": 0.0, "eta_F": 0.0, "eta_G": 0.0, "eps": 1.0, "c_F": c_f, "c_G": -0.5}
        return _bare("theorem-1", {**numbers, "S_lower": 1.0}), _bare(
            "theorem-1", {**numbers, "S_lower": 0.5}
        )

    constant, bound = parts(-1.0)
    negative_constant = parts(0.0)[0]
    return Outcome(
        constant,
        bound,
        constant > 0 > bound and negative_constant < 0,
        bound <= 0,
        f"c_G = -1/2, eps = 1: with c_F = -1 the constant C is {constant:g} and the bound at S = 1/2 is "
        f"{bound:g}; "
        f"with c_F = 0 even C is {negative_constant:g}",
    )


def c_g_depends_on_f() -> Outcome:
    """The attack, hence F, sits inside c_G: the same G has another c_G when F calls for the opposite step."""
    g = [(0.0, 1.0), (0.011, -0.001)]
    forward = _line([(0.0, 1.0), (0.991, -0.001)], g, 1.0)
    backward = _line([(0.0, -1.0), (0.991, 0.001)], g, -1.0)
    first, second = (s.quantities("theorem-2")["c_G"] for s in (forward, backward))
    attacked = all(s.attacked_prediction[0, F] != 0 for s in (forward, backward))
    same_g = bool((forward.loss[:, G] == backward.loss[:, G]).all())
    return Outcome(
        first,
        second,
        attacked and same_g and abs(first - second) > 1e-6,
        abs(first - 0.010) < 1e-12 and abs(second - 0.012) < 1e-12,
        f"G alone is fixed; F's attack steps by +1 or -1 and c_G is {first:.3f} or {second:.3f}",
    )


def c_g_is_not_small() -> Outcome:
    """Erratum 10: c_G in the first two counterexamples, where beta = 0."""
    first = _line(*_E1).quantities("theorem-1")
    second = _line(*_E2).quantities("theorem-2")
    flat = first["beta"] == second["beta"] == 0.0
    return Outcome(
        0.0,
        second["c_G"],
        flat and min(abs(first["c_G"]), abs(second["c_G"])) > 1.0,
        first["c_G"] == -7.0 and second["c_G"] == 8.0,
        f"beta = 0 and eps = 1, yet c_G = {first['c_G']:g} in the first counterexample and "
        f"{second['c_G']:g} in the "
        "second: it is a gap between losses, divided by a slope",
    )


def alpha_is_never_used() -> Outcome:
    """Erratum 11: an attack with alpha = .9 that attains the sharp bound."""
    scenario = theorem_3_sharp(0.0, target_loss=10.0, rate=0.1)
    alpha = float(scenario.failure_rate(targeted=True))
    bound = evaluate("refined-r3", scenario.quantities("refined-r3")).value
    truth = scenario.subject("refined-r3")
    return Outcome(
        0.0,
        alpha,
        alpha > 0.0 and abs((bound or 0.0) - truth) < 1e-6,
        bound is not None and truth <= bound,
        f"an attack that fails with alpha = {alpha:.2g} attains the sharp bound {bound:.6g} (rate "
        f"{truth:.6g}): the "
        "bound is about every attack in the ball",
    )


def taylor_term() -> Outcome:
    """Take l'' = (1 - t)^3 on [0, 1] from l(0) = l'(0) = 0: the remainder at 1 is 1/5."""
    bend = Polynomial([1.0, -1.0]) ** 3
    remainder = float(bend.integ(2)(1.0))
    k = np.linspace(0.0, 1.0, 100_001)
    largest = float((k**2 * bend(k) / 2.0).max())
    lagrange = bend(k) / 2.0
    attained = bool(lagrange.min() <= remainder <= lagrange.max())
    concave = np.array([[-4.0]])
    top, spectral = np.linalg.eigvalsh(concave)[-1], np.linalg.norm(concave, 2)
    return Outcome(
        largest,
        remainder,
        largest < remainder and top <= 0 < abs(concave[0, 0]),
        attained and bool(abs(concave[0, 0]) <= spectral),
        f"no k in [0, 1] makes (1/2) (k delta)^2 l''(k delta) equal to the remainder {remainder:.3g}: its "
        "maximum is "
        f"{largest:.3g}; and l'' = -4 has largest eigenvalue {top:g} but bends by {spectral:g}",
    )


def penalty_controls_b() -> Outcome:
    """Erratum 13: slopes of at most 1, curvature as large as one likes."""
    x = np.linspace(0.0, 2.0 * np.pi, 20_001)
    scales = (1.0, 0.1, 0.01)
    slopes = [float(np.abs(np.cos(x)).max()) for _ in scales]  # of eta sin(x / eta), in units of x / eta
    bends = [float(np.abs(np.sin(x) / eta).max()) for eta in scales]
    return Outcome(
        max(slopes),
        max(bends),
        max(slopes) <= 1.0 and bends[-1] > 50.0 * max(slopes),
        all(abs(bend - 1.0 / eta) < 1e-6 / eta for bend, eta in zip(bends, scales, strict=True)),
        f"l = eta sin(x / eta) has |l'| at most {max(slopes):g} for eta = 1, .1, .01, and beta = "
        + ", ".join(f"{bend:.4g}" for bend in bends),
    )


def flat_is_not_linear() -> Outcome:
    """A linear classifier has beta > 0; and with beta = 0 each loss is affine, hence no confidence is."""
    linear = LinearSoftmax(np.array([[[1.0], [-1.0]]] * 2), np.zeros((2, 2)))
    beta = float(linear.smoothness(np.zeros((1, 1)), 1.0).max())
    at = np.array([-1.0, 0.0, 1.0])
    losses = np.log(2.0) + np.stack([at, -at])
    confidence = np.exp(-losses)
    bend_of_loss, bend_of_confidence = (
        float(np.abs(table[:, 0] + table[:, 2] - 2.0 * table[:, 1]).max()) for table in (losses, confidence)
    )
    total = float(confidence.sum(axis=0).max())
    return Outcome(
        0.0,
        beta,
        beta > 0.0 and bend_of_confidence > 0.1,
        bend_of_loss < 1e-12 and total > 1.5,
        f"the linear classifier x -> (x, -x) has beta = {beta:g}; the affine losses log 2 + x and log 2 - "
        "x have "
        f"confidences exp(-l), which are not linear (and sum to {total:.3g} at x = 1: as cross-entropies "
        "only "
        "constants have beta = 0)",
    )


def total_variation() -> Outcome:
    """Erratum 15: two point masses."""
    still = np.zeros(2, dtype=np.int64)
    move = LabelShift(np.array([1.0, 0.0]), still, still, still, np.array([1, 1]))
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    inside = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])  # every event
    variation = float(np.abs(inside @ p - inside @ q).max())
    distance = float(np.abs(p - q).sum())
    return Outcome(
        distance,
        variation,
        distance != variation,
        variation == distance / 2.0 == float(move.rho),
        f"P = (1, 0), Q = (0, 1): the l1 distance is {distance:g}, the largest difference over events "
        f"{variation:g}",
    )


def swapped_proof() -> Outcome:
    """The first proof bounds Pr(G(A(x)) = G(x)) by delta, which is given for F; and three labels are fine."""
    world = theorem_6_attained("theorem-6")
    delta = float(world.rate(world.attacked_f == world.f))
    on_g = float(world.rate(world.attacked_g == world.g))
    rotation, after = np.arange(3), np.array([1, 2, 0])
    three = LabelShift(np.full(3, 1.0 / 3.0), rotation, rotation, np.array([0, 1, 1]), after)
    sound = all(
        w.subject("theorem-6") <= (evaluate("theorem-6", w.quantities("theorem-6")).value or 0.0) + 1e-9
        for w in (world, three)
    )
    return Outcome(
        delta,
        on_g,
        on_g > delta + 1e-9,
        sound,
        f"delta = {delta:.3g} is F's rate of unchanged labels; G's, which the first proof replaces by it, "
        f"is {on_g:.3g}. "
        "The second proof's bound holds here and for three labels",
    )


def target_label_already() -> Outcome:
    """The identity attack on a perfect F = G: the targeted Tr of Definition 7 is Pr(y = y_t), not 0."""
    value = np.array([[[0.0, 1.0]] * 2, [[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
    world = LocalQuadratics.affine(np.full(4, 0.25), [0, 1, 1, 0], value, np.zeros((4, 2, 2, 1)))
    scenario = world.under(np.zeros((4, 1)), 1.0)
    printed = float(scenario.rate(scenario.transfers(targeted=True)))
    proper = float(scenario.rate(scenario.proper & scenario.transfers(targeted=True)))
    return Outcome(
        printed,
        0.0,
        printed > 0.0,
        proper == 0.0,
        f"nothing was attacked, and the targeted transferability is {printed:g}; with y != y_t it is "
        f"{proper:g}",
    )
