"""Connections of HTTP clients: bounded in number, and in how slowly a request may arrive."""

from __future__ import annotations

import io
import socket
import threading
import time
from contextlib import suppress
from typing import Any

_SLOWEST_BYTES_A_SECOND = 32 * 1024


class Incoming(io.RawIOBase):
    """Reads a connection until a deadline that each received byte moves a little.

    A timeout per read would let a client send one byte a minute for ever.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._deadline = time.monotonic()

    def allow(self, seconds: float) -> None:
        """Give what follows `seconds`, and the time that its bytes take at 32 KiB/s."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there. Raises TimeoutError at the deadline."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the client sends too slowly")
        self._connection.settimeout(remaining)
        size = int(self._connection.recv_into(buffer))
        self._deadline += size / _SLOWEST_BYTES_A_SECOND
        return size


class Connections:
    """Open connections, `most` at a time; one more closes that which has waited longest for its client."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Any] = set()
        self._waiting: dict[Any, None] = {}  # in the order in which they began to wait
        self._lock = threading.Lock()

    def admit(self, connection: Any) -> bool:
        """Count a new connection in. Return False if there is no room: none waits for its client."""
        with self._lock:
            if len(self._open) >= self._most:
                if not self._waiting:
                    return False
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                self._open.discard(oldest)
                # Its own thread sees the end of it and closes it. SSLSocket.shutdown would drop the TLS state
                # under that thread.
                with suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._open.add(connection)
            self._waiting[connection] = None
            return True

    def waits(self, connection: Any) -> None:
        """Record that the connection waits for its client from now on: to send, or to take an answer."""
        with self._lock:
            self._waiting.pop(connection, None)
            if connection in self._open:
                self._waiting[connection] = None

    def works(self, connection: Any) -> None:
        """Record that the client waits for an answer: the connection is not closed for another one."""
        with self._lock:
            self._waiting.pop(connection, None)

    def closed(self, connection: Any) -> None:
        """Count the connection out."""
        with self._lock:
            self._open.discard(connection)
            self._waiting.pop(connection, None)
