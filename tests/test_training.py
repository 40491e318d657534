"""The stage `train`: checkpoints, progress, resuming, and what stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipelines import DIGITS, run_of, trained_digits, written
from running_programs import running_programs

from configs.loading.pipelines import load_pipeline
from configs.schema.pipeline import PipelineConfig
from tasks.core.artifacts import Checkpoint, Run
from tasks.core.errors import DataError, EnvironmentFault, ModelError, ProcessDied
from tasks.in_tensorflow import train as program
from tasks.processes import tensorflow_process

DEADLINE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Whatever a test does to training, no child outlives it, but the one that forks for the next test."""
    yield
    assert not running_programs()


@pytest.fixture(autouse=True, scope="module")
def _nor_the_fork_server() -> Iterator[None]:
    yield
    tensorflow_process.close()


def arguments(folder: Path, **overrides: Any) -> tuple[PipelineConfig, dict[str, Any]]:
    """What `train` is called with to train the digits that were ingested once, in a run of its own."""
    digits = trained_digits()
    pipeline = load_pipeline(DIGITS, {key.replace("__", "."): value for key, value in overrides.items()})
    config, run = pipeline.config, run_of(pipeline, folder)
    return config, {"model": config.model, "training": config.training, "data": config.data,
                    "examples": digits.examples, "run": run}  # fmt: skip


def train(asked: Mapping[str, Any], on_progress: Any = tensorflow_process.ignore_progress) -> Checkpoint:
    run: Run = asked["run"]
    return tensorflow_process.run(
        "train", Checkpoint, log=run.log("train"), arguments=asked, on_progress=on_progress,
        timeout_seconds=DEADLINE_SECONDS,
    )  # fmt: skip


def child() -> psutil.Process:
    """The process that trains."""
    (found,) = running_programs()
    return found


def steps_saved(run: Run) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in run.model_dir.glob("model.ckpt-*.index"))


def test_training_ends_at_max_steps_with_a_checkpoint() -> None:
    """The checkpoint is the newest on disk, at the step that was asked for, with a loss that fell."""
    digits = trained_digits()
    checkpoint = digits.checkpoint
    assert checkpoint.global_step == 300
    assert checkpoint.prefix == digits.run.model_dir / "model.ckpt-300"
    assert Path(f"{checkpoint.prefix}.index").is_file()
    assert checkpoint.loss is not None
    assert checkpoint.loss < 0.5
    assert checkpoint.steps_per_second is not None
    assert checkpoint.resumed_from == 0


def test_the_log_holds_what_the_estimator_reports() -> None:
    """Loss and step at every log_every_steps; no advice to use Keras instead."""
    log = trained_digits().run.log("train").read_text()
    for step in (0, 100, 200):
        assert f", step = {step}" in log
    assert "is deprecated and will be removed" not in log


def test_checkpoints_are_periodic_and_old_ones_go(tmp_path: Path) -> None:
    """save_checkpoints_steps and keep_checkpoint_max are what is found on disk, and progress is told."""
    _, asked = arguments(
        tmp_path, training__max_steps=100, training__save_checkpoints_steps=20,
        training__keep_checkpoint_max=3, training__log_every_steps=25,
    )  # fmt: skip
    told: list[Mapping[str, Any]] = []
    train(asked, told.append)
    assert steps_saved(asked["run"]) == [60, 80, 100]
    assert {25, 50, 75, 100} <= {event["step"] for event in told}
    last = told[-1]
    assert (last["step"], last["max_steps"]) == (100, 100)
    assert last["examples_per_second"] == pytest.approx(64 * last["steps_per_second"])
    assert last["loss"] > 0


def test_max_steps_is_a_total(tmp_path: Path) -> None:
    """The same run, trained again for more steps, goes on; for as many, it does nothing."""
    _, asked = arguments(tmp_path, training__max_steps=20)
    first = _in_process(asked)
    longer = {**asked, "training": asked["training"].model_copy(update={"max_steps": 30})}
    second = _in_process(longer)
    assert (first.resumed_from, second.resumed_from, second.global_step) == (0, 20, 30)
    third = _in_process(longer)
    assert (third.resumed_from, third.global_step, third.steps_per_second) == (30, 30, None)


class StopAt:
    """Watches progress, and calls `stop` once, at the first report of a step that is at least `least`."""

    def __init__(self, stop: Any, least: int = 0) -> None:
        self.stop, self.least, self.step = stop, least, 0

    def __call__(self, progress: Mapping[str, Any]) -> None:
        if not self.step and progress.get("step", -1) >= self.least:
            self.step = progress["step"]
            self.stop()


def test_sigterm_saves_the_step_that_was_reached_and_training_goes_on_from_it(tmp_path: Path) -> None:
    """Terminated half-way, it saves where it is, and exits with 143; trained again, it ends at max_steps."""
    _, asked = arguments(
        tmp_path, training__max_steps=1_000_000, training__save_checkpoints_steps=1_000_000,
        training__log_every_steps=50,
    )  # fmt: skip
    stop = StopAt(lambda: child().send_signal(signal.SIGTERM))
    with pytest.raises(ProcessDied, match="exit code 143"):
        train(asked, stop)
    saved = steps_saved(asked["run"])[-1]
    assert stop.step <= saved < 1_000_000
    rest = {**asked, "training": asked["training"].model_copy(update={"max_steps": saved + 10})}
    resumed = _in_process(rest)
    assert (resumed.resumed_from, resumed.global_step) == (saved, saved + 10)


