"""Slack, verdict and the reason in words: a bound beside a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bounds import BoundValue, Estimate, Sense, Status

VERDICTS = ("violated", "consistent", "inconclusive", "vacuous", "inapplicable")
# Guaranteed ends are certified up to floating-point rounding; a rate on the line is no violation.
ROUNDING = 1e-6

Judgement = tuple[float | None, str, str]


def judge(bound: BoundValue, measured: Estimate, obstacles: Sequence[str] = ()) -> Judgement:
    """Slack, verdict and the reason in words for one bound beside one measurement.

    Args:
        bound: The statement, evaluated.
        measured: The rate that it speaks about.
        obstacles: What may keep the statement from applying, in words; told only where it does not.

    Returns:
        The slack (positive on the right side, None where the statement is inapplicable); a verdict out of
        consistent, violated, vacuous, inapplicable and inconclusive; and the reason. Only a guaranteed bound
        can be violated: a measurement beyond a heuristic value is inconclusive.
    """
    if bound.status is Status.INAPPLICABLE or bound.value is None:
        return None, "inapplicable", "; ".join((*bound.unmet, *obstacles))
    upper = bound.statement.sense is Sense.UPPER
    sign = 1.0 if upper else -1.0
    slack = sign * (bound.value - measured.value)
    limit = bound.guaranteed
    # The measured interval's end that would have to lie beyond the bound for a violation, and its other end.
    near, far = (measured.lower, measured.upper) if upper else (measured.upper, measured.lower)
    if limit is not None and sign * (near - limit) > ROUNDING:
        return slack, "violated", f"measured {in_words(measured)} lies beyond the guaranteed {limit:.4g}"
    if bound.status is Status.VACUOUS:
        term, size = max(bound.terms.items(), key=lambda item: sign * item[1])
        return slack, "vacuous", f"the bound is {bound.value:.4g}; its largest term is {term} ({size:.4g})"
    if limit is None:
        words = f"{bound.grade.value} bound {bound.value:.4g}, measured {in_words(measured)}"
        return slack, "consistent" if slack >= -ROUNDING else "inconclusive", words
    words = f"{bound.grade.value}: guaranteed {limit:.4g}, measured {in_words(measured)}"
    return slack, "consistent" if sign * (limit - far) >= -ROUNDING else "inconclusive", words


def judge_joint(
    certified: Estimate,
    eligible: Estimate,
    attacks: Mapping[str, Estimate],
    contradicted: int,
    found: Estimate,
) -> tuple[float, str, str]:
    """The same for R2 beside the attacks in the ball.

    Args:
        certified: The strongest attack's rate, bracketed; its value is R2.
        eligible: Rate of the points that can count.
        attacks: Rate of each attack that was run.
        contradicted: Number of points that are certified and that an attack fools all the same.
        found: Rate of the points fooled by some attack.
    """
    slack = certified.value - found.value
    best = max(attacks, key=lambda name: attacks[name].value)
    measured = f"the best attack ({best}) reaches {attacks[best].value:.4g}, all together {found.value:.4g}"
    if contradicted:
        return slack, "violated", f"an attack fools {contradicted} points that are certified; {measured}"
    if certified.value >= eligible.value and eligible.value > 0:
        return (
            slack,
            "vacuous",
            f"none of the points that can count ({eligible.value:.4g}) is certified; {measured}",
        )
    return slack, "consistent", f"no attack exceeds {in_words(certified)}; {measured}"


def in_words(estimate: Estimate) -> str:
    """A number with its interval."""
    if estimate.is_exact:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.lower:.4g}, {estimate.upper:.4g}]"
