"""Proofs about vectors of any dimension, through their Gram matrix.

A statement that only mentions inner products is a statement about a Gram matrix, and a symmetric matrix is
the Gram matrix of some vectors exactly when all its principal minors are non-negative. So a formula over
the entries, with those minors as hypotheses, is the statement in every dimension at once: nothing is lost,
and a model that the solver finds is a real set of vectors (in three dimensions for three of them).
"""

# Formulas read left to right, whichever side a module constant is on.
# ruff: noqa: SIM300

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import z3

from bounds.proofs.engine import Step, maximum, minimum, root
from bounds.proofs.translate import stated
from bounds.statement import Statement


class Gram:
    """Named vectors, known only by their inner products."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def dot(self, first: str, second: str) -> z3.ArithRef:
        """The inner product of two of the vectors, as a variable named `first.second`."""
        return z3.Real(".".join(sorted((first, second))))

    def square(self, **coefficients: z3.ArithRef | int) -> z3.ArithRef:
        """The squared norm of the linear combination with these coefficients."""
        terms = coefficients.items()
        return z3.Sum([p * q * self.dot(a, b) for a, p in terms for b, q in terms])

    def are_vectors(self) -> list[z3.BoolRef]:
        """All principal minors are non-negative: such vectors exist."""
        subsets = (c for k in range(1, len(self.names) + 1) for c in combinations(self.names, k))
        return [_determinant([[self.dot(a, b) for b in c] for a in c]) >= 0 for c in subsets]

    def unit(self, *names: str) -> list[z3.BoolRef]:
        """These vectors have norm one."""
        return [self.dot(name, name) == 1 for name in names]


def _determinant(matrix: Sequence[Sequence[z3.ArithRef]]) -> z3.ArithRef:
    if len(matrix) == 1:
        return matrix[0][0]
    minors = [[[*row[:j], *row[j + 1 :]] for row in matrix[1:]] for j in range(len(matrix))]
    return z3.Sum([(-1) ** j * matrix[0][j] * _determinant(minor) for j, minor in enumerate(minors)])


EPS, C = z3.Real("eps"), z3.Real("c")
UNITS = Gram("delta", "x", "y")
DX, DY, XY = UNITS.dot("delta", "x"), UNITS.dot("delta", "y"), UNITS.dot("x", "y")


def _ball() -> list[z3.BoolRef]:
    """A perturbation in the ball and two unit vectors."""
    norm = UNITS.dot("delta", "delta")
    return [*UNITS.are_vectors(), *UNITS.unit("x", "y"), EPS >= 0, norm <= EPS * EPS]


def _named(**values: z3.ArithRef) -> list[z3.BoolRef]:
    """The statement's quantities, said in inner products."""
    return [z3.Real(name) == value for name, value in values.items()]


def lemma_7(statement: Statement) -> list[Step]:
    """TRS, Lemma 7, appendix B, with the margin that the statement holds."""
    formula = stated(statement)
    hypotheses = [*_ball(), *_named(d_y=DY, cosine=XY), *formula.hypotheses]
    return [Step("Lemma 7", hypotheses, z3.And(DX > C, DX - C >= formula.bound), [EPS > 0, XY < 1])]


def lemma_7_mirror(statement: Statement) -> list[Step]:
    """Lemma 7 at (-delta, -c), the form that the proof of Theorem 2 uses."""
    formula = stated(statement)
    hypotheses = [*_ball(), *_named(d_y=DY, cosine=XY), *formula.hypotheses]
    return [Step("Lemma 7 mirrored", hypotheses, z3.And(DX < C, C - DX >= formula.bound), [EPS > 0, XY < 1])]


