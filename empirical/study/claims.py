"""The paper's implications, one by one: what was found across the ensembles, and what the theory says.

Each claim names what would bear it out. A piece of evidence is a statistic with an interval and
the side of zero on which the claim puts it. A claim holds if all its deciding evidence lies on that side,
fails if some lies on the other, and is undecided otherwise. Correlations are over trained ensembles of one
design on one data set: they say what went together there. Effects are differences between ensembles that have
all else in common, down to the initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from empirical.study.analysis import Effect, bootstrap_of, effect, known, main_outcomes
from empirical.study.observations import Floats, Table
from empirical.study.plan import Plan
from empirical.study.statistics import Interval, Statistic, difference, partial_spearman, spearman, within

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
# "Highly correlated" is not a number in the paper; this is ours.
HIGH = 0.5


@dataclass(frozen=True)
class Evidence:
    """A number that bears on a claim.

    Attributes:
        what: The statistic in words.
        value: The statistic; None where too few ensembles have it.
        lower: Lower end of its interval.
        upper: Upper end.
        units: Ensembles or blocks behind it.
        pivot: The value that separates for from against.
        sign: 1 if the claim puts the statistic above the pivot, -1 below, 0 if it says nothing about it.
        deciding: Whether the answer hangs on it.
    """

    what: str
    value: float | None
    lower: float | None
    upper: float | None
    units: int
    pivot: float
    sign: int
    deciding: bool

    @property
    def speaks(self) -> str:
        """Whether the interval is on the claim's side ("holds"), on the other ("fails"), or on both."""
        if not self.sign or self.lower is None or self.upper is None:
            return UNDECIDED
        low, high = sorted((self.sign * (self.lower - self.pivot), self.sign * (self.upper - self.pivot)))
        return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {**self.__dict__, "speaks": self.speaks}


@dataclass(frozen=True)
class Claim:
    """An implication that the paper draws.

    Attributes:
        name: Short identifier.
        text: The claim in a sentence.
        source: Where the paper makes it.
        theory: What is proved about it.
        evidence: What was measured.
    """

    name: str
    text: str
    source: str
    theory: str
    evidence: tuple[Evidence, ...]

    @property
    def answer(self) -> str:
        """holds, fails or undecided."""
        spoken = [each.speaks for each in self.evidence if each.deciding]
        if FAILS in spoken:
            return FAILS
        return HOLDS if spoken and all(each == HOLDS for each in spoken) else UNDECIDED

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        evidence = [each.to_json() for each in self.evidence]
        return {**self.__dict__, "evidence": evidence, "answer": self.answer}


class Examiner:
    """Makes evidence from the tables.

    Args:
        ensembles: A line for each ensemble.
        pairs: A line for each pair of members.
        plan: How they were measured.
    """

    def __init__(self, ensembles: Table, pairs: Table, plan: Plan) -> None:
        self.tables = {table.unit: table for table in (ensembles, pairs)}
        self.bootstraps = {unit: bootstrap_of(table, plan.resamples) for unit, table in self.tables.items()}
        self.names = main_outcomes(plan)

    def numbers(self, name: str, unit: str = "ensemble") -> Floats:
        """A column, by its name or, for an outcome, its short name; NaN where it is missing."""
        table = self.tables[unit]
        return table.numbers.get(self.names.get(name, name), np.full(len(table), np.nan))

    def interval(self, statistic: Statistic, columns: Sequence[Floats], unit: str) -> Interval | None:
        """The bootstrap interval over the units that have all columns."""
        return self.bootstraps[unit].interval(statistic, known(*columns))

    def rank(
        self, x: str, y: str, sign: int, *, given: Sequence[str] = (), unit: str = "ensemble",
        part: Callable[[Examiner, str], Any] | None = None, where: str = "", pivot: float = 0.0,
        deciding: bool = False,
    ) -> Evidence:  # fmt: skip
        """Spearman's correlation of two columns, given others, over all units or a part of them."""
        columns = [self.numbers(name, unit) for name in (x, y, *given)]
        statistic = partial_spearman(columns[0], columns[1], columns[2:]) if given else spearman(*columns[:2])
        if part is not None:
            statistic = within(statistic, part(self, unit))
        words = f"Spearman({x}, {y}{' | ' + ', '.join(given) if given else ''}), {unit}s{where}"
        return evidence(words, self.interval(statistic, columns, unit), sign, pivot=pivot, deciding=deciding)

    def change(
        self,
        weight: str,
        quantity: str,
        sign: int,
        *,
        other: Sequence[str] | None = None,
        deciding: bool = False,
    ) -> Evidence:
        """The effect of a loss weight on a quantity, over blocks."""
        name = self.names.get(quantity, quantity)
        table = self.tables["ensemble"]
        found = effect(table, weight, name, other) if name in table.numbers else None
        if found is None:
            return Evidence(f"effect of {weight} on {quantity}", None, None, None, 0, 0.0, sign, deciding)
        words = f"{_in_words(found)} {quantity}"
        pivot = 1.0 if found.scale == "ratio" else 0.0
        return Evidence(words, found.value, found.lower, found.upper, found.blocks, pivot, sign, deciding)


