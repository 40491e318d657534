"""A model_fn with several heads: each a signature, validated, served, and asked for by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from served_pipelines import asked, held_out, request_about, server_log
from slipway_command import REPOSITORY, Finished, Slipway

SPECIES = [b"setosa", b"versicolor", b"virginica"]


@pytest.fixture(scope="module")
def deployed(module_slipway: Slipway) -> Finished:
    """configs/two_heads, run to its end."""
    finished = module_slipway.run(REPOSITORY / "configs" / "two_heads")
    assert finished.exit_code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def flowers(deployed: Finished, module_slipway: Slipway) -> list[Any]:
    """Irises that training never saw, without what is to be predicted."""
    return held_out(deployed, module_slipway)


def test_every_head_was_validated_and_asked_by_its_name(deployed: Finished) -> None:
    """Each signature in each batch size offline, and by each of its APIs when served."""
    names = set(deployed.checks)
    for head in ("serving_default", "petal_width", "flower"):
        assert head in names
        assert f"Predict {head}" in names
    assert {"Classify serving_default", "Regress petal_width"} <= names
    assert {"Classify flower", "Regress flower", "Classify petal_width"} & names == set()
    assert all(check["passed"] for check in deployed.checks.values())


def test_requests_to_every_head_may_share_runs(deployed: Finished, module_slipway: Slipway) -> None:
    """The server understands the graphs of all heads, vocabulary included."""
    log = server_log(deployed, module_slipway)
    assert "independent rows: flower, petal_width, serving_default" in log


def test_an_iris_that_every_model_must_get_right(deployed: Finished) -> None:
    """`validation.inputs` of the example asked for a setosa, and got it."""
    assert deployed.checks["validation.inputs[0] flower species"]["rule"] == "equals the file setosa.npy"


def test_versions_may_be_numbered_from_one(deployed: Finished, module_slipway: Slipway) -> None:
    """`export.version_names: sequential` names the first version 0001."""
    assert deployed.verdict["version"] == 1
    assert (module_slipway.home / "models" / "two-heads" / "0001" / "saved_model.pb").is_file()


def test_the_classifying_head_names_the_species(deployed: Finished, flowers: list[Any]) -> None:
    """Names come from the vocabulary that travelled with the model, best scores at the true species."""
    with asked(deployed) as stub:
        response = stub.Classify(request_about("classify", deployed, "", flowers), timeout=30)
    rows = [row.classes for row in response.result.classifications]
    assert [each.label.encode() for each in rows[0]] == SPECIES
    best = [max(row, key=lambda each: each.score).label.encode() for row in rows]
    true = [flower.features.feature["species"].bytes_list.value[0] for flower in flowers]
    assert np.mean(np.array(best) == np.array(true)) >= 0.8


def test_the_regressing_head_answers_by_its_name(deployed: Finished, flowers: list[Any]) -> None:
    """Regress with signature_name petal_width says the width, to about 2 mm."""
    with asked(deployed) as stub:
        response = stub.Regress(request_about("regress", deployed, "petal_width", flowers), timeout=30)
    served = [each.value for each in response.result.regressions]
    true = [flower.features.feature["petal_width"].float_list.value[0] for flower in flowers]
    assert np.sqrt(np.mean(np.square(np.subtract(served, true)))) < 0.5


def test_the_predicting_head_answers_both(deployed: Finished, flowers: list[Any]) -> None:
    """Predict with signature_name flower gives the same numbers as the two other heads, in one answer."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "two-heads", "flower"
    records = [flower.SerializeToString() for flower in flowers]
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(records))
    with asked(deployed) as stub:
        outputs = stub.Predict(request, timeout=30).outputs
        regressed = stub.Regress(request_about("regress", deployed, "petal_width", flowers), timeout=30)
    assert set(tf.make_ndarray(outputs["species"])) <= set(SPECIES)
    widths = np.float32([each.value for each in regressed.result.regressions])
    assert tf.make_ndarray(outputs["petal_width"]).tolist() == widths.tolist()


def test_two_heads_in_one_request(deployed: Finished, flowers: list[Any]) -> None:
    """MultiInference asks the classifying and the regressing head at once."""
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    request.input.example_list.examples.extend(flowers[:4])
    for signature, kind in (("serving_default", "classify"), ("petal_width", "regress")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "two-heads", signature
    with asked(deployed) as stub:
        results = stub.MultiInference(request, timeout=30).results
    assert len(results[0].classification_result.classifications) == 4
    assert len(results[1].regression_result.regressions) == 4
