"""Cross-entropy through the margin: values, gradients and curvature against the textbook form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import hessian
from torch.nn import functional

from estimators import cross_entropy, label_losses, margin


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.1, 1.0, 8.0]))
def test_value_and_gradient_equal_the_textbook_form(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(7, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (7,), generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = functional.cross_entropy(theirs, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(ours, labels), expected, rtol=1e-12, atol=1e-14)
    (mine,) = torch.autograd.grad(cross_entropy(ours, labels).sum(), ours)
    (textbook,) = torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(mine, textbook, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("gap", [0.0, 1.0, 19.9, 20.1, 60.0, -25.0, -200.0])
def test_hessian_equals_the_closed_form_at_any_margin(gap):
    logits = torch.tensor([0.0, gap, 0.3 * gap], dtype=torch.float64)
    found = hessian(lambda z: cross_entropy(z[None], torch.tensor([0]))[0])(logits)
    p = torch.softmax(logits, 0)
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), rtol=1e-12, atol=1e-15)


def test_loss_is_softplus_of_the_margin_and_margin_of_two_classes_is_a_difference():
    logits = torch.tensor([[1.0, 3.5], [2.0, -1.0]], dtype=torch.float64)
    assert margin(logits, torch.tensor([0, 0])).tolist() == [2.5, -3.0]
    expected = functional.softplus(torch.tensor([2.5, -3.0], dtype=torch.float64))
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([0, 0])), expected)


def test_float32_gradient_survives_where_p_minus_onehot_rounds_to_zero():
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([0])).sum(), logits)
    exact = torch.sigmoid(torch.tensor(-40.0, dtype=torch.float64)).item()
    assert gradient[0, 1].item() == pytest.approx(exact, rel=1e-5)
    # The textbook form fails here, which is why ours exists.
    (naive,) = torch.autograd.grad(functional.cross_entropy(logits, torch.tensor([0])), logits)
    assert naive[0, 0].item() == 0.0


def test_label_losses_puts_the_loss_of_label_k_in_column_k():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    table = label_losses(cross_entropy, logits)
    for label in range(3):
        torch.testing.assert_close(table[:, label], cross_entropy(logits, torch.full((4,), label)))
