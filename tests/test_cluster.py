"""`training.cluster`: chief, workers and parameter servers on TensorFlow's distributed runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipelines import run_of, trained_digits, written
from slipway_command import REPOSITORY, Slipway
from waiting import eventually

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.cluster import ClusterConfig
from tasks.clusters.cluster import agree
from tasks.core.artifacts import Checkpoint, Run
from tasks.core.errors import ProcessDied
from tasks.processes import tensorflow_process

TWO_WORKERS = REPOSITORY / "configs" / "two_workers"
IN_STEP = {"strategy": "multi_worker_mirrored", "cluster": ClusterConfig(parameter_servers=0)}
DEADLINE_SECONDS = 240.0  # a restarted worker has taken 145 under a load of 9 on 2 cores


def playing(root: psutil.Process | None = None) -> dict[str, psutil.Process]:
    """The processes under `root` that have the log of a part in a cluster open, by its name."""
    return _writing((root or psutil.Process()).children(recursive=True), "/")


def _writing(processes: Iterable[psutil.Process], folder: str) -> dict[str, psutil.Process]:
    found = {}
    for process in processes:
        try:
            logs = [Path(file.path) for file in process.open_files() if file.path.startswith(folder)]
        except psutil.Error:
            continue
        for log in logs:
            if log.name.startswith("train") and log.suffix == ".log":
                found[log.stem.removeprefix("train-")] = process
    return found


@pytest.fixture(autouse=True)
def _no_process_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever becomes of a cluster, none of its processes outlives it, be it an orphan."""
    yield
    tensorflow_process.close()
    left = _writing(psutil.process_iter(), str(tmp_path))
    _, alive = psutil.wait_procs(list(left.values()), timeout=20)
    assert not alive


def cluster_run(
    folder: Path, on_progress: Callable[[Mapping[str, Any]], None], **training: Any
) -> Checkpoint:
    """Train the digits so, in a child as the stage does it; `on_progress` is told the steps."""
    digits = trained_digits()
    config = digits.config.training.model_copy(
        update={"cluster": ClusterConfig(), "max_steps": 1_000_000, "log_every_steps": 50, **training}
    )
    run = run_in(folder)
    return tensorflow_process.run(
        "train", Checkpoint, log=run.log("train"), timeout_seconds=DEADLINE_SECONDS,
        on_progress=lambda told: on_progress(told) if "step" in told else None,
        arguments={"model": digits.config.model, "training": config, "data": digits.config.data,
                   "examples": digits.examples, "run": run},
    )  # fmt: skip


def run_in(folder: Path) -> Run:
    return run_of(load_pipeline(TWO_WORKERS), folder)


def steps_saved(folder: Path) -> list[int]:
    found = run_in(folder).model_dir.glob("model.ckpt-*.index")
    return sorted(int(path.stem.rpartition("-")[2]) for path in found)


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"strategy": "mirrored", "cluster": {}}, "with a cluster say multi_worker_mirrored"),
        ({"strategy": "multi_worker_mirrored", "cluster": {}}, "needs cluster.parameter_servers 0"),
        ({"cluster": {"parameter_servers": 0}}, "needs cluster.parameter_servers of 1 or more"),
        ({"cluster": {"workers": 0}}, "training.cluster.workers"),
        ({"cluster": {}, "deterministic": True}, "deterministic needs one process"),
        ({"strategy": "mirrored", "warm_start": {"from": "serving"}}, "exclude each other"),
    ],
)
def test_a_cluster_that_could_not_train(tmp_path: Path, training: dict[str, Any], problem: str) -> None:
    """Strategy and processes must fit; said before anything runs."""
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, {"training": training})
    assert problem in caught.value.message


def test_addresses_are_agreed_for_every_process() -> None:
    """The chief first; every process knows all addresses, no two alike; the evaluator is in no cluster."""
    tasks = agree(ClusterConfig(workers=3, parameter_servers=2, evaluator=True))
    assert [task.name for task in tasks] == ["chief-0", "worker-0", "worker-1", "ps-0", "ps-1", "evaluator-0"]
    addresses = [address for each in tasks[0].addresses.values() for address in each]
    assert len(set(addresses)) == len(addresses) == 5
    assert all(task.addresses == tasks[0].addresses for task in tasks)


def test_two_workers_through_the_whole_chain_with_one_killed_on_the_way(slipway: Slipway) -> None:
    """configs/two_workers: training goes on, the model passes its gates and is served; then none lives."""
    process = slipway.start(
        "run", TWO_WORKERS, "--set", "training.max_steps=2500", "--set", "deployment.target=process"
    )
    command, deploying, lines = psutil.Process(process.pid), None, []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("train …"):
            eventually(lambda: playing(command).get("worker-0"), DEADLINE_SECONDS).kill()
        if line.startswith("deploy …"):
            deploying = playing(command)
    assert process.wait(60) == 0, "".join(lines)
    assert deploying == {}
    (logs,) = (slipway.home / "runs" / "two_workers").glob("*/logs")
    assert "cluster: worker-0 ended with -9" in (logs / "train.log").read_text()
    names = {log.name for log in logs.glob("train*")}
    assert names == {"train.log", "train-worker-0.log", "train-ps-0.log"}
    assert slipway("ask", TWO_WORKERS).exit_code == 0


