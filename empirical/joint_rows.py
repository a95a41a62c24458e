"""R2 and R7 beside every attack: may one perturbation fool several members at once?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bounds import Estimate
from bounds.transfer_rate import certified_transfer_rate
from empirical.attacks import predict
from empirical.data import Split
from empirical.judge import judge_joint
from empirical.pair_rows import TARGETED, UNTARGETED
from empirical.rows import JointRow
from estimators.batching import double_copy
from estimators.certified import certify_transfer
from estimators.distribution import Distribution

Bools = NDArray[np.bool_]
# A perturbation of all points: the members that it was built on, and whom it fools, (N, n) bool.
Built = tuple[tuple[int, ...], Tensor]


def subsets(members: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The members in question and how many of them are fooled at once: every pair, then 2 .. N of all N."""
    everyone = tuple(range(members))
    for pair in combinations(everyone, 2):
        yield pair, 2
    if members > 2:
        for together in range(2, members + 1):
            yield everyone, together


class JointRows:
    """One mode of attack on an ensemble; predictions and certificates are in float64.

    Attributes:
        mode: "untargeted" or "targeted".
    """

    def __init__(
        self,
        name: str,
        members: Sequence[nn.Module],
        data: Split,
        target: int | None,
        about: Distribution,
        certifiable: bool,
    ) -> None:
        self.name, self.about, self.target, self.certifiable = name, about, target, certifiable
        self.members = [double_copy(member) for member in members]
        self.x, self.y = data.x.double(), data.y
        self.mode = UNTARGETED if target is None else TARGETED
        right = torch.stack([predict(member, self.x) == data.y for member in self.members])
        self.right = right if target is None else right & (data.y != target)

    def fooled(self, x_adv: Tensor) -> Tensor:
        """Which members an attack fools, (N, n) bool."""
        reached = torch.stack([predict(member, x_adv.double()) for member in self.members])
        return reached != self.y if self.target is None else reached == self.target

    def rows(self, norm: str, eps: float, attacks: Mapping[str, Sequence[Built]]) -> list[JointRow]:
        """A row for every subset of the members.

        Args:
            norm: Norm of the ball.
            eps: Its radius.
            attacks: By name, the perturbations in this ball that the attack made.
        """
        certificates = _Certificates(self.members, self.x, self.y, norm, eps, self.target, self.certifiable)
        return [
            self._row(norm, eps, models, together, attacks, certificates)
            for models, together in subsets(len(self.members))
        ]

    def _row(
        self,
        norm: str,
        eps: float,
        models: tuple[int, ...],
        together: int,
        attacks: Mapping[str, Sequence[Built]],
        certificates: _Certificates,
    ) -> JointRow:
        members = list(models)
        eligible = self.right[members].all(0)
        hits = {}
        for name, built in attacks.items():
            counted = [
                eligible & (fooled[members].sum(0) >= together)
                for on, fooled in built
                if set(on) <= set(models)
            ]
            if counted:
                hits[name] = torch.stack(counted).any(0)
        any_hit = torch.stack(list(hits.values())).any(0)
        certified, proved = certificates.of(models, together)
        found, able = any_hit.cpu().numpy(), eligible.cpu().numpy()
        contradicted = int((found & certified).sum())
        bracket = certified_transfer_rate(
            certified, able, fooled=(found | proved) & able & ~certified,
            support=self.about.support, confidence=self.about.confidence,
        )  # fmt: skip
        rates = {name: self.about.rate(hit, f"{name} attack") for name, hit in hits.items()}
        found_rate = self.about.rate(any_hit, "pointwise over the attacks")
        eligible_rate = self.about.rate(eligible, "points that can count")
        if self.certifiable:
            slack, verdict, reason = judge_joint(bracket, eligible_rate, rates, contradicted, found_rate)
        else:
            slack, verdict = bracket.value - found_rate.value, "inapplicable"
            reason = "a member has a layer without a certificate"
        return JointRow(
            ensemble=self.name, models=models, together=together, mode=self.mode, norm=norm, eps=eps,
            eligible=eligible_rate, certified=bracket,
            must_transfer=self.about.rate(torch.from_numpy(proved & able), "points proved to transfer (R7)"),
            found=found_rate, attacks=rates,
            single=tuple(self._single(index, certificates) for index in models),
            slack=slack, verdict=verdict, reason=reason,
        )  # fmt: skip

    def _single(self, index: int, certificates: _Certificates) -> Estimate:
        certified, proved = certificates.of((index,), 1)
        able = self.right[index].cpu().numpy()
        return certified_transfer_rate(
            certified, able, fooled=proved & able & ~certified,
            support=self.about.support, confidence=self.about.confidence,
        )  # fmt: skip


class _Certificates:
    """Certificates of one ball, each computed once: k of N are fooled only if some k of them are."""

    def __init__(
        self,
        members: Sequence[nn.Module],
        x: Tensor,
        y: Tensor,
        norm: str,
        eps: float,
        target: int | None,
        certifiable: bool,
    ) -> None:
        self.arguments = members, x, y, eps, target
        self.certifiable = certifiable
        self.known: dict[tuple[int, ...], tuple[Bools, Bools]] = {}

    def of(self, models: tuple[int, ...], together: int) -> tuple[Bools, Bools]:
        """Points where no perturbation fools `together` of the models (R1), and where one must (R7), (n,)."""
        parts = [self._of_all(part) for part in combinations(models, together)]
        return np.all([part[0] for part in parts], 0), np.any([part[1] for part in parts], 0)

    def _of_all(self, models: tuple[int, ...]) -> tuple[Bools, Bools]:
        if models not in self.known:
            members, x, y, eps, target = self.arguments
            if self.certifiable:
                found = certify_transfer([members[index] for index in models], x, y, eps, target=target)
                self.known[models] = np.asarray(found.certificate), found.fooled.guaranteed
            else:
                nothing = np.zeros(len(y), dtype=bool)
                self.known[models] = nothing, nothing
        return self.known[models]
