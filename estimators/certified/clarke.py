"""Transfer certificates of trained models: refined results R1, R2 and R7 from certified bounds over balls.

The remainder of a margin along a step d is an integral over the smaller balls that the step passes through:

    |remainder| <= ||d||^2 int_0^1 (1 - t) kappa(t ||d||) dt,

and, by Lebourg's mean value theorem, which needs no second derivative, also at most `||d|| int_0^1 E(t
||d||) dt` with E(r) the largest distance of a Clarke gradient within r from the gradient at the centre.
Bounds on nested balls turn both into sums; the second one certifies ReLU networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bounds.certificate import Certificate, certify_targeted, certify_untargeted
from bounds.dual import Bools, Floats
from bounds.estimate import Estimate
from bounds.must_transfer import MustTransfer, must_transfer, must_transfer_untargeted
from bounds.transfer_rate import certified_transfer_rate
from estimators.batching import DEFAULT_BATCH, Support, check_inputs, check_labels, check_target
from estimators.certified.ball import ball_bounds, read_checked
from estimators.certified.network import Network

# Nested balls, as shares of the radius. The first weighs most in the remainder, and its bounds are the best.
_SHELLS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class BallTransfer:
    """What is certain about every attack in the l2 balls around the samples.

    Attributes:
        certificate: Samples where no perturbation fools all models together (R1).
        fooled: Samples with a perturbation that is proved to fool all models (R7), and that perturbation.
        eligible: Shape (n,): all models are right at the centre, and the label is not the target.
    """

    certificate: Certificate
    fooled: MustTransfer
    eligible: Bools

    def rate(self, *, support: Support = "finite", confidence: float = 0.95) -> Estimate:
        """Bounds on the transfer rate of the strongest attack: see `bounds.certified_transfer_rate` (R2)."""
        return certified_transfer_rate(
            self.certificate, self.eligible, fooled=self.fooled.guaranteed, support=support,
            confidence=confidence,
        )  # fmt: skip


def certify_transfer(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    target: Tensor | int | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> BallTransfer:
    """Certify, sample by sample, which perturbations in the l2 balls can fool all models together.

    It takes the better of curvature and Clarke deviation for each margin, so that smooth models and models
    with ReLU both get what is known about them.

    Args:
        models: Networks from (n, *shape) to logits (n, K), all with the same K.
        x: Centres (n, *shape) in the models' dtype.
        y: True labels (n,).
        radius: l2 radius of the balls, at least 0.
        target: Label that the attack wants all models to predict, (n,) or one for all; None: any wrong
            labels.
        batch_size: Samples treated at once.

    Returns:
        The certificate (R1), the perturbations that must transfer (R7), and who is eligible.

    Raises:
        TypeError: If x is not floating-point or the labels not integer.
        ValueError: If shapes, labels, classes or the radius do not fit, or a layer is not supported.
    """
    problem = _problem(models, x, y, radius, target, batch_size)
    certificate = problem.certify(np.minimum(problem.falls, problem.drifts))
    return BallTransfer(certificate, problem.must_transfer(), problem.eligible)


def clarke_certificate(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    target: Tensor | int | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> Certificate:
    """The certificate R1 from Clarke gradients alone, for models with or without kinks.

    By Lebourg's mean value theorem `m(x + d) >= m + d.g - E ||d||` if all Clarke gradients of the margin m in
    the ball are within E of g; this is R1 with the curvature 2 E / radius.

    Args:
        models: As for `certify_transfer`.
        x: As for `certify_transfer`.
        y: As for `certify_transfer`.
        radius: As for `certify_transfer`.
        target: As for `certify_transfer`.
        batch_size: As for `certify_transfer`.

    Returns:
        The certificate of `bounds.certify_untargeted`, or of `bounds.certify_targeted` with a target.

    Raises:
        TypeError: If x is not floating-point or the labels not integer.
        ValueError: If shapes, labels, classes or the radius do not fit, or a layer is not supported.
    """
    problem = _problem(models, x, y, radius, target, batch_size)
    return problem.certify(problem.drifts)


@dataclass(frozen=True)
class _Problem:
    """The rows of R1 and R7 for N models and the L = K - 1 labels that the attack has to overcome.

    Attributes:
        margins: (n, N, L); the attack wants them at or below 0.
        gradients: (n, N, L, d).
        falls: Lower curvature, averaged along a step, (n, N, L).
        rises: Upper curvature, the same.
        drifts: What Clarke gradients give in the place of a lower curvature.
        eligible: As for `BallTransfer`.
        radius: Of the balls.
        targeted: Whether the models are driven to a given label.
    """

    margins: Floats
    gradients: Floats
    falls: Floats
    rises: Floats
    drifts: Floats
    eligible: Bools
    radius: float
    targeted: bool

    def certify(self, curvature: Floats) -> Certificate:
        certify = certify_targeted if self.targeted else certify_untargeted
        return certify(self.margins, self.gradients, curvature, self.radius)

    def must_transfer(self) -> MustTransfer:
        if not self.targeted:
            return must_transfer_untargeted(self.margins, self.gradients, self.rises, self.radius)
        n, dimension = len(self.margins), self.gradients.shape[-1]
        return must_transfer(
            self.margins.reshape(n, -1), self.gradients.reshape(n, -1, dimension),
            self.rises.reshape(n, -1), self.radius,
        )  # fmt: skip


def _problem(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    radius: float,
    target: Tensor | int | None,
    batch_size: int,
) -> _Problem:
    if not models:
        raise ValueError("expected at least one model, got none")
    classes = check_inputs(tuple(models), x, batch_size)
    y = check_labels(y, x, classes)
    aim = y if target is None else check_target(target, x, classes)
    eligible = torch.ones_like(y, dtype=torch.bool) if target is None else aim != y
    labels = torch.arange(classes, device=y.device).expand(len(y), -1)
    wanted = labels[labels != aim.unsqueeze(1)].reshape(len(y), -1)
    parts: list[list[Tensor]] = []
    for model in models:
        network, points, _ = read_checked(model, x, aim)
        level, slopes, fall, rise, drift = _remainders(network, points, aim, radius, batch_size)
        # z_aim - z_k is smallest where z_k is largest.
        eligible &= level.argmin(1) == y
        if target is not None:
            # Here the margins of the attack are l(aim) - l(k) = z_k - z_aim.
            level, slopes, fall, rise = -level, -slopes, rise, fall
        columns = wanted.unsqueeze(2).expand(-1, -1, slopes.shape[2])
        small = [part.gather(1, wanted) for part in (level, fall, rise, drift)]
        parts.append([small[0], slopes.gather(1, columns), *small[1:]])
    margins, gradients, falls, rises, drifts = (
        torch.stack(kind, 1).cpu().numpy() for kind in zip(*parts, strict=True)
    )
    return _Problem(
        margins, gradients, falls, rises, drifts, eligible.cpu().numpy(), radius, target is not None
    )  # fmt: skip


def _remainders(
    network: Network, x: Tensor, y: Tensor, radius: float, batch_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Margins, gradients, and the curvatures kappa, kappa_plus and 2 E / radius, averaged along steps."""
    shells = [ball_bounds(network, x, y, share * radius, batch_size=batch_size) for share in _SHELLS]
    shares = x.new_tensor([0.0, *_SHELLS], dtype=torch.float64)
    steps = shares.diff().reshape(-1, 1, 1)
    weights = (2 * shares - shares.square()).diff().reshape(-1, 1, 1)
    kappa, kappa_plus, deviation = (
        _growing(torch.stack([getattr(shell, name) for shell in shells]))
        for name in ("kappa", "kappa_plus", "deviation")
    )
    drifts = 2 * (steps * deviation).sum(0) / radius if radius > 0 else torch.zeros_like(kappa[0])
    centre = shells[-1]
    return (
        centre.margins, centre.gradients, (weights * kappa).sum(0), (weights * kappa_plus).sum(0), drifts
    )  # fmt: skip


def _growing(bounds: Tensor) -> Tensor:
    """Bounds on nested balls, smallest first: one that holds on a ball holds on those inside."""
    return bounds.flip(0).cummin(0).values.flip(0)
