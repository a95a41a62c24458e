"""What a comparison says in words: what the theory predicts of the ensembles, how far, and what fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from bounds import STATEMENTS, Sense, Variant
from empirical.comparison.frontier import R2, R2_LEVEL
from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import JointRow
from empirical.health import AttackHealth
from empirical.report.summary import (
    Table,
    ensemble_table,
    short_title,
    statement_table,
    statements,
    verdict_counts,
)

_SUBJECTS = {
    Variant.PRINTED: "As printed, the paper's theorems guarantee",
    Variant.REPAIRED: "Repaired, they guarantee",
    Variant.REFINED: "Our refined versions guarantee",
}


def in_words(comparison: Comparison) -> str:
    """The findings, then the tables, for a terminal."""
    tables_as_text = (table.to_text() for table in tables(comparison))
    return "\n\n".join(["\n".join(findings(comparison)), *tables_as_text])


def findings(comparison: Comparison) -> list[str]:
    """What came out, most important first, as sentences."""
    return [
        _contradictions(comparison),
        *(_reach(comparison, variant) for variant in Variant if _of(comparison, variant)),
        *_certificates(comparison),
        *_kinks(comparison.ensembles),
        *_ill_attacks(comparison.ensembles),
        *_gradient_penalty(comparison.ensembles),
    ]


def _contradictions(comparison: Comparison) -> str:
    counts = verdict_counts(comparison)
    total = sum(counts.values())
    if counts["violated"]:
        return (
            f"{counts['violated']} of {total} evaluations contradict a guaranteed bound: a proof or an "
            "estimator is wrong. Please report it."
        )
    return f"No guaranteed bound is contradicted by a measurement ({total} evaluations)."


def _of(comparison: Comparison, variant: Variant) -> list[str]:
    return [name for name in statements(comparison) if STATEMENTS[name].variant is variant]


def _reach(comparison: Comparison, variant: Variant) -> str:
    """Up to which l2 radius a variant guarantees something for every pair, or what is in the way."""
    subject, names = _SUBJECTS[variant], _of(comparison, variant)
    speaking, silent = [], []
    for result in comparison.ensembles:
        reached = {
            each.statement: each.guaranteed
            for each in result.frontiers
            if each.statement in names and each.norm == "l2" and each.guaranteed is not None
        }
        if reached:
            best = max(reached, key=lambda name: reached[name])
            speaking.append(f"{reached[best]:g} for {result.name} ({short_title(best)})")
        else:
            silent.append(result.name)
    if speaking:
        rest = f"; nothing for {', '.join(silent)}" if silent else ""
        return f"{subject} something about every pair up to l2 radius {', '.join(speaking)}{rest}."
    words = _in_the_way(comparison, names)
    return f"{subject} nothing about all pairs of any ensemble, at any radius tried.{words}"


def _in_the_way(comparison: Comparison, names: Sequence[str]) -> str:
    """The hypotheses that fail most often: one for the bounds from below, one for those from above."""
    words = []
    for sense in (Sense.LOWER, Sense.UPPER):
        own = [name for name in names if STATEMENTS[name].sense is sense]
        rows = [row for row in comparison.rows() if row.statement in own]
        failing = Counter(row.bound["unmet"][0].split(": ")[0] for row in rows if row.bound["unmet"])
        if failing:
            hypothesis, count = failing.most_common(1)[0]
            words.append(f"for the {sense}s “{hypothesis}” ({count} of {len(rows)} evaluations)")
    return f" The hypothesis that fails most often is {', '.join(words)}." if words else ""


def _certificates(comparison: Comparison) -> list[str]:
    """How far R2 is worth something, and how near the strongest attack comes to it there."""
    told = []
    for result in comparison.ensembles:
        wanted = (R2, "untargeted", "l2", 2)
        radii = [
            each.guaranteed
            for each in result.frontiers
            if (each.statement, each.mode, each.norm, len(each.models)) == wanted
        ]
        reached = [radius for radius in radii if radius is not None]
        if reached and len(reached) == len(radii):
            pairs = [
                row
                for row in result.joint
                if (row.mode, row.norm, row.eps, len(row.models)) == ("untargeted", "l2", min(reached), 2)
            ]
            worst = max(pairs, key=lambda row: (row.certified.upper, row.found.value))
            told.append(
                f"{worst.eps:g} for {result.name} (there at most {worst.certified.upper:.3f}, and "
                f"{worst.found.value:.3f} found)"
            )
    if not told:
        return []
    return [
        "Certificates hold for every attack in the ball, not only for those that were run. R2 keeps every "
        f"pair below {R2_LEVEL:g} up to l2 radius {', '.join(told)}."
    ]


def _kinks(ensembles: Sequence[EnsembleResult]) -> list[str]:
    return [
        f"{result.name} has kinks ({', '.join(result.kinks)}): its beta is infinite and Theorems 1-4 do not "
        "apply as stated. What is shown rests on the exact second-order remainder of the attack that was run."
        for result in ensembles
        if result.kinks
    ]


def _ill_attacks(ensembles: Sequence[EnsembleResult]) -> list[str]:
    """Ensembles whose attacks may be weaker than they look."""
    blind, broken = [], []
    for result in ensembles:
        found = [entry["health"] for entry in result.robustness]
        found += [health for matrix in result.matrices for health in matrix["health"]]
        healths = [AttackHealth.from_json(health) for health in found]
        if any(health.often_without_gradient for health in healths):
            blind.append(f"{result.name} ({max(health.zero_gradients for health in healths):.0%})")
        if any(health.broken_images for health in healths):
            broken.append(result.name)
    told = []
    if blind:
        told.append(
            "An attack met gradients of exactly zero, in the worst case on this share of its steps: "
            f"{', '.join(blind)}. It may have missed what there is: try --attacks apgd, on margins."
        )
    if broken:
        told.append(f"An attack returned black or invalid images: {', '.join(broken)}. Please report it.")
    return told


def _gradient_penalty(ensembles: Sequence[EnsembleResult]) -> list[str]:
    """What training did to B and to beta, between the ensembles with the largest and the smallest B."""
    finite = [result for result in ensembles if math.isfinite(result.beta.upper)]
    if len(finite) < 2:
        return []
    rough = max(finite, key=lambda result: result.benign["gradient_norm"])
    flat = min(finite, key=lambda result: result.benign["gradient_norm"])
    changes = (
        (rough.benign["gradient_norm"], flat.benign["gradient_norm"]),
        (rough.beta.lower, flat.beta.lower),
        (rough.beta.upper, flat.beta.upper),
    )
    size, sampled, certified = (f"{before:.3g} to {after:.3g}" for before, after in changes)
    return [
        f"From {rough.name} to {flat.name} the largest gradient norm B goes from {size}, the sampled beta "
        f"from {sampled}, the certified beta from {certified}. What bounds gradients need not bound beta "
        "(erratum 13)."
    ]


def tables(comparison: Comparison) -> list[Table]:
    """The tables that matter, for the terminal and for the report."""
    certificates = [certificate_table(comparison)] if any(comparison.joint()) else []
    return [ensemble_table(comparison), statement_table(comparison), *certificates]


def certificate_table(comparison: Comparison) -> Table:
    """For each ensemble the strongest attack found beside R2, by radius and by who is fooled together."""
    seen = {(row.norm, row.eps) for row in comparison.joint()}
    radii = sorted(seen, key=lambda radius: (radius[0] != "l2", radius[1]))
    lines = []
    for result in comparison.ensembles:
        groups: dict[tuple[int, int], list[JointRow]] = {}
        for row in result.joint:
            if row.mode == "untargeted":
                groups.setdefault((row.together, len(row.models)), []).append(row)
        for (together, members), group in sorted(groups.items()):
            cells = [_cell([row for row in group if (row.norm, row.eps) == radius]) for radius in radii]
            words = "worst pair" if (together, members) == (2, 2) else f"{together} of {members}"
            lines.append((result.name, words, *cells))
    return Table(
        "Rate of points that one perturbation fools, untargeted: found by the attacks / certified for every\n"
        "attack (R2); - where nothing is certified",
        ("ensemble", "fooled together", *(f"{norm} {eps:g}" for norm, eps in radii)),
        tuple(lines),
    )


def _cell(rows: Sequence[JointRow]) -> str:
    """The worst of some certificates; nothing is certain of all where one says nothing."""
    if not rows:
        return "-"
    found = max(row.found.value for row in rows)
    sure = all(row.informative for row in rows)
    return f"{found:.3f} / {f'{max(row.certified.upper for row in rows):.3f}' if sure else '-'}"
