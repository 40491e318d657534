"""Which requests share a run of the graph: those of signatures whose rows are known to be independent."""

from __future__ import annotations

import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import row_graphs
import tensorflow as tf
from model_server_fixtures import RunningServer, StartServer, open_channel
from model_server_lives import config, entry
from model_server_requests import TIMEOUT
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc
from waiting import eventually

from model_server.api.grpc.grpc_loop import handler_of
from model_server.api.grpc.servicers import PREDICTION_SERVICE, prediction_service
from model_server.base import flags, version_settings
from model_server.base.status import StatusError
from model_server.models import servable
from model_server.models.routing import Route, RoutingTable
from model_server.models.servable_store import ServableStore
from model_server.requests.inference import Inference

pytest_plugins = ["model_server_fixtures"]
MODELS = ("rows", "rows_v1")
CLIENTS = 32
VARIANTS = 4  # requests of a signature, with the right answers
OPTIONS = flags.parse([], {}).options


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    row_graphs.export(folder)
    return folder


def signatures_of(version: Path) -> dict[str, Any]:
    content = (version / "saved_model.pb").read_bytes()
    signatures = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    return {key: value for key, value in signatures.items() if key.startswith(("independent", "dependent"))}


@pytest.mark.parametrize("model", MODELS)
def test_the_table(graphs: Path, model: str) -> None:
    """Every graph is known for what it is; most depend on other rows, in some devious way."""
    version = servable.load(graphs / model / "1", 1, OPTIONS)
    found = {key: version.dependences[key] for key in signatures_of(graphs / model / "1")}
    version.close()
    wrong = {key: why for key, why in found.items() if bool(why) != key.startswith("dependent")}
    assert not wrong


@dataclass(frozen=True)
class Question:
    model: str
    signature: str
    value: Any
    expected: Any

    def request(self) -> predict_pb2.PredictRequest:
        spec = model_pb2.ModelSpec(name=self.model, signature_name=self.signature)
        tensor = tf.make_tensor_proto(self.value)
        return predict_pb2.PredictRequest(model_spec=spec, inputs={"x": tensor})

    def is_right(self, answer: Any) -> bool:
        got = tf.make_ndarray(answer.outputs["y"])
        return got.shape == self.expected.shape and np.allclose(
            got, self.expected, rtol=1e-5, atol=1e-6, equal_nan=True
        )


class Oracle:
    """Questions about all signatures, with the answers of a session that nobody else uses."""

    def __init__(self, graphs: Path) -> None:
        self._sessions = {}
        for model in MODELS:
            session = tf.compat.v1.Session(graph=tf.Graph())
            with session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(graphs / model / "1"))
            self._sessions[model] = (session, meta_graph.signature_def)
        self.signatures = [(model, key) for model in MODELS for key in signatures_of(graphs / model / "1")]

    def question(self, model: str, key: str, random_: random.Random) -> Question:
        session, signatures = self._sessions[model]
        feed, fetch = signatures[key].inputs["x"], signatures[key].outputs["y"]
        rows = random_.randint(1, 4)
        value = np.array(
            [[random_.uniform(-2, 2) for _ in range(row_graphs.COLUMNS)] for _ in range(rows)], np.float32
        )
        if feed.dtype == tf.string.as_datatype_enum:
            value = np.array([_example(row, random_) for row in value], object)
        return Question(model, key, value, session.run(fetch.name, {feed.name: value}))


