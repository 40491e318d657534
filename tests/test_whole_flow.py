"""The whole chain, as a user runs it: the real command, real training, a real server, real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from finished_runs import retrained, run_from_publish
from served_digits import DigitsLoop, held_out, served_accuracy
from slipway_command import DIGITS, QUICK, REPOSITORY, Finished, Slipway, user_environment
from waiting import eventually

NO_ENGINE = "unix:///nonexistent/docker.sock"


@pytest.fixture(scope="module")
def first(module_slipway: Slipway) -> Finished:
    """The digits, deployed for the first time, where no Docker engine answers."""
    chosen = ("deployment.canary=true", "deployment.target=auto")
    return module_slipway.run(DIGITS, *QUICK, *chosen, DOCKER_HOST=NO_ENGINE)


@pytest.fixture(scope="module")
def second(module_slipway: Slipway, first: Finished) -> tuple[Finished, DigitsLoop, dict[str, Any]]:
    """The digits, deployed again while a client never stops asking; and the first server's record."""
    before = module_slipway.record("digits")
    with DigitsLoop(first.verdict["endpoint"]["grpc"], held_out(first, module_slipway)) as client:
        again = module_slipway.run(DIGITS, *QUICK, "training.seed=2")
    return again, client, before


class TestFirstRun:
    """A first run, from nothing to proven predictions."""

    def test_it_deploys(self, first: Finished) -> None:
        """The exit code is 0 and the verdict says deployed, with every stage passed, in order."""
        assert first.exit_code == 0, first.output
        assert first.verdict["outcome"] == "deployed"
        assert [(stage["name"], stage["outcome"]) for stage in first.verdict["stages"]] == [
            (name, "passed")
            for name in (
                "recover", "preflight", "ingest", "check-data", "train", "evaluate", "export", "validate",
                "canary", "publish", "deploy", "smoke-test", "retire",
            )
        ]  # fmt: skip

    def test_every_check_was_made_and_passed(self, first: Finished) -> None:
        """The verdict holds the gate, each signature in each batch size, and each API of each signature."""
        names = set(first.checks)
        assert all(check["passed"] for check in first.checks.values())
        assert {"accuracy", "Predict predict", "Classify classification", "Predict serving_default"} <= names
        assert {"canary Predict predict", "canary Classify classification", "canary server"} <= names
        assert {"predict", "serving_default", "classification"} <= names
        limits = {name: first.checks[name]["limit"] for name in ("predict", "canary Predict predict")}
        assert set(limits.values()) == {"same bits"}, "the server reports the conditions of the predictions"
        assert first.checks["Predict predict"]["limit"] == "7.6e-06 of scale", "clients may share its batches"

    def test_the_served_model_knows_the_held_out_digits(
        self, first: Finished, module_slipway: Slipway
    ) -> None:
        """Asked over gRPC (Classify, tf.Examples) about digits it never saw, it is right 95% of the time."""
        records, labels = held_out(first, module_slipway)
        assert len(records) > 300
        assert served_accuracy(first.verdict["endpoint"]["grpc"], records, labels) >= 0.95

    def test_without_an_engine_auto_serves_by_a_process_and_says_why(
        self, first: Finished, module_slipway: Slipway
    ) -> None:
        """One line of the table says that a local process serves, and that no engine answers."""
        assert module_slipway.record("digits")["target"] == "process"
        proved = first.verdict["stages"][1]["summary"]
        assert "served by a local process: no Docker engine answers" in proved

    def test_it_says_where_it_serves_and_how_to_ask(self, first: Finished) -> None:
        """The last lines name the endpoint and give lines to paste."""
        assert first.verdict["endpoint"]["grpc"] in first.output
        for line in ("slipway ask", "curl -s -d @", "slipway ui", "slipway stop"):
            assert line in first.output

    def test_the_rest_line_answers(self, first: Finished) -> None:
        """The curl line, pasted, gets a prediction."""
        line = next(line for line in first.output.splitlines() if "curl -s -d" in line)
        command = line[line.index("curl") :].split()
        answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=30)
        assert len(json.loads(answer.stdout)["outputs"]["scores"][0]) == 10

    def test_ask_answers(self, first: Finished, module_slipway: Slipway) -> None:
        """`slipway ask` prints an answer a line, and the version that gave it."""
        asked = module_slipway("ask", DIGITS)
        assert asked.exit_code == 0, asked.output
        assert asked.output.count("Classify example") == 3
        assert f"version {first.verdict['version']}" in asked.output

    def test_status_shows_it(self, first: Finished, module_slipway: Slipway) -> None:
        """`slipway status` names the live version and the last verdict."""
        shown = module_slipway("status", DIGITS)
        assert shown.exit_code == 0
        assert f"version {first.verdict['version']}" in shown.output
        assert "deployed" in shown.output
        assert f"run {first.verdict['run_id']}, made" in shown.output
        assert "made of" in shown.output and "accuracy" in shown.output

    def test_all_state_is_in_its_home(self, first: Finished, module_slipway: Slipway) -> None:
        """Runs, models and servers are under $SLIPWAY_HOME."""
        run = module_slipway.home / "runs" / "digits" / first.verdict["run_id"]
        assert json.loads((run / "verdict.json").read_text()) == first.verdict
        assert module_slipway.versions("digits")[0] == first.verdict["version"]

    def test_its_report_is_on_one_page(self, first: Finished, module_slipway: Slipway) -> None:
        """`slipway report` names it; it has what the verdict has, and the pictures."""
        reported = module_slipway("report", DIGITS)
        assert reported.exit_code == 0, reported.output
        page = module_slipway.home / "runs" / "digits" / first.verdict["run_id"] / "report.html"
        assert reported.output.splitlines()[-1] == str(page)
        text = page.read_text()
        assert f"Deployed: version {first.verdict['version']} answers." in text
        assert f"serves at {first.verdict['endpoint']['grpc']} since" in text
        assert text.count("data:image/svg+xml") == len(first.verdict["pictures"])
        assert all(stage["started"] for stage in first.verdict["stages"])

    def test_it_leaves_pictures_and_metrics(self, first: Finished, module_slipway: Slipway) -> None:
        """Those that the verdict names, and a file for Prometheus."""
        drawn = {Path(picture["file"]).stem for picture in first.verdict["pictures"]}
        assert drawn == {"loss", "confusion-label", "latency"}
        assert all(Path(picture["file"]).is_file() for picture in first.verdict["pictures"])
        exposed = (module_slipway.home / "metrics" / "digits.prom").read_text()
        assert 'slipway_last_run_outcome{outcome="deployed",pipeline="digits"} 1.0' in exposed
        (serving,) = [line for line in exposed.splitlines() if line.startswith("slipway_serving_version{")]
        assert float(serving.split()[-1]) == first.verdict["version"]


