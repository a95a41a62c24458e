"""Predicted against measured: every statement beside the transfer rate that it speaks about.

For each surrogate F, radius and mode one attack is run; it serves every target G, the transfer matrix, the
effectiveness alpha, the constants c_F and c_G and the smoothness along the attack. Nothing is attacked twice.

The smoothness beta enters the proofs of Theorems 1-4 only through a second-order remainder on the segment
from x to the attacked x. Two stand-ins for it are evaluated, and every row says which:

- "segment": the smoothness along the attack's segments, certified from above: the printed hypothesis, over
  the set that the proofs need for one given attack. Infinite for networks with kinks. Where a layer has no
  certificate it is the largest Hessian norm seen at the segments' ends, and what follows is heuristic.
- "remainder": the exact second-order remainder of this attack on this set. Narrower than the printed
  hypothesis, but it is all that the proofs use of beta for one given attack, so in finite-support mode what
  follows is certified for the evaluated set, up to floating-point rounding. It stays finite for networks with
  kinks, whose beta is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, permutations

import torch
from torch import Tensor, nn

import estimators
from bounds import STATEMENTS, BoundValue, Estimate, Sense, Status, evaluate
from empirical.attacks import Attack, predict, run_attack
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.results import ON_BOTH_CORRECT, EnsembleResult, Row
from empirical.robustness import robust_accuracy
from empirical.transfer import matrix_from_attacks
from empirical.transfer_matrix import TransferMatrix
from estimators.certified.network import Network, UnsupportedLayer, read_network
from estimators.certified.segment import largest_on_segments
from estimators.certified.whole_space import whole_space_bounds
from estimators.distribution import Distribution
from estimators.points import CleanPoints, measure_attack, measure_points
from estimators.quantities import Pair
from estimators.similarity import cosine_extremes

UNTARGETED, TARGETED = "untargeted", "targeted"
SEGMENT, REMAINDER = "segment", "remainder"
STATEMENTS_BY_MODE = {
    UNTARGETED: (
        "theorem-2", "refined-r6", "refined-r6-pointwise",
        "theorem-4", "theorem-4-repaired", "refined-r3-untargeted",
    ),
    TARGETED: (
        "theorem-1", "theorem-1-repaired",
        "theorem-3", "theorem-3-repaired", "refined-r3", "refined-r4", "refined-cantelli",
    ),
}  # fmt: skip
TRANSFER_ATTACK = Attack(method="pgd", norm="l2", eps=1.0, steps=50)
ROBUSTNESS_ATTACK = Attack(method="pgd", norm="linf", eps=0.1, steps=50)
# Guaranteed ends are certified up to floating-point rounding; a rate on the line is no violation.
ROUNDING = 1e-6
# Enough to close the bracket of shallow networks; more would be spent on deep ones only.
_SEGMENT_PIECES = 64
# Certifying beta over all inputs takes seconds up to this size of the Jacobians, and minutes beyond.
_WHOLE_SPACE_ENTRIES = 2_000_000


def compare(
    ensemble: Ensemble,
    data: Split,
    *,
    name: str,
    eps: Sequence[float],
    target_label: int = 0,
    attack: Attack = TRANSFER_ATTACK,
    robust_eps: Sequence[float] = (0.1, 0.15),
    robust_attack: Attack = ROBUSTNESS_ATTACK,
    support: estimators.Support = "finite",
    confidence: float = 0.95,
    pixel_range: tuple[float, float] | None = (0.0, 1.0),
    progress: Callable[[str], None] = lambda message: None,
) -> EnsembleResult:
    """Measure an ensemble, evaluate the statements on every ordered pair, and put both side by side.

    Args:
        ensemble: Two or more members; logits (n, K).
        data: Held-out samples on the ensemble's device.
        name: What to call the ensemble in tables and figures.
        eps: l2 radii of the transfer attacks, all positive.
        target_label: Label y_t of the targeted statements, one for all samples, as in the paper.
        attack: The transfer attack; its radius is replaced by each of `eps`. It must be an l2 attack, because
            the theorems are about the l2 ball.
        robust_eps: Radii at which the ensemble as a whole is attacked.
        robust_attack: That attack; its radius is replaced by each of `robust_eps`.
        support: "finite": the distribution is uniform on `data`; "population": `data` is an i.i.d. sample.
        confidence: Confidence of every statistical interval.
        pixel_range: Range of valid inputs, None for data without one.
        progress: Called with a line of text when a part begins.

    Returns:
        Everything measured, as plain data.

    Raises:
        ValueError: If there are fewer than two members, a radius is not positive, the attack is not an l2
            attack, or the target label is no class of the data.
    """
    _check_arguments(ensemble, data, eps, target_label, attack)
    members = list(ensemble.members)
    points = measure_points(members, data.x, data.y, target=target_label)
    rows: list[Row] = []
    matrices: list[TransferMatrix] = []
    networks = [_network(member, data.x) for member in members]
    for target in (None, target_label):
        study = _Study(members, data, networks, points, target, Distribution(support, confidence))
        for radius in map(float, eps):
            progress(f"{name}: {study.mode}, l2 radius {radius:g}")
            strength = replace(attack, eps=radius)
            results = [
                run_attack(member, data.x, data.y, strength, target=target, pixel_range=pixel_range)
                for member in members
            ]
            printed, starred = (
                matrix_from_attacks(
                    members, data, results, starred=starred, support=support, confidence=confidence
                )
                for starred in (False, True)
            )
            matrices.append(printed)
            for surrogate, result in enumerate(results):
                rows += study.rows(name, surrogate, result.x_adv, radius, printed, starred)
    progress(f"{name}: robust accuracy of the ensemble")
    robustness = [
        {
            "attack": (strength := replace(robust_attack, eps=float(radius))).to_json(),
            "estimate": robust_accuracy(
                ensemble, data, strength, confidence=confidence, pixel_range=pixel_range
            ),
        }
        for radius in robust_eps
    ]
    return EnsembleResult(
        name=name,
        members=len(members),
        accuracy=_accuracy(ensemble, data, confidence),
        member_accuracy=tuple(_accuracy(member, data, confidence) for member in members),
        kinks=tuple(dict.fromkeys(layer for member in members for layer in estimators.kinks(member))),
        robustness=tuple(robustness),
        benign={**_benign_summary(points), "smoothness": _bracket(members, networks, data).to_json()},
        # Intervals in a matrix always tell what the set says about the population it came from.
        matrices=tuple(replace(matrix, support="population").to_json() for matrix in matrices),
        rows=tuple(rows),
    )


class _Study:
    """One mode of attack: what the clean data give is worked out once, the rest once per attack."""

    def __init__(
        self,
        members: Sequence[nn.Module],
        data: Split,
        networks: Sequence[Network | None],
        points: CleanPoints,
        target: int | None,
        about: Distribution,
    ) -> None:
        self.members, self.data, self.targeted = members, data, target is not None
        self.mode = UNTARGETED if target is None else TARGETED
        # The label whose loss the attack moves: the target's in Theorem 1, the true one in Theorem 2.
        self.goal = data.y if target is None else torch.full_like(data.y, target)
        self.networks = networks
        self.pairs = {
            (f, g): Pair(points, about, self.targeted, f, g) for f, g in permutations(range(len(members)), 2)
        }

    def rows(
        self,
        name: str,
        surrogate: int,
        x_adv: Tensor,
        eps: float,
        printed_rates: TransferMatrix,
        starred_rates: TransferMatrix,
    ) -> list[Row]:
        """All statements for one surrogate's attack, every other member a target."""
        attacked = measure_attack(self.members, self.data.x, x_adv, eps)
        rows = []
        for stand_in in (SEGMENT, REMAINDER):
            betas = [self._smoothness(index, x_adv, stand_in) for index in range(len(self.members))]
            for (f, target), pair in self.pairs.items():
                if f != surrogate:
                    continue
                beta = Estimate.largest([betas[surrogate], betas[target]])
                known = pair.quantities(attacked, eps=eps, beta=beta)
                for statement in STATEMENTS_BY_MODE[self.mode]:
                    if statement not in known:
                        continue
                    rates = starred_rates if statement in ON_BOTH_CORRECT else printed_rates
                    bound = evaluate(statement, known[statement])
                    measured = rates.estimate(rates.surrogates[surrogate], rates.targets[target])
                    assert measured is not None  # only conditional rates can lack a denominator
                    slack, verdict, reason = judge(bound, measured)
                    rows.append(
                        Row(
                            ensemble=name, surrogate=surrogate, target=target, mode=self.mode, eps=eps,
                            statement=statement, smoothness=stand_in, bound=bound.to_json(),
                            quantities={key: known[statement][key] for key in STATEMENTS[statement].names},
                            measured=measured, slack=slack, verdict=verdict, reason=reason,
                        )
                    )  # fmt: skip
        return rows

    def _smoothness(self, index: int, x_adv: Tensor, stand_in: str) -> Estimate:
        """Stand-in for beta over the attack's segments, at every label that a proof expands the loss at."""
        member, loss = self.members[index], estimators.cross_entropy
        # Theorem 4 expands it at the true label and the one into which the attack led, Theorem 3 at y_t.
        other = self.goal if self.targeted else predict(member, x_adv)
        labels = torch.stack([self.data.y, other], 1)
        if stand_in == REMAINDER:
            return estimators.remainder(member, loss, self.data.x, x_adv, labels)
        network = self.networks[index]
        if network is None:
            return estimators.smoothness(member, loss, self.data.x, labels, method="segment", x_end=x_adv)
        return largest_on_segments(
            network, self.data.x.double(), x_adv.double(), labels, pieces=_SEGMENT_PIECES
        )


