"""Transfer certificates of trained models: refined results R1, R2, R7 and R9 over l2 and linf balls.

Each model's margins are bounded once (`expansion`); `bounds.joint` combines the models, subset by subset,
cheapest certificate first. What must transfer (R7) is proved from the same expansion, with upper bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bounds.certificate import Norm
from bounds.dual import Bools, Floats
from bounds.estimate import Estimate
from bounds.joint import JointCertificates, MarginBounds, Quadratic
from bounds.must_transfer import MustTransfer, must_transfer, must_transfer_curved
from bounds.transfer_rate import certified_transfer_rate
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels, check_target
from estimators.certified.expansion import ROW_ENTRIES, Functionals, dual_norm, expand
from estimators.certified.network import Network, Pointwise, read_network

# Numbers in the functionals sent back through a network at once.
_ENTRIES = 1 << 23
# Symmetric eigenvalue problems are solved up to this input size.
_MATRIX_INPUTS = 256
# About so many choices of labels are tried for what must transfer.
_CHOICES = 9


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
    networks, y, aim = _checked(models, x, y, radius, groups, target, norm, batch_size)
    at_once = min(batch_size, *(_samples_at_once(network) for network in networks))
    parts = [
        _certify(networks, *part, radius, groups, norm, targeted=target is not None, inner=inner)
        for part in zip(x.detach().double().split(at_once), y.split(at_once), aim.split(at_once), strict=True)
    ]
    return [
        BallTransfer(
            np.concatenate([one.certificate for one in column]),
            MustTransfer(
                np.concatenate([one.fooled.guaranteed for one in column]),
                np.concatenate([one.fooled.direction for one in column]),
            ),
            np.concatenate([one.eligible for one in column]),
        )
        for column in zip(*parts, strict=True)
    ]


@dataclass(frozen=True)
class _Member:
    """One model's margins over the balls, bounded from below and above, and its predictions.

    `above` gives, as `MarginBounds.quadratic`, c and Q with `m(x + d) <= c + d.g + d^T Q d / 2`.
    """

    below: MarginBounds
    above: Quadratic | None
    margins: Floats
    rise: Floats
    right: Bools


def _certify(
    networks: Sequence[Network],
    x: Tensor,
    y: Tensor,
    aim: Tensor,
    radius: float,
    groups: Sequence[tuple[Sequence[int], int]],
    norm: Norm,
    *,
    targeted: bool,
    inner: bool,
) -> list[BallTransfer]:
    members = [_member(network, x, y, aim, radius, norm, targeted=targeted) for network in networks]
    joint = JointCertificates([one.below for one in members], radius, norm, targeted=targeted)
    allowed = (aim != y).cpu().numpy() if targeted else np.ones(len(y), dtype=bool)

    @cache
    def fooled(subset: tuple[int, ...]) -> MustTransfer:
        """R7 for all models of a subset, which several groups may share."""
        chosen = [members[model] for model in subset]
        open_ = ~joint.certified(subset, len(subset)) & inner
        return _must_transfer(chosen, open_, radius, norm, targeted=targeted)

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


def _member(
    network: Network, x: Tensor, y: Tensor, aim: Tensor, radius: float, norm: Norm, *, targeted: bool
) -> _Member:
    expansion = expand(network, x, radius, norm)
    classes = network.classes
    identity = torch.eye(classes, dtype=x.dtype, device=x.device)
    others = torch.arange(classes, device=x.device).expand(len(y), -1)
    others = others[others != aim.unsqueeze(1)].reshape(len(y), -1)
    # Untargeted: m_k = z_y - z_k. Targeted: m_k = z_k - z_t, all of which have to be overcome.
    seeds = identity[aim].unsqueeze(1) - identity[others]
    margins = expansion.functionals(-seeds if targeted else seeds)
    offsets, floors = _lower(margins, radius, norm, targeted=targeted)
    quadratic = [_quadratic(margins, sign) if norm == "l2" else None for sign in (1.0, -1.0)]
    below = MarginBounds(
        offsets.cpu().numpy(), margins.gradients.cpu().numpy(), floors.cpu().numpy(), quadratic[0]
    )
    right = (expansion.logits.argmax(1) == y).cpu().numpy()
    return _Member(
        below, quadratic[1], margins.values.cpu().numpy(), margins.rise.cpu().numpy(), right
    )  # fmt: skip


def _quadratic(margins: Functionals, sign: float) -> Quadratic | None:
    """The quadratic bounds from below, or with sign -1 from above, where they are affordable."""
    if not margins.has_matrices or margins.gradients.shape[2] > _MATRIX_INPUTS:
        return None

    def quadratic(samples: NDArray[np.intp], labels: NDArray[np.intp]) -> tuple[Floats, Floats]:
        where = torch.from_numpy(samples), torch.from_numpy(labels)
        matrix, constant = margins.quadratic(*where, sign)
        return (margins.values[where] - sign * constant).cpu().numpy(), matrix.cpu().numpy()

    return quadratic


def _lower(margins: Functionals, radius: float, norm: Norm, *, targeted: bool) -> tuple[Tensor, Tensor]:
    """Offsets p with `m >= p + d.g` in the ball, and floors; refined where the cheap ones decide nothing."""
    pull = radius * dual_norm(margins.gradients, norm, 2)
    offsets = margins.values - margins.fall
    still = margins.values - margins.moves
    floors = torch.maximum(offsets - pull * (1 + 1e-12), still)
    # One margin that cannot be overcome settles a targeted attack.
    open_ = torch.nonzero((floors <= 0) & ~((floors > 0).any(1, keepdim=True) & targeted))
    dimension = margins.gradients.shape[2]
    if margins.has_matrices and dimension <= _MATRIX_INPUTS and radius > 0:
        for part in open_.split(max(1, _ENTRIES // dimension**2)):
            samples, labels = part.unbind(1)
            matrix, constant = margins.quadratic(samples, labels)
            better = margins.values[samples, labels] - constant - _bend(matrix, norm) * radius**2 / 2
            offsets[samples, labels] = torch.maximum(offsets[samples, labels], better)
    elif radius > 0:
        samples, labels = open_.unbind(1)
        better = margins.values[samples, labels] - margins.refined_fall(samples, labels)
        offsets[samples, labels] = torch.maximum(offsets[samples, labels], better)
    return offsets, torch.maximum(offsets - pull * (1 + 1e-12), still)


def _bend(matrices: Tensor, norm: Norm) -> Tensor:
    """Upper bound (m,) on `d^T Q d` over the unit ball, for symmetric Q (m, d, d)."""
    size = torch.linalg.matrix_norm(matrices)
    top = (torch.linalg.eigvalsh(matrices)[:, -1] + 1e-9 * size).clamp_min(0.0)
    if norm == "l2":
        return top
    # In linf: the trace of any diagonal matrix above Q; these two are the plainest.
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    entries = matrices.abs().sum((1, 2)) - diagonal.abs().sum(1) + diagonal.clamp_min(0.0).sum(1)
    return torch.minimum(entries * (1 + 1e-9), matrices.shape[1] * top)


def _must_transfer(
    members: Sequence[_Member], open_: Bools, radius: float, norm: Norm, *, targeted: bool
) -> MustTransfer:
    """R7 for all these members, the first choice of labels that is proved; only where `open_`."""
    n, _, dimension = members[0].below.slopes.shape
    guaranteed: Bools = np.zeros(n, dtype=bool)
    direction = np.zeros((n, dimension))
    for labels in _promising(members, radius, norm, targeted=targeted):
        samples = np.flatnonzero(open_ & ~guaranteed)
        if not len(samples):
            break
        found = _must_fool(members, samples, labels[samples], radius, norm)
        direction[samples] = found.direction
        guaranteed[samples] = found.guaranteed
    return MustTransfer(guaranteed, direction)


def _promising(
    members: Sequence[_Member], radius: float, norm: Norm, *, targeted: bool
) -> Iterator[NDArray[np.intp]]:
    """Choices (n, S, P) of the P margins of each of S models that a step might overcome.

    Targeted: all of them. Untargeted: one for each model, among those that seem nearest.
    """
    n, labels = members[0].margins.shape
    if targeted:
        yield np.broadcast_to(np.arange(labels), (n, len(members), labels))
        return
    count = min(labels, max(1, round(_CHOICES ** (1 / len(members)))))
    nearest = []
    for one in members:
        pull = np.linalg.norm(one.below.slopes, ord=2 if norm == "l2" else 1, axis=2)
        order: NDArray[np.intp] = np.argsort(one.margins + one.rise - radius * pull, axis=1)
        nearest.append(order[:, :count])
    for ranks in itertools.product(range(count), repeat=len(members)):
        yield np.stack([near[:, rank] for near, rank in zip(nearest, ranks, strict=True)], 1)[:, :, None]


def _must_fool(
    members: Sequence[_Member],
    samples: NDArray[np.intp],
    labels: NDArray[np.intp],
    radius: float,
    norm: Norm,
) -> MustTransfer:
    """R7 for the margins (m, S, P) of these samples."""
    rows = [(one, labels[:, i, j]) for i, one in enumerate(members) for j in range(labels.shape[2])]
    margins = np.stack([one.margins[samples, label] for one, label in rows], axis=1)
    rise = np.stack([one.rise[samples, label] for one, label in rows], axis=1)
    slopes = np.stack([one.below.slopes[samples, label] for one, label in rows], axis=1)
    found = must_transfer(margins + rise, slopes, 0.0, radius, norm)
    if all(one.above is not None for one in members):
        rest = np.flatnonzero(~found.guaranteed)
        bounds = [one.above(samples[rest], label[rest]) for one, label in rows if one.above is not None]
        if len(rest):
            curved = must_transfer_curved(
                np.stack([constant for constant, _ in bounds], axis=1), slopes[rest],
                np.stack([matrix for _, matrix in bounds], axis=1), radius, found.direction[rest],
            )  # fmt: skip
            found.guaranteed[rest] = curved.guaranteed
            found.direction[rest] = curved.direction
    # What is wrong already needs no step, and no bound on the curvature.
    wrong: Bools = np.all(margins < 0, axis=1)
    return MustTransfer(
        found.guaranteed | wrong, np.where(wrong[:, None], 0.0, found.direction)
    )  # fmt: skip


def _checked(
    models: Sequence[nn.Module | Network],
    x: Tensor,
    y: Tensor,
    radius: float,
    groups: Sequence[tuple[Sequence[int], int]],
    target: Tensor | int | None,
    norm: Norm,
    batch_size: int,
) -> tuple[list[Network], Tensor, Tensor]:
    """The models read, the labels, and the labels that the margins are about, all checked."""
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
    aim = y if target is None else check_target(target, x, min(classes))
    return [one if isinstance(one, Network) else read_network(one, x) for one in models], y, aim


def _samples_at_once(network: Network) -> int:
    """As many as keep the functionals that are sent back bounded."""
    shapes = zip(network.nodes, network.shapes, strict=True)
    widths = [math.prod(shape) for node, shape in shapes if isinstance(node, Pointwise)]
    inputs = math.prod(network.shapes[0])
    held = [width for width in widths if width * inputs <= ROW_ENTRIES]
    widest = max(math.prod(shape) for shape in network.shapes)
    return max(1, _ENTRIES // (max([network.classes, *held]) * widest))
