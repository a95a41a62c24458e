"""CW and EAD through the adapter: closed forms on linear models, failures, and what must be left alone."""

import json
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from empirical.attacks import CarliniWagner, ElasticNet, predict, run_attack
from empirical.ensemble import Ensemble

BOTH = (CarliniWagner(5.0, steps=30, step_size=0.05), ElasticNet(5.0, steps=30))


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight)))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return model


def random_linear(classes: int, dimension: int, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return linear(torch.randn(classes, dimension, generator=generator))


def images(n: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def gaps(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a linear model of two classes: how far the logits are apart (n,), and the weights' difference."""
    logits = model(x).detach().double()
    weight = model[1].weight.detach().double()
    return (logits[:, 0] - logits[:, 1]).abs(), (weight[0] - weight[1]).abs()


def least_elastic(gap: float, weight: Tensor, beta: float) -> float:
    """Minimum of ||d||_2^2 + beta ||d||_1 under weight . d >= gap, by its stationary points."""

    def perturbation(multiplier: float) -> Tensor:
        return ((multiplier * weight - beta) / 2).clamp(min=0)

    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if weight @ perturbation(middle) >= gap else (middle, high)
    delta = perturbation(high)
    return float(delta.square().sum() + beta * delta.sum())


# The minimal distances of a linear model, inside the pixel range.


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = random_linear(2, 36), images(60, 36, low=0.4, high=0.6)
    return model, x, predict(model, x)


@pytest.mark.parametrize("targeted", [False, True])
def test_cw_finds_the_l2_distance(problem: tuple[nn.Module, Tensor, Tensor], targeted: bool) -> None:
    """Every sample is fooled at most 1.25 times farther than its distance to the boundary, and not nearer."""
    model, x, y = problem
    attack = CarliniWagner(1.0, steps=100, confidence=0.0)
    result = run_attack(model, x, y, attack, target=1 - y if targeted else None)
    gap, weight = gaps(model, x)
    ratio = torch.linalg.vector_norm((result.x_adv - x).double(), dim=1) / (gap / weight.norm())
    assert result.success.all()
    assert ratio.max() < 1.25
    assert ratio.min() > 0.999


@pytest.mark.parametrize("targeted", [False, True])
def test_ead_finds_the_elastic_distance(problem: tuple[nn.Module, Tensor, Tensor], targeted: bool) -> None:
    """With the exact proximal step, at most 1.25 times the least elastic-net distance."""
    model, x, y = problem
    attack = ElasticNet(1.0, steps=100, confidence=0.0, beta=0.2, shrinkage="exact")
    result = run_attack(model, x, y, attack, target=1 - y if targeted else None)
    gap, weight = gaps(model, x)
    least = torch.tensor([least_elastic(float(each), weight, attack.beta) for each in gap])
    ratio = attack.distance((result.x_adv - x).double()) / least
    assert result.success.all()
    assert ratio.max() < 1.25
    assert ratio.min() > 0.999


def test_ead_as_printed_finds_the_l1_distance(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    """With the printed shrinkage l1 all but rules: at most 1.25 times the least l1 distance, not elastic."""
    model, x, y = problem
    attack = ElasticNet(1.0, steps=100, confidence=0.0, rule="l1")
    result = run_attack(model, x, y, attack)
    gap, weight = gaps(model, x)
    ratio = (result.x_adv - x).double().abs().sum(1) / (gap / weight.max())
    assert result.success.all()
    assert ratio.max() < 1.25
    assert ratio.min() > 0.999
    assert result.health.largest_norm == pytest.approx(float((result.x_adv - x).double().abs().sum(1).max()))


def test_confidence_is_kept(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    """The other logit wins by at least the confidence asked for."""
    model, x, y = problem
    for kind in (CarliniWagner, ElasticNet):
        attack = kind(2.0, steps=60, confidence=0.5)
        logits = model(run_attack(model, x, y, attack).x_adv).detach()
        assert (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])).min() >= 0.5 - 1e-4


def test_a_larger_weight_fools_more() -> None:
    """C trades distance for success: with little weight no sample is worth the distance, with much all."""
    model, x = random_linear(2, 9), images(40, 9, low=0.3, high=0.7)
    y = predict(model, x)
    for kind in (CarliniWagner, ElasticNet):
        weak, strong = (
            run_attack(model, x, y, kind(c, steps=40, step_size=0.03)).success for c in (0.01, 10.0)
        )
        assert not weak.any()
        assert strong.all()


# Ensembles, failures, ranges.


@pytest.mark.parametrize("attack", BOTH)
def test_log_probabilities_serve_as_well_as_logits(attack: CarliniWagner | ElasticNet) -> None:
    """An ensemble of one, whose outputs are all negative, is attacked as its member is."""
    model, x = random_linear(4, 16), images(30, 16)
    y = predict(model, x)
    ensemble = Ensemble([model])
    assert (ensemble(x) < 0).all()
    raw, log = run_attack(model, x, y, attack), run_attack(ensemble, x, y, attack)
    assert torch.equal(raw.success, log.success)
    assert raw.success.double().mean() > 0.9
    torch.testing.assert_close(log.x_adv, raw.x_adv, atol=2e-3, rtol=0)


class DarkIsOne(nn.Module):
    """Class 1 for a black image, class 0 elsewhere, and flat: nothing can be found by descent."""

    def forward(self, x: Tensor) -> Tensor:
        dark = (x.flatten(1).sum(1) == 0).to(x.dtype)
        return torch.stack([1 - dark, dark], 1) + 0 * x.flatten(1)


@pytest.mark.parametrize("attack", BOTH)
def test_failure_leaves_the_clean_image(attack: CarliniWagner | ElasticNet) -> None:
    """Where nothing is found the image is the clean one, bit for bit, even if a black one would fool."""
    x, y = images(6, 2, low=0.2), torch.zeros(6, dtype=torch.long)
    result = run_attack(DarkIsOne(), x, y, attack)
    assert not result.success.any()
    assert torch.equal(result.x_adv, x)
    assert (result.health.black, result.health.unchanged) == (0, 1)
    assert result.health.zero_gradients == 1
    assert result.attack.on_failure == "clean"
    assert result.attack.to_json()["on_failure"] == "clean"


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize(
    ("pixel_range", "dtype"), [((0.0, 1.0), torch.float32), ((-0.25, 0.75), torch.float64)]
)
def test_images_are_in_range_and_not_black(
    attack: CarliniWagner | ElasticNet, pixel_range: tuple[float, float], dtype: torch.dtype
) -> None:
    """Pixels also at the ends of the range, some samples out of reach: none leaves it or turns black."""
    low, high = pixel_range
    x = (low + (high - low) * (1.6 * images(40, 1, 3, 3) - 0.3).clamp(0, 1)).to(dtype)
    assert x.min() == low
    assert x.max() == high
    model = random_linear(5, 9).to(dtype)
    with torch.no_grad():
        model[1].bias[0] = 3.0
    y = predict(model, x)
    result = run_attack(model, x, y, attack, pixel_range=pixel_range)
    assert result.x_adv.dtype == dtype
    assert result.x_adv.shape == x.shape
    assert result.success.double().mean() > 0
    assert result.x_adv.min() >= low
    assert result.x_adv.max() <= high
    assert (result.health.out_of_range, result.health.black) == (0, 0)
    assert torch.equal(result.success, predict(model, result.x_adv) != y)
    assert not result.success.logical_not().logical_and((result.x_adv != x).flatten(1).any(1)).any()


class AllAtTheTop(nn.Module):
    """Class 1 only where pixels average more than 0.9 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), 1e4 * (mean - 0.9)], 1)


def test_rounding_out_of_the_range_is_mended() -> None:
    """The library maps tanh = 1 to 0.3 + 0.6 = 0.90000004 in float32, beyond the range's end."""
    x, y = torch.full((2, 4), 0.85), torch.zeros(2, dtype=torch.long)
    attack = CarliniWagner(5.0, steps=3, step_size=20.0, confidence=0.0)
    result = run_attack(AllAtTheTop(), x, y, attack, pixel_range=(-0.3, 0.9))
    assert result.health.unchanged == 0
    assert result.health.out_of_range == 0
    assert result.x_adv.max() <= torch.tensor(0.9)


@pytest.mark.parametrize("attack", BOTH)
def test_targets_are_reached(attack: CarliniWagner | ElasticNet) -> None:
    """A target for each sample."""
    model, x = random_linear(4, 25), images(40, 25)
    y = predict(model, x)
    target = (y + 1) % 4
    result = run_attack(model, x, y, attack, target=target)
    assert torch.equal(result.success, predict(model, result.x_adv) == target)
    assert result.success.double().mean() > 0.9
    assert torch.equal(result.target, target)


@pytest.mark.parametrize("attack", BOTH)
def test_samples_do_not_interact(attack: CarliniWagner | ElasticNet) -> None:
    """The batch size changes nothing but rounding."""
    model, x = random_linear(3, 8).double(), images(10, 8).double()
    y = predict(model, x)
    whole, cut = (run_attack(model, x, y, attack, batch_size=size) for size in (10, 3))
    torch.testing.assert_close(cut.x_adv, whole.x_adv, atol=1e-9, rtol=0)
    assert cut.health.zero_gradients == whole.health.zero_gradients
    assert cut.health.monotone_loss == whole.health.monotone_loss


def test_health_of_a_descent_that_works() -> None:
    """No gradient is zero before the attack is content; the small first steps of EAD only ever descend."""
    model, x = random_linear(2, 12), images(20, 12, low=0.3, high=0.7)
    y = predict(model, x)
    short = run_attack(model, x, y, ElasticNet(0.5, steps=3, shrinkage="exact"))
    assert (short.health.zero_gradients, short.health.monotone_loss) == (0, 1)
    long = run_attack(model, x, y, CarliniWagner(50.0, steps=40, step_size=0.1))
    assert long.health.zero_gradients == 0
    assert long.health.monotone_loss < 0.5, "Adam overshoots"


@pytest.mark.parametrize("attack", BOTH)
def test_model_is_left_as_found(attack: CarliniWagner | ElasticNet) -> None:
    """Modes, gradients, flags, buffers and the device, for a model in training mode with BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    x = images(12, 6)
    model(x).square().mean().backward()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[4].bias.grad = None

    def snapshot() -> tuple[object, ...]:
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            {name: tensor.tolist() for name, tensor in model.state_dict().items()},
            [hook for module in model.modules() for hook in module._forward_hooks],
            torch.get_rng_state().tolist(),
            x.requires_grad,
        )

    before = snapshot()
    with torch.no_grad():
        run_attack(model, x, torch.arange(12) % 3, attack)
        assert not torch.is_grad_enabled()
    assert snapshot() == before


# Descriptions and bad input.


def test_attacks_name_themselves() -> None:
    """The words that reports use."""
    assert str(CarliniWagner(0.1)) == "CW-1000, c 0.1"
    assert str(ElasticNet(5.0, steps=100)) == "EAD-100, c 5"
    assert json.loads(json.dumps(ElasticNet(5.0).to_json()))["beta"] == 0.01


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (CarliniWagner, {"c": 0.0}, "expected c to be a positive finite number, got 0.0"),
        (CarliniWagner, {"steps": 0}, "expected steps to be an integer of at least 1, got 0"),
        (CarliniWagner, {"step_size": -1.0}, "expected step_size to be a positive finite number, got -1.0"),
        (CarliniWagner, {"confidence": -0.1}, "expected confidence to be a positive finite number, got -0.1"),
        (ElasticNet, {"c": math.nan}, "expected c to be a positive finite number, got nan"),
        (ElasticNet, {"beta": 0.0}, "expected beta to be a positive finite number, got 0.0"),
        (ElasticNet, {"rule": "l2"}, "expected rule to be one of elastic, l1, got 'l2'"),
        (ElasticNet, {"shrinkage": "x"}, "expected shrinkage to be one of printed, exact, got 'x'"),
    ],
)
def test_bad_settings_are_refused(kind: type, fields: dict, message: str) -> None:
    """One line that names what was expected and what came."""
    with pytest.raises(ValueError) as caught:
        kind(**fields)
    assert str(caught.value) == message


def test_data_without_a_range_are_refused() -> None:
    """Before any work."""
    with pytest.raises(ValueError, match="expected a pixel_range for cw, which searches inside it, got None"):
        run_attack(
            random_linear(2, 3), images(2, 3), torch.zeros(2, dtype=torch.long),
            CarliniWagner(steps=10**9), pixel_range=None,
        )  # fmt: skip


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r"expected foolbox for .* pip install 'transferbounds\[attacks\]'"):
        run_attack(
            random_linear(2, 3), images(2, 3), torch.zeros(2, dtype=torch.long), ElasticNet(steps=10**9)
        )