def judge(bound: BoundValue, measured: Estimate) -> tuple[float | None, str, str]:
    """Slack, verdict and the reason in words for one bound beside one measurement.

    Returns:
        The slack (positive on the right side, None where the statement is inapplicable); a verdict out of
        consistent, violated, vacuous, inapplicable and inconclusive; and the reason. Only a guaranteed bound
        can be violated: a measurement beyond a heuristic value is inconclusive.
    """
    if bound.status is Status.INAPPLICABLE or bound.value is None:
        return None, "inapplicable", "; ".join(bound.unmet)
    upper = bound.statement.sense is Sense.UPPER
    sign = 1.0 if upper else -1.0
    slack = sign * (bound.value - measured.value)
    limit = bound.guaranteed
    # The measured interval's end that would have to lie beyond the bound for a violation, and its other end.
    near, far = (measured.lower, measured.upper) if upper else (measured.upper, measured.lower)
    if limit is not None and sign * (near - limit) > ROUNDING:
        return slack, "violated", f"measured {_interval(measured)} lies beyond the guaranteed {limit:.4g}"
    if bound.status is Status.VACUOUS:
        term, size = max(bound.terms.items(), key=lambda item: sign * item[1])
        return slack, "vacuous", f"the bound is {bound.value:.4g}; its largest term is {term} ({size:.4g})"
    if limit is None:
        words = f"{bound.grade.value} bound {bound.value:.4g}, measured {_interval(measured)}"
        return slack, "consistent" if slack >= -ROUNDING else "inconclusive", words
    words = f"{bound.grade.value}: guaranteed {limit:.4g}, measured {_interval(measured)}"
    return slack, "consistent" if sign * (limit - far) >= -ROUNDING else "inconclusive", words