def lemma_7_angular(statement: Statement) -> list[Step]:
    """The best lower bound on delta.x from delta.y, vectors that reach it, and that it beats Lemma 7."""
    formula = stated(statement)
    hypotheses = [*_named(d_y=DY, cosine=XY), *formula.hypotheses]
    length = UNITS.dot("delta", "delta") == EPS * EPS
    reached = [*UNITS.unit("x", "y"), length, DX == C + formula.bound]
    gap, is_gap = root("sqrt(2-2m)", 2 - 2 * XY)
    proper = [EPS > 0, XY < 1, XY > -1]
    return [
        Step("sharper Lemma 7", [*_ball(), *hypotheses], z3.And(DX > C, DX - C >= formula.bound), proper),
        Step(
            "reached inside the cone: vectors with delta.x at that value exist",
            [*hypotheses, *reached, DY >= -EPS * XY],
            z3.And(UNITS.are_vectors()),
            proper,
        ),
        Step(
            "reached outside the cone, where delta.y >= d_y is all that is known",
            [*formula.hypotheses, *_named(cosine=XY), *reached, z3.Real("d_y") < -EPS * XY, DY == -EPS * XY],
            z3.And(*UNITS.are_vectors(), DY >= z3.Real("d_y")),
            proper,
        ),
        Step(
            "never weaker than Lemma 7",
            [*_ball(), *hypotheses, *is_gap],
            formula.bound >= DY - C - EPS * gap,
            proper,
        ),
    ]


def _lemma_8(statement: Statement, *extra: z3.BoolRef) -> tuple[list[z3.BoolRef], z3.ArithRef, z3.ArithRef]:
    formula, norm = stated(statement), z3.Real("delta_norm")
    vectors = [*UNITS.are_vectors(), *UNITS.unit("x", "y"), norm * norm == UNITS.dot("delta", "delta")]
    hypotheses = [*vectors, *_named(cosine=XY), *formula.hypotheses, *extra]
    return hypotheses, minimum(DX, DY), formula.bound


def lemma_8(statement: Statement) -> list[Step]:
    """TRS, Lemma 8, appendix C, as printed: false."""
    hypotheses, smaller, bound = _lemma_8(statement)
    return [Step("x.y < S: strictly below", hypotheses, smaller < bound)]


def lemma_8_repaired(statement: Statement) -> list[Step]:
    """Lemma 8 with a weak inequality, and with a strict one for a perturbation that is not zero."""
    moved = [z3.Real("delta_norm") > 0]
    weak, smaller, bound = _lemma_8(statement)
    strict, _, _ = _lemma_8(statement, *moved, XY < z3.Real("S_upper"))
    return [
        Step("x.y <= S: at most", weak, smaller <= bound, moved),
        Step("x.y < S and delta != 0: strictly below", strict, smaller < bound),
    ]


def gradient_sum() -> list[Step]:
    """||g1 + g2|| <= B max(1, sqrt(2 + 2 S)) = 2 B max(h, 1/2) for gradients no longer than B."""
    gram, (b, s) = Gram("g1", "g2"), z3.Reals("B S")
    first, is_first = root("|g1|", gram.dot("g1", "g1"))
    second, is_second = root("|g2|", gram.dot("g2", "g2"))
    half, is_half = root("h", (1 + s) / 2)
    return [
        Step(
            "norm of the sum of two gradients",
            [
                *gram.are_vectors(),
                *is_first,
                *is_second,
                *is_half,
                first <= b,
                second <= b,
                gram.dot("g1", "g2") <= s * first * second,
                s <= 1,
            ],
            gram.square(g1=1, g2=1) <= (2 * b * maximum(half, z3.Q(1, 2))) ** 2,
        )
    ]


def gradient_sum_of_many() -> list[Step]:
    """||g_1 + ... + g_N||^2 <= N B^2 (1 + (N - 1) max(S, 0)), by induction over N."""
    n, b, s, total, cross, last = z3.Reals("N B S |sum|^2 g.sum |g|^2")
    norms = z3.Reals("|g1| |g2|")
    positive = maximum(s, 0)

    def bound(count: z3.ArithRef) -> z3.ArithRef:
        return count * b * b * (1 + (count - 1) * positive)

    return [
        Step(
            "one pair: g1.g2 <= max(S, 0) B^2",
            [norms[0] >= 0, norms[1] >= 0, norms[0] <= b, norms[1] <= b, cross <= s * norms[0] * norms[1]],
            cross <= positive * b * b,
        ),
        Step("one gradient", [b >= 0, total <= b * b], total <= bound(z3.RealVal(1))),
        Step(
            "one gradient more, g.sum being a sum of N pairs",
            [b >= 0, n >= 1, total <= bound(n), cross <= n * positive * b * b, last <= b * b],
            total + 2 * cross + last <= bound(n + 1),
        ),
    ]


