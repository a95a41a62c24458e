"""What the paper says in words about its tables and figures, each as a check on measured data.

A claim is one or more differences that it says are positive. It holds if every difference's interval lies
above zero, fails if one lies below zero, and is undecided otherwise. Each interval is one at 95 %; nothing is
corrected for their number, so that of twenty true differences one may look false. Where the paper's words
are not a number ("much", "similar", "converged"), the number is ours, stated, and such that the paper's own
table passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bounds.estimate import Estimate
from empirical.reproduce.items import (
    ACCURACY,
    ON_OTHERS,
    WORST,
    Column,
    Item,
    Row,
)
from empirical.reproduce.readings import Reading

HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "fails", "undecided", "not measured"
Look = Callable[[Row, Column], Reading | None]


@dataclass(frozen=True)
class Difference:
    """A weighted sum of readings, less a constant, that a claim says is positive.

    Attributes:
        words: What it is.
        terms: Weight, row and column of each reading.
        beyond: By how much it has to be positive.
    """

    words: str
    terms: tuple[tuple[float, Row, Column], ...]
    beyond: float = 0.0

    def estimate(self, look: Look) -> Estimate | None:
        """The sum, without the constant, with its interval; None where a reading is missing."""
        total: Reading | None = None
        for weight, row, column in self.terms:
            reading = look(row, column)
            if reading is None:
                return None
            total = reading * weight if total is None else total + reading * weight
        return total.estimate() if total is not None and total.values else None


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
        words: What is claimed, with our numbers where the paper has none.
        source: Where.
        differences: What it says is positive.
    """

    words: str
    source: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured.

    Attributes:
        claim: The claim.
        answer: holds, fails, undecided, or not measured.
        found: For each difference its estimate, None where a reading is missing.
    """

    claim: Claim
    answer: str
    found: tuple[Estimate | None, ...]

    @property
    def decisive(self) -> tuple[Difference, Estimate] | None:
        """The difference on which the answer rests: the one least on the claim's side."""
        pairs = [
            (each, estimate)
            for each, estimate in zip(self.claim.differences, self.found, strict=True)
            if estimate is not None
        ]
        end = "upper" if self.answer == FAILS else "lower"
        return min(pairs, key=lambda pair: getattr(pair[1], end) - pair[0].beyond, default=None)


def judge(claim: Claim, look: Look) -> Verdict:
    """Check a claim on whatever `look` finds."""
    found = tuple(difference.estimate(look) for difference in claim.differences)
    known = [
        (estimate.lower - difference.beyond, estimate.upper - difference.beyond)
        for difference, estimate in zip(claim.differences, found, strict=True)
        if estimate is not None
    ]
    if any(upper < 0 for _, upper in known):
        answer = FAILS
    elif len(known) < len(found):
        answer = UNMEASURED
    else:
        answer = HOLDS if all(lower > 0 for lower, _ in known) else UNDECIDED
    return Verdict(claim, answer, found)


def claims_on(item: Item) -> tuple[Claim, ...]:
    """The paper's claims on an item, for the data sets that it has rows of."""
    make = _CLAIMS.get(item.name)
    return make(item) if make else ()


def _row(item: Item, dataset: str, label: str, parameter: str) -> Row:
    for row in item.rows:
        if (row.dataset, row.label, row.parameter) == (dataset, label, parameter):
            return row
    raise ValueError(f"expected a row of {item.name}, got {dataset} {label} {parameter}")


def _better(
    rows: tuple[Row, ...], first: Column, second: Column, words: str, *, beyond: float = 0.0
) -> Difference:
    """The first method's mean over rows, less the second's."""
    weight = 1 / len(rows)
    terms = [(weight, row, first) for row in rows] + [(-weight, row, second) for row in rows]
    return Difference(f"{first.label} - {second.label}, {words}", tuple(terms), beyond)


def _larger_gap(
    first: tuple[Row, ...], second: tuple[Row, ...], ahead: Column, behind: Column, words: str
) -> Difference:
    """By how much one method is ahead of another on the first rows, less the same on the second."""
    terms = (*_better(first, ahead, behind, "").terms, *_better(second, behind, ahead, "").terms)
    return Difference(f"difference of {ahead.label} - {behind.label} between {words}", terms)


def _columns(item: Item) -> dict[str, Column]:
    return {column.label: column for column in item.columns}