class TestSecondRun:
    """A second run of the same pipeline."""

    def test_it_is_beside_what_was_served(self, second: Any, first: Finished) -> None:
        """The first version's metrics, on the second night's examples: the same ones here."""
        baseline = second[0].verdict["baseline"]
        assert baseline["version"] == first.verdict["version"]
        assert baseline["metrics"] == pytest.approx(first.verdict["metrics"], rel=1e-5)

    def test_it_swaps_into_the_running_server(self, second: Any, first: Finished) -> None:
        """Same server, same ports, a higher version."""
        again, _, before = second
        assert again.exit_code == 0, again.output
        assert again.verdict["version"] > first.verdict["version"] == again.verdict["previous_version"]
        assert again.verdict["endpoint"] == first.verdict["endpoint"]
        assert psutil.pid_exists(int(before["handle"].split(":")[0]))

    def test_no_answer_failed_meanwhile(self, second: Any, first: Finished) -> None:
        """A client that asked through the swap got an answer every time, old then new, never back."""
        again, client, _ = second
        assert client.failures == []
        assert client.versions == [first.verdict["version"], again.verdict["version"]]


class TestNothingNew:
    """A night whose examples are those that the served version was made of."""

    def test_it_is_skipped_if_so_asked(self, second: Any, module_slipway: Slipway) -> None:
        """Exit code 0, nothing is trained; every gate of the data was checked against the served version."""
        before = module_slipway.versions("digits")
        night = module_slipway.run(DIGITS, *QUICK, "training.seed=2", "data.gates.unchanged=skip")
        assert night.exit_code == 0, night.output
        assert night.verdict["outcome"] == "skipped"
        assert night.verdict["stages"][-1]["name"] == "check-data"
        assert night.checks["data.pixels.drift"]["observed"] == pytest.approx(0, abs=1e-9)
        assert night.checks["data.examples"]["baseline"] == night.checks["data.examples"]["observed"]
        assert module_slipway.versions("digits") == before


