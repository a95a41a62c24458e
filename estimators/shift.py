"""The distance rho between benign and attacked inputs (Definition 9), and Lemma 5 and Theorem 6 with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.estimate import Estimate
from bounds.evaluation import BoundValue, evaluate
from bounds.intervals import mean_interval
from estimators.batching import Support, check_finite
from estimators.distribution import Distribution

Rows = NDArray[np.float64]

# The forest needs at least two pairs to train on, and the other half is as many.
_FEWEST_PAIRS = 4


def distribution_shift(
    x: Tensor,
    x_adv: Tensor,
    *,
    support: Support = "population",
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Total variation distance rho between the laws of x and of A(x) (TRS, Definitions 8 and 9, appendix A).

    Both are laws of inputs, without labels. On a finite set the distance is that of two tables of counts. It
    is 1 wherever an attack moves every point off the set, however little: on a finite set Lemma 5 says
    something only for attacks that stay on it, or for images of the inputs (below).

    For a population only a lower bound exists without knowing the densities: rho >= E[h(A(x)) - h(x)] for
    every h into {0, 1}. A random forest learns such an h, to tell attacked from benign inputs, on one half of
    the pairs. Each pair of the other half gives one difference in {-1, 0, 1}. A pair's two inputs depend on
    each other, but the pairs do not, as they are split by index, so the differences are independent, and a
    betting interval for their mean is a lower bound on rho. The attack, and all that it knows, must not have
    seen these inputs. The best threshold on a score, paid for over all thresholds at once, came out lower.

    What is computed from an input can only be closer (data processing): `distribution_shift(t(x), t(x_adv))`
    for any map t is a lower bound on rho, too, such as t = the models' labels. Lemma 5 and Theorem 6 need no
    more of rho than the distance between the laws of the pairs of labels (F, G).

    Args:
        x: Inputs (n, *shape) of any dtype, for instance images, features, or labels (n, 2).
        x_adv: The attacked inputs, (n, *shape), in the same order.
        support: "finite": the uniform distribution on these inputs, exact. "population": the pairs are an
            i.i.d. sample.
        confidence: Of the lower end in "population".
        seed: Of the split and the classifier.

    Returns:
        A probability: exact, or one-sided `[lower, 1]`, the value being the rate without confidence.

    Raises:
        ValueError: If shapes differ, values are not finite, there are no inputs (fewer than 4 pairs for
            "population"), or the support or confidence are none.
    """
    Distribution(support, confidence)
    if x.shape != x_adv.shape or x.numel() == 0:
        raise ValueError(
            f"expected x_adv of the shape of x, (n, ...), got {tuple(x_adv.shape)} and {tuple(x.shape)}"
        )
    check_finite(x, "x")
    check_finite(x_adv, "x_adv")
    benign, attacked = (_rows(inputs) for inputs in (x, x_adv))
    if support == "finite":
        return _finite_shift(benign, attacked)
    return _tested_shift(benign, attacked, confidence, seed)


def smoothed_shift_bound(
    deltas: Tensor, sigma: float, *, support: Support = "finite", confidence: float = 0.95
) -> Estimate:
    """Upper bound on rho where Gaussian noise is added to every input, benign or attacked.

    The laws of x + noise and A(x) + noise are mixtures, over x, of Gaussians that are ||A(x) - x|| apart; the
    distance of mixtures is at most the mean distance, and that of two Gaussians is
    2 Phi(||delta|| / (2 sigma)) - 1 = erf(||delta|| / (2 sqrt(2) sigma)). So noise on the scale of the
    perturbation makes any attack conservative, at the price of models that have to work under it: it is the
    risk of the models on noisy inputs that Lemma 5 then takes.

    Args:
        deltas: Perturbations A(x) - x, (n, *shape), before the noise.
        sigma: Standard deviation of the noise in every coordinate, in the unit of x.
        support: "finite": x uniform on these points. "population": they are an i.i.d. sample.
        confidence: Of the upper end in "population".

    Returns:
        A probability `[0, upper]`: certain for "finite"; at the confidence for "population".

    Raises:
        ValueError: If there are no perturbations, they are not finite, sigma is not positive and finite, or
            the support or confidence are none.
    """
    Distribution(support, confidence)
    if deltas.dim() < 1 or deltas.numel() == 0:
        raise ValueError(f"expected perturbations of shape (n, ...), got {tuple(deltas.shape)}")
    check_finite(deltas, "the perturbations")
    if not 0.0 < sigma < math.inf:
        raise ValueError(f"expected a positive finite sigma, got {sigma}")
    distances = torch.linalg.vector_norm(deltas.reshape(len(deltas), -1).double(), dim=1)
    apart = torch.erf(distances / (2 * math.sqrt(2) * sigma))
    n, mean = len(apart), float(apart.mean())
    method = f"mean distance of Gaussians of sigma {sigma:g} around x and A(x), {n} points; an upper bound"
    if support == "finite":
        return Estimate(mean, 0.0, mean, method=method, samples=n)
    found = mean_interval(apart.cpu(), 0.0, 1.0, confidence=confidence, side="upper")
    return Estimate(mean, 0.0, found.upper, found.failure_probability, f"{method}; {found.method}", n)


