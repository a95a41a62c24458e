"""The figures of the study, drawn from its saved result alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from empirical.plots.style import COLOURS, MARKERS, QUIET, save  # first: it chooses the backend
from empirical.study.observations import PREDICTORS, Table
from empirical.study.result import Study

from matplotlib import pyplot as plt  # isort: skip
from matplotlib.axes import Axes  # isort: skip
from matplotlib.axis import Axis  # isort: skip
from matplotlib.figure import Figure  # isort: skip
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # isort: skip

# Methods of the crossed design and the others apart; more colours than this nobody tells apart.
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "vanilla": ("vanilla",),
    "Cos-only": ("cos-only",),
    "Cos-l2": ("cos-l2",),
    "TRS": ("trs",),
    "adversarial training": ("advt", "trs-advt"),
    "ADP, GAL, DVERGE, CKAE": ("adp", "gal", "dverge", "ckae"),
}
_LOGARITHMIC = ("beta_sampled", "beta_certified", "B", "gradient", "loss")


def save_figures(study: Study, folder: Path) -> dict[str, str]:
    """Draw every figure as SVG and PNG into a folder, which is created.

    Returns:
        The caption of each figure, by the name of its files.
    """
    captions = {}
    for draw, caption in _FIGURES.items():
        name = draw.__name__.replace("_", "-")
        save(lambda draw=draw: draw(study), folder / name)  # type: ignore[misc]
        captions[name] = caption
    return captions


def rank_correlations(study: Study) -> Figure:
    """Spearman's correlation of every predictor with the measured rates, with intervals."""
    columns = study.settings["outcomes"]
    outcomes = {
        f"transfer ({_ball(columns['transfer'])})": columns["transfer"],
        "the same, of those that fool F": columns["conditional"],
        f"strongest attack ({_ball(columns['found'])})": columns["found"],
    }
    figure, panels = plt.subplots(1, 2, figsize=(10.0, 4.4), sharey=True, layout="constrained")
    names = [name for name in PREDICTORS if name in study.ensembles.numbers]
    for axes, (measure, title) in zip(panels, _CORRELATION_PANELS.items(), strict=True):
        for index, (label, outcome) in enumerate(outcomes.items()):
            for place, predictor in enumerate(names):
                given = "method and accuracy" if measure == "partial" else ""
                found = study.correlation(predictor, outcome, measure, given=given)
                if found is not None:
                    y = place + 0.24 * (index - 1)
                    axes.plot([found["lower"], found["upper"]], [y, y], color=COLOURS[index], linewidth=1.3)
                    axes.plot(
                        [found["value"]], [y], MARKERS[index], color=COLOURS[index], markersize=5,
                        label=label if predictor == names[0] else None,
                    )  # fmt: skip
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.set_xlim(-1.02, 1.02)
        axes.set_xlabel(title)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    panels[0].set_yticks(range(len(names)), [PREDICTORS[name] for name in names])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"What goes with transfer, over {len(study.ensembles)} ensembles", fontsize=10)
    return figure


_CORRELATION_PANELS = {"spearman": "Spearman's correlation", "partial": "the same, given method and accuracy"}


