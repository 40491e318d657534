"""One trainer in a model_dir: the next waits for the one before, then kills it."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pipelines import run_of, written

from tasks.core.artifacts import Run
from tasks.core.errors import EnvironmentFault
from tasks.estimators import model_dir_lock

HOLDER = """
import os, sys
from pathlib import Path
from tasks.core.artifacts import Run
from tasks.estimators import model_dir_lock
folder = Path(sys.argv[1])
with model_dir_lock.held(Run("p", "r1", folder, folder, folder), print, print):
    child = os.fork() if sys.argv[2] == "forked" else 1  # as a worker process of a user's input pipeline
    if child:
        print("held", flush=True)
    sys.stdin.readline()
"""


@dataclass
class Heard:
    """What was reported while waiting."""

    told: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose folders are in tmp_path."""
    return run_of(written(tmp_path / "pipeline", {}), tmp_path)


@contextmanager
def _holder(run: Run, how: str = "alone") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock until it gets a line, in a session of its own as a trainer is."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_earlier_trainer_is_waited_for(run: Run) -> None:
    """It ends in time, here by SIGTERM; each second of waiting is reported, so that it is no stall."""
    heard = Heard()
    with _holder(run) as process:

        def still_waits(line: str) -> None:
            heard.waits.append(line)
            process.send_signal(signal.SIGTERM)

        with model_dir_lock.held(run, heard.told.append, still_waits):
            assert process.wait(10) == -signal.SIGTERM
    assert heard.waits[0] == f"waiting for trainer {process.pid} to end"
    assert heard.told == [
        f"trainer {process.pid} still writes to {run.model_dir}: waiting up to 30 s for its checkpoint"
    ]


@pytest.mark.parametrize("how", ["alone", "forked"])
def test_one_that_does_not_end_is_killed_with_all_that_it_started(run: Run, how: str) -> None:
    """A process that it forked holds the same lock."""
    heard = Heard()
    with _holder(run, how) as process, model_dir_lock.held(
        run, heard.told.append, heard.waits.append, seconds_to_save=0.2
    ):  # fmt: skip
        assert process.wait(10) == -signal.SIGKILL
    assert heard.told[1:] == [f"trainer {process.pid} did not end in 0.2 s: killed"]


def test_one_that_is_not_of_this_machine_is_left_alone(run: Run) -> None:
    """A pid of another host says nothing here: the error says what is to be done."""
    run.folder.mkdir(parents=True)
    with (run.folder / ".trainer").open("w") as file:
        file.write(f"{1}:of another boot:1")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(EnvironmentFault, match="a trainer of another host or container still") as caught,
            model_dir_lock.held(run, Heard().told.append, Heard().waits.append, seconds_to_save=0.2),
        ):
            pytest.fail("two trainers in one model_dir")
    assert "--resume r1" in caught.value.hint
