"""Real ensembles: data, models, training, attacks, measured transfer, and its comparison with the theory."""

from typing import Any

__all__ = ["compare_models"]


def __getattr__(name: str) -> Any:
    """`compare_models`, imported when it is asked for: the commands' help must not wait for torch."""
    if name == "compare_models":
        from empirical.own_models import compare_models

        return compare_models
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