def evidence(
    what: str, interval: Interval | None, sign: int, *, pivot: float = 0.0, deciding: bool = False
) -> Evidence:
    """A statistic with its bootstrap interval as evidence."""
    if interval is None:
        return Evidence(what, None, None, None, 0, pivot, sign, deciding)
    return Evidence(
        what, interval.value, interval.lower, interval.upper, interval.groups, pivot, sign, deciding
    )


def answer_claims(ask: Examiner) -> tuple[Claim, ...]:
    """Every implication with its evidence."""
    return (*_about_similarity(ask), *_about_smoothness(ask), *_about_bounds(ask))


def _about_similarity(ask: Examiner) -> tuple[Claim, ...]:
    return (
        Claim(
            "similarity",
            "Lower similarity of the loss gradients implies less transfer.",
            "Theorems 3 and 4, Implications; section 5",
            "The upper bounds increase in S while their denominator D is positive; transfer itself need not.",
            (
                ask.rank("cos_mean", "transfer", 1, deciding=True),
                ask.change("lambda_a", "transfer", -1, deciding=True),
                ask.rank("cos_mean", "transfer", 1, unit="pair"),
                ask.rank("cos_mean", "transfer", 1, given=("beta_sampled", "B", "accuracy")),
                ask.rank("cos_mean", "conditional", 1),
            ),
        ),
        Claim(
            "similarity-joint",
            "It also implies that the strongest attack on both members at once succeeds less.",
            "Theorems 3 and 4 bound every attack in the ball",
            "Their proofs never use that the attack was built on F, so this is what they bound.",
            (
                ask.rank("cos_mean", "found", 1, deciding=True),
                ask.change("lambda_a", "found", -1, deciding=True),
                ask.rank("cos_mean", "found", 1, given=("beta_sampled", "B", "accuracy")),
                ask.rank("cos_mean", "found", 1, given=("single",)),
                ask.change("lambda_a", "certified", -1),
                ask.change("lambda_a", "single", 0),
            ),
        ),
        Claim(
            "extreme-similarity",
            "So does the similarity that the theorems use, the supremum of the cosine over the data.",
            "Definition 5, Theorems 3 and 4",
            "The theorems hold with the supremum; one point with parallel gradients is enough to make it 1.",
            (
                ask.rank("cos_sup", "transfer", 1, deciding=True),
                ask.rank("cos_sup", "transfer", 1, given=("cos_mean",)),
                ask.rank("cos_inf", "transfer", 1),
            ),
        ),
        Claim(
            "highly-correlated",
            f"Gradient similarity is highly correlated with transfer (asked: above {HIGH:g}).",
            "Theorems 3 and 4, Implications",
            "Nothing is proved about the transfer itself.",
            (
                ask.rank("cos_mean", "transfer", 1, pivot=HIGH, deciding=True),
                ask.rank("cos_mean", "conditional", 1, pivot=HIGH),
                ask.rank("cos_mean", "found", 1, pivot=HIGH),
            ),
        ),
        Claim(
            "similarity-only",
            "Similarity is what ties two models together; what is known of each alone can be taken as "
            "constant. (Then transfer follows similarity more closely than how easily F alone is fooled.)",
            "Theorems 1 and 2, Implications",
            "False as stated: c_G contains the loss of G at an attack that was built on F (erratum 9).",
            (
                _rank_gap(ask, "cos_mean", "alone", "transfer", deciding=True),
                ask.rank("alone", "transfer", 0),
            ),
        ),
        Claim(
            "not-enough",
            "Low similarity alone is not enough: at equal similarity smoother models transfer less.",
            "Figure 1",
            "Orthogonal gradients with large curvature allow any transfer; r contains both.",
            (
                ask.rank("beta_sampled", "transfer", 1, given=("cos_mean",), deciding=True),
                ask.rank("beta_sampled", "transfer", 1, part=_low_similarity, deciding=True,
                         where=" in the third with the lowest cos_mean"),
                ask.rank("beta_sampled", "found", 1, given=("cos_mean",)),
                ask.rank("beta_sampled", "found", 1, part=_low_similarity,
                         where=" in the third with the lowest cos_mean"),
            ),
        ),
        Claim(
            "smoothness-term",
            "Adding the smoothness term to the similarity term lowers transfer further.",
            "Section 6.3, Cos-only against TRS",
            "Nothing is proved about training. The term also changes the similarity.",
            (
                ask.change("lambda_b", "transfer", -1, other=("1",), deciding=True),
                ask.change("lambda_b", "found", -1, other=("1",)),
                ask.change("lambda_b", "certified", -1, other=("1",)),
                ask.change("lambda_b", "cos_mean", 0, other=("1",)),
            ),
        ),
    )  # fmt: skip


