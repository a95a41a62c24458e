"""Input gradients of a per-sample loss, and the gradient bound B of Theorems 3 and 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bounds.estimate import Estimate
from estimators.batching import (
    DEFAULT_BATCH,
    Support,
    check_finite,
    check_inputs,
    check_labels,
    check_loss,
    frozen,
)
from estimators.distribution import Distribution
from estimators.losses import LossFunction, cross_entropy, margin
from estimators.sharing import in_batches


def differentiate(
    values: Tensor, x: Tensor, *, create_graph: bool = False, keep_graph: bool = False
) -> Tensor:
    """The gradient of `values.sum()` in x, zero where the values do not depend on x."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    keep_graph = keep_graph or create_graph
    (gradient,) = torch.autograd.grad(
        values.sum(), x, create_graph=create_graph, retain_graph=keep_graph, materialize_grads=True
    )
    return gradient


def input_gradients(
    model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, *, batch_size: int = DEFAULT_BATCH
) -> Tensor:
    """Gradient of each sample's loss in its input.

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L) for L labels per sample.
        batch_size: Samples differentiated at once.

    Returns:
        Gradients (n, *shape), or (n, L, *shape) for L labels per sample.

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels or values do not fit, or a gradient is not finite.
    """
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)

    def gradients(x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (_value_gradients(model, loss, x, y)[1],)

    return in_batches(gradients, samples_at_once(batch_size, y), x, y)[0]


def samples_at_once(batch_size: int, y: Tensor) -> int:
    """How many samples, with their labels y of shape (n,) or (n, L), make a batch of pairs; at least 1."""
    return max(1, batch_size // y[0].numel())


def gradient_directions(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unit loss gradients (n, d) or (n, L, d) of one batch, or zeros, and their l2 norms, in float64.

    Cross-entropy goes through its margin: the directions are the same, and the norm sigmoid(m) ||grad m||
    stays positive at points so confident that p - e_y rounds to zero. Inputs are checked already.
    """
    through_margin = loss is cross_entropy
    values, gradients = _value_gradients(model, margin if through_margin else loss, x, y)
    rows = gradients.flatten(y.dim()).double()
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    largest = rows.abs().amax(-1, keepdim=True)
    rows = rows / largest.where(largest > 0, 1.0)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    norm = (length * largest).squeeze(-1)
    return (
        rows / length.where(length > 0, 1.0),
        norm * torch.sigmoid(values.double()) if through_margin else norm,
    )


def gradient_norms(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, *, batch_size: int) -> Tensor:
    """l2 norm of each loss gradient, (n,) or (n, L) in float64, for inputs that are checked already."""

    def norms(x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (gradient_directions(model, loss, x, y)[1],)

    return in_batches(norms, samples_at_once(batch_size, y), x, y)[0]


def gradient_norm(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    support: Support = "finite",
    batch_size: int = DEFAULT_BATCH,
) -> Estimate:
    """B = sup ||grad l(x, y)||_2 over the data and the labels given (TRS, Theorems 3 and 4, section 4.4).

    The theorems need every label that their proofs touch: y and the target y_t for Theorem 3, all labels for
    Theorem 4. Pass those labels as y of shape (n, L).

    Args:
        model: Network from (n, *shape) to logits (n, K).
        loss: Per-sample loss.
        x: Inputs (n, *shape) in the model's dtype.
        y: Labels (n,), or (n, L); the supremum runs over all of them.
        support: "finite": the given set is the distribution, so the maximum is exact (up to rounding).
            "population": the set is a sample, so the maximum only bounds B from below.
        batch_size: Samples differentiated at once.

    Returns:
        Loss per unit of l2 distance: exact for "finite", [maximum, inf] for "population".

    Raises:
        TypeError: If x is not floating-point or y not integer.
        ValueError: If shapes, labels, values or the support's name do not fit.
    """
    about = Distribution(support)
    classes = check_inputs((model,), x, batch_size)
    y = check_labels(y, x, classes, several=True)
    check_loss(loss, model, x, classes)
    norms = gradient_norms(model, loss, x, y, batch_size=batch_size)
    seen = f"largest l2 gradient norm over {len(x)} points, {describe_labels(y)}, in {x.dtype}"
    return about.supremum(norms, seen, samples=len(x))


def describe_labels(y: Tensor) -> str:
    """How many labels per sample an estimate covers, in words."""
    count = y.shape[1] if y.dim() == 2 else 1
    return f"{count} label{'s' if count > 1 else ''} each"


def _value_gradients(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of one batch, (n,) or (n, L), and gradients; all labels of a sample share a forward pass."""
    with frozen(model):
        point = x.detach().requires_grad_(True)
        logits = model(point)
        values = [loss(logits, label) for label in y.reshape(len(y), -1).T]
        gradients = torch.stack([differentiate(each, point, keep_graph=True) for each in values], 1)
    check_finite(gradients, "the gradients")
    return torch.stack(values, 1).detach().reshape(y.shape), gradients.reshape(*y.shape, *x.shape[1:])
