"""The process that forks: what its children have, how they end, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tasks.processes import fork_server, tensorflow_process
from tasks.processes.fork_server import ForkedProcess, ForkServer

HERE = Path(__file__).parent
PATH = os.pathsep.join([str(HERE), str(HERE.parent)])


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A server that imports nothing."""
    started = ForkServer("forking_program", {**os.environ, "PYTHONPATH": PATH})
    yield started
    started.close()


@pytest.fixture
def errors() -> Iterator[IO[bytes]]:
    """A file for what children print to stderr."""
    with tempfile.TemporaryFile() as file:
        yield file


def running(server: ForkServer, errors: IO[bytes], program: str) -> ForkedProcess:
    """Return a child that runs the program."""
    child = server.fork(errors)
    child.stdin.write(program.encode())
    child.stdin.close()
    return child


def ended_within(pid: int, seconds: float) -> bool:
    """Wait for a process that need not be ours."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_child_has_streams_and_a_session_of_its_own(server: ForkServer, errors: IO[bytes]) -> None:
    """What it prints comes through its own pipe and file; it leads a session; SIGCHLD is the default."""
    program = "import os, signal; os.write(2, b'odd'); print(os.getpid() == os.getsid(0), end=' '); "
    child = running(server, errors, program + "print(signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)")
    assert child.stdout.read() == b"True True\n"
    assert child.wait(10) == 0
    errors.seek(0)
    assert errors.read() == b"odd"


def test_children_are_told_apart(server: ForkServer, errors: IO[bytes]) -> None:
    """Each has its own exit code; the first to end need not be the first that was forked."""
    slow = running(server, errors, "import sys; sys.stdin.close(); import time; time.sleep(1); sys.exit(3)")
    quick = running(server, errors, "import sys; sys.exit(4)")
    assert quick.wait(10) == 4
    assert slow.poll() is None
    assert slow.wait(10) == 3
    assert slow.pid != quick.pid


def test_the_end_of_a_child_closes_its_output(server: ForkServer, errors: IO[bytes]) -> None:
    """Though another one was forked while it ran, and still runs."""
    first, second = server.fork(errors), server.fork(errors)
    first.stdin.write(b"print('done')")
    first.stdin.close()
    assert first.stdout.read() == b"done\n"
    assert second.poll() is None
    second.kill()
    assert second.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_child_is_ended(server: ForkServer, errors: IO[bytes], how: str) -> None:
    """By the signal, which its exit code tells; once more does nothing."""
    child = running(server, errors, "import time; time.sleep(600)")
    assert child.pid is not None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0)
    getattr(child, how)()
    assert child.wait(10) == {"terminate": -signal.SIGTERM, "kill": -signal.SIGKILL}[how]
    getattr(child, how)()
    assert not psutil.pid_exists(child.pid)


def test_the_end_of_the_server_ends_its_children(server: ForkServer, errors: IO[bytes]) -> None:
    """Killed, as by the out-of-memory killer: whoever waits for a child learns that it is gone."""
    child = running(server, errors, "import time; print('up', flush=True); time.sleep(600)")
    assert child.stdout.readline() == b"up\n"
    assert child.pid is not None
    server._process.kill()
    assert child.wait(10) == -signal.SIGKILL
    assert ended_within(child.pid, 10)
    assert not server.is_alive
    late = server.fork(errors)
    assert late.stdout.read() == b""
    assert late.wait(10) == -signal.SIGKILL
    assert late.pid is None


def test_a_server_that_cannot_start_says_why(errors: IO[bytes]) -> None:
    """Its children's exit code is its own, and its log has the reason."""
    server = ForkServer("no_such_module", dict(os.environ))
    child = server.fork(errors)
    assert child.wait(30) == 1
    assert "No module named no_such_module" in server.log()
    server.close()


def test_nothing_is_left_of_a_flow_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the process that started the server ends it and its children: at once, or after imports."""
    program = (
        "import os, sys, tempfile, time; from tasks.processes.fork_server import ForkServer\n"
        "server = ForkServer('forking_program', dict(os.environ))\n"
        "child = server.fork(tempfile.TemporaryFile())\n"
        "child.stdin.write(b'import time; time.sleep(600)'); child.stdin.close()\n"
        "print(server.pid, child.pid, flush=True); time.sleep(600)"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATH}
    )
    with flow:
        assert flow.stdout is not None
        pids = [int(each) for each in flow.stdout.readline().split()]
        flow.kill()
    assert len(pids) == 2
    assert all(ended_within(pid, 10) for pid in pids)


def test_many_children_at_once(server: ForkServer, errors: IO[bytes]) -> None:
    """Forty, whose ends are told in any order, all with the right code."""
    children = [running(server, errors, f"import sys; sys.exit({code})") for code in range(40)]
    assert [child.wait(60) for child in children] == list(range(40))


def test_importing_starts_no_thread() -> None:
    """A process may be forked as long as it has one thread; those of numpy's OpenBLAS end by themselves then.

    TensorFlow starts its threads with the first session, tensorflow#8220; an upgrade may change that.
    """
    program = "import os, tensorflow, tasks.in_tensorflow.train; print(len(os.listdir('/proc/self/task')))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment,
        cwd=HERE.parent, timeout=300,
    )  # fmt: skip
    assert told.stdout == "1\n"


def test_a_call_has_the_environment_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same server; a variable that decides what an import does makes a new one."""
    server = tensorflow_process.prepare()
    monkeypatch.setenv("SLIPWAY_X", "1")
    assert tensorflow_process.prepare() is server
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    assert tensorflow_process.prepare() is not server
    assert not server.is_alive
    tensorflow_process.close()


def test_a_server_ends_when_asked(server: ForkServer) -> None:
    """Within a moment, as the end of each command waits for it."""
    started = time.monotonic()
    server.close()
    assert not server.is_alive
    assert time.monotonic() - started < fork_server._END_SECONDS + 5