def _example(row: Any, random_: random.Random) -> bytes:
    words = [random_.choice(row_graphs.WORDS).encode() for _ in range(random_.randint(0, 3))]
    features = {
        "x": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
        "words": tf.train.Feature(bytes_list=tf.train.BytesList(value=words)),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_no_client_gets_a_wrong_answer(graphs: Path, start_server: StartServer) -> None:
    """32 clients at one time ask all signatures over the port; a private session has said what is right."""
    (graphs / "models.cfg").write_text(config(*(entry(model, graphs / model) for model in MODELS)))
    server = start_server(
        graphs,
        "--model_base_path=",
        f"--model_config_file={graphs}/models.cfg",
        "--enable_model_warmup=false",
    )
    oracle, random_ = Oracle(graphs), random.Random(1)
    known = [[oracle.question(*each, random_) for _ in range(VARIANTS)] for each in oracle.signatures]
    start = threading.Barrier(CLIENTS)

    def ask(client: int) -> list[str]:
        # All clients ask the signatures in one order, so that there are runs to share.
        chooses = random.Random(client)
        questions = [chooses.choice(variants) for variants in known]
        with open_channel(f"127.0.0.1:{server.port}") as channel:
            predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            start.wait(TIMEOUT)
            answers = [predict(each.request(), timeout=TIMEOUT) for each in questions]
        pairs = zip(questions, answers, strict=True)
        return [each.signature for each, answer in pairs if not each.is_right(answer)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [signature for some in pool.map(ask, range(CLIENTS)) for signature in some]
    assert not wrong
    log = server.log
    assert "rows/1: independent rows: independent_along_columns, " in log
    assert "rows/1: rows of dependent_listwise may depend on one another: output y: " in log


class Call:
    """What a transport hands over."""

    method = "Predict"
    started_ns = 0

    def __init__(self, question: Question) -> None:
        self.question = question
        self.message = question.request().SerializeToString()
        self.result: Any = None

    def time_remaining(self) -> None:
        return None

    def answer(self, response: bytes) -> None:
        self.result = predict_pb2.PredictResponse.FromString(response)

    def fail(self, code: Any, message: str, retry_milliseconds: int | None = None) -> None:
        self.result = message


class Engine:
    """An Inference over one version, which records the rows of each run."""

    def __init__(self, version: Path, model: str, sharing: str = "auto") -> None:
        store = ServableStore(lambda directory, number: servable.load(directory, number, OPTIONS))
        store.load(model, 1, version)
        store.publish(RoutingTable(1, {model: Route(frozenset({1}))}))
        service = prediction_service(store, check_method_names=False)
        handlers = {"Predict": handler_of(service, f"/{PREDICTION_SERVICE}/Predict")}
        self.inference = Inference(store, handlers, 4, check_method_names=False, sharing=sharing)
        self.runs: list[int] = []
        session = store._loaded[model, 1].servable.session
        run_to = session.run_to

        def counted(form: Any, feeds: Any, values: Any, *more: Any) -> Any:
            self.runs.append(len(values[0]))
            return run_to(form, feeds, values, *more)

        session.run_to = counted  # type: ignore[method-assign]

    def ask(self, *calls: Call) -> list[Any]:
        for call in calls:
            self.inference.accept(call)
        self.inference.run()
        return [eventually(lambda call=call: call.result, every=0.001) for call in calls]


def test_who_shares_a_run(graphs: Path) -> None:
    """Three requests that wait are one run if rows are independent, else three; or as the setting says."""
    oracle = Oracle(graphs)
    for signature, sharing, runs in (
        ("independent_dense", "auto", 1),
        ("dependent_listwise", "auto", 3),
        ("dependent_listwise", "on", 1),
        ("independent_dense", "off", 3),
    ):
        engine = Engine(graphs / "rows" / "1", "rows", sharing)
        calls = [Call(oracle.question("rows", signature, random.Random(seed))) for seed in range(3)]
        right = [
            call.question.is_right(answer) for call, answer in zip(calls, engine.ask(*calls), strict=True)
        ]
        assert len(engine.runs) == runs, (signature, sharing)
        assert all(right) is ((signature, sharing) != ("dependent_listwise", "on"))


def test_values_of_another_rank_run_alone(graphs: Path) -> None:
    """Softmax keeps the rows of a matrix apart, not the elements of a vector, which nothing refuses."""
    engine = Engine(graphs / "rows_v1" / "1", "rows_v1")
    vectors = [np.array(values, np.float32) for values in ([1, 2], [3, 5], [0, 9])]
    expected = [np.exp(each) / np.exp(each).sum() for each in vectors]
    pairs = zip(vectors, expected, strict=True)
    calls = [Call(Question("rows_v1", "independent_v1_softmax", *pair)) for pair in pairs]
    assert all(call.question.is_right(answer) for call, answer in zip(calls, engine.ask(*calls), strict=True))
    assert engine.runs == [2, 2, 2]


@pytest.mark.parametrize(("stated", "runs"), [(True, 1), (False, 3)])
def test_a_version_states_it(graphs: Path, tmp_path: Path, stated: bool, runs: int) -> None:
    """assets.extra/serving.json overrides the analysis, both ways."""
    version = tmp_path / "1"
    shutil.copytree(graphs / "rows" / "1", version)
    (version / version_settings.FILE).parent.mkdir(exist_ok=True)
    (version / version_settings.FILE).write_text(json.dumps({"row_independent": stated}))
    signature = "dependent_listwise" if stated else "independent_dense"
    engine = Engine(version, "rows")
    questions = [Oracle(graphs).question("rows", signature, random.Random(seed)) for seed in range(3)]
    engine.ask(*map(Call, questions))
    assert len(engine.runs) == runs


@pytest.mark.parametrize(
    "content", ['{"row_independent": 1}', '{"row_independent"', "[]", '"row_independent"']
)
def test_a_version_that_states_nonsense_is_refused(graphs: Path, tmp_path: Path, content: str) -> None:
    """The file is named, and what is expected in it."""
    version = tmp_path / "1"
    shutil.copytree(graphs / "rows_v1" / "1", version)
    file = version / version_settings.FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    with pytest.raises(StatusError, match=r"serving.json: .*expected a JSON object") as caught:
        servable.load(version, 1, OPTIONS)
    assert str(file) in str(caught.value)


def test_queues_that_were_ordered_are_kept(graphs: Path, start_server: StartServer) -> None:
    """--enable_batching lets all requests share runs, as in the official server, and warns of it."""
    server: RunningServer = start_server(graphs / "rows", "--enable_batching", name="rows")
    assert "--enable_batching lets requests share runs whose rows may depend on one another: " in server.log
