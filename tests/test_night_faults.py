"""Faults during whole nights: after each what was approved answers, and the next run needs no hand.

All tests share one pipeline that is served (`nights`), and go on from what the test before left.
"""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from deployed_worlds import printed
from night_worlds import NAME, NightLoop, Nights
from slipway_command import Finished
from small_disks import small_disk_if_allowed
from waiting import eventually

from tasks.state import deploy_journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SOON = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
"""For a server that is not coming back: its client gives up after 2 s, by default after a minute."""
PATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "7"}
"""For one that comes back, but on a machine that tests keep busy."""


@pytest.fixture(scope="module")
def nights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """A pipeline after its first night; at the end the table of faults is printed."""
    folder = tmp_path_factory.mktemp("nights")
    with small_disk_if_allowed(folder / "home", kilobytes=64 * 1024) as home:
        made = Nights(folder, home)
        try:
            made.prefect.start(made.slipway.environment)
            first = made.run()
            assert first.exit_code == 0, first.output
            yield made
        finally:
            made.close()
            printed(made.outcomes, request)


@pytest.fixture(autouse=True)
def _home(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test asks for in its own process is in the nights' home."""
    monkeypatch.setenv("SLIPWAY_HOME", str(nights.home))


def _only_approved(nights: Nights, client: NightLoop) -> bool:
    """Say whether the client was answered all the time, by versions that a verdict calls deployed."""
    return client.failures == [] and client.answers > 0 and set(client.seen) <= nights.approved


@pytest.fixture(autouse=True)
def _calm(nights: Nights) -> Iterator[None]:
    """What a test leaves undone when it fails is not for the next one."""
    yield
    nights.calm()
    nights.prefect.start(nights.slipway.environment)


class TestPrefectsServer:
    """kill -9 of the Prefect server that a run tells what it does."""

    def test_started_again_while_a_run_trains(self, nights: Nights) -> None:
        """The trainer comes to its end without it; the run deploys, and Prefect knows."""
        nights.hold("train")
        nights.hold("evaluate")
        with nights.asked() as client:
            process = nights.start(**PATIENT)
            nights.reach("train", process)
            nights.prefect.kill()
            nights.release("train")
            nights.reach("evaluate", process)
            nights.prefect.start(nights.slipway.environment)
            nights.release("evaluate")
            done = nights.ended(process)
        _told(nights, "Prefect's server restarted while training", done, client)
        assert done.exit_code == 0, done.output
        assert nights.prefect.last_state() == "Deployed"
        assert _only_approved(nights, client) and client.seen[-1] == done.verdict["version"]

    def test_started_again_while_a_run_deploys(self, nights: Nights) -> None:
        """Killed as soon as the version is there; the deploy is over before the server is back."""
        before, journal = nights.versions(), deploy_journal.file(NAME)
        with nights.asked() as client:
            process = nights.start(**PATIENT)
            eventually(lambda: nights.versions() != before or process.poll() is not None, 300, every=0.002)
            process.send_signal(signal.SIGSTOP)
            assert journal.is_file(), "it was not seen while it deployed"
            nights.prefect.kill()
            process.send_signal(signal.SIGCONT)
            eventually(lambda: not journal.exists(), seconds=300)
            assert process.poll() is None
            nights.prefect.start(nights.slipway.environment)
            done = nights.ended(process)
        _told(nights, "Prefect's server restarted while deploying", done, client)
        assert done.exit_code == 0, done.output
        assert nights.prefect.last_state() == "Deployed"
        assert _only_approved(nights, client) and client.seen[-1] == done.verdict["version"]

    def test_gone_until_the_run_is_over(self, nights: Nights) -> None:
        """It deploys all the same, exits with 0 and says that Prefect does not know; the next run is told."""
        nights.hold("train")
        with nights.asked() as client:
            process = nights.start(**SOON)
            nights.reach("train", process)
            nights.prefect.kill()
            nights.release("train")
            done = nights.ended(process)
            nights.prefect.start(nights.slipway.environment)
            following, seconds = nights.timed()
        nights.tell("Prefect's server gone for good while training", "the same run, and the next",
                    "deployed, both", client, seconds)  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "was not told how the run ended" in done.output
        assert following.exit_code == 0, following.output
        assert "was not told" not in following.output
        assert nights.prefect.last_state() == "Deployed"
        assert _only_approved(nights, client)

    def test_a_slot_outlives_it(self, nights: Nights) -> None:
        """A deployment's run renews it while it trains, and Prefect ends one that it cannot renew."""
        limits = "v2/concurrency_limits"
        nights.prefect.post(f"{limits}/", {"name": "nightly", "limit": 1, "active": True})
        slot = {"names": ["nightly"], "slots": 1, "lease_duration": 300}
        taken = nights.prefect.post(f"{limits}/increment-with-lease", slot).json()
        nights.prefect.kill()
        nights.prefect.start(nights.slipway.environment)
        renewed = nights.prefect.post(f"{limits}/leases/{taken['lease_id']}/renew", {"lease_duration": 300})
        assert renewed.is_success


class TestTheTrainer:
    """kill -9 of the process that trains."""

    def test_the_same_run_goes_on_from_its_last_checkpoint(self, nights: Nights) -> None:
        """A new one is started, and the run deploys what it comes to."""
        nights.hold("train")
        with nights.asked() as client:
            process = nights.start()
            nights.reach("train", process).kill()
            nights.release("train")
            done = nights.ended(process)
        proved = {stage["name"]: stage["summary"] for stage in done.verdict["stages"]}["train"]
        nights.tell("kill -9 of the trainer", "the same run", proved, client, None)
        assert done.exit_code == 0, done.output
        assert "resumed from step 10" in proved
        assert _only_approved(nights, client)


def _told(nights: Nights, fault: str, done: Finished, client: NightLoop) -> None:
    nights.tell(fault, "the same run", done.verdict.get("outcome", "no verdict"), client, None)


WRITES = {
    "ingest": "/runs/nights/{run_id}",
    "train": "/runs/nights/{run_id}/checkpoints",
    "evaluate": "/runs/nights/{run_id}/",
    "export": "/models/nights",
    "answers": "/runs/nights/{run_id}/offline",
}
"""Points at which a run finds its disk full, and what its message names then."""


class TestTheDisk:
    """The disk of $SLIPWAY_HOME, with the versions on it, is full until the run is over."""

    @pytest.fixture(scope="class")
    def full(self, nights: Nights) -> dict[str, Finished]:
        """One run that is resumed each time, and finds the disk full at the next point."""
        if not nights.home.is_mount():
            pytest.skip("cannot mount a small file system")
        before, found, client = nights.versions(), {}, nights.asked()
        with client:
            for at in WRITES:
                nights.fill_at(at, nights.home)
                found[at] = nights.run(*(["--resume"] if found else []))
                nights.calm()
            assert nights.versions() == before
            found["the end"], seconds = nights.timed("--resume")
        for at in WRITES:
            nights.tell(f"disk full: {at}", "the run, resumed", _message(found[at]), client, seconds)
        assert _only_approved(nights, client)
        return found

    @pytest.mark.parametrize("at", WRITES)
    def test_it_is_named(self, nights: Nights, full: dict[str, Finished], at: str) -> None:
        """With the folder, and what to do. The run got this far, so it had gone on since the last time."""
        failed = full[at]
        named = f"{nights.home}{WRITES[at].format(run_id=failed.verdict['run_id'])}"
        assert failed.exit_code == 1, failed.output
        assert failed.verdict["error"]["class"] == "EnvironmentFault", failed.output
        assert _message(failed).startswith(named) and ": the disk is full: " in _message(failed)
        assert "free some space there" in failed.verdict["error"]["hint"]

    def test_with_space_again_it_deploys(self, nights: Nights, full: dict[str, Finished]) -> None:
        """It is one run, to the end."""
        done = full["the end"]
        assert done.exit_code == 0, done.output
        assert len({each.verdict["run_id"] for each in full.values()}) == 1
        assert nights.versions()[-1] == done.verdict["version"]


def _message(finished: Finished) -> str:
    return str((finished.verdict["error"] or {}).get("message", ""))


class TestCutShort:
    """Files that a crash of the machine left half written."""

    def test_a_verdict(self, nights: Nights) -> None:
        """Its run counts as one that did not end: resumed, it finds all as it is, and publishes nothing."""
        done = nights.run()
        assert done.exit_code == 0, done.output
        before, file = nights.versions(), nights.run_folder(done.verdict["run_id"]) / "verdict.json"
        with nights.asked() as client:
            file.write_bytes(file.read_bytes()[:100])
            shown = nights.slipway("status", nights.pipeline)
            resumed, seconds = nights.timed("--resume")
        came_to = f"version {resumed.verdict.get('version')} as before"
        nights.tell("truncated verdict.json", "the same run, resumed", came_to, client, seconds)
        assert shown.exit_code == 0 and str(before[-1]) in shown.output, shown.output
        assert resumed.exit_code == 0, resumed.output
        assert resumed.verdict["version"] == done.verdict["version"] == before[-1]
        assert nights.versions() == before
        assert _only_approved(nights, client)

    def test_a_checkpoint(self, nights: Nights) -> None:
        """Of a run that was killed while it trained: resumed, it goes on from the one before."""
        nights.hold("train")
        with nights.asked() as client:
            process = nights.start()
            nights.reach("train", process)
            nights.kill(process)
            newest = _newest_checkpoint(nights)
            newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
            resumed, seconds = nights.timed("--resume")
        assert resumed.exit_code == 0, resumed.output
        proved = {stage["name"]: stage["summary"] for stage in resumed.verdict["stages"]}["train"]
        nights.tell("truncated checkpoint", "the killed run, resumed", proved, client, seconds)
        assert proved.endswith(f"set aside as damaged: {newest.name.partition('.data')[0]}")
        assert "resumed from step " in proved
        assert _only_approved(nights, client)


def _newest_checkpoint(nights: Nights) -> Path:
    data = (nights.newest_run() / "checkpoints").glob("model.ckpt-*.data-*")
    return max(data, key=lambda file: int(file.name.partition(".data")[0].rpartition("-")[2]))


class Clock:
    """What time it is for processes that run in `environment`: that of this machine, or another."""

    def __init__(self, folder: Path, compiler: str) -> None:
        library, self._file = folder / "shifted_clock.so", folder / "shift"
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.set(timedelta())
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._file)}

    def set(self, shift: timedelta) -> None:
        """Have it be so much later, for those that run already too."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:  # in place: it is mapped
            file.write(struct.pack("=q", int(shift.total_seconds())))


class TestTheClock:
    """The clock of a machine goes back: of its runs, and of the server, which goes on meanwhile."""

    @pytest.fixture(scope="class")
    def clock(self, nights: Nights) -> Iterator[Clock]:
        """A clock that the server goes by too."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc) is here")
        made = Clock(nights.folder, compiler)
        assert nights.slipway("stop", nights.pipeline).exit_code == 0
        begun = nights.run(**made.environment)
        assert begun.exit_code == 0, begun.output
        yield made
        made.set(timedelta())

    def test_set_back_between_two_runs(self, nights: Nights, clock: Clock) -> None:
        """By two days: numbers of versions rise, and what counts as the last run is the last run."""
        *_, before = nights.versions()
        with nights.asked() as client:
            clock.set(timedelta(days=-2))
            done, seconds = nights.timed(**clock.environment)
            assert done.exit_code == 0, done.output
            eventually(lambda: client.seen[-1:] == [done.verdict["version"]])
        run_id = done.verdict["run_id"]
        came_to = f"version {done.verdict['version']} after {before}"
        nights.tell("clock set back by two days between runs", "the next run", came_to, client, seconds)
        assert (done.verdict["version"], done.verdict["previous_version"]) == (before + 1, before)
        assert nights.newest_run().name == run_id
        shown = nights.slipway("status", nights.pipeline, **clock.environment)
        assert f"{before + 1} is of" in shown.output and f"deployed (run {run_id})" in shown.output
        resumed = nights.slipway("run", nights.pipeline, "--resume", **clock.environment)
        assert resumed.exit_code == 2 and f"run {run_id} was deployed" in resumed.output
        assert _only_approved(nights, client)

    def test_set_back_in_the_middle_of_a_run(self, nights: Nights, clock: Clock) -> None:
        """While it trains; killed while it exports, it is the one that is resumed, and it deploys."""
        *_, before = nights.versions()
        for at in ("train", "export"):
            nights.hold(at)
        with nights.asked() as client:
            process = nights.start(**clock.environment)
            nights.reach("train", process)
            clock.set(timedelta(days=-5))
            nights.release("train")
            nights.reach("export", process)
            killed = nights.newest_run().name
            nights.kill(process)
            done, seconds = nights.timed("--resume", **clock.environment)
            assert done.exit_code == 0, done.output
            eventually(lambda: client.seen[-1:] == [done.verdict["version"]])
        came_to = f"version {done.verdict['version']} after {before}"
        fault = "clock set back while training, kill -9 while exporting"
        nights.tell(fault, "the same run, resumed", came_to, client, seconds)
        assert (done.verdict["run_id"], done.verdict["version"]) == (killed, before + 1)
        assert len(nights.versions()) <= 5
        assert _only_approved(nights, client)
