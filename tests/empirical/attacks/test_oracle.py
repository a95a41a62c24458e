"""The attacks against public libraries, on a small network and an ensemble trained here.

Foolbox is an oracle where it computes the same thing. Its MIM accumulates signs instead of l1-normalised
gradients, and its l2 attacks project onto the ball before they clip to the pixel range, which wastes some of
the radius. The adversarial-robustness-toolbox (art) orders the two as this project does. Auto-PGD is compared
with art and with torchattacks, which both return the clean image or the start where they fail: their robust
accuracy is comparable, their images are not.
"""

import math

import foolbox
import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    MomentumIterativeMethod,
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from empirical.attacks import Attack, CarliniWagner, ElasticNet, predict, run_attack
from empirical.data import Split
from empirical.ensemble import Ensemble
from empirical.robustness import survivors

pytestmark = pytest.mark.slow

RADII = [("linf", 0.1), ("linf", 0.15), ("l2", 0.5), ("l2", 1.0)]
STEPS = 50
RESTARTS = 5
HALF_A_POINT = 0.005
A_POINT_AND_A_HALF = 0.015


@pytest.fixture(scope="module")
def data() -> Split:
    digits = load_digits()
    return Split(torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target))


def trained(data: Split, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.125 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        for rows in torch.randperm(1400, generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
    assert (predict(net, data.x) == data.y).double().mean() > 0.9
    return net.eval()


@pytest.fixture(scope="module")
def model(data: Split) -> nn.Module:
    return trained(data, 0)


@pytest.fixture(scope="module")
def ensemble(data: Split, model: nn.Module) -> nn.Module:
    return Ensemble([model, trained(data, 1), trained(data, 2)]).eval()


def wrapped(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


@pytest.fixture(scope="module")
def classifier(model: nn.Module) -> PyTorchClassifier:
    return wrapped(model)


def ours(
    model: nn.Module, data: Split, method: str, norm: str, eps: float, target: Tensor | None = None
) -> Tensor:
    """Images of the textbook attack: the last iterate, steps of eps / 5."""
    restarts = RESTARTS if method == "pgd" else 1
    attack = Attack(method, norm, eps, STEPS, restarts=restarts, on_failure="last")
    return run_attack(model, data.x, data.y, attack, target=target).x_adv


def by_art(
    classifier: PyTorchClassifier,
    data: Split,
    method: str,
    norm: str,
    eps: float,
    target: Tensor | None = None,
) -> Tensor:
    common = {
        "norm": math.inf if norm == "linf" else 2,
        "eps": eps,
        "batch_size": 2048,
        "targeted": target is not None,
    }
    steps = {**common, "eps_step": eps / 5, "max_iter": STEPS, "verbose": False}
    if method == "fgsm":
        attack = FastGradientMethod(classifier, **common)
    elif method == "mim":
        attack = MomentumIterativeMethod(classifier, decay=1.0, **steps)
    else:
        np.random.seed(0)  # noqa: NPY002 - the library draws from the global generator
        restarts = RESTARTS if method == "pgd" else 0
        attack = ProjectedGradientDescentPyTorch(classifier, num_random_init=restarts, **steps)
    labels = data.y if target is None else target
    return torch.tensor(attack.generate(data.x.numpy(), y=labels.numpy()))


def by_foolbox(model: nn.Module, data: Split, method: str, norm: str, eps: float) -> list[Tensor]:
    attacks = {
        ("fgsm", "linf"): foolbox.attacks.LinfFastGradientAttack,
        ("fgsm", "l2"): foolbox.attacks.L2FastGradientAttack,
        ("bim", "linf"): foolbox.attacks.LinfBasicIterativeAttack,
        ("bim", "l2"): foolbox.attacks.L2BasicIterativeAttack,
        ("pgd", "linf"): foolbox.attacks.LinfPGD,
        ("pgd", "l2"): foolbox.attacks.L2PGD,
    }
    steps = {} if method == "fgsm" else {"abs_stepsize": eps / 5, "steps": STEPS}
    attack = attacks[method, norm](random_start=method == "pgd", **steps)
    torch.manual_seed(0)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    return [
        attack(wrapped, data.x, data.y, epsilons=eps)[1] for _ in range(RESTARTS if method == "pgd" else 1)
    ]


def accuracy(model: nn.Module, data: Split, *attacked: Tensor) -> float:
    return float(survivors(model, data.x, data.y, attacked).double().mean())


@pytest.mark.parametrize(("norm", "eps"), RADII)
def test_fgsm_images_are_identical(
    model: nn.Module, classifier: PyTorchClassifier, data: Split, norm: str, eps: float
) -> None:
    """Both libraries return the same images to 1e-6."""
    x_adv = ours(model, data, "fgsm", norm, eps)
    torch.testing.assert_close(x_adv, by_art(classifier, data, "fgsm", norm, eps), atol=1e-6, rtol=0)
    torch.testing.assert_close(x_adv, by_foolbox(model, data, "fgsm", norm, eps)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), RADII)
@pytest.mark.parametrize("method", ["bim", "mim"])
def test_deterministic_attacks_agree_sample_by_sample_with_art(
    model: nn.Module, classifier: PyTorchClassifier, data: Split, method: str, norm: str, eps: float
) -> None:
    """The same prediction on 99.8 % of the samples, nearly the same images, equal robust accuracy."""
    x_adv, other = ours(model, data, method, norm, eps), by_art(classifier, data, method, norm, eps)
    assert (predict(model, x_adv) == predict(model, other)).double().mean() > 0.998
    assert ((x_adv - other).abs().flatten(1).amax(1) < 1e-3).double().mean() > 0.98
    assert abs(accuracy(model, data, x_adv) - accuracy(model, data, other)) < 0.001


@pytest.mark.parametrize("eps", [0.1, 0.15])
def test_linf_bim_agrees_sample_by_sample_with_foolbox(model: nn.Module, data: Split, eps: float) -> None:
    """The same images but for at most 1 % of the samples, equal robust accuracy."""
    x_adv, other = ours(model, data, "bim", "linf", eps), by_foolbox(model, data, "bim", "linf", eps)[0]
    assert ((x_adv - other).abs().flatten(1).amax(1) < 1e-5).double().mean() > 0.99
    assert abs(accuracy(model, data, x_adv) - accuracy(model, data, other)) < 0.001


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_pgd_with_restarts_agrees_within_half_a_point(
    model: nn.Module, classifier: PyTorchClassifier, data: Split, norm: str, eps: float
) -> None:
    """Robust accuracy under five random starts, against both libraries."""
    mine = accuracy(model, data, ours(model, data, "pgd", norm, eps))
    assert abs(mine - accuracy(model, data, by_art(classifier, data, "pgd", norm, eps))) <= HALF_A_POINT
    assert abs(mine - accuracy(model, data, *by_foolbox(model, data, "pgd", norm, eps))) <= HALF_A_POINT


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("method", ["fgsm", "bim", "mim"])
def test_targeted_attacks_agree_with_art(
    model: nn.Module, classifier: PyTorchClassifier, data: Split, method: str, norm: str, eps: float
) -> None:
    """The next class as target: the same success rate and nearly the same images."""
    target = (data.y + 1) % 10
    x_adv = ours(model, data, method, norm, eps, target)
    other = by_art(classifier, data, method, norm, eps, target)
    hits, theirs = ((predict(model, images) == target).double().mean() for images in (x_adv, other))
    assert abs(hits - theirs) < 0.001
    assert hits > 0.02
    assert ((x_adv - other).abs().flatten(1).amax(1) < 1e-3).double().mean() > 0.98


# Auto-PGD, on a single model and on an ensemble, whose outputs are log-probabilities.

APGD_CASES = [
    ("model", "linf", 0.1, "ce"), ("model", "l2", 0.5, "ce"), ("model", "linf", 0.1, "dlr"),
    ("ensemble", "linf", 0.1, "ce"), ("ensemble", "l2", 0.5, "ce"), ("ensemble", "linf", 0.1, "dlr"),
]  # fmt: skip


def auto_pgd(model: nn.Module, data: Split, norm: str, eps: float, loss: str) -> float:
    attack = Attack("apgd", norm, eps, STEPS, restarts=2, loss=loss)
    return accuracy(model, data, run_attack(model, data.x, data.y, attack).x_adv)


@pytest.mark.parametrize(("name", "norm", "eps", "loss"), APGD_CASES)
def test_auto_pgd_agrees_with_art(
    data: Split, name: str, norm: str, eps: float, loss: str, request: pytest.FixtureRequest
) -> None:
    """Robust accuracy of the held-out samples under two random starts."""
    model, held_out = request.getfixturevalue(name), Split(data.x[1400:], data.y[1400:])
    np.random.seed(0)  # noqa: NPY002 - the library draws from the global generator
    # Its ratio loss takes memory and time quadratic in the batch.
    other = AutoProjectedGradientDescent(
        wrapped(model), norm=math.inf if norm == "linf" else 2, eps=eps, eps_step=2 * eps, max_iter=STEPS,
        nb_random_init=2, batch_size=64 if loss == "dlr" else 512, verbose=False,
        loss_type={"ce": "cross_entropy", "dlr": "difference_logits_ratio"}[loss],
    )  # fmt: skip
    images = torch.tensor(other.generate(held_out.x.numpy(), y=held_out.y.numpy()))
    mine, theirs = auto_pgd(model, held_out, norm, eps, loss), accuracy(model, held_out, images)
    assert 0.2 < mine < 0.8
    assert abs(mine - theirs) <= A_POINT_AND_A_HALF


@pytest.mark.parametrize(("name", "norm", "eps", "loss"), APGD_CASES)
def test_auto_pgd_agrees_with_torchattacks(
    data: Split, name: str, norm: str, eps: float, loss: str, request: pytest.FixtureRequest
) -> None:
    """Robust accuracy of all samples under two random starts."""
    torchattacks = pytest.importorskip("torchattacks")
    model = request.getfixturevalue(name)
    other = torchattacks.APGD(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=STEPS, n_restarts=2, loss=loss
    )
    mine = auto_pgd(model, data, norm, eps, loss)
    theirs = accuracy(model, data, other(data.x, data.y))
    assert 0.2 < mine < 0.8
    assert abs(mine - theirs) <= A_POINT_AND_A_HALF


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_ensemble_pgd_agrees_within_half_a_point(
    data: Split, ensemble: nn.Module, norm: str, eps: float
) -> None:
    """The stacked ensemble, attacked through its log-probabilities, against both libraries."""
    mine = accuracy(ensemble, data, ours(ensemble, data, "pgd", norm, eps))
    assert (
        abs(mine - accuracy(ensemble, data, by_art(wrapped(ensemble), data, "pgd", norm, eps)))
        <= HALF_A_POINT
    )
    assert abs(mine - accuracy(ensemble, data, *by_foolbox(ensemble, data, "pgd", norm, eps))) <= HALF_A_POINT


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (CarliniWagner(0.02, steps=60, step_size=0.05), CarliniWagner(3.0, steps=60, step_size=0.05)),
        (ElasticNet(0.5, steps=60), ElasticNet(10.0, steps=60)),
    ],
)
def test_penalised_attacks_never_return_black_or_out_of_range_images(
    data: Split, ensemble: nn.Module, weak: CarliniWagner, strong: CarliniWagner, targeted: bool
) -> None:
    """On a trained ensemble, where the weak one mostly fails and the strong one mostly succeeds."""
    x, y = data.x[1400:1600], data.y[1400:1600]
    target = (y + 1) % 10 if targeted else None
    shares = []
    for attack in (weak, strong):
        result = run_attack(ensemble, x, y, attack, target=target)
        assert (result.health.black, result.health.out_of_range) == (0, 0)
        failed = ~result.success
        assert torch.equal(result.x_adv[failed], x[failed])
        shares.append(float(result.success.double().mean()))
    assert shares[0] < 0.5 < shares[1]