def test_an_interrupted_flow_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    """An exception in the flow's process (Ctrl-C, cancellation) ends the child, which saves first."""
    _, asked = arguments(tmp_path, training__max_steps=1_000_000, training__save_checkpoints_steps=1_000_000)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, StopAt(interrupt))
    assert steps_saved(asked["run"])[-1] > 0


def test_a_killed_trainer_is_retryable_and_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    """kill -9 is ProcessDied; what was saved before is where training goes on."""
    _, asked = arguments(tmp_path, training__max_steps=1_000_000, training__save_checkpoints_steps=100)
    with pytest.raises(ProcessDied, match="killed by SIGKILL") as caught:
        train(asked, StopAt(lambda: child().kill()))
    assert "last lines of its log" in caught.value.hint
    saved = steps_saved(asked["run"])[-1]
    assert saved % 100 == 0 or saved == 1
    rest = {**asked, "training": asked["training"].model_copy(update={"max_steps": saved + 10})}
    assert _in_process(rest).resumed_from == saved


FLOW = """
import sys, json
from pydantic import TypeAdapter
from tasks.processes import tensorflow_process
from tasks.core.artifacts import Checkpoint
from pathlib import Path
asked = json.loads(Path(sys.argv[1]).read_text())
tensorflow_process.run("train", Checkpoint, log=Path(sys.argv[2]), arguments=asked,
                       on_progress=lambda told: print(told["step"], flush=True))
"""


def test_a_killed_flow_takes_its_trainer_along_and_the_trainer_saves(tmp_path: Path) -> None:
    """kill -9 of the flow reaches the trainer as SIGTERM: it saves, though nobody listens, and ends."""
    import json

    from pydantic_core import to_jsonable_python

    _, asked = arguments(tmp_path, training__max_steps=1_000_000, training__save_checkpoints_steps=1_000_000)
    (tmp_path / "asked.json").write_text(json.dumps(to_jsonable_python(asked)))
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(tmp_path / "asked.json"), str(tmp_path / "train.log")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert flow.stdout is not None
    guard = threading.Timer(DEADLINE_SECONDS, flow.kill)
    guard.start()
    assert flow.stdout.readline()
    (trainer,) = running_programs(flow.pid)
    flow.kill()
    flow.communicate()
    guard.cancel()
    with contextlib.suppress(psutil.NoSuchProcess):
        trainer.wait(DEADLINE_SECONDS)
    assert steps_saved(asked["run"])[-1] > 0


def test_a_factory_is_built_before_anything_is_on_disk(tmp_path: Path) -> None:
    """What cannot be built leaves no model_dir behind, and the flow gets a ModelError."""
    (tmp_path / "model.py").write_text("def build(params, config): return None\n")
    pipeline = written(tmp_path, {"model": {"factory": "model.py:build"}})
    run, config = run_of(pipeline, tmp_path), pipeline.config
    with pytest.raises(ModelError, match=r"expected it to return a .*, found NoneType"):
        train({"model": config.model, "training": config.training, "data": config.data,
               "examples": trained_digits().examples, "run": run})  # fmt: skip
    assert not run.model_dir.exists()


def _in_process(asked: Mapping[str, Any]) -> Checkpoint:
    return program.run(tensorflow_process.ignore_progress, **asked)


def test_a_diverging_loss_says_what_to_do(tmp_path: Path) -> None:
    """NaN is a ModelError with a hint, not a traceback."""
    _, asked = arguments(
        tmp_path, model__params={"hidden_units": [8], "n_classes": 10, "activation_fn": "elu",
                                 "optimizer": {"name": "SGD", "learning_rate": 1e30}},
    )  # fmt: skip
    with pytest.raises(ModelError, match="training diverged") as caught:
        _in_process(asked)
    assert "lower the learning rate" in caught.value.hint


def test_what_tensorflow_refuses_is_told_without_its_stack_traces(tmp_path: Path) -> None:
    """A label beyond n_classes is one line, not a hundred."""
    _, asked = arguments(tmp_path, model__params={"hidden_units": [8], "n_classes": 3})
    with pytest.raises(ModelError, match="running the model failed: InvalidArgumentError: ") as caught:
        _in_process(asked)
    assert "Labels must be <= n_classes - 1" in caught.value.message
    assert "\n" not in caught.value.message


def test_examples_that_were_damaged_after_ingest(tmp_path: Path) -> None:
    """They are a DataError."""
    _, asked = arguments(tmp_path)
    file = tmp_path / "train.tfrecord"
    whole = trained_digits().examples.train.files[0].read_bytes()
    file.write_bytes(whole[:2000] + b"\xff" + whole[2001:])
    from dataclasses import replace

    damaged = replace(asked["examples"], train=replace(asked["examples"].train, files=(file,)))
    with pytest.raises(DataError, match="cannot be read any more"):
        _in_process({**asked, "examples": damaged})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    """No space for a checkpoint is an EnvironmentFault that says where."""
    from small_disks import small_disk

    with small_disk(tmp_path / "disk", kilobytes=64):
        _, asked = arguments(tmp_path / "disk")
        with pytest.raises(EnvironmentFault, match="the disk is full") as caught:
            _in_process(asked)
        assert str(asked["run"].model_dir) in caught.value.message