def _white_box(item: Item) -> tuple[Claim, ...]:
    columns, dataset = _columns(item), item.rows[0].dataset
    trs = columns["TRS"]
    pgd = tuple(row for row in item.rows if row.label == "PGD (50)")
    fgsm = tuple(row for row in item.rows if row.label == "FGSM")
    penalised = tuple(row for row in item.rows if row.label in ("CW", "EAD"))
    iterative = tuple(row for row in item.rows if row not in (*fgsm, *penalised) and row.label != WORST)
    claims = [
        Claim(
            f"On {dataset}, TRS is the most robust under {words}: more than every other method",
            "section 6.2",
            tuple(_better(rows, trs, other, f"mean over {words}") for other in item.columns if other != trs),
        )
        for words, rows in (("BIM, PGD, MIM and APGD", iterative), ("CW and EAD", penalised))
    ]
    claims += [
        Claim(
            f"On {dataset}, TRS is farther ahead of DVERGE under PGD (50) than under FGSM of the same radius",
            "section 6.2",
            (
                _larger_gap(
                    (strong,), (weak,), trs, columns["DVERGE"], f"PGD (50) and FGSM, {weak.parameter}"
                ),
            ),
        )
        for weak in fgsm
        for strong in pgd
        if strong.parameter == weak.parameter
    ]
    if dataset != "MNIST":
        claims.append(Claim(
            f"On {dataset}, TRS is less robust than DVERGE under FGSM, which is weak", "sections 6.2 and 6.3",
            (_better(fgsm, columns["DVERGE"], trs, "FGSM"),),
        ))  # fmt: skip
    if "Cos-only" in columns:
        claims += [
            Claim(f"On {dataset}, Cos-only is much weaker than TRS: by 10 points or more under PGD (50)",
                  "section 6.3", tuple(
                      _better((row,), trs, columns["Cos-only"], f"PGD (50) {row.parameter}", beyond=0.1)
                      for row in pgd)),
            Claim(f"On {dataset}, Cos-l2 is weaker than TRS under PGD (50)", "section 6.3", tuple(
                _better((row,), trs, columns["Cos-l2"], f"PGD (50) {row.parameter}") for row in pgd)),
        ]  # fmt: skip
    if dataset == "MNIST":
        claims += [_long_attack(item, columns[name], survives=False) for name in ("ADP", "GAL")]
        claims += [_long_attack(item, columns[name], survives=True) for name in ("DVERGE", "TRS")]
    return tuple(claims)


def _long_attack(item: Item, column: Column, *, survives: bool) -> Claim:
    """Whether half of the accuracy under FGSM outlasts fifty steps of the same radius."""
    weak, strong = (_row(item, "MNIST", label, "eps=0.1") for label in ("FGSM", "PGD (50)"))
    sign = 1.0 if survives else -1.0
    words = f"{'PGD (50) - half of FGSM' if survives else 'half of FGSM - PGD (50)'}, {column.label}, eps=0.1"
    keeps = "keeps at least half" if survives else "loses more than half"
    return Claim(
        f"On MNIST, {column.label} {keeps} of its accuracy under FGSM when it is attacked for 50 steps",
        "section 6.2",
        (Difference(words, ((sign, strong, column), (-0.5 * sign, weak, column))),),
    )


def _convergence(item: Item) -> tuple[Claim, ...]:
    """PGD has converged after 50 steps if 1000 take less than a fifth of what these left."""
    columns = _columns(item)
    claims = []
    for name, converged in (("TRS", True), ("DVERGE", True), ("ADP", False), ("GAL", False)):
        sign = 1.0 if converged else -1.0
        what = "loses less than a fifth" if converged else "loses more than a fifth"
        # The paper's own GAL on CIFAR-10 at 0.01 has converged (8.3 to 7.8); it speaks of MNIST's.
        found = [row for row in item.rows if row.label == "PGD (50)" and row.dataset == "MNIST"]
        claims.append(Claim(
            f"On MNIST, {name} {what} of its accuracy under PGD (50) when PGD goes on to 1000 steps: "
            f"PGD had {'' if converged else 'not '}converged",
            "section 6.2, Table 3",
            tuple(
                Difference(
                    f"{name}, PGD (1000) - 0.8 PGD (50), {row.parameter}"
                    if converged
                    else f"{name}, 0.8 PGD (50) - PGD (1000), {row.parameter}",
                    ((sign, _row(item, row.dataset, "PGD (1000)", row.parameter), columns[name]),
                     (-0.8 * sign, row, columns[name])),
                )
                for row in found
            ),
        ))  # fmt: skip
    if not any(row.dataset == "MNIST" for row in item.rows):
        claims = []
    for dataset in dict.fromkeys(row.dataset for row in item.rows):
        longest = [row for row in item.rows if (row.dataset, row.label) == (dataset, "PGD (1000)")]
        claims.append(Claim(
            f"On {dataset}, TRS is ahead of DVERGE by a large margin under PGD (1000): by 5 points or more",
            "section 6.2, Table 3",
            tuple(_better((row,), columns["TRS"], columns["DVERGE"], f"PGD (1000) {row.parameter}",
                          beyond=0.05) for row in longest),
        ))  # fmt: skip
    return tuple(claims)


def _adversarial(item: Item) -> tuple[Claim, ...]:
    both, alone = _columns(item)["TRS+AdvT"], _columns(item)["AdvT"]
    claims = []
    for dataset in dict.fromkeys(row.dataset for row in item.rows):
        for words, chosen in (
            ("white-box attacks but FGSM", lambda row: row.label not in ("FGSM", WORST, "black box")),
            ("black-box attempts", lambda row: row.label == "black box"),
        ):
            rows = tuple(row for row in item.rows if row.dataset == dataset and chosen(row))
            claims.append(Claim(
                f"On {dataset}, TRS+AdvT is more robust than AdvT, on the mean over {words}",
                "section 6.2, Table 4", (_better(rows, both, alone, f"mean over {words}"),),
            ))  # fmt: skip
        smallest, *_, largest = rows
        words = f"black box {largest.parameter} and {smallest.parameter}"
        claims.append(Claim(
            f"On {dataset}, TRS+AdvT is farther ahead of AdvT at the largest radius of the black-box "
            "attempts than at the smallest",
            "section 6.2, Table 4", (_larger_gap((largest,), (smallest,), both, alone, words),),
        ))  # fmt: skip
    return tuple(claims)


