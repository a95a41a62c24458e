"""R2 and R7 beside every attack: may one perturbation fool several members at once?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bounds import Estimate
from bounds.must_transfer import MustTransfer
from bounds.transfer_rate import certified_transfer_rate
from empirical.attacks import predict
from empirical.comparison.attacker import Attacked, Subset, subsets
from empirical.comparison.judge import judge_joint
from empirical.comparison.rows import JointRow
from empirical.comparison.subject import Subject
from estimators.certified import BallTransfer, certify_goals

# A perturbation of all points: the members that it was built on, and whom it fools, (N, n) bool.
Built = tuple[tuple[int, ...], Tensor]


class JointRows:
    """One mode of attack on an ensemble; predictions and certificates are those of float64."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.about = subject, subject.about
        self.networks = [network for network in subject.networks if network is not None]
        self.certifiable = len(self.networks) == len(subject.members)
        self.x, self.y = subject.data.x.double(), subject.data.y
        right = torch.stack([predict(member, self.x) == self.y for member in subject.exact])
        self.right = right & (self.y != subject.target) if subject.targeted else right

    def rows(
        self, norm: str, eps: float, attacked: Attacked, certified: dict[Subset, BallTransfer]
    ) -> list[JointRow]:
        """A row for every subset of the members, from all attacks in the ball of that norm and radius.

        Args:
            norm: Norm of the ball.
            eps: Its radius.
            attacked: The attacks.
            certified: From `certify`, for this mode.
        """
        attacks: dict[str, list[Built]] = {}
        for attack, models, x_adv in attacked.by_members():
            attacks.setdefault(attack, []).append((models, self._fooled(x_adv)))
        return [
            self._row(norm, eps, subset, attacks, certified) for subset in subsets(len(self.subject.members))
        ]

    def rates(self, norm: str, eps: float) -> dict[Subset, float]:
        """R2 of every subset, with its confidence for a population."""
        support, confidence = self.about.support, self.about.confidence
        return {
            subset: ball.rate(support=support, confidence=confidence).upper
            for subset, ball in certify([self], norm, eps, inner=False)[0].items()
        }

    def _row(
        self,
        norm: str,
        eps: float,
        subset: Subset,
        attacks: dict[str, list[Built]],
        certified: dict[Subset, BallTransfer],
    ) -> JointRow:
        models, together = subset
        eligible = self.right[list(models)].all(0)
        hits = {}
        for name, perturbations in attacks.items():
            counted = [
                eligible & (fooled[list(models)].sum(0) >= together)
                for built_on, fooled in perturbations
                if set(built_on) <= set(models)
            ]
            hits[name] = torch.stack(counted).any(0)
        hit = torch.stack(list(hits.values())).any(0)
        rates = {name: self.about.rate(each, f"fooled by the {name} attack") for name, each in hits.items()}
        found = self.about.rate(hit, "fooled by some attack")
        able = self.about.rate(eligible, "points that can count")
        ball = certified[subset]
        bracket, contradicted = self._bracket(ball, hit.cpu().numpy())
        if self.certifiable:
            slack, verdict, reason = judge_joint(bracket, able, rates, contradicted, found)
        else:
            slack, verdict = bracket.value - found.value, "inapplicable"
            reason = "not certified: not asked for, or a member has a layer without a certificate"
        nothing = np.zeros_like(ball.eligible)
        proved = torch.from_numpy(ball.fooled.guaranteed & ball.eligible)
        return JointRow(
            ensemble=self.subject.name, models=models, together=together, mode=self.subject.mode,
            norm=norm, eps=eps, eligible=able, certified=bracket,
            must_transfer=self.about.rate(proved, "proved to be fooled (R7)"),
            found=found, attacks=rates,
            single=tuple(self._bracket(certified[(index,), 1], nothing)[0] for index in models),
            slack=slack, verdict=verdict, reason=reason,
        )  # fmt: skip

    def _bracket(self, ball: BallTransfer, found: np.ndarray) -> tuple[Estimate, int]:
        """The strongest attack's rate, and how many points are certified although they are fooled."""
        fooled = (ball.fooled.guaranteed | found) & ball.eligible
        estimate = certified_transfer_rate(
            ball.certificate, ball.eligible, fooled=fooled & ~ball.certificate,
            support=self.about.support, confidence=self.about.confidence,
        )  # fmt: skip
        return estimate, int((fooled & ball.certificate).sum())

    def _fooled(self, x_adv: Tensor) -> Tensor:
        """Which members an attack fools, (N, n) bool."""
        reached = torch.stack([predict(member, x_adv.double()) for member in self.subject.exact])
        return reached != self.y if self.subject.target is None else reached == self.subject.target

    def uncertified(self, group: Subset) -> BallTransfer:
        """Nothing is certain of these members."""
        never = np.zeros(len(self.y), dtype=bool)
        eligible = self.right[list(group[0])].all(0).cpu().numpy()
        return BallTransfer(never, MustTransfer(never, np.zeros((len(never), 0))), eligible)


def certify(
    modes: Sequence[JointRows], norm: str, eps: float, *, inner: bool = True
) -> list[dict[Subset, BallTransfer]]:
    """What is certain of every member alone and of every subset, in each mode of attack on one ensemble.

    Nothing where a layer has no bounds.
    """
    one = modes[0]
    groups: list[Subset] = [((index,), 1) for index in range(len(one.subject.members))]
    groups += subsets(len(one.subject.members))
    if not one.certifiable:
        return [{group: mode.uncertified(group) for group in groups} for mode in modes]
    targets = [mode.subject.target for mode in modes]
    found = certify_goals(one.networks, one.x, one.y, eps, groups, targets, norm=norm, inner=inner)  # type: ignore[arg-type]
    return [dict(zip(groups, each, strict=True)) for each in found]
