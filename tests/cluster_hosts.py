"""Worker hosts for clusters across machines: Prefect's process workers, and what is seen of a run on them."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from slipway_command import user_environment


def make_pool(api: str) -> str:
    """Make a work pool for processes, and return its name, which no other test has."""
    name = f"hosts-{uuid.uuid4().hex[:6]}"
    httpx.post(f"{api}/work_pools/", json={"name": name, "type": "process"}).raise_for_status()
    return name


def worker_command(pool: str, name: str) -> list[str]:
    """What a host runs, to take one flow run of the pool at a time."""
    return ["-m", "prefect", "worker", "start", "--pool", pool, "--name", name, "--limit", "1"]


@contextmanager
def local_workers(pool: str, api: str, folder: Path, count: int = 2) -> Iterator[list[psutil.Process]]:
    """So many workers of the pool, each for one run at a time, as processes of this machine."""
    environment = {**user_environment(folder / "worker-home"), "PREFECT_API_URL": api,
                   "PREFECT_WORKER_QUERY_SECONDS": "1"}  # fmt: skip
    started = []
    try:
        for number in range(count):
            with (folder / f"host-{number}.log").open("wb") as log:
                command = [sys.executable, *worker_command(pool, f"host-{number}")]
                started.append(psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder))
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait(20)


class Training:
    """A run of configs/two_workers on a work pool, seen through its folder and Prefect's API."""

    def __init__(self, home: Path, api: str) -> None:
        self._home, self._api = home, api

    @property
    def folder(self) -> Path:
        """The run's folder."""
        (found,) = self._home.glob("runs/two_workers/2*")
        return found

    def log(self, process: str) -> str:
        """What a process of the cluster printed; `chief` is the trainer."""
        file = self._log(process)
        return file.read_text() if file else ""

    def _log(self, process: str) -> Path | None:
        name = "train" if process == "chief" else f"train-{process}"
        return next(self._home.glob(f"runs/two_workers/*/logs/{name}.log"), None)

    def makes_steps(self, process: str) -> bool:
        """Whether it has told a loss since it was last started."""
        return "loss = " in self.log(process).rpartition("Start Tensorflow server.")[2]

    def playing(self, process: str) -> psutil.Process | None:
        """The TensorFlow process that is this one of the cluster, be it in a container."""
        log = self._log(process)
        return next((found for found in psutil.process_iter() if log and _writes(found, log)), None)

    def host_of(self, process: str) -> str:
        """The host that this process of the cluster is on now."""
        (file,) = self.folder.glob("cluster/*/players.json")
        player = json.loads(file.read_text())[process]
        return str(json.loads((file.parent / "members" / player).read_text())["host"])

    def states(self) -> dict[str, list[str]]:
        """Process of the cluster to the states of its flow runs, the first one first."""
        named = {"flow_runs": {"name": {"like_": f"two_workers {self.folder.name}"}}}
        answer = httpx.post(f"{self._api}/flow_runs/filter", json=named).raise_for_status()
        found: dict[str, list[str]] = {}
        for run in sorted(answer.json(), key=lambda run: run["created"]):
            found.setdefault(run["name"].split()[-1], []).append(run["state_name"])
        return found

    def running_flows(self) -> list[str]:
        """The names of flow runs that are not at their end, this run's own or its cluster's."""
        live = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
        asked = {"flow_runs": {"state": {"type": {"any_": live}}, "name": {"like_": "two_workers"}}}
        answer = httpx.post(f"{self._api}/flow_runs/filter", json=asked).raise_for_status()
        return [run["name"] for run in answer.json()]


def _writes(process: psutil.Process, log: Path) -> bool:
    try:
        return any(file.path == str(log) for file in process.open_files())
    except psutil.Error:
        return False
