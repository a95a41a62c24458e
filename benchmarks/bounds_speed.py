"""Speed of the vectorised statements: parameter points a second on one core.

Run `python benchmarks/bounds_speed.py`; it writes `benchmarks/results/bounds_speed.json`. A point is one full
set of quantities, drawn at random, read from memory and evaluated in double precision, hypotheses checked
(`gated`) or not (`formula`). The best of several runs is kept: the machine may be busy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from recording import RESULTS, record

from bounds.quantities import Quantity, Range
from bounds.registry import STATEMENTS

POINTS = 2_000_000
RUNS = 7
RESULT = RESULTS / "bounds_speed.json"


def draw(quantity: Quantity, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random admissible numbers."""
    match quantity.range:
        case Range.COSINE:
            return rng.uniform(-1, 1, POINTS)
        case Range.COUNT:
            return rng.integers(2, 10, POINTS).astype(float)
        case Range.REAL:
            return rng.uniform(0, 5, POINTS)
        case _:
            return rng.uniform(0, 1, POINTS)


def rate(function: Callable[..., object], arrays: dict[str, NDArray[np.float64]]) -> float:
    """Points a second of the best run, by the process's own time: one core, whoever else is working."""
    function(**arrays)  # compile first
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        function(**arrays)
        seconds.append(time.process_time() - start)
    return POINTS / min(seconds)


def main() -> int:
    """Measure every statement and write the result."""
    rng = np.random.default_rng(0)
    rates = {}
    for key, statement in STATEMENTS.items():
        arrays = {quantity.name: draw(quantity, rng) for quantity in statement.quantities}
        formula, gated = rate(statement.formula, arrays), rate(statement, arrays)
        rates[key] = {"formula_points_per_second": round(formula), "gated_points_per_second": round(gated)}
        print(
            f"{key:24} formula {formula / 1e6:7.1f}  gated {gated / 1e6:7.1f}  million points a second",
            file=sys.stderr,
        )
    record(RESULT, 1, {"points": POINTS, "runs": RUNS, "statements": rates}, "numpy", "sympy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
