"""Where the processes of a cluster meet: files in the run's folder, which every host sees.

    request.json          what to train
    players.json          process to the flow run that is it: another one after a restart
    members/<flow run>    it has joined, at this host and address
    agreed.json           all addresses: all have joined
    ready/<flow run>      it reaches the others
    go                    all are ready: TensorFlow takes the ports now
    begun                 the variables are there: workers may begin
    given_up              why this attempt ends
    over                  training has ended
    alive/<who>           changes every few seconds while a flow run, or the chief, lives

What names a flow run is written by that one, all else by the chief's side; each at one instant.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.core import durable_files
from tasks.core.errors import ProcessDied

SECONDS_BETWEEN_LOOKS = 0.25
CHIEF = "chief"
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A process that has joined."""

    host: str
    address: str | None
    """host:port; None of the evaluator, whom nobody calls."""


class Rendezvous:
    """One attempt's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, name: str, what: Any = None) -> None:
        """Make the file `name` hold `what`, as JSON."""
        durable_files.write(self.folder / name, json.dumps(what).encode(), synced=False)

    def said(self, name: str) -> bool:
        """Return whether the file is there."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> Any:
        """Return what the file holds; None where it is not there (yet)."""
        try:
            return json.loads((self.folder / name).read_bytes())
        except OSError:
            return None

    def join(self, flow_run: str, address: str | None) -> None:
        """Announce that this process has the role of `flow_run`, at `address`."""
        self.say(f"members/{flow_run}", asdict(Member(socket.gethostname(), address)))

    def member(self, flow_run: str) -> Member | None:
        """Return the process that `flow_run` is; None where it has not joined (yet)."""
        told = self.read(f"members/{flow_run}")
        return Member(**told) if told else None

    def address_of(self, process: str) -> str | None:
        """Return host:port of `process` (`worker-0`), wherever it is now; None while it is nowhere."""
        player = (self.read("players.json") or {}).get(process)
        member = self.member(player) if player else None
        return member.address if member else None

    @contextmanager
    def alive(self, who: str, lease_seconds: float) -> Iterator[None]:
        """Show signs of life, often enough for `lease_seconds`, while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                try:
                    self.say(f"alive/{who}", time.time_ns())
                except OSError:
                    pass  # a share that is away for a moment; away for longer, the others take us for dead
                ended.wait(lease_seconds / 6)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def watch(self, who: str, lease_seconds: float) -> Watch:
        """Return what says whether `who` shows signs of life."""
        return Watch(self.folder / "alive" / who, lease_seconds)


class Watch:
    """Tells whether a file still changes: by what is in it and by this host's clock, as clocks differ."""

    def __init__(self, file: Path, lease_seconds: float) -> None:
        self._file, self._lease = file, lease_seconds
        self._content, self._changed = b"", time.monotonic()

    def is_lost(self) -> bool:
        """Return whether it has not changed for a lease, by all looks at it so far."""
        try:
            content = self._file.read_bytes()
        except OSError:
            content = self._content
        if content != self._content:
            self._content, self._changed = content, time.monotonic()
        return time.monotonic() - self._changed > self._lease


class Over(Exception):
    """Training has ended; processes of a type (`worker`, `evaluator`) may take `seconds` to end."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self.seconds = seconds


class Patience:
    """Waits as a process of a cluster, for as long as there is something to wait for."""

    def __init__(self, meeting: Rendezvous, process: str, flow_run: str, lease_seconds: float) -> None:
        self._meeting, self._process, self._flow_run = meeting, process, flow_run
        self._chief, self._lease = meeting.watch(CHIEF, lease_seconds), lease_seconds

    def check(self) -> None:
        """Raise Over where training has ended, ProcessDied where the chief is gone or has replaced us."""
        seconds = self._meeting.read("over")
        if seconds is not None:
            raise Over(seconds)
        if self._chief.is_lost():
            raise ProcessDied(f"the chief has shown no sign of life for {self._lease:g} s")
        players = self._meeting.read("players.json") or {}
        if players.get(self._process, self._flow_run) != self._flow_run:
            raise ProcessDied(f"another run is {self._process} now: this one was taken for dead")

    def until(self, look: Callable[[], T]) -> T:
        """Return the first truthy answer of `look`."""
        while not (found := look()):
            self.check()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found
