"""Where a network has no Lipschitz gradient: layers known for it, traced operations, and a numerical test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from estimators.batching import (
    DEFAULT_BATCH,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    check_same_shape,
    double_copy,
    frozen,
)
from estimators.gradients import differentiate
from estimators.losses import LossFunction
from estimators.sharing import in_batches

_KINKED_LAYERS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.Threshold,
    nn.Hardtanh,  # and its subclass ReLU6
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)

_KINKED_OPERATIONS = (
    "relu",
    "leaky_relu",
    "rrelu",
    "prelu",
    "threshold",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "hardshrink",
    "softshrink",
    "max_pool",
)

# A segment is first cut into this many pieces; bisection goes on in the one with the largest gradient jump.
_PIECES = 64

# A gradient jump below this many rounding units of the gradient is taken for rounding.
_NOISE_UNITS = 1e3


def kinks(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that leave the gradient without a Lipschitz constant, so that beta is infinite.

    Only layers are looked at; `traced_kinks` sees functional calls as well. A flagged layer can in principle
    be mended by the next one (a squared ReLU); `divergence_test` gives numerical evidence.

    Args:
        model: Any network.

    Returns:
        Distinct class names in order of first appearance, such as ("ReLU", "MaxPool2d"); empty if none.
    """
    return tuple(dict.fromkeys(type(layer).__name__ for layer in model.modules() if _has_kink(layer)))


def traced_kinks(function: Callable[[], object]) -> tuple[str, ...]:
    """Names of the operations without a Lipschitz gradient that a call runs, functional calls included.

    Looks at activations and max-pooling only: a maximum or a clamp is often used where no kink results (a
    stabilised softmax), so those are left to `divergence_test`.
    """
    with torch.no_grad(), _OperationLog() as log:
        function()
    return tuple(dict.fromkeys(log.kinked))


def traced_jumps(function: Callable[[], object]) -> tuple[str, ...]:
    """What a call runs that is smooth on paper and jumps as computed, in words, one entry a kind.

    torch's softplus is the identity where beta * u exceeds `threshold`. Its slope jumps there by
    1 / (1 + exp(threshold)), 2.1e-9 at the default of 20, so that strictly no beta exists; the quotient
    exceeds the true curvature only for pairs within about 1e-8. From a threshold of 37 on the jump is below
    the resolution of float64, and nothing is said.
    """
    with torch.no_grad(), _OperationLog() as log:
        function()
    return tuple(
        f"softplus with threshold {threshold:g} has a slope that jumps by {jump:.1e} there"
        for threshold in dict.fromkeys(log.thresholds)
        if (jump := 1 / (1 + math.exp(min(threshold, 700.0)))) > torch.finfo(torch.float64).eps / 2
    )


@dataclass(frozen=True)
class DivergenceTest:
    """Gradient-difference quotients ever closer to the worst point found on a set of segments.

    At a kink the gradient jump stays while the distance h shrinks, so the quotient grows as 1/h (slope 1).
    For a smooth loss the quotient settles at a second derivative (slope 0).

    Attributes:
        scales: Distances h, l2, decreasing.
        quotients: ||grad l(a) - grad l(b)|| / h at those distances, on the segment that ends highest.
        slope: Of log quotient against log 1/h over the finer half of the scales where the jump is above
            rounding; 0 where there are fewer than two.
        jump: Gradient jump at the smallest distance, 0 if it is within rounding.
        flagged: Share of segments with a slope above 1/2.
        segments: Number of segments searched.
        seed: Of the segments' random directions.
    """

    scales: tuple[float, ...]
    quotients: tuple[float, ...]
    slope: float
    jump: float
    flagged: float
    segments: int
    seed: int


