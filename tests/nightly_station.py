"""What runs the nights for tests: a Prefect server with a password, deployments, and workers to start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from free_ports import free_port
from slipway_command import REPOSITORY, Slipway
from waiting import eventually

from configs.loading.deployments import load_deployments

PULL = "prefect.deployments.steps.set_working_directory"
SHIPPED = REPOSITORY / "prefect.yaml"
PASSWORD = "keeper:a-secret-of-this-test"
LONG = {"training.max_steps": 10_000_000, "training.save_checkpoints_steps": 100}
"""Overrides with which training ends only when it is ended."""


class Station:
    """A server, a home, and the digits deployed as `nightly-digits`, served by a local process."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.folder, self.api = folder, f"http://127.0.0.1:{port}/api"
        self.slipway = Slipway(folder / "home", self.api)
        self.slipway.environment["PREFECT_API_AUTH_STRING"] = PASSWORD
        self.slipway.environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
        self._server_environment = {
            **self.slipway.environment,
            "PREFECT_HOME": str(folder / "server"),
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a user of the server has set, and a worker."""
        return self.slipway.environment

    @contextmanager
    def server(self) -> Iterator[None]:
        """Have the server answer inside the block."""
        with self.process("server", "server", "start", environment=self._server_environment):
            eventually(self._answers, seconds=300, every=0.2)
            yield

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", auth=_credentials(), timeout=5).is_success
        except httpx.TransportError:
            return False

    @contextmanager
    def process(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run `prefect <arguments>` inside the block, with a log; afterwards all of it is gone."""
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments], env=environment or self.environment,
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield started
        finally:
            end_with_children(started)

    def worker(self, name: str = "worker") -> Any:
        """Have a process worker of the pool `slipway` at work inside the block."""
        return self.process(name, "worker", "start", "--pool", "slipway", "--name", name)

    def deploy(self) -> None:
        """Deploy the shipped digits, asleep; `for-nobody`, in a pool that has no worker; and `roll-back`.

        As `prefect deploy` would, which test_deployments.py runs, but without its many seconds.
        """
        shipped = {each.name: each for each in load_deployments(SHIPPED).deployments}
        digits, button = shipped["nightly-digits"], shipped["roll-back"]
        flow = self.ask("flows/", name="retrain-and-deploy")["id"]
        overrides = {"deployment.target": "process", "training.max_steps": 500}
        for name, pool in ((digits.name, digits.work_pool.name), ("for-nobody", "nobody")):
            self.ask("work_pools/", name=pool, type="process")
            self.ask(
                "deployments/", name=name, flow_id=flow, entrypoint=digits.entrypoint, work_pool_name=pool,
                parameters={**digits.parameters, "overrides": overrides}, enforce_parameter_schema=False,
                concurrency_limit=digits.concurrency_limit.limit,
                concurrency_options={"collision_strategy": digits.concurrency_limit.collision_strategy},
                job_variables=digits.work_pool.job_variables.model_dump(exclude_none=True),
                pull_steps=[{PULL: {"directory": str(REPOSITORY)}}],
            )  # fmt: skip
        self.ask(
            "deployments/", name=button.name, flow_id=self.ask("flows/", name="roll-back")["id"],
            entrypoint=button.entrypoint, work_pool_name=button.work_pool.name,
            parameters=button.parameters, tags=list(button.tags),
            pull_steps=[{PULL: {"directory": str(REPOSITORY)}}],
        )  # fmt: skip

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the server's API and return its answer."""
        answer = eventually(lambda: self._answer(path, body), every=0.5)
        assert answer.is_success, answer.text
        return answer.json()

    def _answer(self, path: str, body: dict[str, Any]) -> httpx.Response | None:
        answer = httpx.post(f"{self.api}/{path}", json=body, auth=_credentials(), timeout=60)
        # SQLite was busy: Prefect's own client asks again too.
        return answer if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE else None

    def runs(self) -> list[dict[str, Any]]:
        """Every flow run that the server knows, the oldest first."""
        return list(self.ask("flow_runs/filter", sort="START_TIME_ASC"))

    def saved(self) -> list[int]:
        """Steps of all checkpoints of runs of the digits."""
        indices = self.slipway.home.glob("runs/digits/*/checkpoints/model.ckpt-*.index")
        return sorted(int(index.stem.rpartition("-")[2]) for index in indices)


def _credentials() -> tuple[str, str]:
    user, _, password = PASSWORD.partition(":")
    return user, password


def end_with_children(process: subprocess.Popen[Any]) -> None:
    """Kill the process and all that it started, and return when they are gone."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            pass
    process.kill()
    process.wait(30)
    psutil.wait_procs(family, timeout=30)


@contextmanager
def opened(folder: Path) -> Iterator[Station]:
    """Yield a station with its server running and the digits deployed; afterwards nothing of it runs."""
    there = Station(folder)
    with there.server():
        there.deploy()
        yield there
        there.slipway("stop", "configs/digits")
