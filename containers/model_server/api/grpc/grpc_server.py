"""The gRPC side of one process: its addresses, its handlers, and the loop that answers inference."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from model_server.api.grpc import connections
from model_server.api.grpc.grpc_loop import GrpcLoop, handler_of
from model_server.api.grpc.servicers import PREDICTION_SERVICE
from model_server.base import ports
from model_server.base.flags import Options
from model_server.base.settings import Settings
from model_server.base.tls import TlsFiles
from model_server.models.servable_store import ServableStore
from model_server.requests import thread_pools
from model_server.requests.inference import Inference

if TYPE_CHECKING:
    from model_server.api.grpc.servicers import Handlers

_LARGEST_MESSAGE_BYTES = 2**31 - 1
_INFERENCE = ("Predict", "Classify", "Regress")


@dataclass(frozen=True)
class Address:
    """Where to listen, the flag that says so, and whether clients from elsewhere come in here."""

    text: str
    flag: str
    is_private: bool = False


class GrpcServer:
    """Answers from start() until stop()."""

    def __init__(
        self,
        options: Options,
        settings: Settings,
        store: ServableStore,
        predictions: Handlers,
        others: Iterable[Handlers],
    ) -> None:
        self._server = grpc.server(
            thread_pools.started(max(1, options.grpc_max_threads), "grpc"),
            options=_server_options(options.grpc_channel_arguments),
        )
        self._server.add_generic_rpc_handlers((predictions, *others))
        paths = {f"/{PREDICTION_SERVICE}/{name}": name for name in _INFERENCE}
        inference = Inference(
            store,
            {name: handler_of(predictions, path) for path, name in paths.items()},
            max(1, options.grpc_max_threads),
            check_method_names=options.enable_signature_method_name_check,
            sharing=settings.batching,
        )
        self._loop = GrpcLoop(
            self._server,
            paths,
            inference,
            most_held=settings.max_queued_requests,
            most_held_bytes=settings.max_queued_mebibytes * 2**20,
        )

    @property
    def grpc(self) -> grpc.Server:
        """What services of other modules are added to."""
        return self._server

    def listen(self, addresses: Sequence[Address], tls: TlsFiles | None) -> None:
        """Take the addresses. Raises StatusError naming the flag of one that cannot be had."""
        for address in addresses:
            credentials = tls.grpc_credentials() if tls and not address.is_private else None
            self._bind(address, credentials)

    def start(self) -> None:
        """Answer from now on."""
        self._loop.start()

    @property
    def is_turning(self) -> bool:
        """Return whether the loop that answers does its work: a thread may live and hang."""
        return self._loop.is_turning

    def stop(self, grace_seconds: float) -> threading.Event:
        """Take no more calls; the event is set when those in flight have ended or were cut off."""
        return self._server.stop(grace_seconds)

    def _bind(self, address: Address, credentials: Any) -> None:
        try:
            if credentials:
                bound = self._server.add_secure_port(address.text, credentials)
            else:
                bound = self._server.add_insecure_port(address.text)
        except RuntimeError as error:
            raise ports.unavailable(address.flag, address.text, error) from error
        if not bound:
            raise ports.unavailable(address.flag, address.text, OSError("not bound"))


def _server_options(given: str) -> list[tuple[str, int | str]]:
    """Return gRPC's options; those that are given win."""
    ours: dict[str, int | str] = {
        # The processes of one server share its port, and a server in its place listens there before it stops.
        # That no other two are on one port by mistake is seen by ports.require_free.
        "grpc.so_reuseport": 1,
        "grpc.max_receive_message_length": _LARGEST_MESSAGE_BYTES,
        "grpc.max_send_message_length": -1,
    }
    return list({**ours, **dict(channel_arguments(given))}.items())


def connection_age_seconds(options: Options) -> float:
    """Return how old a connection gets before its client is sent elsewhere; 0: never."""
    return float(dict(channel_arguments(options.grpc_channel_arguments)).get(connections.AGE, 0)) / 1000


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """--grpc_channel_arguments: "key=value,key=value", each value an int if it reads as one."""
    arguments: list[tuple[str, int | str]] = []
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        try:
            arguments.append((key, int(value)))
        except ValueError:
            arguments.append((key, value))
    return arguments
