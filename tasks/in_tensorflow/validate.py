"""Program of the stage `validate`: the candidate as a server would load it, asked every way it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from configs.schema import DataConfig, ValidationConfig
from tasks import accelerators, comparison, offline_answers, saved_models
from tasks.artifacts import Candidate, Check, Validation
from tasks.errors import Rejected
from tasks.request_inputs import request_inputs
from tasks.signature_runs import Outcome, SignatureRun
from tasks.tf_examples import read_records

_ROUNDING = 1024  # ULPs that adding up in another order can make of a sum near 0


@dataclass(frozen=True)
class _Result:
    check: Check
    outcome: Outcome


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    validation: ValidationConfig, data: DataConfig, candidate: Candidate,
) -> Validation:  # fmt: skip
    """Run every signature over the sample examples in each batch size. Raises Rejected, with all checks."""
    session_config = accelerators.claim("cpu")
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=validation.samples)
    # Parsed here: within the session below, ops would be added to the loaded graph.
    inputs = {each.name: request_inputs(each, records, data.features) for each in candidate.signatures}
    with tf.Graph().as_default(), tf.compat.v1.Session(config=session_config) as session:
        definitions = _load(session, candidate)
        results = [
            result
            for name, arrays in inputs.items()
            for result in _results(
                SignatureRun(session, name, definitions[name], arrays), validation, candidate
            )
        ]
    checks = tuple(result.check for result in results)
    problems = [result.outcome.problem for result in results if result.outcome.problem]
    if problems:
        rest = f" ({len(problems)} of {len(checks)} checks failed)"
        raise Rejected(f"validation: {problems[0]}{rest}", _hint(results), checks)
    return Validation(checks, sum(result.outcome.numbers for result in results))


def _hint(results: list[_Result]) -> str:
    """Tell rounding from a model that answers differently."""
    furthest = max(result.outcome.largest_ulps for result in results)
    if furthest <= _ROUNDING:
        return (
            f"rounding depends on the batch, by {furthest} ULPs at most: where that is acceptable, set "
            f"validation.tolerance and smoke_test.tolerance to {{ulps: {furthest}}} or some more"
        )
    return (
        "expected is what estimator.predict says of the same example: does the model depend on the other "
        "examples of the batch, on random numbers, or on what only training sets?"
    )


def _load(session: Any, candidate: Candidate) -> Mapping[str, Any]:
    """Load the candidate by the tag `serve`; return its SignatureDefs. Raises Rejected."""
    try:
        graph = tf.compat.v1.saved_model.loader.load(session, [saved_models.SERVE], str(candidate.path))
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        check = Check("load", "loads by the tag serve", type(error).__name__, None, passed=False)
        message = f"validation: the candidate {candidate.path} does not load: {error}"
        raise Rejected(message, "a server could not load it either", (check,)) from error
    return graph.signature_def  # type: ignore[no-any-return]


def _results(asked: SignatureRun, validation: ValidationConfig, candidate: Candidate) -> Iterator[_Result]:
    """Yield a result for each batch size."""
    most = comparison.limit(validation.tolerance)
    expected = offline_answers.read(candidate.offline, asked.name)
    for size in validation.batch_sizes:
        outcome = _outcome(asked, expected, asked.examples if size == "all" else size, most)
        yield _Result(_check(asked.name, size, outcome, most), outcome)


def _outcome(asked: SignatureRun, expected: Any, batch_size: int, most_ulps: int) -> Outcome:
    try:
        return asked.compare(expected, batch_size, most_ulps)
    except tf.errors.OpError as error:
        return Outcome(
            f"cannot be run in batches of {batch_size}: {error.message}", comparison.WORLDS_APART, 0
        )


def _check(signature: str, size: int | Literal["all"], outcome: Outcome, most_ulps: int) -> Check:
    name = f"{signature} {'all at once' if size == 'all' else f'in batches of {size}'}"
    rule = f"within {most_ulps} ULPs of estimator.predict" if most_ulps else "equal to estimator.predict"
    far = outcome.largest_ulps >= comparison.WORLDS_APART
    return Check(name, rule, outcome.problem if far else outcome.largest_ulps, most_ulps, not outcome.problem)
