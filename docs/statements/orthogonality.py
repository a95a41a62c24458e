"""Figure 1 of the paper, computed: orthogonal gradients stop transfer only where the models are smooth.

F and G have margins f(x) = x2 + s w(x1 / s) and g(x) = x2 - s w(x1 / s) with a rounded triangle wave w of
slope close to +1 or -1, so that their gradients (w', 1) and (-w', 1) are orthogonal almost everywhere,
whatever the wavelength s. A short wave has a large curvature and boundaries within 2 s of each other; a long
one is nearly affine, and its boundaries cross at a right angle. Run this file to draw the figure.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDING = 0.995  # 1 is the triangle wave itself, with kinks and no finite curvature
RADIUS = 0.6
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"


def wave(t: Floats) -> Floats:
    """Rounded triangle wave of period 4 with w(0) = 0."""
    return np.arcsin(ROUNDING * np.sin(np.pi / 2 * t)) * 2 / np.pi


def slope(t: Floats) -> Floats:
    """Derivative of the wave."""
    angle = np.pi / 2 * t
    return ROUNDING * np.cos(angle) / np.sqrt(1 - (ROUNDING * np.sin(angle)) ** 2)


def curvature(scale: float) -> float:
    """Largest second derivative of the margins, reached at the crests."""
    return np.pi / 2 * ROUNDING / np.sqrt(1 - ROUNDING**2) / scale


def margins(x: Floats, scale: float) -> tuple[Floats, Floats]:
    """Margins of F and G at points of shape (..., 2); positive means the upper class."""
    bend = scale * wave(x[..., 0] / scale)
    return x[..., 1] + bend, x[..., 1] - bend


def mean_cosine(x: Floats, scale: float) -> float:
    """Mean absolute cosine between the two models' gradients."""
    squared = slope(x[:, 0] / scale) ** 2
    return float(np.mean(np.abs(1 - squared) / (1 + squared)))


def data(rng: np.random.Generator, size: int = 1500) -> Floats:
    """Points of the upper class between two lines at right angles, where the affine pair is right."""
    height = rng.uniform(0.15, 0.55, size)
    return np.stack([rng.uniform(-0.9, 0.9, size) * height, height], axis=1)


def strongest_attack(x: Floats, scale: float) -> Floats:
    """The points of the disc with the smallest margin of F, by search over a fine grid."""
    radius, angle = np.meshgrid(np.linspace(0, RADIUS, 40), np.linspace(0, 2 * np.pi, 181)[:-1])
    steps = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    attacked = x[:, None] + steps
    best = margins(attacked, scale)[0].argmin(axis=1)
    return attacked[np.arange(len(x)), best]


def transfer(x: Floats, scale: float) -> tuple[float, float]:
    """Rates at which both models are right on x, and at which the attack on F then fools both."""
    f, g = margins(x, scale)
    attacked_f, attacked_g = margins(strongest_attack(x, scale), scale)
    right = (f > 0) & (g > 0)
    return float(right.mean()), float((right & (attacked_f <= 0) & (attacked_g <= 0)).mean())


def draw_pair(axes: plt.Axes, x: Floats, scale: float, title: str) -> None:
    """Both decision boundaries, the data, and one attacked point."""
    across = np.linspace(-1.2, 1.2, 4001)
    axes.plot(across, -scale * wave(across / scale), color=BLUE, lw=1.4, label="boundary of F")
    axes.plot(across, scale * wave(across / scale), color=ORANGE, lw=1.4, ls="--", label="boundary of G")
    axes.scatter(*x[:150].T, s=5, color=GREY, alpha=0.5, label="data")
    start = np.array([[0.02, 0.35]])
    end = strongest_attack(start, scale)
    axes.annotate("", end[0], start[0], arrowprops={"arrowstyle": "->", "color": "black", "lw": 1.6})
    axes.plot(*start[0], "o", color="black", ms=5)
    fooled = "fools both" if margins(end, scale)[1][0] <= 0 else "fools F only"
    note = f"the strongest attack on F\n{fooled}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9}
    axes.text(0.97, 0.04, note, transform=axes.transAxes, ha="right", fontsize=8, bbox=box)
    right, rate = transfer(x, scale)
    axes.set_title(
        f"{title}\nmean |cos| {mean_cosine(x, scale):.2f}, curvature {curvature(scale):.3g}\n"
        f"both right {right:.2f}, transfer {rate:.2f}",
        fontsize=9,
    )
    axes.set(xlim=(-1.1, 1.1), ylim=(-0.85, 0.75), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    axes.legend(fontsize=7, loc="lower left", framealpha=0.9)


def main() -> None:
    """Draw the figure beside this file."""
    x = data(np.random.default_rng(0))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
    draw_pair(left, x, 0.02, "(a) orthogonal, not smooth")
    draw_pair(middle, x, 4.0, "(b) orthogonal and smooth")
    scales = np.geomspace(0.01, 8.0, 40)
    bend = [curvature(scale) for scale in scales]
    right.semilogx(
        bend,
        [transfer(x[:400], s)[1] for s in scales],
        "o-",
        color=BLUE,
        ms=4,
        label="transfer of the attack on F",
    )
    right.semilogx(
        bend,
        [mean_cosine(x, s) for s in scales],
        "s--",
        color=ORANGE,
        ms=4,
        label="mean |cos| of the gradients",
    )
    right.set(xlabel="curvature of the margins", ylabel="rate", ylim=(-0.03, 1.03))
    right.set_title("(c) the same angle, from harmless to fatal", fontsize=9)
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    for suffix in ("svg", "png"):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(Path(__file__).with_suffix(f".{suffix}"), dpi=150, metadata=metadata)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "orthogonality"
    main()
