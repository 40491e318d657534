"""Servers of models as processes: found, started, waited for, replaced, stopped. The server is a tiny one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_server
from free_ports import free_port
from hypothesis import given
from hypothesis import strategies as st
from pipelines import written
from prefect.logging import disable_run_logger
from pydantic import ValidationError
from waiting import eventually

from configs.loading.pipelines import Pipeline
from configs.schema.pipeline import (
    DataConfig,
    DeploymentConfig,
    ExportConfig,
    ServerConfig,
    SmokeTestConfig,
)
from tasks.answers import kept_answers
from tasks.core.artifacts import Candidate, ModelVersion, Run, ServingTarget, SmokeTest, Withdrawal
from tasks.core.errors import AlreadyRunning, DeployFailed, EnvironmentFault
from tasks.deployment import deploy, withdraw
from tasks.deploys import (
    interrupted_deploys,
    rollouts,
    served_answers,
    stopping,
    undoing,
)
from tasks.preflight import serving_target
from tasks.publishing import publish
from tasks.retention import retire
from tasks.servers import model_servers, model_status, server_container, server_process
from tasks.servers.model_servers import Deadline
from tasks.state import deploy_journal, model_versions, server_records
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord

NOWHERE = "unix:///nonexistent/docker.sock"


@pytest.fixture(autouse=True)
def _stages_run_alone() -> Iterator[None]:
    """A stage outside a flow has no run whose log it could write to."""
    with disable_run_logger():
        yield


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model_base_path that holds versions 7 and 8."""
    for number in (7, 8):
        (tmp_path / "models" / str(number)).mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    """The tiny server; whatever was started of it is ended."""
    file = tiny_server.write(tmp_path / "tiny_model_server")
    yield file
    for process in _servers(file):
        process.kill()
        process.wait(10)


def _servers(program: Path) -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if child.status() != "zombie" and str(program) in child.cmdline()]


@pytest.fixture
def record(program: Path, base: Path) -> ServerRecord:
    """A server of the model `small` that is not started yet."""
    return ServerRecord("small", "process", str(program), "identity", str(base), (), free_port(), free_port())


def _started(record: ServerRecord, *flags: str) -> ServerRecord:
    """Start the server and wait until it answers, so that its signal handlers are in place."""
    started = model_servers.start(replace(record, flags=flags))
    eventually(lambda: model_status.version_statuses(started.rest, "small"))
    return started


