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
    "PROOFS": "bounds.proofs",
    "Certificate": "bounds.certificate",
    "certified_transfer_rate": "bounds.transfer_rate",
    "certify_targeted": "bounds.certificate",
    "certify_untargeted": "bounds.certificate",
    "families": "bounds.families",
    "low_rank_certificate": "bounds.matrix_curvature",
    "matrix_certificate": "bounds.matrix_curvature",
    "mean_interval": "bounds.intervals",
    "prove": "bounds.proofs",
    "prove_all": "bounds.proofs",
    "simultaneous_proportions": "bounds.intervals",
    "transfer_certificate": "bounds.certificate",
    "worlds": "bounds.worlds",
}

__all__ = [
    "ERRATA",
    "PROOFS",
    "STATEMENTS",
    "BoundValue",
    "Certificate",
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
    "certified_transfer_rate",
    "certify_targeted",
    "certify_untargeted",
    "evaluate",
    "families",
    "low_rank_certificate",
    "matrix_certificate",
    "mean_interval",
    "prove",
    "prove_all",
    "simultaneous_proportions",
    "transfer_certificate",
    "worlds",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bounds' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"bounds.{name}" else getattr(module, name)