def divergence_test(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    x_end: Tensor | None = None,
    radius: float = 1.0,
    halvings: int = 24,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> DivergenceTest:
    """Search segments for a gradient jump by bisection: numerical evidence for or against a finite beta.

    One segment per sample, from x to `x_end`, or of length `radius` in a random direction. Each is cut into
    64 pieces, and the piece with the largest gradient jump is halved, always keeping the half with the larger
    jump. Computed in float64 on a copy where the model is not float64, since float32 quotients are noise
    below 1e-5. Random-direction quotients at one scale never reveal a kink; a slope near 1 here does. Its
    absence proves nothing: a segment may cross no kink, and a jump of 2e-9 (softplus with torch's default
    threshold, see `traced_jumps`) drowns in the curvature around it.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        y: Labels (n,).
        x_end: Other ends of the segments, (n, *shape).
        radius: l2 length of the segments where `x_end` is not given.
        halvings: Number of bisections; the last distance is the segment's length / (64 * 2^halvings).
        seed: Of the random directions.
        batch_size: Segments treated at once.

    Returns:
        The scales, the quotients and their slope.

    Raises:
        TypeError: If x or x_end is not floating-point or y not integer.
        ValueError: If shapes, labels, values, radius or halvings do not fit.
    """
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes)
    check_loss(loss, model, x, classes)
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"expected a positive finite radius, got {radius}")
    if halvings < 2:
        raise ValueError(f"expected at least 2 halvings, got {halvings}")
    model = double_copy(model)
    start = x.detach().double()
    if x_end is None:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(x.device)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        end = start + radius * direction / length.view(-1, *[1] * (x.dim() - 1))
    else:
        end = check_same_shape(x_end, x, "x_end").double()

    def curves(a: Tensor, b: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scales, jumps = _bisect(model, loss, a, b, labels, halvings)
        return scales.T, jumps.T

    scales, jumps = in_batches(curves, max(1, batch_size // 4), start, end, y)
    return _summarise(scales.T, jumps.T, seed)


def _bisect(
    model: nn.Module, loss: LossFunction, start: Tensor, end: Tensor, labels: Tensor, halvings: int
) -> tuple[Tensor, Tensor]:
    """Distances and gradient jumps (halvings + 1, m), the jumps zero where they are within rounding."""

    def gradient(points: Tensor) -> Tensor:
        with frozen(model):
            points = points.detach().reshape(-1, *start.shape[1:]).requires_grad_(True)
            rows = differentiate(loss(model(points), labels), points).flatten(1)
        check_finite(rows, "the gradients")
        return rows

    left, right = start.flatten(1), start.flatten(1)
    at_left = at_right = gradient(start)
    best = at_left.new_full((len(start),), -1.0)
    previous, at_previous = left, at_left
    for piece in range(1, _PIECES + 1):
        point = torch.lerp(start.flatten(1), end.flatten(1), piece / _PIECES)
        at_point = gradient(point)
        jump = (at_point - at_previous).norm(dim=1)
        better = (jump > best).unsqueeze(1)
        best = torch.maximum(best, jump)
        left, at_left = previous.where(better, left), at_previous.where(better, at_left)
        right, at_right = point.where(better, right), at_point.where(better, at_right)
        previous, at_previous = point, at_point

    scales, jumps = [], []
    for halving in range(halvings + 1):
        noise = _NOISE_UNITS * torch.finfo(left.dtype).eps * (at_left.norm(dim=1) + at_right.norm(dim=1))
        jump = (at_right - at_left).norm(dim=1)
        scales.append((right - left).norm(dim=1))
        jumps.append(jump.where(jump > noise, 0.0))
        if halving == halvings:
            break
        middle = (left + right) / 2
        at_middle = gradient(middle)
        lower_half = ((at_middle - at_left).norm(dim=1) >= (at_right - at_middle).norm(dim=1)).unsqueeze(1)
        right, at_right = middle.where(lower_half, right), at_middle.where(lower_half, at_right)
        left, at_left = left.where(lower_half, middle), at_left.where(lower_half, at_middle)
    return torch.stack(scales), torch.stack(jumps)


def _summarise(scales: Tensor, jumps: Tensor, seed: int) -> DivergenceTest:
    quotients = jumps / scales.where(scales > 0, 1.0)
    slopes = _slopes(scales, quotients)
    # The witness is the segment with the largest quotient at its finest scale above rounding.
    resolved = quotients > 0
    rank = torch.arange(len(quotients), device=quotients.device).unsqueeze(1)
    finest = rank.where(resolved, 0).amax(0)
    witness = int(quotients.gather(0, finest.unsqueeze(0)).squeeze(0).argmax())
    return DivergenceTest(
        scales=tuple(scales[:, witness].tolist()),
        quotients=tuple(quotients[:, witness].tolist()),
        slope=float(slopes[witness]),
        jump=float(jumps[-1, witness]),
        flagged=float((slopes > 0.5).double().mean()),
        segments=scales.shape[1],
        seed=seed,
    )


def _slopes(scales: Tensor, quotients: Tensor) -> Tensor:
    """Least-squares slope (m,) of log quotient against log 1/h over the finer half of the resolved scales."""
    resolved = quotients > 0
    position = resolved.cumsum(0)
    used = (resolved & (2 * position > position[-1])).double()
    across = -scales.where(resolved, 1.0).log()
    up = quotients.where(resolved, 1.0).log()
    count = used.sum(0).clamp_min(1.0)
    across = (across - (used * across).sum(0) / count) * used
    up = (up - (used * up).sum(0) / count) * used
    spread = (across * across).sum(0)
    return (across * up).sum(0) / spread.where(spread > 0, 1.0)


def _has_kink(layer: nn.Module) -> bool:
    if isinstance(layer, nn.LeakyReLU):
        return layer.negative_slope != 1
    if isinstance(layer, nn.PReLU):
        return bool((layer.weight != 1).any())
    if isinstance(layer, nn.ELU):
        return layer.alpha != 1
    return isinstance(layer, _KINKED_LAYERS)


class _OperationLog(TorchDispatchMode):
    """Collects what matters of the operations below Python, where functional calls and layers look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.kinked: list[str] = []
        self.thresholds: list[float] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        if name.removesuffix("_") == "elu":
            # elu(x, alpha, scale, input_scale): the slopes at 0 agree iff alpha * input_scale is 1.
            alpha = args[1] if len(args) > 1 else 1.0
            inner = args[3] if len(args) > 3 else 1.0
            if abs(alpha * inner - 1.0) > 1e-9:
                self.kinked.append("elu")
        elif name.removesuffix("_") == "leaky_relu":
            if (args[1] if len(args) > 1 else 0.01) != 1:
                self.kinked.append("leaky_relu")
        elif name == "softplus":
            self.thresholds.append(float(args[2]) if len(args) > 2 else 20.0)
        elif any(part in name for part in _KINKED_OPERATIONS):
            self.kinked.append(name.strip("_"))
        return func(*args, **(kwargs or {}))