class TestPorts:
    """Ports on loopback."""

    def test_a_port_that_nobody_has_has_no_holder(self) -> None:
        """It can be bound."""
        assert model_servers.port_holder(free_port()) is None

    def test_the_holder_of_a_port_is_named(self) -> None:
        """By the name and the pid of its process."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            holder = model_servers.port_holder(taken.getsockname()[1])
        assert holder == f"{psutil.Process().name()} (pid {os.getpid()})"

    def test_a_named_port_is_taken_as_it_is(self) -> None:
        """Whether it is free is for preflight to say."""
        assert model_servers.choose_port(8500, before=9000) == 8500

    def test_zero_keeps_the_port_of_before_while_it_is_free(self) -> None:
        """A client finds the next server where the last one was."""
        before = free_port()
        assert model_servers.choose_port(0, before) == before
        assert model_servers.choose_port(0, before, taken=before) != before
        with socket.socket() as other:
            other.bind(("127.0.0.1", before))
            other.listen()
            assert model_servers.choose_port(0, before) != before

    @pytest.fixture
    def offered(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
        """Have the kernel offer these ports, by names that no other test run on this machine claims."""

        def offered(*ports: int) -> list[int]:
            numbers = [100_000 + 10 * os.getpid() + port for port in ports]
            offers = iter(numbers)

            class Kernel(socket.socket):
                def getsockname(self) -> tuple[str, int]:
                    return "127.0.0.1", next(offers)

            monkeypatch.setattr(model_servers.socket, "socket", Kernel)
            return numbers

        claims: list[socket.socket] = []
        monkeypatch.setattr(model_servers, "_claims", claims)
        yield offered
        for claim in claims:
            claim.close()

    def test_the_two_ports_never_coincide(self, offered: Callable[..., list[int]]) -> None:
        """Should the kernel pick the port that gRPC was given, another is asked for."""
        first, _, second = offered(1, 1, 2)
        assert model_servers.choose_port(0, None, taken=first) == second

    def test_two_runs_at_once_never_choose_the_same(self, offered: Callable[..., list[int]]) -> None:
        """One that another process chose, and where nobody listens yet, is left to it until that ends."""
        first, second, *_ = offered(1, 2, 1)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(f"\0slipway-port-{first}")
            assert model_servers.choose_port(0, None) == second
        assert model_servers.choose_port(0, None) == first

    def test_one_run_never_chooses_the_same_twice(self, offered: Callable[..., list[int]]) -> None:
        """Its canary does not take the port that its server will have."""
        first, _, second = offered(1, 1, 2)
        assert [model_servers.choose_port(0, None) for _ in range(2)] == [first, second]


class TestRecords:
    """Records of servers on disk."""

    @given(
        values=st.builds(
            ServerRecord, model_name=st.just("small"), target=st.sampled_from(["docker", "process"]),
            program=st.text(max_size=5), identity=st.text(max_size=5), model_base_path=st.text(max_size=5),
            flags=st.lists(st.text(max_size=5), max_size=3).map(tuple), grpc_port=st.integers(1, 65535),
            rest_port=st.integers(1, 65535), handle=st.text(max_size=5),
        )
    )  # fmt: skip
    def test_a_record_is_read_as_it_was_written(self, values: ServerRecord) -> None:
        """Nothing is lost on the way to disk, and no partial file stays."""
        server_records.write(values)
        assert server_records.read("small") == values
        assert len(list(server_records.servers_folder().iterdir())) == 1

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"{}", b'{"flags": [], "x": 1}']
    )
    def test_a_corrupt_record_is_as_good_as_none(self, home: Path, content: bytes) -> None:
        """What another release or a hand wrote stops no run."""
        (home / "servers").mkdir(parents=True)
        (home / "servers" / "small.json").write_bytes(content)
        assert server_records.read("small") is None
        assert model_servers.running("small") is None

    def test_a_replaced_server_is_remembered_until_it_is_settled(self, record: ServerRecord) -> None:
        """Beside the present one; a stopped server is no longer replaced by anything."""
        server_records.set_aside(record)
        server_records.write(replace(record, identity="new"))
        assert server_records.read_replaced("small") == record
        server_records.settle("small")
        assert server_records.read_replaced("small") is None
        server_records.set_aside(record)
        server_records.mark_stopped(replace(record, handle="7:1.0"))
        assert server_records.read_replaced("small") is None
        stopped = server_records.read("small")
        assert stopped is not None and (stopped.handle, stopped.rest_port) == ("", record.rest_port)


class TestProcess:
    """The server as a local process."""

    def test_it_runs_detached_with_the_flags_of_the_official_server(self, record: ServerRecord) -> None:
        """In a session of its own, its output in a log; the record on disk finds it."""
        started = _started(record, "--enable_batching=true")
        process = server_process.find(started.handle)
        assert process is not None and os.getsid(process.pid) == process.pid
        assert process.cmdline()[-5:] == [
            f"--port={record.grpc_port}", f"--rest_api_port={record.rest_port}", "--model_name=small",
            f"--model_base_path={record.model_base_path}", "--enable_batching=true",
        ]  # fmt: skip
        assert "serving" in Path(started.log).read_text()
        assert model_servers.running("small") == started
        assert started.describe() == f"process {process.pid}"

    def test_it_inherits_no_secret(self, record: ServerRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a graph that reads /proc/self/environ would find: where to look, and how to compute."""
        for name in (
            "WAREHOUSE_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "PREFECT_API_KEY",
            "SLIPWAY_ALERT_WEBHOOK",
        ):
            monkeypatch.setenv(name, "hush")
        kept = {
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "TZ": "UTC",
        }
        for name, value in kept.items():
            monkeypatch.setenv(name, value)
        found = psutil.Process(int(_started(record).handle.split(":")[0])).environ()
        assert "hush" not in found.values()
        assert {name: found.get(name) for name in kept} == kept
        assert found["PATH"] == os.environ["PATH"]

    def test_a_recycled_pid_is_not_mistaken_for_it(self, record: ServerRecord) -> None:
        """The handle holds boot id and start ticks too; what is no handle finds nothing."""
        started = _started(record)
        pid, boot, ticks = started.handle.split(":")
        earlier = f"{pid}:{boot}:{int(ticks) - 1}"
        for handle in (
            earlier,
            f"{pid}:another-boot:{ticks}",
            "",
            pid,
            "x:1",
            f"{pid}:x",
            f"{'9' * 20}:{boot}:1",
        ):
            assert server_process.find(handle) is None
        server_process.stop(earlier, 5.0)
        assert server_process.find(started.handle) is not None

    def test_it_is_stopped_by_sigterm(self, record: ServerRecord) -> None:
        """It is gone, its record says so, and stopping it again is no error."""
        started = _started(record)
        process = server_process.find(started.handle)
        model_servers.stop(started)
        assert process is not None and not process.is_running()
        assert model_servers.running("small") is None
        model_servers.stop(started)

    def test_one_that_ignores_sigterm_is_killed(self, record: ServerRecord) -> None:
        """After the grace that it was given."""
        started = _started(record, "--mode=stubborn")
        server_process.stop(started.handle, grace_seconds=0.2)
        assert server_process.find(started.handle) is None

    def test_a_killed_server_does_not_run(self, record: ServerRecord) -> None:
        """Not even while it is a zombie that its parent has not waited for."""
        started = _started(record)
        os.kill(int(started.handle.split(":")[0]), signal.SIGKILL)
        eventually(lambda: server_process.find(started.handle) is None)
        assert not model_servers.is_alive(started)

    def test_the_log_of_the_server_before_is_kept(self, record: ServerRecord) -> None:
        """As `.log.1`: a start does not wipe what the last server said."""
        model_servers.stop(_started(record, "--first=1"))
        second = _started(record, "--second=1")
        assert "--second=1" in Path(second.log).read_text()
        assert "--first=1" in Path(f"{second.log}.1").read_text()

    @pytest.mark.parametrize("content", ["no interpreter named", "#!/nonexistent/python\n"])
    def test_a_program_that_cannot_be_run_fails_the_deployment(
        self, record: ServerRecord, program: Path, content: str
    ) -> None:
        """The message names it, and what the operating system says."""
        program.write_text(content)
        with pytest.raises(DeployFailed, match=f"^{program} cannot be run: "):
            model_servers.start(record)

    def test_the_identity_changes_with_what_the_server_is(self, program: Path, base: Path) -> None:
        """Program, its time, flags and base path; ours is told by its sources."""
        server = ServerConfig(insecure=True, executable=program)
        identities = [model_servers.identity("process", server, str(program), base)]
        os.utime(program, (1, 1))
        identities.append(model_servers.identity("process", server, str(program), base))
        identities.append(model_servers.identity("process", server, str(program), base / "x"))
        flagged = server.model_copy(update={"flags": {"a": True}})
        identities.append(model_servers.identity("process", flagged, str(program), base))
        identities.append(model_servers.identity("process", ServerConfig(), "model_server", base))
        identities.append(model_servers.identity("docker", ServerConfig(), "model_server", base))
        assert len(set(identities)) == 6
        assert model_servers.identity("process", flagged, str(program), base) == identities[3]

    def test_flags_are_written_as_the_official_server_reads_them(self) -> None:
        """Sorted, true and false in lower case; where another can take its place, two of ours beside them."""
        flags = {"b": True, "a": 2, "c": 0.5, "d": "x y"}
        written = ["--a=2", "--b=true", "--c=0.5", "--d=x y"]
        official = {"flags": flags, "image": "tensorflow/serving:2.15.1"}
        assert model_servers.own_flags(ServerConfig(**official, network="published")) == written
        age = "--grpc_channel_arguments=grpc.max_connection_age_ms=20000"
        ours = ["--enable_profiler=false", age]
        assert model_servers.own_flags(ServerConfig(**official)) == sorted([*written, *ours])
        assert model_servers.own_flags(ServerConfig()) == ours
        own = {"grpc_channel_arguments": "grpc.so_reuseport=1", "enable_profiler": True}
        assert model_servers.own_flags(ServerConfig(flags=own)) == [
            "--enable_profiler=true",
            "--grpc_channel_arguments=grpc.so_reuseport=1",
        ]


