"""Faults during a deploy: after each, exactly an approved version answers, and the next run needs no hand.

All tests share one served model (`world`) and go on from what the test before left, as nights do.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bad_candidates
import psutil
import pytest
from bad_candidates import ANSWERS_NAN, CRASHES, IS_SLOW, TURNS_BAD, TURNS_BAD_FAR_OUT
from deployed_worlds import NAME, Client, RestClient, World, predict_log, printed
from model_server_fixtures import Models, models  # noqa: F401  (a fixture)
from small_disks import filled, small_disk_if_allowed
from waiting import eventually

from configs.loading.pipelines import load_pipeline
from flows.command import record_command
from tasks.core.errors import ConfigError
from tasks.deploys import interrupted_deploys
from tasks.deploys.rolling_back import roll_back
from tasks.state import deploy_journal, model_versions

GOOD, BETTER, BAD = 1, 2, 5
APPROVED = [GOOD], [BETTER]  # all answers of one of them: whichever the test before left
ASKED_IN_CANARY = "canary Predict serving_default"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for versions: a small file system of its own, where that is allowed."""
    with small_disk_if_allowed(tmp_path_factory.mktemp("disk"), kilobytes=8 * 1024) as folder:
        yield folder


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models: Models,  # noqa: F811
    disk: Path,
) -> Iterator[World]:
    """A served model; at the end the table of faults is printed."""
    bad_candidates.exported(models.store)
    folder = tmp_path_factory.mktemp("world")
    with small_disk_if_allowed(folder / "home", kilobytes=64 * 1024):
        made = World(folder, models, disk / "models")
        try:
            assert made.deploy(GOOD).get("version") == 1
            yield made
        finally:
            made.close()
            printed(made.outcomes, request)


@pytest.fixture(autouse=True)
def _home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test asks for in its own process is in the world's home."""
    monkeypatch.setenv("SLIPWAY_HOME", str(world.home))


BOUNDARIES = {
    "after prepared": "it had published nothing",
    "before published": "stays: its answers are those it was deployed with (16 numbers bit-equal)",
    "after published": "stays: its answers are those it was deployed with (16 numbers bit-equal)",
    "after loaded": "stays: its answers are those it was deployed with (16 numbers bit-equal)",
    "after smoke-tested": "stays: it had passed its smoke test",
    "after committed": "stays: it had passed its smoke test",
}


class TestTheFlowIsKilled:
    """kill -9 of the flow's process, at every boundary of the journal."""

    @pytest.mark.parametrize("boundary", BOUNDARIES)
    def test_the_next_run_finishes_the_deploy_and_does_its_own(self, world: World, boundary: str) -> None:
        """No answer fails meanwhile; the journal is settled before anything else is changed."""
        before = world.highest()
        with Client(world.ports[0]) as client:
            world.killed(BETTER, boundary)
            done = world.deploy(GOOD)
        world.tell(
            f"kill -9 of the flow {boundary}", "the next run", done["recovery"], client, done["seconds"]
        )
        published = 0 if boundary == "after prepared" else 1
        assert done["version"] == before + published + 1 == world.numbers()[-1]
        assert BOUNDARIES[boundary] in done["recovery"]
        assert client.failures == []
        assert set(client.models) <= {GOOD, BETTER} and client.models[-1] == GOOD
        assert not deploy_journal.file("faulty").exists()

    def test_recovery_needs_no_run(self, world: World) -> None:
        """`recover(pipeline)` finishes the deploy; a second one finds nothing to do."""
        with Client(world.ports[0]) as client:
            run_id = world.killed(BETTER, "after published")
            pipeline = load_pipeline(world.pipeline.folder)
            done = interrupted_deploys.recover(pipeline)
            assert interrupted_deploys.recover(pipeline).found == ""
        assert "stays: its answers are those it was deployed with" in done.done
        assert deploy_journal.conclusion("faulty", run_id) == "committed"
        assert client.failures == []
        assert client.models[-1] == BETTER


