"""Program of the stage `validate`: the candidate as a server would load it, asked every way it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from configs.schema import DataConfig, ValidationConfig
from tasks.answers import comparison, offline_answers, validation_inputs
from tasks.answers.comparison import Limit, Tally
from tasks.answers.request_inputs import request_inputs
from tasks.answers.signature_runs import Arrays, Outcome, SignatureRun
from tasks.artifacts import Candidate, Check, Run, Validation
from tasks.errors import Rejected
from tasks.estimators import accelerators
from tasks.examples.tf_examples import read_records
from tasks.exports import saved_models

_ROUNDING = 1024  # ULPs that adding up in another order can make of a sum near 0


@dataclass(frozen=True)
class _Result:
    check: Check
    outcome: Outcome


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    validation: ValidationConfig, data: DataConfig, candidate: Candidate, run: Run | None = None,
) -> Validation:  # fmt: skip
    """Run every signature over the sample examples in each batch size, and what `validation.inputs` give.

    `run` is where the files of those are, and their outputs go. Raises Rejected, with all checks.
    """
    session_config = accelerators.claim("cpu")
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=validation.samples)
    # Parsed here: within the session below, ops would be added to the loaded graph.
    inputs = {each.name: request_inputs(each, records, data.features) for each in candidate.signatures}
    results: list[_Result] = []
    for tags in candidate.tag_sets:
        if saved_models.SERVE in tags.split(","):
            results += _of_meta_graph(tags, inputs, validation, candidate, session_config)
    asked = validation_inputs.checks(validation, candidate, run) if run is not None else []
    checks = (*(result.check for result in results), *asked)
    tallies = [result.outcome.tally for result in results]
    problems = [tally.problem for tally in tallies if tally.problem]
    problems += [f"{check.name}: {check.rule}: {check.observed}" for check in asked if not check.passed]
    if problems:
        rest = f" ({len(problems)} of {len(checks)} checks failed)"
        raise Rejected(f"validation: {problems[0]}{rest}", _hint(results), checks)
    return Validation(checks, sum(tally.numbers for tally in tallies))


def _of_meta_graph(
    tags: str, inputs: Mapping[str, Arrays], validation: ValidationConfig, candidate: Candidate,
    session_config: Any,
) -> list[_Result]:  # fmt: skip
    """Run every signature of one MetaGraph, in a session of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session(config=session_config) as session:
        definitions = _load(session, candidate, tags)
        return [
            result
            for name, arrays in inputs.items()
            if name in definitions
            for result in _results(
                SignatureRun(session, name, definitions[name], arrays), tags, validation, candidate
            )
        ]


def _hint(results: list[_Result]) -> str:
    """Tell rounding from a model that answers differently."""
    if all(result.check.passed for result in results):
        return "estimator.predict agrees; what the outputs were is in the folder that the check names"
    furthest = max(result.outcome.tally.largest_ulps for result in results)
    if furthest <= _ROUNDING:
        return (
            f"rounding depends on the batch, by {furthest} ULPs at most: where that is acceptable, set "
            f"validation.tolerance and smoke_test.tolerance to {{ulps: {furthest}}} or some more"
        )
    return (
        "expected is what estimator.predict says of the same example: does the model depend on the other "
        "examples of the batch, on random numbers, or on what only training sets?"
    )


def _load(session: Any, candidate: Candidate, tags: str) -> Mapping[str, Any]:
    """Load one MetaGraph of the candidate by its tags; return its SignatureDefs. Raises Rejected."""
    try:
        graph = tf.compat.v1.saved_model.loader.load(session, tags.split(","), str(candidate.path))
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        check = Check("load", f"loads by the tags {tags}", type(error).__name__, None, passed=False)
        message = f"validation: the candidate {candidate.path} does not load: {error}"
        raise Rejected(message, "a server could not load it either", (check,)) from error
    return graph.signature_def  # type: ignore[no-any-return]


def _results(
    asked: SignatureRun, tags: str, validation: ValidationConfig, candidate: Candidate
) -> Iterator[_Result]:
    """Yield a result for each batch size; what `serve` answers is named by the signature alone."""
    name = asked.name if tags == saved_models.SERVE else f"{tags}: {asked.name}"
    most = comparison.limit(validation.tolerance)
    expected = offline_answers.read(candidate.offline, asked.name)
    for size in validation.batch_sizes:
        outcome = _outcome(asked, expected, asked.examples if size == "all" else size, most)
        if tags == saved_models.SERVE and outcome.answers:
            offline_answers.write_in_process(candidate.offline, asked.name, size, outcome.answers)
        yield _Result(_check(name, size, outcome, most), outcome)


def _outcome(asked: SignatureRun, expected: Any, batch_size: int, most: Limit) -> Outcome:
    try:
        return asked.compare(expected, batch_size, most)
    except tf.errors.OpError as error:
        tally = Tally(most)
        tally.largest_ulps = comparison.WORLDS_APART
        tally.fail(f"cannot be run in batches of {batch_size}: {error.message}")
        return Outcome(tally, {})


def _check(signature: str, size: int | Literal["all"], outcome: Outcome, most: Limit) -> Check:
    name = f"{signature} {'all at once' if size == 'all' else f'in batches of {size}'}"
    tally = outcome.tally
    observed = tally.observed if tally.largest_ulps else 0
    return Check(name, f"{most.rule} estimator.predict", observed, most.shown, not tally.problem)
