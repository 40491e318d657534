"""Whole nights that faults are done to: a small pipeline, a Prefect server of its own, what came of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from closed_loops import ClosedLoop
from deployed_worlds import Outcome
from free_ports import free_port
from pipelines import written
from slipway_command import REPOSITORY, Finished, Slipway
from waiting import eventually

NAME = "nights"
PROGRAM = '''
"""A pipeline to which things happen: where the folder $NIGHT_FAULTS asks for it."""

import os
import pathlib
import time

import tensorflow as tf


def happens(at):
    """Fill the disk of the folder that the file `fill-<at>` names, once; wait while `hold-<at>` is there."""
    faults = pathlib.Path(os.environ["NIGHT_FAULTS"])
    asked = faults / f"fill-{at}"
    if asked.is_file():
        _fill(pathlib.Path(asked.read_text()) / "ballast")
        asked.unlink()
    reached = faults / f"reached-{at}"
    reached.with_suffix(".partial").write_text(str(os.getpid()))
    reached.with_suffix(".partial").rename(reached)
    while (faults / f"hold-{at}").exists():
        time.sleep(0.02)


def _fill(ballast):
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def write(folder):
    """Write 400 examples, half of each class."""
    with tf.io.TFRecordWriter(str(folder / "night.tfrecord")) as writer:
        for index in range(400):
            x = tf.train.Feature(float_list=tf.train.FloatList(value=[index % 20 - 9.5, index % 7]))
            y = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(index % 20 > 9)]))
            features = tf.train.Features(feature={"x": x, "y": y})
            writer.write(tf.train.Example(features=features).SerializeToString())
    happens("ingest")


class _At(tf.compat.v1.train.SessionRunHook):
    def __init__(self, step):
        self.step, self.taken = step, 0

    def after_run(self, context, values):
        self.taken += 1
        if self.taken == self.step:
            happens("train")


def _model(features, labels, mode, config):
    trained = pathlib.Path(config.model_dir, "checkpoint").exists()  # preflight builds the graphs too
    if trained and mode == tf.estimator.ModeKeys.PREDICT:
        base = pathlib.Path(os.environ["NIGHT_BASE"])
        happens("export" if list(base.glob(".candidate-*.partial")) else "answers")
    if trained and mode == tf.estimator.ModeKeys.EVAL:
        happens("evaluate")
    logits = tf.compat.v1.layers.dense(features["x"], 2)
    outputs = {"serving_default": tf.estimator.export.PredictOutput({"logits": logits})}
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions={"logits": logits}, export_outputs=outputs)
    loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.compat.v1.metrics.accuracy(labels, tf.argmax(logits, 1))
    step = tf.compat.v1.train.get_global_step()
    train = tf.compat.v1.train.GradientDescentOptimizer(0.05).minimize(loss, global_step=step)
    return tf.estimator.EstimatorSpec(
        mode, loss=loss, train_op=train, training_hooks=[_At(15)], eval_metric_ops={"accuracy": accuracy}
    )


def build(params, config):
    """Return the Estimator."""
    return tf.estimator.Estimator(_model, config=config)
'''


class NightLoop(ClosedLoop):
    """Asks the served model about one example; who answers is the version."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Callable[[], int]]:
        import tensorflow as tf
        from model_server_requests import predict_request, spec
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        x = tf.train.Feature(float_list=tf.train.FloatList(value=[3.5, 2.0]))
        example = tf.train.Example(features=tf.train.Features(feature={"x": x}))
        asked = tf.make_tensor_proto([example.SerializeToString()])
        request = predict_request(spec(NAME), examples=asked)
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield lambda: int(stub.Predict(request, timeout=20).model_spec.version.value)


_UI = "import sys; from flows.command.cli import main; sys.exit(main())"


