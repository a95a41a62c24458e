"""The tables of a smoothness study, for the terminal, and what is infinite and why."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bounds import Estimate
from empirical.report.summary import Table
from empirical.smoothness.result import SETS, MemberStudy, SmoothnessStudy


def member_table(study: SmoothnessStudy) -> Table:
    """One line per model and set: sampled beta, certified beta, their ratio, B."""
    rows = []
    for member in study.members:
        for where in SETS:
            if where in member.smoothness or where in member.gradient:
                rows.append((member.name, where, *_cells(member, where)))
    return Table(
        f"Smoothness beta and gradient bound B of cross-entropy, l2, {study.settings.samples} points, "
        f"radius {study.settings.radius:g} (at the true label; over the whole space at every label)",
        ("model", "set", "beta sampled", "beta certified", "ratio", "B sampled", "B certified"),
        tuple(rows),
    )


def pair_table(study: SmoothnessStudy) -> Table:
    """One line per pair of models: the range of their gradients' cosine."""
    rows = [
        (f"{pair.first} / {pair.second}", where, _range(pair.infimum[where], pair.supremum[where]))
        for pair in study.pairs
        for where in SETS
        if where in pair.infimum
    ]
    return Table(
        "Gradient similarity: cosine of the loss gradients, smallest .. largest",
        ("pair", "set", "cosine"),
        tuple(rows),
    )


def remarks(study: SmoothnessStudy) -> list[str]:
    """What is infinite or missing and why; how far the sampling had converged."""
    return [remark for member in study.members for remark in _remarks(member)]


def _remarks(member: MemberStudy) -> Iterator[str]:
    if member.kinks:
        yield f"{member.name}: beta is infinite, the gradient jumps in {', '.join(member.kinks)}"
        if member.divergence is not None:
            yield (
                f"{member.name}: gradient quotients grow as h^-{member.divergence['slope']:.2f}, up to "
                f"{max(member.divergence['quotients']):.3g} at distance {member.divergence['scales'][-1]:.2g}"
            )
        if member.finite_scale:
            scale, quotient = member.finite_scale[-1]
            yield (
                f"{member.name}: over pairs at least {scale:.1g} apart the quotients reach {quotient:.4g}; "
                "this is no beta"
            )
    elif member.uncertified:
        yield f"{member.name}: not certified: {member.uncertified}"
    if member.remainder is not None:
        yield (
            f"{member.name}: all that the proofs use of beta for the attack that was run is "
            f"{member.remainder.value:.4g} (exact second-order remainder)"
        )
    if len(member.convergence) > 1 and member.convergence[-1][1] > 0:
        spent, best = member.convergence[-1]
        early = max((value for budget, value in member.convergence if budget <= spent / 2), default=0.0)
        if early > 0:
            growth = f"{best / early - 1:.1%}"
            yield f"{member.name}: the second half of the budget raised the sampled beta by {growth}"


def _cells(member: MemberStudy, where: str) -> Iterator[str]:
    smoothness, gradient = member.smoothness.get(where), member.gradient.get(where)
    yield _sampled(smoothness)
    yield _certified(smoothness)
    both = smoothness is not None and smoothness.lower > 0 and math.isfinite(smoothness.upper)
    yield f"{smoothness.upper / smoothness.lower:.3g}" if both and smoothness is not None else "-"
    yield _sampled(gradient)
    yield _certified(gradient)


def _sampled(estimate: Estimate | None) -> str:
    return "-" if estimate is None or estimate.lower <= 0 else f"{estimate.lower:.4g}"


def _certified(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if math.isfinite(estimate.upper):
        return f"{estimate.upper:.4g}"
    return "infinite" if math.isinf(estimate.value) else "unknown"


def _range(infimum: Estimate, supremum: Estimate) -> str:
    """The certified range, or what was seen of it."""
    if infimum.lower == infimum.value and supremum.upper == supremum.value:
        return f"{infimum.value:+.3f} .. {supremum.value:+.3f}"
    return (
        f"{infimum.lower:+.3f} .. {supremum.upper:+.3f} (seen {infimum.value:+.3f} .. {supremum.value:+.3f})"
    )
