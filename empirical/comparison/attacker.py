"""All attacks of a comparison in one ball: on every member, and on every subset of the members at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from torch import Tensor, nn

from empirical.attacks import AttackMethod, AttackResult, run_attack
from empirical.attacks.base import PixelRange
from empirical.attacks.joint import JointAttack, joint_attack
from empirical.data import Split

# Some members, and how many of them are fooled at once.
Subset = tuple[tuple[int, ...], int]
AnyAttack = TypeVar("AnyAttack", AttackMethod, JointAttack)


def subsets(members: int) -> tuple[Subset, ...]:
    """What a comparison asks about: every pair, then, of three or more members, 2 .. N of all N."""
    everyone = tuple(range(members))
    pairs = tuple((pair, 2) for pair in combinations(everyone, 2))
    return pairs + tuple((everyone, together) for together in range(2, members + 1) if members > 2)


@dataclass(frozen=True)
class Attacked:
    """The attacks in one ball.

    Attributes:
        on_members: By name of the attack, its result on each member.
        on_subsets: By name of the joint attack and by subset, the attacked inputs.
    """

    on_members: Mapping[str, Sequence[AttackResult]]
    on_subsets: Mapping[str, Mapping[Subset, Tensor]]

    def by_members(self) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """Every perturbation: name of the attack, the members it was built on, attacked inputs."""
        for name, results in self.on_members.items():
            for member, result in enumerate(results):
                yield name, (member,), result.x_adv
        for name, found in self.on_subsets.items():
            for (models, _), x_adv in found.items():
                yield name, models, x_adv

    def by_pairs(self) -> Iterator[tuple[str, list[tuple[int, int]], Tensor]]:
        """Every perturbation with the surrogates and targets that it is an attack for."""
        for name, models, x_adv in self.by_members():
            if len(models) == 1:
                others = range(len(self.on_members[name]))
                yield name, [(*models, other) for other in others if other not in models], x_adv
            elif len(models) == 2:
                f, g = models
                yield name, [(f, g), (g, f)], x_adv


def in_ball(attack: AnyAttack, norm: str, eps: float) -> AnyAttack:
    """The same attack in another ball; it has to be a dataclass with the fields norm and eps."""
    return replace(attack, norm=norm, eps=eps)  # type: ignore[type-var]


class Attacker:
    """Attacks in growing balls of one norm and mode; what worked in one is where the next begins."""

    def __init__(
        self,
        members: Sequence[nn.Module],
        data: Split,
        attacks: Mapping[str, AttackMethod | JointAttack],
        norm: str,
        target: int | None,
        pixel_range: PixelRange,
    ) -> None:
        self.members, self.data, self.norm = members, data, norm
        self.target, self.pixel_range = target, pixel_range
        self.single = {name: each for name, each in attacks.items() if not isinstance(each, JointAttack)}
        self.joint = {name: each for name, each in attacks.items() if isinstance(each, JointAttack)}
        self.smaller: Mapping[str, Mapping[Subset, Tensor]] = {}

    def attack(self, eps: float) -> Attacked:
        """Run every attack once in the ball of this radius, which is larger than the one before."""
        x, y = self.data.x, self.data.y
        on_members = {
            name: [
                run_attack(
                    member, x, y, in_ball(settings, self.norm, eps), target=self.target,
                    pixel_range=self.pixel_range,
                )
                for member in self.members
            ]
            for name, settings in self.single.items()
        }  # fmt: skip
        on_subsets = {
            name: self._jointly(name, in_ball(settings, self.norm, eps), on_members)
            for name, settings in self.joint.items()
        }
        self.smaller = on_subsets
        return Attacked(on_members, on_subsets)

    def _jointly(
        self, name: str, attack: JointAttack, on_members: Mapping[str, Sequence[AttackResult]]
    ) -> dict[Subset, Tensor]:
        found: dict[Subset, Tensor] = {}
        for subset in subsets(len(self.members)):
            models, together = subset
            if together == 2 < len(models):
                continue  # two of many are fooled where one of the pairs is
            starts = [
                *(x_adv for (others, _), x_adv in found.items() if set(others) <= set(models)),
                *(results[member].x_adv for results in on_members.values() for member in models),
            ]
            if subset in (smaller := self.smaller.get(name, {})):
                starts.append(smaller[subset])
            found[subset] = joint_attack(
                [self.members[index] for index in models], self.data.x, self.data.y, attack,
                target=self.target, together=together, starts=starts, pixel_range=self.pixel_range,
            ).x_adv  # fmt: skip
        return found
