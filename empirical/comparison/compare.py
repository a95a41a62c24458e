"""Predicted against measured: every statement beside the transfer rate that it speaks about.

For each member, ball and mode every attack is run once; it serves every target G, the transfer matrix, the
effectiveness alpha, the constants c_F and c_G, the smoothness along the attack, and the joint certificates.

The smoothness beta enters the proofs of Theorems 1-4 only through a second-order remainder on the segment
from x to the attacked x. Two stand-ins for it are evaluated, and every row says which:

- "segment": the smoothness along the attack's segments, certified from above: the printed hypothesis, over
  the set that the proofs need for one given attack. Infinite for networks with kinks. Where a layer has no
  certificate it is the largest Hessian norm seen at the segments' ends, and what follows is heuristic.
- "remainder": the exact second-order remainder of this attack on this set. Narrower than the printed
  hypothesis, but it is all that the proofs use of beta for one given attack, so in finite-support mode what
  follows is certified for the evaluated set, up to floating-point rounding. It stays finite for networks with
  kinks, whose beta is infinite.

The remainder is evaluated for every attack. It is the smaller of the two, so what it guarantees is violated
wherever the segment's guarantee is; that one is evaluated for the first attack alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import estimators
from empirical.attacks import Attack, AttackMethod
from empirical.attacks.joint import JointAttack
from empirical.comparison.attacker import Attacker
from empirical.comparison.benign import accuracy, benign_summary, readable_network
from empirical.comparison.frontier import Certify, frontiers
from empirical.comparison.joint_rows import JointRows
from empirical.comparison.joint_rows import certify as certify_subsets
from empirical.comparison.pair_rows import REMAINDER, SEGMENT, PairRows
from empirical.comparison.results import EnsembleResult
from empirical.comparison.rows import JointRow, Row
from empirical.comparison.subject import Subject
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.protocols.whitebox import white_box_cell
from empirical.transfer import matrix_from_attacks
from empirical.transfer_matrix import TransferMatrix
from estimators.batching import double_copy
from estimators.distribution import Distribution
from estimators.points import measure_points

TRANSFER_ATTACKS: Mapping[str, Attack | JointAttack] = MappingProxyType(
    {
        "pgd": Attack(method="pgd", steps=50),
        "apgd": Attack(method="apgd", steps=50, loss="margin"),
        "mim": Attack(method="mim", steps=50),
        "joint": JointAttack(steps=20),
    }
)
STANDARD_ATTACKS = MappingProxyType({name: TRANSFER_ATTACKS[name] for name in ("pgd", "joint")})
ROBUSTNESS_ATTACK = Attack(method="pgd", norm="linf", eps=0.1, steps=50)


def compare(
    ensemble: Ensemble,
    data: Split,
    *,
    name: str,
    eps: Sequence[float],
    linf_eps: Sequence[float] = (),
    target_label: int = 0,
    attacks: Mapping[str, AttackMethod | JointAttack] = STANDARD_ATTACKS,
    certificates: bool = True,
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
        linf_eps: linf radii of the transfer attacks, all positive.
        target_label: Label y_t of the targeted statements, one for all samples, as in the paper.
        attacks: The transfer attacks by name, at least one of them on single members: dataclasses with the
            fields norm and eps, which are replaced.
        certificates: Whether to certify in every ball what no attack can do (R1, R2, R7).
        robust_eps: Radii at which the ensemble as a whole is attacked.
        robust_attack: That attack; its radius is replaced by each of `robust_eps`.
        support: "finite": the distribution is uniform on `data`; "population": `data` is an i.i.d. sample.
        confidence: Confidence of every statistical interval.
        pixel_range: Range of valid inputs, None for data without one.
        progress: Called with a line of text when a part begins.

    Returns:
        Everything measured, as plain data.

    Raises:
        ValueError: If there are fewer than two members, no attack, a radius is not positive, or the target
            label is no class of the data.
    """
    _check_arguments(ensemble, data, eps, linf_eps, target_label, attacks)
    members = list(ensemble.members)
    about = Distribution(support, confidence)
    points = measure_points(members, data.x, data.y, target=target_label)
    networks = [readable_network(member, data.x) for member in members]
    readable = networks if certificates else [None] * len(members)
    exact = [double_copy(member) for member in members]
    modes = []
    for target in (None, target_label):
        subject = Subject(name, members, exact, networks, data, target, about)
        modes.append(_Mode(PairRows(subject, points), JointRows(replace(subject, networks=readable))))
    certify: dict[tuple[str, str], Certify] = {}
    first = next(name for name, each in attacks.items() if not isinstance(each, JointAttack))
    for norm, radii in (("l2", eps), ("linf", linf_eps)):
        for each in modes:
            if each.of_subsets.certifiable and radii:
                certify[each.of_subsets.subject.mode, norm] = partial(each.of_subsets.rates, norm)
        attackers = [
            Attacker(members, data, attacks, norm, each.of_pairs.subject.target, pixel_range)
            for each in modes
        ]
        for radius in sorted(map(float, radii)):
            progress(f"{name}: {norm} radius {radius:g}, certificates")
            certified = certify_subsets([each.of_subsets for each in modes], norm, radius)
            for each, attacker, balls in zip(modes, attackers, certified, strict=True):
                progress(f"{name}: {norm} radius {radius:g}, {each.of_pairs.subject.mode} attacks")
                attacked = attacker.attack(radius)
                # Intervals in a matrix always tell what the set says about the population it came from.
                each.matrices += [
                    matrix_from_attacks(members, data, results, confidence=confidence)
                    for results in attacked.on_members.values()
                ]
                for attack, pairs, x_adv in attacked.by_pairs():
                    stand_ins = (SEGMENT, REMAINDER) if attack == first else (REMAINDER,)
                    each.rows += each.of_pairs.rows(attack, norm, radius, x_adv, pairs, stand_ins)
                each.joint += each.of_subsets.rows(norm, radius, attacked, balls)
    rows = [row for each in modes for row in each.rows]
    joint = [row for each in modes for row in each.joint]
    progress(f"{name}: robust accuracy of the ensemble")
    robustness = [
        white_box_cell(
            ensemble, data, replace(robust_attack, eps=float(radius)), confidence=confidence,
            pixel_range=pixel_range,
        )
        for radius in robust_eps
    ]  # fmt: skip
    return EnsembleResult(
        name=name,
        members=len(members),
        accuracy=accuracy(ensemble, data, confidence),
        member_accuracy=tuple(accuracy(member, data, confidence) for member in members),
        kinks=tuple(dict.fromkeys(layer for member in members for layer in estimators.kinks(member))),
        robustness=tuple(
            {
                "attack": cell.attack.to_json(),
                "estimate": cell.survival.robust_accuracy,
                "health": cell.health.to_json(),
            }
            for cell in robustness
        ),
        benign=benign_summary(members, networks, data, points),
        matrices=tuple(matrix.to_json() for each in modes for matrix in each.matrices),
        rows=tuple(rows),
        joint=tuple(joint),
        frontiers=frontiers(rows, joint, len(members), certify),
    )


@dataclass
class _Mode:
    """One mode of attack: what measures it, and what was measured so far."""

    of_pairs: PairRows
    of_subsets: JointRows
    rows: list[Row] = field(default_factory=list)
    joint: list[JointRow] = field(default_factory=list)
    matrices: list[TransferMatrix] = field(default_factory=list)


def _check_arguments(
    ensemble: Ensemble,
    data: Split,
    eps: Sequence[float],
    linf_eps: Sequence[float],
    target_label: int,
    attacks: Mapping[str, AttackMethod | JointAttack],
) -> None:
    if len(ensemble.members) < 2:
        raise ValueError(f"expected an ensemble of at least two members, got {len(ensemble.members)}")
    check_radii([*eps, *linf_eps])
    if all(isinstance(attack, JointAttack) for attack in attacks.values()):
        raise ValueError(
            f"expected at least one attack on single members, got {', '.join(attacks) or 'none'}"
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
