"""Program of the stage `export`: a SavedModel that no server loads, and what it should answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.schema import DataConfig, ExportConfig, ModelConfig, TrainingConfig
from tasks import accelerators, estimators, offline_answers, saved_models
from tasks.artifacts import Candidate, Checkpoint, Examples, Run, Signature
from tasks.errors import ModelError
from tasks.predictions import predict_signatures
from tasks.serving_inputs import RAW, receiver_fn
from tasks.tensorflow_errors import explained
from tasks.tf_examples import read_records, write_records


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, export: ExportConfig, data: DataConfig,
    examples: Examples, checkpoint: Checkpoint, samples: int, run: Run,
) -> Candidate:  # fmt: skip
    """Export the checkpoint, and ask `estimator.predict` of the first `samples` sample examples.

    Default-valued attributes are always stripped from the graph, so that older servers can load it: of
    tensorflow-estimator 2.15.0, estimator.py's `export_saved_model` passes `strip_default_attrs=True`.
    Works on the CPU: so does the server whose answers will be compared with these.
    """
    estimator = estimators.build(model, training, data, run, accelerators.claim("cpu"))
    receiver = receiver_fn(export.receivers, data.features)
    path = _export(estimator, receiver, checkpoint, run)
    try:
        signatures = _signatures(path, export)
        offline = run.folder / "offline"
        with explained(writes_to=offline):
            asked = _answer(estimator, signatures, data, examples, checkpoint, samples, offline)
    except BaseException:
        shutil.rmtree(path)
        raise
    return Candidate(path, signatures, offline, asked)


def _export(estimator: Any, receiver: Callable[[], Any], checkpoint: Checkpoint, run: Run) -> Path:
    """Leave the SavedModel in `<base>/.candidate-<run id>/`, or nothing."""
    path = run.model_base_path / f".candidate-{run.run_id}"
    partial = path.with_name(f"{path.name}.partial")
    for leftover in (path, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    with explained(writes_to=run.model_base_path):
        partial.mkdir(parents=True)
        try:
            written = estimator.export_saved_model(
                str(partial), receiver, checkpoint_path=str(checkpoint.prefix)
            )
            os.rename(written, path)  # the Estimator puts it into a folder named by the time
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _signatures(path: Path, export: ExportConfig) -> tuple[Signature, ...]:
    definitions = saved_models.serving_signature_defs(path)
    raw = [name for name in definitions if export.receivers == (RAW,) or name.startswith(f"{RAW}:")]
    if not definitions:
        message = "the exported model has no signature that can be served"
        raise ModelError(
            message, "raw receivers need a PredictOutput among export_outputs; parsing ones take any"
        )
    return saved_models.signatures(path, raw)


def _answer(
    estimator: Any, signatures: tuple[Signature, ...], data: DataConfig,
    examples: Examples, checkpoint: Checkpoint, samples: int, offline: Path,
) -> int:  # fmt: skip
    """Write the sample examples and the answers to them into `offline`; return how many they are."""
    shutil.rmtree(offline, ignore_errors=True)
    offline.mkdir(parents=True)
    asked = offline_answers.examples_file(offline)
    records = read_records(examples.sample.files, limit=samples)
    write_records(asked, records)
    answers = predict_signatures(estimator, checkpoint.prefix, asked, data)
    for signature in signatures:
        offline_answers.write(offline, signature.name, answers[signature.name.removeprefix(f"{RAW}:")])
    return len(records)
