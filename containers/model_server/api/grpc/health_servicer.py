"""grpc.health.v1: SERVING per name, models included, until the drain ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from model_server.models.routing import RoutingTable

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Send = Callable[[Any], None]


class HealthServicer(health.HealthServicer):
    """Answers Check and Watch; a Watch does not hold up the end of the server."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._watchers: set[Send] = set()
        self._models: set[str] = set()
        for name in names:
            self.set(name, _SERVING)

    def Watch(  # noqa: N802 (the method's name in the proto)
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Any = None,
    ) -> None:
        """Send the status now and at each change; grpc calls this without a thread of its own."""
        with self._lock:
            self._watchers.add(send_response_callback)
        context.add_callback(lambda: self._watchers.discard(send_response_callback))
        super().Watch(request, context, send_response_callback)

    def show(self, table: RoutingTable) -> None:
        """Say of each model whether a version of it is in service; of a removed one, that it is not."""
        with self._lock:
            gone = self._models - table.models.keys()
            self._models |= table.models.keys()
        for name, route in table.models.items():
            self.set(name, _SERVING if route.versions else _NOT_SERVING)
        for name in gone:
            self.set(name, _NOT_SERVING)

    def drain(self) -> None:
        """Say NOT_SERVING to all who ask or watch, then end the watches, which are calls in flight too."""
        self.enter_graceful_shutdown()
        with self._lock:
            for send in list(self._watchers):
                send(None)
