"""The page of the study: answers first, then the tables and figures behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from empirical.files import write_text
from empirical.report.summary import Table
from empirical.study.analysis import other_mechanisms
from empirical.study.figures import save_figures
from empirical.study.observations import PAIR, PREDICTORS
from empirical.study.result import Study, save_study

_METHOD = """\
Ensembles are the units. The intervals are 95 % percentile intervals of a bootstrap that draws whole
ensembles, with all their pairs; the effects of the loss weights have Student's intervals over blocks of
ensembles that have all else in common. They are about ensembles drawn as these were, and they are not
corrected for the number of questions. A correlation says what goes together in this design, not why; an
effect is of the weight, through whatever it changes. beta "sampled" errs below, beta "certified" above; rates
are exact for the points measured, and a found attack is never stronger than the strongest one."""
_ANSWERS = """\
A claim **holds** if all its deciding evidence (bold) lies on its side with the whole interval, **fails** if
some lies on the other side, and is undecided otherwise. Evidence that does not decide stands beside it."""


def write_pages(study: Study, folder: Path) -> None:
    """Write the page, the figures and the data in a folder, which is created."""
    captions = save_figures(study, folder)
    save_study(folder, study)
    write_text(folder / "README.md", page(study, captions))


def page(study: Study, captions: Mapping[str, str]) -> str:
    """The page in Markdown."""
    names = "; ".join(f"{name}: {words}" for name, words in PREDICTORS.items())
    parts = ["# Do the implications hold?", _summary(study), claim_table(study).to_markdown(), _METHOD]
    parts += [f"{_NAMES}{names}. At which attack and radius, the settings below say."]
    parts += ["## Rank correlations", correlation_table(study).to_markdown()]
    parts += [f"![{caption}]({name}.png)\n\n*{caption}*" for name, caption in captions.items()]
    parts += ["## The claims, one by one", _ANSWERS]
    parts += [_claim(claim) for claim in study.claims]
    parts += ["## Given other things", partial_table(study).to_markdown()]
    parts += ["## What the loss weights do", effect_table(study).to_markdown()]
    parts += ["## Do the bounds order the ensembles?", bound_table(study).to_markdown(), _BOUNDS]
    parts += [
        "## Is any measured rate outside a guaranteed bound?",
        _guarantees(study),
        verdict_table(study).to_markdown(),
    ]
    parts += ["## Settings", _settings(study)]
    return "\n\n".join(parts) + "\n"


_BOUNDS = """\
Rows are ordered pairs of members under one attack. "Applies" counts those that meet the statement's
hypotheses, "informative" those where it says something. The correlation is of the value of the bound with
the rate that it is about, where it applies; it is missing with fewer than 20 ensembles or if nearly all rates
are equal. `bounds.csv` has every attack and radius."""
_NAMES = """\
Names. transfer: both members right on the clean point and fooled by the attack on one of them (Definition 7);
conditional: the same as a share of the points on which the attack fools its own member; alone: the attack on
its own member; found: the strongest of all attacks, built on both members at once among them; certified: the
certificate R2, which no attack in the ball exceeds; must_transfer: R7, proved to fool both; single: R2 of the
better member alone; """


def _summary(study: Study) -> str:
    answers = Counter(claim["answer"] for claim in study.claims)
    words = ", ".join(f"{answers[name]} {name}" for name in ("holds", "fails", "undecided"))
    methods = Counter(study.ensembles.labels["method"])
    outside = len(study.violations)
    certificates = study.ensembles.numbers.get(study.settings["outcomes"]["certified"])
    certified = 0 if certificates is None else int(np.isfinite(certificates).sum())
    return (
        f"{len(study.ensembles)} trained ensembles with {len(study.pairs)} pairs of members "
        f"({', '.join(f'{name} {count}' for name, count in methods.items())}), scale "
        f"`{study.settings['scale']}`, {certified} of them certified. "
        f"Of {len(study.claims)} claims: {words}. "
        f"Of {study.evaluations} measured rates beside a guaranteed bound **{outside}** "
        f"{'lies' if outside == 1 else 'lie'} outside."
    )


def claim_table(study: Study) -> Table:
    """The claims with their answers and deciding evidence."""
    rows = [
        (
            claim["text"],
            claim["answer"],
            "; ".join(_short(each) for each in claim["evidence"] if each["deciding"]),
        )
        for claim in study.claims
    ]
    return Table(
        "What the paper implies, and what was found", ("claim", "answer", "deciding evidence"), tuple(rows)
    )


def correlation_table(study: Study) -> Table:
    """Spearman's and Kendall's correlations over ensembles and over pairs at the main radius."""
    outcomes = [study.settings["outcomes"][name] for name in ("transfer", "conditional", "found")]
    measures = [f"{measure}: {name}" for name in outcomes for measure in ("Spearman", "Kendall")]
    header = ("predictor", *measures, f"Spearman over pairs: {outcomes[0]}")
    rows = []
    for predictor in _predictors(study):
        found = [
            study.correlation(predictor, name, measure)
            for name in outcomes
            for measure in ("spearman", "kendall")
        ]
        found.append(study.correlation(predictor, outcomes[0], unit=PAIR))
        rows.append((PREDICTORS[predictor], *map(_ends, found)))
    return Table("Rank correlations, with 95 % intervals", header, tuple(rows))


def partial_table(study: Study) -> Table:
    """Partial correlations over ensembles with transfer at the main radius."""
    outcome = study.settings["outcomes"]["transfer"]
    header = ("predictor", "accuracy", "method", "method and accuracy", "the other mechanisms")
    rows = []
    for predictor in _predictors(study):
        givens = (*header[1:4], others) if (others := other_mechanisms(predictor)) else header[1:4]
        found = [_ends(study.correlation(predictor, outcome, "partial", given=given)) for given in givens]
        last = f"{found[3]} ({others})" if others else "-"
        rows.append((PREDICTORS[predictor], *found[:3], last))
    return Table(f"Spearman's correlation with {outcome}, given", header, tuple(rows))


def effect_table(study: Study) -> Table:
    """What raising the loss weights does."""
    shown = {*_predictors(study), *study.settings["outcomes"].values()}
    rows = [
        (
            f"{each['weight']} {each['low']} to {each['high']}",
            PREDICTORS.get(each["quantity"], each["quantity"]),
            f"{'times ' if each['scale'] == 'ratio' else ''}{_ends(each)}",
            str(each["blocks"]),
        )
        for each in study.effects
        if each["quantity"] in shown
    ]
    return Table("Mean effect over blocks", ("weight", "quantity", "effect", "blocks"), tuple(rows))


def bound_table(study: Study) -> Table:
    """Every statement under PGD, at every l2 radius."""
    rows = [
        (
            each["statement"], each["smoothness"], each["ball"], str(each["rows"]), str(each["applies"]),
            str(each["informative"]), _ends(each["spearman"]), _ends(each["kendall"]),
        )
        for each in study.bounds
        if each["ball"].startswith("pgd, l2")
    ]  # fmt: skip
    header = ("statement", "beta", "attack", "pairs", "applies", "informative", "Spearman", "Kendall")
    return Table("Statements beside the rates that they are about", header, tuple(rows))


def verdict_table(study: Study) -> Table:
    """Verdicts by statement, over all ensembles, attacks, radii and modes."""
    names = ("violated", "consistent", "inconclusive", "vacuous", "inapplicable")
    rows = [
        (statement, *(str(counts.get(name, 0)) for name in names))
        for statement, counts in study.verdicts.items()
    ]
    return Table("Verdicts", ("statement", *names), tuple(rows))


def _claim(claim: Mapping[str, Any]) -> str:
    lines = [
        f"### {claim['text']}",
        "",
        f"**{claim['answer']}** ({claim['source']}). Theory: {claim['theory']}",
        "",
    ]
    for each in claim["evidence"]:
        words = f"{_short(each)}, {each['units']} units"
        side = each["speaks"] if each["sign"] else "beside"
        lines.append(f"- {f'**{words}**' if each['deciding'] else words}: {side}")
    return "\n".join(lines)


def _guarantees(study: Study) -> str:
    lines = [
        f"{study.evaluations} times a measured rate stood beside a guaranteed bound, over all ensembles, "
        f"attacks, radii and modes, certificates included; {len(study.violations)} outside."
    ]
    lines += [
        f"- **violated**: {row['ensemble']}, {row['statement']}, "
        f"{row['norm']} {row['eps']:g}, {row['mode']}: {row['reason']}"
        for row in study.violations
    ]
    return "\n".join(lines)


def _settings(study: Study) -> str:
    lines = {**study.settings, **study.environment}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _short(each: Mapping[str, Any]) -> str:
    """A statistic with its interval; against which value, where that is not 0 or 1."""
    pivot = "" if each["pivot"] in (0.0, 1.0) else f" (against {each['pivot']:g})"
    return f"{each['what']}: {_ends(each)}{pivot}"


def _ends(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["value"] is None:
        return "-"
    return f"{interval['value']:.2f} [{interval['lower']:.2f}, {interval['upper']:.2f}]"


def _predictors(study: Study) -> list[str]:
    return [name for name in PREDICTORS if name in study.ensembles.numbers]
