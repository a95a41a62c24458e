"""What each table and figure of the paper is: its rows with their protocols, its columns with their methods.

Everything here is in the paper's own terms: its data sets, its radii, its numbers of steps. What is made of
them elsewhere than in the paper's setting, `scales` says. One item is not the paper's: `deviations` measures
what each deviation of its published code does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from empirical.attacks import Attack, AttackMethod
from empirical.attacks.presets import (
    ATTACK_PRESETS,
    BLACK_BOX_EPS,
    CONVERGENCE_STEPS,
    FIGURE_4,
    TABLES,
    convergence_attack,
)
from empirical.objectives import OBJECTIVES
from empirical.objectives.trs_official import DEVIATIONS
from empirical.protocols.slices import RAYS

DATASETS: Mapping[str, str] = MappingProxyType(
    {"MNIST": "mnist", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
)


@dataclass(frozen=True)
class Clean:
    """Accuracy of an ensemble on points that nobody attacks."""


@dataclass(frozen=True)
class WhiteBox:
    """An attack on the ensemble itself."""

    attack: AttackMethod


@dataclass(frozen=True)
class Worst:
    """Several attacks on the ensemble, each point under the one that is worst for it."""

    attacks: tuple[AttackMethod, ...]

    @property
    def eps(self) -> float:
        """Their common radius."""
        (eps,) = {attack.eps for attack in self.attacks if isinstance(attack, Attack)}
        return eps


@dataclass(frozen=True)
class BlackBox:
    """Eighteen attempts on surrogates at one radius."""

    eps: float


@dataclass(frozen=True)
class Transfer:
    """An attack on each member, tried on all members."""

    attack: Attack


@dataclass(frozen=True)
class Slice:
    """Decision boundaries around points."""


@dataclass(frozen=True)
class Curves:
    """Similarity, gradient size and smoothness of the members at points that nobody attacks."""


Protocol = Clean | WhiteBox | Worst | BlackBox | Transfer | Slice | Curves

ROBUST = "robust accuracy"
CONDITIONAL = "robust accuracy of the points right without attack"
ACCURACY = "accuracy without attack"
ON_OTHERS = "attack success on another member (mean of the entries off the diagonal)"
ON_ITSELF = "attack success on the attacked member (mean of the diagonal)"
WORST = "worst of the above"
DEFINITION_7 = "transfer to another member as Definition 7 counts it (mean off the diagonal)"
WEAKEST = "accuracy of the weakest member"
# Of `Curves`, each with the field of `empirical.protocols.geometry.Geometry` that it is.
GEOMETRY: Mapping[str, str] = MappingProxyType(
    {
        "mean |cos|": "mean_cosine",
        "largest cosine": "largest_cosine",
        "mean gradient norm": "mean_norm",
        "B, seen": "largest_norm",
        "beta, seen": "sampled_beta",
        "beta, certified": "certified_beta",
    }
)
MEASURES = (
    ROBUST, CONDITIONAL, ACCURACY, WEAKEST, ON_OTHERS, ON_ITSELF, DEFINITION_7, *GEOMETRY, *RAYS
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        dataset: The paper's data set.
        label: The line as the paper names it, such as "PGD (50)".
        parameter: As printed, such as "eps=0.1"; may be empty.
        protocol: How it is measured.
        measure: What is read off, one of `MEASURES`; the last four are distances along a ray in l2.
        own: Whether the user brought it along: the paper has no such line.
    """

    dataset: str
    label: str
    parameter: str
    protocol: Protocol
    measure: str = ROBUST
    own: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it is a rate, shown in per cent."""
        return not isinstance(self.protocol, Slice | Curves)


@dataclass(frozen=True)
class Column:
    """One method.

    Attributes:
        label: As the paper names it.
        method: Our name of it.
        factors: What its parameters are multiplied by, relative to the method's own in the paper.
        parameters: What its parameters are set to.
        recipe: What fields of its training configuration are set to.
        against: Label of the column that it is compared with; empty for most.
        own: Whether the user brought it along: the paper has no such column.
    """

    label: str
    method: str
    factors: tuple[tuple[str, float], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()
    recipe: tuple[tuple[str, Any], ...] = ()
    against: str = ""
    own: bool = False


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        name: Such as "table-1".
        title: What it shows.
        rows: Its lines.
        columns: Its methods.
        tables: Tables with the paper's numbers; empty where it prints none.
        drawing: "curves", "matrices", "slices" or "contrasts" for a figure, empty for a table.
        remark: What a reader has to know; empty for most.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    tables: tuple[str, ...]
    drawing: str = ""
    remark: str = ""

    @property
    def papers(self) -> Item:
        """The item as it is in the paper, without what the user brought along."""
        rows = tuple(row for row in self.rows if not row.own)
        return replace(self, rows=rows, columns=tuple(each for each in self.columns if not each.own))

    def with_own(self, methods: Sequence[str], attacks: Mapping[str, AttackMethod]) -> Item:
        """The item with further columns, and after each group of white-box attacks in a ball further rows.

        Args:
            methods: Training methods by name; one that has a column is not added.
            attacks: Attacks with the fields norm and eps, by the name of their row. They are run at the radii
                of the group, in linf as all of the paper's.

        Raises:
            ValueError: If a method is unknown.
        """
        for name in methods:
            if name not in OBJECTIVES:
                raise ValueError(f"expected methods among {', '.join(OBJECTIVES)}, got {name!r}")
        known = {column.method for column in self.columns}
        columns = tuple(Column(name, name, own=True) for name in methods if name not in known)
        rows: list[Row] = []
        for row in self.rows:
            rows.append(row)
            if isinstance(row.protocol, Worst):
                ball = {"norm": "linf", "eps": row.protocol.eps}
                for name, attack in attacks.items():
                    mine = WhiteBox(replace(attack, **ball))  # type: ignore[type-var]
                    rows.append(replace(row, label=name, protocol=mine, own=True))
        return replace(self, rows=tuple(rows), columns=self.columns + columns)


_NAMES = {
    "Vanilla": "vanilla", "AdaBoost": "adaboost", "GradientBoost": "gradient-boost", "CKAE": "ckae",
    "ADP": "adp", "GAL": "gal", "DVERGE": "dverge", "Cos-only": "cos-only", "Cos-l2": "cos-l2", "TRS": "trs",
    "AdvT": "advt", "TRS+AdvT": "trs-advt",
}  # fmt: skip


def _columns(*labels: str) -> tuple[Column, ...]:
    return tuple(Column(label, _NAMES[label]) for label in labels)


_ALL = _columns(*(label for label in _NAMES if label not in ("Vanilla", "AdvT", "TRS+AdvT")))
_REGULARISED = _columns("ADP", "GAL", "DVERGE", "TRS")
_ADVERSARIAL = _columns("AdvT", "TRS+AdvT")

# The weights and radii of Table 7, relative to the first of each.
_TABLE_7 = tuple(
    Column(
        f"TRS {a:g}/{b:g}/{delta:g}",
        "trs",
        (("lambda_a", a / 100), ("lambda_b", b / 2.5), ("delta_final", delta / 0.3)),
    )
    for a in (100, 500)
    for b in (2.5, 10)
    for delta in (0.3, 0.4)
)


def _white_box(dataset: str, table: str, measure: str = ROBUST) -> tuple[Row, ...]:
    presets = [ATTACK_PRESETS[name] for name in TABLES[table]]
    rows = [
        Row(dataset, preset.row, preset.parameter, WhiteBox(preset.attack), measure) for preset in presets
    ]
    # The paper has no such rows: an attack that ought to be the strongest often is not.
    worst: dict[str, list[AttackMethod]] = {}
    for preset in presets:
        if isinstance(preset.attack, Attack):
            worst.setdefault(preset.parameter, []).append(preset.attack)
    rows += [
        Row(dataset, WORST, parameter, Worst(tuple(attacks)), measure)
        for parameter, attacks in worst.items()
        if len(attacks) > 1
    ]
    return tuple(rows)


def _black_box(dataset: str, measure: str = ROBUST) -> tuple[Row, ...]:
    return tuple(
        Row(dataset, "black box", f"eps={eps:g}", BlackBox(eps), measure)
        for eps in BLACK_BOX_EPS[DATASETS[dataset]]
    )


def _convergence(dataset: str, radii: tuple[float, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(dataset, f"PGD ({steps})", f"eps={eps:g}", WhiteBox(convergence_attack(eps, steps)))
        for eps in radii
        for steps in CONVERGENCE_STEPS
    )


def _with_clean(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return (Row(rows[0].dataset, "clean", "", Clean(), ACCURACY), *rows)


def _transfers(dataset: str) -> tuple[Row, ...]:
    attack = FIGURE_4[DATASETS[dataset]]
    row = Row(dataset, f"PGD ({attack.steps})", f"eps={attack.eps:g}", Transfer(attack))
    return tuple(replace(row, measure=measure) for measure in (ON_OTHERS, DEFINITION_7, ON_ITSELF))


def _slices(dataset: str) -> tuple[Row, ...]:
    return tuple(Row(dataset, f"distance {ray}", "", Slice(), ray) for ray in RAYS)


# What the published code changes about the loss, each a switch, and about the optimiser.
_CLEAN_RECIPE = (("weight_decay", 0.0), ("adam_epsilon", 1e-8))
_OFFICIAL_RECIPE = (("weight_decay", 1e-4), ("adam_epsilon", 1e-7))
_PAPERS, _PUBLISHED = "TRS of the paper", "published code"
_SCALING = ("squared_norms", "batch_gradient")


def _deviating(label: str, loss: Iterable[str], recipe: Iterable[str], against: str = "") -> Column:
    """The published code with these deviations alone."""
    on, changed = set(loss), set(recipe)
    settings = dict(_CLEAN_RECIPE) | {name: value for name, value in _OFFICIAL_RECIPE if name in changed}
    return Column(
        label, "trs-official", parameters=tuple((name, name in on) for name in DEVIATIONS),
        recipe=tuple(settings.items()), against=against,
    )  # fmt: skip


def _deviations() -> tuple[Column, ...]:
    """TRS as in the paper with each deviation alone, and as published without each; two act together."""
    recipe = tuple(name for name, _ in _OFFICIAL_RECIPE)
    sets = {name: {name} for name in (*DEVIATIONS, *recipe)} | {" and ".join(_SCALING): set(_SCALING)}
    # The paper searches for each pair, whatever a small preset does.
    alone = [Column(_PAPERS, "trs", parameters=(("search", "pair"),))]
    without = [_deviating(_PUBLISHED, DEVIATIONS, recipe, _PAPERS)]
    for words, names in sets.items():
        alone.append(_deviating(f"with {words}", names, names, _PAPERS))
        without.append(_deviating(
            f"without {words}", set(DEVIATIONS) - names, set(recipe) - names, _PUBLISHED
        ))  # fmt: skip
    return (*alone, Column("without the search (the driver)", "cos-l2", against=_PAPERS), *without)


def _deviation_rows() -> tuple[Row, ...]:
    transfer = FIGURE_4["mnist"]
    short = replace(transfer, steps=5)
    return (
        Row("MNIST", "clean", "", Clean(), ACCURACY),
        Row("MNIST", "weakest member", "", Clean(), WEAKEST),
        *(row for row in _white_box("MNIST", "table-1") if row.label == "PGD (50)"),
        *(
            Row(
                "MNIST",
                f"transfer, PGD ({attack.steps})",
                "eps=0.2",
                Transfer(replace(attack, eps=0.2)),
                ON_OTHERS,
            )
            for attack in (transfer, short)
        ),
        *(Row("MNIST", measure, "", Curves(), measure) for measure in GEOMETRY),
    )


_TABLE_5 = _with_clean(_black_box("MNIST"))
_TABLE_6 = _with_clean(_black_box("CIFAR-10"))
_BLACK_BOX_COLUMNS = _columns("Vanilla", "ADP", "GAL", "DVERGE", "TRS")

_ITEMS = (
    Item("table-1", "White-box robust accuracy on MNIST", _white_box("MNIST", "table-1"), _ALL, ("table-1",),
         remark="The paper gives EAD's accuracies of TRS, 23.3 and 1.4, for c = 5 and 10 here and for c = 1 "
         "and 5 in Table 7."),
    Item("table-2", "White-box robust accuracy on CIFAR-10", _white_box("CIFAR-10", "table-2"), _ALL,
         ("table-2",)),
    Item("table-3", "Convergence of PGD",
         _convergence("MNIST", (0.1, 0.15)) + _convergence("CIFAR-10", (0.01, 0.02)), _REGULARISED,
         ("table-3",)),
    Item("table-4", "Adversarial training, white box and black box, of points right without attack",
         _white_box("MNIST", "table-4-mnist", CONDITIONAL)
         + _white_box("CIFAR-10", "table-4-cifar10", CONDITIONAL)
         + _black_box("MNIST", CONDITIONAL) + _black_box("CIFAR-10", CONDITIONAL), _ADVERSARIAL,
         ("table-4",)),
    Item("table-5", "Black-box robust accuracy on MNIST", _TABLE_5, _BLACK_BOX_COLUMNS, ("table-5",)),
    Item("table-6", "Black-box robust accuracy on CIFAR-10", _TABLE_6, _BLACK_BOX_COLUMNS, ("table-6",)),
    Item("table-7", "TRS with other weights and radii, white box, on MNIST", _white_box("MNIST", "table-7"),
         _TABLE_7, ("table-7",),
         remark="Columns: lambda_a / lambda_b / delta_M of the paper. Measured with the weights and the "
         "radius of the scale's own TRS, multiplied by the same factors."),
    Item("table-8", "White-box robust accuracy on CIFAR-100", _white_box("CIFAR-100", "table-8"),
         _REGULARISED, ("table-8",)),
    Item("figure-3", "Black-box robust accuracy against the radius", _TABLE_5 + _TABLE_6, _BLACK_BOX_COLUMNS,
         ("table-5", "table-6"), "curves"),
    Item("figure-4", "Transfer between the members of an ensemble",
         _transfers("MNIST") + _transfers("CIFAR-10"),
         _columns("Vanilla", "ADP", "GAL", "DVERGE", "Cos-only", "Cos-l2", "TRS"), (), "matrices",
         remark="Rows of the matrices are surrogates, on which the attack was made, columns are targets. The "
         "paper's caption and text have the two the other way round from one another."),
    Item("figure-5", "Decision boundaries in a plane through a point", _slices("MNIST") + _slices("CIFAR-10"),
         _columns("GAL", "DVERGE", "TRS"), (), "slices",
         remark="Distances in l2 from the point to the first change of the prediction, those beyond the "
         "drawn square counted as its half side. Points may leave the pixel range."),
    Item("deviations", "What each deviation of the published TRS code does", _deviation_rows(), _deviations(),
         (), "contrasts",
         remark="Each deviation of the published code from the paper is switched on alone, and left out of "
         "the published code alone; `empirical/objectives/trs_official.py` says what each is. Its learning "
         "rate falls every 40 epochs, which on MNIST is what the paper states. Its driver script never turns "
         "the search on. Networks without batch statistics are the same in training mode, so that this "
         "deviation changes nothing for them. Transfer is attack success on another member; the published "
         "code measures it with 5 steps in place of 50."),
)  # fmt: skip
ITEMS: Mapping[str, Item] = MappingProxyType({item.name: item for item in _ITEMS})
_PAPER_ITEMS = tuple(name for name in ITEMS if name.startswith(("table-", "figure-")))


def choose_items(names: list[str]) -> tuple[Item, ...]:
    """The items of these names, each once, in the paper's order; "all" is every one of the paper.

    Raises:
        ValueError: If a name is unknown.
    """
    for name in names:
        if name != "all" and name not in ITEMS:
            raise ValueError(f"expected all or an item among {', '.join(ITEMS)}, got {name!r}")
    wanted = [*names, *(_PAPER_ITEMS if "all" in names else ())]
    return tuple(item for item in _ITEMS if item.name in wanted)