def test_a_killed_worker_comes_back_and_a_stopped_cluster_saves(tmp_path: Path) -> None:
    """Without it the chief makes steps, and it makes steps again; Ctrl-C then saves where the chief is.

    It saves by a parameter server, which therefore lives until the chief has ended.
    """
    killed_at: list[int] = []
    log = run_in(tmp_path).log("train-worker-0")

    def kill_then_interrupt(told: Mapping[str, Any]) -> None:
        parts = playing()
        if not killed_at and "worker-0" in parts:
            killed_at.append(told["step"])
            parts["worker-0"].kill()
        elif killed_at and "loss = " in log.read_text().rpartition("Start Tensorflow server.")[2]:
            killed_at.append(told["step"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster_run(tmp_path, kill_then_interrupt, save_checkpoints_steps=1_000_000)
    killed, interrupted = killed_at
    assert steps_saved(tmp_path)[-1] >= interrupted > killed


def test_a_killed_parameter_server_comes_back_and_a_killed_chief_takes_all_along(tmp_path: Path) -> None:
    """What the server held is restored from the last checkpoint, and training goes on.

    The chief's end is ProcessDied, which the flow retries; nobody waits for it for ever.
    """
    parts: dict[str, psutil.Process] = {}
    log = run_in(tmp_path).log("train")

    def kill(told: Mapping[str, Any]) -> None:
        playing_now = playing()
        if not parts and steps_saved(tmp_path)[-1:] >= [100] and "worker-0" in playing_now:
            parts.update(playing_now)
            parts["ps-0"].kill()
        elif parts and "Restoring parameters from" in log.read_text():
            parts["second ps"] = playing_now["ps-0"]
            parts["train"].kill()

    with pytest.raises(ProcessDied, match="killed by SIGKILL"):
        cluster_run(tmp_path, kill, save_checkpoints_steps=100)
    assert set(parts) == {"train", "worker-0", "ps-0", "second ps"}
    _, alive = psutil.wait_procs(list(parts.values()), timeout=20)
    assert not alive


def test_a_cluster_in_step_ends_its_attempt_when_a_worker_dies_and_resumes(tmp_path: Path) -> None:
    """multi_worker_mirrored cannot miss one: ProcessDied says which; the next attempt goes on.

    The next one has an evaluator, which has evaluated the last checkpoint when training returns.
    """
    killed: list[int] = []

    def kill_once(told: Mapping[str, Any]) -> None:
        if not killed and steps_saved(tmp_path)[-1:] >= [100]:
            killed.append(told["step"])
            playing()["worker-0"].kill()

    with pytest.raises(ProcessDied) as caught:
        cluster_run(tmp_path, kill_once, save_checkpoints_steps=100, **IN_STEP)
    assert "worker-0 ended with -9" in caught.value.hint
    saved = steps_saved(tmp_path)[-1]
    watched = {**IN_STEP, "cluster": ClusterConfig(parameter_servers=0, evaluator=True)}
    again = cluster_run(tmp_path, kill_once, max_steps=saved + 50, **watched)
    assert (again.resumed_from, again.global_step) == (saved, saved + 50)
    evaluated = run_in(tmp_path).log("train-evaluator-0").read_text()
    assert f"Saving dict for global step {saved + 50}: accuracy" in evaluated


def test_a_cluster_in_step_saves_when_it_is_stopped_and_dies_with_its_chief(tmp_path: Path) -> None:
    """Ctrl-C saves the step that all have reached; kill -9 of the chief takes the worker along at once."""
    interrupted: list[int] = []

    def interrupt(told: Mapping[str, Any]) -> None:
        interrupted.append(told["step"])
        if len(interrupted) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster_run(tmp_path, interrupt, save_checkpoints_steps=1_000_000, **IN_STEP)
    assert steps_saved(tmp_path)[-1] >= interrupted[-1]
    parts: dict[str, psutil.Process] = {}

    def kill(told: Mapping[str, Any]) -> None:
        if not parts:
            parts.update(playing())
            parts["train"].kill()

    with pytest.raises(ProcessDied, match="killed by SIGKILL"):
        cluster_run(tmp_path, kill, save_checkpoints_steps=1_000_000, **IN_STEP)
    assert set(parts) == {"train", "worker-0"}
    _, alive = psutil.wait_procs(list(parts.values()), timeout=5)
    assert not alive
