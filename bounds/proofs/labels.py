"""Proofs about conservative attacks: the joint law of labels before and after one, as a linear program.

A point is described by the labels that matter: f(x), g(x), the true label y, f(A(x)), g(A(x)) (and the
attack's target where it has one). The attack is a map, so all of them are functions of one random point and
have a joint law; its probabilities are the variables.

Two encodings are checked. In the first, the labels come from a set of K. That the law of A(x) is within
total variation rho of the law of x implies the same for the pair (f, g), and in turn every joint law over
the K^5 types with that property is that of some map on a large enough space. So this encoding proves and
refutes. In the second, only equality among the labels counts, so a type is a partition of them, whatever
the number of labels: this one proves the statement for every label set (it uses total variation for the
event f = g alone).
"""

# Formulas read left to right, whichever side a module constant is on.
# ruff: noqa: SIM300

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import z3

from bounds.proofs.engine import Step
from bounds.proofs.translate import stated
from bounds.statement import Statement

EPS, RHO, DELTA = z3.Reals("eps rho delta")
Type = tuple[int, ...]
Event = Callable[[Type], bool]

# Positions of the labels in a type.
F, G, Y, F_ADV, G_ADV, TARGET = range(6)


def _same(first: int, second: int) -> Event:
    return lambda labels: labels[first] == labels[second]


def _is(position: int, label: int) -> Event:
    return lambda labels: labels[position] == label


def _differ(first: int, second: int) -> Event:
    return lambda labels: labels[first] != labels[second]


class Law:
    """A joint law over the types: one probability for each."""

    def __init__(self, types: list[Type]) -> None:
        self.weights = {t: z3.Real("p" + "".join(map(str, t))) for t in types}

    def probability(self, *events: Event) -> z3.ArithRef:
        """The probability that all events happen."""
        return z3.Sum([z3.RealVal(0), *(p for t, p in self.weights.items() if all(e(t) for e in events))])

    def is_law(self) -> list[z3.BoolRef]:
        """The weights are probabilities."""
        return [*(p >= 0 for p in self.weights.values()), self.probability() == 1]

    def low_risk(self) -> list[z3.BoolRef]:
        """Both classifiers have risk at most eps."""
        return [self.probability(_differ(F, Y)) <= EPS, self.probability(_differ(G, Y)) <= EPS]


def _law_over(labels: int) -> tuple[Law, list[z3.BoolRef]]:
    """All types over `labels` labels; total variation between the laws of (f, g)(x) and (f, g)(A(x))."""
    law = Law(list(product(range(labels), repeat=5)))
    excess = []
    conditions = []
    for f, g in product(range(labels), repeat=2):
        before = law.probability(_is(F, f), _is(G, g))
        after = law.probability(_is(F_ADV, f), _is(G_ADV, g))
        excess.append(z3.Real(f"excess{f}{g}"))
        conditions += [excess[-1] >= 0, excess[-1] >= before - after]
    return law, [*law.is_law(), *law.low_risk(), *conditions, z3.Sum(excess) <= RHO]


def _partitions(count: int) -> Iterator[Type]:
    """Every way in which `count` labels can be equal or not, each once."""
    if count == 0:
        yield ()
        return
    for head in _partitions(count - 1):
        for label in range(max(head, default=-1) + 2):
            yield (*head, label)


def _law_over_any_labels(count: int) -> tuple[Law, list[z3.BoolRef]]:
    law = Law(list(_partitions(count)))
    change = law.probability(_same(F, G)) - law.probability(_same(F_ADV, G_ADV))
    return law, [*law.is_law(), *law.low_risk(), change <= RHO, change >= -RHO]


SMALL = [EPS > 0, RHO > 0, DELTA > 0, EPS + RHO + DELTA < z3.Q(1, 5)]


def _steps(
    conclusion: Callable[[Law], z3.BoolRef], hypothesis: Callable[[Law], z3.BoolRef] | None = None
) -> list[Step]:
    """The statement over 2 labels, over 3, and over any set of labels."""
    steps = []
    encodings = {
        "2 labels": _law_over(2),
        "3 labels": _law_over(3),
        "any label set": _law_over_any_labels(5),
    }
    for name, (law, conditions) in encodings.items():
        assumed = conditions if hypothesis is None else [*conditions, hypothesis(law)]
        steps.append(Step(name, assumed, conclusion(law), SMALL))
    return steps


def lemma_5(statement: Statement) -> list[Step]:
    """TRS, Lemma 5, appendix A."""
    bound = stated(statement).bound
    return _steps(lambda law: law.probability(_differ(F_ADV, G_ADV)) <= bound)


def _kept(model: int, attacked: int) -> dict[str, Event]:
    """What it means, in each reading, that the attack fails on a classifier."""
    return {"right": _same(attacked, Y), "unchanged": _same(attacked, model)}


FAILS_ON_F, FAILS_ON_G = _kept(F, F_ADV), _kept(G, G_ADV)


def _theorem_6(bound: z3.ArithRef, on_f: str, on_g: str) -> list[Step]:
    """An attack that fails on F at rate delta fails on G at most at the stated rate."""
    steps = _steps(
        lambda law: law.probability(FAILS_ON_G[on_g]) <= bound,
        lambda law: law.probability(FAILS_ON_F[on_f]) <= DELTA,
    )
    return [replace(step, name=f"{on_f} on F to {on_g} on G, {step.name}") for step in steps]


def theorem_6(statement: Statement) -> list[Step]:
    """TRS, Theorem 6, appendix A: an attack is effective where it changes the label."""
    return _theorem_6(stated(statement).bound, "unchanged", "unchanged")


def theorem_6_definition_2(statement: Statement) -> list[Step]:
    """Theorem 6 with the effectiveness of Definition 2, untargeted and (for any label set) targeted."""
    bound = stated(statement).bound
    law, conditions = _law_over_any_labels(6)
    targeted = Step(
        "targeted, any label set",
        [*conditions, law.probability(_differ(F_ADV, TARGET)) <= DELTA],
        law.probability(_differ(G_ADV, TARGET)) <= bound,
        SMALL,
    )
    return [*_theorem_6(bound, "right", "right"), targeted]


def theorem_6_mixed(statement: Statement) -> list[Step]:
    """Theorem 6 with one reading on F and the other on G, both ways."""
    bound = stated(statement).bound
    return [*_theorem_6(bound, "right", "unchanged"), *_theorem_6(bound, "unchanged", "right")]


def theorem_6_transfer(statement: Statement) -> list[Step]:
    """The attack transfers in the sense of Definition 7, untargeted."""
    bound = stated(statement).bound
    return _steps(
        lambda law: law.probability(_same(F, Y), _same(G, Y), _differ(F_ADV, Y), _differ(G_ADV, Y)) >= bound,
        lambda law: law.probability(FAILS_ON_F["right"]) <= DELTA,
    )
