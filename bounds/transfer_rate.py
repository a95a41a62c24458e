"""From per-sample certificates to a bound on the transfer rate of every attack at once (R2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from bounds.certificate import Certificate
from bounds.dual import Bools
from bounds.estimate import Estimate


def certified_transfer_rate(
    certified: Certificate | ArrayLike,
    eligible: ArrayLike,
    *,
    fooled: ArrayLike | None = None,
    support: Literal["finite", "population"] = "finite",
    confidence: float = 0.95,
) -> Estimate:
    """Bound the transfer rate of the strongest attack in the ball by the rate of missing certificates (R2).

    `E[sup over attacks of Tr*] <= Pr(eligible and not certified)`. The event does not mention the attack, so
    on i.i.d. samples an exact binomial bound on it holds for every attack at once, provided that the
    curvature was fixed before the samples were drawn.

    Args:
        certified: Per-sample certificates, shape (n,).
        eligible: Shape (n,): samples that can count as transferred: both models right and, for a targeted
            attack, a label other than the target. The rest count in the denominator only.
        fooled: Shape (n,): samples with a perturbation known to fool all models (`must_transfer`, or an
            attack that worked); it lifts the lower end from 0.
        support: "finite": the rate over these very samples. "population": they are an i.i.d. sample.
        confidence: For "population": probability that the interval holds. One-sided without `fooled`; with it
            each end gets half of the failure probability.

    Returns:
        The strongest attack's transfer rate: `value` is the rate of eligible samples without a certificate,
        an upper bound; `upper` carries the confidence.

    Raises:
        ValueError: If shapes disagree, there are no samples, the support is unknown, or a sample is both
            certified and fooled.
    """
    outer = _flags("eligible", eligible)
    proved = _flags("certified", np.asarray(certified), len(outer))
    inner = outer & (_flags("fooled", fooled, len(outer)) if fooled is not None else np.zeros_like(outer))
    if not len(outer):
        raise ValueError("expected at least one sample, got none")
    if (inner & proved).any():
        raise ValueError(f"expected no sample both certified and fooled, got {int((inner & proved).sum())}")
    high, low, n = int((outer & ~proved).sum()), int(inner.sum()), len(outer)
    method = "R2: samples without a transfer certificate"
    if support == "finite":
        return Estimate(high / n, low / n, high / n, method=method, samples=n)
    if support != "population":
        raise ValueError(f"expected support 'finite' or 'population', got {support!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")
    tail = (1.0 - confidence) / (1 if fooled is None else 2)
    upper = binomtest(high, n, alternative="less").proportion_ci(1.0 - tail, method="exact").high
    lower = binomtest(low, n, alternative="greater").proportion_ci(1.0 - tail, method="exact").low
    return Estimate(high / n, lower, upper, 1.0 - confidence, f"{method}, Clopper-Pearson", n)


def _flags(name: str, array: ArrayLike, length: int | None = None) -> Bools:
    flags = np.asarray(array)
    if flags.dtype != np.bool_ or flags.ndim != 1 or (length is not None and len(flags) != length):
        wanted = "(n,)" if length is None else f"({length},)"
        raise ValueError(
            f"expected {name} as booleans of shape {wanted}, got {flags.dtype} of shape {flags.shape}"
        )
    return flags
