"""Which proof belongs to which statement, what it claims, and what the machine does not check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from bounds.proofs import implications, labels, limits, refined, theorems, vectors
from bounds.proofs.engine import Identity, Step, Verdict
from bounds.statement import Statement

Steps = Sequence[Step | Identity]

_GRAM = (
    "All of it: the inner products are free up to the principal minors of their Gram matrix, which is "
    "exactly that vectors with them exist, in any dimension."
)
_LABELS = (
    "2 and 3 labels by enumerating the joint law of (f(x), g(x), y, f(A(x)), g(A(x))), any label "
    "set by equality patterns. Written: the law of (f, g) at A(x) is as near to that at x as A(x) is to x."
)
_ONE_POINT = "smoothness gives the two-sided quadratic bound"
_GROUPS = "the mean over a group of points obeys each inequality that its points obey"
_THEOREM = (
    f"The step at one point, Markov's inequality and the stated formula. Written: {_ONE_POINT}; {_GROUPS}."
)
_DERIVATIVE = "sympy differentiates the stated formula, z3 decides the sign. Nothing stays written."


@dataclass(frozen=True)
class Task:
    """One proof to run.

    Attributes:
        statement: Id of the statement whose formula it is about.
        claim: What is to be proved, in words.
        steps: Makes the steps from a statement of that id.
        scope: What the machine checks and what stays a written argument.
        expected: The verdict on the statement as it stands: a claim that is false is to be refuted.
        slow: Whether it takes more than about a second.
    """

    statement: str
    claim: str
    steps: Callable[[Statement], Steps]
    scope: str
    expected: Verdict = Verdict.PROVED
    slow: bool = False


def _about_formulas(steps: Callable[[], Steps]) -> Callable[[Statement], Steps]:
    """Steps about several statements' formulas at once, which they look up themselves."""
    return lambda _: steps()


def _implication(
    statement: str, claim: str, steps: Callable[[], Steps], expected: Verdict = Verdict.PROVED
) -> Task:
    return Task(statement, claim, _about_formulas(steps), _DERIVATIVE, expected)


