"""`training.strategy`, on two logical devices of the CPU: through the train program, and the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import tensorflow as tf
from pipelines import DIGITS, run_of, trained_digits
from slipway_command import Slipway
from waiting import eventually

from configs.loading.pipelines import load_pipeline
from configs.schema.accelerators import AcceleratorConfig
from configs.schema.pipeline import TrainingConfig
from tasks.core.artifacts import Checkpoint
from tasks.core.errors import ModelError
from tasks.estimators import strategies
from tasks.processes import tensorflow_process

TWO_CPUS = AcceleratorConfig(device="cpu", cpus=2)
DEADLINE_SECONDS = 200.0


def trained(folder: Path, **training: Any) -> tuple[Checkpoint, list[float], str]:
    """Train the digits so; return the checkpoint, the losses on the way, and the log."""
    digits = trained_digits()
    config = digits.config.training.model_copy(update={"accelerator": TWO_CPUS, **training})
    run = run_of(load_pipeline(DIGITS), folder)
    losses: list[float] = []
    try:
        checkpoint = tensorflow_process.run(
            "train", Checkpoint, log=run.log("train"),
            timeout_seconds=DEADLINE_SECONDS,
            on_progress=lambda told: losses.append(told["loss"]) if "loss" in told else None,
            arguments={"model": digits.config.model, "training": config, "data": digits.config.data,
                       "examples": digits.examples, "run": run},
        )  # fmt: skip
    finally:
        log = run.log("train").read_text()
    return checkpoint, losses, log


def test_parameter_server_trains_on_one_machine(tmp_path: Path) -> None:
    """Variables on the CPU; the loss falls, and training ends at max_steps. (Clusters: test_cluster.py.)"""
    checkpoint, losses, _ = trained(tmp_path, strategy="parameter_server", max_steps=200, log_every_steps=50)
    assert checkpoint.global_step == 200
    assert losses[-1] < losses[0] / 2


def test_batch_size_counts_all_replicas_together() -> None:
    """Each replica gets its share."""
    training = TrainingConfig(strategy="mirrored", batch_size=64)
    two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    assert strategies.per_replica(training, two).batch_size == 32
    assert strategies.per_replica(training, None) == training


def test_a_batch_that_two_replicas_cannot_share(tmp_path: Path) -> None:
    """It is refused with both numbers, before anything is on disk."""
    with pytest.raises(ModelError, match="batch_size = 63 cannot be divided among 2 replicas"):
        trained(tmp_path, strategy="mirrored", batch_size=63)
    assert not (tmp_path / "r1" / "checkpoints").exists()


def _trainers(command: int) -> set[int]:
    """The processes under `command` that have a training's log open."""
    found = set()
    for process in psutil.Process(command).children(recursive=True):
        try:
            if any(Path(file.path).name.startswith("train") for file in process.open_files()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_mirrored_on_two_devices_through_the_whole_chain(slipway: Slipway) -> None:
    """It is served, answers as offline, and the trainer, whose GPU it would be, has ended before deploy.

    The trainer shows two replicas, and its batches are halves of what the YAML says.
    """
    process = slipway.start(
        "run", DIGITS, "--set", "training.max_steps=500", "--set", "training.strategy=mirrored",
        "--set", "training.accelerator={device: cpu, cpus: 2}", "--set", "deployment.target=process",
        "--set", "training.log_every_steps=20",
    )  # fmt: skip
    assert process.stdout is not None
    lines, training, deploying = [], set[int](), None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("train …"):
            training = eventually(lambda: _trainers(process.pid))
        if line.startswith("deploy …"):
            deploying = _trainers(process.pid) | {pid for pid in training if psutil.pid_exists(pid)}
    assert process.wait(60) == 0, "".join(lines)
    assert training
    assert deploying == set()
    (log,) = (slipway.home / "runs" / "digits").glob("*/logs/train.log")
    assert "Using MirroredStrategy with devices ('/job:localhost/replica:0/task:0/device:CPU:0'" in (
        log.read_text()
    )
