"""That `auto` is not blind: wrong candidates, each changed in one thing, and what the changes come to.

`pytest -s tests/test_mutations.py` prints both tables; docs/how-to/answers.md shows them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from pipelines import exported_digits, run_of, trained_digits, written

from configs.schema.features import FeatureSpec
from configs.schema.pipeline import AnswersConfig, ValidationConfig
from tasks.answers import comparison, limits, numerics, offline_answers
from tasks.core.artifacts import Candidate
from tasks.core.errors import Rejected, SlipwayError
from tasks.examples.tf_examples import read_records, serialize, write_records
from tasks.in_tensorflow import evaluate, export, ingest, train
from tasks.in_tensorflow import validate as program
from tasks.processes.tensorflow_process import ignore_progress

Values = dict[str, NDArray[Any]]
HIDDEN, LOGITS = "dnn/hiddenlayer_0", "dnn/logits"
ROWS: list[tuple[str, str]] = []
"""What was changed, and how the candidate was rejected."""


@pytest.fixture(scope="module", autouse=True)
def printed() -> Iterator[None]:
    """Print the table when all rows are known."""
    yield
    rows = "\n".join(f"| {name} | {how} |" for name, how in ROWS)
    sys.stdout.write(f"\n\n| changed in the candidate | rejected for |\n|---|---|\n{rows}\n")


def rejected(name: str, candidate: Candidate, data: Any) -> None:
    """Require that the candidate is rejected for its answers; note why."""
    with pytest.raises(Rejected) as caught:
        program.run(ignore_progress, ValidationConfig(), data, candidate)
    ROWS.append(
        (name, caught.value.message.removeprefix("validation: ").partition(" (")[0].replace("|", "/"))
    )


def with_variables(folder: Path, candidate: Candidate, change: Callable[[Values], None]) -> Candidate:
    """Return a copy of the candidate whose variables are changed in place."""
    shutil.copytree(candidate.path, folder / "candidate")
    prefix = str(folder / "candidate" / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    change(values)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {name: tf.compat.v1.Variable(value) for name, value in values.items()}
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables, sharded=True).save(session, prefix, write_meta_graph=False)
    return replace(candidate, path=folder / "candidate")


def with_outputs(folder: Path, candidate: Candidate, change: Callable[[Any], Any]) -> Candidate:
    """Return a copy whose float outputs are changed by ops that are added to its graph."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(candidate.path))
        signatures = {}
        for name in {each.name for each in candidate.signatures}:
            definition = loaded.signature_def[name]
            signatures[name] = type(definition).FromString(definition.SerializeToString())
            for info in signatures[name].outputs.values():
                tensor = session.graph.get_tensor_by_name(info.name)
                if tensor.dtype == tf.float32:
                    changed = change(tensor)
                    changed.set_shape(tensor.shape)
                    info.CopyFrom(tf.compat.v1.saved_model.build_tensor_info(changed))
        builder = tf.compat.v1.saved_model.Builder(str(folder / "candidate"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return replace(candidate, path=folder / "candidate")


def live_pixels() -> list[int]:
    """The pixels, those with the largest values first: many are black in every sample."""
    records = read_records([offline_answers.examples_file(exported_digits().offline)])
    rows = [tf.train.Example.FromString(each).features.feature["pixels"].float_list.value for each in records]
    return [int(pixel) for pixel in np.argsort(-np.abs(np.array(rows)).sum(axis=0))]


def at(kind: str, factor: float) -> Callable[[Values], None]:
    """Change one weight that matters: of the most used pixel, or of the most active hidden unit."""

    def change(values: Values) -> None:
        kernel = values[f"{kind}/kernel"]
        row = live_pixels()[0] if kind == HIDDEN else int(np.abs(kernel).sum(axis=1).argmax())
        column = int(np.abs(kernel[row]).argmax())
        kernel[row, column] *= np.float32(factor)

    return change


def swap_labels(values: Values) -> None:
    for name in (f"{LOGITS}/kernel", f"{LOGITS}/bias"):
        values[name][..., [2, 3]] = values[name][..., [3, 2]]


def swap_features(values: Values) -> None:
    one, other, *_ = live_pixels()
    values[f"{HIDDEN}/kernel"][[one, other]] = values[f"{HIDDEN}/kernel"][[other, one]]


def everywhere(round_to: Any) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        for name, value in values.items():
            if value.dtype == np.float32:
                values[name] = value.astype(round_to).astype(np.float32)

    return change


def of_an_untrained_model(values: Values) -> None:
    random = np.random.default_rng(0)
    for name, value in values.items():
        if value.dtype == np.float32:
            values[name] = random.normal(0, 0.1, value.shape).astype(np.float32)


def of_an_earlier_step(values: Values) -> None:
    """The variables of another checkpoint of the same training."""
    prefix = trained_digits().checkpoint.prefix
    earlier = sorted(
        prefix.parent.glob("model.ckpt-*.index"), key=lambda file: int(file.stem.rpartition("-")[2])
    )[0]
    assert earlier.with_suffix("") != prefix, "there is an earlier checkpoint"
    reader = tf.train.load_checkpoint(str(earlier.with_suffix("")))
    for name in values:
        values[name] = reader.get_tensor(name)


def move_bias(name: str, by: float) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        values[f"{name}/bias"][0] += np.float32(by)

    return change


VARIABLES: dict[str, Callable[[Values], None]] = {
    "one weight of the first layer, by 1e-3 of its value": at(HIDDEN, 1 + 1e-3),
    "one weight of the first layer, by 1e-6 of its value": at(HIDDEN, 1 + 1e-6),
    "one weight of the last layer, by 1e-3 of its value": at(LOGITS, 1 + 1e-3),
    "one weight of the last layer, by 1e-6 of its value": at(LOGITS, 1 + 1e-6),
    "a bias of the last layer, by 1e-4": move_bias(LOGITS, 1e-4),
    "two labels swapped": swap_labels,
    "two features swapped": swap_features,
    "all weights rounded to float16": everywhere(np.float16),
    "the variables of an earlier checkpoint": of_an_earlier_step,
    "the variables of an untrained model": of_an_untrained_model,
}
OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "an output truncated to float16": lambda y: tf.cast(tf.cast(y, tf.float16), tf.float32),
    "an output truncated to bfloat16": lambda y: tf.cast(tf.cast(y, tf.bfloat16), tf.float32),
    "an output scaled by 1 + 1e-6": lambda y: y * (1 + 1e-6),
    "dropout left on, 1 in 1,000": lambda y: tf.nn.dropout(y, rate=0.001),
    "noise of 1e-6": lambda y: y + tf.random.normal(tf.shape(y), stddev=1e-6),
    "the mean of the batch subtracted, by 1e-4": lambda y: (
        y - 1e-4 * tf.reduce_mean(y, axis=0, keepdims=True)
    ),
    "rows in reverse order": lambda y: tf.reverse(y, [0]),
    "the first row in place of all": lambda y: tf.tile(y[:1], [tf.shape(y)[0], 1]),
    "values below 1e-6 clipped": lambda y: tf.maximum(y, 1e-6),
    "a NaN in place of a small value": lambda y: tf.where(y < 1e-5, tf.fill(tf.shape(y), np.nan), y),
    "one row too many": lambda y: tf.concat([y, y[-1:]], 0),
    "a softmax twice": tf.nn.softmax,
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_changed_variable_is_rejected(name: str, tmp_path: Path) -> None:
    """Whatever changed, and however little, if any answer depends on it."""
    rejected(name, with_variables(tmp_path, exported_digits(), VARIABLES[name]), trained_digits().config.data)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_changed_output_is_rejected(name: str, tmp_path: Path) -> None:
    """By a serving graph that is not that of `estimator.predict`."""
    rejected(name, with_outputs(tmp_path, exported_digits(), OUTPUTS[name]), trained_digits().config.data)


PEOPLE = {
    "data": {
        "files": ["*.tfrecord"],
        "features": {
            "city": "string", "x": {"dtype": "float32", "shape": [2]},
            "age": {"dtype": "float32", "shape": [], "default": 40.0},
        },
        "label": {"y": "int64"}, "split": {"sample": 0.2},
    },
    "model": {
        "estimator": "DNNLinearCombinedClassifier",
        "params": {"dnn_hidden_units": [8]},
        "feature_columns": {
            "linear": [{"kind": "vocabulary", "key": "city", "file": "cities.txt"}],
            "dnn": [
                {"kind": "numeric", "key": "x", "mean": 3.0, "std": 2.0}, {"kind": "numeric", "key": "age"},
                {"kind": "embedding", "dimension": 4,
                 "of": {"kind": "vocabulary", "key": "city", "file": "cities.txt"}},
            ],
        },
    },
    "training": {"max_steps": 60, "batch_size": 16},
}  # fmt: skip


class People:
    """A wide-and-deep model of cities, numbers and a feature that some examples lack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "cities.txt").write_text("Rome\nOslo\nLima\n")
        specs = {
            "city": FeatureSpec(dtype="string"), "x": FeatureSpec(dtype="float32", shape=(2,)),
            "age": FeatureSpec(dtype="float32"), "y": FeatureSpec(dtype="int64"),
        }  # fmt: skip
        random = np.random.default_rng(1)
        records = []
        for index in range(400):
            example: dict[str, Any] = {
                "city": [[b"Rome", b"Oslo", b"Lima", b"Bonn"][index % 4]], "x": list(random.normal(3, 2, 2)),
                "age": [float(random.integers(18, 90))], "y": [int(index % 4 == 1)],
            }  # fmt: skip
            if index % 5 == 0:
                del example["age"]
            records.append(serialize(example, {name: specs[name] for name in example}))
        write_records(folder / "all.tfrecord", records)
        self.config, self.run = self.configured({})
        self.examples = ingest.run(ignore_progress, self.config.data, self.run)
        model, training = self.config.model, self.config.training
        self.checkpoint = train.run(
            ignore_progress, model, training, self.config.data, self.examples, self.run
        )
        evaluate.run(
            ignore_progress, self.config.recipe, self.config.answers, self.examples, self.checkpoint, self.run
        )

    def configured(self, changed: Mapping[str, Any]) -> tuple[Any, Any]:
        """The pipeline, with sections changed."""
        pipeline = written(self.folder, {**PEOPLE, **changed})
        return pipeline.config, run_of(pipeline, self.folder / "runs")

    def exported(self, run_id: str, changed: Mapping[str, Any]) -> Candidate:
        """An export of the same checkpoint with sections changed."""
        config, run = self.configured(changed)
        moved = replace(run, run_id=run_id, folder=self.folder / run_id)
        moved.folder.mkdir()
        moved.model_dir.symlink_to(self.run.model_dir)
        if self.run.first_predictions.is_dir():
            moved.first_predictions.symlink_to(self.run.first_predictions)
        return export.run(
            ignore_progress, config.model, config.training, config.export, config.data, self.examples,
            self.checkpoint, AnswersConfig(), moved,
        )  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return People(tmp_path_factory.mktemp("people") / "people")


@pytest.fixture(scope="module")
def right(people: People) -> Candidate:
    """The candidate as it should be; it is valid."""
    candidate = people.exported("right", {})
    found = program.run(ignore_progress, ValidationConfig(), people.config.data, candidate)
    assert {check.limit for check in found.checks} == {"same bits"}
    return candidate


def _features(**changed: Any) -> dict[str, Any]:
    data = PEOPLE["data"]
    assert isinstance(data, dict)
    return {"data": {**data, "features": {**data["features"], **changed}}}


def _normalised(mean: float, std: float) -> dict[str, Any]:
    model = PEOPLE["model"]
    assert isinstance(model, dict)
    columns = model["feature_columns"]
    numeric = {"kind": "numeric", "key": "x", "mean": mean, "std": std}
    return {"model": {**model, "feature_columns": {**columns, "dnn": [numeric, *columns["dnn"][1:]]}}}


def _vocabulary(people: People) -> dict[str, Any]:
    (people.folder / "cities.txt").write_text("Oslo\nRome\nLima\n")
    return {}


SERVING: dict[str, Callable[[People], dict[str, Any]]] = {
    "another default for a missing feature": lambda _: _features(
        age={"dtype": "float32", "shape": [], "default": 41.0}
    ),
    "a receiver that parses float as int": lambda _: _features(
        age={"dtype": "int64", "shape": [], "default": 40}
    ),
    "one feature normalised with another mean": lambda _: _normalised(3.001, 2.0),
    "one feature scaled": lambda _: _normalised(3.0, 2.001),
    "another vocabulary file": _vocabulary,
}


@pytest.mark.parametrize("name", SERVING)
def test_a_changed_receiver_is_rejected(
    name: str, people: People, right: Candidate, request: pytest.FixtureRequest
) -> None:
    """One that feeds the model other features than `estimator.predict` gave it."""
    try:
        wrong = people.exported(f"wrong-{list(SERVING).index(name)}", SERVING[name](people))
    except SlipwayError as error:
        ROWS.append((name, f"not exported: {error.message[:80]}"))
        return
    finally:
        (people.folder / "cities.txt").write_text("Rome\nOslo\nLima\n")
    rejected(name, replace(right, path=wrong.path), people.config.data)


def test_there_are_twenty_mutations() -> None:
    """At least, and none is counted twice."""
    assert len({*VARIABLES, *OUTPUTS, *SERVING}) >= 20


@contextmanager
def loaded(candidate: Candidate) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(candidate.path))
        yield session, graph.signature_def["predict"]


def test_the_share_of_single_weights_that_is_caught() -> None:
    """Under equal conditions all that move a bit; under others, those that move an output enough."""
    candidate = exported_digits()
    known = limits.complete(limits.read(candidate.offline), "predict", {}).of("predict")
    assert numerics.alike(limits.read(candidate.offline).conditions, numerics.conditions())
    records = read_records([offline_answers.examples_file(candidate.offline)])
    expected = offline_answers.read(candidate.offline, "predicted", "predict")[64]
    aliases = ("logits", "probabilities", "class_ids")
    wanted = {alias: expected[alias] for alias in aliases}
    random = np.random.default_rng(0)
    rows = []
    with loaded(candidate) as (session, definition):
        fetches = [definition.outputs[alias].name for alias in aliases]
        feed = {next(iter(definition.inputs.values())).name: np.array(records, dtype=object)}

        def answered() -> dict[str, NDArray[Any]]:
            return dict(zip(aliases, session.run(fetches, feed), strict=True))

        assert comparison.compare(wanted, answered(), known, bits=True).equal
        variables = {each.op.name: each for each in tf.compat.v1.global_variables()}
        for change in (1e-2, 1e-3, 1e-4):
            caught = {True: 0, False: 0}
            alive, smallest = 0, np.inf
            for _ in range(60):
                name = f"{[HIDDEN, LOGITS][int(random.integers(2))]}/kernel"
                variable = next(each for path, each in variables.items() if path.startswith(name))
                value = session.run(variable)
                index = tuple(int(random.integers(size)) for size in value.shape)
                moved = value.copy()
                moved[index] *= np.float32(1 + change)
                variable.load(moved, session)
                found = answered()
                variable.load(value, session)
                if all(comparison.identical(wanted[alias], found[alias]) for alias in aliases):
                    continue  # a pixel that is black in every sample, a unit that is never active
                alive += 1
                for bits in (True, False):
                    result = comparison.compare(wanted, found, known, bits=bits)
                    caught[bits] += not result.equal
                    if bits:
                        smallest = min(smallest, result.largest)
            rows.append((change, alive, caught[True] / alive, caught[False] / alive, smallest))
            assert caught[True] == alive, "bit equality misses nothing that moves a bit"
    table = [
        "| weight changed by | live weights | equal conditions | other conditions | smallest change caught |",
        "|---|---|---|---|---|",
    ]
    table += [
        f"| {change:g} | {alive} | {bits:.0%} | {share:.0%} | {smallest:.1g} of scale |"
        for change, alive, bits, share, smallest in rows
    ]
    sys.stdout.write("\n\n" + "\n".join(table) + "\n")
    assert rows[0][3] > 0.5 and rows[0][3] >= rows[1][3] >= rows[2][3], "a tolerance alone is weaker"
