"""This process's TCP connections on a port, as Linux tells them: what gRPC keeps to itself.

gRPC has no call to close a listener and keep its connections, and none that counts these. Once its server is
told to shut down, it answers no request that arrives afterwards, though the client may have sent it before it
read the GOAWAY: the call is cancelled, or hangs until its deadline (core/lib/surface/server.cc, KillZombie).
So a server that is replaced first closes the listener by itself, lets `grpc.max_connection_age_ms` send each
client elsewhere, which loses nothing, and shuts down when nobody is left.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_ESTABLISHED, _LISTEN = "01", "0A"  # include/net/tcp_states.h
_LOOK_SECONDS = 0.1
_JITTER = 1.1  # gRPC adds up to a tenth to the age of each connection
AGE = "grpc.max_connection_age_ms"


def leave(port: int, age_seconds: float, grace_seconds: float, at_once: threading.Event) -> bool:
    """Take no more connections on the port; return True when those that there were have gone.

    That is when they are `age_seconds` old and their requests are answered. False where some are left
    `grace_seconds` later, or when `at_once` is set.
    """
    stop_listening(port)
    ends = time.monotonic() + age_seconds * _JITTER + grace_seconds
    while count(port) and time.monotonic() < ends:
        if at_once.wait(_LOOK_SECONDS):
            break
    return count(port) == 0


def stop_listening(port: int) -> None:
    """Shut every listener of this process on the port; its connections stay."""
    for descriptor in list(_descriptors(port, _LISTEN)):
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            listener.shutdown(socket.SHUT_RDWR)


def count(port: int) -> int:
    """Return how many connections of clients this process has on the port."""
    return sum(1 for _ in _descriptors(port, _ESTABLISHED))


def _descriptors(port: int, state: str) -> Iterator[int]:
    inodes = set(_inodes(port, state))
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:[") and target[len("socket:[") : -1] in inodes:
            yield int(link.name)


def _inodes(port: int, state: str) -> Iterator[str]:
    """Yield the inodes of this network's sockets whose own port it is. Format: proc(5), /proc/net/tcp."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/self/net", table).read_text().splitlines()[1:]
        except FileNotFoundError:  # a machine without IPv6
            continue
        for line in lines:
            (
                _,
                local,
                _,
                found,
                *_,
            ) = line.split()
            if found == state and int(local.rpartition(":")[2], 16) == port:
                yield line.split()[9]
