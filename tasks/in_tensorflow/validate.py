"""Program of the stage `validate`: the candidate as a server would load it, run in every signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import DataConfig, ValidationConfig
from tasks.answers import comparison, limits, numerics, offline_answers, validation_inputs
from tasks.answers.comparison import Arrays, Comparison
from tasks.answers.held_to import HeldTo, summary
from tasks.answers.limits import Limits
from tasks.answers.offline_answers import Expected
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Candidate, Check, Run, Signature, Validation
from tasks.core.errors import Rejected
from tasks.estimators import accelerators
from tasks.examples.tf_examples import read_records
from tasks.exports import op_policy, saved_models
from tasks.exports.signature_runs import SignatureRun


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    validation: ValidationConfig, data: DataConfig, candidate: Candidate, run: Run | None = None,
) -> Validation:  # fmt: skip
    """Run every signature over the sample examples in each batch size, and `validation.inputs`.

    `run` is where the files of those are, and their outputs go. Leaves in `candidate.offline` what the export
    answered. Raises Rejected, with all checks.
    """
    session_config = accelerators.claim("cpu")
    op_policy.require_contained(candidate.path, validation.allow_ops)
    records = read_records([offline_answers.examples_file(candidate.offline)])
    # Parsed here: within the session below, ops would be added to the loaded graph.
    inputs = {each.name: request_inputs(each, records, data.features) for each in candidate.signatures}
    held_to = limits.read(candidate.offline)
    checks = list(_reproducible(held_to))
    rules: list[HeldTo] = []
    total = Comparison()
    for tags in candidate.tag_sets:
        if saved_models.SERVE in tags.split(","):
            for check, rule, found in _of_meta_graph(tags, inputs, candidate, held_to, session_config):
                checks.append(check)
                rules.append(rule)
                total += found
    limits.write_exported(candidate.offline, numerics.conditions())
    checks += validation_inputs.checks(validation, candidate, run) if run is not None else []
    missed = [check for check in checks if not check.passed]
    if missed:
        rest = f" ({len(missed)} of {len(checks)} checks failed)"
        raise Rejected(
            f"validation: {missed[0].name}: {missed[0].observed}{rest}", _hint(missed[0]), tuple(checks)
        )
    return Validation(tuple(checks), total.numbers, summary(total, rules), candidate.answered_by)


def _reproducible(held_to: Limits) -> Iterator[Check]:
    """Yield a failed check for each output that `estimator.predict` does not repeat closely enough."""
    for signature, outputs in held_to.outputs.items():
        for alias, limit in outputs.items():
            if limit.too_far is not None:
                observed = f"predictions of the same examples differ by {limit.too_far:.2g} of scale"
                rule = "is reproducible"
                yield Check(
                    f"{signature} {alias}", rule, observed, f"{limit.rtol:.2g} of scale", passed=False
                )


def _hint(missed: Check) -> str:
    if missed.rule == "is reproducible":
        return (
            "between batch sizes, or two processes: does the model depend on the other examples of the "
            "batch, on random numbers such as dropout, or on what only training sets? If it is meant to, "
            "set answers.tolerance"
        )
    if missed.rule.startswith(("runs", "equals the file")):
        return "what the outputs were is in the folder that the check names"
    return (
        "expected is what estimator.predict says of the same examples: is another checkpoint, receiver, "
        "vocabulary or default exported? If the difference is rounding, set answers.tolerance"
    )


def _of_meta_graph(
    tags: str, inputs: Mapping[str, Arrays], candidate: Candidate, held_to: Limits, session_config: Any
) -> list[tuple[Check, HeldTo, Comparison]]:
    """Run every signature of one MetaGraph, in a session of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session(config=session_config) as session:
        definitions = _load(session, candidate, tags)
        return [
            _compared(SignatureRun(session, each.name, definitions[each.name], inputs[each.name]), each, tags,
                      candidate, held_to)
            for each in candidate.signatures
            if each.name in definitions
        ]  # fmt: skip


def _load(session: Any, candidate: Candidate, tags: str) -> Mapping[str, Any]:
    """Load one MetaGraph of the candidate by its tags; return its SignatureDefs. Raises Rejected."""
    try:
        graph = tf.compat.v1.saved_model.loader.load(session, tags.split(","), str(candidate.path))
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        check = Check("load", f"loads by the tags {tags}", type(error).__name__, None, passed=False)
        message = f"validation: the candidate {candidate.path} does not load: {error}"
        raise Rejected(message, "a server could not load it either", (check,)) from error
    return graph.signature_def  # type: ignore[no-any-return]


def _compared(
    asked: SignatureRun, signature: Signature, tags: str, candidate: Candidate, held_to: Limits
) -> tuple[Check, HeldTo, Comparison]:
    """Run the signature in each batch size; the answers by the tag `serve` are kept for the canary."""
    name = signature.name if tags == saved_models.SERVE else f"{tags}: {signature.name}"
    expected = Expected.of(candidate.offline, "predicted", signature)
    known = limits.complete(held_to, signature.name, expected.whole)
    rule = HeldTo.of(known, signature.name, numerics.conditions(), alone=True)
    total = Comparison()
    for size in expected.by_size:
        place = f"batch of {size}, "
        parts: list[Arrays] = []
        try:
            for first, answers in asked.batches(size):
                parts.append(answers)
                total += _one_batch(
                    asked, expected, rule, first, min(first + size, asked.examples), answers, place
                )
        except tf.errors.OpError as error:
            total += comparison.failed(f"cannot be run in batches of {size}: {error.message}")
            continue
        if tags == saved_models.SERVE:
            whole = asked.whole(parts)
            offline_answers.write(candidate.offline, "exported", signature.name, size, whole)
    return rule.check(name, candidate.answered_by, total), rule, total


def _one_batch(
    asked: SignatureRun, expected: Expected, rule: HeldTo, first: int, last: int, answers: Arrays, place: str
) -> Comparison:
    if problem := asked.unlike_stated(answers):
        return comparison.failed(f"{place}{problem}")
    rows, alike = expected.rows(first, last)
    return rule.compare(rows, answers, alike=alike, place=place, first=first)
