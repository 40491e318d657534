"""A listwise model, whose answer about an example depends on the others of its request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from served_pipelines import server_log
from slipway_command import REPOSITORY, Finished, Slipway

RAW_TENSORS = REPOSITORY / "configs" / "raw_tensors"


def pipeline(folder: Path) -> Path:
    """Write configs/raw_tensors with a second signature: each mass's share of the request's malignancy."""
    shutil.copytree(RAW_TENSORS, folder)
    model = (folder / "model.py").read_text()
    one = 'output = {"serving_default": tf.estimator.export.PredictOutput(answer)}'
    assert one in model
    listwise = """output = {
            "serving_default": tf.estimator.export.PredictOutput(answer),
            "listwise": tf.estimator.export.PredictOutput({"share": tf.nn.softmax(logits, axis=0)}),
        }"""
    (folder / "model.py").write_text(model.replace(one, listwise))
    return folder


@pytest.fixture
def deployed(slipway: Slipway, tmp_path: Path) -> Finished:
    """The pipeline, run to its end."""
    finished = slipway.run(pipeline(tmp_path / "listwise"), "smoke_test.watch_seconds=1")
    assert finished.exit_code == 0, finished.output
    return finished


def test_a_listwise_model_is_validated_and_served_by_whole_requests(
    deployed: Finished, slipway: Slipway
) -> None:
    """Its answers about one mass are others than about 33; the other signature is compared in all sizes."""
    checks = deployed.checks
    assert all(check["passed"] for check in checks.values())
    assert checks["listwise"]["observed"].startswith("33 numbers")
    assert checks["serving_default"]["observed"].startswith("132 numbers")
    assert "rows may depend on one another: listwise" in deployed.output
    log = server_log(deployed, slipway)
    assert "independent rows: serving_default" in log
    assert "rows of listwise may depend on one another: output share: " in log
