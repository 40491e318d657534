"""--enable_batching: what shares a run, what is padded or split, and what fails, which fails alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from model_server_fixtures import (
    NAME,
    Models,
    RunningServer,
    StartServer,
    expected,
    open_channel,
    wait_until,
)

from model_server.base.status import Code, StatusError

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
import tensorflow.compat.v1 as tf
from model_server_lives import config, entry
from model_server_requests import (
    TIMEOUT,
    classify_request,
    error_of,
    floats,
    ints,
    predict_request,
    spec,
    stub,
    turns_request,
)
from tensorflow_serving.apis import prediction_service_pb2_grpc

from model_server.base import flags
from model_server.batching import batching_parameters
from model_server.batching.batching import BatchingSession
from model_server.batching.batching_parameters import BatchingParameters

PAGE = "/metrics"
FOREVER = 10**12  # microseconds: a batch goes when it is full, and not before
METRICS = ":tensorflow:serving:batching_session:"


def count(server: RunningServer, name: str) -> float:
    """Return the sum of a metric's lines over all labels."""
    page = server.raw("GET", PAGE, None)[2].decode()
    return sum(float(found) for found in re.findall(rf"^{METRICS}{name}{{.*}} (\S+)$", page, re.MULTILINE))


def start(
    start_server: StartServer, folder: Path, models: Models, *arguments: str, **env: str
) -> RunningServer:
    (folder / "monitoring.cfg").write_text(f'prometheus_config {{ enable: true path: "{PAGE}" }}')
    arguments = (f"--monitoring_config_file={folder}/monitoring.cfg", "--enable_batching", *arguments)
    return start_server(folder / "base", *arguments, **env)


