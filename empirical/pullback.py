"""Networks that come with their backward pass by the input, which is all that an attack differentiates.

`with_pullback(model)(x)` returns the logits and a function, the pullback, from a gradient by the logits to
the one by the input, sample by sample. Of chains of dense layers it is written out, which spares small
networks the graph; other networks are rewritten (`empirical.rewriting`) and go through autograd; an
ensemble's members are taken one by one. Values and gradients are those of the module in evaluation mode up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.ensemble import Ensemble
from empirical.models import Normalize
from empirical.rewriting import Network, dense_chain, folded, is_bare

Pullback = Callable[[Tensor], Tensor]
WithPullback = Callable[[Tensor], tuple[Tensor, Pullback]]


def with_pullback(model: nn.Module) -> WithPullback:
    """The evaluation-mode function of a model, x to (logits, pullback), by its weights as they are now.

    A pullback is good for one call, and only where gradients were enabled when x was evaluated.
    """
    if type(model) is Ensemble and is_bare(model):
        return _voting(model)
    if chain := dense_chain(model):
        return _in_a_row([_dense(layer) for layer in chain])
    return _by_autograd(folded(model))


def _by_autograd(network: Network) -> WithPullback:
    def run(x: Tensor) -> tuple[Tensor, Pullback]:
        # autograd.grad reaches the input alone: parameters keep their .grad.
        point = x.detach().requires_grad_(torch.is_grad_enabled())
        value = network(point)
        return value.detach(), lambda gradient: torch.autograd.grad(value, point, gradient)[0]

    return run


def _voting(ensemble: Ensemble) -> WithPullback:
    members = [with_pullback(member) for member in ensemble.members]
    vote = _by_autograd(ensemble.vote.log_probabilities)

    def run(x: Tensor) -> tuple[Tensor, Pullback]:
        logits, back = zip(*(member(x) for member in members), strict=True)
        voted, back_to_logits = vote(torch.stack(logits))

        def pullback(gradient: Tensor) -> Tensor:
            by_logits = back_to_logits(gradient)
            # Summed from the last member to the first, as autograd does, so that results do not change.
            last_first = zip(reversed(back), by_logits.flip(0), strict=True)
            total, *others = (pull(each) for pull, each in last_first)
            for other in others:
                total = total + other
            return total

        return voted, pullback

    return run


def _in_a_row(layers: Sequence[WithPullback]) -> WithPullback:
    def run(x: Tensor) -> tuple[Tensor, Pullback]:
        back: list[Pullback] = []
        for layer in layers:
            x, pull = layer(x)
            back.append(pull)

        def pullback(gradient: Tensor) -> Tensor:
            for pull in reversed(back):
                gradient = pull(gradient)
            return gradient

        return x, pullback

    return run


def _dense(layer: Any) -> WithPullback:
    """One layer of a dense chain."""
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        return lambda x: (functional.linear(x, weight, bias), lambda gradient: gradient @ weight)
    if isinstance(layer, Normalize):
        mean, std = layer.mean, layer.std
        if not mean.any() and bool((std == 1).all()):
            return lambda x: (x, lambda gradient: gradient)
        return lambda x: ((x - mean) / std, lambda gradient: gradient / std)
    if isinstance(layer, nn.Flatten):
        return lambda x: (x.flatten(1), lambda gradient: gradient.view(x.shape))
    if isinstance(layer, nn.ReLU):
        return _relu
    return _by_autograd(layer)


def _relu(x: Tensor) -> tuple[Tensor, Pullback]:
    value = x.relu()
    return value, lambda gradient: torch.ops.aten.threshold_backward(gradient, value, 0)
