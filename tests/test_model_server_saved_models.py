"""Every kind of SavedModel is loaded with its variables, assets, tables and init ops."""

from __future__ import annotations

from pathlib import Path

import pytest
import saved_model_exports
from model_server_fixtures import RunningServer, StartServer

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import config, entry
from model_server_requests import TIMEOUT, predict_request, spec, stub
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import inference_pb2

KINDS = ("tf1", "tf1_text", "tf2")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exports")
    saved_model_exports.export(directory)
    return directory


def start(start_server: StartServer, exports: Path, kinds: tuple[str, ...], *flags: str) -> RunningServer:
    file = exports / f"{'-'.join(kinds)}.config"
    file.write_text(config(*(entry(kind, exports / kind) for kind in kinds)))
    return start_server(exports, f"--model_config_file={file}", *flags)


@pytest.fixture(scope="module")
def server(start_server: StartServer, exports: Path) -> RunningServer:
    return start(start_server, exports, KINDS)


def places(server: RunningServer, model: str, *words: str) -> list[float]:
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[word.encode() for word in words])
    tensor.tensor_shape.dim.add(size=len(words))
    answered = stub(server).Predict(predict_request(spec(model), words=tensor), timeout=TIMEOUT)
    return list(answered.outputs["y"].float_val)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_answers_from_its_assets_and_variables(server: RunningServer, kind: str) -> None:
    """Of TF1 and TF2, as saved_model.pb and as saved_model.pbtxt."""
    assert places(server, kind, "sail", "keel", "anchor") == [102.0, 100.0, 99.0]


def test_the_text_export_is_text(exports: Path) -> None:
    """So that the test before means something."""
    assert (exports / "tf1_text" / "1" / "saved_model.pbtxt").is_file()
    assert not (exports / "tf1_text" / "1" / "saved_model.pb").exists()


def test_multi_inference_of_tf2(server: RunningServer) -> None:
    """Each task's own placeholder is fed with the same examples: signatures of TF2 share none."""
    request = inference_pb2.MultiInferenceRequest()
    for method in ("regress", "classify"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.CopyFrom(spec("tf2", signature=method))
    for word in (b"sail", b"anchor"):
        example = request.input.example_list.examples.add()
        example.features.feature["word"].bytes_list.value.append(word)
    regressed, classified = stub(server).MultiInference(request, timeout=TIMEOUT).results
    assert [each.value for each in regressed.regression_result.regressions] == [102.0, 99.0]
    rows = classified.classification_result.classifications
    assert [[each.score for each in row.classes] for row in rows] == [[102.0, -102.0], [99.0, -99.0]]


def test_the_init_op_of_tf2_is_in_the_metadata(server: RunningServer) -> None:
    """As the official server lists it."""
    code, metadata = server.get("/v1/models/tf2/metadata")
    assert code == 200
    assert set(metadata["metadata"]["signature_def"]["signature_def"]) == {
        "serving_default",
        "regress",
        "classify",
        "__saved_model_init_op",
    }


def test_tags_choose_among_several_meta_graphs(start_server: StartServer, exports: Path) -> None:
    """--saved_model_tags names all tags of the one that is meant, in any order; each has its own graph."""
    doubled = start(start_server, exports, ("tf1",), "--saved_model_tags=doubled,serve")
    assert places(doubled, "tf1", "mast") == [201.0]


def test_tags_that_no_meta_graph_has_are_named(start_server: StartServer, exports: Path) -> None:
    """TF2 models have one MetaGraph, "serve": exit 255 with the official text."""
    flags = (f"--model_base_path={exports / 'tf2'}", "--saved_model_tags=doubled", "--max_num_load_retries=0")
    server = start_server(exports, *flags, wait=False)
    assert server.exit_code() == 255
    assert "Could not find meta graph def matching supplied tags: { doubled }." in server.log
