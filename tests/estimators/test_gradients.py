"""Input gradients and B against a slow loop and closed forms."""

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional

from estimators import cross_entropy, gradient_norm, input_gradients


def setting(count=7):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(18, 4))
    model(torch.randn(8, 1, 5, 5))
    x = torch.randn(count, 1, 5, 5, dtype=torch.float64)
    return model.double(), x, torch.randint(4, (count,))


def one_gradient(model, x, label):
    def loss(point):
        return functional.cross_entropy(model(point[None]), torch.tensor([label]))

    model.eval()
    return grad(loss)(x)


def test_gradients_equal_a_loop_over_samples_for_one_and_for_several_labels():
    model, x, y = setting()
    found = input_gradients(model.train(), cross_entropy, x, y, batch_size=3)
    assert found.shape == x.shape
    for row, point, label in zip(found, x, y, strict=True):
        torch.testing.assert_close(row, one_gradient(model, point, int(label)))
    several = torch.stack([y, (y + 1) % 4], 1)
    both = input_gradients(model, cross_entropy, x, several, batch_size=3)
    assert both.shape == (7, 2, 1, 5, 5)
    torch.testing.assert_close(both[:, 0], found)
    torch.testing.assert_close(both[3, 1], one_gradient(model, x[3], int(several[3, 1])))


def test_all_labels_of_a_sample_share_one_forward_pass():
    model, x, _ = setting()
    rows = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    every = torch.arange(4).expand(len(x), -1)
    found = input_gradients(model, cross_entropy, x, every, batch_size=9)
    assert rows == [1, 1, 2, 2, 2, 1]  # two checks of one sample, then 9 // 4 samples at once
    for label in range(4):
        torch.testing.assert_close(found[:, label], input_gradients(model, cross_entropy, x, every[:, label]))


def test_gradient_norm_is_the_largest_over_points_and_labels_and_says_its_direction():
    model, x, y = setting()
    labels = torch.arange(4).expand(7, 4)
    norms = [[one_gradient(model, point, k).norm().item() for k in range(4)] for point in x]
    largest = max(map(max, norms))
    finite = gradient_norm(model, cross_entropy, x, labels)
    assert finite.is_exact
    assert finite.value == pytest.approx(largest, rel=1e-12)
    population = gradient_norm(model, cross_entropy, x, labels, support="population")
    assert (population.lower, population.upper) == (finite.value, float("inf"))
    true_only = gradient_norm(model, cross_entropy, x, y).value
    assert true_only == pytest.approx(max(row[k] for row, k in zip(norms, y, strict=True)), rel=1e-12)


def test_gradient_norm_of_linear_softmax_approaches_the_largest_row_distance():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    model = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(rows)
    # z_1 far above z_0: the gradient at label 0 is w_1 - w_0, of length 5.
    x = torch.tensor([[-20.0, 20.0], [0.1, 0.0]], dtype=torch.float64)
    assert gradient_norm(model, cross_entropy, x, torch.tensor([0, 0])).value == pytest.approx(5.0)


def test_gradient_norm_of_a_confident_float32_point_is_tiny_but_not_zero():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    x = torch.tensor([[150.0, 0.0]])
    found = gradient_norm(model, cross_entropy, x, torch.tensor([0])).value
    exact = torch.sigmoid(torch.tensor(-150.0, dtype=torch.float64)).item() * 2**0.5
    assert found == pytest.approx(exact, rel=1e-6)


def test_loss_that_ignores_the_input_has_zero_gradients():
    found = input_gradients(
        nn.Linear(2, 2), lambda z, y: y.float(), torch.ones(3, 2), torch.tensor([0, 1, 1])
    )
    assert torch.equal(found, torch.zeros(3, 2))


def test_infinite_gradients_are_refused():
    def root(logits, labels):
        return logits.abs().sum(1).sqrt()

    model = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match="finite values in the gradients"):
        input_gradients(model, root, torch.zeros(1, 2), torch.tensor([0]))
