"""The servables in this process's memory, and the routing table by which requests find them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import model_pb2

from model_server.models.generations import Generation
from model_server.models.routing import RoutingTable
from model_server.models.servable import Servable

# The one in force, the next, and those that a process which is late may still read.
_KEPT_TABLES = 8


@dataclass
class Loaded:
    """A servable in memory; `prepared` is for what whoever asks it wants to prepare once."""

    servable: Servable
    in_flight: int = 0
    prepared: dict[Any, Any] = field(default_factory=dict)


class ServableStore:
    """Loads, routes to and unloads servables. Who calls it keeps this order for each version:

    load(), publish() of a table with it, publish() of one without it, unload().
    """

    def __init__(self, load: Callable[[Path, int], Servable], generation: Generation | None = None) -> None:
        """Of a process that shares its port with others, `generation` is what they share."""
        self._load = load
        self._generation = generation or Generation()
        self._tables = {0: RoutingTable()}
        self._loaded: dict[tuple[str, int], Loaded] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    @property
    def table(self) -> RoutingTable:
        """The routing table in force."""
        return self._tables.get(self._generation.number) or self._tables[max(self._tables)]

    def load(self, name: str, number: int, directory: Path) -> None:
        """Hold the version of `directory` in memory; no request reaches it yet.

        Raises StatusError or TensorFlow's own errors; then nothing of it stays in memory.
        """
        loaded = Loaded(self._load(directory, number))
        with self._lock:
            self._loaded[name, number] = loaded

    def publish(self, table: RoutingTable) -> None:
        """Let every request from now on be answered by `table`; all that it names is loaded."""
        self.prepare(table)
        self._generation.number = table.generation

    def prepare(self, table: RoutingTable) -> None:
        """Know a table that comes into force when its generation is written."""
        with self._lock:
            self._tables[table.generation] = table
            for generation in sorted(self._tables)[:-_KEPT_TABLES]:
                del self._tables[generation]

    def has(self, name: str, number: int) -> bool:
        """Tell whether the version is in memory."""
        return (name, number) in self._loaded

    def unload(self, name: str, number: int) -> None:
        """Free the memory of a version that the table does not name, after its last request has ended."""
        with self._lock:
            loaded = self._loaded[name, number]
            self._idle.wait_for(lambda: loaded.in_flight == 0)
            del self._loaded[name, number]
        loaded.servable.close()

    @contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """Return the servable that `spec` means, which stays in memory until the block ends.

        Raises StatusError where there is none (routing.py).
        """
        loaded = self.acquire(spec)
        try:
            yield loaded.servable
        finally:
            self.release(loaded)

    def acquire(self, spec: model_pb2.ModelSpec) -> Loaded:
        """Return what `spec` means, which stays in memory until as many calls of release().

        Raises StatusError where there is none (routing.py).
        """
        with self._lock:
            loaded = self._loaded[spec.name, self.table.resolve(spec)]
            loaded.in_flight += 1
            return loaded

    def release(self, loaded: Loaded) -> None:
        """Let go of what acquire() returned."""
        with self._lock:
            loaded.in_flight -= 1
            if not loaded.in_flight:
                self._idle.notify_all()
