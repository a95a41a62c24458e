"""Machine-checked proofs of the statements, and of what they do not say.

`prove` takes a statement and puts its own formula, translated for the solver, at the end of the proof: an
edited formula is not the proved one. Vectors enter through their Gram matrix, so that nothing depends on
the dimension; finite distributions through group masses; what the machine does not check is in each proof's
`scope`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bounds.proofs.engine import DEFAULT_TIMEOUT, StepResult, Verdict, run
from bounds.proofs.registry import PROOFS, Task
from bounds.registry import STATEMENTS
from bounds.statement import Statement

__all__ = ["PROOFS", "Proof", "StepResult", "Task", "Verdict", "prove", "prove_all"]


@dataclass(frozen=True)
class Proof:
    """What was proved, by which engine, in what time.

    Attributes:
        id: Key in `PROOFS`.
        statement: Id of the statement whose formula the proof is about.
        claim: What was to be proved, in words.
        formula: The exact formula of every step: hypotheses, a turnstile, conclusion.
        engine: The programs that checked it.
        verdict: Proved (every step was), refuted (some step was; see `counterexample`) or unknown.
        seconds: Time taken.
        satisfiable: Whether the hypotheses of every step can hold, shown by `witness`: no step is vacuous.
        witness: For each step, values that meet its hypotheses, chosen away from degenerate corners.
        counterexample: Values that meet the hypotheses and break the conclusion of a refuted step.
        scope: What the machine checked and what stays a written argument.
        steps: Each step's own result.
    """

    id: str
    statement: str
    claim: str
    formula: str
    engine: str
    verdict: Verdict
    seconds: float
    satisfiable: bool
    witness: Mapping[str, Mapping[str, str]]
    counterexample: Mapping[str, str] | None
    scope: str
    steps: tuple[StepResult, ...]


def prove(statement: Statement | str, *, timeout: float = DEFAULT_TIMEOUT) -> Proof:
    """Run the machine proof of a statement, or of a further claim of `PROOFS`.

    Args:
        statement: Id of a statement or of a proof, or a statement. A statement of a known id with another
            formula is put through the same steps, and refuted where the formula claims too much.
        timeout: Seconds for each question put to the solver; one that takes longer is answered "unknown".

    Returns:
        The proof. It is not cached: the time is that of this run.

    Raises:
        ValueError: If there is no proof of that id.
    """
    given = statement if isinstance(statement, Statement) else None
    name = given.id if given else str(statement)
    if name not in PROOFS:
        raise ValueError(f"expected one of the proofs {', '.join(PROOFS)}; got {name!r}")
    task = PROOFS[name]
    results = tuple(run(step, timeout) for step in task.steps(given or STATEMENTS[task.statement]))
    refuted = [result for result in results if result.verdict is Verdict.REFUTED]
    return Proof(
        id=name,
        statement=task.statement,
        claim=task.claim,
        formula="\n".join(f"{result.name}: {result.formula}" for result in results),
        engine="; ".join(sorted({result.engine for result in results})),
        verdict=_overall(results),
        seconds=sum(result.seconds for result in results),
        satisfiable=all(result.satisfiable for result in results),
        witness={result.name: result.witness for result in results},
        counterexample=refuted[0].counterexample if refuted else None,
        scope=task.scope,
        steps=results,
    )


def prove_all(*, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Proof]:
    """Run every proof of `PROOFS`; `timeout` as for `prove`."""
    return {name: prove(name, timeout=timeout) for name in PROOFS}


def _overall(results: tuple[StepResult, ...]) -> Verdict:
    verdicts = {result.verdict for result in results}
    if Verdict.REFUTED in verdicts:
        return Verdict.REFUTED
    return Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts else Verdict.PROVED