class TestGate:
    """A model that misses its threshold."""

    def test_a_missed_threshold_rejects(self, second: Any, module_slipway: Slipway) -> None:
        """Exit code 3, nothing published, and the version before still serves."""
        before = module_slipway.versions("digits")
        rejected = module_slipway.run(DIGITS, *QUICK, "evaluation.thresholds.accuracy.min=0.99999")
        assert rejected.exit_code == 3, rejected.output
        assert rejected.verdict["outcome"] == "rejected"
        assert not rejected.checks["accuracy"]["passed"]
        assert rejected.verdict["version"] is None
        assert module_slipway.versions("digits") == before
        assert f"version {second[0].verdict['version']}" in module_slipway("status", DIGITS).output

    def test_a_slow_version_is_withdrawn(self, second: Any, module_slipway: Slipway) -> None:
        """A failed smoke test hides the new version; the one before answers; exit code 1."""
        slow = run_from_publish(module_slipway, "smoke_test.latency_p99_limit_ms=0.001")
        assert slow.exit_code == 1, slow.output
        assert slow.verdict["outcome"] == "rolled_back"
        assert slow.verdict["error"]["class"] == "SmokeTestFailed"
        assert slow.verdict["stages"][-1]["name"] == "withdraw"
        assert slow.verdict["version"] not in module_slipway.versions("digits")
        assert f"version {second[0].verdict['version']}" in module_slipway("ask", DIGITS).output

    def test_the_next_run_deploys_again(self, second: Any, module_slipway: Slipway) -> None:
        """After a rejection and a withdrawal, a good model is deployed under a higher number."""
        again = run_from_publish(module_slipway)
        assert again.exit_code == 0, again.output
        assert again.verdict["previous_version"] == second[0].verdict["version"]


RANDOM_MODEL = """
import tensorflow as tf


def build_estimator(params, config):
    def model_fn(features, labels, mode):
        noise = tf.random.uniform([tf.shape(features["pixels"])[0], 10], seed=None)
        logits = tf.compat.v1.layers.dense(features["pixels"], 10) + noise
        output = tf.estimator.export.PredictOutput({"logits": logits})
        step = tf.compat.v1.train.get_global_step()
        loss = None if labels is None else tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
        return tf.estimator.EstimatorSpec(
            mode, predictions={"logits": logits}, loss=loss, export_outputs={"serving_default": output},
            train_op=None if labels is None else optimizer.minimize(loss, global_step=step),
        )
    return tf.estimator.Estimator(model_fn, config=config, params=None)
"""


def _with_model(folder: Path, model: str) -> Path:
    """Write the digits' pipeline with another model and no thresholds."""
    config = yaml.safe_load((DIGITS / "pipeline.yaml").read_text())
    config["model"] = {"factory": "model.py:build_estimator"}
    config["evaluation"] = {}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.py").write_text(model)
    (folder / "ingest.py").write_text((DIGITS / "ingest.py").read_text())
    return folder


CERTAIN_MODEL = """
import tensorflow as tf

def build_estimator(params, config):
    def model_fn(features, labels, mode):
        far = tf.constant([0, -86, -86.5, -87, -87.3, -87.5, -88, -88.5, -89, -90])
        logits = far + 0.1 * tf.compat.v1.layers.dense(features["pixels"], 10)
        scores = tf.nn.softmax(logits)
        outputs = {
            "serving_default": tf.estimator.export.ClassificationOutput(scores=scores),
            "predict": tf.estimator.export.PredictOutput({"scores": scores}),
        }
        step = tf.compat.v1.train.get_global_step()
        loss = None if labels is None else tf.reduce_mean(tf.nn.relu(logits))
        return tf.estimator.EstimatorSpec(
            mode, predictions={"scores": scores}, loss=loss, export_outputs=outputs,
            train_op=None if labels is None else step.assign_add(1),
        )
    return tf.estimator.Estimator(model_fn, config=config, params=None)
"""


def test_scores_that_underflow_are_no_mistake(slipway: Slipway, tmp_path: Path) -> None:
    """A softmax that is sure of itself has scores near 1e-38, which some threads flush to zero."""
    certain = _with_model(tmp_path, CERTAIN_MODEL)
    deployed = slipway.run(certain, "training.max_steps=20", "deployment.canary=true")
    assert deployed.exit_code == 0, deployed.output


def test_a_candidate_that_answers_otherwise_is_rejected(slipway: Slipway, tmp_path: Path) -> None:
    """A model whose answers are not those of estimator.predict is never published; exit code 3."""
    rejected = slipway.run(_with_model(tmp_path, RANDOM_MODEL), "training.max_steps=20")
    assert rejected.exit_code == 3, rejected.output
    last = rejected.verdict["stages"][-1]
    assert (last["name"], last["outcome"]) == ("validate", "rejected")
    ours = [check for check in rejected.verdict["checks"] if not check["name"].startswith("data.")]
    assert ours and not any(check["passed"] for check in ours)
    assert slipway.versions("digits") == []


