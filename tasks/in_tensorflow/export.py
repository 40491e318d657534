"""Program of the stage `export`: a SavedModel that no server loads, and what it should answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from configs.schema.pipeline import AnswersConfig, DataConfig, ExportConfig, ModelConfig, TrainingConfig
from tasks.answers import limits, numerics, offline_answers
from tasks.answers.limits import Limits
from tasks.core.artifacts import Candidate, Checkpoint, Examples, Run, Signature
from tasks.core.errors import ModelError
from tasks.estimators import accelerators, assembly, checkpoints, graph_pipelines
from tasks.examples.preprocessing import preprocess_of
from tasks.examples.tensorflow_errors import explained
from tasks.exports import (
    extra_assets,
    given_models,
    graph_exports,
    predictions,
    row_independence,
    saved_models,
)
from tasks.exports.predictions import BySize
from tasks.exports.serving_inputs import RAW, receiver_for, require_askable, takes_features


def run(  # noqa: PLR0913, PLR0917 (an artifact or a slice each)
    _progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, export: ExportConfig, data: DataConfig,
    examples: Examples, checkpoint: Checkpoint, answers: AnswersConfig, run: Run,
    metrics: dict[str, float] | None = None,
) -> Candidate:  # fmt: skip
    """Export the checkpoint, and predict the sample examples with `estimator.predict` in every batch size.

    Default-valued attributes are always stripped from the graph, so that older servers can load it: of
    tensorflow-estimator 2.15.0, estimator.py's `export_saved_model` passes `strip_default_attrs=True`.
    `metrics` are what the evaluation found, for the manifest. Works on the CPU: so does the server whose
    answers will be compared with these.
    """
    offline = run.folder / "offline"
    if model.saved_model is not None:
        exporter: _Exporter = _Given(data, examples, answers, run, offline)
    else:
        exporter = _Trained(model, training, export, data, examples, checkpoint, answers, run, offline)
    extra_assets.require(export, run.source)
    path = _export(exporter.write, run)
    try:
        made_of = (
            extra_assets.manifest(run, examples, checkpoint, training.seed, metrics or {}) | exporter.origin()
        )
        with explained(writes_to=run.model_base_path):
            extra_assets.write(path, export, run, made_of)
        signatures = exporter.signatures(path)
        with explained(writes_to=offline):
            samples, predicted = exporter.predict()
            found = _limits(
                answers, predicted, lambda: exporter.predict()[1], signatures, run, exporter.in_double()
            )
            expected = {
                each.name: _comparable(each, predicted[_head(each, predicted)]) for each in signatures
            }
            predictions.write(offline, expected)
            limits.write(offline, found)
    except BaseException:
        shutil.rmtree(path)
        raise
    tag_sets, assets = saved_models.tag_sets(path), saved_models.assets(path)
    return Candidate(path, signatures, offline, samples, tag_sets, assets, exporter.answered_by)


class _Exporter(Protocol):
    """What is exported, and what it should answer."""

    answered_by: str

    def write(self, folder: Path) -> Path:
        """Write the SavedModel under `folder`; return where."""

    def signatures(self, path: Path) -> tuple[Signature, ...]:
        """Return what it serves. Raises ModelError if that cannot be proven."""

    def predict(self) -> tuple[int, dict[str, BySize]]:
        """Return the number of samples, and their answers by head or signature."""

    def in_double(self) -> bool:
        """Return whether it computes in float64."""

    def origin(self) -> dict[str, Any]:
        """Return what the manifest says besides."""


class _Trained:
    """The checkpoint that was trained, by its Estimator or graph."""

    answered_by = "estimator.predict"

    def __init__(  # noqa: PLR0913, PLR0917
        self, model: ModelConfig, training: TrainingConfig, export: ExportConfig, data: DataConfig,
        examples: Examples, checkpoint: Checkpoint, answers: AnswersConfig, run: Run, offline: Path,
    ) -> None:  # fmt: skip
        self._model, self._export, self._data, self._run = model, export, data, run
        self._examples, self._checkpoint, self._answers, self._offline = (
            examples,
            checkpoint,
            answers,
            offline,
        )
        self._estimator = assembly.build(model, training, data, run, accelerators.claim("cpu"))
        self._preprocess = preprocess_of(model, run)
        self._receiver = receiver_for(export, data.features, run, self._preprocess)

    def write(self, folder: Path) -> Path:
        if self._model.graph is None:
            return _written(self._estimator, folder, self._receiver, self._export, self._checkpoint)
        graph = graph_pipelines.graph_of(self._model, self._run)
        return graph_exports.write(
            folder / "model",
            graph,
            self._export,
            self._data,
            self._receiver,
            self._preprocess,
            self._checkpoint,
        )

    def signatures(self, path: Path) -> tuple[Signature, ...]:
        return _signatures(path, self._export, self._data)

    def predict(self) -> tuple[int, dict[str, BySize]]:
        return predictions.predict_samples(
            self._estimator, self._checkpoint.prefix, self._answers, self._examples, self._data,
            self._preprocess, self._offline,
        )  # fmt: skip

    def in_double(self) -> bool:
        return checkpoints.computes_in_double(self._checkpoint.prefix)

    def origin(self) -> dict[str, Any]:
        return {}


class _Given:
    """A SavedModel that was trained elsewhere."""

    answered_by = given_models.ANSWERED_BY

    def __init__(
        self, data: DataConfig, examples: Examples, answers: AnswersConfig, run: Run, offline: Path
    ) -> None:
        self._data, self._examples, self._answers, self._offline = data, examples, answers, offline
        self._copy, self._session_config = given_models.copied(run), accelerators.claim("cpu")

    def write(self, folder: Path) -> Path:
        return given_models.write(self._copy, folder)

    def signatures(self, path: Path) -> tuple[Signature, ...]:
        return given_models.signatures(path, self._data)

    def predict(self) -> tuple[int, dict[str, BySize]]:
        asked = given_models.signatures(self._copy, self._data)
        return given_models.predict_samples(
            self._copy, asked, self._answers, self._examples, self._data, self._offline, self._session_config
        )

    def in_double(self) -> bool:
        types = given_models.variables(self._copy).values()
        return {each for each in types if each.is_floating} == {tf.float64}

    def origin(self) -> dict[str, Any]:
        return {"saved_model_sha256": given_models.digest(self._copy)}


def _written(
    estimator: Any, folder: Path, receiver: Callable[[], Any], export: ExportConfig, checkpoint: Checkpoint
) -> Path:
    """Export an Estimator under `folder`; return where: a folder named by the time."""
    prefix = str(checkpoint.prefix)
    written = estimator.export_saved_model(
        str(folder), receiver, checkpoint_path=prefix, as_text=export.as_text
    )
    return Path(os.fsdecode(written))


def _export(write: Callable[[Path], Path], run: Run) -> Path:
    """Write the SavedModel to `<base>/.candidate-<run id>/`; remove it on failure."""
    path = run.model_base_path / f".candidate-{run.run_id}"
    partial = path.with_name(f"{path.name}.partial")
    for leftover in (path, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    with explained(writes_to=run.model_base_path):
        partial.mkdir(parents=True)
        try:
            os.rename(write(partial), path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _signatures(path: Path, export: ExportConfig, data: DataConfig) -> tuple[Signature, ...]:
    definitions = saved_models.serving_signature_defs(path)
    dependences = row_independence.dependences(path)
    for name, reason in dependences.items():
        if reason and name in definitions:
            print(f"signature {name}: rows may depend on one another: {reason}")
    raw = [name for name, each in definitions.items() if takes_features(name, each, export, data.features)]
    if not definitions:
        message = "the exported model has no signature that can be served"
        raise ModelError(
            message,
            "raw receivers need a PredictOutput among export_outputs; parsing ones take any; logs/export.log "
            "says of each output why it was left out",
        )
    found = tuple(
        replace(each, row_independent=not dependences[each.name])
        for each in saved_models.signatures(path, raw)
    )
    for signature in found:
        if signature.receiver == RAW:
            require_askable(signature.name, signature.inputs, data.features)
    return found


def _comparable(signature: Signature, by_size: Mapping[int, Any]) -> dict[int, Any]:
    """Return the answers in the batch sizes that a signature is compared in.

    If its rows depend on one another, only the whole request has an answer to compare.
    """
    return dict(by_size) if signature.row_independent else {max(by_size): by_size[max(by_size)]}


def _head(signature: Signature, predicted: Mapping[str, Any]) -> str:
    """Return the export output of a signature; one of an alternative receiver is named `receiver:head`."""
    return signature.name if signature.name in predicted else signature.name.partition(":")[2]


def _limits(
    answers: AnswersConfig, predicted: Mapping[str, BySize], repeat: Callable[[], Mapping[str, Any]],
    signatures: tuple[Signature, ...], run: Run, computed_in_double: bool,
) -> Limits:  # fmt: skip
    """Return what each output is held to, given what `evaluate` predicted before, in another process.

    If it did so under other conditions, `repeat` predicts again, in another session.
    """
    conditions = numerics.conditions()
    before: Mapping[str, BySize]
    if numerics.alike(limits.read(run.first_predictions).conditions, conditions):
        before = {name: offline_answers.read(run.first_predictions, "predicted", name) for name in predicted}
    else:  # evaluated on a GPU, or on another machine
        before = repeat()
    found = {}
    for signature in signatures:
        head = _head(signature, predicted)
        again = before[head]
        found[signature.name] = {
            alias: limits.derive(
                answers.tolerance_of(signature.name, alias),
                {size: arrays[alias] for size, arrays in _comparable(signature, predicted[head]).items()},
                {size: arrays[alias] for size, arrays in _comparable(signature, again).items()},
                computed_in_double=computed_in_double,
            )
            for alias in signature.outputs
        }
    return Limits(found, conditions)