def _black_box(item: Item) -> tuple[Claim, ...]:
    columns = _columns(item)
    claims = []
    for dataset in dict.fromkeys(row.dataset for row in item.rows):
        rows = [row for row in item.rows if row.dataset == dataset and row.measure != ACCURACY]
        claims.append(Claim(
            f"On {dataset}, TRS is the most robust against black-box attempts, on the mean over the radii",
            "section 6.2, Figure 3",
            tuple(_better(tuple(rows), columns["TRS"], other, "mean over the radii")
                  for other in item.columns if other.label != "TRS"),
        ))  # fmt: skip
        claims.append(Claim(
            f"On {dataset}, TRS is the most robust against black-box attempts at the two largest radii",
            "section 6.2, Figure 3",
            tuple(_better((row,), columns["TRS"], other, f"black box {row.parameter}")
                  for row in rows[-2:] for other in item.columns if other.label != "TRS"),
        ))  # fmt: skip
        claims.append(Claim(
            f"On {dataset}, TRS is competitive with DVERGE at the smallest radius: behind by less than 10 "
            "points, if at all",
            "section 6.2, Figure 3",
            (_better((rows[0],), columns["TRS"], columns["DVERGE"], f"black box {rows[0].parameter}",
                     beyond=-0.1),),
        ))  # fmt: skip
        clean = _row(item, dataset, "clean", "")
        claims.append(Claim(
            f"On {dataset}, TRS has the lowest accuracy without attack", "appendix E",
            tuple(_better((clean,), other, columns["TRS"], "not attacked")
                  for other in item.columns if other.label != "TRS"),
        ))  # fmt: skip
    return tuple(claims)


def _variants(item: Item) -> tuple[Claim, ...]:
    first, *others = item.columns
    row = _row(item, "MNIST", "PGD (50)", "eps=0.1")
    return (
        Claim(
            "On MNIST, other weights and radii lead to similar robustness: no variant of TRS loses 20 points "
            "to the paper's choice under PGD (50) at the smaller radius",
            "appendix F",
            tuple(_better((row,), other, first, "PGD (50) eps=0.1", beyond=-0.2) for other in others),
        ),
    )


def _transfer(item: Item) -> tuple[Claim, ...]:
    columns = _columns(item)
    claims = []
    for row in item.rows:
        if row.measure != ON_OTHERS:
            continue
        claims.append(Claim(
            f"On {row.dataset}, TRS is the least transferable: attack success on another member",
            "section 6.2, Figure 4",
            tuple(_better((row,), other, columns["TRS"], f"attack success, {row.parameter}")
                  for other in item.columns if other.label != "TRS"),
        ))  # fmt: skip
        claims.append(Claim(
            f"On {row.dataset}, only DVERGE and TRS have low transfer: less of it than Vanilla, ADP and GAL",
            "section 6.2, Figure 4",
            tuple(_better((row,), columns[other], columns[low], f"attack success, {row.parameter}")
                  for low in ("DVERGE", "TRS") for other in ("Vanilla", "ADP", "GAL")),
        ))  # fmt: skip
    return tuple(claims)


def _boundaries(item: Item) -> tuple[Claim, ...]:
    columns = _columns(item)
    claims = []
    for row in item.rows:
        if row.measure == "gradient":
            claims.append(Claim(
                f"On {row.dataset}, the boundary of TRS is farther away along the gradient than GAL's",
                "section 6.3, Figure 5",
                (_better((row,), columns["TRS"], columns["GAL"], "distance along the gradient"),),
            ))  # fmt: skip
            claims.append(Claim(
                f"On {row.dataset}, the boundary of DVERGE is farther away along the gradient than TRS's",
                "section 6.3, Figure 5",
                (_better((row,), columns["DVERGE"], columns["TRS"], "distance along the gradient"),),
            ))  # fmt: skip
        if row.measure == "orthogonal":
            claims.append(Claim(
                f"On {row.dataset}, TRS is smoother than DVERGE along other directions: its boundary is "
                "farther away across the gradient",
                "section 6.3, Figure 5",
                (_better((row,), columns["TRS"], columns["DVERGE"], "distance across the gradient"),),
            ))  # fmt: skip
    return tuple(claims)


_CLAIMS: Mapping[str, Callable[[Item], tuple[Claim, ...]]] = {
    "table-1": _white_box,
    "table-2": _white_box,
    "table-3": _convergence,
    "table-4": _adversarial,
    "table-5": _black_box,
    "table-6": _black_box,
    "table-7": _variants,
    "table-8": _white_box,
    "figure-4": _transfer,
    "figure-5": _boundaries,
}
