"""The lead's store: what it loads and publishes, its workers have before anyone is answered by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model_server.models.routing import RoutingTable
from model_server.models.servable import Servable
from model_server.models.servable_store import ServableStore
from model_server.processes.fleet import Fleet


class SharedStore(ServableStore):
    """A ServableStore for all processes of the server."""

    def __init__(self, load: Callable[[Path, int], Servable], fleet: Fleet) -> None:
        super().__init__(load, fleet.generation)
        self._fleet = fleet

    def load(self, name: str, number: int, directory: Path) -> None:
        """Hold the version in memory here first, then in the workers. Raises as ServableStore.load()."""
        super().load(name, number, directory)
        try:
            self._fleet.load(name, number, directory)
        except BaseException:
            super().unload(name, number)
            raise

    def publish(self, table: RoutingTable) -> None:
        """Switch all processes to the table, at one instant."""
        self._fleet.publish(table)
        super().publish(table)

    def unload(self, name: str, number: int) -> None:
        """Free the version everywhere, after its last request in each process."""
        super().unload(name, number)
        self._fleet.unload(name, number)
