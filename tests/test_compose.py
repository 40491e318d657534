"""compose.yaml, brought up with images made from Debian and PyPI packages: a night, and restarts, in it.

The tests build on each other, in this order: all are of one project, which is taken down after the last.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import httpx
import pipeline_images
import pytest
from docker.models.containers import Container
from documented import commands
from free_ports import free_port
from model_server_image import unavailable
from prefect_docker.worker import DockerWorker
from slipway_command import REPOSITORY
from waiting import eventually

from tasks.servers import model_status

pytest_plugins = ["model_server_fixtures"]
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

FILE = REPOSITORY / "containers" / "compose.yaml"
PAGE = REPOSITORY / "docs" / "how-to" / "compose.md"
SERVICES = ("postgres", "prefect", "worker", "model-server")
PASSWORD = "keeper:a secret of this test's $%@/"
SECONDS = 900.0
"""For what a loaded machine takes a minute for, at most."""
QUICK = ("--set", "training.max_steps=500")
SOME_TIME = {"training.max_steps": 6000, "training.save_checkpoints_steps": 100}


class Project:
    """All services of compose.yaml, under a name, with ports and volumes of their own."""

    def __init__(self, command: list[str], engine: docker.DockerClient, folder: Path, images: dict[str, str]):
        self.name = f"slipwaytest{uuid.uuid4().hex[:8]}"
        self.api, self.rest_port = free_port(), free_port()
        hurry = folder / "hurry.yaml"  # workers ask for runs every second, and not every ten
        hurry.write_text("services: {worker: {environment: {PREFECT_WORKER_QUERY_SECONDS: '1'}}}")
        # compose 2 reads a lone $ in a value as it is; both do in what the environment gives.
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **images,
            "POSTGRES_PASSWORD": "another secret of this test's $%@/",
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_PORT": str(self.api), "REST_PORT": str(self.rest_port), "GRPC_PORT": str(free_port()),
        }  # fmt: skip
        self._engine = engine
        self._compose = [*command, "--project-name", self.name, "--file", str(FILE), "--file", str(hurry)]

    def __call__(self, *arguments: str, seconds: float = SECONDS) -> str:
        """Run a command of compose to its end; return what it printed."""
        done = subprocess.run(
            [*self._compose, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Have the services run that the arguments name; images are there, none is built."""
        self("up", "--detach", "--no-build", *arguments)

    def of(self, service: str) -> list[Container]:
        """The service's containers, the first one first."""
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}",
                  "com.docker.compose.oneoff=False"]  # fmt: skip
        return sorted(self._engine.containers.list(all=True, filters={"label": labels}), key=_name)

    def in_worker(self, *command: str) -> str:
        """Run a command in the first worker's container, as a user of it would."""
        return self("exec", "-T", "worker", *command)

    def healthy(self, *services: str) -> None:
        """Return when every container of these services is, by its own check."""
        for service in services:
            eventually(lambda service=service: self._all_healthy(service), SECONDS, every=0.5)

    def _all_healthy(self, service: str) -> bool:
        found = self.of(service)
        return bool(found) and all(_health(container) == "healthy" for container in found)

    def ask(self, path: str, **body: Any) -> Any:
        """POST to Prefect's API, through its port on loopback, with the password."""
        user, _, password = PASSWORD.partition(":")
        url = f"http://127.0.0.1:{self.api}/api/{path}"
        answer = httpx.post(url, json=body, auth=(user, password), timeout=30, trust_env=False)
        return answer.raise_for_status().json()

    def scheduled(self) -> dict[str, str]:
        """Ids of the runs that wait for their time, and that time."""
        found = self.ask("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        return {run["id"]: run["expected_start_time"] for run in found}

    def deployment(self) -> dict[str, Any]:
        """The digits, as containers/prefect.yaml has them."""
        named = {"name": {"any_": ["nightly-digits"]}}
        (found,) = self.ask("deployments/filter", deployments=named)
        return dict(found)

    def run(self, deployment: dict[str, Any], **parameters: Any) -> str:
        """Have the deployment run now; return the flow run's id."""
        told = {**deployment["parameters"], **parameters}
        run = self.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=told)
        return str(run["id"])

    def dry_run(self, deployment: dict[str, Any]) -> str:
        """Have the deployment run now, up to its preflight; return the flow run's id."""
        return self.run(deployment, dry_run=True)

    def resumed(self) -> list[str]:
        """Ids of the flow runs that go on with a run that was killed."""
        return [run["id"] for run in self.ask("flow_runs/filter") if run["parameters"].get("resume")]

    def run_in_pool(self, pool: str, job_variables: dict[str, Any]) -> str:
        """Deploy the digits to a docker pool too, and have a dry run wait for its worker."""
        self.ask(
            "work_pools/",
            name=pool,
            type="docker",
            base_job_template=DockerWorker.get_default_base_job_template(),
        )
        kept = ("flow_id", "entrypoint", "parameters", "pull_steps", "enforce_parameter_schema")
        like = {name: value for name, value in self.deployment().items() if name in kept}
        made = self.ask("deployments/", name=pool, work_pool_name=pool, job_variables=job_variables, **like)
        return self.dry_run(made)

    @contextmanager
    def worker_on_the_machine(self, pool: str, folder: Path) -> Iterator[None]:
        """Have a worker of the pool inside the block, which starts containers by the engine's socket."""
        environment = {**self.environment, "PREFECT_API_URL": f"http://127.0.0.1:{self.api}/api",
                       "PREFECT_HOME": str(folder), "PREFECT_WORKER_QUERY_SECONDS": "1"}  # fmt: skip
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "docker"]
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(60)

    def ended(self, run: str) -> str | None:
        """Name of the state that the flow run ended in; None while it has not."""
        (found,) = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        ended = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        return str(found["state_name"]) if found["state_type"] in ended else None

    def log(self, run: str) -> str:
        """What the flow run's log says."""
        found = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return "\n".join(each["message"] for each in found)

    def live_version(self) -> int | None:
        """What the model server answers with, asked through its port on loopback."""
        return model_status.live_version(f"http://127.0.0.1:{self.rest_port}", "digits")

    def down(self) -> None:
        """Have nothing of it left."""
        self("down", "--volumes", "--remove-orphans", "--timeout", "3")