def _about_smoothness(ask: Examiner) -> tuple[Claim, ...]:
    return (
        Claim(
            "smoothness",
            "Smoother models transfer less.",
            "Theorems 3 and 4, Implications; abstract",
            "The upper bounds increase in beta while D is positive. They need the certified beta; the "
            "sampled one errs below.",
            (
                ask.rank("beta_sampled", "transfer", 1, deciding=True),
                ask.rank("beta_certified", "transfer", 1, deciding=True),
                ask.change("lambda_b", "transfer", -1, deciding=True),
                ask.rank("beta_sampled", "transfer", 1, given=("cos_mean", "B", "accuracy")),
                ask.rank("beta_sampled", "conditional", 1),
            ),
        ),
        Claim(
            "smoothness-joint",
            "On smoother models the strongest attack on both members at once succeeds less.",
            "Theorems 3 and 4 bound every attack in the ball",
            "Their proofs never use that the attack was built on F, so this is what they bound.",
            (
                ask.rank("beta_sampled", "found", 1, deciding=True),
                ask.rank("beta_certified", "found", 1, deciding=True),
                ask.change("lambda_b", "found", -1, deciding=True),
                ask.rank("beta_sampled", "found", 1, given=("cos_mean", "B", "accuracy")),
                ask.change("lambda_b", "certified", -1),
            ),
        ),
        Claim(
            "gradient-size",
            "A smaller gradient bound B implies less transfer.",
            "Theorems 3 and 4, Implications",
            "Not by itself: only ratios enter the bound, and a loss multiplied by c has c times the B and "
            "the same transfer. What counts beside the losses may still show in models trained alike.",
            (
                ask.rank("B", "transfer", 1, deciding=True),
                ask.rank("B", "transfer", 1, given=("cos_mean", "beta_sampled", "accuracy"), deciding=True),
                ask.rank("B", "beta_sampled", 1),
                ask.rank("gradient", "transfer", 1),
            ),
        ),
        Claim(
            "penalty-smooths",
            "A penalty on the gradient's size makes models smoother.",
            "Section 5.1",
            "In general it bounds B, not beta: eta sin(x / eta) has slope 1, curvature 1 / eta: erratum 13.",
            (
                ask.change("lambda_b", "beta_sampled", -1, deciding=True),
                ask.change("lambda_b", "beta_certified", -1, deciding=True),
                ask.change("lambda_b", "B", -1),
                ask.change("lambda_b", "gradient", -1),
            ),
        ),
        Claim(
            "stronger-correlation",
            "With smoother models the correlation between similarity and transfer is stronger.",
            "Section 4, Impact of model smoothness",
            "False as sensitivity: the derivative of the upper bound in S increases with beta.",
            (
                _halves(ask, "transfer", deciding=True),
                _halves(ask, "found"),
            ),
        ),
        Claim(
            "both",
            "Smooth models with low similarity transfer less than the others.",
            "Section 1; conclusion",
            "True as a bound where the bound says something; the certificate R2 is the one that does here.",
            (
                _quadrant(ask, "transfer", deciding=True),
                _quadrant(ask, "found"),
                _quadrant(ask, "certified"),
            ),
        ),
    )