def test_a_candidate_that_reads_files_is_rejected(slipway: Slipway, tmp_path: Path) -> None:
    """A graph that could answer with this machine's secrets is never published; exit code 3."""
    noise = 'noise = tf.random.uniform([tf.shape(features["pixels"])[0], 10], seed=None)'
    assert noise in RANDOM_MODEL
    read = 'noise = 0.0 * tf.cast(tf.strings.length(tf.io.read_file("/proc/self/environ")), tf.float32)'
    model = _with_model(tmp_path, RANDOM_MODEL.replace(noise, read))
    rejected = slipway.run(model, "training.max_steps=20")
    assert rejected.exit_code == 3, rejected.output
    last = rejected.verdict["stages"][-1]
    assert (last["name"], last["outcome"]) == ("validate", "rejected")
    assert "ReadFile" in rejected.verdict["error"]["message"]
    assert "validation.allow_ops: [ReadFile]" in rejected.verdict["error"]["hint"]
    assert slipway.versions("digits") == []


def test_retrain_leaves_a_candidate_and_publishes_nothing() -> None:
    """`slipway retrain` proves a candidate under a name that no server loads."""
    home, done = retrained()
    assert done.verdict["outcome"] == "trained"
    base = home / "models" / "digits"
    assert (base / f".candidate-{done.verdict['run_id']}" / "saved_model.pb").is_file()
    assert not [child for child in base.iterdir() if child.name.isdigit()]


def test_a_flow_runs_as_a_module(home: Path) -> None:
    """`python -m flows.retrain configs/digits` does the same, with an ephemeral Prefect server."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.retrain", DIGITS, "--set", QUICK[0]],
        cwd=REPOSITORY, env=user_environment(home),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / "prefect").is_dir()


def test_a_server_that_dies_while_loading_is_told_with_its_log(slipway: Slipway, tmp_path: Path) -> None:
    """The error holds the last lines of the server's log; the version is withdrawn; nothing runs."""
    program = tmp_path / "broken_server"
    program.write_text("#!/bin/sh\necho cannot load: out of cheese >&2\nexit 7\n")
    program.chmod(0o755)
    failed = run_from_publish(
        slipway, "deployment.target=auto", "server.insecure=true", f"server.executable={program}"
    )
    assert failed.exit_code == 1
    assert failed.verdict["error"]["class"] == "DeployFailed"
    assert "out of cheese" in failed.verdict["error"]["hint"]
    assert slipway.versions("digits") == []
    assert failed.verdict["outcome"] == "failed"


def test_a_restarted_server_serves_at_the_same_address(slipway: Slipway) -> None:
    """After `slipway stop`, the next run starts a server on the ports of before."""
    first = run_from_publish(slipway)
    assert slipway("stop", DIGITS).exit_code == 0
    assert "no server" in slipway("stop", DIGITS).output
    again = run_from_publish(slipway, "server.flags.tensorflow_intra_op_parallelism=1")
    assert again.exit_code == 0, again.output
    assert again.verdict["previous_version"] == first.verdict["version"]
    assert again.verdict["endpoint"] == first.verdict["endpoint"]
    changed = run_from_publish(slipway, "server.flags.tensorflow_intra_op_parallelism=2")
    assert changed.exit_code == 0, changed.output
    assert changed.verdict["endpoint"] == again.verdict["endpoint"]