class PrefectServer:
    """`slipway ui`, which can be killed, and started again with the same data base and address."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home, self._port = folder, home, free_port()
        self.api = f"http://127.0.0.1:{self._port}/api"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str]) -> None:
        """Have it answer, with the data base and at the address of before."""
        if self._process is not None and self._process.poll() is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _UI, "ui", "--port", str(self._port)], cwd=REPOSITORY,
                env={**environment, "PREFECT_HOME": str(self.folder)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        eventually(self._answers, seconds=300, every=0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill -9 it and all that it started; nothing of it is left."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        family = [server, *server.children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait(30)
        psutil.wait_procs(family, timeout=30)
        self._process = None

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send a request with the password that `slipway ui` made."""
        user, password = (self.home / "prefect" / "api-auth-string").read_text().strip().split(":")
        return httpx.post(
            f"{self.api}/{path}", json=body, timeout=60, trust_env=False, auth=(user, password)
        ).raise_for_status()

    def last_state(self) -> str:
        """Return the name of the state of the newest flow run."""
        newest = self.post("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1}).json()[0]
        return str(newest["state"]["name"])


@dataclass
class Nights:
    """The pipeline, its home, and the command that runs it; it is served from the first night on."""

    folder: Path
    home: Path
    approved: set[int] = field(default_factory=set)
    """Versions that a verdict calls deployed."""
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ports = free_port(), free_port()
        self.faults = self.folder / "faults"
        self.faults.mkdir(parents=True)
        self.prefect = PrefectServer(self.folder / "prefect", self.home)
        self.slipway = Slipway(self.home, self.prefect.api)
        self.slipway.environment.update(NIGHT_FAULTS=str(self.faults), NIGHT_BASE=str(self.base))
        self.pipeline = self._written()

    @property
    def base(self) -> Path:
        """The model's base path."""
        return self.home / "models" / NAME

    def _written(self) -> Path:
        grpc_port, rest_port = self.ports
        pipeline = written(self.folder / NAME, {
            "name": NAME,
            "data": {"ingest": "night.py:write", "features": {"x": "float32[2]"}, "label": {"y": "int64"}},
            "model": {"factory": "night.py:build"},
            "training": {"max_steps": 40, "batch_size": 16, "save_checkpoints_steps": 10},
            "deployment": {"target": "process", "grpc_port": grpc_port, "rest_port": rest_port,
                           "canary": False},
            "answers": {"samples": 4}, "smoke_test": {"latency_requests": 20},
        })  # fmt: skip
        (self.folder / NAME / "night.py").write_text(PROGRAM)
        return pipeline.folder

    @property
    def _verdict(self) -> Path:
        return self.folder / "verdict.json"

    def start(self, *options: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start `slipway run` of the pipeline."""
        self._verdict.unlink(missing_ok=True)
        return self.slipway.start("run", self.pipeline, *options, "--json", self._verdict, **environment)

    def ended(self, process: subprocess.Popen[str], seconds: float = 400) -> Finished:
        """Wait for a run, and return what it came to."""
        output, _ = process.communicate(timeout=seconds)
        verdict = json.loads(self._verdict.read_text()) if self._verdict.is_file() else {}
        if verdict.get("outcome") == "deployed":
            self.approved.add(verdict["version"])
        return Finished(process.returncode, output, verdict)

    def run(self, *options: str | Path, **environment: str) -> Finished:
        """Run `slipway run` of the pipeline to its end."""
        return self.ended(self.start(*options, **environment))

    def timed(self, *options: str | Path, **environment: str) -> tuple[Finished, float]:
        """Do the same, and return how many seconds it took."""
        began = time.monotonic()
        done = self.run(*options, **environment)
        return done, time.monotonic() - began

    def asked(self) -> NightLoop:
        """A client that asks for as long as its block lasts."""
        return NightLoop(self.ports[0])

    def hold(self, at: str) -> None:
        """Have the next run stand still at this point, until `release`."""
        (self.faults / f"reached-{at}").unlink(missing_ok=True)
        (self.faults / f"hold-{at}").touch()

    def reach(self, at: str, process: subprocess.Popen[str]) -> psutil.Process:
        """Return the process that runs the model, once it is at this point."""
        reached = self.faults / f"reached-{at}"
        eventually(lambda: reached.exists() or process.poll() is not None, seconds=300)
        assert process.poll() is None, process.communicate()
        return psutil.Process(int(reached.read_text()))

    def release(self, at: str) -> None:
        """Let the run go on."""
        (self.faults / f"hold-{at}").unlink()

    def calm(self) -> None:
        """Have nothing happen any more."""
        for asked in (*self.faults.glob("hold-*"), *self.faults.glob("fill-*")):
            asked.unlink()
        (self.home / "ballast").unlink(missing_ok=True)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill -9 a run's process, and let what it started go on to its end."""
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=60)
        self.calm()
        server = int(self.slipway.record(NAME)["handle"].partition(":")[0])
        _, alive = psutil.wait_procs([each for each in family if each.pid != server], timeout=100)
        assert not alive, alive

    def fill_at(self, at: str, folder: Path) -> None:
        """Have the next run fill the folder's disk at this point."""
        (self.faults / f"fill-{at}").write_text(str(folder))

    def versions(self) -> list[int]:
        """Return the versions on disk."""
        return self.slipway.versions(NAME)

    def run_folder(self, run_id: str) -> Path:
        """Return a run's folder."""
        return self.home / "runs" / NAME / run_id

    def newest_run(self) -> Path:
        """Return the folder that was made last."""
        runs = (file.parent for file in (self.home / "runs" / NAME).glob("*/config.yaml"))
        return max(runs, key=lambda run: run.name)

    def tell(self, fault: str, asked: str, came_to: str, client: NightLoop, seconds: float | None) -> None:
        """Add a line to the table."""
        self.outcomes.append(Outcome(fault, asked, came_to, client.answers, len(client.failures), seconds))

    def close(self) -> None:
        """Stop the model server, and Prefect's."""
        self.slipway.stop_servers()
        self.prefect.kill()