def _about_bounds(ask: Examiner) -> tuple[Claim, ...]:
    return (
        Claim(
            "gap",
            "The gap between upper and lower bound shrinks as models get smoother.",
            "Section 4, Impact of model smoothness",
            "True of the formulas where both apply, which the printed ones do not here. Asked of the "
            "certificates instead: R2 (no attack does better) minus R7 (some attack does at least this).",
            (
                _gap(ask, "beta_certified", deciding=True),
                _gap(ask, "beta_sampled", deciding=True),
                _gap(ask, "beta_certified", given=("accuracy",)),
            ),
        ),
        Claim(
            "certificate-orders",
            "The certificate R2 orders ensembles as the strongest attack found does.",
            "ours (theory: R1, R2)",
            "R2 is never below the rate of any attack. That it orders ensembles is not proved.",
            (
                ask.rank("certified", "found", 1, pivot=HIGH, deciding=True),
                ask.rank("certified", "found", 1, unit="pair", pivot=HIGH),
                ask.rank("certified", "found", 1, given=("single",)),
            ),
        ),
    )


def _low_similarity(ask: Examiner, unit: str) -> Any:
    values = ask.numbers("cos_mean", unit)
    return values <= np.nanquantile(values, 1 / 3)


def _smoother_half(ask: Examiner) -> Any:
    values = ask.numbers("beta_sampled")
    return values <= np.nanmedian(values)


def _rank_gap(ask: Examiner, first: str, second: str, outcome: str, *, deciding: bool = False) -> Evidence:
    x, z, y = (ask.numbers(name) for name in (first, second, outcome))
    found = ask.interval(difference(spearman(x, y), spearman(z, y)), (x, z, y), "ensemble")
    words = f"Spearman({first}, {outcome}) minus Spearman({second}, {outcome}), ensembles"
    return evidence(words, found, 1, deciding=deciding)


def _halves(ask: Examiner, outcome: str, *, deciding: bool = False) -> Evidence:
    x, y, smooth = ask.numbers("cos_mean"), ask.numbers(outcome), _smoother_half(ask)
    statistic = difference(within(spearman(x, y), smooth), within(spearman(x, y), ~smooth))
    words = f"Spearman(cos_mean, {outcome}) in the half with the smaller beta_sampled minus the other half"
    return evidence(words, ask.interval(statistic, (x, y), "ensemble"), 1, deciding=deciding)


def _quadrant(ask: Examiner, outcome: str, *, deciding: bool = False) -> Evidence:
    similarity, y = ask.numbers("cos_mean"), ask.numbers(outcome)
    inside = (similarity <= np.nanmedian(similarity)) & _smoother_half(ask)
    filled = np.nan_to_num(y)

    def gap(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [(counts * part) @ filled / (counts * part).sum(1) for part in (inside, ~inside)]
        return np.asarray(means[0] - means[1])

    words = f"mean {outcome} of ensembles below both medians (cos_mean, beta_sampled) minus the others'"
    return evidence(words, ask.interval(gap, (similarity, y), "ensemble"), -1, deciding=deciding)


def _gap(ask: Examiner, predictor: str, *, given: Sequence[str] = (), deciding: bool = False) -> Evidence:
    width = ask.numbers("certified") - ask.numbers("must_transfer")
    columns = [ask.numbers(predictor), width, *(ask.numbers(name) for name in given)]
    statistic = partial_spearman(columns[0], width, columns[2:]) if given else spearman(*columns[:2])
    words = f"Spearman({predictor}, R2 - R7{' | ' + ', '.join(given) if given else ''}), ensembles"
    return evidence(words, ask.interval(statistic, columns, "ensemble"), 1, deciding=deciding)


def _in_words(found: Effect) -> str:
    opposite = "lambda_b" if found.weight == "lambda_a" else "lambda_a"
    what = "multiplies" if found.scale == "ratio" else "adds to"
    return f"{found.weight} from {found.low} to {found.high} ({opposite} {', '.join(found.other)}) {what}"
