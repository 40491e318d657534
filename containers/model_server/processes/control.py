"""What the lead process tells its workers: one line of JSON each way, over a pair of sockets."""

from __future__ import annotations

import base64
import json
import socket
import threading
from typing import Any

from tensorflow_serving.config import logging_config_pb2

from model_server.base.status import Code, StatusError
from model_server.models.routing import Route, RoutingTable


class Gone(Exception):
    """The other process has ended."""


class Connection:
    """One end; a message is a JSON object."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lines = end.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, from any thread. Raises Gone where nobody is there to read it."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Gone from None

    def receive(self) -> dict[str, Any]:
        """Wait for the next message. Raises Gone where none can come any more."""
        try:
            line = self._lines.readline()
        except (OSError, ValueError):  # the latter of a file that was closed
            raise Gone from None
        if not line.endswith(b"\n"):
            raise Gone
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Hang up; the other end sees it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


def table_message(table: RoutingTable) -> dict[str, Any]:
    """Return a table as JSON has it."""
    models = {
        name: {"versions": sorted(route.versions), "labels": dict(route.labels)}
        for name, route in table.models.items()
    }
    return {"generation": table.generation, "models": models}


def table_of(message: dict[str, Any]) -> RoutingTable:
    """Return what table_message() wrote."""
    models = {
        name: Route(frozenset(route["versions"]), route["labels"])
        for name, route in message["models"].items()
    }
    return RoutingTable(message["generation"], models)


def logging_message(configs: dict[str, logging_config_pb2.LoggingConfig]) -> dict[str, str]:
    """Return the models' logging_config as JSON has it."""
    return {name: base64.b64encode(each.SerializeToString()).decode() for name, each in configs.items()}


def logging_of(message: dict[str, str]) -> dict[str, logging_config_pb2.LoggingConfig]:
    """Return what logging_message() was given."""
    return {
        name: logging_config_pb2.LoggingConfig.FromString(base64.b64decode(text))
        for name, text in message.items()
    }


def error_message(error: StatusError) -> dict[str, Any]:
    """Return the answer to an order that could not be carried out."""
    return {"error": [int(error.code), error.message]}


def check(answer: dict[str, Any]) -> None:
    """Raise the StatusError that an answer holds."""
    if "error" in answer:
        code, message = answer["error"]
        raise StatusError(Code(code), message)