def similarity_and_smoothness(study: Study) -> Figure:
    """Transfer against similarity, beta and B, an ensemble a point."""
    table, outcome = study.ensembles, study.settings["outcomes"]["transfer"]
    shown = ("cos_mean", "beta_sampled", "B", "accuracy")
    figure, panels = plt.subplots(1, 4, figsize=(12.0, 3.5), sharey=True, layout="constrained")
    for axes, predictor in zip(panels, shown, strict=True):
        _points(axes, table, predictor, outcome)
        axes.set_xlabel(PREDICTORS[predictor])
        found = study.correlation(predictor, outcome)
        if found is not None:
            axes.set_title(f"Spearman {found['value']:.2f} [{found['lower']:.2f}, {found['upper']:.2f}]")
        if predictor in _LOGARITHMIC:
            axes.set_xscale("log")
            _plain(axes.xaxis)
    panels[0].set_ylabel(f"measured transfer\n{_ball(outcome)}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return figure


def weights_and_transfer(study: Study) -> Figure:
    """The crossed design: means over blocks at every pair of loss weights."""
    columns = study.settings["outcomes"]
    panels_of = {
        "cos_mean": PREDICTORS["cos_mean"],
        "beta_sampled": PREDICTORS["beta_sampled"],
        columns["transfer"]: f"transfer\n{_ball(columns['transfer'])}",
        columns["conditional"]: "transfer of what fools F",
        columns["certified"]: f"certificate R2\n{_ball(columns['certified'])}",
    }
    figure, panels = plt.subplots(1, len(panels_of), figsize=(13.0, 3.2), layout="constrained")
    for axes, (quantity, title) in zip(panels, panels_of.items(), strict=True):
        _lines(axes, study.ensembles, quantity)
        axes.set_title(title)
        axes.set_xlabel("weight of similarity, lambda_a")
        if quantity in _LOGARITHMIC:
            axes.set_yscale("log")
            _plain(axes.yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def certificates_and_attacks(study: Study) -> Figure:
    """Upper and lower certificate of every pair of members beside the strongest attack found."""
    balls = list(
        dict.fromkeys(
            name.partition(" (")[2][:-1] for name in study.pairs.numbers if name.startswith("certified (")
        )
    )
    figure, panels = plt.subplots(
        1,
        max(len(balls), 1),
        figsize=(3.1 * max(len(balls), 1) + 0.4, 3.5),
        squeeze=False,
        layout="constrained",
    )
    for axes, ball in zip(panels[0], balls, strict=False):
        found = study.pairs.numbers[f"found ({ball})"]
        limit = 1.05 * max(np.nanmax(found), 1e-3)
        axes.fill_between([0, limit], [0, limit], color="#F2D9D0", label="where R2 must not lie", zorder=0)
        for index, (measure, label) in enumerate(
            {"certified": "R2: no attack does better", "must_transfer": "R7: some attack does this"}.items()
        ):
            axes.plot(
                found, study.pairs.numbers[f"{measure} ({ball})"], MARKERS[index], color=COLOURS[index],
                markersize=3.5, alpha=0.6, markeredgewidth=0, label=label,
            )  # fmt: skip
        axes.plot([0, limit], [0, limit], color=QUIET, linewidth=0.8)
        axes.set_title(ball.removeprefix("any, "))
        axes.set_xlabel("strongest attack found")
    panels[0][0].set_ylabel("certificate, rate of points")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


_FIGURES: dict[Callable[[Study], Figure], str] = {
    rank_correlations: "Rank correlation of what is known of the members with measured transfer, over "
    "ensembles, with 95 % bootstrap intervals; on the right given the training method and the accuracy.",
    similarity_and_smoothness: "Transfer against similarity, smoothness, gradient bound and accuracy; a "
    "point is an ensemble, colour and marker its method.",
    weights_and_transfer: "What the two loss weights do: means over blocks that have activation, depth, "
    "members, initial weights and data order in common, with standard errors over the blocks.",
    certificates_and_attacks: "Certificates of every pair of members beside the strongest attack found. R2 "
    "below the diagonal would contradict a proof. R7 may lie above it: its perturbation is proved to "
    "fool both, but may leave the range of pixels, which the attacks respect.",
}


def _points(axes: Axes, table: Table, x: str, y: str) -> None:
    methods = np.array(table.labels["method"])
    for index, (family, members) in enumerate(_FAMILIES.items()):
        some = np.isin(methods, members)
        axes.plot(
            table.numbers[x][some], table.numbers[y][some], MARKERS[index], color=COLOURS[index],
            markersize=4, alpha=0.75, markeredgewidth=0, label=family,
        )  # fmt: skip


def _lines(axes: Axes, table: Table, quantity: str) -> None:
    """A line for each lambda_b over lambda_a, with standard errors over blocks."""
    if quantity not in table.numbers or np.isnan(table.numbers[quantity]).all():
        return
    first, second = (np.array(table.labels[weight]) for weight in ("lambda_a", "lambda_b"))
    values = table.numbers[quantity]
    rows = sorted(set(first) - {""}, key=float)
    for index, level in enumerate(sorted(set(second) - {""}, key=float)):
        cells = [values[(first == row) & (second == level) & ~np.isnan(values)] for row in rows]
        # A design need not have every pair of weights, nor a number for each.
        places = np.array([place for place, cell in enumerate(cells) if len(cell)])
        means = [cell.mean() for cell in cells if len(cell)]
        errors = [
            cell.std(ddof=1) / np.sqrt(len(cell)) if len(cell) > 1 else 0.0 for cell in cells if len(cell)
        ]
        axes.errorbar(
            places + 0.06 * (index - 1), means, yerr=errors, color=COLOURS[index],
            marker=MARKERS[index], linestyle=("-", "--", ":", "-.")[index % 4], markersize=5, linewidth=1.2,
            capsize=2, label=f"weight of gradient size, lambda_b = {level}",
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), rows)


def _plain(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ball(outcome: str) -> str:
    """The attack in the name of a column."""
    return outcome.partition(" (")[2].removesuffix(")")
