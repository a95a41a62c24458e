"""The Markdown page of an item, and the index of all pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from empirical.attacks.presets import BLACK_BOX_MEMBERS
from empirical.config import TrainingConfig
from empirical.files import parse_json, write_json, write_text
from empirical.report.summary import Table
from empirical.reproduce.contrasts import contrasts, findings
from empirical.reproduce.figures import save_figure
from empirical.reproduce.items import ITEMS, BlackBox
from empirical.reproduce.queue import Store
from empirical.reproduce.scales import SURROGATE_SEED, Setting, differences
from empirical.reproduce.tables import Outcome, claim_table, number_tables

_READING = """\
The measured numbers are means over seeds. Their intervals, at 95 %, are approximate: Student's over the seeds
and Clopper and Pearson's over the points that were attacked, added in quadrature; with one seed over the
points alone. A number of the paper with a star has a note in the CSV file."""


def write_pages(outcomes: Sequence[Outcome], store: Store, folder: Path) -> None:
    """Write page, CSV, JSON and figure of every item, and the index of all pages in the folder.

    Args:
        outcomes: What to write.
        store: Where the drawn slices lie.
        folder: It is created.
    """
    for outcome in outcomes:
        name = outcome.plan.item.name
        drawn = save_figure(outcome, store, folder)
        write_text(folder / f"{name}.csv", outcome.to_csv())
        write_json(folder / f"{name}.json", outcome.to_json())
        write_text(folder / f"{name}.md", page(outcome, drawn))
    write_text(folder / "README.md", _index(folder))


def page(outcome: Outcome, drawn: bool) -> str:
    """The page of an item; `drawn` says whether its figure lies beside it."""
    item = outcome.plan.item
    parts = [f"# {_printed_name(item.name)}: {item.title}", _how(outcome)]
    if item.remark:
        parts.append(item.remark)
    if drawn:
        parts.append(f"![{item.title}, scale {outcome.scale}]({item.name}.png)")
    parts += [*_numbers(outcome), _READING]
    if outcome.verdicts:
        parts += ["## What the paper claims", claim_table(outcome).to_markdown()]
        parts.append(
            "A claim holds if the intervals of all its differences lie above what it asks for, fails if one "
            "lies below, and is undecided otherwise. Answers are about what was measured here. Differences "
            "are shares, not per cent."
        )
    parts += ["## The ensembles", _accuracies(outcome).to_markdown()]
    if outcome.warnings:
        parts += [
            "## Attacks to look at twice",
            "\n".join(f"- {warning}" for warning in outcome.warnings),
            "A gradient of the DLR loss is also zero where the attack has already succeeded and the label is "
            "no longer among the two likeliest.",
        ]
    parts += ["## Configuration", _configuration(outcome)]
    return "\n\n".join(parts) + "\n"


def _numbers(outcome: Outcome) -> list[str]:
    """The item's tables, and what its contrasts say in words."""
    parts = [table.to_markdown() for table in number_tables(outcome)]
    if found := list(contrasts(outcome.entries)):
        parts += [
            "Shares are in per cent, their differences in points. Nothing is corrected for the number of "
            "differences: of twenty true zeros one may look like a difference.",
            "## In words",
            "\n".join(f"- {sentence}" for sentence in findings(found)),
        ]
    return parts


def _how(outcome: Outcome) -> str:
    """Scale, data, seeds, and what is not measured, in one paragraph."""
    plan = outcome.plan
    lines = [f"Scale: **{outcome.scale}**."]
    for paper in dict.fromkeys(row.dataset for row in plan.item.rows):
        setting, seeds = plan.settings[paper], plan.seeds[paper]
        factor = setting.radius_factors[paper]
        radii = "radii as in the paper" if factor == 1 else f"radii of the paper times {factor:g}"
        lines.append(
            f"The paper's {paper} is measured on **{setting.dataset}**, {radii}, {len(seeds)} "
            f"{'seed' if len(seeds) == 1 else 'seeds'}, at most {setting.samples} held-out points."
        )
    if outcome.scale == "smoke":
        lines.append("This scale shows only that everything runs: its numbers say nothing about the methods.")
    if outcome.missing:
        lines.append(f"**Not complete**: {outcome.missing} cells have no result yet.")
    return " ".join(lines)


