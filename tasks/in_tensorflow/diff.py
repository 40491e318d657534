"""Program `diff`: two versions, asked about the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tasks.answers import answer_differences, limits, offline_answers
from tasks.answers.comparison import Arrays
from tasks.answers.kept_answers import Kept
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import OutputDifference
from tasks.core.errors import ModelError
from tasks.estimators import accelerators
from tasks.examples.tf_examples import read_records
from tasks.exports import saved_models
from tasks.exports.signature_runs import SignatureRun


def run(
    _progress: Callable[[Mapping[str, Any]], None], first: Kept, second: Kept, samples: int
) -> tuple[OutputDifference, ...]:
    """Ask both, in every signature that both have, about the first `samples` examples kept in the second."""
    records = read_records([offline_answers.examples_file(second.candidate.offline)], limit=samples)
    names = {each.name for each in first.candidate.signatures} & {
        each.name for each in second.candidate.signatures
    }
    known = limits.read(second.candidate.offline)
    one, other = (_answers(each, sorted(names), records) for each in (first, second))
    return tuple(
        each
        for name in sorted(names)
        for each in answer_differences.of_signature(name, one[name], other[name], known.of(name))
    )


def _answers(kept: Kept, names: list[str], records: list[bytes]) -> dict[str, Arrays]:
    signatures = {each.name: each for each in kept.candidate.signatures}
    inputs = {name: request_inputs(signatures[name], records, kept.data.features) for name in names}
    session_config = accelerators.claim("cpu")
    with tf.Graph().as_default(), tf.compat.v1.Session(config=session_config) as session:
        try:
            path = str(kept.candidate.path)
            graph = tf.compat.v1.saved_model.loader.load(session, [saved_models.SERVE], path)
            definitions = graph.signature_def
            return {
                name: SignatureRun(session, name, definitions[name], arrays).answers()
                for name, arrays in inputs.items()
            }
        except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{kept.candidate.path} cannot be asked: {error}") from error
