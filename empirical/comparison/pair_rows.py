"""The statements about a surrogate and a target: evaluated for an attack, and put beside its transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor

import estimators
from bounds import STATEMENTS, Estimate, evaluate
from empirical.attacks.perturbation import sample_norms
from empirical.comparison.judge import judge
from empirical.comparison.rows import ON_BOTH_CORRECT, Row
from empirical.comparison.subject import TARGETED, UNTARGETED, Subject
from estimators.certified.segment import largest_on_segments
from estimators.points import CleanPoints, LossTable, measure_attack
from estimators.quantities import Pair

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
# Enough to close the bracket of shallow networks; more would be spent on deep ones only.
_SEGMENT_PIECES = 64


class PairRows:
    """One mode of attack: what the clean points give is worked out once, the rest once per attack."""

    def __init__(self, subject: Subject, points: CleanPoints) -> None:
        self.subject, self.points = subject, points
        self.exact_x, self.goal = subject.data.x.double(), subject.goal
        self.pairs = {
            (f, g): Pair(points, subject.about, subject.targeted, f, g)
            for f, g in permutations(range(len(subject.members)), 2)
        }

    def rows(
        self,
        attack: str,
        norm: str,
        eps: float,
        x_adv: Tensor,
        pairs: Sequence[tuple[int, int]],
        stand_ins: Sequence[str] = (SEGMENT, REMAINDER),
    ) -> list[Row]:
        """All statements about one attack.

        Args:
            attack: Name of the attack.
            norm: Norm of its ball.
            eps: Radius of its ball, in that norm.
            x_adv: Attacked inputs (n, *shape).
            pairs: The surrogates and targets that it is an attack for.
            stand_ins: What stands for beta.
        """
        size = eps if norm == "l2" else largest_l2_size(self.subject.data.x, x_adv)
        attacked = measure_attack(self.subject.members, self.subject.data.x, x_adv, size)
        betas = {
            stand_in: {
                index: self._smoothness(index, x_adv, attacked.predictions[index], stand_in)
                for index in sorted({member for pair in pairs for member in pair})
            }
            for stand_in in stand_ins
        }
        rows = []
        for stand_in, beta_of in betas.items():
            for f, g in pairs:
                beta = Estimate.largest([beta_of[f], beta_of[g]])
                known = self.pairs[f, g].quantities(attacked, eps=size, beta=beta)
                rates = {starred: self._transfer(attacked, f, g, starred) for starred in (False, True)}
                for statement in STATEMENTS_BY_MODE[self.subject.mode]:
                    if statement not in known:
                        continue
                    bound = evaluate(statement, known[statement])
                    measured = rates[statement in ON_BOTH_CORRECT]
                    slack, verdict, reason = judge(bound, measured, self._obstacles(known[statement], f, g))
                    rows.append(
                        Row(
                            ensemble=self.subject.name, surrogate=f, target=g, mode=self.subject.mode,
                            norm=norm, eps=eps, attack=attack, statement=statement,
                            smoothness=stand_in, bound=bound.to_json(),
                            quantities={key: known[statement][key] for key in STATEMENTS[statement].names},
                            measured=measured, slack=slack, verdict=verdict, reason=reason,
                        )
                    )  # fmt: skip
        return rows

    def _transfer(self, attacked: LossTable, f: int, g: int, starred: bool) -> Estimate:
        """Definition 7's rate; starred, without the points whose label is the target."""
        reached = attacked.predictions == self.goal
        fooled = reached if self.subject.targeted else ~reached
        event = self.points.correct[f] & self.points.correct[g] & fooled[f] & fooled[g]
        if starred and self.subject.targeted:
            event = event & (self.subject.data.y != self.goal)
        return self.subject.about.rate(event, "transfer")

    def _obstacles(self, known: Mapping[str, Estimate], f: int, g: int) -> list[str]:
        """What stands in the way of Theorems 1 and 2: the gradients that c_F and c_G divide by."""
        words = []
        for letter, model in (("F", f), ("G", g)):
            if f"c_{letter}" not in known:
                continue
            norms = self.points.norms[model].gather(1, self.goal.unsqueeze(1))
            label = "target" if self.subject.targeted else "true"
            zeros = int((norms == 0).sum())
            words.append(
                f"the {label}-label gradient of {letter} vanishes at {zeros} of {len(norms)} points"
                if zeros
                else f"the {label}-label gradient of {letter} is as short as {float(norms.min()):.2g}"
            )
        return words

    def _smoothness(self, index: int, x_adv: Tensor, reached: Tensor, stand_in: str) -> Estimate:
        """Stand-in for beta over the attack's segments, at every label that a proof expands the loss at."""
        member, loss = self.subject.members[index], estimators.cross_entropy
        # Theorem 4 expands it at the true label and the one into which the attack led, Theorem 3 at y_t.
        labels = torch.stack([self.subject.data.y, self.goal if self.subject.targeted else reached], 1)
        if stand_in == REMAINDER:
            return estimators.remainder(self.subject.exact[index], loss, self.exact_x, x_adv.double(), labels)
        network = self.subject.networks[index]
        if network is None:
            return estimators.smoothness(
                member, loss, self.subject.data.x, labels, method="segment", x_end=x_adv
            )
        return largest_on_segments(network, self.exact_x, x_adv.double(), labels, pieces=_SEGMENT_PIECES)


def largest_l2_size(x: Tensor, x_adv: Tensor) -> float:
    """The radius that H2 needs: the largest ||x_adv - x||_2 over all points, rounded up a little."""
    largest = float(sample_norms(x_adv.double() - x.double(), 2).max())
    return largest * (1 + 1e-9) or torch.finfo(torch.float64).tiny
