"""A worker: a process that answers inference beside the lead, and passes everything else on to it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from model_server.api.grpc import connections
from model_server.api.grpc.grpc_server import Address, GrpcServer, connection_age_seconds
from model_server.api.grpc.servicers import prediction_service
from model_server.base import tls
from model_server.base.flags import Options
from model_server.base.session_config import session_config
from model_server.base.settings import Settings
from model_server.base.status import from_exception
from model_server.loading import loading
from model_server.models.generations import Generation
from model_server.models.servable_store import ServableStore
from model_server.observability import metrics, request_log
from model_server.processes import control
from model_server.processes.control import Connection, Gone
from model_server.tensorflow_c import loading_threads

_LOG = logging.getLogger(__name__)
# These may take long, or wait for requests to end; the others take effect in the order in which they come.
_IN_THEIR_OWN_TIME = {"load", "unload", "hand_over"}
_WATCH = "/grpc.health.v1.Health/Watch"
_LOOK_SECONDS = 1.0
_MOST_MUTE_LOOKS = 25
_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


def run(options: Options, settings: Settings, what: str) -> None:
    """Do what the lead says until it has ended, or says to end; `what` is the value of fleet.WORKER."""
    own, shared, directory = what.split(":", 2)
    connection = Connection(socket.socket(fileno=int(own)))
    orders = Orders(options, settings, Generation(int(shared)), Path(directory))
    loaders = loading_threads.make(0, "order", session_config(options))
    try:
        connection.send({"started": os.getpid()})
        while not orders.has_ended:
            message = connection.receive()
            number, order = message["number"], message["order"]
            if order.keys() & _IN_THEIR_OWN_TIME:
                loaders.submit(_answer_later, connection, orders, number, order)
            else:
                connection.send({"number": number, **orders.carry_out(order)})
    except Gone:
        os._exit(0)  # without the lead nobody knows what is to be served


def _answer_later(connection: Connection, orders: Orders, number: int, order: dict[str, Any]) -> None:
    try:
        connection.send({"number": number, **orders.carry_out(order)})
    except Gone:
        os._exit(0)


class Orders:
    """Carries out what fleet.py orders."""

    def __init__(self, options: Options, settings: Settings, generation: Generation, directory: Path) -> None:
        self.has_ended = False
        self._drains = threading.Event()
        self._options = options
        self._settings = settings
        self._lead = f"unix:{directory}/lead.sock"
        self._store = ServableStore(lambda path, number: loading.load(path, number, options), generation)
        metrics.start(directory / f"{os.getpid()}.counters", lambda name: name in self._store.table.models)
        request_log.start(settings)
        self._server: GrpcServer | None = None

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return what to answer."""
        ((verb, what),) = order.items()
        carry_out: Callable[[Any], None] = getattr(self, f"_{verb}")
        try:
            carry_out(what)
        except Exception as error:
            return control.error_message(from_exception(error))
        return {}

    def _load(self, what: tuple[str, int, str]) -> None:
        name, number, directory = what
        self._store.load(name, number, Path(directory))

    def _table(self, what: dict[str, Any]) -> None:
        self._store.prepare(control.table_of(what))

    def _unload(self, what: tuple[str, int]) -> None:
        name, number = what
        if self._store.has(name, number):
            self._store.unload(name, number)

    def _logging(self, what: dict[str, str]) -> None:
        request_log.LOGS.configure(control.logging_of(what))

    def _serve(self, _: bool) -> None:
        options = self._options
        predictions = prediction_service(self._store, options.enable_signature_method_name_check)
        self._server = GrpcServer(options, self._settings, self._store, predictions, [Relay(self._lead)])
        certificates = tls.read(options.ssl_config_file) if options.ssl_config_file else None
        self._server.listen([Address(f"{self._settings.host}:{options.port}", "--port")], certificates)
        self._server.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> None:
        """End the process if its gRPC loop hangs: only its clients notice that; the lead starts another."""
        mute_looks = 0
        while not self._drains.wait(_LOOK_SECONDS):
            mute_looks = 0 if self._server is None or self._server.is_turning else mute_looks + 1
            if mute_looks > _MOST_MUTE_LOOKS:
                _LOG.critical("the gRPC loop of this worker hangs: the process ends")
                logging.shutdown()
                os._exit(_EXIT_CODE)

    def _hand_over(self, _: bool) -> None:
        age = connection_age_seconds(self._options)
        connections.leave(self._options.port, age, self._settings.drain_seconds, self._drains)

    def _drain(self, seconds: float) -> None:
        self.has_ended = True
        self._drains.set()
        if self._server:
            self._server.stop(seconds).wait(seconds + 1)
        request_log.LOGS.close()


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Asks the lead whatever comes, as it came."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of any method."""
        method = handler_call_details.method
        if method == _WATCH:
            ask_many = self._channel.unary_stream(method, None, None)
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: _answers(ask_many, request, context)
            )
        ask = self._channel.unary_unary(method, None, None)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: _answer(ask, request, context))


def _answer(ask: Any, request: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        answered: bytes = ask(request, **_of(context))
        return answered
    except grpc.RpcError as error:
        _repeat(error, context)
        return b""


def _answers(ask: Any, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    call = ask(request, **_of(context))
    context.add_callback(call.cancel)
    try:
        yield from call
    except grpc.RpcError as error:
        _repeat(error, context)


def _of(context: grpc.ServicerContext) -> dict[str, Any]:
    given = [(key, value) for key, value in context.invocation_metadata() if not key.startswith("user-agent")]
    return {"timeout": context.time_remaining(), "metadata": given}


def _repeat(error: Any, context: grpc.ServicerContext) -> None:
    context.set_code(error.code())
    context.set_details(error.details() or "")
    context.set_trailing_metadata(error.trailing_metadata() or ())
