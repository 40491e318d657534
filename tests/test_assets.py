"""Assets that travel with the model: vocabularies, a user's files, the manifest; and saved_model.pbtxt."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pipelines import run_of, written

from configs.loading.errors import ConfigError
from configs.loading.references import require_callables
from configs.schema.features import FeatureSpec
from configs.schema.pipeline import AnswersConfig, ExportConfig
from model_server.base import flags
from model_server.models import servable
from tasks.answers import offline_answers
from tasks.core.artifacts import Candidate, Check, Run
from tasks.core.errors import ModelError
from tasks.examples.tf_examples import read_records, serialize, write_records
from tasks.exports import extra_assets, source_digests
from tasks.in_tensorflow import export, ingest, train, validate
from tasks.processes.tensorflow_process import ignore_progress

CITIES = [b"Rome", b"Oslo", b"Bonn"]


def exported(folder: Path, **settings: Any) -> tuple[Candidate, Any]:
    """A linear classifier of the city, with its vocabulary in a file; exported and validated."""
    folder.mkdir(exist_ok=True)
    specs = {"city": FeatureSpec(dtype="string"), "x": FeatureSpec(dtype="float32"),
             "y": FeatureSpec(dtype="int64")}  # fmt: skip
    records = [
        serialize({"city": [CITIES[i % 3]], "x": [float(i)], "y": [i % 3 == 0]}, specs) for i in range(150)
    ]
    write_records(folder / "all.tfrecord", records)
    (folder / "cities.txt").write_text("Rome\nOslo\n")
    (folder / "warmup").write_bytes(b"requests")
    features = {"city": "string", "x": "float32"}
    pipeline = written(folder, {
        "data": {"files": ["*.tfrecord"], "features": features, "label": {"y": "int64"},
                 "split": {"sample": 0.2}},
        "model": {"estimator": "LinearClassifier",
                  "feature_columns": [{"kind": "vocabulary", "key": "city", "file": "cities.txt"}]},
        "training": {"max_steps": 50, "batch_size": 16},
        "export": settings,
    })  # fmt: skip
    this, run = pipeline.config, run_of(pipeline, folder)
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(yaml.safe_dump({"name": this.name}))
    examples = ingest.run(ignore_progress, this.data, run)
    checkpoint = train.run(ignore_progress, this.model, this.training, this.data, examples, run)
    candidate = export.run(
        ignore_progress, this.model, this.training, this.export, this.data, examples, checkpoint,
        AnswersConfig(samples=20), run, {"accuracy": 0.75},
    )  # fmt: skip
    assert validate.run(ignore_progress, this.validation, this.data, candidate).numbers > 0
    return candidate, examples


def test_a_vocabulary_is_served_from_the_version_s_own_folder(tmp_path: Path) -> None:
    """The version moved, the pipeline's folder gone: the server still tells Rome from Oslo, as offline."""
    candidate, _ = exported(tmp_path / "pipeline")
    assert candidate.assets == ("cities.txt",)
    asked = read_records([offline_answers.examples_file(candidate.offline)])
    said = offline_answers.read(candidate.offline, "predicted", "predict")[len(asked)]["probabilities"]
    assert len({row.tobytes() for row in said}) > 1
    shutil.copytree(candidate.path, tmp_path / "elsewhere" / "7")
    shutil.rmtree(tmp_path / "pipeline")
    loaded = servable.load(tmp_path / "elsewhere" / "7", 7, flags.parse((), {}).options)
    np.testing.assert_array_max_ulp(_predicted(loaded, asked), said, 64)


def _predicted(loaded: servable.Servable, records: list[bytes]) -> Any:
    signature = loaded.signatures["predict"]
    feeds = {signature.inputs["examples"].name: np.array(records, dtype=object)}
    (found,) = loaded.run(feeds, [signature.outputs["probabilities"].name], None)
    loaded.close()
    return found


