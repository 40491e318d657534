"""Every pipeline that ships in configs/, as a user runs it: the whole chain, served, and asked."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from served_pipelines import asked, held_out, request_about, server_log
from slipway_command import REPOSITORY, Finished, Slipway

CONFIGS = REPOSITORY / "configs"


def deployed(slipway: Slipway, name: str) -> Finished:
    """Check and run an example, as it is, to its end: it serves, with every check passed."""
    assert slipway("check", CONFIGS / name).exit_code == 0
    finished = slipway.run(CONFIGS / name)
    assert finished.exit_code == 0, finished.output
    assert all(check["passed"] for check in finished.checks.values())
    log = server_log(finished, slipway)
    assert "independent rows: " in log and "may depend on one another" not in log
    return finished


def test_every_example_is_run_by_a_test() -> None:
    """No folder with a pipeline.yaml ships that no test names."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    examples = [file.parent.name for file in CONFIGS.glob("*/pipeline.yaml")]
    assert len(examples) >= 4
    assert [name for name in examples if f'"{name}"' not in tests] == []


def test_diabetes_answers_regress(slipway: Slipway) -> None:
    """A canned regressor from YAML alone: what it serves of unseen patients is as good as the gate says."""
    finished = deployed(slipway, "diabetes")
    assert {"average_loss", "Regress regression", "Predict predict"} <= set(finished.checks)
    patients = held_out(finished, slipway)
    with asked(finished) as stub:
        response = stub.Regress(request_about("regress", finished, "", patients), timeout=30)
    served = [regression.value for regression in response.result.regressions]
    true = [patient.features.feature["progression"].float_list.value[0] for patient in patients]
    assert np.mean(np.square(np.subtract(served, true))) < 4000


def test_raw_tensors_answers_predict_and_rows_of_json(slipway: Slipway) -> None:
    """Tensors over gRPC, and the same as REST rows, get the same answers, right about unseen masses."""
    finished = deployed(slipway, "raw_tensors")
    masses = held_out(finished, slipway)
    served = _predicted(finished, masses)
    true = [mass.features.feature["malignant"].int64_list.value[0] for mass in masses]
    assert np.mean((served > 0.5) == true) >= 0.88
    rest = finished.verdict["endpoint"]["rest"] + "/v1/models/raw-tensors:predict"
    rows = [
        {part: list(mass.features.feature[part].float_list.value) for part in ("mean", "error", "worst")}
        for mass in masses
    ]
    answered = _posted(rest, json.dumps({"instances": rows}).encode())["predictions"]
    assert np.float32(answered).tolist() == served.tolist()


def _predicted(finished: Finished, masses: list[Any]) -> Any:
    """Return what Predict answers of the masses' tensors."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "raw-tensors"
    for part in ("mean", "error", "worst"):
        values = [mass.features.feature[part].float_list.value for mass in masses]
        request.inputs[part].CopyFrom(tf.make_tensor_proto(np.float32(values)))
    with asked(finished) as stub:
        return tf.make_ndarray(stub.Predict(request, timeout=30).outputs["malignant"])


def _posted(url: str, body: bytes) -> Any:
    with urllib.request.urlopen(url, body, timeout=30) as answer:
        return json.load(answer)


def test_plain_graph_answers_classify_and_predict(slipway: Slipway) -> None:
    """A graph without an Estimator: both MetaGraphs validated, the served one right about unseen wines."""
    finished = deployed(slipway, "plain_graph")
    assert {"serve,gpu: cultivar", "Classify serving_default", "Predict cultivar"} <= set(finished.checks)
    wines = held_out(finished, slipway)
    with asked(finished) as stub:
        response = stub.Classify(request_about("classify", finished, "", wines), timeout=30)
    served = [np.argmax([each.score for each in row.classes]) for row in response.result.classifications]
    true = [wine.features.feature["cultivar"].int64_list.value[0] for wine in wines]
    assert np.mean(np.equal(served, true)) >= 0.85
