"""Time the transfer certificates, and compare them with a solver called once per sample.

    OMP_NUM_THREADS=1 python benchmarks/certificates.py [--output benchmarks/results/certificates.json]

Every figure is a median over repetitions; processor time is what to compare on a machine that others use.
"solver" is what one would write without a closed form: scipy's NNLS (l2) or HiGHS (linf) in a loop, on a
subsample, scaled to seconds per thousand
    certificates.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recording import RESULTS, record, say
from scipy.optimize import linprog, nnls

from bounds.certificate import Norm, certify_untargeted, transfer_certificate
from bounds.matrix_curvature import low_rank_certificate
from bounds.must_transfer import must_transfer

SCHEMA = 1
REPETITIONS = 5
EPS, KAPPA = 0.5, 0.1


def timed(function: Callable[[], Any], repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median wall and processor time of a call, after one call that is not counted."""
    function()
    wall, processor = [], []
    for _ in range(repetitions):
        start = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return {"wall_seconds": float(np.median(wall)), "cpu_seconds": float(np.median(processor))}


def problem(
    n: int, shape: tuple[int, ...], dimension: int, *, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Margins (n, *shape) around `margin` and gradients (n, *shape, d) of norm about 1."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(n, *shape, dimension)) / np.sqrt(dimension)
    return rng.normal(margin, 0.3, size=(n, *shape)), gradients


def solve_l2(margins: np.ndarray, gradients: np.ndarray) -> list[bool]:
    """The l2 certificate by NNLS, sample by sample: is the nearest joint crossing outside the ball?"""
    verdicts = []
    for m, g in zip(margins - KAPPA * EPS**2 / 2, gradients, strict=True):
        system = np.vstack([-g.T, m[None]])
        goal = np.append(np.zeros(g.shape[1]), 1.0)
        residual = system @ nnls(system, goal)[0] - goal
        far = np.linalg.norm(residual) < 1e-9
        verdicts.append(bool(far or np.linalg.norm(residual[:-1] / residual[-1]) > EPS))
    return verdicts


def solve_linf(margins: np.ndarray, gradients: np.ndarray) -> list[bool]:
    """The linf certificate by a linear program, sample by sample."""
    verdicts = []
    for m, g in zip(margins - KAPPA * EPS**2 / 2, gradients, strict=True):
        models, d = g.shape
        objective, rows = np.append(np.zeros(d), 1.0), np.hstack([g, -np.ones((models, 1))])
        verdicts.append(bool(linprog(objective, rows, -m, bounds=[(-EPS, EPS)] * d + [(None, None)]).fun > 0))
    return verdicts


def all_label_pairs(dimension: int, dtype: type, margin: float) -> dict[str, Any]:
    """Two models, ten classes: 10,000 samples times 81 pairs of wrong labels."""
    margins, gradients = problem(10_000, (2, 9), dimension, margin=margin)
    gradients = gradients.astype(dtype)
    times = timed(lambda: certify_untargeted(margins, gradients, KAPPA, EPS))
    rate = float(certify_untargeted(margins, gradients, KAPPA, EPS).certified.mean())
    return {
        "case": "two models, l2, 10,000 samples x 81 label pairs",
        "dimension": dimension,
        "dtype": np.dtype(dtype).name,
        "certified_rate": rate,
        **times,
    }


def against_solver(
    models: int, norm: Norm, dimension: int, margin: float, n: int = 2000, sub: int = 200
) -> dict[str, Any]:
    """One choice of labels, batched, against the solver loop; and that they agree."""
    margins, gradients = problem(n, (models,), dimension, margin=margin)
    solver = solve_l2 if norm == "l2" else solve_linf
    batched = timed(lambda: transfer_certificate(margins, gradients, KAPPA, EPS, norm), 3)["cpu_seconds"] / n
    start = time.process_time()
    verdicts = np.array(solver(margins[:sub], gradients[:sub]))
    looped = (time.process_time() - start) / sub
    certified = transfer_certificate(margins, gradients, KAPPA, EPS, norm).certified
    return {
        "case": f"{models} models, {norm}, batched against a solver loop",
        "dimension": dimension,
        "certified_rate": float(certified.mean()),
        "disagreements": int((certified[:sub] != verdicts).sum()),
        "cpu_seconds_per_thousand": 1000 * batched,
        "solver_cpu_seconds_per_thousand": 1000 * looped,
        "speedup": looped / batched,
    }


def inner_side() -> dict[str, Any]:
    """R7 for two models."""
    margins, gradients = problem(10_000, (2,), 64, margin=0.3)
    times = timed(lambda: must_transfer(margins, gradients, KAPPA, EPS))
    return {"case": "must transfer, two models, l2, 10,000 samples", "dimension": 64, **times}


def matrix_side(rank: int, dimension: int, margin: float, n: int = 300) -> dict[str, Any]:
    """R9 for two networks with one hidden layer of `rank` units, against R1 with the spectral norm."""
    margins, gradients = problem(n, (2,), dimension, margin=margin)
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(2, rank, dimension)) / np.sqrt(dimension)
    weights = 4.0 / rank * rng.random((n, 2, rank))
    times = timed(lambda: low_rank_certificate(margins, gradients, factors, weights, EPS), 3)
    matrices = np.einsum("nik,ikd,ike->nide", weights, factors, factors, optimize=True)
    scalar = transfer_certificate(margins, gradients, np.linalg.eigvalsh(matrices)[..., -1], EPS).certified
    matrix = low_rank_certificate(margins, gradients, factors, weights, EPS).certified
    return {
        "case": "R9, two models, low-rank curvature",
        "dimension": dimension,
        "rank": rank,
        "samples": n,
        "certified_rate_R1": float(scalar.mean()),
        "certified_rate_R9": float(matrix.mean()),
        "lost_by_R9": int((scalar & ~matrix).sum()),
        "cpu_milliseconds_per_sample": times["cpu_seconds"] / n * 1000,
    }


def main() -> None:
    """Run every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS / "certificates.json"
    parser.add_argument("--output", type=Path, default=default, help="where the JSON goes")
    output = parser.parse_args().output
    cases = [
        all_label_pairs(64, np.float64, 2.0),
        all_label_pairs(64, np.float64, 0.8),
        all_label_pairs(784, np.float64, 2.0),
        all_label_pairs(784, np.float32, 2.0),
        against_solver(2, "l2", 784, 0.4),
        against_solver(3, "l2", 784, 0.3),
        against_solver(8, "l2", 64, 0.0),
        against_solver(2, "linf", 784, 7.9),
        against_solver(3, "linf", 64, 1.9),
        inner_side(),
        matrix_side(128, 64, 0.4),
        matrix_side(16, 784, 0.4),
    ]
    record(output, SCHEMA, {"cases": cases}, "numpy", "scipy")
    for case in cases:
        say(case)


if __name__ == "__main__":
    main()
