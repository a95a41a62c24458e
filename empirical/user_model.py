"""A user's own weights and data, from safetensors files and a function that builds the module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from empirical.data import DataError, Split
from empirical.ensemble import CheckpointError


def load_user_model(weights: Path, factory: str, *, device: torch.device | str = "cpu") -> nn.Module:
    """Build a module with the user's own function and fill it with the weights of a safetensors file.

    Args:
        weights: File with the module's `state_dict` (`safetensors.torch.save_file`).
        factory: `module:function`, importable from the working folder or the environment; called without
            arguments, it returns a torch module from (n, *shape) to logits (n, K).
        device: Where the module goes.

    Returns:
        The module in evaluation mode.

    Raises:
        CheckpointError: If the file is missing or no safetensors file, or its tensors do not fit the module.
        ValueError: If the factory cannot be found or does not return a module.
    """
    weights = Path(weights)
    build = _factory(factory)
    try:
        model = build()
    except Exception as error:  # whatever the function does wrong is the user's to read
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected {factory} to build a model, got {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected {factory} to return a torch module, got {type(model).__name__}")
    tensors = _tensors(weights)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"expected weights of {factory} in {weights}: {reason}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"expected finite weights in {weights}, got NaN or infinity in {name}")
    return model.to(device).eval()


def load_user_data(path: Path) -> Split:
    """Samples from a safetensors file with tensors `x` (n, *shape), floating-point, and `y` (n,), integers.

    Raises:
        DataError: If the file is missing or foreign, or the tensors are not of these kinds.
    """
    path = Path(path)
    try:
        tensors = _tensors(path)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if {"x", "y"} - tensors.keys():
        raise DataError(f"expected tensors x and y in {path}, got {', '.join(sorted(tensors)) or 'none'}")
    x, y = tensors["x"], tensors["y"]
    if not x.is_floating_point() or x.dim() < 2 or not x.isfinite().all():
        raise DataError(f"expected finite floating-point x (n, *shape) in {path}, got {_describe(x)}")
    if y.is_floating_point() or y.is_complex() or y.shape != x.shape[:1] or not len(y):
        raise DataError(f"expected integer y ({len(x)},) in {path}, got {_describe(y)}")
    return Split(x.float(), y.long())


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"expected a safetensors file at {path}, found no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"expected a safetensors file at {path}, got a foreign one ({reason})"
        ) from None


def _factory(name: str) -> Callable[[], object]:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"expected a model as module:function, got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"expected a module {module_name} to import for {name!r}: {error}") from None
    finally:
        sys.path.pop(0)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"expected a function {function_name} in {module_name}, found none")
    return function


def _describe(tensor: Tensor) -> str:
    finite = "" if not tensor.is_floating_point() or tensor.isfinite().all() else " with NaN or infinity"
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}{finite}"
