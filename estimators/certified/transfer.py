"""Transfer certificates of trained models: refined results R1, R2, R7 and R9 over l2 and linf balls.

Each model's margins are bounded once (`expansion`); `bounds.joint` combines the models, subset by subset,
cheapest certificate first. What must transfer (R7) is proved from the same expansion, with upper bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from bounds.certificate import Norm
from bounds.dual import Bools
from bounds.estimate import Estimate
from bounds.joint import JointCertificates, wanted
from bounds.must_transfer import MustTransfer
from bounds.transfer_rate import certified_transfer_rate
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels, check_target
from estimators.certified.ball_margins import ball_margins, refined, refuted
from estimators.certified.expansion import ROW_ENTRIES, Expansion, expand
from estimators.certified.must_fool import must_fool
from estimators.certified.network import Network, Pointwise, read_network
from estimators.sharing import in_batches

# Numbers in the functionals sent back through a network at once.
_ENTRIES = 1 << 20


@dataclass(frozen=True)
class BallTransfer:
    """What is certain about every attack in the balls around the samples.

    Attributes:
        certificate: Samples (n,) where no perturbation in the ball fools the models together (R1, R9).
        fooled: Samples with a perturbation that is proved, from the benign point alone, to fool them (R7),
            and that perturbation.
        eligible: Shape (n,): all models are right at the centre, and the label is not the target.
    """

    certificate: Bools
    fooled: MustTransfer
    eligible: Bools

    def rate(
        self, *, found: Bools | None = None, support: Support = "finite", confidence: float = 0.95
    ) -> Estimate:
        """Bounds on the transfer rate of the strongest attack: see `bounds.certified_transfer_rate` (R2).

        Args:
            found: Samples (n,) where an attack is known, from the models' own predictions, to have worked; it
                lifts the lower end, which otherwise rests on R7 alone.
            support: "finite" or "population".
            confidence: For "population".
        """
        fooled = self.fooled.guaranteed if found is None else self.fooled.guaranteed | found
        return certified_transfer_rate(
            self.certificate, self.eligible, fooled=fooled, support=support, confidence=confidence
        )


def certify_transfer(
    models: Sequence[nn.Module | Network],
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    target: Tensor | int | None = None,
    norm: Norm = "l2",
    together: int | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> BallTransfer:
    """Certify, sample by sample, which perturbations in the balls can fool models together.

    Args:
        models: Networks from (n, *shape) to logits (n, K), all with the same K; or what `read_network` made
            of them, which saves reading them again. With one model: its certified robust error.
        x: Centres (n, *shape) in the models' dtype.
        y: True labels (n,).
        radius: Radius of the balls, at least 0.
        target: Label that the attack wants the models to predict, (n,) or one for all; None: any wrong
            labels.
        norm: "l2" or "linf".
        together: How many of the models have to be fooled at once; None for all.
        batch_size: Samples treated at once; fewer for large networks.

    Returns:
        The certificate (R1, R9), the perturbations that must transfer (R7), and who is eligible.

    Raises:
        TypeError: If x is not floating-point or the labels not integer.
        ValueError: If shapes, labels, classes, the radius, the norm or `together` do not fit, or a layer is
            not supported.
    """
    group = tuple(range(len(models))), len(models) if together is None else together
    return certify_groups(models, x, y, radius, [group], target=target, norm=norm, batch_size=batch_size)[0]


def certify_groups(
    models: Sequence[nn.Module | Network],
    x: Tensor,
    y: Tensor,
    radius: float,
    groups: Sequence[tuple[Sequence[int], int]],
    *,
    target: Tensor | int | None = None,
    norm: Norm = "l2",
    inner: bool = True,
    batch_size: int = DEFAULT_BATCH,
) -> list[BallTransfer]:
    """What `certify_transfer` says for several groups of models, from one pass over each model.

    Args:
        models: As for `certify_transfer`.
        x: As for `certify_transfer`.
        y: As for `certify_transfer`.
        radius: As for `certify_transfer`.
        groups: Pairs of the positions of some models, and how many of them have to be fooled at once.
        target: As for `certify_transfer`.
        norm: As for `certify_transfer`.
        inner: Whether to look for perturbations that must transfer (R7), which takes most of the time.
        batch_size: As for `certify_transfer`.

    Returns:
        One result for each group.

    Raises:
        TypeError: If x is not floating-point or the labels not integer.
        ValueError: If shapes, labels, classes, the radius, the norm or a group do not fit, or a layer is not
            supported.
    """
    return certify_goals(
        models, x, y, radius, groups, [target], norm=norm, inner=inner, batch_size=batch_size
    )[0]


def certify_goals(
    models: Sequence[nn.Module | Network],
    x: Tensor,
    y: Tensor,
    radius: float,
    groups: Sequence[tuple[Sequence[int], int]],
    targets: Sequence[Tensor | int | None],
    *,
    norm: Norm = "l2",
    inner: bool = True,
    batch_size: int = DEFAULT_BATCH,
) -> list[list[BallTransfer]]:
    """What `certify_groups` says for several goals of the attack: the models are expanded once for all.

    Args:
        models: As for `certify_transfer`.
        x: As for `certify_transfer`.
        y: As for `certify_transfer`.
        radius: As for `certify_transfer`.
        groups: As for `certify_groups`.
        targets: The goals, each as `target` of `certify_transfer`.
        norm: As for `certify_transfer`.
        inner: As for `certify_groups`.
        batch_size: As for `certify_transfer`.

    Returns:
        For each goal one result for each group.

    Raises:
        TypeError: If x is not floating-point or the labels not integer.
        ValueError: If shapes, labels, classes, the radius, the norm or a group do not fit, or a layer is not
            supported.
    """
    networks, y, aims = _checked(models, x, y, radius, groups, targets, norm, batch_size)
    at_once = min(batch_size, *(_samples_at_once(network) for network in networks))

    def certified(x: Tensor, y: Tensor, *aims: Tensor) -> tuple[Tensor, ...]:
        expansions = [expand(network, x.double(), radius, norm) for network in networks]
        return tuple(
            torch.from_numpy(part)
            for target, aim in zip(targets, aims, strict=True)
            for ball in _certify(expansions, y, aim, groups, targeted=target is not None, inner=inner)
            for part in (ball.certificate, ball.fooled.guaranteed, ball.fooled.direction, ball.eligible)
        )

    parts = (part.numpy() for part in in_batches(certified, at_once, x.detach(), y, *aims))
    balls = (
        BallTransfer(certificate, MustTransfer(guaranteed, direction), eligible)
        for certificate, guaranteed, direction, eligible in zip(*[parts] * 4, strict=True)
    )
    return [[next(balls) for _ in groups] for _ in targets]


def _certify(
    expansions: Sequence[Expansion],
    y: Tensor,
    aim: Tensor,
    groups: Sequence[tuple[Sequence[int], int]],
    *,
    targeted: bool,
    inner: bool,
) -> list[BallTransfer]:
    radius, norm = expansions[0].radius, expansions[0].norm
    members = [ball_margins(expansion, y, aim, targeted=targeted) for expansion in expansions]
    subsets = {
        subset: None for group, size in groups for subset in itertools.combinations(sorted(group), size)
    }
    hopeless = refuted(members, tuple(subsets), radius, norm, targeted=targeted)
    bounds = [
        refined(one, wanted((model,), hopeless, len(y)), radius, norm, targeted=targeted)
        for model, one in enumerate(members)
    ]
    joint = JointCertificates(bounds, radius, norm, targeted=targeted, refuted=hopeless)
    allowed = (aim != y).cpu().numpy() if targeted else np.ones(len(y), dtype=bool)

    @cache
    def fooled(subset: tuple[int, ...]) -> MustTransfer:
        """R7 for all models of a subset, which several groups may share."""
        chosen = [members[model] for model in subset]
        open_ = ~joint.certified(subset, len(subset)) & inner
        return must_fool(chosen, open_, radius, norm, targeted=targeted)

    results = []
    for group, together in groups:
        any_of = [fooled(subset) for subset in itertools.combinations(sorted(group), together)]
        right = np.logical_and.reduce([members[model].right for model in group])
        results.append(BallTransfer(joint.certified(group, together), _first(any_of), right & allowed))
    return results


def _first(found: Sequence[MustTransfer]) -> MustTransfer:
    """For each sample the first that is guaranteed, or else the first."""
    which = np.argmax([one.guaranteed for one in found], axis=0)
    samples = np.arange(len(which))
    return MustTransfer(
        np.stack([one.guaranteed for one in found])[which, samples],
        np.stack([one.direction for one in found])[which, samples],
    )


def _checked(
    models: Sequence[nn.Module | Network],
    x: Tensor,
    y: Tensor,
    radius: float,
    groups: Sequence[tuple[Sequence[int], int]],
    targets: Sequence[Tensor | int | None],
    norm: Norm,
    batch_size: int,
) -> tuple[list[Network], Tensor, list[Tensor]]:
    """The models read, the labels, and for each goal the labels that the margins are about, all checked."""
    if not models:
        raise ValueError("expected at least one model, got none")
    if norm not in ("l2", "linf"):
        raise ValueError(f"expected norm 'l2' or 'linf', got {norm!r}")
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"expected a finite radius of at least 0, got {radius}")
    for group, together in groups:
        if len({one for one in group if 0 <= one < len(models)}) != max(1, len(group)):
            raise ValueError(f"expected different models out of {len(models)}, got positions {group}")
        if not 1 <= together <= len(group):
            raise ValueError(f"expected together between 1 and the {len(group)} models, got {together}")
    given = tuple(model for model in models if isinstance(model, nn.Module))
    classes = {one.classes for one in models if isinstance(one, Network)}
    if given:
        classes.add(check_inputs(given, x, batch_size))
    elif batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    shapes = {one.shapes[0] for one in models if isinstance(one, Network)} - {tuple(x.shape[1:])}
    if len(classes) != 1 or shapes:
        raise ValueError(
            f"expected models of samples {tuple(x.shape[1:])} with the same number of classes, "
            f"got {sorted(classes)} classes, and networks for samples {sorted(shapes)}"
        )
    y = check_labels(y, x, min(classes))
    aims = [y if target is None else check_target(target, x, min(classes)) for target in targets]
    return [one if isinstance(one, Network) else read_network(one, x) for one in models], y, aims


def _samples_at_once(network: Network) -> int:
    """As many as keep the functionals that are sent back bounded."""
    shapes = zip(network.nodes, network.shapes, strict=True)
    widths = [math.prod(shape) for node, shape in shapes if isinstance(node, Pointwise)]
    inputs = math.prod(network.shapes[0])
    held = [width for width in widths if width * inputs <= ROW_ENTRIES]
    widest = max(math.prod(shape) for shape in network.shapes)
    return max(1, _ENTRIES // (max([network.classes, *held]) * widest))
