"""Your own torch modules and points through the whole comparison, without data folder or checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from empirical.comparison.compare import compare
from empirical.comparison.pipeline import describe_attacks, describe_environment, transfer_attacks
from empirical.comparison.results import Comparison, Settings
from empirical.data import Split
from empirical.ensemble import Ensemble
from estimators.batching import Support, check_inputs, check_labels, frozen


def compare_models(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    linf_eps: Sequence[float] = (),
    target_label: int = 0,
    attacks: Sequence[str] = ("pgd", "joint"),
    pixel_range: tuple[float, float] | None = None,
    support: Support = "finite",
    confidence: float = 0.95,
    seed: int = 0,
    name: str = "models",
    progress: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Put the theory beside what is measured on models and points of your own.

    `print(compare_models([f, g], x, y, eps=[0.05, 0.1]))` prints the verdict and the tables that matter;
    `empirical.comparison.results.save_results` keeps everything, and `draw-figures` draws from that.

    Args:
        models: Two or more modules from (n, *shape) to logits (n, K), on the device of `x`; their modes,
            gradients and buffers are left as they are.
        x: Points (n, *shape), floating-point.
        y: Labels (n,).
        eps: l2 radii of the balls, in units of the inputs.
        linf_eps: linf radii.
        target_label: Label y_t of the targeted statements.
        attacks: Among pgd, apgd and mim, on each model, and joint, on several at once; see
            `empirical.comparison.compare.TRANSFER_ATTACKS`.
        pixel_range: Range of valid inputs, None for data without one.
        support: "finite": claims are about these points; "population": they are an i.i.d. sample.
        confidence: Confidence of every statistical interval.
        seed: Seed of the attacks.
        name: What to call the ensemble.
        progress: Called with a line of text when a part begins.

    Returns:
        The comparison of one ensemble.

    Raises:
        TypeError: If a model is no torch module, the points are not floating-point or the labels not integer.
        ValueError: If shapes, labels, radii, attacks or values do not fit, before any work.
    """
    if len(models) < 2:
        raise ValueError(f"expected two or more models, got {len(models)}")
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected torch modules, got {type(model).__name__}")
    classes = check_inputs(tuple(models), x, len(x) or 1)
    data = Split(x.detach(), check_labels(y, x, classes))
    chosen = transfer_attacks(attacks, seed)
    radii, linf_radii = (tuple(sorted(set(map(float, given)))) for given in (eps, linf_eps))
    settings = Settings(
        dataset="given points", samples=len(x), classes=classes, eps=radii, linf_eps=linf_radii,
        target_label=target_label, attacks=describe_attacks(attacks, seed), robust_eps=(), support=support,
        confidence=confidence, seed=seed,
    )  # fmt: skip
    with frozen(*models):
        result = compare(
            Ensemble(list(models)), data, name=name, eps=radii, linf_eps=linf_radii,
            target_label=target_label, attacks=chosen, robust_eps=(), support=support, confidence=confidence,
            pixel_range=pixel_range, progress=progress,
        )  # fmt: skip
    return Comparison(settings, describe_environment(x.device), (result,))