@pytest.fixture(scope="module")
def server(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """A server whose batches go when they have four rows."""
    folder = tmp_path_factory.mktemp("batching")
    models.publish(folder / "base", 1)
    file = folder / "batching.cfg"
    file.write_text(
        "max_batch_size { value: 4 } max_enqueued_batches { value: 1 } num_batch_threads { value: 1 } "
        f'batch_timeout_micros {{ value: {FOREVER} }} thread_pool_name {{ value: "pool" }}'
    )
    return start(start_server, folder, models, f"--batching_parameters_file={file}")


class Caller:
    """Asks without waiting for the answer; each request is in its queue before the next one is sent."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._queued = count(server, "input_batch_size_count")

    def ask(self, request: Any) -> Any:
        return self._when_queued(stub(self._server).Predict.future(request, timeout=TIMEOUT))

    def post(self, body: Any) -> Any:
        pool = ThreadPoolExecutor(1)
        answer = pool.submit(self._server.post, f"/v1/models/{NAME}:predict", body)
        pool.shutdown(wait=False)
        return self._when_queued(answer)

    def _when_queued(self, answer: Any) -> Any:
        self._queued += 1
        wait_until(
            lambda: count(self._server, "input_batch_size_count") >= self._queued,
            "the request in its queue",
            lambda: f"{answer}\n{self._server.log}",
        )
        return answer


@pytest.fixture
def caller(server: RunningServer) -> Caller:
    return Caller(server)


def y(answer: Any) -> list[float]:
    return list(answer.result().outputs["y"].float_val)


def strings(*values: bytes) -> Any:
    return tf.make_tensor_proto(np.array(values, np.object_))


def serialized(x: float) -> bytes:
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[x]))
    example: bytes = tf.train.Example(features=tf.train.Features(feature={"x": feature})).SerializeToString()
    return example


def everything(*doubles: Sequence[float]) -> Any:
    """Return a request whose graph takes any shape, and gives it back."""
    rows = len(doubles)
    zeros = {
        name: tf.make_tensor_proto(np.zeros(rows, dtype.as_numpy_dtype))
        for name, dtype in (
            ("int8", tf.int8), ("int64", tf.int64), ("bool", tf.bool), ("uint64", tf.uint64),
            ("half", tf.float16), ("bfloat16", tf.bfloat16), ("complex64", tf.complex64),
        )
    }  # fmt: skip
    given = tf.make_tensor_proto(np.array(doubles, np.float64))
    return predict_request(spec(signature="everything"), ("double",), double=given, **zeros)


def doubles_of(answer: Any) -> Any:
    return tf.make_ndarray(answer.result().outputs["double"]).tolist()


def test_callers_share_a_run(server: RunningServer, caller: Caller) -> None:
    """Over gRPC and REST alike; each gets its own rows, and the official metrics count."""
    names = ("wrapped_run_count", "processed_batch_size_sum", "input_batch_size_sum", "queuing_latency_count")
    before = [count(server, name) for name in names]
    first = caller.ask(predict_request(x=floats(1)))
    second = caller.ask(predict_request(x=floats(2, 3)))
    third = caller.post({"instances": [[4.0]]})
    assert y(first) == [expected(1)]
    assert y(second) == [expected(2), expected(3)]
    assert third.result() == (200, {"predictions": [[expected(4)]]})
    assert [count(server, name) - old for name, old in zip(names, before, strict=True)] == [1, 4, 4, 3]
    assert (
        f'{METRICS}queuing_latency_count{{thread_pool_name="pool"}}'
        in server.raw("GET", PAGE, None)[2].decode()
    )


def test_classify_is_batched_too(server: RunningServer) -> None:
    """Examples are rows: four of them are a batch."""
    answer = stub(server).Classify(classify_request("classify", 1, 2, 3, 4), timeout=TIMEOUT)
    scores = [row.classes[0].score for row in answer.result.classifications]
    assert scores == [expected(x) for x in (1, 2, 3, 4)]


def test_a_malformed_request_fails_alone(server: RunningServer, caller: Caller) -> None:
    """Where the official server fails the whole batch: after it each request is run by itself."""
    before = count(server, "wrapped_run_count")

    def ask(*values: bytes) -> Any:
        return caller.ask(predict_request(spec(signature="regress"), inputs=strings(*values)))

    good, bad, other = ask(serialized(1)), ask(b"no Example"), ask(serialized(2), serialized(3))
    assert list(good.result().outputs["outputs"].float_val) == [expected(1)]
    assert list(other.result().outputs["outputs"].float_val) == [expected(2), expected(3)]
    assert bad.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Could not parse example input" in bad.exception().details()
    assert count(server, "wrapped_run_count") - before == 4


def test_other_shapes_and_types_run_apart(caller: Caller) -> None:
    """Where the official server answers FAILED_PRECONDITION to the whole batch, unless padding is on."""
    narrow, wide = caller.ask(everything([1, 2], [3, 4])), caller.ask(everything([1, 2, 3], [4, 5, 6]))
    assert (doubles_of(narrow), doubles_of(wide)) == ([[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]])
    good, bad = caller.ask(predict_request(x=floats(1, 2))), caller.ask(predict_request(x=ints(1, 2)))
    assert y(good) == [expected(1), expected(2)]
    assert bad.exception().code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_full_queue_is_unavailable(server: RunningServer, caller: Caller) -> None:
    """In the official words; what waits is not disturbed, and what still fits is taken."""
    waiting = caller.ask(predict_request(x=floats(1)))
    assert error_of(stub(server).Predict, predict_request(x=floats(1, 2, 3, 4))) == (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; currently 1 batches enqueued "
        "and max_enqueued_batches is 1",
    )
    status, body = server.post(f"/v1/models/{NAME}:predict", {"instances": [[1.0]] * 4})
    assert (status, body["error"][:31]) == (503, "The batch scheduling queue to w")
    fits = caller.ask(predict_request(x=floats(2, 3, 4)))
    assert y(waiting) + y(fits) == [expected(x) for x in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (
            predict_request(x=floats(1, 2, 3, 4, 5)),
            ("INVALID_ARGUMENT", "Task size 5 is larger than maximum input batch size 4"),
        ),
        (
            turns_request(1),
            ("INVALID_ARGUMENT", "Batching Run() input tensors must have at least one dimension"),
        ),
        (
            predict_request(spec(signature="two_inputs"), a=ints(1), b=floats(1, 2, shape=(2,))),
            ("INVALID_ARGUMENT", "Batching Run() input tensors must have equal 0th-dimension size"),
        ),
        (
            predict_request(spec(signature="one_row"), inputs=strings(*[serialized(1)] * 4)),
            (
                "FAILED_PRECONDITION",
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes "
                "of the input tensors",
            ),
        ),
    ],
)
def test_what_cannot_be_batched(server: RunningServer, request_: Any, error: tuple[str, str]) -> None:
    """The official texts."""
    assert error_of(stub(server).Predict, request_) == error


def test_no_rows_need_no_batch(server: RunningServer) -> None:
    """They do not wait for others."""
    answer = stub(server).Predict(predict_request(x=floats(shape=(0, 1))), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == []


@pytest.fixture(scope="module")
def fleet(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """Two processes, and models by their own files: "late" waits for long, "padded" is, "plain" has none."""
    folder = tmp_path_factory.mktemp("per_model")
    own = {
        "late": "max_batch_size { value: 4 } batch_timeout_micros { value: 100000 }",
        "padded": "max_batch_size { value: 4 } allowed_batch_sizes: [3, 4] pad_variable_length_inputs: true "
        "max_execution_batch_size { value: 3 } enable_large_batch_splitting { value: true } "
        f"batch_timeout_micros {{ value: {FOREVER} }}",
        "plain": "",
    }
    for name, text in own.items():
        version = models.publish(folder / name, 1)
        if text:
            (version / batching_parameters.PER_MODEL_FILE).write_text(text)
    (folder / "models.cfg").write_text(config(*(entry(name, folder / name) for name in own)))
    return start(
        start_server,
        folder,
        models,
        "--enable_per_model_batching_parameters",
        "--rest_api_timeout_in_ms=1",
        "--model_base_path=",
        f"--model_config_file={folder}/models.cfg",
        MODEL_SERVER_PROCESSES="2",
    )


def test_a_time_that_is_over_in_the_queue(fleet: RunningServer) -> None:
    """RESOURCE_EXHAUSTED, which over REST is 429."""
    assert fleet.post("/v1/models/late:predict", {"instances": [[1.0]]}) == (
        429,
        {"error": "Run() timeout exceeded while waiting in batching queue"},
    )


def test_a_model_without_a_file_of_its_own_is_not_batched(fleet: RunningServer) -> None:
    """In every process: on whichever connection, scalars are refused where they cannot be batched."""
    for _ in range(6):
        channel = open_channel(f"127.0.0.1:{fleet.port}")
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        request = turns_request(3)
        request.model_spec.name = "plain"
        assert predict(request, timeout=TIMEOUT).outputs["turned"].int64_val[0] == 3
        request.model_spec.name = "late"
        assert error_of(predict, request)[0] == "INVALID_ARGUMENT"
        channel.close()


def test_padding(fleet: RunningServer) -> None:
    """Of three waiting requests two are padded to the width of the widest, by their first elements."""
    caller = Caller(fleet)
    requests = [everything([1]), everything([2, 3, 4]), everything([5, 6])]
    for request in requests:
        request.model_spec.name = "padded"
    answers = [caller.ask(request) for request in requests]
    assert [doubles_of(answer) for answer in answers] == [[[1, 1, 1]], [[2, 3, 4]], [[5, 6, 5]]]


def session(
    run: Callable[[Mapping[str, Any], Sequence[str]], list[Any]] | None = None, **parameters: Any
) -> tuple[BatchingSession, list[list[float]]]:
    """Return a session over `run`, the identity if not given, and what is fed in each run."""
    fed: list[list[float]] = []
    lock = threading.Lock()

    def recorded(feeds: Mapping[str, Any], fetches: Sequence[str], _: float | None) -> list[Any]:
        with lock:
            fed.append(feeds["x"].tolist())
        return run(feeds, fetches) if run else [feeds["x"]] * len(fetches)

    return BatchingSession(recorded, BatchingParameters(num_batch_threads=2, **parameters)), fed


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values)}


def test_a_large_request_is_split_and_put_together_again() -> None:
    """Parts of max_execution_batch_size rows; max_batch_size is what a client may send."""
    batching, fed = session(max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=4)
    given = list(range(10))
    assert [value.tolist() for value in batching.run(x(*given), ["a", "b", "a"], None)] == [given] * 3
    assert sorted(fed) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_runs_have_allowed_sizes() -> None:
    """The rows that are missing repeat a real one, and are not answered."""
    batching, fed = session(max_batch_size=8, allowed_batch_sizes=(3, 8))
    assert batching.run(x(1, 2), ["x"], None)[0].tolist() == [1, 2]
    assert batching.run(x(1, 2, 3, 4), ["x"], None)[0].tolist() == [1, 2, 3, 4]
    assert fed == [[1, 2, 1], [1, 2, 3, 4, 1, 1, 1, 1]]


def test_other_outputs_have_a_queue_of_their_own() -> None:
    """The same ones in another order have not."""
    batching, fed = session(max_batch_size=2, batch_timeout_micros=FOREVER)
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(batching.run, x(i), names, None) for i, names in enumerate(("ab", "a", "ba", "a"))
        ]
        assert [answer.result(TIMEOUT)[0].tolist() for answer in answers] == [[0], [1], [2], [3]]
    assert sorted(sorted(rows) for rows in fed) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda feeds, _: [np.float32(1).reshape(())], "Batched output tensor has 0 dimensions"),
        (lambda feeds, _: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_in_a_run_is_said(run: Callable[..., list[Any]], message: str) -> None:
    """By a thread that goes on to the next batch."""
    batching, _ = session(run)
    for _ in range(3):
        with pytest.raises(StatusError, match=message):
            batching.run(x(1), ["x"], None)


def test_a_time_that_was_over_before() -> None:
    """Nothing is run for whom nobody waits for."""
    batching, fed = session()
    with pytest.raises(StatusError) as caught:
        batching.run(x(1), ["x"], 0.0)
    assert (caught.value.code, fed) == (Code.RESOURCE_EXHAUSTED, [])


def test_batches_of_many_callers_lose_and_mix_up_nothing() -> None:
    """Requests of many sizes, split and padded, in two threads."""
    batching, fed = session(
        max_batch_size=7,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        allowed_batch_sizes=(2, 4),
        max_enqueued_batches=10**6,
    )

    def ask(index: int) -> bool:
        given = [index + part / 10 for part in range(1 + index % 7)]
        return bool(batching.run(x(*given), ["x"], TIMEOUT)[0].tolist() == given)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(500)))
    assert {len(rows) for rows in fed} <= {2, 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "allowed_batch_sizes: [2, 4] max_batch_size { value: 8 }",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        ("allowed_batch_sizes: [1000, 2]", "allowed_batch_sizes entries must be monotonically increasing"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("max_batch_size { value: -1 }", "max_batch_size must be positive; was -1"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 1001 }",
            "max_execution_batch_size must not be larger than max_batch_size; was 1001",
        ),
        ("max_batch_size: 8", "Invalid protobuf file"),
    ],
)
def test_parameters_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    """Each is said, with the file that it is in."""
    file = tmp_path / "batching.cfg"
    file.write_text(text)
    options = flags.parse(["--enable_batching", f"--batching_parameters_file={file}"], {}).options
    with pytest.raises(StatusError, match=re.escape(message)) as caught:
        batching_parameters.common(options)
    assert str(file) in str(caught.value)


def test_defaults_and_who_decides(tmp_path: Path) -> None:
    """The official defaults; of a version's own file all but the threads, which all models share."""
    plain = flags.parse(["--enable_batching"], {}).options
    given = batching_parameters.common(plain)
    assert given == BatchingParameters(thread_pool_name="model_server_batch_threads")
    assert (given.max_batch_size, given.batch_timeout_micros, given.max_enqueued_batches) == (1000, 0, 10)
    assert batching_parameters.common(flags.parse([], {}).options) is None
    per_model = flags.parse(["--enable_batching", "--enable_per_model_batching_parameters"], {}).options
    assert batching_parameters.of_version(tmp_path, per_model) is None
    assert batching_parameters.of_version(tmp_path, plain) == given
    file = tmp_path / batching_parameters.PER_MODEL_FILE
    file.write_text("num_batch_threads { value: 99 } max_batch_size { value: 5 }")
    assert batching_parameters.of_version(tmp_path, per_model) == BatchingParameters(
        max_batch_size=5, thread_pool_name="model_server_batch_threads"
    )


def test_a_platform_config_decides_alone(tmp_path: Path) -> None:
    """Its batching_parameters take the place of the flags, as in the official server."""
    file = tmp_path / "platform.cfg"
    file.write_text(
        'platform_configs { key: "tensorflow" value { source_adapter_config { '
        "[type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] { "
        "legacy_config { batching_parameters { max_batch_size { value: 6 } } } } } } }"
    )
    options = flags.parse([f"--platform_config_file={file}"], {}).options
    assert batching_parameters.common(options) == BatchingParameters(max_batch_size=6)
