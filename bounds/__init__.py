"""The mathematics of adversarial transferability: what each statement says, when it applies, what it gives.

No deep-learning library is imported here. Proofs, errata and certificates are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bounds.estimate import Estimate
from bounds.evaluation import BoundValue, Grade, Status, evaluate
from bounds.quantities import Quantity, Range
from bounds.registry import STATEMENTS
from bounds.statement import Hypothesis, Sense, Statement, Term, Trend, Variant, Verdict

#: Public names that need a solver or more, and the module each comes from.
_LAZY = {
    "ERRATA": "bounds.errata",
    "prove": "bounds.proofs",
    "transfer_certificate": "bounds.certificate",
    "worlds": "bounds.worlds",
}

__all__ = [
    "ERRATA",
    "STATEMENTS",
    "BoundValue",
    "Estimate",
    "Grade",
    "Hypothesis",
    "Quantity",
    "Range",
    "Sense",
    "Statement",
    "Status",
    "Term",
    "Trend",
    "Variant",
    "Verdict",
    "evaluate",
    "prove",
    "transfer_certificate",
    "worlds",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bounds' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"bounds.{name}" else getattr(module, name)
