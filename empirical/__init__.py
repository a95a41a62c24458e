"""Real ensembles: data, models, training, attacks, measured transfer, and its comparison with the theory."""

from importlib import import_module
from typing import Any

_PLACES = {
    "compare": "empirical.comparison.compare",
    "compare_models": "empirical.comparison.own_models",
    "measure_transfer": "empirical.transfer",
    "train": "empirical.training",
}

__all__ = ["compare", "compare_models", "measure_transfer", "train"]


def __getattr__(name: str) -> Any:
    """A public function, imported when it is asked for: the commands' help must not wait for torch."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