def refined_r8(statement: Statement) -> list[Step]:
    """R8: max over the ball of min(d.g1, d.g2), for norms a <= b, with the direction that reaches it.

    The norms are not variables: each case is stated through inner products, with the value squared.
    """
    gram = Gram("delta", "g1", "g2")
    d1, d2, cross = gram.dot("delta", "g1"), gram.dot("delta", "g2"), gram.dot("g1", "g2")
    a, is_a = root("a", gram.dot("g1", "g1"))
    b, is_b = root("b", gram.dot("g2", "g2"))
    apart, is_apart = root("|g1-g2|", gram.square(g1=1, g2=-1))
    area, is_area = root("a*b*sqrt(1-m^2)", a * a * b * b - cross * cross)
    ball = [*gram.are_vectors(), EPS >= 0, gram.dot("delta", "delta") <= EPS * EPS]
    norms = [*is_a, *is_b, a <= b, a > 0]
    aligned, spread = cross >= a * a, cross < a * a
    formula, value = stated(statement), z3.Real("value")
    m = z3.Real("cosine")
    aligned_value = z3.And(b * m >= a, value == EPS * a)
    apart_squared = a * a + b * b - 2 * a * b * m
    spread_value = z3.And(
        b * m < a,
        value >= 0,
        value * value * apart_squared == EPS * EPS * a * a * b * b * (1 - m * m),
    )
    # Where g1 and g2 are apart, the nearest point of the segment to the origin is t g1 + (1 - t) g2.
    t = z3.Real("t")
    nearest = [t * apart * apart == b * b - cross]
    to_first, to_second = t * a * a + (1 - t) * cross, t * cross + (1 - t) * b * b
    distance_squared = gram.square(g1=t, g2=1 - t)
    return [
        Step("aligned: no more than eps a", [*ball, *norms, aligned], minimum(d1, d2) <= EPS * a),
        Step("aligned: reached at delta = eps g1/a", [EPS >= 0, *norms, aligned], EPS / a * cross >= EPS * a),
        Step(
            "spread: the nearest point lies in the segment, equally far along both, at the stated distance",
            [*Gram("g1", "g2").are_vectors(), *norms, spread, *is_apart, *is_area, *nearest],
            z3.And(
                t >= 0,
                t <= 1,
                to_first == to_second,
                to_first == distance_squared,
                distance_squared * apart * apart == area * area,
            ),
        ),
        Step(
            "spread: no more than eps times that distance",
            [*ball, *norms, spread, *is_apart, *is_area],
            minimum(d1, d2) * apart <= EPS * area,
        ),
        Step(
            "the stated formula is that value",
            [*formula.hypotheses, a > 0, z3.Or(aligned_value, spread_value)],
            value == formula.bound,
            [EPS > 0],
        ),
    ]


def smallest_joint_step() -> list[Step]:
    """R1 for two models, l2: the closed form of min ||d|| subject to a.d >= p and b.d >= q."""
    gram = Gram("a", "b", "d")
    ad, bd, ab = gram.dot("a", "d"), gram.dot("b", "d"), gram.dot("a", "b")
    aa, bb, dd = gram.dot("a", "a"), gram.dot("b", "b"), gram.dot("d", "d")
    p, q = z3.Reals("p q")
    fooled = [*gram.are_vectors(), ad >= p, bd >= q]
    area = aa * bb - ab * ab
    both = p * p * bb - 2 * p * q * ab + q * q * aa
    corner = [p > 0, q * aa > p * ab, p * bb > q * ab, area > 0]
    # The step u a + v b that meets both constraints with equality.
    u, v = z3.Reals("u v")
    step = [u * area == p * bb - q * ab, v * area == q * aa - p * ab]
    return [
        Step("one constraint: at least p/||a||", [*fooled, p > 0, aa > 0], dd * aa >= p * p),
        Step(
            "one constraint: reached by the step p a/||a||^2",
            [*Gram("a", "b").are_vectors(), p > 0, aa > 0, p * ab >= q * aa, u * aa == p],
            z3.And(u * aa >= p, u * ab >= q, u * u * aa * aa == p * p),
        ),
        Step("both constraints: at least the closed form", [*fooled, *corner], dd * area >= both),
        Step(
            "both constraints: reached",
            [*Gram("a", "b").are_vectors(), *corner, *step],
            z3.And(
                u * aa + v * ab == p,
                u * ab + v * bb == q,
                gram.square(a=u, b=v) * area == both,
            ),
        ),
    ]
