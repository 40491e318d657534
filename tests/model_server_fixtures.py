"""What the tests of the model server share: models whose answers one can check by head, and servers.

Version v of the model says `x / 2 + 1 + v`: the first is "half plus two". Run as a program, this file
exports versions: `python model_server_fixtures.py DIRECTORY VERSION…`.

PYTEST_DONT_REWRITE: its plugin is registered by test modules, which import it first.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from free_ports import free_port
from made_once import made_once

pytest_plugins = ["model_server_image"]
NAME = "half_plus_two"
DEADLINE_SECONDS = 60.0
_VERSIONS = (1, 2, 3, 4, 5)
SIGNATURES = (
    "\nSignatures: classes_only, classify, defaulted, double_outputs, double_scores, everything, "
    "flat_scores, no_scores, one_output, one_row and 9 more"
)
"""What follows the official text where a signature is asked for that the model has not."""


def expected(x: float, version: float = 1) -> float:
    """What version `version` answers to `x`."""
    return x / 2 + 1 + version


class Models:
    """Exported versions to copy from, and the one way in which tests put them in place."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def publish(self, base_path: Path, version: int) -> Path:
        """Make the version visible to a server at once, as a pipeline would."""
        base_path.mkdir(parents=True, exist_ok=True)
        candidate = base_path / f"{version}.candidate"
        shutil.copytree(self.store / str(version), candidate)
        return candidate.rename(base_path / str(version))


class Endpoint:
    """Where a server is asked, through real stubs and real HTTP."""

    def __init__(self, port: int, rest_port: int, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.port = port
        self.rest_port = rest_port
        self.channel = open_channel(f"127.0.0.1:{port}", credentials)

    def get(self, path: str) -> tuple[int, Any]:
        """GET over HTTP: the status, and the body as JSON."""
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """POST over HTTP; bytes go as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, data, headers)

    def raw(
        self, method: str, path: str, body: bytes | None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Any request over HTTP: status, headers and bytes; `_` in a header's name stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=DEADLINE_SECONDS)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any]:
        status, _, answer = self.raw(method, path, body, **headers)
        return status, json.loads(answer)


class RunningServer(Endpoint):
    """A server process of its own."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        log: Path,
        port: int,
        rest_port: int,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(port, rest_port, credentials)
        self.process = process
        self.log_path = log

    @property
    def log(self) -> str:
        """What the server has written so far, standard output and error together."""
        return self.log_path.read_text()

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def wait_until_ready(self) -> RunningServer:
        """Wait for the gRPC port; fails with the log when the process ends before that."""
        ready = grpc.channel_ready_future(self.channel)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                ready.result(timeout=0.05)
                return self
            except grpc.FutureTimeoutError:
                if self.process.poll() is not None:
                    break
        pytest.fail(f"the server is not ready (exit code {self.process.poll()}):\n{self.log}")

    def wait_for_log(self, text: str, seconds: float = DEADLINE_SECONDS) -> str:
        """Wait until `text` is in the log, and return the log."""
        wait_until(lambda: text in self.log, f"{text!r} in the log", lambda: self.log, seconds)
        return self.log

    def exit_code(self) -> int:
        """Wait for the process to end by itself."""
        return self.process.wait(DEADLINE_SECONDS)

    def ask_to_stop(self) -> None:
        """Have it drain."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Drain the server, or kill it where it does not end in time."""
        self.ask_to_stop()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)


StartServer = Callable[..., RunningServer]


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Return a channel with connections of its own, and no limit to messages."""
    # A local subchannel pool: a channel to a port that an earlier server had starts afresh.
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    if credentials:
        return grpc.secure_channel(address, credentials, options)
    return grpc.insecure_channel(address, options)


def wait_until(
    condition: Callable[[], Any],
    what: str,
    context: Callable[[], str] = str,
    seconds: float = DEADLINE_SECONDS,
) -> Any:
    """Ask until the condition holds, and return its value; fails with `context()` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    return pytest.fail(f"waited {seconds} seconds for {what}\n{context()}")


@pytest.fixture(scope="session")
def models() -> Models:
    """Versions 1 to 5, exported by a child process, once for all workers."""
    return made_once("model_versions", _exported)


def _exported(store: Path) -> Models:
    subprocess.run(
        [sys.executable, __file__, str(store), *map(str, _VERSIONS)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
        capture_output=True,
    )
    return Models(store)


@contextmanager
def servers() -> Iterator[StartServer]:
    """Yield what starts a server for a base path; what still runs at the end of the block is stopped."""
    started: list[RunningServer] = []
    logs = Path(tempfile.mkdtemp())

    def start(
        base_path: Path,
        *flags: str,
        name: str = NAME,
        wait: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
        **env: str,
    ) -> RunningServer:
        port, rest_port = free_port(), free_port()
        log = logs / f"{len(started)}.log"
        defaults = {
            "port": str(port),
            "rest_api_port": str(rest_port),
            "model_name": name,
            "model_base_path": str(base_path),
        }
        given = {flag.removeprefix("--").partition("=")[0] for flag in flags}
        arguments = [f"--{key}={value}" for key, value in defaults.items() if key not in given]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "model_server", *arguments, *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "MODEL_SERVER_HOST": "127.0.0.1", "MODEL_SERVER_PROCESSES": "1", **env},
            )
        server = RunningServer(process, log, port, rest_port, credentials)
        started.append(server)
        return server.wait_until_ready() if wait else server

    try:
        yield start
    finally:
        for server in started:  # all of them drain at the same time
            server.ask_to_stop()
        for server in started:
            server.stop()
        shutil.rmtree(logs)


