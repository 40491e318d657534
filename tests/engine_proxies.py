"""A Docker engine that can go away: a socket of the test's own in front of the machine's."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

_BUFFER_BYTES = 65536


class EngineProxy:
    """Passes on what comes to a UNIX socket, while it is there; `gone()` cuts every connection."""

    def __init__(self, path: Path) -> None:
        with contextlib.closing(docker.from_env()) as engine:
            adapter = engine.api.get_adapter(engine.api.base_url)
        if not hasattr(adapter, "socket_path"):
            pytest.skip("this engine is not asked over a UNIX socket")
        self._engine = str(adapter.socket_path)
        self.path = path
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    @property
    def host(self) -> str:
        """What DOCKER_HOST is to say."""
        return f"unix://{self.path}"

    def back(self) -> None:
        """Listen."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def gone(self) -> None:
        """Listen no more, and cut what is connected."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self.path.unlink()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                for source, sink in ((client, engine), (engine, client)):
                    self._open.add(source)
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while read := source.recv(_BUFFER_BYTES):
                sink.sendall(read)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self._open.discard(source)


@contextlib.contextmanager
def engine_proxy(path: Path) -> Iterator[EngineProxy]:
    """Have one in front of the engine that this machine has."""
    proxy = EngineProxy(path)
    proxy.back()
    try:
        yield proxy
    finally:
        proxy.gone()
