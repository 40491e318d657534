"""The version that is served now, measured on tonight's eval split.

Its variables are those of the very SavedModel that is served: `variables/variables` is a checkpoint as
tf.train.Saver writes it. Metrics are not in a SavedModel, so they come from an Estimator: tonight's, or
that of the run which published the version, whichever gives the answers of the served model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from configs.schema.answers import Near
from tasks.answers import comparison, limits
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Baseline
from tasks.evaluations import slices
from tasks.evaluations.measuring import Measure
from tasks.evaluations.slices import Part
from tasks.examples.tf_examples import read_records, write_records
from tasks.exports import saved_models
from tasks.exports.predictions import predict_signatures

_ASKED = 32
"""Examples that tell whether an Estimator is the served model."""
_NEAR = Near(rtol=1e-4)  # another device, or release, rounds differently


def measure(
    version: int, folder: Path, builders: Mapping[str, Callable[[], Measure]],
    files: Sequence[Path], scratch: Path, parts: Sequence[Part] = (),
) -> Baseline:  # fmt: skip
    """Return its metrics, or why there are none; never raises for what is wrong with a version.

    `parts` are slices that are measured besides, in the same way.

    `builders` says, by what it is called, how an Estimator is made; the first that fits is taken.
    """
    asked = scratch / "asked.tfrecord"
    write_records(asked, read_records(files, limit=_ASKED))
    problems = []
    for name, build in builders.items():
        try:
            measured = build()
            _require_its_answers(measured, folder, asked)
            metrics = measured.metrics(variables(folder), files)
            of_parts = tuple(slices.measure(measured, variables(folder), parts))
            told = f"re-evaluated on the same examples by {name}; its answers match what is served"
            return Baseline(version, metrics, told, of_parts)
        except Exception as error:
            problems.append(f"{name}: {_brief(error)}")
    return Baseline(version, {}, f"not measured: {'; '.join(problems)}")


def variables(folder: Path) -> Path:
    """Return the checkpoint in a SavedModel."""
    return folder / "variables" / "variables"


def _brief(error: Exception) -> str:
    lines = str(getattr(error, "message", error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _AnswersOtherwise(Exception):
    """The Estimator is not the model that is served."""


def _require_its_answers(measured: Measure, folder: Path, asked: Path) -> None:
    """Raise unless the Estimator, with the version's variables, answers as the SavedModel does."""
    data = measured.recipe.data
    records = read_records([asked])
    sizes = (len(records),)
    offline = predict_signatures(
        measured.estimator, variables(folder), asked, data, sizes, len(records), measured.preprocess
    )
    served = _served_answers(folder, records, measured)
    compared = 0
    for name, outputs in served.items():
        predicted = offline.get(name, {}).get(len(records), {})
        expected = {alias: predicted[alias] for alias in outputs.keys() & predicted.keys()}
        near = {alias: limits.derive(_NEAR, {1: array}, None) for alias, array in expected.items()}
        found = comparison.compare(expected, outputs, near, bits=False, place=f"{name}, ")
        compared += len(expected)
        if found.problem:
            raise _AnswersOtherwise(f"the Estimator's answers are not the version's: {found.problem}")
    if not compared:
        raise _AnswersOtherwise("the version has no signature that the Estimator knows")


def _served_answers(
    folder: Path, records: Sequence[bytes], measured: Measure
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return what each signature says of serialized examples, by the head that it serves, and alias."""
    features = measured.recipe.data.features
    found: dict[str, dict[str, NDArray[Any]]] = {}
    definitions = saved_models.serving_signature_defs(folder)
    inputs = {
        name: request_inputs(saved_models.signature(name, each, _receiver(each, features)), records, features)
        for name, each in definitions.items()
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.loader.load(session, [saved_models.SERVE], str(folder))
        for name, each in definitions.items():
            feed = {each.inputs[alias].name: array for alias, array in inputs[name].items()}
            fetch = {alias: info.name for alias, info in each.outputs.items()}
            found.setdefault(name.partition(":")[2] or name, session.run(fetch, feed))
    return found


def _receiver(definition: Any, features: Mapping[str, Any]) -> Any:
    return "raw" if set(definition.inputs) <= set(features) else "parsing"