class TestStatus:
    """What a server says of its versions."""

    def test_it_is_parsed(self, record: ServerRecord, base: Path) -> None:
        """Number, state and error of each; live is the highest that is AVAILABLE."""
        (base / "7" / "state").write_text("AVAILABLE")
        (base / "8" / "state").write_text("END broken graph")
        started = _started(record)
        statuses = model_status.version_statuses(started.rest, "small")
        assert [(status.version, status.state, status.error) for status in statuses] == [
            (8, "END", "INTERNAL: broken graph"),
            (7, "AVAILABLE", ""),
        ]
        assert model_status.live_version(started.rest, "small") == 7

    def test_who_does_not_know_the_model_says_nothing(self, record: ServerRecord) -> None:
        """Neither a 404 nor a closed port is an error: the server may be coming up."""
        started = _started(record)
        assert model_status.version_statuses(started.rest, "other") == ()
        assert model_status.version_statuses(f"http://127.0.0.1:{free_port()}", "small") == ()
        assert model_status.live_version(f"http://127.0.0.1:{free_port()}", "small") is None


class TestWaiting:
    """Waiting for a version to be served, with one deadline."""

    def _fails(self, record: ServerRecord, tmp_path: Path, seconds: float = 30.0) -> DeployFailed:
        with pytest.raises(DeployFailed) as failed:
            model_servers.wait_until_live(
                record, 8, Deadline.after(seconds), tmp_path / "logs" / "server.log"
            )
        assert failed.value.message.startswith(f"{record.describe()}: ")
        assert (tmp_path / "logs" / "server.log").is_file()
        return failed.value

    def test_it_ends_when_the_version_is_available(self, record: ServerRecord, tmp_path: Path) -> None:
        """From before the server answers at all; nothing is left on disk for it."""
        started = model_servers.start(record)
        model_servers.wait_until_live(started, 8, Deadline.after(30), tmp_path / "log")
        assert model_status.live_version(started.rest, "small") == 8
        assert not (tmp_path / "log").exists()

    def test_a_version_that_cannot_be_loaded(self, record: ServerRecord, base: Path, tmp_path: Path) -> None:
        """The server's own error is told at once, long before the deadline."""
        (base / "8" / "state").write_text("END broken graph")
        error = self._fails(_started(record), tmp_path)
        assert "the server cannot load version 8: INTERNAL: broken graph" in error.message

    def test_a_server_that_dies(self, record: ServerRecord, tmp_path: Path) -> None:
        """The last lines of its log are in the hint, all of it in the run's copy."""
        error = self._fails(model_servers.start(replace(record, flags=("--mode=dies",))), tmp_path)
        assert "the server died while loading version 8" in error.message
        shown = error.hint.splitlines()
        assert shown[0] == f"its log: {tmp_path}/logs/server.log"
        assert shown[-2:] == ["line 30", "out of cheese"]
        assert "line 2" not in shown
        assert "line 1\nline 2\n" in (tmp_path / "logs" / "server.log").read_text()

    def test_the_deadline(self, record: ServerRecord, base: Path, tmp_path: Path) -> None:
        """The message has its length, and what the server said last."""
        (base / "8" / "state").write_text("LOADING")
        (base / "7" / "state").write_text("AVAILABLE")
        error = self._fails(_started(record), tmp_path, seconds=0.2)
        assert "version 8 was not served within 0.2 s (8 LOADING, 7 AVAILABLE)" in error.message

    def test_a_server_that_answers_over_rest_alone(
        self, record: ServerRecord, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its clients use gRPC."""
        monkeypatch.setattr(model_servers, "_GRPC_SECONDS", 0.3)
        (base / "mute").touch()
        error = self._fails(_started(record), tmp_path, seconds=0.1)
        expected = "version 8 was not served within 0.1 s (8 AVAILABLE, 7 END; no answer over gRPC)"
        assert expected in error.message

    def test_the_deadline_of_a_server_that_says_nothing(self, record: ServerRecord, tmp_path: Path) -> None:
        """Alive and silent is told from dead."""
        silent = replace(_started(record), rest_port=free_port())
        assert "within 0.1 s (no answer)" in self._fails(silent, tmp_path, seconds=0.1).message


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Run:
    """A run of the pipeline `small`."""
    return Run("small", "r1", tmp_path / "run", tmp_path, base)


class TestPreflight:
    """Where to serve, decided before anything is changed."""

    @pytest.fixture(autouse=True)
    def _no_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", NOWHERE)

    def _target(self, run: Run, server: ServerConfig | None = None, **deployment: Any) -> ServingTarget:
        ports = {"grpc_port": 0, "rest_port": 0}
        return serving_target(DeploymentConfig(**{**ports, **deployment}), server or ServerConfig(), run)

    def test_auto_without_an_engine_is_a_process(self, run: Run) -> None:
        """The reason says that no engine answers; two free ports are picked; nothing serves yet."""
        target = self._target(run, target="auto")
        assert (target.kind, target.program, target.live_version) == ("process", "model_server", None)
        assert target.reason.startswith("served by a local process: no Docker engine answers: ")
        assert target.grpc_port != target.rest_port
        assert "nothing serves yet" in target.summary()

    def test_process_asks_no_engine(self, run: Run) -> None:
        """It is what was configured."""
        assert self._target(run, target="process").reason == "served by a local process, as configured"

    @pytest.mark.parametrize(
        ("target", "server"),
        [("docker", ServerConfig()), ("auto", ServerConfig(image="tensorflow/serving:2.15.1"))],
    )
    def test_a_container_without_an_engine_is_an_error(
        self, run: Run, target: str, server: ServerConfig
    ) -> None:
        """An image in the YAML asks for a container as `target: docker` does."""
        with pytest.raises(EnvironmentFault, match=r"^no Docker engine answers: ") as refused:
            self._target(run, server, target=target)
        assert "set deployment.target to process (or auto)" in refused.value.hint

    def test_an_executable_is_a_process(self, run: Run, program: Path) -> None:
        """Whatever engine there is; it must be a program that can be run."""
        target = self._target(run, ServerConfig(insecure=True, executable=program), target="auto")
        assert (target.kind, target.program) == ("process", str(program))
        program.chmod(0o644)
        for wrong in (program, program.parent, program.parent / "missing"):
            with pytest.raises(EnvironmentFault, match=f"^server.executable {wrong} is not a program"):
                self._target(run, ServerConfig(insecure=True, executable=wrong))

    def test_a_relative_executable_is_beside_the_yaml(self, run: Run, program: Path) -> None:
        """As every other path in the YAML."""
        relative = os.path.relpath(program, run.source)
        target = self._target(run, ServerConfig(insecure=True, executable=Path(relative)))
        assert Path(target.program).resolve() == program.resolve()

    def test_a_server_may_swap_its_own_ports(self, run: Run, record: ServerRecord) -> None:
        """Neither is in use by somebody else."""
        started = _started(record)
        target = self._target(run, grpc_port=started.rest_port, rest_port=started.grpc_port)
        assert (target.grpc_port, target.rest_port) == (started.rest_port, started.grpc_port)

    def test_a_port_that_is_asked_for_is_not_picked_for_the_other(
        self, run: Run, record: ServerRecord
    ) -> None:
        """Even where it was the other's before."""
        started = _started(record)
        target = self._target(run, rest_port=started.grpc_port)
        assert target.rest_port == started.grpc_port != target.grpc_port

    def test_a_running_process_is_kept(self, run: Run, record: ServerRecord) -> None:
        """With auto the next run goes where the last one went: same ports, and its version is asked."""
        started = _started(record)
        target = self._target(run, target="auto")
        assert (target.kind, target.reason) == ("process", "the server that runs is a local process")
        assert (target.grpc_port, target.rest_port) == (started.grpc_port, started.rest_port)
        assert target.live_version == 8

    def test_the_ports_of_a_stopped_server_are_kept(self, run: Run, record: ServerRecord) -> None:
        """Clients need not be told anew."""
        server_records.mark_stopped(record)
        target = self._target(run, target="process")
        assert (target.grpc_port, target.rest_port) == (record.grpc_port, record.rest_port)


def _data() -> DataConfig:
    return DataConfig(files=("x",), features={"x": "int64"}, label={"y": "int64"})  # type: ignore[dict-item]


def _with_answers(version: Path) -> None:
    """Have the version keep what it should answer."""
    offline = version.parent.parent / "offline"
    offline.mkdir(exist_ok=True)
    (offline / "examples.tfrecord").touch()
    kept_answers.keep(Candidate(version, (), offline, 1), _data())


class TestDeployment:
    """Deploy and withdraw, with real processes."""

    DEPLOYMENT = DeploymentConfig(target="process", grpc_port=0, rest_port=0, load_timeout_seconds=30)

    @pytest.fixture
    def asked(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What the version of before is asked: the tiny server has no gRPC to ask by."""
        asked: list[dict[str, Any]] = []

        def smoke_test(
            name: str, result: type, *, log: Path, arguments: dict[str, Any], **_: Any
        ) -> SmokeTest:
            served = arguments.get("endpoint")
            asked.append({"stage": name, "version": served.version if served else None, **arguments})
            return SmokeTest((), 12, "12 numbers bit-equal", 1.0, 2.0)

        monkeypatch.setattr(served_answers.tensorflow_process, "run", smoke_test)
        for number in (7, 8):
            _with_answers(base / str(number))
        return asked

    def _deploy(self, run: Run, version: ModelVersion, program: Path, **flags: Any) -> Any:
        server = ServerConfig(insecure=True, executable=program, flags=flags)
        target = serving_target(self.DEPLOYMENT, server, run)
        deploy_journal.write(
            Journal("small", "r1", run.model_base_path, "published", version.previous,
                    (version.number,), model_servers.planned(target, run))
        )  # fmt: skip
        return deploy.fn(version, target, self.DEPLOYMENT, SmokeTestConfig(), run)

    def _withdraw(self, run: Run, version: ModelVersion) -> Any:
        journal = deploy_journal.of_run(run) or Journal(
            "small", "r1", run.model_base_path, "published", version.previous, (version.number,)
        )
        return withdraw.fn(journal, self.DEPLOYMENT, SmokeTestConfig(), run)

    def test_the_next_version_swaps_into_the_running_server(
        self, run: Run, base: Path, program: Path
    ) -> None:
        """The first deploy starts the server, the second reuses it, at the same address."""
        first = self._deploy(run, ModelVersion(8, base / "8"), program)
        (base / "9").mkdir()
        second = self._deploy(run, ModelVersion(9, base / "9", previous=8), program)
        assert (first.started, second.started) == (True, False)
        assert (first.version, second.version) == (8, 9)
        assert (first.grpc, first.rest, first.server) == (second.grpc, second.rest, second.server)
        assert len(_servers(program)) == 1

    @pytest.mark.parametrize("flags", [{}, {"a": 2}])
    def test_a_server_that_is_mute_over_grpc_is_replaced(
        self, run: Run, base: Path, program: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
    ) -> None:
        """Over REST it reports the next version as AVAILABLE; whether or not its flags changed."""
        monkeypatch.setattr(model_servers, "_MUTE_SECONDS", 0.5)
        mute = self._mute(run, base, program)
        (base / "9").mkdir()
        deployed = self._deploy(run, ModelVersion(9, base / "9", previous=8), program, **flags)
        assert (deployed.started, deployed.grpc) == (True, mute.grpc)
        (process,) = _servers(program)
        assert process.pid != int(mute.handle.split(":")[0])
        assert not model_servers.is_mute(server_records.read("small") or mute)

    def test_recover_replaces_a_server_that_is_mute_over_grpc(
        self, run: Run, base: Path, program: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It said "nothing to recover" of a server that no client could use."""
        monkeypatch.setattr(model_servers, "_MUTE_SECONDS", 0.5)
        monkeypatch.setattr(model_servers, "_GRPC_SECONDS", 0.5)
        mute = self._mute(run, base, program)
        assert interrupted_deploys._is_left("small")
        recovery = interrupted_deploys.recover_locked(self.DEPLOYMENT, SmokeTestConfig(), run)
        assert recovery.found == f"the server ({mute.describe()}) did not answer over gRPC"
        assert not interrupted_deploys._is_left("small")

    def _mute(self, run: Run, base: Path, program: Path) -> ServerRecord:
        """Have a server that is as planned, answers over REST, and over gRPC does not."""
        server = ServerConfig(insecure=True, executable=program)
        (base / "mute").touch()
        mute = model_servers.start(model_servers.planned(serving_target(self.DEPLOYMENT, server, run), run))
        eventually(lambda: model_status.version_statuses(mute.rest, "small"))
        (base / "mute").unlink()
        assert model_servers.is_mute(mute)
        return mute

    def test_changed_flags_replace_the_server_and_a_withdrawal_brings_it_back(
        self, run: Run, base: Path, program: Path, asked: list[dict[str, Any]]
    ) -> None:
        """At the same address; the old server answers with the version of before, and was asked for it."""
        old = self._deploy(run, ModelVersion(8, base / "8"), program, a=1)
        (base / "9").mkdir()
        version = ModelVersion(9, base / "9", previous=8)
        new = self._deploy(run, version, program, a=2)
        assert new.started and (new.grpc, new.rest) == (old.grpc, old.rest)
        (process,) = _servers(program)
        assert process.cmdline()[-1] == "--a=2"
        withdrawal = self._withdraw(run, version)
        (process,) = _servers(program)
        assert process.cmdline()[-1] == "--a=1"
        assert withdrawal.serving == model_status.live_version(old.rest, "small") == 8
        rehearsed, put_back = asked
        assert (rehearsed["stage"], rehearsed["version"]) == ("probe", 9)
        assert rehearsed["grpc"] != old.grpc == put_back["endpoint"].grpc
        assert (put_back["stage"], put_back["version"]) == ("smoke_test", 8)
        assert server_records.read_replaced("small") is None
        assert list(model_versions.versions(base)) == [7, 8]

    def test_a_new_server_that_dies_makes_way_for_the_old_one(
        self, run: Run, base: Path, program: Path, asked: list[dict[str, Any]]
    ) -> None:
        """The failed deploy tells why; after the withdrawal the old server answers as before."""
        old = self._deploy(run, ModelVersion(8, base / "8"), program)
        (base / "9").mkdir()
        version = ModelVersion(9, base / "9", previous=8)
        with pytest.raises(DeployFailed, match="the server died while loading version 9"):
            self._deploy(run, version, program, mode="dies")
        assert self._withdraw(run, version).serving == 8
        running = model_servers.running("small")
        assert running is not None and running.flags == ()
        assert (running.rest, asked[0]["version"]) == (old.rest, 8)

    def test_withdrawing_the_first_version_stops_the_server(
        self, run: Run, base: Path, program: Path, asked: list[dict[str, Any]]
    ) -> None:
        """There is nothing that it could answer with; nobody is asked."""
        shutil.rmtree(base / "7")
        self._deploy(run, ModelVersion(8, base / "8"), program)
        withdrawal = self._withdraw(run, ModelVersion(8, base / "8", previous=None))
        assert withdrawal.serving is None
        assert "the server is stopped" in withdrawal.summary()
        assert _servers(program) == [] == asked
        assert model_servers.running("small") is None

    def test_withdrawing_twice_is_withdrawing_once(
        self, run: Run, base: Path, program: Path, asked: list[dict[str, Any]]
    ) -> None:
        """What was interrupted half-way is done again without harm; a server that died is started."""
        self._deploy(run, ModelVersion(8, base / "8", previous=7), program)
        assert self._withdraw(run, ModelVersion(8, base / "8", previous=7)).serving == 7
        (process,) = _servers(program)
        process.kill()
        process.wait(10)
        assert self._withdraw(run, ModelVersion(8, base / "8", previous=7)).serving == 7
        assert len(_servers(program)) == 1

    def test_without_any_server_a_withdrawal_says_so(self, run: Run, base: Path) -> None:
        """The version is hidden all the same; nothing is left for a hand to do."""
        done = self._withdraw(run, ModelVersion(8, base / "8", previous=7))
        assert done.proof == "once a server of small is started"
        assert list(model_versions.versions(base)) == [7]


class TestExternal:
    """A server that somebody else runs: here, one that the test starts."""

    @pytest.fixture
    def theirs(self, record: ServerRecord) -> ServerRecord:
        """The tiny server, running, and not on record."""
        started = _started(record)
        server_records.mark_stopped(started)
        (server_records.servers_folder() / "small.json").unlink()
        (server_records.servers_folder() / "small.log").unlink()  # an external server has its own log
        return started

    def _deployment(self, theirs: ServerRecord, **changed: Any) -> DeploymentConfig:
        values = {"target": "external", "host": "127.0.0.1", "grpc_port": theirs.grpc_port,
                  "rest_port": theirs.rest_port, "load_timeout_seconds": 30, **changed}  # fmt: skip
        return DeploymentConfig(**values)

    def _deploy(self, run: Run, version: ModelVersion, deployment: DeploymentConfig) -> Any:
        target = serving_target(deployment, ServerConfig(), run)
        planned = model_servers.planned(target, run)
        deploy_journal.write(
            Journal("small", "r1", run.model_base_path, "published", version.previous,
                    (version.number,), planned)
        )  # fmt: skip
        return deploy.fn(version, target, deployment, SmokeTestConfig(), run)

    def _withdraw(self, run: Run, deployment: DeploymentConfig) -> Withdrawal:
        journal = deploy_journal.of_run(run)
        assert journal is not None
        return withdraw.fn(journal, deployment, SmokeTestConfig(), run)

    def test_each_version_is_waited_for_and_nothing_is_started(
        self, run: Run, base: Path, program: Path, theirs: ServerRecord
    ) -> None:
        """The first deploy notes where it is, the second finds it there; `stop` is not for us to do."""
        first = self._deploy(run, ModelVersion(8, base / "8"), self._deployment(theirs))
        (base / "9").mkdir()
        second = self._deploy(run, ModelVersion(9, base / "9", previous=8), self._deployment(theirs))
        assert (first.version, second.version) == (8, 9)
        assert (first.started, second.started) == (False, False)
        assert (second.target, second.rest) == ("external", theirs.rest)
        running = model_servers.running("small")
        assert running is not None and running.describe() == f"external server {theirs.grpc}"
        model_servers.stop(running)
        assert len(_servers(program)) == 1

    def test_a_withdrawal_leaves_the_version_before_answering(
        self, run: Run, base: Path, program: Path, theirs: ServerRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the rename alone; where there was none before, it says what is left."""
        asked: list[int] = []
        monkeypatch.setattr(undoing.served_answers, "prove_again",
                            lambda endpoint, *_, **__: str(asked.append(endpoint.version)))  # fmt: skip
        deployment = self._deployment(theirs)
        self._deploy(run, ModelVersion(8, base / "8", previous=7), deployment)
        assert self._withdraw(run, deployment).serving == 7
        assert (model_status.live_version(theirs.rest, "small"), asked) == (7, [7])
        self._deploy(run, ModelVersion(7, base / "7", previous=None), deployment)
        withdrawn = self._withdraw(run, deployment)
        assert f"so external server {theirs.grpc} is left without one" in withdrawn.summary()
        assert len(_servers(program)) == 1

    def test_one_that_comes_back_in_time_is_waited_for(
        self, run: Run, base: Path, theirs: ServerRecord
    ) -> None:
        """It restarts while the version is published: no answer is not its death."""
        target = serving_target(self._deployment(theirs), ServerConfig(), run)
        planned = model_servers.planned(target, run)
        model_servers.stop(theirs)
        with pytest.raises(DeployFailed, match=r"was not served within 0.2 s \(no answer\)") as failed:
            rollouts.serve(planned, 8, Deadline.after(0.2), run.log("server"), lambda _: "")
        assert f"does it serve this model, of {base}?" in failed.value.hint
        server_process.start(theirs, model_servers.flags_of(theirs))
        assert rollouts.serve(planned, 8, Deadline.after(30), run.log("server"), lambda _: "").version == 8

    def test_a_server_of_ours_makes_way_for_it(
        self, run: Run, base: Path, program: Path, theirs: ServerRecord
    ) -> None:
        """The pipeline moves to an external server: the process is stopped, no other is rehearsed."""
        ours = _started(replace(theirs, handle="", grpc_port=free_port(), rest_port=free_port()))
        assert len(_servers(program)) == 2
        endpoint = self._deploy(run, ModelVersion(8, base / "8"), self._deployment(theirs))
        assert endpoint.rest == theirs.rest != ours.rest
        (left,) = _servers(program)
        assert f"--rest_api_port={theirs.rest_port}" in left.cmdline()

    def test_preflight_wants_an_answer_once_there_are_versions(
        self, run: Run, base: Path, theirs: ServerRecord
    ) -> None:
        """Before the first one the official server does not listen yet."""
        nowhere = self._deployment(theirs, rest_port=free_port())
        said = f"nothing answers at http://127.0.0.1:{nowhere.rest_port}, where small is served"
        with pytest.raises(EnvironmentFault, match=said):
            serving_target(nowhere, ServerConfig(), run)
        assert serving_target(self._deployment(theirs), ServerConfig(), run).live_version == 8
        for number in (7, 8):
            (base / str(number)).rmdir()
        target = serving_target(nowhere, ServerConfig(), run)
        assert (target.kind, target.live_version) == ("external", None)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"host": None}, "target external needs host"),
            ({"target": "process"}, "host is for target external"),
            ({"rest_port": 0}, "target external needs grpc_port and rest_port"),
            ({"host": "http://models"}, "String should match pattern"),
        ],
    )
    def test_half_an_address_is_refused(self, changed: dict[str, Any], said: str) -> None:
        """When the YAML is read."""
        values = {"target": "external", "host": "models", **changed}
        with pytest.raises(ValidationError, match=said):
            DeploymentConfig(**values)


class TestStop:
    """`slipway stop`."""

    @pytest.fixture
    def pipeline(self, tmp_path: Path) -> Pipeline:
        """The pipeline of the model `small`."""
        return written(tmp_path / "pipeline", {})

    def test_a_replaced_server_is_stopped_too(
        self, record: ServerRecord, program: Path, pipeline: Pipeline
    ) -> None:
        """Its replacement was killed before it was proven: neither is left."""
        old = _started(record)
        server_records.set_aside(old)
        new = _started(replace(record, grpc_port=free_port(), rest_port=free_port()))
        assert [each.handle for each in stopping.stop(pipeline)] == [old.handle, new.handle]
        assert not _servers(program)
        assert server_records.read_replaced("small") is None
        assert stopping.stop(pipeline) == []

    def test_one_whose_start_was_not_noted_is_stopped_too(
        self, record: ServerRecord, program: Path, pipeline: Pipeline, run: Run
    ) -> None:
        """A deploy was killed between starting a server and noting it: the journal has its plan."""
        old = _started(record)
        planned = replace(record, grpc_port=free_port(), rest_port=free_port(), identity="new")
        server_process.start(planned, model_servers.flags_of(planned))
        deploy_journal.write(Journal("small", "r1", run.model_base_path, "published", None, (), planned))
        assert len(stopping.stop(pipeline)) == 2
        assert not _servers(program), old

    def test_a_deploy_that_is_under_way_is_not_disturbed(
        self, record: ServerRecord, program: Path, pipeline: Pipeline
    ) -> None:
        """It would start a server again, or fail its smoke test: exit code 4, and the server serves on."""
        _started(record)
        with (
            deploy_journal.held("small", 0),
            pytest.raises(AlreadyRunning, match="another process is deploying small") as refused,
        ):
            stopping.stop(pipeline)
        assert refused.value.exit_code == 4
        assert len(_servers(program)) == 1

    def test_nothing_is_made_where_nothing_ever_ran(self, pipeline: Pipeline, home: Path) -> None:
        """Nor is anything found to be stopped."""
        assert stopping.stop(pipeline) == []
        assert not home.exists()


class TestPublishAndRetire:
    """The stages around `model_versions`."""

    @pytest.mark.parametrize(("live", "previous"), [(7, 7), (None, 8)])
    def test_the_version_before_is_what_was_live(
        self, run: Run, base: Path, record: ServerRecord, live: int | None, previous: int
    ) -> None:
        """Or the highest on disk where no server ran."""
        candidate = model_versions.candidate_folder(base, "r1")
        candidate.mkdir()
        (candidate / "saved_model.pb").write_bytes(b"graph")
        export = ExportConfig(version_names="sequential")
        if live is not None:
            (base / "8" / "state").write_text("END broken graph")
            (base / "7" / "state").write_text("AVAILABLE")
            _started(record)
        target = ServingTarget("process", "", record.program, "", 1, 2, live_version=None)
        version = publish.fn(Candidate(candidate, (), run.folder, 0), export, _data(), target, run)
        assert (version.number, version.path, version.previous) == (9, base / "0009", previous)

    def test_the_live_version_and_the_one_before_stay(self, run: Run, base: Path) -> None:
        """However old they are."""
        for number in range(1, 7):
            (base / str(number)).mkdir()
        retention = retire.fn(ModelVersion(5, base / "5", previous=2), ExportConfig(keep_versions=2), run)
        assert retention.kept == (2, 5, 7, 8)
        assert retention.removed == (1, 3, 4, 6)
        assert retention.summary() == "4 version(s) on disk, 4 removed"


def test_a_docker_engine_that_does_not_answer_in_time_hides_no_error(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Looking for an unrecorded container finds none; a log that cannot be read is told as that."""
    from requests.exceptions import ReadTimeout

    def silent(**_: Any) -> Any:
        raise ReadTimeout("read timed out")

    monkeypatch.setattr("docker.from_env", silent)
    monkeypatch.setattr(server_container, "engine", silent)
    assert server_container.find_unrecorded("digits") is None
    with pytest.raises(EnvironmentFault, match="does not give the container's log: read timed out"):
        server_container.log("0123")