def test_as_text_is_validated_and_served(tmp_path: Path) -> None:
    """`export.as_text` leaves saved_model.pbtxt and no pb, which our server loads as well."""
    candidate, _ = exported(tmp_path / "pipeline", as_text=True)
    assert (candidate.path / "saved_model.pbtxt").read_text().startswith("saved_model_schema_version: 1")
    assert not (candidate.path / "saved_model.pb").exists()
    asked = read_records([offline_answers.examples_file(candidate.offline)])
    loaded = servable.load(candidate.path, 1, flags.parse((), {}).options)
    said = offline_answers.read(candidate.offline, "predicted", "predict")[len(asked)]["probabilities"]
    np.testing.assert_array_max_ulp(_predicted(loaded, asked), said, 64)


def test_extra_assets_and_the_manifest(tmp_path: Path) -> None:
    """A user's files at their places, and what the version was made of."""
    before = datetime.now(timezone.utc).replace(microsecond=0)
    folder = tmp_path / "pipeline"
    extra = {"tf_serving_warmup_requests": "warmup", "words/cities": "cities.txt"}
    candidate, examples = exported(folder, assets_extra=extra)
    assets = candidate.path / "assets.extra"
    assert (assets / "tf_serving_warmup_requests").read_bytes() == b"requests"
    assert (assets / "words" / "cities").read_text() == "Rome\nOslo\n"
    manifest = json.loads((assets / "manifest.json").read_text())
    config = (folder / "r1" / "config.yaml").read_bytes()
    assert before <= datetime.fromisoformat(manifest.pop("created")) <= datetime.now(timezone.utc)
    packages = manifest.pop("packages")
    assert (packages["tensorflow"], packages["tensorflow-estimator"]) == ("2.15.1", "2.15.0")
    assert manifest == {
        "run_id": "r1", "pipeline": "small", "config_sha256": hashlib.sha256(config).hexdigest(),
        "data_sha256": examples.digest, "examples": 150, "git_commit": None, "git_changes": None,
        "code_sha256": source_digests.of_code(folder, folder / "r1" / "config.yaml"),
        "files_sha256": source_digests.of_files(folder, folder / "r1" / "config.yaml"), "seed": 1,
        "checkpoint_step": 50, "metrics": {"accuracy": 0.75},
    }  # fmt: skip


def test_a_metric_that_is_no_number_leaves_the_manifest_json(tmp_path: Path) -> None:
    """As strings, as in verdict.json: readers other than Python's refuse a bare NaN. Read back it is one."""
    metrics = {"loss": math.nan, "ratio": -math.inf, "auc": 0.5}
    missed = Check("change loss", "falls", math.nan, math.inf, passed=False)
    extra_assets.write(
        tmp_path,
        ExportConfig(),
        Run("p", "r1", tmp_path, tmp_path, tmp_path),
        {"run_id": "r1", "metrics": metrics},
    )
    extra_assets.complete(tmp_path, 1, [missed])
    text = (tmp_path / "assets.extra" / "manifest.json").read_text()
    told = json.loads(text, parse_constant=pytest.fail)
    assert told["metrics"] == {"loss": "NaN", "ratio": "-Infinity", "auc": 0.5}
    assert (told["checks"][0]["observed"], told["checks"][0]["limit"]) == ("NaN", "Infinity")
    read = extra_assets.read_manifest(tmp_path)["metrics"]
    assert math.isnan(read.pop("loss"))
    assert read == {"ratio": -math.inf, "auc": 0.5}


def test_an_extra_asset_that_is_not_there(tmp_path: Path) -> None:
    """It is told by `slipway check`, and before anything is exported."""
    pipeline = written(tmp_path, {"export": {"assets_extra": {"a": "nowhere.txt"}}})
    with pytest.raises(ConfigError, match=r"'export.assets_extra.a' = 'nowhere.txt': no such file"):
        require_callables(pipeline)
    with pytest.raises(ModelError, match="assets_extra: a: no such file"):
        exported(tmp_path / "small", assets_extra={"a": "nowhere.txt"})
    assert list((tmp_path / "small" / "models").glob("*")) == []


@pytest.mark.parametrize(
    "destination",
    ["../model", "/etc/passwd", "a/../../b", "manifest.json", "./manifest.json", "SHA256SUMS", ".", ""],
)
def test_no_extra_asset_leaves_its_folder(tmp_path: Path, destination: str) -> None:
    """Nor replaces the manifest."""
    with pytest.raises(ConfigError, match=r"assets_extra"):
        written(tmp_path, {"export": {"assets_extra": {destination: "pipeline.yaml"}}})
