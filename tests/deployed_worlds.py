"""A served model that faults are done to, a client that asks it all the time, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import httpx
import numpy as np
import psutil
import pytest
from closed_loops import ClosedLoop
from free_ports import free_port
from model_server_fixtures import Models, expected
from pipelines import written
from slipway_command import REPOSITORY, user_environment
from waiting import eventually

from configs.loading.pipelines import Pipeline
from tasks.answers import kept_answers, offline_answers
from tasks.core.artifacts import Candidate, Signature
from tasks.servers import model_servers
from tasks.state import server_records
from tasks.state.model_versions import candidate_folder, versions
from tasks.state.server_records import ServerRecord

NAME = "faulty"
ASKED = 5.0
"""What the client asks about: version v of the model says 3.5 + v."""
_RECONNECT = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 50)]


class Client(ClosedLoop):
    """Asks over gRPC."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    @property
    def models(self) -> list[int]:
        """Which model answered, each run of the same one noted once."""
        return self.seen

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Callable[[], int]]:
        from model_server_requests import floats, predict_request, spec
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        request = predict_request(spec(NAME), x=floats(ASKED))
        with grpc.insecure_channel(f"127.0.0.1:{self._port}", options=_RECONNECT) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield lambda: _model(stub.Predict(request, timeout=20).outputs["y"].float_val[0])


def _model(number: float) -> int:
    return round(number - expected(ASKED, 0))


class RestClient(Client):
    """Asks over REST, on a connection of its own each time."""

    pause_seconds = 0.01

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Callable[[], int]]:
        a_connection_each = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(limits=a_connection_each, timeout=20, trust_env=False) as client:
            yield lambda: self._ask(client)

    def _ask(self, client: httpx.Client) -> int:
        url = f"http://127.0.0.1:{self._port}/v1/models/{NAME}:predict"
        answer = client.post(url, json={"instances": [[ASKED]]}).raise_for_status()
        return _model(answer.json()["predictions"][0][0])


@dataclass
class Outcome:
    """A line of the table."""

    fault: str
    asked: str
    came_to: str
    answers: int
    failed: int
    seconds: float | None