class TestABadCandidate:
    """A candidate that loads, and answers badly in a server of its own: nothing of it is ever published."""

    @pytest.fixture(autouse=True, scope="class")
    def _with_a_canary(self, world: World) -> Iterator[None]:
        world.configured(deployment={"canary": True})
        yield
        world.configured()

    @pytest.fixture(autouse=True)
    def _leaves_nothing(self, world: World) -> Iterator[None]:
        yield
        assert not list(world.base.glob(".canary-*"))
        assert not list((world.home / "servers").glob("*.canary.json"))
        assert not [each for each in psutil.process_iter(["cmdline"]) if _is_canary_of(each, world)]

    @pytest.mark.parametrize(
        ("model", "answers", "row", "observed"),
        [
            (ANSWERS_NAN, float("nan"), ASKED_IN_CANARY, "expected a finite number, found nan"),
            (BAD, GOOD, ASKED_IN_CANARY, "expected 2.0, found 6.0"),
            (CRASHES, GOOD, "canary server", "it died"),
        ],
        ids=["NaN", "otherwise than offline", "crash at the third request"],
    )  # fmt: skip
    def test_it_is_rejected(
        self, world: World, model: int, answers: float, row: str, observed: str, request: Any
    ) -> None:
        """With a row that says why; no client sees an answer of it, and no number is used up."""
        before, highest = world.numbers(), world.highest()
        with Client(world.ports[0]) as client:
            refused = world.deploy(model, answers)
        fault = f"a candidate: {request.node.callspec.id}"
        world.tell(fault, "the same run", refused["message"], client, None)
        assert refused["error"] == "Rejected"
        (told,) = [check for check in refused["checks"] if check["name"] == row]
        assert not told["passed"] and observed in told["observed"]
        assert (world.numbers(), world.highest()) == (before, highest)
        assert client.failures == [] and client.models in APPROVED

    def test_one_that_was_cut_short_is_rejected(self, world: World) -> None:
        """Its graph is truncated on disk before it is published; the next run needs no hand."""
        before, run_id = world.numbers(), world.candidate(BETTER)
        graph = model_versions.candidate_folder(world.base, run_id) / "saved_model.pb"
        graph.write_bytes(graph.read_bytes()[:100])
        world.configured(deployment={"canary": True, "load_timeout_seconds": 20})
        with Client(world.ports[0]) as client:
            refused = world.ended(world.start(run_id))
            assert world.numbers() == before
            done = world.deploy(GOOD)
        world.configured(deployment={"canary": True})
        world.tell("truncated SavedModel", "the next run", refused["message"], client, done["seconds"])
        assert refused["error"] == "Rejected"
        assert world.numbers()[-1] == done["version"]
        assert client.failures == [] and set(client.models) <= {GOOD, BETTER}

    def test_a_slow_one_is_rejected(self, world: World) -> None:
        """Beside the version that serves, in a server of the same kind: a ratio, whatever the machine."""
        before = world.numbers()
        world.configured(deployment={"canary": {"latency": {"p50_ratio": 5, "requests": 20}}})
        with Client(world.ports[0]) as client:
            refused = world.deploy(IS_SLOW, GOOD)
        world.configured(deployment={"canary": True})
        world.tell("a candidate: slow", "the same run", refused["message"], client, None)
        rows = {check["name"]: check for check in refused["checks"]}
        assert rows["canary latency p50"]["observed"] > 5 and not rows["canary latency p50"]["passed"]
        assert rows["canary latency p99"]["passed"] and rows["canary latency p99"]["limit"] is None
        assert f"that of version {before[-1]} " in rows["canary latency p50"]["rule"]
        assert world.numbers() == before
        assert client.failures == [] and client.models in APPROVED

    def test_a_good_one_passes(self, world: World) -> None:
        """It is published, and answers; it is no slower than what serves, by far."""
        before = world.highest()
        world.configured(deployment={"canary": {"latency": {"p50_ratio": 50, "requests": 20}}})
        with Client(world.ports[0]) as client:
            assert world.deploy(GOOD).get("version") == before + 1
        world.configured(deployment={"canary": True})
        assert client.failures == []

    def test_golden_requests_are_replayed_and_become_the_warmup(
        self, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Recorded from a request log: one that the samples do not show to be bad is rejected by them."""
        log, golden, before = tmp_path / "log", world.pipeline.folder / "golden.tfrecord", world.numbers()
        predict_log(log, *[float(number) for number in range(70)])
        assert record_command.run(load_pipeline(world.pipeline.folder), 100, [log]) == 0
        assert "70 requests in " in capsys.readouterr().out
        with Client(world.ports[0]) as client:
            refused = world.deploy(TURNS_BAD, GOOD)
            assert world.numbers() == before
            deployed = world.deploy(GOOD)
        world.tell("a candidate: wrong for golden requests", "the same run", refused["message"], client, None)
        rows = {check["name"]: check for check in refused["checks"]}
        assert rows["canary Predict serving_default"]["passed"]
        assert "request 52, output 'y', " in rows["canary golden requests"]["observed"]
        warmup = world.base / f"{deployed['version']:04d}" / "assets.extra" / "tf_serving_warmup_requests"
        assert warmup.read_bytes() == golden.read_bytes()
        assert "Number of warmup records read: 70" in (world.home / "servers" / f"{NAME}.log").read_text()
        assert client.failures == [] and client.models == [GOOD]
        with pytest.raises(ConfigError, match="recorded once"):
            record_command.run(load_pipeline(world.pipeline.folder), 100, [log])
        golden.unlink()

    @pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
    def test_a_run_that_is_ended_meanwhile_leaves_no_server(self, world: World, signal_number: int) -> None:
        """Interrupted, the run stops it; killed, the next run does."""
        process = world.start(world.candidate(IS_SLOW, GOOD))
        eventually(lambda: world.temporary_server("canary"), seconds=100)
        process.send_signal(signal_number)
        process.communicate(timeout=60)
        if signal_number == signal.SIGKILL:
            assert world.temporary_server("canary") is not None
            assert "version" in world.deploy(GOOD)
        assert world.temporary_server("canary") is None


def _is_canary_of(process: psutil.Process, world: World) -> bool:
    return any(f"{world.base}/.canary-" in part for part in process.info["cmdline"] or [])


class TestABadVersion:
    """A candidate that passed validation, and answers otherwise when it is served."""

    def test_it_is_withdrawn_by_the_run_itself(self, world: World) -> None:
        """The version before answers, compared number by number, and the run says why."""
        before = world.numbers()
        with Client(world.ports[0]) as client:
            failed = world.deploy(BAD, answers=GOOD)
            eventually(lambda: client.models[-1] != BAD)
        world.tell("a version that answers otherwise", "the same run", failed["message"], client, None)
        assert failed["error"] == "AnswersDiffer"
        assert world.numbers() == before
        assert client.failures == []
        assert (world.base / f"{world.highest()}.withdrawn" / "saved_model.pb").is_file()

    def test_one_that_turns_bad_is_withdrawn_while_it_is_watched(self, world: World) -> None:
        """It passes its smoke test, and answers otherwise seconds later; the version before answers again."""
        before = world.numbers()
        world.configured(smoke_test={"watch_seconds": 100})
        failed = world.deploy(TURNS_BAD, answers=GOOD)  # nobody else asks: it counts its requests
        world.configured()
        with Client(world.ports[0]) as client:
            eventually(lambda: client.models)
        world.tell("a version that turns bad", "the same run, watching", failed["message"], client, None)
        (watch,) = [check for check in failed["checks"] if check["name"] == "watch"]
        assert failed["error"] == "SmokeTestFailed" and not watch["passed"]
        assert ", found 100" in watch["observed"]
        assert all(check["passed"] for check in failed["checks"] if check is not watch)
        assert world.numbers() == before
        assert (world.base / f"{world.highest()}.withdrawn" / "saved_model.pb").is_file()
        assert client.models == [GOOD] and client.failures == []

    def test_golden_requests_are_asked_while_it_is_watched(self, world: World, tmp_path: Path) -> None:
        """What only they ask about turns bad: it is withdrawn; the next run needs no hand."""
        golden, before = world.pipeline.folder / "golden.tfrecord", world.numbers()
        predict_log(golden, 60.0, 61.0)
        world.configured(smoke_test={"watch_seconds": 100})
        failed = world.deploy(TURNS_BAD_FAR_OUT, answers=GOOD)
        world.configured(smoke_test={"watch_seconds": 0.5})
        with Client(world.ports[0]) as client:
            done = world.deploy(GOOD)
        world.configured()
        golden.unlink()
        fault = "a version that turns bad for golden requests"
        world.tell(fault, "the same run, watching", failed["message"], client, None)
        (watch,) = [check for check in failed["checks"] if check["name"] == "watch"]
        assert not watch["passed"] and watch["observed"].startswith("golden requests after ")
        assert world.numbers()[-2:] == [before[-1], done["version"]]  # older ones may have been retired
        assert client.failures == [] and client.models == [GOOD]

    @pytest.mark.parametrize("boundary", ["after published", "after undoing"])
    def test_recovery_withdraws_it(self, world: World, boundary: str) -> None:
        """Whether its run was killed before the smoke test, or while it was being withdrawn."""
        before, highest = world.numbers(), world.highest()
        with Client(world.ports[0]) as client:
            world.killed(BAD, boundary, answers=GOOD)
            done = world.deploy(GOOD)
        asked = "the next run"
        world.tell(f"the same, kill -9 {boundary}", asked, done["recovery"], client, done["seconds"])
        assert f"version {highest + 1} is withdrawn; version {before[-1]} answers" in done["recovery"]
        assert world.numbers()[-1] == done["version"] == highest + 2
        assert client.failures == []
        assert client.models[-1] == GOOD


class TestAChangedServer:
    """Other flags: the server is replaced by a new one."""

    @pytest.fixture(autouse=True)
    def _flags_of_before(self, world: World) -> Iterator[None]:
        yield
        world.configured()

    def test_it_takes_over_without_a_gap(self, world: World) -> None:
        """The new one answers before the old one drains, at the same addresses, gRPC and REST: none fails."""
        old = world.server()
        world.configured(server={"flags": {"tensorflow_intra_op_parallelism": 1}})
        with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
            done = world.deploy(BETTER)
            assert "version" in done, done
            eventually(lambda: client.models[-1:] == rest.models[-1:] == [BETTER])
        world.tell("a changed server", "its deploy", done["server"], client, None)
        new = world.server()
        assert old is not None and new is not None and new.pid != old.pid and not old.is_running()
        assert "--tensorflow_intra_op_parallelism=1" in new.cmdline()
        assert rest.failures == client.failures == []

    def test_one_that_is_no_good_never_takes_over(self, world: World) -> None:
        """It dies in its rehearsal: the old one was never stopped, and answers as before."""
        old, before = world.server(), world.numbers()
        world.configured(server={"flags": {"monitoring_config_file": "/nonexistent"}})
        with Client(world.ports[0]) as client:
            failed = world.deploy(GOOD)
        world.tell("a changed server that dies", "the same run", failed["message"], client, None)
        assert failed["error"] == "DeployFailed"
        assert world.server() == old
        assert world.numbers() == before
        assert client.failures == []

    def test_killed_half_way_it_is_finished_by_the_next_run(self, world: World) -> None:
        """kill -9 of the flow while two servers listen at the same addresses: one is left."""
        world.configured(server={"flags": {"tensorflow_intra_op_parallelism": 2}})
        with Client(world.ports[0]) as client:
            world.killed(BETTER, "after loaded")
            done = world.deploy(GOOD)
        fault = "kill -9 of the flow after a changed server took over"
        world.tell(fault, "the next run", done["recovery"], client, done["seconds"])
        assert "stays: its answers are those it was deployed with" in done["recovery"]
        assert client.failures == []


class TestACopiedVersion:
    """A folder that somebody copies into the base path, with the highest number of all."""

    def test_it_is_never_served_and_the_next_run_deploys(self, world: World, models: Models) -> None:  # noqa: F811
        """Every answer is an approved version's; the server's log names the folder."""
        number = world.highest() + 3
        with Client(world.ports[0]) as client:
            copied = models.publish(world.base, BAD).rename(world.base / f"{number:04d}")
            log = world.home / "servers" / f"{NAME}.log"
            eventually(lambda: f"{copied} is not served: no run published it" in log.read_text())
            done = world.deploy(BETTER)
        world.tell("a version copied by hand", "the next run", "it is not served", client, None)
        shutil.rmtree(copied)
        assert done["version"] == number + 1
        assert client.failures == []
        assert set(client.models) <= {GOOD, BETTER} and client.models[-1] == BETTER


class TestADamagedJournal:
    """The file is there, and cannot be read."""

    def test_what_was_never_proven_is_proven_now(self, world: World) -> None:
        """The highest version's run is not filed as committed: its answers are asked for."""
        with Client(world.ports[0]) as client:
            world.killed(BETTER, "after published")
            file = deploy_journal.file("faulty")
            file.write_bytes(file.read_bytes()[:100])
            done = world.deploy(GOOD)
        world.tell("truncated journal", "the next run", done["recovery"], client, done["seconds"])
        assert "the deploy journal cannot be read" in done["recovery"]
        assert "stays: its answers are those it was deployed with (16 numbers bit-equal)" in done["recovery"]
        assert client.failures == []

    def test_what_was_proven_stays(self, world: World) -> None:
        """The highest version's run is filed as committed: nothing is asked for."""
        deploy_journal.file("faulty").write_bytes(b"{")
        done = interrupted_deploys.recover(load_pipeline(world.pipeline.folder))
        assert f"version {world.numbers()[-1]} was smoke-tested by run r" in done.done
        assert not deploy_journal.file("faulty").exists()


class TestTheServerIsKilled:
    """kill -9 of the server."""

    def test_the_next_run_starts_it_first(self, world: World) -> None:
        """At the same address, before it trains."""
        world.kill_server()
        with Client(world.ports[0]) as client:
            done = world.deploy(GOOD)
            eventually(lambda: client.models[-1:] == [GOOD])
        world.tell("kill -9 of the server", "the next run", done["recovery"], client, done["seconds"])
        assert "was gone: " in done["recovery"] and "in its place" in done["recovery"]

    def test_in_the_middle_of_a_deploy_the_version_before_is_put_back(self, world: World) -> None:
        """Killed just before the smoke test: by a new process, since a version that kills is no good."""
        before = world.numbers()
        process = world.stopped(world.candidate(BETTER), "after loaded")
        world.kill_server()
        process.send_signal(18)  # SIGCONT
        failed = world.ended(process)
        with Client(world.ports[0]) as client:
            eventually(lambda: client.models)
        world.tell(
            "kill -9 of the server before the smoke test", "the same run", failed["message"], client, None
        )
        assert failed["error"] == "SmokeTestFailed"
        assert world.numbers() == before
        assert client.models == [GOOD]

    def test_one_that_hangs_is_replaced_by_the_next_run_first(self, world: World) -> None:
        """It lives and answers nothing (SIGSTOP): a new one answers at its address before the run trains."""
        hung = world.server()
        assert hung is not None
        hung.suspend()
        world.configured(deployment={"load_timeout_seconds": 15})
        done = world.deploy(GOOD)
        world.configured()
        with Client(world.ports[0]) as client:
            eventually(lambda: client.models)
        world.tell("the server hangs", "the next run", done["recovery"], client, done["seconds"])
        assert "answered with no version: " in done["recovery"] and "in its place" in done["recovery"]
        assert not hung.is_running() and client.models == [GOOD] and client.failures == []

    def test_one_that_hangs_in_the_middle_of_a_deploy_is_replaced_too(self, world: World) -> None:
        """The version is withdrawn, and the version before answers from a new server."""
        before, hung = world.numbers(), world.server()
        assert hung is not None
        world.configured(deployment={"load_timeout_seconds": 15})
        process = world.stopped(world.candidate(BETTER), "after published")
        hung.suspend()
        process.send_signal(18)  # SIGCONT
        failed = world.ended(process)
        world.configured()
        with Client(world.ports[0]) as client:
            eventually(lambda: client.models)
        fault = "the server hangs in the middle of a deploy"
        world.tell(fault, "the same run", failed["message"], client, None)
        assert failed["error"] == "DeployFailed" and not deploy_journal.file("faulty").exists()
        assert world.numbers() == before and not hung.is_running()
        assert client.models == [GOOD] and client.failures == []

    def test_its_port_taken_is_told_and_nothing_is_changed(self, world: World) -> None:
        """The next run, when the port is free again, starts the server."""
        before = world.numbers()
        world.kill_server()
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of connections that are over
            taken.bind(("127.0.0.1", world.ports[0]))
            taken.listen()
            refused = world.deploy(BETTER)
        assert "is in use by" in refused["message"]
        assert world.numbers() == before
        assert world.deploy(BETTER)["version"] == world.highest() > before[-1]


class TestTheDisk:
    """Versions on a disk that is full, or cannot be written to."""

    @pytest.fixture(autouse=True)
    def _has_its_own(self, world: World) -> None:
        if not world.base.parent.is_mount():
            pytest.skip("cannot mount a small file system")

    def test_a_full_disk_publishes_nothing(self, world: World) -> None:
        """The message says so; with space again the next run succeeds."""
        before = world.numbers()
        run_id = world.candidate(BETTER)
        ballast = filled(world.base.parent)
        with Client(world.ports[0]) as client:
            refused = world.ended(world.start(run_id))
            assert "no space left under" in refused["message"]
            assert world.numbers() == before
            ballast.unlink()
            done = world.deploy(GOOD)
        world.tell("disk full while publishing", "the next run", done["recovery"], client, done["seconds"])
        assert client.failures == []

    @pytest.mark.parametrize("boundary", ["before prepared", "after prepared", "after loaded"])
    def test_a_full_home_undoes_what_was_done(self, world: World, boundary: str) -> None:
        """What cannot be noted is not done, and what was done is undone; the next run needs no hand."""
        if not world.home.is_mount():
            pytest.skip("cannot mount a small file system")
        before = world.numbers()
        with Client(world.ports[0]) as client:
            process = world.stopped(world.candidate(BETTER), boundary)
            ballast = filled(world.home)
            process.send_signal(signal.SIGCONT)
            refused = world.ended(process)
            assert world.numbers() == before
            ballast.unlink()
            done = world.deploy(GOOD)
        fault = f"disk of $SLIPWAY_HOME full {boundary}"
        world.tell(
            fault, "the next run", f"{refused['message']}; {done['recovery']}", client, done["seconds"]
        )
        assert refused["error"] == "EnvironmentFault"
        assert str(world.home) in refused["message"] and "No space left" in refused["message"]
        assert world.numbers()[-1] == done["version"] > before[-1]
        assert client.failures == [] and client.models[-1] == GOOD

    def test_a_full_disk_of_the_servers_record_keeps_the_server(self, world: World) -> None:
        """One with other flags is not started, and the one that serves goes on."""
        if not world.home.is_mount():
            pytest.skip("cannot mount a small file system")
        before, old = world.numbers(), world.server()
        world.configured(server={"flags": {"tensorflow_intra_op_parallelism": 1}})
        with Client(world.ports[0]) as client:
            process = world.stopped(world.candidate(BETTER), "after published")
            ballast = filled(world.home)
            process.send_signal(signal.SIGCONT)
            refused = world.ended(process)
            assert (world.numbers(), world.server()) == (before, old)
            ballast.unlink()
            world.configured()
            done = world.deploy(GOOD)
        fault = "disk full for the record of a changed server"
        world.tell(
            fault, "the next run", f"{refused['message']}; {done['recovery']}", client, done["seconds"]
        )
        assert refused["error"] == "EnvironmentFault" and str(world.home) in refused["message"]
        assert client.failures == [] and client.models[-1] == GOOD

    def test_a_read_only_disk_is_refused_at_preflight(self, world: World) -> None:
        """Nothing is changed; the next run, with the disk writable again, succeeds."""
        run_id = world.candidate(BETTER)
        mount = ["mount", "-o"]
        with Client(world.ports[0]) as client:
            subprocess.run([*mount, "remount,ro", str(world.base.parent)], check=True)
            try:
                refused = world.ended(world.start(run_id))
            finally:
                subprocess.run([*mount, "remount,rw", str(world.base.parent)], check=True)
            done = world.deploy(BETTER)
        world.tell("base path read-only", "the next run", done["recovery"], client, done["seconds"])
        assert "is not writable: Read-only file system" in refused["message"]
        assert client.failures == []


class TestRacingRuns:
    """Two runs of the pipeline at once."""

    @pytest.mark.parametrize("when_busy", ["refuse", "wait"])
    def test_one_is_refused_or_waits(self, world: World, when_busy: str) -> None:
        """As configured; the versions that come answer without a failure."""
        before = world.highest()
        world.configured(deployment={"when_busy": when_busy, "busy_timeout_seconds": 200})
        try:
            with Client(world.ports[0]) as client:
                first = world.stopped(world.candidate(BETTER), "after prepared")
                second = world.start(world.candidate_of_a_waiting_run(GOOD))
                if when_busy == "refuse":
                    other = world.ended(second)
                first.send_signal(18)  # SIGCONT
                done = world.ended(first)
                if when_busy == "wait":
                    other = world.ended(second)
        finally:
            world.configured()
        told = other.get("message", "both deployed, one after the other")
        world.tell(f"two runs racing, when_busy: {when_busy}", "the second one", told, client, None)
        assert done["version"] == before + 1
        assert client.failures == []
        if when_busy == "wait":
            assert other["version"] == before + 2
        else:
            assert other["error"] == "AlreadyRunning"


class TestRollingBack:
    """An earlier version serves again."""

    def test_the_one_before_answers_and_the_later_ones_are_withdrawn(self, world: World) -> None:
        """Without one failed answer; a version that was withdrawn cannot be named."""
        world.deploy(BETTER)
        *_, older, before, live = world.numbers()
        pipeline = load_pipeline(world.pipeline.folder)
        with Client(world.ports[0]) as client:
            done = roll_back(pipeline, older)
        world.tell("slipway rollback", f"version {older}", done.summary(), client, None)
        assert (done.serving, done.proof) == (
            older,
            "its answers are those it was deployed with (16 numbers bit-equal)",
        )
        assert world.numbers()[-1] == older
        assert client.failures == []
        with pytest.raises(ConfigError, match=f"has no version {live} before {older}") as refused:
            roll_back(pipeline, live)
        assert "withdrawn, and kept for inspection: " in refused.value.hint
        assert refused.value.hint.endswith(f"{before}, {live}")

    def test_the_next_run_takes_a_higher_number(self, world: World) -> None:
        """None that was withdrawn is used again."""
        highest = max(int(path.name.partition(".")[0]) for path in world.base.glob("*.withdrawn"))
        assert world.deploy(GOOD)["version"] == highest + 1
