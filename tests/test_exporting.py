"""The stage `export`: a candidate that no server loads, its signatures, and the answers it should give."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import exported_digits, run_of, trained_digits, written
from small_disks import small_disk
from tensorflow.core.protobuf import saved_model_pb2

from configs.schema.pipeline import AnswersConfig, ExportConfig
from tasks.answers import offline_answers
from tasks.core.artifacts import Candidate, Run
from tasks.core.errors import EnvironmentFault, ModelError
from tasks.estimators import assembly
from tasks.examples.tf_examples import batches, read_records
from tasks.exports.serving_inputs import receiver_fn
from tasks.in_tensorflow import export as program
from tasks.processes.tensorflow_process import ignore_progress


def export(run: Run, **options: Any) -> Candidate:
    """Export the shared digits model for another run, in this process."""
    digits = trained_digits()
    model = {**digits.model, "run": digits.run}
    options = {"export": ExportConfig(), "answers": AnswersConfig(samples=8), **options}
    moved = Run(run.pipeline, run.run_id, run.folder, run.source, run.model_base_path)
    (moved.folder).mkdir(parents=True, exist_ok=True)
    if not moved.model_dir.exists():
        moved.model_dir.symlink_to(digits.run.model_dir)
    return program.run(ignore_progress, checkpoint=digits.checkpoint, **{**model, "run": moved}, **options)


def elsewhere(folder: Path) -> Run:
    """A run of the digits that keeps its models in `folder`."""
    digits = trained_digits()
    return Run("digits", "r2", folder / "r2", digits.run.source, folder / "models")


def test_the_candidate_is_beside_the_versions_under_no_number() -> None:
    """`<base>/.candidate-<run id>/saved_model.pb`, and nothing else in the base path."""
    candidate, run = exported_digits(), trained_digits().run
    assert candidate.path == run.model_base_path / ".candidate-r1"
    assert (candidate.path / "saved_model.pb").is_file()
    assert (candidate.path / "variables" / "variables.index").is_file()
    assert [path.name for path in run.model_base_path.iterdir()] == [".candidate-r1"]


def test_both_receivers_in_one_export() -> None:
    """Parsing signatures take one string; raw ones are named `raw:` and take the features, not the label."""
    found = {signature.name: signature for signature in exported_digits().signatures}
    assert {name: (s.method, s.receiver, s.inputs) for name, s in found.items()} == {
        "serving_default": ("classify", "parsing", {"inputs": "string[?]"}),
        "classification": ("classify", "parsing", {"inputs": "string[?]"}),
        "predict": ("predict", "parsing", {"examples": "string[?]"}),
        "raw:predict": ("predict", "raw", {"pixels": "float32[?,64]"}),
    }
    assert found["predict"].outputs["probabilities"] == "float32[?,10]"
    assert found["serving_default"].outputs == {"classes": "string[?,10]", "scores": "float32[?,10]"}


def test_default_attributes_are_stripped() -> None:
    """An older server must not stumble over an attribute that it does not know and need not."""
    model = saved_model_pb2.SavedModel.FromString((exported_digits().path / "saved_model.pb").read_bytes())
    (graph,) = model.meta_graphs
    assert graph.meta_info_def.stripped_default_attrs


def test_offline_answers_are_what_estimator_predict_says() -> None:
    """For each output of each signature, bit for bit, in the order of the examples."""
    digits, candidate = trained_digits(), exported_digits()
    config, asked = digits.config, offline_answers.examples_file(candidate.offline)
    estimator = assembly.build(config.model, config.training, config.data, digits.run)
    (said,) = estimator.predict(lambda: batches([asked], config.data, 64), yield_single_examples=False)
    for name in ("predict", "raw:predict"):
        found = offline_answers.read(candidate.offline, "predicted", name)[64]
        assert found.keys() == said.keys()
        assert np.array_equal(found["probabilities"], said["probabilities"])
        assert np.array_equal(found["class_ids"], said["class_ids"])
    scores = offline_answers.read(candidate.offline, "predicted", "serving_default")[64]["scores"]
    assert np.array_equal(scores, said["probabilities"])


@pytest.mark.parametrize(("stated", "sizes"), [(None, {1, 2, 8}), (True, {1, 2, 8}), (False, {8})])
def test_dependent_rows_are_compared_in_whole_requests(
    tmp_path: Path, stated: bool | None, sizes: set[int]
) -> None:
    """The analysis finds the digits' rows independent; `export.row_independent` is stronger, and travels."""
    candidate = export(elsewhere(tmp_path), export=ExportConfig(row_independent=stated))
    assert {each.row_independent for each in candidate.signatures} == {stated is not False}
    for signature in candidate.signatures:
        assert offline_answers.read(candidate.offline, "predicted", signature.name).keys() == sizes
    serving = candidate.path / "assets.extra" / "serving.json"
    assert (json.loads(serving.read_text()) if serving.exists() else None) == (
        None if stated is None else {"row_independent": stated}
    )