@dataclass
class World:
    """A pipeline whose candidates are made by hand, its home, and the server that it deploys to."""

    folder: Path
    models: Models
    base: Path
    settings: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    runs: int = 0
    network: str = ""
    """`server.network`, for tests of containers."""

    def __post_init__(self) -> None:
        self.ports = free_port(), free_port()
        self.home = self.folder / "home"
        self.pipeline = self.configured()

    def configured(self, **sections: dict[str, Any]) -> Pipeline:
        """Write the pipeline's YAML; `sections` add keys to what it says by default."""
        config: dict[str, dict[str, Any]] = {
            "export": {"version_names": "sequential", "model_base_path": str(self.base)},
            "deployment": {"target": "process", "grpc_port": self.ports[0], "rest_port": self.ports[1],
                           "load_timeout_seconds": 60, "canary": False},
            "answers": {"samples": 4}, "smoke_test": {"latency_requests": 20},
            "server": {},
        }  # fmt: skip
        for name, keys in sections.items():
            config[name].update(keys)
        # A takeover waits until no client's connection is older.
        ages = {"grpc_channel_arguments": "grpc.max_connection_age_ms=1000"}
        config["server"]["flags"] = {**ages, **config["server"].get("flags", {})}
        data = {"files": ["*.tfrecord"], "features": {"x": "float32[1]"}, "label": {"y": "int64"}}
        return written(self.folder / NAME, {"name": NAME, "data": data, **config})

    def candidate(self, model: int, answers: float | None = None) -> str:
        """Have a validated candidate that answers as `model`, should as `answers`; return its run's id."""
        import tensorflow as tf

        self.runs += 1
        run_id = f"r{self.runs:03d}"
        self.models.publish(self.base, model).rename(candidate_folder(self.base, run_id))
        offline = self.home / "runs" / NAME / run_id / "offline"
        offline.mkdir(parents=True)
        numbers = [float(number) for number in range(4)]
        with tf.io.TFRecordWriter(str(offline_answers.examples_file(offline))) as file:
            for number in numbers:
                feature = tf.train.Feature(float_list=tf.train.FloatList(value=[number]))
                features = tf.train.Features(feature={"x": feature})
                file.write(tf.train.Example(features=features).SerializeToString())
        wanted = [[expected(number, model if answers is None else answers)] for number in numbers]
        offline_answers.write(offline, "predicted", "serving_default", 4, {"y": np.array(wanted, np.float32)})
        signature = Signature(
            "serving_default", "predict", {"x": "float32[-1,1]"}, {"y": "float32[-1,1]"}, "raw"
        )
        made = Candidate(candidate_folder(self.base, run_id), (signature,), offline, len(numbers))
        kept_answers.keep(made, self.pipeline.config.data)
        return run_id

    def candidate_of_a_waiting_run(self, model: int) -> str:
        """Have a candidate that its run puts in place when its turn comes: runs before it clear others."""
        run_id = self.candidate(model)
        shutil.move(candidate_folder(self.base, run_id), self.home / "runs" / NAME / run_id / "candidate")
        return run_id

    def start(self, run_id: str, boundary: str = "") -> subprocess.Popen[str]:
        """Start a run that deploys the candidate, and stops itself at the boundary if one is named."""
        program = [sys.executable, str(Path(__file__).with_name("deploying.py")), str(self.pipeline.folder)]
        return subprocess.Popen(
            [*program, run_id, *([boundary] if boundary else [])],
            env={**user_environment(self.home), "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=REPOSITORY, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ended(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a run, and return what it came to."""
        output, log = process.communicate(timeout=200)
        assert output, log
        return dict(json.loads(output.splitlines()[-1]))

    def deploy(self, model: int, answers: float | None = None) -> dict[str, Any]:
        """Run from recover to retire with a new candidate."""
        return self.ended(self.start(self.candidate(model, answers)))

    def killed(self, model: int, boundary: str, answers: int | None = None) -> str:
        """Kill -9 a run that stands at the boundary; return its id."""
        run_id = self.candidate(model, answers)
        process = self.stopped(run_id, boundary)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=60)
        server = self.server()
        psutil.wait_procs([child for child in family if child != server], timeout=60)
        return run_id

    def stopped(self, run_id: str, boundary: str) -> subprocess.Popen[str]:
        """Start a run, and return it when it stands at the boundary."""
        process = self.start(run_id, boundary)
        eventually(
            lambda: process.poll() is not None or psutil.Process(process.pid).status() == "stopped",
            seconds=200,
        )
        assert process.poll() is None, process.communicate()
        return process

    def server(self) -> psutil.Process | None:
        """Return the process of the server on record."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            record = json.loads((self.home / "servers" / f"{NAME}.json").read_text())
            process = psutil.Process(int(record["handle"].split(":")[0]))
            return process if process.status() != "zombie" else None
        return None

    def temporary_server(self, role: str) -> psutil.Process | None:
        """Return the process of a server that no client knows, if it runs."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            record = json.loads((self.home / "servers" / f"{NAME}.{role}.json").read_text())
            process = psutil.Process(int(record["handle"].split(":")[0]))
            return process if process.status() != "zombie" else None
        return None

    def kill_server(self) -> None:
        """Kill -9 the server and all that it started, and wait until nobody listens."""
        server = self.server()
        assert server is not None
        family = [server, *server.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=30)

    def numbers(self) -> list[int]:
        """Return the versions on disk."""
        return list(versions(self.base))

    def highest(self) -> int:
        """Return the highest number that any version has or had."""
        return int(json.loads((self.base / ".highest_version").read_text())["number"])

    def tell(self, fault: str, asked: str, came_to: str, client: Client, seconds: float | None) -> None:
        """Add a line to the table."""
        self.outcomes.append(Outcome(fault, asked, came_to, client.answers, len(client.failures), seconds))

    def record(self, name: str = f"{NAME}.json") -> ServerRecord:
        """Return the record of the server."""
        return server_records.parsed(json.loads((self.home / "servers" / name).read_text()))

    def close(self) -> None:
        """Stop the server, if there is one, and the one that it was to replace."""
        with mock.patch.dict(os.environ, SLIPWAY_HOME=str(self.home)):
            for name in (f"{NAME}.replaced.json", f"{NAME}.json"):
                with contextlib.suppress(FileNotFoundError):
                    model_servers.stop(self.record(name))


def predict_log(file: Path, *asked: float) -> None:
    """Write a request log as the model server does, of Predict requests with their answers."""
    import tensorflow as tf
    from model_server_requests import floats, predict_request, spec
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.TFRecordWriter(str(file)) as writer:
        for number in asked:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(predict_request(spec(NAME), x=floats(number)))
            log.predict_log.response.outputs["y"].CopyFrom(floats(number))
            writer.write(log.SerializeToString())


def printed(outcomes: list[Outcome], request: pytest.FixtureRequest) -> None:
    """Print the outcomes where people see them, though pytest captures what tests print."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        sys.stdout.write(f"\n\n{table(outcomes)}\n")


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = [
        "| fault | asked of it | came to | answers | failed | seconds to recover |",
        "|---|---|---|---:|---:|---:|",
    ]
    for each in outcomes:
        seconds = "" if each.seconds is None else f"{each.seconds:.1f}"
        told = f"{each.fault} | {each.asked} | {' '.join(each.came_to.split())}"
        lines.append(f"| {told} | {each.answers:,} | {each.failed} | {seconds} |")
    return "\n".join(lines)
