"""`slipway trigger`: a run as CI triggers it, through a server with a password and a real worker."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import junitparser
import psutil
import pytest
from free_ports import free_port
from nightly_station import LONG, PASSWORD, Station
from served_digits import DigitsLoop, held_out
from slipway_command import DIGITS, Finished, Slipway
from waiting import eventually

# Each waits for processes that import much; on a machine that is busy elsewhere that takes minutes.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def nights(station: Station) -> Iterator[Station]:
    """A station with one worker at work."""
    with station.worker():
        yield station


def _triggered(nights: Station, *options: str) -> tuple[Finished, Path]:
    """Trigger the digits and watch them; return what came of it, and the JUnit file."""
    file, junit = nights.slipway.home / "verdict.json", nights.slipway.home / "junit.xml"
    for each in (file, junit):
        each.unlink(missing_ok=True)
    done = nights.slipway("trigger", "digits", "--watch", "--json", file, "--junit", junit, *options)
    return done, junit


def _cases(junit: Path) -> dict[str, list[junitparser.TestCase]]:
    """Return the test cases of each suite, read as a consumer does."""
    suites = junitparser.JUnitXml.fromfile(str(junit))
    return {suite.name: list(suite) for suite in suites}


class TestDeployed:
    """A run that passes every gate."""

    @pytest.fixture(scope="class")
    def deployed(self, nights: Station) -> tuple[Finished, Path]:
        """Triggered, watched, with both files."""
        return _triggered(nights)

    def test_it_exits_as_slipway_run_does(self, deployed: tuple[Finished, Path], nights: Station) -> None:
        """Exit code 0; the verdict is that of the run's folder, though it came through the server."""
        done, _ = deployed
        assert done.exit_code == 0, done.output
        assert done.verdict["outcome"] == "deployed"
        folder = nights.slipway.home / "runs" / "digits" / done.verdict["run_id"]
        assert json.loads((folder / "verdict.json").read_text()) == done.verdict

    def test_the_log_streams_and_ends_in_the_verdict(self, deployed: tuple[Finished, Path]) -> None:
        """Each stage's proof is among the lines, once, in order; the password is not."""
        done, _ = deployed
        lines = done.output.splitlines()
        proofs = [stage["summary"].splitlines()[0] for stage in done.verdict["stages"]]
        found = [[n for n, line in enumerate(lines) if "INFO" in line and proof in line] for proof in proofs]
        assert all(len(each) == 1 for each in found), done.output
        assert found == sorted(found)
        assert f"digits version {done.verdict['version']}: deployed" in done.output
        assert PASSWORD not in done.output
        assert PASSWORD.partition(":")[2] not in done.output

    def test_the_servers_own_lines_are_in_the_log(self, deployed: tuple[Finished, Path]) -> None:
        """What it says of the new version, at the level that it says it."""
        done, _ = deployed
        version = f"model digits version {done.verdict['version']}"
        for said in (f"{version}: loading from ", f"{version}: available ("):
            (line,) = [line for line in done.output.splitlines() if said in line]
            assert line.index("INFO") < line.index(said), line

    def test_each_stage_and_each_check_is_a_test_case(self, deployed: tuple[Finished, Path]) -> None:
        """By the names of the verdict, all passed."""
        done, junit = deployed
        cases = _cases(junit)
        assert [case.name for case in cases["digits.stages"]] == [s["name"] for s in done.verdict["stages"]]
        assert [case.name for case in cases["digits.checks"]] == [c["name"] for c in done.verdict["checks"]]
        assert all(not case.is_failure and not case.is_error for suite in cases.values() for case in suite)

    def test_cancelled_it_leaves_a_checkpoint_and_what_serves(
        self, deployed: tuple[Finished, Path], nights: Station
    ) -> None:
        """SIGTERM with --cancel-on-signal: the trainer saves, all of it ends, the old version serves."""
        done, _ = deployed
        before = set(nights.slipway.home.glob("runs/digits/[0-9]*"))
        versions = nights.slipway.versions("digits")
        options = [f"--set={key}={value}" for key, value in LONG.items()]
        with DigitsLoop(done.verdict["endpoint"]["grpc"], held_out(done, nights.slipway)) as client:
            process = nights.slipway.start(
                "trigger", DIGITS, "--watch", "--cancel-on-signal", "--json",
                nights.slipway.home / "cancelled.json", *options,
            )  # fmt: skip
            (folder,) = eventually(
                lambda: set(nights.slipway.home.glob("runs/digits/[0-9]*")) - before, seconds=400
            )
            eventually(lambda: _steps(folder)[-1:] > [200], seconds=400)
            trainers = [each for each in psutil.process_iter() if _works_in(each, folder)]
            assert trainers
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=400)
            _, alive = psutil.wait_procs(trainers, timeout=60)
        assert process.returncode == 4, output
        assert not alive
        _assert_saved_where_it_stopped(folder)
        assert nights.runs()[-1]["state"]["type"] == "CANCELLED"
        assert client.failures == []
        assert client.versions == [done.verdict["version"]]
        assert nights.slipway.versions("digits") == versions
        verdict = json.loads((nights.slipway.home / "cancelled.json").read_text())
        assert (verdict["outcome"], verdict["error"]["class"]) == ("cancelled", "Interrupted")