def _name(container: Container) -> str:
    return str(container.name)


def _health(container: Container) -> str:
    return str(container.attrs["State"].get("Health", {}).get("Status", "none"))


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The command that there is."""
    command = pipeline_images.compose_command()
    return command or unavailable("neither `docker compose` nor docker-compose is installed")


def _documented() -> list[list[str]]:
    """Return the commands that bring it up and deploy; the run is asked for in the tests."""
    pasted = next(line for line in commands(PAGE) if line.startswith("docker compose up"))
    lines = [shlex.split(line) for line in pasted.split(" && ")]
    assert [line[:3] for line in lines] == [
        ["docker", "compose", "up"], *[["docker", "compose", "exec"]] * 4
    ]  # fmt: skip
    return lines[:3]


@pytest.fixture(scope="module")
def project(
    compose: list[str],
    engine: docker.DockerClient,
    image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Project]:
    """Everything brought up, and the digits deployed, by the documented lines, one right after the other."""
    pipeline = pipeline_images.pipeline(engine)
    images = {"POSTGRES_IMAGE": pipeline_images.postgres(engine), "PREFECT_IMAGE": pipeline,
              "SLIPWAY_PIPELINE_IMAGE": pipeline, "MODEL_SERVER_IMAGE": image}  # fmt: skip
    there = Project(compose, engine, tmp_path_factory.mktemp("compose"), images)
    try:
        for line in _documented():
            there.up() if line[2] == "up" else there.in_worker(*line[4:])
        there.healthy("postgres", "prefect", "worker")
        yield there
    finally:
        there.down()


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING"])
def test_nothing_starts_without_a_password(compose: list[str], missing: str) -> None:
    """There is no default that somebody could forget to change; the message says what it is."""
    given = {"POSTGRES_PASSWORD": "x", "PREFECT_API_AUTH_STRING": "x:y", missing: ""}
    done = subprocess.run(
        [*compose, "--file", FILE, "config"], env={**os.environ, **given}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert missing in done.stderr


def test_only_loopback_is_listened_on(compose: list[str]) -> None:
    """Whatever the machine's networks are."""
    given = {"POSTGRES_PASSWORD": "x", "PREFECT_API_AUTH_STRING": "x:y"}
    lines = subprocess.run(
        [*compose, "--file", FILE, "config"], env={**os.environ, **given}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert lines.count("127.0.0.1") >= 3
    assert "0.0.0.0:" not in lines


def test_services_are_closed(project: Project) -> None:
    """None is root, has a capability, or can write to its root file system or gain privileges."""
    for service in SERVICES:
        (container,) = project.of(service)
        options = container.attrs["HostConfig"]
        assert (options["ReadonlyRootfs"], options["CapDrop"]) == (True, ["ALL"])
        assert options["RestartPolicy"]["Name"] == "unless-stopped"
        assert container.exec_run(["id", "-u"]).output.strip() != b"0"
        status = container.exec_run(["cat", "/proc/1/status"]).output.decode()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert container.exec_run(["touch", "/opt/x"]).exit_code != 0


def test_a_night_runs_in_it(project: Project) -> None:
    """The worker trains, the model server beside serves what it published, every number asked over gRPC."""
    said = project.in_worker("slipway", "trigger", "digits", "--watch", *QUICK)
    assert "model-server" in said, said
    first = project.live_version()
    assert first is not None
    answers = project.in_worker("slipway", "ask", "configs/digits")
    assert str(first) in answers
    project.healthy("model-server")


def test_a_worker_that_dies_half_way_goes_on_by_itself(project: Project) -> None:
    """All in its container is killed while it trains: Crashed, then resumed; the old version answers."""
    before, deployment = project.live_version(), project.deployment()
    (worker,) = project.of("worker")
    saved = _checkpoints(worker)
    killed = project.run(deployment, overrides={**deployment["parameters"]["overrides"], **SOME_TIME})
    eventually(lambda: len(_checkpoints(worker) - saved) > 2, SECONDS)
    worker.exec_run(["sh", "-c", "kill -9 -1"])
    assert eventually(lambda: project.ended(killed), SECONDS, every=0.5) == "Crashed"
    assert project.live_version() == before
    (run,) = eventually(project.resumed, SECONDS, every=0.5)
    assert eventually(lambda: project.ended(run), SECONDS, every=0.5) == "Deployed"
    assert project.live_version() != before
    eventually(lambda: "resumed from step" in project.log(run))


def _checkpoints(worker: Container) -> set[bytes]:
    """Every checkpoint of the digits that is on the worker's volume."""
    listed = "ls /var/lib/slipway/runs/digits/*/checkpoints/model.ckpt-*.index"
    return set(worker.exec_run(["sh", "-c", listed], stderr=False).output.split())


def test_a_restart_of_any_one_leaves_runs_scheduled(project: Project) -> None:
    """One after the other: the same runs at the same times, and each service healthy again."""
    before = eventually(project.scheduled, SECONDS)
    version = project.live_version()
    for service in SERVICES:
        started = [container.attrs["State"]["StartedAt"] for container in project.of(service)]
        project("restart", "--timeout", "5", service)
        assert [container.attrs["State"]["StartedAt"] for container in project.of(service)] != started
        project.healthy(*SERVICES)
        assert before.items() <= project.scheduled().items()
    assert project.live_version() == version


def test_a_second_worker_takes_the_next_run(project: Project) -> None:
    """In a container of its own, while the first one is away; it finds the first one's server and version."""
    project.up("--no-recreate", "--scale", "worker=2", "worker")
    project.healthy("worker")
    first, second = project.of("worker")
    first.stop(timeout=5)
    run = project.dry_run(project.deployment())
    assert eventually(lambda: project.ended(run), SECONDS, every=0.5) == "Checked"
    log = second.logs().decode()
    assert run in log
    assert f"version {project.live_version()} serves now" in log


CLOSED = {"read_only": True, "tmpfs": {"/tmp": ""}, "cap_drop": ["ALL"], "init": True,
          "security_opt": ["no-new-privileges"]}  # fmt: skip


def test_a_docker_pool_has_a_container_for_each_run(
    project: Project, engine: docker.DockerClient, tmp_path: Path
) -> None:
    """Its worker is on the machine; the run has the same image, volumes, model server, and is as closed."""
    run = project.run_in_pool("docker-pool", {
        "image": project.environment["SLIPWAY_PIPELINE_IMAGE"], "image_pull_policy": "Never",
        "networks": [f"{project.name}_default"],
        "volumes": [f"{project.name}_state:/var/lib/slipway",
                    f"{project.name}_models:/var/lib/slipway/models"],
        "env": {"PREFECT_API_URL": "http://prefect:4200/api"}, "container_create_kwargs": CLOSED,
    })  # fmt: skip
    label = f"io.prefect.flow-run-id={run}"
    try:
        with project.worker_on_the_machine("docker-pool", tmp_path):
            assert eventually(lambda: project.ended(run), SECONDS, every=0.5) == "Checked"
        (container,) = engine.containers.list(all=True, filters={"label": label})
        assert container.attrs["Config"]["User"] == "65532:65532"
        assert container.attrs["HostConfig"]["ReadonlyRootfs"]
        assert f"version {project.live_version()} serves now" in container.logs().decode()
    finally:
        for container in engine.containers.list(all=True, filters={"label": label}):
            container.remove(force=True)
