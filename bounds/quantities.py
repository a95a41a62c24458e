"""The named quantities that the statements are about: symbol, admissible range, meaning and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

import sympy


class Range(Enum):
    """The numbers that a quantity can be; anything else is a caller's mistake."""

    PROBABILITY = "a probability in [0, 1]"
    COSINE = "a cosine in [-1, 1]"
    NON_NEGATIVE = "a number >= 0"
    REAL = "a real number"
    COUNT = "an integer >= 2"

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest admissible number."""
        return _ENDS[self]

    def admits(self, number: float) -> bool:
        """Whether a number (infinities included where the range is unbounded) lies in the range."""
        lower, upper = self.ends
        whole = self is not Range.COUNT or math.isinf(number) or number == int(number)
        return lower <= number <= upper and whole


_ENDS = {
    Range.PROBABILITY: (0.0, 1.0),
    Range.COSINE: (-1.0, 1.0),
    Range.NON_NEGATIVE: (0.0, math.inf),
    Range.REAL: (-math.inf, math.inf),
    Range.COUNT: (2.0, math.inf),
}


@dataclass(frozen=True)
class Quantity:
    """A number that a statement mentions.

    Attributes:
        name: The name it goes by in `evaluate`, for example "xi_F".
        range: The numbers that it can be.
        meaning: What it is, in words, with the norm and the set over which an extreme is taken.
        latex: How a paper prints it.
    """

    name: str
    range: Range
    meaning: str
    latex: str

    @property
    def symbol(self) -> sympy.Symbol:
        """The sympy symbol of that name. Real and nothing more, so that no relation decides itself."""
        return sympy.Symbol(self.name, real=True)

    def meaning_here(self, meaning: str, *, latex: str | None = None, range: Range | None = None) -> Quantity:
        """The same name with the meaning (and perhaps print or range) that it has in one statement."""
        return replace(self, meaning=meaning, latex=latex or self.latex, range=range or self.range)


ALPHA = Quantity(
    "alpha", Range.PROBABILITY, "failure rate of the attack on F: 1 - Pr(success), Definition 2", r"\alpha"
)
ETA_F = Quantity("eta_F", Range.PROBABILITY, "risk of F: Pr(F(x) != y), Definition 3", r"\eta_{\mathcal F}")
ETA_G = Quantity("eta_G", Range.PROBABILITY, "risk of G: Pr(G(x) != y), Definition 3", r"\eta_{\mathcal G}")
XI_F = Quantity(
    "xi_F", Range.REAL, "empirical risk of F: mean loss at the true label, Definition 3", r"\xi_{\mathcal F}"
)
XI_G = Quantity(
    "xi_G", Range.REAL, "empirical risk of G: mean loss at the true label, Definition 3", r"\xi_{\mathcal G}"
)
EPS = Quantity("eps", Range.NON_NEGATIVE, "l2 radius of the attack, over the whole support", r"\epsilon")
BETA = Quantity(
    "beta",
    Range.NON_NEGATIVE,
    "smoothness: Lipschitz constant (l2) of every loss gradient on the segments from x to the attacked x",
    r"\beta",
)
B = Quantity("B", Range.NON_NEGATIVE, "largest l2 norm of a loss gradient over the support and labels", "B")
S_LOWER = Quantity(
    "S_lower",
    Range.COSINE,
    "infimum over the support of the cosine between the loss gradients of F and G, Definition 4",
    r"\underline{S}",
)
S_UPPER = Quantity(
    "S_upper",
    Range.COSINE,
    "supremum over the support of the cosine between the loss gradients of F and G, Definition 5",
    r"\overline{S}",
)
C_F = Quantity(
    "c_F", Range.REAL, "the constant of F in the theorem, beta eps^2 / 2 included", r"c_{\mathcal F}"
)
C_G = Quantity(
    "c_G", Range.REAL, "the constant of G in the theorem, beta eps^2 / 2 included", r"c_{\mathcal G}"
)
L_MIN = Quantity(
    "l_min", Range.REAL, "smallest loss, of F or G, at the wrong labels in question", r"\ell_{\min}"
)
RHO = Quantity(
    "rho",
    Range.PROBABILITY,
    "total variation distance between benign and attacked inputs, Definition 9",
    r"\rho",
)
DELTA = Quantity("delta", Range.PROBABILITY, "failure rate of the attack on F", r"\delta")

#: The vocabulary that estimators and statements share.
COMMON: Mapping[str, Quantity] = MappingProxyType(
    {
        quantity.name: quantity
        for quantity in (
            ALPHA, ETA_F, ETA_G, XI_F, XI_G, EPS, BETA, B, S_LOWER, S_UPPER, C_F, C_G, L_MIN, RHO, DELTA
        )
    }
)  # fmt: skip