def _steps(folder: Path) -> list[int]:
    return sorted(int(file.stem.rpartition("-")[2]) for file in folder.glob("checkpoints/model.ckpt-*.index"))


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(
            str(folder) in part for part in (*process.cmdline(), *(f.path for f in process.open_files()))
        )
    except psutil.Error:
        return False


def _assert_saved_where_it_stopped(folder: Path) -> None:
    log = (folder / "logs" / "train.log").read_text()
    *_, saving = re.findall(r"Saving checkpoints for (\d+) into", log)
    assert "Loss for final step" in log, "the trainer was not let come to its end"
    assert _steps(folder)[-1] == int(saving)


class TestNotDeployed:
    """Runs that a gate or an error ends."""

    def test_a_rejected_run_exits_with_3(self, nights: Station) -> None:
        """And the check that failed is the test case that failed."""
        done, junit = _triggered(nights, "--set=evaluation.thresholds.accuracy.min=0.9999")
        assert done.exit_code == 3, done.output
        assert done.verdict["outcome"] == "rejected"
        cases = _cases(junit)
        (gate,) = [case for case in cases["digits.checks"] if case.is_failure]
        assert "accuracy" in gate.name
        assert "0.9999" in gate.result[0].message
        assert [case.name for case in cases["digits.stages"] if case.is_failure] == ["evaluate"]

    def test_a_failed_run_exits_with_1(self, nights: Station) -> None:
        """The stage that failed is a test case with an error, and says what."""
        done, junit = _triggered(nights, "--set=model.params.optimizer=Nonsense")
        assert done.exit_code == 1, done.output
        (stage,) = [case for case in _cases(junit)["digits.stages"] if case.is_error]
        assert stage.name == "train"
        assert "Nonsense" in stage.result[0].message

    def test_a_bad_configuration_exits_with_2(self, nights: Station) -> None:
        """Found by the worker, told here with the place, and a test case too."""
        done, junit = _triggered(nights, "--set=training.max_stepz=5")
        assert done.exit_code == 2, done.output
        assert "did you mean 'max_steps'?" in done.output
        (case,) = [case for suite in _cases(junit).values() for case in suite]
        assert (case.name, case.is_error) == ("run", True)


class TestNoRun:
    """What is told where no run comes about."""

    def test_no_server_is_named(self, slipway_alone: Slipway) -> None:
        """Exit code 2, and what to set."""
        done = slipway_alone("trigger", DIGITS)
        assert done.exit_code == 2
        assert "no Prefect server is named\n  hint: set PREFECT_API_URL" in done.output

    def test_no_server_answers(self, slipway_alone: Slipway, tmp_path: Path) -> None:
        """Exit code 1, with the address, but not with the password in it; CI gets its test case."""
        address = f"127.0.0.1:{free_port()}/api"
        done = slipway_alone("trigger", DIGITS, "--watch", "--junit", tmp_path / "junit.xml",
                             PREFECT_API_URL=f"http://keeper:hidden@{address}")  # fmt: skip
        assert done.exit_code == 1
        assert f"the Prefect server at http://{address} does not answer" in done.output
        assert "hidden" not in done.output
        assert [case.is_error for case in _cases(tmp_path / "junit.xml")[f"{DIGITS}.stages"]] == [True]

    @pytest.mark.parametrize("credentials", ["", "keeper:wrong-one"])
    def test_the_server_wants_other_credentials(self, nights: Station, credentials: str) -> None:
        """Exit code 2, and by which variable they are given; they are not shown."""
        done = nights.slipway("trigger", DIGITS, PREFECT_API_AUTH_STRING=credentials)
        assert done.exit_code == 2
        assert "refuses these credentials (401)" in done.output
        assert "PREFECT_API_AUTH_STRING" in done.output
        assert "wrong-one" not in done.output

    @pytest.mark.parametrize("name", ["churn", "retrain-and-deploy/nightly-churn"])
    def test_there_is_no_such_deployment(self, nights: Station, name: str) -> None:
        """Exit code 2, and those that there are."""
        done = nights.slipway("trigger", name)
        assert done.exit_code == 2
        assert "there is no deployment" in done.output
        assert "there are: retrain-and-deploy/for-nobody, retrain-and-deploy/nightly-digits" in done.output

    def test_files_need_the_end_of_the_run(self, slipway_alone: Slipway) -> None:
        """Without --watch there is no verdict to write."""
        done = slipway_alone("trigger", DIGITS, "--json", "verdict.json")
        assert done.exit_code == 2
        assert "add --watch" in done.output

    @pytest.fixture
    def slipway_alone(self, home: Path) -> Slipway:
        """The command without a server."""
        return Slipway(home, None)


def test_no_worker_takes_it(nights: Station) -> None:
    """In the time given: exit code 1, which pool waits for a worker, and the run is cancelled for good."""
    done = nights.slipway("trigger", "retrain-and-deploy/for-nobody", "--watch", "--start-timeout", "1")
    assert done.exit_code == 1, done.output
    assert "no worker took the run within 1 s; it is cancelled" in done.output
    assert "work pool nobody has no worker online: prefect worker start --pool nobody" in done.output
    assert nights.runs()[-1]["state"]["type"] in ("CANCELLED", "CANCELLING")