class TestNothingIsChanged:
    """What is wrong with this machine is told before anything is changed."""

    def test_a_port_in_use(self, slipway: Slipway) -> None:
        """The message names the key, the port and who has it."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            refused = slipway.run(DIGITS, f"deployment.grpc_port={port}")
        assert refused.exit_code == 1
        assert f"deployment.grpc_port {port} is in use by" in refused.verdict["error"]["message"]
        assert str(os.getpid()) in refused.verdict["error"]["message"]
        assert [stage["name"] for stage in refused.verdict["stages"]] == ["recover", "preflight"]

    def test_a_base_path_that_is_not_writable(self, slipway: Slipway, tmp_path: Path) -> None:
        """The message names the folder and the key to set."""
        (tmp_path / "file").write_text("")
        refused = slipway.run(DIGITS, f"export.model_base_path={tmp_path}/file/models")
        assert refused.exit_code == 1
        assert "is not writable" in refused.verdict["error"]["message"]
        assert "export.model_base_path" in refused.verdict["error"]["hint"]

    def test_an_engine_that_does_not_answer(self, slipway: Slipway) -> None:
        """With target docker a silent engine is an error, before training."""
        refused = slipway.run(DIGITS, "deployment.target=docker", DOCKER_HOST=NO_ENGINE)
        assert refused.exit_code == 1
        assert "no Docker engine answers" in refused.verdict["error"]["message"]
        assert [stage["name"] for stage in refused.verdict["stages"]] == ["recover", "preflight"]

    def test_a_bad_override_is_refused_with_a_verdict(self, slipway: Slipway) -> None:
        """Exit code 2, and the verdict file says why."""
        refused = slipway.run(DIGITS, "training.max_stepz=3")
        assert refused.exit_code == 2
        assert "did you mean 'max_steps'" in refused.output
        assert refused.verdict["outcome"] == "failed"
        assert refused.verdict["error"]["class"] == "ConfigError"
        assert not (slipway.home / "runs").exists()


def _has_trained(home: Path) -> bool:
    """Return whether a run has logged a step of training that is not its first."""
    return any(", step = 100 (" in log.read_text() for log in home.glob("runs/digits/*/logs/train.log"))


# No periodic checkpoint is due before the interruption: what is saved then was saved because of it.
LONG = (
    "training.max_steps=10000000", "training.save_checkpoints_steps=10000000", "deployment.target=process",
)  # fmt: skip


class TestInterrupted:
    """Ctrl-C, and a second run, in the middle of training."""

    @pytest.fixture(scope="class")
    def training(
        self, tmp_path_factory: pytest.TempPathFactory, prefect_api: str
    ) -> Iterator[tuple[Slipway, subprocess.Popen[str]]]:
        """A run that trains until it is ended."""
        slipway = Slipway(tmp_path_factory.mktemp("home"), prefect_api)
        process = slipway.start("run", DIGITS, *(part for setting in LONG for part in ("--set", setting)))
        try:
            eventually(lambda: _has_trained(slipway.home) or process.poll() is not None)
            yield slipway, process
        finally:
            process.kill()
            process.communicate(timeout=90)

    def test_a_second_run_is_refused(self, training: tuple[Slipway, subprocess.Popen[str]]) -> None:
        """While one run of a pipeline is under way, another is refused and changes nothing."""
        slipway, process = training
        refused = slipway.run(DIGITS)
        assert refused.exit_code == 4
        assert refused.verdict["error"]["class"] == "AlreadyRunning"
        assert f"pid {process.pid}" in refused.verdict["error"]["message"]
        assert len(list((slipway.home / "runs" / "digits").glob("2*"))) == 1

    def test_ctrl_c_leaves_no_process_and_a_checkpoint(
        self, training: tuple[Slipway, subprocess.Popen[str]]
    ) -> None:
        """The trainer saves at the interrupted step and ends; the run's verdict says interrupted."""
        slipway, process = training
        (model_dir,) = slipway.home.glob("runs/digits/*/checkpoints")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 4, output
        assert not [child for child in family if child.is_running() and child.status() != "zombie"]
        steps = [int(index.stem.rpartition("-")[2]) for index in model_dir.glob("model.ckpt-*.index")]
        verdict = json.loads((model_dir.parent / "verdict.json").read_text())
        assert verdict["outcome"] == "cancelled"
        assert verdict["error"]["class"] == "Interrupted"
        assert max(steps) > 0, f"no checkpoint at the interrupted step among {steps}"


def test_the_second_night_is_held_against_what_is_served(slipway: Slipway) -> None:
    """By metric and by slice: as good passes, beside the version's own values; much worse is rejected."""
    limits = (
        "evaluation.changes={accuracy: {max_drop: 0.05}}",
        "evaluation.by_slice={min_examples: 20, changes: {accuracy: {max_drop: 0.2}}}",
    )
    first = slipway.run(DIGITS, *QUICK, *limits)
    assert first.exit_code == 0, first.output
    second = slipway.run(DIGITS, *QUICK, *limits, "training.seed=2")
    assert second.exit_code == 0, second.output
    compared = [check for check in second.verdict["checks"] if check["baseline"] is not None]
    sliced = [check for check in compared if check["name"] != "accuracy"]
    assert len(sliced) >= 5 and len(compared) > len(sliced)
    worse = slipway.run(DIGITS, *QUICK, *limits, "training.max_steps=1", "evaluation.thresholds={}")
    assert worse.exit_code == 3, worse.output
    missed = [check for check in worse.verdict["checks"] if not check["passed"]]
    assert missed and all(check["baseline"] > check["limit"] > check["observed"] for check in missed)
    assert second.verdict["version"] == slipway.versions("digits")[-1]