def test_the_examples_asked_are_the_first_of_the_sample_split() -> None:
    """They are kept beside the answers."""
    candidate = exported_digits()
    asked = read_records([offline_answers.examples_file(candidate.offline)])
    assert len(asked) == candidate.samples == 64
    assert asked == read_records(trained_digits().examples.sample.files, limit=64)


def test_raw_alone_has_signatures_without_strings(tmp_path: Path) -> None:
    """Only Predict takes tensors: the classification signatures are not there."""
    candidate = export(elsewhere(tmp_path), export=ExportConfig(receivers=("raw",)))
    assert [(s.name, s.receiver, s.inputs) for s in candidate.signatures] == [
        ("predict", "raw", {"pixels": "float32[?,64]"})
    ]


def test_fewer_samples_than_asked_are_all_there_are(tmp_path: Path) -> None:
    """`samples` is a bound, not a demand."""
    candidate = export(elsewhere(tmp_path), answers=AnswersConfig(samples=100_000, batch_sizes=("all",)))
    assert candidate.samples == trained_digits().examples.sample.examples


def test_an_export_tried_again_replaces_its_leftovers(tmp_path: Path) -> None:
    """What a killed export of the same run left does not stay, nor get in the way."""
    run = elsewhere(tmp_path)
    for name in (".candidate-r2", ".candidate-r2.partial"):
        (run.model_base_path / name / "old").mkdir(parents=True)
    candidate = export(run)
    assert [path.name for path in run.model_base_path.iterdir()] == [".candidate-r2"]
    assert not (candidate.path / "old").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_nothing_and_names_the_folder(tmp_path: Path) -> None:
    """No space in the base path is an EnvironmentFault, and no part of a candidate is left."""
    with small_disk(tmp_path / "models", kilobytes=16):
        with pytest.raises(EnvironmentFault, match="the disk is full") as caught:
            export(elsewhere(tmp_path))
        assert str(tmp_path / "models") in caught.value.message
        assert list((tmp_path / "models").iterdir()) == []


def test_a_base_path_that_is_a_file(tmp_path: Path) -> None:
    """The operating system's error passes, for the child to call it an EnvironmentFault."""
    (tmp_path / "models").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        export(elsewhere(tmp_path))


def test_a_failure_after_the_export_removes_the_candidate(tmp_path: Path) -> None:
    """When the offline answers cannot be had, the SavedModel goes, too."""
    run = elsewhere(tmp_path)
    run.folder.mkdir()
    (run.folder / "offline").write_text("in the way")
    with pytest.raises(FileExistsError):
        export(run)
    assert list(run.model_base_path.iterdir()) == []


def test_raw_refuses_sparse_features(tmp_path: Path) -> None:
    """A var_len feature has no dense tensor to take in; the hint says what to do."""
    data = {"files": ["*"], "features": {"tags": "string[]"}, "label": {"y": "int64"}}
    pipeline = written(tmp_path, {"data": data})
    assert run_of(pipeline, tmp_path).pipeline == "small"
    with pytest.raises(
        ModelError, match="raw takes dense tensors, and the feature 'tags' is var_len"
    ) as caught:
        receiver_fn(("parsing", "raw"), pipeline.config.data.features)
    assert "receivers: [parsing]" in caught.value.hint


@pytest.mark.parametrize("receivers", [("raw",), ("parsing", "raw")])
def test_raw_takes_every_dense_kind(tmp_path: Path, receivers: Any) -> None:
    """Scalars, shapes and sequences have placeholders of their dtype, the batch first."""
    features = {
        "a": "int64", "b": "float32[2,3]",
        "c": {"kind": "fixed_len_sequence", "dtype": "string", "shape": [2]},
    }  # fmt: skip
    data = {"files": ["*"], "features": features, "label": {"y": "int64"}}
    specs = written(tmp_path, {"data": data}).config.data.features
    with tf.Graph().as_default():
        receiver = receiver_fn(receivers, specs)()
        tensors = (receiver.receiver_tensors_alternatives or {"raw": receiver.receiver_tensors})["raw"]
    assert {name: (t.dtype.name, t.shape.as_list()) for name, t in tensors.items()} == {
        "a": ("int64", [None]), "b": ("float32", [None, 2, 3]), "c": ("string", [None, None, 2]),
    }  # fmt: skip


def test_a_copy_of_the_candidate_loads_anywhere(tmp_path: Path) -> None:
    """The SavedModel holds no path of this run."""
    shutil.copytree(exported_digits().path, tmp_path / "1")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "1"))
