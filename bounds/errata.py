"""Errata of the TRS paper, each with a counterexample that runs.

`ERRATA[n].run()` builds the counterexample, evaluates what the paper prints on it and what is true, and
checks the corrected claim on the same example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bounds import counterexamples
from bounds.counterexamples import Outcome

__all__ = ["ERRATA", "Erratum", "Outcome"]


@dataclass(frozen=True)
class Erratum:
    """A claim of the paper that is not so.

    Attributes:
        number: Its number here.
        title: What it is about.
        where: Where the paper says it.
        printed: The printed claim.
        corrected: What is true instead.
        run: Builds the counterexample and reports.
    """

    number: int
    title: str
    where: str
    printed: str
    corrected: str
    run: Callable[[], Outcome]


_ALL = (
    Erratum(
        1,
        "Theorem 1 with c_G + eps < 0",
        "Theorem 1, section 4.3",
        "The lower bound holds for all beta-smooth F and G.",
        "The proof divides by c_G + eps, which has to be positive.",
        counterexamples.negative_denominator_theorem_1,
    ),
    Erratum(
        2,
        "Theorem 2 with eps - c_G < 0",
        "Theorem 2, section 4.3",
        "The lower bound holds for all beta-smooth F and G.",
        "The proof divides by eps - c_G, which has to be positive.",
        counterexamples.negative_denominator_theorem_2,
    ),
    Erratum(
        3,
        "Theorems 3 and 4 with a negative denominator",
        "Theorems 3 and 4, section 4.4",
        "The upper bound holds whatever l_min is.",
        "Markov's inequality needs l_min > eps B (1 + sqrt((1 + S) / 2)) + beta eps^2.",
        counterexamples.negative_denominator_theorem_4,
    ),
    Erratum(
        4,
        "Theorems 3 and 4 with negative losses",
        "Theorems 3 and 4, section 4.4",
        "The upper bound holds for any differentiable loss.",
        "Markov's inequality needs losses >= 0 on the data.",
        counterexamples.negative_loss,
    ),
    Erratum(
        5,
        "Smoothness over a domain with gaps",
        "Definition 6, section 4.1",
        "beta is a supremum over the inputs X.",
        "The Taylor bounds need beta on the whole segment from x to the attacked x: X convex, or its "
        "convex hull.",
        counterexamples.gap_in_the_domain,
    ),
    Erratum(
        6,
        "B or beta of the true label alone",
        "Theorems 3 and 4, section 4.4; their proof in appendix C",
        "The gradient and smoothness bounds are about (x, y) with y the label of x.",
        "They are also used at y_t or y', which they must cover.",
        counterexamples.one_label_only,
    ),
    Erratum(
        7,
        "Lemma 8 at delta = 0",
        "Lemma 8, appendix C",
        "For any delta the smaller inner product is strictly below ||delta|| sqrt((1 + S) / 2).",
        "At most; strictly for delta != 0. And x.y <= S suffices for the weak form.",
        counterexamples.lemma_8_at_zero,
    ),
    Erratum(
        8,
        "The constants C and k",
        "Implications, section 4.3",
        "Both lower bounds are C - k sqrt(1 - S) with positive constants, so similarity forces transfer.",
        "C can have either sign, and a positive C leaves the bound negative for S below 1 - (C / k)^2.",
        counterexamples.positive_constants,
    ),
    Erratum(
        9,
        "What correlates F and G",
        "Implications, section 4.3",
        "The only term that correlates F and G is the gradient similarity.",
        "c_G contains the loss of G at the attack that is made for F.",
        counterexamples.c_g_depends_on_f,
    ),
    Erratum(
        10,
        "The size of c_G",
        "Implications, section 4.3",
        "c_G is small, since beta is small and the gradients are large.",
        "c_G is a gap between losses over a slope; with beta = 0 it can have any size and sign.",
        counterexamples.c_g_is_not_small,
    ),
    Erratum(
        11,
        "Why alpha is not in the upper bounds",
        "Implications, section 4.4",
        "alpha does not appear because only completely successful attacks (alpha = 0) need to be considered.",
        "The proof never uses effectiveness: the bounds hold for every attack in the ball, of any alpha.",
        counterexamples.alpha_is_never_used,
    ),
    Erratum(
        12,
        "The remainder in Taylor's theorem",
        "Equations 4 and 5, appendix B",
        "The remainder is (1/2) xi^T H xi with xi = k delta, and beta bounds the largest eigenvalue of H.",
        "It is (1/2) delta^T H(x + k delta) delta, and beta bounds the spectral norm of H.",
        counterexamples.taylor_term,
    ),
    Erratum(
        13,
        "What a gradient penalty controls",
        "Section 5.1",
        "l2 regularisation of the loss gradients improves the smoothness of the model.",
        "It controls B. beta is about the change of the gradient, and unbounded at fixed B.",
        counterexamples.penalty_controls_b,
    ),
    Erratum(
        14,
        "beta = 0",
        "Definition 6, section 4.1",
        "When beta = 0, the model is linear in the input space.",
        "Each loss is then affine; the model is an argmin of affine functions. A linear classifier has "
        "beta > 0.",
        counterexamples.flat_is_not_linear,
    ),
    Erratum(
        15,
        "Total variation and the l1 distance",
        "Definition 8, appendix A",
        "For discrete distributions the total variation distance is just the l1 distance.",
        "It is half of the l1 distance.",
        counterexamples.total_variation,
    ),
    Erratum(
        16,
        "The first proof of Theorem 6",
        "Theorem 6, appendix A",
        "The first proof bounds Pr(G(A(x)) = G(x)) by delta; labels lie in {-1, 1}.",
        "f and g are swapped in it; the second proof is right, and holds for any finite label set.",
        counterexamples.swapped_proof,
    ),
    Erratum(
        17,
        "Targeted transferability of points that are already there",
        "Definition 7, section 4.2",
        "Tr = 1 means that the attack transfers.",
        "Points with y = y_t count without any attack; y != y_t has to be required.",
        counterexamples.target_label_already,
    ),
)

#: All errata by number.
ERRATA: Mapping[int, Erratum] = MappingProxyType({erratum.number: erratum for erratum in _ALL})
