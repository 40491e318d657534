"""A process that has imported what its children need, and forks one for each call.

Importing TensorFlow costs seconds of a core, forking a process that has imported it milliseconds; each child
still has an interpreter, a session and memory of its own. A process may be forked as long as TensorFlow has
started no thread in it (tensorflow#8220): the server imports, and runs nothing else.

The socket takes messages: `{"fork": NUMBER}` with three file descriptors (stdin, stdout, stderr), and
`{"signal": [NUMBER, SIGNAL]}`; back come `{"forked": [NUMBER, PID]}` and `{"ended": [NUMBER, CODE]}`.
The server is the children's parent: it alone knows that a pid is still theirs.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

_MESSAGE_BYTES = 4096
_LOOK_SECONDS = 0.05
_END_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Starts `python -m module SOCKET`, whose `main` calls `serve`, and has it fork.

    It ends with the process that started it, by `kill -9` too: it reads the end of the socket. Its children
    get SIGTERM then.
    """

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._socket = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                env=environment, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can fork."""
        return self._process.poll() is None

    def fork(self, errors: IO[bytes]) -> ForkedProcess:
        """Return a new child, which writes its stderr to `errors`. It may not run yet: imports take time."""
        number = next(self._numbers)
        (its_stdin, stdin), (stdout, its_stdout) = os.pipe(), os.pipe()
        try:
            with self._lock:
                message = json.dumps({"fork": number}).encode()
                socket.send_fds(self._socket, [message], [its_stdin, its_stdout, errors.fileno()])
        except OSError:
            pass  # it has ended: so has the child, as whoever waits for it finds
        finally:
            os.close(its_stdin)
            os.close(its_stdout)
        return ForkedProcess(self, number, stdin, stdout)

    def log(self) -> str:
        """Return what it printed: why it ended, if it did."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        """End it; its children get SIGTERM."""
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def pid_of(self, number: int) -> int | None:
        """Return the pid of a child; None where the server ended before it forked."""
        while number not in self._pids and self._look(_LOOK_SECONDS):
            pass
        return self._pids.get(number)

    def code(self, number: int, seconds: float = 0.0) -> int | None:
        """Wait at most so long for a child's end, and return its exit code; None while it runs."""
        if number not in self._codes and not self._look(seconds) and number not in self._codes:
            return self._process.wait() or -signal.SIGTERM
        return self._codes.get(number)

    def signal(self, number: int, which: int) -> None:
        """Send a signal to a child that has not ended."""
        try:
            with self._lock:
                self._socket.send(json.dumps({"signal": [number, which]}).encode())
        except OSError:
            pass  # the server has ended, and sent all of them SIGTERM

    def _look(self, seconds: float) -> bool:
        """Read the server's messages, waiting at most `seconds`; return False after the last one."""
        if self._socket.fileno() < 0:
            return False
        if not select.select([self._socket], [], [], seconds)[0]:
            return True
        with self._lock:
            while True:
                try:
                    told = self._socket.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return True
                except OSError:
                    return False
                if not told:
                    return False
                ((kind, (number, value)),) = json.loads(told).items()
                (self._pids if kind == "forked" else self._codes)[number] = value


class ForkedProcess:
    """A child of the server, used as a `subprocess.Popen`: stdin, stdout, poll, wait, terminate, kill."""

    def __init__(self, server: ForkServer, number: int, stdin: int, stdout: int) -> None:
        self._server, self._number = server, number
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self.returncode: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id, waited for if the server still imports; None where it ended before."""
        return self._server.pid_of(self._number)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code(self._number)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises subprocess.TimeoutExpired."""
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = ends - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            self.returncode = self._server.code(self._number, min(left, _LOOK_SECONDS))
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self._server.signal(self._number, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self._server.signal(self._number, signal.SIGKILL)


def serve(control: socket.socket) -> None:
    """Fork for whoever has the other end. Returns in each child; in the server it never returns."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    numbers: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, _MESSAGE_BYTES)
            _tell_ended(control, numbers)
        if control.fileno() in ready:
            told, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 3)
            if not told:
                sys.exit()
            message = json.loads(told)
            if "fork" in message:
                server = os.getpid()
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    for descriptor in (woken, wakes, control.detach()):
                        os.close(descriptor)
                    _become_child(server, descriptors)
                    return
                for descriptor in descriptors:
                    os.close(descriptor)
                numbers[pid] = message["fork"]
                _tell(control, {"forked": [message["fork"], pid]})
            else:
                number, which = message["signal"]
                for pid in [pid for pid, each in numbers.items() if each == number]:
                    os.kill(pid, which)  # not reaped yet: no other process can have its pid


def _tell_ended(control: socket.socket, numbers: dict[int, int]) -> None:
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _tell(control, {"ended": [numbers.pop(pid), os.waitstatus_to_exitcode(status)]})


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except BrokenPipeError:
        sys.exit()  # nobody listens any more


def end_with_parent(by: signal.Signals) -> None:
    """Ask the kernel to send this process the signal `by` when its parent ends, even by kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def _become_child(parent: int, descriptors: list[int]) -> None:
    """Set up the streams, session and signals of a spawned process."""
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
