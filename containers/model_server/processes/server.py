"""One server: loads, opens its ports, answers, and drains when it is told to stop."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence

from grpc_health.v1 import health_pb2_grpc

from model_server.api.grpc import connections, monitoring, profiler_service
from model_server.api.grpc.grpc_server import Address, GrpcServer, connection_age_seconds
from model_server.api.grpc.health_servicer import HealthServicer
from model_server.api.grpc.servicers import model_service, prediction_service
from model_server.api.rest.rest import RestServer
from model_server.base import ports, tls
from model_server.base.flags import Options
from model_server.base.session_config import session_config
from model_server.base.settings import Settings
from model_server.base.stop_signals import StopSignals
from model_server.batching import batching_parameters
from model_server.loading import loading
from model_server.models import model_config
from model_server.models.catalog import Catalog
from model_server.models.model_config import ModelConfig
from model_server.models.models import Models
from model_server.models.routing import RoutingTable
from model_server.models.version_states import LoadPolicy
from model_server.observability import metrics, metrics_page, request_log
from model_server.processes import fleet, processes
from model_server.processes.shared_store import SharedStore
from model_server.tensorflow_c import loading_threads, numerics, runtime

_LOG = logging.getLogger(__name__)
_HEALTH_SERVICES = ("", "tensorflow.serving.PredictionService", "PredictionService", "ModelService")


class ModelServer:
    """Serves models from when they are loaded until `stop` is requested."""

    def __init__(self, options: Options, settings: Settings, stop: StopSignals) -> None:
        self._options = options
        self._settings = settings
        self._host = settings.host
        self._drain_seconds = settings.drain_seconds
        self._stop = stop
        self._tls = tls.read(options.ssl_config_file) if options.ssl_config_file else None
        self._metrics_path = monitoring.metrics_path(options.monitoring_config_file)
        request_log.start(settings)
        # What is wrong with it shall not look like a version that does not load.
        config = session_config(options)
        batching_parameters.common(options)
        self._fleet = fleet.Fleet(processes.number(options, settings) - 1)
        self._store = store = SharedStore(
            lambda directory, number: loading.load(directory, number, options), self._fleet
        )
        metrics.start(None, lambda name: name in store.table.models)
        self._health = HealthServicer(_HEALTH_SERVICES)
        self._models = Models(
            store,
            LoadPolicy(
                poll_seconds=options.file_system_poll_wait_seconds,
                max_retries=options.max_num_load_retries,
                retry_interval_seconds=options.load_retry_interval_micros / 1e6,
                settle_seconds=settings.settle_seconds,
                unload_when_empty=settings.unload_when_empty,
                published_only=settings.published_only,
            ),
            loading_threads.make(options.num_load_threads, "load", config),
            loading_threads.make(options.num_unload_threads, "unload", config),
            self._publish,
            self._log_requests,
            options.allow_version_labels_for_unavailable_models,
        )
        self._catalog = Catalog(store, self._models)

    def serve(self) -> None:
        """Answer from the moment that all models are available until told to stop, then drain.

        The REST port says so from the start (/livez, /readyz). Raises StatusError where the server cannot
        start: a config that is wrong, a model that does not load, a port in use.
        """
        config = model_config.from_options(self._options)
        # Beside another server, every request that this one takes is one that it must answer.
        rest = None if self._settings.share_ports else self._open_rest()
        try:
            if rest:
                rest.start()
            self._fleet.start()
            names = self._models.apply(config)
            threading.Thread(target=self._stop_looking, name="stop", daemon=True).start()
            self._models.wait_until_settled(names, what="servable")
            if self._stop.requested.is_set():
                _LOG.info("stopped before all models were available")
                return
            self._fleet.wait_until_joined()
            if self._settings.share_ports and (rest := self._open_rest()):
                rest.ready.set()
                rest.start()
            grpc_server = self._open_grpc()
        except BaseException:
            if rest:
                rest.server_close()
            raise
        grpc_server.start()
        self._fleet.serve()
        if rest:
            rest.grpc_answers = lambda: grpc_server.is_turning
            rest.ready.set()
        self._follow_config_file()
        _LOG.info("listening: %s", ", ".join(self._addresses(rest)))
        self._stop.requested.wait()
        if self._stop.hands_over.is_set():
            self._hand_over()
        self._drain(grpc_server, rest)

    def _publish(self, table: RoutingTable) -> None:
        self._store.publish(table)
        self._health.show(table)

    def _log_requests(self, configs: Sequence[ModelConfig]) -> None:
        by_model = {each.name: each.logging for each in configs if each.logging}
        request_log.LOGS.configure(by_model)
        self._fleet.log_requests(by_model)

    def _follow_config_file(self) -> None:
        path, seconds = self._options.model_config_file, self._options.model_config_file_poll_wait_seconds
        if path and seconds > 0:
            self._models.poll_file(path, seconds)

    def _stop_looking(self) -> None:
        self._stop.requested.wait()
        self._models.stop()

    def _open_grpc(self) -> GrpcServer:
        options = self._options
        predictions = prediction_service(self._catalog, options.enable_signature_method_name_check)
        others = [model_service(self._catalog, self._settings.reload)]
        if options.enable_profiler:
            others.append(profiler_service.profiler_service())
        is_shared = self._fleet.size > 0
        server = GrpcServer(options, self._settings, self._store, predictions, others)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server.grpc)
        addresses = [Address(f"{self._host}:{options.port}", "--port")] if options.port else []
        if options.grpc_socket_path:
            addresses.append(Address(f"unix:{options.grpc_socket_path}", "--grpc_socket_path"))
        if is_shared:
            addresses.append(Address(self._fleet.lead_address, "MODEL_SERVER_PROCESSES", is_private=True))
        server.listen(addresses, self._tls)
        return server

    def _open_rest(self) -> RestServer | None:
        options = self._options
        if not options.rest_api_port:
            return None
        if options.rest_api_port == options.port:
            _LOG.error("--rest_api_port equals --port: REST is not served")
            return None
        try:
            server = RestServer((self._host, options.rest_api_port), self._catalog, options, self._settings)
        except OSError as error:
            raise ports.unavailable(
                "--rest_api_port", f"{self._host}:{options.rest_api_port}", error
            ) from error
        server.metrics_path, server.metrics_page = self._metrics_path, self._metrics
        server.numerics = json.dumps(numerics.facts(options, self._settings)).encode()
        if self._settings.rest_tls and self._tls:
            server.serve_over(self._tls.ssl_context())
        return server

    def _metrics(self) -> bytes:
        """Return the page of metrics: of this process, and of those whose files are in the directory."""
        routes = self._store.table.models.items()
        in_service = {(name, number) for name, route in routes for number in route.versions}
        version = runtime.tensorflow_version()
        build = {"version": f"{version}+slipway", "tensorflow_version": version}
        return metrics_page.page(metrics.RECORDER, self._fleet.counters(), in_service, build)

    def _addresses(self, rest: RestServer | None) -> list[str]:
        options = self._options
        grpc_addresses = [f"gRPC {self._host}:{options.port}"] if options.port else []
        if options.grpc_socket_path:
            grpc_addresses.append(f"gRPC unix:{options.grpc_socket_path}")
        return grpc_addresses + ([f"REST {self._host}:{options.rest_api_port}"] if rest else [])

    def _hand_over(self) -> None:
        """Let the gRPC port's clients go to the server that listens beside this one, none in mid-request."""
        age = connection_age_seconds(self._options)
        if not age:
            _LOG.info("handing over: connections have no greatest age (%s), and are cut off", connections.AGE)
            return
        _LOG.info("handing over: taking no more connections; those that there are end within %g seconds", age)
        workers = threading.Thread(target=self._fleet.hand_over, daemon=True)
        workers.start()
        left = connections.leave(self._options.port, age, self._drain_seconds, self._stop.at_once)
        if self._stop.at_once.is_set():
            return
        workers.join()
        _LOG.info("handed over" if left else "handed over, but for clients that did not leave")

    def _drain(self, grpc_server: GrpcServer, rest: RestServer | None) -> None:
        _LOG.info("draining for up to %g seconds", self._drain_seconds)
        deadline = time.monotonic() + self._drain_seconds
        self._health.drain()
        done = grpc_server.stop(self._drain_seconds)
        if rest:
            rest.drain(deadline)
        self._fleet.drain(max(0.0, deadline - time.monotonic()))
        done.wait(max(0.0, deadline - time.monotonic()) + 1)
        request_log.LOGS.close()
        _LOG.info("stopped")
