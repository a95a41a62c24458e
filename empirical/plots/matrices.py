"""Transfer matrices: guaranteed from below, found, guaranteed from above, on one colour scale."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from empirical.comparison.results import Comparison, EnsembleResult
from empirical.comparison.rows import Row
from empirical.plots.select import Drawing, is_upper, joint_pairs, l2_rows, number, sharpest
from empirical.report.summary import Table

MODE = "untargeted"
Matrix = NDArray[np.float64]


def matrices(result: EnsembleResult, eps: float) -> dict[str, Matrix]:
    """Untargeted rates at an l2 radius by ordered pair: what is guaranteed at least, found, at most.

    Rows are surrogates, columns targets; of several attacks the strongest. The statements bound the attacks
    that were run, R7 and R2 the strongest attack in the ball on the two, whichever it is built on. Where
    nothing is guaranteed the bounds are 0 and 1. On the diagonal stands the member alone: the attack on
    itself and its certified error, NaN where there is none.
    """
    shape = (result.members, result.members)
    found = {"at least": np.zeros(shape), "found": np.zeros(shape), "at most": np.ones(shape)}
    rows = [row for row in sharpest(l2_rows(result, MODE)) if row.eps == eps]
    for pair in {(row.surrogate, row.target) for row in rows}:
        own = [row for row in rows if (row.surrogate, row.target) == pair]
        found["found"][pair] = max(row.measured.value for row in own)
        found["at least"][pair] = _guaranteed(own, False)
        found["at most"][pair] = _guaranteed(own, True)
    for matrix in found.values():
        np.fill_diagonal(matrix, np.nan)
    for table in result.matrices:
        if (table["mode"], table["attack"]["norm"], table["attack"]["eps"]) == (MODE, "l2", eps):
            alone = np.diagonal(table["rate"])
            np.fill_diagonal(found["found"], np.fmax(np.diagonal(found["found"]), alone))
    for row in filter(lambda row: row.informative, joint_pairs(result, MODE, eps)):
        first, second = row.models
        for pair in ((first, second), (second, first)):
            found["at least"][pair] = max(found["at least"][pair], row.must_transfer.lower)
            found["at most"][pair] = min(found["at most"][pair], row.certified.upper)
        for model, error in zip(row.models, row.single, strict=True):
            found["at most"][model, model] = error.upper
    return found


def _guaranteed(rows: list[Row], upper: bool) -> float:
    """The sharpest guarantee that covers every attack, 0 or 1 where there is none."""
    trivial, sharp, weak = (1.0, min, max) if upper else (0.0, max, min)
    best: dict[str, float] = {row.attack: trivial for row in rows}
    for row in rows:
        if is_upper(row) == upper and row.bound["guaranteed"] is not None:
            best[row.attack] = sharp(best[row.attack], row.bound["guaranteed"])
    return weak(best.values())


def draw(comparison: Comparison) -> Figure:
    """Three rows of matrices, a column for every ensemble."""
    eps = _radius(comparison)
    results = comparison.ensembles
    found = [matrices(result, eps) for result in results]
    figure, panels = plt.subplots(
        3, len(results), figsize=(1.5 + 1.9 * len(results), 6.0), squeeze=False, layout="constrained"
    )
    for axes, result in zip(panels[0], results, strict=True):
        axes.set_title(result.name)
    for name, line in zip(found[0], panels, strict=True):
        for result, own, axes in zip(results, found, line, strict=True):
            image = _matrix(axes, own[name])
            places = [place + 0.5 for place in range(result.members)]
            axes.set_xticks(places, range(result.members))
            axes.set_yticks(places, range(result.members))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(f"{name}\n\nsurrogate")
    for axes in panels[-1]:
        axes.set_xlabel("target")
    figure.colorbar(
        image, ax=panels, label=f"transfer rate, l2 {eps:g}", shrink=0.6, ticks=(0, 0.05, 0.2, 0.5, 1)
    )
    return figure


def _radius(comparison: Comparison) -> float:
    """The largest radius at which the typical guarantee from above is below a half; else the smallest."""
    radii = comparison.settings.eps
    typical = {
        eps: float(np.nanmedian([matrices(result, eps)["at most"] for result in comparison.ensembles]))
        for eps in radii
    }
    return max((eps for eps in radii if typical[eps] < 0.5), default=min(radii))


def _matrix(axes: Axes, matrix: Matrix) -> QuadMesh:
    # A root scale: the rates are small where the bounds speak, and 1 is what says nothing.
    norm = PowerNorm(0.5, 0, 1)
    # Cells as shapes: sharper than a picture, and two alike would share an identifier in the SVG.
    cells = axes.pcolormesh(np.ma.masked_invalid(matrix), norm=norm, cmap="cividis")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    for (i, j), rate in np.ndenumerate(matrix):
        if np.isfinite(rate):
            words = f"{rate:.3f}" if rate < 0.1 else f"{rate:.2f}"
            ink = "black" if norm(rate) > 0.55 else "white"
            axes.text(j + 0.5, i + 0.5, words, ha="center", va="center", fontsize=8, color=ink)
        else:
            axes.text(j + 0.5, i + 0.5, "–", ha="center", va="center", fontsize=8)
    return cells


def table(comparison: Comparison) -> Table:
    """Every entry."""
    eps = _radius(comparison)
    lines = []
    for result in comparison.ensembles:
        found = matrices(result, eps)
        for pair in np.ndindex(result.members, result.members):
            rates = [float(each[pair]) for each in found.values()]
            words = [number(None if np.isnan(rate) else rate) for rate in rates]
            lines.append((result.name, *map(str, pair), *words))
    header = ("ensemble", "surrogate", "target", "at least", "found", "at most")
    return Table(f"Untargeted transfer at l2 {eps:g}", header, tuple(lines))


TRANSFER_MATRICES = Drawing(
    "transfer-matrices",
    "Who fools whom, and what is guaranteed about it?",
    "Untargeted transfer between members, rows surrogate, columns target, on one colour scale: the best "
    "guarantee from below (R7 among them), the strongest attack found, the best guarantee from above (R2 "
    "among them). 0 above and 1 below mean that nothing is guaranteed. On the diagonal stands each member "
    "alone.",
    draw,
    table,
)
