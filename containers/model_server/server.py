"""One server: loads, opens its ports, answers, and drains when it is told to stop."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc

from model_server import ports, servable
from model_server.catalog import Catalog
from model_server.flags import Options
from model_server.health_servicer import HealthServicer
from model_server.rest import RestServer
from model_server.servicers import model_service, prediction_service
from model_server.status import Code, StatusError
from model_server.versions import LoadPolicy, ModelVersions

_LOG = logging.getLogger(__name__)
_HEALTH_SERVICES = ("", "tensorflow.serving.PredictionService", "PredictionService", "ModelService")
_LARGEST_MESSAGE_BYTES = 2**31 - 1


class ModelServer:
    """Serves one model from when it is loaded until `stop` is set."""

    def __init__(self, options: Options, host: str, drain_seconds: float, stop: threading.Event) -> None:
        self._options = options
        self._host = host
        self._drain_seconds = drain_seconds
        self._stop = stop
        self._model = ModelVersions(
            options.model_name,
            Path(options.model_base_path),
            LoadPolicy(
                poll_seconds=options.file_system_poll_wait_seconds,
                max_retries=options.max_num_load_retries,
                retry_interval_seconds=options.load_retry_interval_micros / 1e6,
            ),
            lambda directory, number: servable.load(directory, number, options),
        )
        self._catalog = Catalog({options.model_name: self._model})

    def serve(self) -> None:
        """Answer from the moment that a version is available until told to stop, then drain.

        Raises StatusError where the server cannot start: a version that does not load, a port in use.
        """
        self._model.start()
        threading.Thread(target=self._stop_looking, name="stop", daemon=True).start()
        error = self._model.wait_until_settled()
        if error is not None:
            raise self._not_available(error)
        if self._stop.is_set():
            _LOG.info("stopped before a version was available")
            return
        rest = self._open_rest()
        try:
            grpc_server, health_servicer = self._open_grpc()
        except BaseException:
            if rest:
                rest.server_close()
            raise
        grpc_server.start()
        if rest:
            rest.start()
        _LOG.info("listening: %s", ", ".join(self._addresses(rest)))
        self._stop.wait()
        self._drain(grpc_server, health_servicer, rest)

    def _stop_looking(self) -> None:
        self._stop.wait()
        self._model.stop()

    def _not_available(self, error: StatusError) -> StatusError:
        number = max(status[0] for status in self._model.statuses())
        return StatusError(
            Code.UNKNOWN,
            f"1 servable(s) did not become available: {{{{name: {self._options.model_name} "
            f"version: {number}}} due to error: {error}, }}",
        )

    def _open_grpc(self) -> tuple[grpc.Server, HealthServicer]:
        options = self._options
        server = grpc.server(
            ThreadPoolExecutor(max(1, options.grpc_max_threads), thread_name_prefix="grpc"),
            options=[
                # Two servers on one port would each get half of the requests; better fail.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
                *channel_arguments(options.grpc_channel_arguments),
            ],
        )
        health_servicer = HealthServicer((*_HEALTH_SERVICES, options.model_name))
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        server.add_generic_rpc_handlers(
            (
                prediction_service(self._catalog, options.enable_signature_method_name_check),
                model_service(self._catalog),
            )
        )
        if options.port:
            _bind(server, f"{self._host}:{options.port}", "--port")
        if options.grpc_socket_path:
            _bind(server, f"unix:{options.grpc_socket_path}", "--grpc_socket_path")
        return server, health_servicer

    def _open_rest(self) -> RestServer | None:
        options = self._options
        if not options.rest_api_port:
            return None
        if options.rest_api_port == options.port:
            _LOG.error("--rest_api_port equals --port: REST is not served")
            return None
        try:
            return RestServer((self._host, options.rest_api_port), self._catalog, options)
        except OSError as error:
            raise ports.unavailable(
                "--rest_api_port", f"{self._host}:{options.rest_api_port}", error
            ) from error

    def _addresses(self, rest: RestServer | None) -> list[str]:
        options = self._options
        grpc_addresses = [f"gRPC {self._host}:{options.port}"] if options.port else []
        if options.grpc_socket_path:
            grpc_addresses.append(f"gRPC unix:{options.grpc_socket_path}")
        return grpc_addresses + ([f"REST {self._host}:{options.rest_api_port}"] if rest else [])

    def _drain(
        self, grpc_server: grpc.Server, health_servicer: HealthServicer, rest: RestServer | None
    ) -> None:
        _LOG.info("draining for up to %g seconds", self._drain_seconds)
        deadline = time.monotonic() + self._drain_seconds
        health_servicer.drain()
        done = grpc_server.stop(self._drain_seconds)
        if rest:
            rest.drain(deadline)
        done.wait(max(0.0, deadline - time.monotonic()) + 1)
        _LOG.info("stopped")


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


def _bind(server: grpc.Server, address: str, flag: str) -> None:
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ports.unavailable(flag, address, error) from error
    if not bound:
        raise ports.unavailable(flag, address, OSError("not bound"))