def _interval(estimate: Estimate) -> str:
    if estimate.is_exact:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.lower:.4g}, {estimate.upper:.4g}]"


def _accuracy(model: nn.Module, data: Split, confidence: float) -> Estimate:
    correct = int((predict(model, data.x) == data.y).sum())
    return Estimate.proportion(correct, len(data), confidence=confidence)


def _network(member: nn.Module, x: Tensor) -> Network | None:
    """The member as certificates read it, None where a layer has none."""
    try:
        return read_network(member, x)
    except UnsupportedLayer:
        return None


def _bracket(members: Sequence[nn.Module], networks: Sequence[Network | None], data: Split) -> Estimate:
    """Definition 6's beta for all members: sampled on the set from below, certified over all inputs."""
    sampled = Estimate.largest(
        [estimators.smoothness(member, estimators.cross_entropy, data.x, data.y) for member in members]
    )
    readable = [network for network in networks if network is not None]
    if len(readable) < len(networks):
        return sampled
    if max(_jacobian_entries(network) for network in readable) > _WHOLE_SPACE_ENTRIES:
        return replace(sampled, method=f"{sampled.method}; too large to certify within a comparison")
    certified = max(float(whole_space_bounds(network).smoothness.max()) for network in readable)
    method = f"{sampled.method}; upper end certified over all inputs, up to rounding"
    return replace(sampled, value=certified, upper=certified, method=method)


def _jacobian_entries(network: Network) -> int:
    return math.prod(network.shapes[0]) * sum(math.prod(shape) for shape in network.shapes)


def _benign_summary(points: CleanPoints) -> dict[str, float]:
    """Extremes over the evaluated set: cosine of the true-label gradients, gradient norm over all labels."""
    at_truth = [
        points.cosines[f, g].gather(1, points.y.unsqueeze(1))
        for f, g in combinations(range(len(points.norms)), 2)
    ]
    about = Distribution("finite")
    low, high = cosine_extremes(torch.stack(at_truth), about, "over all pairs", len(points.y))
    return {
        "similarity_lower": low.value,
        "similarity_upper": high.value,
        "gradient_norm": float(points.norms.max()),
    }


def _check_arguments(
    ensemble: Ensemble, data: Split, eps: Sequence[float], target_label: int, attack: Attack
) -> None:
    if len(ensemble.members) < 2:
        raise ValueError(f"expected an ensemble of at least two members, got {len(ensemble.members)}")
    check_radii(eps)
    if attack.norm != "l2":
        raise ValueError(
            f"expected an l2 attack, because the theorems are about the l2 ball; got {attack.norm}"
        )
    check_target(target_label, ensemble(data.x[:1]).shape[1])


def check_radii(eps: Sequence[float]) -> None:
    """Refuse radii of attacks that are not positive finite numbers.

    Raises:
        ValueError: If there is none, or one is not positive and finite.
    """
    if not eps or not all(0 < radius < math.inf for radius in eps):
        raise ValueError(f"expected one or more positive radii eps, got {', '.join(map(str, eps)) or 'none'}")


def check_target(target_label: int, classes: int) -> None:
    """Refuse a target label that is no class.

    Raises:
        ValueError: If it is not in 0 .. classes - 1.
    """
    if not 0 <= target_label < classes:
        raise ValueError(f"expected a target label in 0..{classes - 1}, got {target_label}")