def _accuracies(outcome: Outcome) -> Table:
    rows = [
        (dataset, column, f"{100 * ensemble:.1f}", f"{100 * weakest:.1f}")
        for dataset, column, ensemble, weakest in outcome.ensembles
    ]
    header = ("data", "method", "lowest accuracy of an ensemble", "of a member")
    return Table(
        "Accuracy on all held-out points in per cent, the lowest over the seeds", header, tuple(rows)
    )


def _configuration(outcome: Outcome) -> str:
    plan = outcome.plan
    lines = []
    for setting in _distinct(plan.settings):
        reduced = differences(setting)
        reduced.pop("model", None)  # part of each recipe
        shares = ", ".join(f"{name.replace('_', ' ')} {each}" for name, each in reduced.items())
        if shares:
            lines.append(f"- {setting.dataset}, other than the paper (steps as shares of its own): {shares}")
        configs = {column.label: setting.training(column, 0) for column in plan.item.columns}
        recipes = {_recipe(config) for config in configs.values()}
        if len(recipes) == 1:
            lines.append(f"- {setting.dataset}, all methods: {min(recipes)}")
        for label, config in configs.items():
            own = f"; {_recipe(config)}" if len(recipes) > 1 else ""
            lines.append(f"- {setting.dataset}, {label}: {_method(config)}{own}")
    if any(isinstance(row.protocol, BlackBox) for row in plan.item.rows):
        sizes = ", ".join(map(str, BLACK_BOX_MEMBERS))
        lines.append(f"- surrogates: vanilla ensembles of {sizes} members, seeds from {SURROGATE_SEED} on")
    for environment in outcome.environments:
        lines.append("- " + ", ".join(f"{name} {value}" for name, value in environment.items()))
    lines.append(f"- CPU time of the cells of this page, some shared with others: {outcome.seconds:.0f} s")
    return "\n".join(lines)


def _recipe(config: TrainingConfig) -> str:
    model = config.model
    hidden = f" {'-'.join(map(str, model.hidden))}" if model.architecture == "mlp" else ""
    schedule = f"{config.schedule} {'/'.join(map(str, config.milestones))}".strip()
    return (
        f"{config.members} members, {model.architecture}{hidden}, {model.activation}, "
        f"{config.epochs} epochs, batches of {config.batch_size}, {config.optimizer} {config.lr:g}, "
        f"{schedule}, ramp {config.ramp:g}"
    )


def _method(config: TrainingConfig) -> str:
    objective = config.objective.to_json()
    name = objective.pop("name")
    # Of switches, those that are on.
    weights = ", ".join(
        each if value is True else f"{each} {value}"
        for each, value in objective.items()
        if value is not False
    )
    return f"{name} ({weights})" if weights else name


def _distinct(settings: Mapping[str, Setting]) -> list[Setting]:
    """Each setting once."""
    found: list[Setting] = []
    for setting in settings.values():
        if setting not in found:
            found.append(setting)
    return found


def _printed_name(name: str) -> str:
    return name.replace("-", " ").capitalize()


def _index(folder: Path) -> str:
    """The index of all pages in the folder, in the paper's order, with the answers to the claims."""
    pages, claims, versions = [], [], set()
    for path in (folder / f"{name}.json" for name in ITEMS):
        if not path.exists():
            continue
        found = parse_json(path.read_text(encoding="utf-8"))
        link = f"[{_printed_name(found['item'])}]({found['item']}.md)"
        seeds = max(map(len, found["seeds"].values()))
        state = f"{found['missing_cells']} cells missing" if found["missing_cells"] else "complete"
        time = f"{found['cpu_seconds']:.0f}"
        pages.append((link, found["title"], found["measured_on"], found["scale"], str(seeds), time, state))
        claims += [(each["answer"], each["claim"], found["measured_on"], link) for each in found["claims"]]
        versions |= {", ".join(f"{name} {value}" for name, value in each.items())
                     for each in found["environments"]}  # fmt: skip
    header = ("page", "shows what the paper shows as", "measured on", "scale", "seeds", "CPU s", "state")
    of_pages = Table("Pages (CPU time of a page's cells, some shared with others)", header, tuple(pages))
    of_claims = Table(
        "The paper's claims, and the answer of what was measured here",
        ("answer", "claim of the paper", "measured on", "page"),
        tuple(claims),
    )
    parts = [
        "# The paper's tables and figures, measured anew",
        of_pages.to_markdown(),
        f"Measured with {'; '.join(sorted(versions))}. Recipes stand on each page.",
        of_claims.to_markdown(),
    ]
    return "\n\n".join(parts) + "\n"