PROOFS: Mapping[str, Task] = MappingProxyType(
    {
        "lemma-5": Task(
            "lemma-5", "Pr(f(A(x)) != g(A(x))) <= 2 eps + rho", labels.lemma_5, _LABELS, slow=True
        ),
        "theorem-6": Task(
            "theorem-6",
            "an attack that changes F's label changes G's, at the stated loss",
            labels.theorem_6,
            _LABELS,
            slow=True,
        ),
        "theorem-6-def2": Task(
            "theorem-6-def2",
            "an attack that is wrong (or hits y_t) on F is so on G, at the stated loss",
            labels.theorem_6_definition_2,
            _LABELS,
            slow=True,
        ),
        "theorem-6-mixed": Task(
            "theorem-6-mixed",
            "one reading on F, the other on G, both ways round",
            labels.theorem_6_mixed,
            _LABELS,
            slow=True,
        ),
        "theorem-6-transfer": Task(
            "theorem-6-transfer",
            "the transfer rate of Definition 7 is at least the formula",
            labels.theorem_6_transfer,
            _LABELS,
            slow=True,
        ),
        "lemma-7": Task(
            "lemma-7", "delta.y > c + eps sqrt(2 - 2 m) implies delta.x > c", vectors.lemma_7, _GRAM
        ),
        "lemma-7-mirror": Task(
            "lemma-7-mirror",
            "delta.y < c - eps sqrt(2 - 2 m) implies delta.x < c",
            vectors.lemma_7_mirror,
            _GRAM,
        ),
        "lemma-7-angular": Task(
            "lemma-7-angular",
            "the sharpened implication, its attainment, and that it beats Lemma 7",
            vectors.lemma_7_angular,
            _GRAM,
        ),
        "lemma-8": Task(
            "lemma-8",
            "x.y < S implies min(delta.x, delta.y) < ||delta|| sqrt((1 + S)/2)",
            vectors.lemma_8,
            _GRAM,
            Verdict.REFUTED,
        ),
        "lemma-8-repaired": Task(
            "lemma-8-repaired",
            "the weak form, and the strict form for delta != 0",
            vectors.lemma_8_repaired,
            _GRAM,
        ),
        "refined-r8": Task(
            "refined-r8",
            "the largest min(delta.g1, delta.g2) over the ball, in closed form, attained",
            vectors.refined_r8,
            "All but two lines. Written: scaling the nearest point of the segment to length eps attains the "
            "value; if it is the origin the value is 0, attained at delta = 0.",
            slow=True,
        ),
        "theorem-1": Task(
            "theorem-1",
            "Pr(transfer) >= the printed formula where c_G + eps > 0",
            partial(theorems.lower_bound, targeted=True),
            _THEOREM,
        ),
        "theorem-1-vacuous": Task(
            "theorem-1",
            "V1: where Theorem 1 applies and alpha < 1, its formula is at most -(alpha + eta_F + eta_G)",
            limits.theorem_1_vacuous,
            f"All but: {_ONE_POINT}. alpha < 1 gives the support point at which F is hit.",
        ),
        "theorem-1-repaired": Task(
            "theorem-1-repaired",
            "Pr(transfer) >= the formula with the minimum in c_G over y != y_t",
            partial(theorems.lower_bound, targeted=True),
            _THEOREM,
        ),
        "theorem-2": Task(
            "theorem-2",
            "Pr(transfer) >= the printed formula where eps - c_G > 0",
            partial(theorems.lower_bound, targeted=False),
            _THEOREM,
        ),
        "theorem-2-all-or-nothing": Task(
            "theorem-2",
            "V2: Theorem 2 is positive only if no support point fools F and not G",
            limits.theorem_2_all_or_nothing,
            f"All but: {_ONE_POINT}.",
        ),
        "refined-r6": Task(
            "refined-r6",
            "1 - alpha - eta_F - eta_G where the constants are apart, never below a positive Theorem 2",
            limits.refined_r6,
            f"All but: {_ONE_POINT}.",
        ),
        "refined-r6-pointwise": Task(
            "refined-r6-pointwise",
            "where F is fooled and f - eps sqrt(2 - 2 cos) > g, G is fooled",
            limits.refined_r6_pointwise,
            f"The step at one point. Written: {_ONE_POINT}; an event that implies transfer is no likelier.",
        ),
        "refined-r7": Task(
            "refined-r7",
            "a step at which every upper quadratic of the margins is negative fools all models",
            refined.must_transfer,
            "The step at one point. Written: kappa+ gives the upper quadratic; the rate of such points is at "
            "most that of the best joint attack.",
        ),
        **{
            name: Task(name, "Pr(transfer) <= the formula", theorems.upper_bound, _THEOREM)
            for name in ("theorem-3", "theorem-3-repaired", "theorem-4", "theorem-4-repaired")
        },
        "refined-r2": Task(
            "refined-r2",
            "R1, on whose failures R2 counts: a certified point is safe from every attack in the ball",
            refined.certificate,
            "Soundness for any number of models and any norm, and the closed form for two models in l2. "
            "Written: kappa gives the lower quadratic; an event that names no attack bounds them all.",
        ),
        "refined-r3": Task(
            "refined-r3", "Pr(transfer, y != y_t) <= the formula", refined.refined_r3, _THEOREM
        ),
        "refined-r3-untargeted": Task(
            "refined-r3-untargeted",
            "Pr(transfer) <= the formula, labels reached may differ",
            refined.refined_r3_untargeted,
            _THEOREM,
        ),
        "refined-r4": Task(
            "refined-r4", "Pr(transfer, y != y_t) <= the formula, any weight", refined.refined_r4, _THEOREM
        ),
        "refined-cantelli": Task(
            "refined-cantelli",
            "Pr(transfer, y != y_t) <= the formula from mean and deviation of the joint margin",
            refined.refined_cantelli,
            _THEOREM,
        ),
        "refined-r5": Task(
            "refined-r5",
            "Pr(all N models reach y_t) <= the formula, for every N",
            refined.refined_r5,
            _THEOREM + " Written too: a sum over N models obeys the sum of their inequalities.",
        ),
        "dominance": Task(
            "refined-r3",
            "R3 and R3' are never above the repaired theorems, nor these above the printed ones",
            refined.dominance,
            "The formulas. Written: restricting to points that can transfer raises l_min and lowers xi.",
        ),
        "implication-similarity": _implication(
            "theorem-1",
            "Theorems 1-2 increase with S_lower exactly where the denominator is positive",
            implications.lower_in_similarity,
        ),
        "implication-beta-lower": _implication(
            "theorem-1",
            "Theorems 1-2 decrease with beta through c_F and c_G, given c_F >= -eps (c_F <= eps)",
            implications.lower_in_constants,
        ),
        "implication-beta-lower-bare": _implication(
            "theorem-1",
            "the bare formula of Theorem 1 never rises as c_G falls (false without c_F >= -eps)",
            implications.lower_in_constants_bare,
            Verdict.REFUTED,
        ),
        "implication-alpha": _implication(
            "theorem-1",
            "Theorem 1 decreases with alpha iff t <= 2 eps + c_G, Theorem 2 iff s >= c_G - 2 eps",
            implications.lower_in_failures,
        ),
        "implication-radius-increasing": _implication(
            "theorem-1",
            "Theorem 1 increases with eps, its constants held (false)",
            implications.lower_in_radius_up,
            Verdict.REFUTED,
        ),
        "implication-radius-decreasing": _implication(
            "theorem-1",
            "Theorem 1 decreases with eps, its constants held (false)",
            implications.lower_in_radius_down,
            Verdict.REFUTED,
        ),
        "implication-upper": _implication(
            "theorem-3",
            "Theorems 3-4 increase with S_upper, beta, B and eps where the denominator is positive",
            implications.upper_in_everything,
        ),
        "implication-upper-across-zero": _implication(
            "theorem-3",
            "Theorems 3-4 increase with beta whatever the denominator's sign (false)",
            implications.upper_across_zero,
            Verdict.REFUTED,
        ),
        "implication-sensitivity": _implication(
            "theorem-3",
            "smoother models make the bounds less sensitive to similarity, not more",
            implications.smoothness_and_sensitivity,
        ),
        "implication-scale": _implication(
            "theorem-3",
            "Theorems 3-4 depend on ratios of xi, l_min, B and beta only",
            implications.upper_scale_invariance,
        ),
    }
)
