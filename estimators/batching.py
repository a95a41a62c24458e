"""What every estimator does first and around: check inputs, freeze the model, cut the work into batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from estimators.losses import LossFunction

Support = Literal["finite", "population"]
Result = TypeVar("Result")
DEFAULT_BATCH = 1024


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients, restored on leaving, whatever happens inside.

    Evaluation mode makes samples independent (BatchNorm), so that the gradient of a summed loss holds each
    sample's own gradient. Frozen parameters keep the double backward from differentiating for them.
    """
    modules = [(module, module.training) for model in models for module in model.modules()]
    parameters = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    try:
        for model in models:
            model.eval()
        for weight, _ in parameters:
            weight.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modules:
            module.training = training
        for weight, required in parameters:
            weight.requires_grad_(required)


def double_copy(model: nn.Module) -> nn.Module:
    """The same function in float64: the model itself where it is float64 already, else a converted copy."""
    if all(tensor.dtype == torch.float64 for tensor in _floating(model)):
        return model
    return copy.deepcopy(model).double()


def check_inputs(models: tuple[nn.Module, ...], x: Tensor, batch_size: int = DEFAULT_BATCH) -> int:
    """Check that x is a non-empty finite batch that the models accept, on one sample.

    Returns:
        The number of classes.

    Raises:
        TypeError: If x is not a floating-point tensor.
        ValueError: If x is empty, has no sample axis or holds NaN, if the batch size is not positive, if a
            BatchNorm layer mixes samples even in evaluation mode, or if a
            model rejects x or does not return finite logits (n, K) with K at least 2 and the same for all.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"expected x as a floating-point tensor, got {_kind(x)}")
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"expected x of shape (n, ...) with at least one sample, got {tuple(x.shape)}")
    check_finite(x, "x")
    for layer in (layer for model in models for layer in model.modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"expected {type(layer).__name__} with running statistics, so that samples stay apart"
            )
    classes = {_count_classes(model, x) for model in models}
    if len(classes) != 1:
        raise ValueError(f"expected models with the same number of classes, got {sorted(classes)}")
    return classes.pop()


def check_labels(y: Tensor, x: Tensor, classes: int, *, several: bool = False) -> Tensor:
    """Check labels of shape (n,), or (n, L) where several labels per sample are allowed.

    Returns:
        The labels as int64 on the device of x.

    Raises:
        TypeError: If the labels are not an integer tensor.
        ValueError: If their shape does not fit x or one is outside 0..classes-1.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"expected labels as an integer tensor, got {_kind(y)}")
    fits = y.dim() in ((1, 2) if several else (1,)) and len(y) == len(x) and y.numel() > 0
    if not fits:
        wanted = f"({len(x)},) or ({len(x)}, L)" if several else f"({len(x)},)"
        raise ValueError(f"expected labels of shape {wanted}, got {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"expected labels in 0..{classes - 1}, got {low if low < 0 else high}")
    return y.to(device=x.device, dtype=torch.int64)


def check_target(target: Tensor | int, x: Tensor, classes: int) -> Tensor:
    """The attack's target label per sample, from one label for all or from (n,) labels, checked."""
    if isinstance(target, int):
        target = torch.full((len(x),), target)
    return check_labels(target, x, classes)


def check_loss(loss: LossFunction, model: nn.Module, x: Tensor, classes: int) -> None:
    """Check on one sample that the loss is per-sample, at every label.

    Raises:
        ValueError: If the loss does not return one finite number per sample.
    """
    with frozen(model), torch.no_grad():
        logits = model(x[:1]).expand(classes, -1)
        losses = loss(logits, torch.arange(classes, device=x.device))
    if losses.shape != (classes,):
        raise ValueError(
            f"expected a per-sample loss of shape (n,), got shape {tuple(losses.shape)} for n = {classes}"
        )
    check_finite(losses, "the loss")


def check_same_shape(other: Tensor, x: Tensor, name: str) -> Tensor:
    """Check a second set of inputs that goes with x sample by sample.

    Returns:
        `other` in the dtype and on the device of x.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it does not have the shape of x or is not finite.
    """
    if not isinstance(other, Tensor) or not other.is_floating_point():
        raise TypeError(f"expected {name} as a floating-point tensor, got {_kind(other)}")
    if other.shape != x.shape:
        raise ValueError(f"expected {name} of the shape of x, {tuple(x.shape)}, got {tuple(other.shape)}")
    check_finite(other, name)
    return other.to(device=x.device, dtype=x.dtype)


def check_support(support: str) -> None:
    """Check the name of the distribution that an estimate is about.

    Raises:
        ValueError: If it is neither "finite" nor "population".
    """
    if support not in ("finite", "population"):
        raise ValueError(f"expected support 'finite' or 'population', got {support!r}")


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: If there are any, with their number.
    """
    if not values.numel() or bool(torch.stack(values.detach().aminmax()).isfinite().all()):
        return  # NaN is the least and the largest of all; the common case is not looked at number by number
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"expected finite values in {name}, got {bad} of {values.numel()} NaN or infinite")


def fitting_batches(function: Callable[..., Result], batch_size: int, *inputs: Tensor) -> Iterator[Result]:
    """`function` of one batch of inputs (n, ...) after the other, of at most `batch_size` rows.

    A batch that the device's memory does not hold is done again in halves, and so are all after it: what is
    computed row by row is the same. Host memory has no such answer, for the system ends the process.

    Raises:
        torch.cuda.OutOfMemoryError: If a single row does not fit.
    """
    end, start, count = -1, 0, len(inputs[0])
    while end < count:  # an empty set is one empty batch
        end = min(start + batch_size, count)
        try:
            found = function(*(each[start:end] for each in inputs))
        except torch.cuda.OutOfMemoryError:
            if end - start <= 1:
                raise
            batch_size, end = (end - start + 1) // 2, start
            continue
        yield found
        start = end


def batched_logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Logits (n, K) in evaluation mode, without a graph.

    Raises:
        ValueError: If a logit is NaN or infinite.
    """
    with frozen(model), torch.no_grad():
        logits = torch.cat(list(fitting_batches(model, batch_size, x)))
    check_finite(logits, "the logits")
    return logits


def _count_classes(model: nn.Module, x: Tensor) -> int:
    for tensor in _floating(model):
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"expected x in the model's {tensor.dtype} on {tensor.device}, got {x.dtype} on {x.device}"
            )
    try:
        with frozen(model), torch.no_grad():
            logits = model(x[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected inputs that the model accepts, got shape (n, {_sizes(x)}): {reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise ValueError(f"expected logits of shape (n, K) with K >= 2, got {_kind(logits)} for n = 1")
    check_finite(logits, "the logits")
    return int(logits.shape[1])


def _floating(model: nn.Module) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _sizes(x: Tensor) -> str:
    return ", ".join(map(str, x.shape[1:]))


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return type(value).__name__
