"""Every estimator refuses bad input in one line and leaves the model as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import estimators
from bounds.estimate import Estimate
from estimators import cross_entropy

BETA = Estimate.exact(1.0)


def build(kind="mlp", dtype=torch.float64):
    torch.manual_seed(0)
    if kind == "conv":
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(12, 3))
        model(torch.randn(16, 1, 4, 4))  # running statistics that differ from a batch's own
        return model.to(dtype)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def data(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (count,), generator=generator)


CALLS = {
    "input_gradients": lambda f, x, y, b=4: estimators.input_gradients(f, cross_entropy, x, y, batch_size=b),
    "gradient_norm": lambda f, x, y, b=4: estimators.gradient_norm(f, cross_entropy, x, y, batch_size=b),
    "gradient_similarity": lambda f, x, y, b=4: estimators.gradient_similarity(f, f, x, y, batch_size=b),
    "risk": lambda f, x, y, b=4: estimators.risk(f, x, y, batch_size=b),
    "empirical_risk": lambda f, x, y, b=4: estimators.empirical_risk(f, cross_entropy, x, y, batch_size=b),
    "effectiveness": lambda f, x, y, b=4: estimators.effectiveness(f, x, y, targeted=True, batch_size=b),
    "minimum_loss": lambda f, x, y, b=4: estimators.minimum_loss(f, f, cross_entropy, x, y, batch_size=b),
    "targeted": lambda f, x, y, b=4: estimators.targeted_constants(
        f, f, cross_entropy, x, x, y, beta=BETA, eps=0.1, batch_size=b
    ),
    "untargeted": lambda f, x, y, b=4: estimators.untargeted_constants(
        f, f, cross_entropy, x, y, x, beta=BETA, eps=0.1, batch_size=b
    ),
    "hessian_norms": lambda f, x, y, b=4: estimators.hessian_norms(f, cross_entropy, x, y, batch_size=b),
    "hessian": lambda f, x, y, b=4: estimators.smoothness(f, cross_entropy, x, y, radius=0.1, batch_size=b),
    "ascent": lambda f, x, y, b=4: estimators.smoothness(
        f, cross_entropy, x, y, radius=0.1, method="ascent", steps=3, batch_size=b
    ),
    "quotient": lambda f, x, y, b=4: estimators.smoothness(
        f, cross_entropy, x, y, radius=0.1, method="quotient", steps=3, batch_size=b
    ),
    "segment": lambda f, x, y, b=4: estimators.smoothness(
        f, cross_entropy, x, y, method="segment", x_end=x + 0.1, batch_size=b
    ),
    "divergence": lambda f, x, y, b=4: estimators.divergence_test(
        f, cross_entropy, x, y, halvings=3, batch_size=4 * b
    ),
    "remainder": lambda f, x, y, b=4: estimators.remainder(f, cross_entropy, x, x + 0.1, y, batch_size=b),
}
everywhere = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def snapshot(model):
    modes = [module.training for module in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return modes, grads, [p.requires_grad for p in model.parameters()], copy.deepcopy(model.state_dict())


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[2] == after[2]
    for old, new in zip(before[1], after[1], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert all(torch.equal(before[3][name], after[3][name]) for name in before[3])


@everywhere
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_model_inputs_and_global_generator_are_left_untouched(call, kind):
    model, (x, y) = build(kind), data()
    model.train()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    list(model.parameters())[-1].grad = torch.ones(3, dtype=torch.float64)
    x.requires_grad_()
    before, inputs, state = snapshot(model), x.detach().clone(), torch.get_rng_state()
    call(model, x, y)
    assert_same(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert torch.equal(x.detach(), inputs)


@everywhere
def test_model_is_restored_after_a_failure(call):
    model, (x, y) = build(), data()
    model.train()
    before = snapshot(model)
    with pytest.raises(ValueError):
        call(model, x, y + 3)
    assert_same(before, snapshot(model))


@everywhere
def test_works_under_no_grad_and_in_both_precisions(call):
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            call(build(dtype=dtype), *data(dtype=dtype))


def numbers(result):
    if isinstance(result, torch.Tensor):
        return result.flatten().tolist()
    if isinstance(result, Estimate):
        return [result.value, result.lower, result.upper]
    if isinstance(result, estimators.DivergenceTest):
        return [*result.scales, *result.quotients, result.slope, result.jump, result.flagged]
    return [number for part in result for number in numbers(part)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_result_does_not_depend_on_the_batches(name, kind):
    model, (x, y) = build(kind), data(9)
    together = numbers(CALLS[name](model, x, y, 100))
    assert numbers(CALLS[name](model, x, y, 4)) == pytest.approx(together, rel=1e-6, abs=1e-9)
    assert numbers(CALLS[name](model, x, y, 1)) == pytest.approx(together, rel=1e-6, abs=1e-9)


BAD = {
    "labels out of range": (lambda x, y: (x, y + 2), ValueError, r"labels in 0\.\.2, got [34]"),
    "negative label": (lambda x, y: (x, y - 3), ValueError, r"labels in 0\.\.2, got -"),
    "too few labels": (lambda x, y: (x, y[:-1]), ValueError, r"expected labels of shape \(6,\)"),
    "float labels": (lambda x, y: (x, y.double()), TypeError, "integer tensor, got a torch.float64"),
    "wrong sample shape": (
        lambda x, y: (x[:, :, :3], y),
        ValueError,
        r"model accepts, got shape \(n, 1, 3, 4\)",
    ),
    "NaN": (
        lambda x, y: (x.index_fill(0, torch.tensor([2]), float("nan")), y),
        ValueError,
        "got 16 of 96 NaN",
    ),
    "empty": (lambda x, y: (x[:0], y[:0]), ValueError, r"at least one sample, got \(0, 1, 4, 4\)"),
    "integer inputs": (lambda x, y: (x.long(), y), TypeError, "floating-point tensor, got a torch.int64"),
    "wrong dtype": (
        lambda x, y: (x.float(), y),
        ValueError,
        "model's torch.float64 on cpu, got torch.float32",
    ),
}


@everywhere
@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_line(call, case):
    spoil, error, message = case
    with pytest.raises(error, match=message) as caught:
        call(build(), *spoil(*data()))
    assert "\n" not in str(caught.value)


def test_reduced_loss_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"per-sample loss of shape \(n,\), got shape \(\)"):
        estimators.empirical_risk(build(), functional.cross_entropy, x, y)


def test_one_logit_and_nan_logits_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="K >= 2"):
        estimators.risk(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double(), x, y)
    broken = build()
    with torch.no_grad():
        broken[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite values in the logits"):
        estimators.risk(broken, x, y)


def test_models_with_different_classes_are_refused():
    x, y = data()
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()
    with pytest.raises(ValueError, match=r"same number of classes, got \[3, 4\]"):
        estimators.gradient_similarity(build(), other, x, y)


def test_unknown_support_and_bad_batch_size_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="'finite' or 'population', got 'sample'"):
        estimators.risk(build(), x, y, support="sample")
    with pytest.raises(ValueError, match="batch size of at least 1, got 0"):
        estimators.risk(build(), x, y, batch_size=0)