@pytest.fixture(scope="module")
def start_server() -> Iterator[StartServer]:
    """Start a server for a base path; none outlives the module's tests: idle ones cost memory and polls."""
    with servers() as start:
        yield start


@pytest.fixture(scope="session")
def half_plus_two_process(
    models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server of version 1 alone, for tests that change nothing."""
    base_path = tmp_path_factory.mktemp("half_plus_two")
    models.publish(base_path, 1)
    with servers() as start:
        yield start(base_path)


@pytest.fixture(scope="session", params=["process", pytest.param("image", marks=pytest.mark.docker)])
def half_plus_two(request: pytest.FixtureRequest) -> Endpoint:
    """The same as a process and in a container of the image, with one set of tests for both."""
    names = {"process": "half_plus_two_process", "image": "container"}
    server: Endpoint = request.getfixturevalue(names[request.param])
    return server


def _export(directory: Path, version: int) -> None:
    import tensorflow.compat.v1 as tf

    signature = tf.saved_model.build_signature_def
    info = tf.saved_model.build_tensor_info
    with tf.Graph().as_default(), tf.Session() as session:
        half = tf.Variable(0.5)
        added = tf.Variable(1.0 + version)
        x = tf.placeholder(tf.float32, [None, 1], "x")
        y = x * half + added
        serialized = tf.placeholder(tf.string, [None], "serialized")
        parsed = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        of_examples = parsed["x"] * half + added
        labels = tf.tile(tf.constant([["up", "down"]]), [tf.shape(of_examples)[0], 1])
        scores = tf.concat([of_examples, -of_examples], axis=1)
        text = tf.placeholder(tf.string, [None], "text")
        a = tf.placeholder(tf.int32, [None], "a")
        b = tf.placeholder(tf.float32, [None], "b")
        turns = tf.placeholder(tf.int64, [], "turns")
        turned = tf.while_loop(lambda i: i < turns, lambda i: i + 1, [tf.constant(0, tf.int64)])
        everything = {
            name: tf.placeholder(dtype, None, f"any_{name}")
            for name, dtype in (
                ("double", tf.float64), ("int8", tf.int8), ("int64", tf.int64), ("bool", tf.bool),
                ("uint64", tf.uint64), ("half", tf.float16), ("bfloat16", tf.bfloat16),
                ("complex64", tf.complex64),
            )
        }  # fmt: skip
        signatures = {
            "serving_default": signature({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"),
            "regress": signature(
                {"inputs": info(serialized)}, {"outputs": info(of_examples)}, "tensorflow/serving/regress"
            ),
            "regress_flat": signature(
                {"inputs": info(serialized)},
                {"outputs": info(of_examples[:, 0])},
                "tensorflow/serving/regress",
            ),
            "classify": signature(
                {"inputs": info(serialized)},
                {"classes": info(labels), "scores": info(scores)},
                "tensorflow/serving/classify",
            ),
            "scores_only": signature(
                {"inputs": info(serialized)}, {"scores": info(scores)}, "tensorflow/serving/classify"
            ),
            "classes_only": signature(
                {"inputs": info(serialized)}, {"classes": info(labels)}, "tensorflow/serving/classify"
            ),
            "flat_scores": signature(
                {"inputs": info(serialized)}, {"scores": info(of_examples[:, 0])}, "odd"
            ),
            "double_scores": signature(
                {"inputs": info(serialized)}, {"scores": info(tf.cast(scores, tf.float64))}, "odd"
            ),
            "one_row": signature({"inputs": info(serialized)}, {"scores": info(scores[:1])}, "odd"),
            "uneven": signature(
                {"inputs": info(serialized)}, {"classes": info(labels), "scores": info(of_examples)}, "odd"
            ),
            "no_scores": signature({"inputs": info(serialized)}, {"y": info(of_examples)}, "odd"),
            "wide_outputs": signature({"inputs": info(serialized)}, {"outputs": info(scores)}, "odd"),
            "one_output": signature({"inputs": info(serialized)}, {"outputs": info(of_examples[:1])}, "odd"),
            "double_outputs": signature(
                {"inputs": info(serialized)}, {"outputs": info(tf.cast(of_examples, tf.float64))}, "odd"
            ),
            "text": signature(
                {"text": info(text)}, {"text": info(tf.identity(text)), "text_bytes": info(text + "!")}, "p"
            ),
            "two_inputs": signature(
                {"a": info(a), "b": info(b)},
                {"sum": info(tf.cast(a, tf.float32) + b), "product": info(tf.cast(a, tf.float32) * b)},
                "p",
            ),
            "turns": signature({"turns": info(turns)}, {"turned": info(turned)}, "p"),
            "everything": signature(
                {name: info(tensor) for name, tensor in everything.items()},
                {name: info(tf.identity(tensor)) for name, tensor in everything.items()},
                "p",
            ),
        }
        defaulted = signature(
            {"a": info(a), "b": info(b)},
            {"sum": info(tf.cast(a, tf.float32) + b)},
            "tensorflow/serving/predict",
        )
        defaulted.defaults["b"].CopyFrom(tf.make_tensor_proto([10.0]))
        signatures["defaulted"] = defaulted
        session.run(tf.global_variables_initializer())
        builder = tf.saved_model.Builder(str(directory / str(version)))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


if __name__ == "__main__":
    for _version in sys.argv[2:]:
        _export(Path(sys.argv[1]), int(_version))