@dataclass(frozen=True)
class ShiftStatements:
    """Lemma 5 and Theorem 6 for one attack and two models, beside what was measured.

    Attributes:
        lemma_5: Upper bound on `disagreement`.
        theorem_6: Upper bound on `unchanged`.
        disagreement: Pr(F(A(x)) != G(A(x))).
        unchanged: Pr(G(A(x)) = G(x)), rate at which the attack leaves G's label as it was.
        implied_rho: What Lemma 5 says of rho, read the other way: [disagreement - 2 eps, 1].
    """

    lemma_5: BoundValue
    theorem_6: BoundValue
    disagreement: Estimate
    unchanged: Estimate
    implied_rho: Estimate


def shift_statements(
    f: Tensor,
    g: Tensor,
    y: Tensor,
    f_adv: Tensor,
    g_adv: Tensor,
    rho: Estimate,
    *,
    support: Support = "finite",
    confidence: float = 0.95,
) -> ShiftStatements:
    """Lemma 5 and Theorem 6 (TRS, appendix A), and what they bound, from the labels that two models give.

    An attack is effective on F here where it changes F's label, the reading of the printed Theorem 6.

    Args:
        f: Labels by the surrogate F of the benign inputs, (n,).
        g: Labels by the target G, (n,).
        y: True labels (n,).
        f_adv: Labels by F of the attacked inputs, (n,).
        g_adv: Labels by G of the attacked inputs, (n,).
        rho: Distance between benign and attacked inputs. One that is only known from below, `[lower, 1]`,
            leaves the statements nothing to guarantee; exact is `distribution_shift` on a finite set, where
            the stacked labels of F and G may stand for the inputs.
        support: "finite": rates over these points, exact. "population": Clopper-Pearson intervals.
        confidence: Of each interval in "population".

    Returns:
        Both statements, both measured subjects, and rho as Lemma 5 implies it.

    Raises:
        ValueError: If the labels are not all of one shape (n,) with n >= 1, or the support or confidence are
            none.
    """
    distribution = Distribution(support, confidence)
    for name, labels in (("f", f), ("g", g), ("y", y), ("f_adv", f_adv), ("g_adv", g_adv)):
        if labels.dim() != 1 or not len(labels) or labels.shape != y.shape:
            raise ValueError(
                f"expected labels {name} of shape (n,), as y of {tuple(y.shape)}, got {tuple(labels.shape)}"
            )
    risks = [distribution.rate(labels != y, "error rate") for labels in (f, g)]
    eps = Estimate.largest(risks)
    delta = distribution.rate(f_adv == f, "rate at which the attack leaves F's label")
    disagreement = distribution.rate(f_adv != g_adv, "disagreement on attacked inputs")
    implied = Estimate(
        max(0.0, disagreement.value - 2 * eps.value),
        max(0.0, disagreement.lower - 2 * eps.upper),
        1.0,
        failure_probability=min(1.0, disagreement.failure_probability + eps.failure_probability),
        method="Lemma 5 read as rho >= disagreement - 2 eps",
        samples=len(y),
    )
    return ShiftStatements(
        evaluate("lemma-5", {"eps": eps, "rho": rho}),
        evaluate("theorem-6", {"delta": delta, "eps": eps, "rho": rho}),
        disagreement,
        distribution.rate(g_adv == g, "rate at which the attack leaves G's label"),
        implied,
    )


def _finite_shift(benign: Rows, attacked: Rows) -> Estimate:
    n = len(benign)
    _, points = np.unique(np.concatenate([benign, attacked]), axis=0, return_inverse=True)
    laws = (np.bincount(part, minlength=2 * n) for part in np.split(points.reshape(-1), 2))
    # Whole counts, so that the half of the l1 distance is rounded once only.
    moved = np.abs(np.subtract(*laws)).sum()
    method = f"total variation between {n} points and their attacked images; exact for this finite set"
    return Estimate.exact(moved / (2 * n), method, samples=n)


def _tested_shift(benign: Rows, attacked: Rows, confidence: float, seed: int) -> Estimate:
    # Slow to import, and nothing else here needs it.
    from sklearn.ensemble import RandomForestClassifier

    n = len(benign)
    if n < _FEWEST_PAIRS:
        raise ValueError(
            f"expected at least {_FEWEST_PAIRS} pairs, to train on half and test on half, got {n}"
        )
    learn, test = np.array_split(np.random.default_rng(seed).permutation(n), 2)
    classifier = RandomForestClassifier(random_state=seed)
    classifier.fit(np.concatenate([benign[learn], attacked[learn]]), np.repeat([0, 1], len(learn)))
    differences = classifier.predict(attacked[test]) - classifier.predict(benign[test])
    found = mean_interval(differences, -1.0, 1.0, confidence=confidence, side="lower", seed=seed)
    return Estimate(
        max(0.0, found.value),
        max(0.0, found.lower),
        1.0,
        failure_probability=found.failure_probability,
        method=f"classifier two-sample test, trained on {len(learn)} pairs and tested on {len(test)}; "
        f"a lower bound on the total variation, betting interval at {confidence:g}",
        samples=n,
        seed=seed,
    )


def _rows(inputs: Tensor) -> Rows:
    return inputs.detach().reshape(len(inputs), -1).double().cpu().numpy()
