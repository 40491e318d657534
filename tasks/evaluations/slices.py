"""Parts of the eval split in which a feature, or a label, has one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.features import FeatureSpecs
from configs.schema.pipeline import Recipe
from tasks.core.artifacts import SliceMetrics
from tasks.evaluations.measuring import Measure, plain_numbers
from tasks.examples.tf_examples import examples_spec, parsing_spec

MOST_VALUES = 20
"""Values of a feature that are measured: the commonest. Each is an evaluation of its own."""
_PARSED_AT_ONCE = 1024


@dataclass(frozen=True)
class Part:
    """The examples in which a feature has one value."""

    feature: str
    value: str
    examples: int
    file: Path


def split(recipe: Recipe, files: Sequence[Path], scratch: Path) -> list[Part]:
    """Write the examples of each value of each feature in `evaluation.slices` to a file of their own."""
    specs = examples_spec(recipe.data)
    return [
        part
        for feature in recipe.evaluation.slices
        for part in _parts(feature, specs, files, scratch / feature)
    ]


def measure(asked: Measure, checkpoint: Path, parts: Sequence[Part]) -> list[SliceMetrics]:
    """Return the metrics of each part."""
    measured = _metrics(asked, checkpoint, [part.file for part in parts]) if parts else []
    return [
        SliceMetrics(part.feature, part.value, part.examples, metrics)
        for part, metrics in zip(parts, measured, strict=True)
    ]


def _metrics(asked: Measure, checkpoint: Path, files: Sequence[Path]) -> list[dict[str, float]]:
    """Return what `Estimator.evaluate` would say of each file, in one session: it builds one a call."""
    with tf.Graph().as_default():
        tf.compat.v1.train.get_or_create_global_step()
        datasets = [asked.batches([file]) for file in files]
        if not asked.recipe.data.label:  # an iterator that is made of a structure takes no None
            datasets = [dataset.map(lambda features, _: (features,)) for dataset in datasets]
        iterator = tf.compat.v1.data.Iterator.from_structure(
            tf.compat.v1.data.get_output_types(datasets[0]),
            tf.compat.v1.data.get_output_shapes(datasets[0]),
            output_classes=tf.compat.v1.data.get_output_classes(datasets[0]),
        )
        starts = [iterator.make_initializer(dataset) for dataset in datasets]
        estimator = asked.estimator
        features, labels = (*iterator.get_next(), None)[:2]
        spec = estimator.model_fn(features, labels, tf.estimator.ModeKeys.EVAL, estimator.config)
        ops = {"loss": tf.compat.v1.metrics.mean(spec.loss), **spec.eval_metric_ops}
        afresh = tf.compat.v1.local_variables_initializer()
        creator = tf.compat.v1.train.ChiefSessionCreator(
            spec.scaffold, config=estimator.config.session_config,
            checkpoint_filename_with_path=str(checkpoint),
        )  # fmt: skip
        with creator.create_session() as session:
            return [_of_part(session, [start, afresh], ops) for start in starts]


def _of_part(session: Any, begin: Sequence[Any], ops: Mapping[str, Any]) -> dict[str, float]:
    session.run(begin)
    updates = [update for _, update in ops.values()]
    try:
        while True:
            session.run(updates)
    except tf.errors.OutOfRangeError:
        return plain_numbers(session.run({name: value for name, (value, _) in ops.items()}))


def _parts(feature: str, specs: FeatureSpecs, files: Sequence[Path], folder: Path) -> Iterator[Part]:
    """Write a TFRecord file for each of the commonest values, and yield what is in it."""
    counts = Counter(value for _, value in _valued(feature, specs, files))
    chosen = sorted(value for value, _ in counts.most_common(MOST_VALUES))
    paths = {value: folder / f"{index}.tfrecord" for index, value in enumerate(chosen)}
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        writers = {
            value: stack.enter_context(tf.io.TFRecordWriter(str(path))) for value, path in paths.items()
        }
        for record, value in _valued(feature, specs, files):
            if value in writers:
                writers[value].write(record)
    for value in chosen:
        yield Part(feature, _shown(value), counts[value], paths[value])


def _valued(feature: str, specs: FeatureSpecs, files: Sequence[Path]) -> Iterator[tuple[bytes, Any]]:
    """Yield each serialized tf.Example, and the value that `feature` has in it."""
    spec = parsing_spec({feature: specs[feature]})
    for records in tf.data.TFRecordDataset([str(file) for file in files]).batch(_PARSED_AT_ONCE):
        values = tf.reshape(tf.io.parse_example(records, spec)[feature], [-1])
        yield from zip(records.numpy().tolist(), values.numpy().tolist(), strict=True)


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
