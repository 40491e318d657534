"""The HTTP server of the REST API: connections, bodies, headers and status codes."""

from __future__ import annotations

import gzip
import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from model_server.api.rest import http_bodies, json_responses
from model_server.api.rest.http_connections import Connections, Incoming
from model_server.api.rest.rest_api import RestApi
from model_server.base.flags import Options
from model_server.base.settings import Settings
from model_server.base.status import Code, StatusError, from_exception, invalid_argument
from model_server.models.catalog import Catalog
from model_server.observability import metrics_page
from model_server.requests import guards
from model_server.tensorflow_c import numerics

_LOG = logging.getLogger(__name__)
_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
LIVE, READY = PROBES = ("/livez", "/readyz")
_IDLE_CONNECTION_SECONDS = 300.0
_HEAD_SECONDS = 10.0
_BODY_SECONDS = 10.0
_WRITE_SECONDS = 60.0
_RESERVED_CONNECTIONS = 16  # for status, health and metrics, while inference fills the rest
_HELD_BODIES = 2
_NO_ROOM = json_responses.error("All connections are busy (MODEL_SERVER_REST_CONNECTIONS). Try again.")
_NO_ROOM_HEAD = (
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(_NO_ROOM)}\r\n\r\n"
).encode()
_STOP_CHECK_SECONDS = 0.1
_LINGER_SECONDS = 2.0
_FIRST_REQUEST_SECONDS = 2.0
_RETRY_AFTER_SECONDS = "1"
_BUSY = "The server is busy: {} requests are being answered or wait (MODEL_SERVER_REST_QUEUE). Try again."


class RestServer(ThreadingHTTPServer):
    """HTTP/1.1 with a thread a connection, of which `rest_api_num_threads` run inference at one time.

    A request counts as waiting once its body is there: half of one keeps nobody out.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], catalog: Catalog, options: Options, settings: Settings
    ) -> None:
        super().__init__(address, _Handler)
        self.api = RestApi(catalog, options)
        self.allow_cors = options.rest_api_enable_cors_support
        threads = max(1, options.rest_api_num_threads)
        self.slots = threading.BoundedSemaphore(threads)
        most_connections = max(1, settings.rest_connections)
        self._connections = Connections(most_connections)
        self.most_in_flight = min(
            threads + settings.rest_queue, max(1, most_connections - _RESERVED_CONNECTIONS)
        )
        self.most_bytes = int(settings.rest_body_megabytes * 1e6)
        self._held_bytes = 0
        self.metrics_path = ""
        self.metrics_page: Callable[[], bytes] = bytes
        self.numerics = b"{}"
        self.ready = threading.Event()
        self.grpc_answers: Callable[[], bool] = lambda: True
        self.draining = False
        self.first_request_seconds = _FIRST_REQUEST_SECONDS
        self._in_flight = self._begun = 0
        self._unasked: set[Any] = set()
        self._idle = threading.Condition()

    def server_bind(self) -> None:
        """Bind, without HTTPServer's reverse look-up of the host's name, which may take seconds.

        A server in this one's place can listen before this one stops; that two are not on one port by
        mistake is seen by ports.require_free.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        TCPServer.server_bind(self)

    def serve_over(self, context: ssl.SSLContext) -> None:
        """Speak TLS; the handshake is made by a connection's own thread, so that none holds up the others."""
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def start(self) -> None:
        """Accept connections, in the background."""
        threading.Thread(
            target=self.serve_forever, args=(_STOP_CHECK_SECONDS,), name="rest", daemon=True
        ).start()

    def drain(self, deadline: float) -> None:
        """Accept nothing more, and wait for the answers under way until `deadline` (time.monotonic()).

        A connection whose first request is still on its way is waited for too, but not long.
        """
        self.draining = True
        self.shutdown()
        self._take_waiting()
        self.server_close()
        soon = min(deadline, time.monotonic() + self.first_request_seconds)
        with self._idle:
            self._idle.wait_for(lambda: not self._unasked, max(0.0, soon - time.monotonic()))
            self._idle.wait_for(lambda: self._begun == 0, max(0.0, deadline - time.monotonic()))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection to a thread of its own, or refuse it."""
        if not self._connections.admit(request):
            with suppress(OSError):
                request.setblocking(False)
                if not isinstance(request, ssl.SSLSocket):  # before its handshake there is nobody to tell
                    request.send(_NO_ROOM_HEAD + _NO_ROOM)
            self.shutdown_request(request)
            return
        with self._idle:
            self._unasked.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection, whether it asked anything or not."""
        self.has_asked(request)
        self._connections.closed(request)
        super().shutdown_request(request)

    def has_asked(self, request: Any) -> None:
        """Note that the connection's first request has been answered, or did not come."""
        with self._idle:
            self._unasked.discard(request)
            self._idle.notify_all()

    def _take_waiting(self) -> None:
        """Take the connections that clients have made and nobody has accepted: closing would reset them."""
        self.timeout, waiting = 0.0, True

        def nobody() -> None:
            nonlocal waiting
            waiting = False

        self.handle_timeout = nobody  # type: ignore[method-assign]
        while waiting:
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a client that went away is no error of ours."""

    def begin(self) -> None:
        """Count a request in, as soon as its head is read: a drain waits for it."""
        with self._idle:
            self._begun += 1

    def end(self, held_bytes: int) -> None:
        """Count it out, after its answer is written."""
        with self._idle:
            self._begun -= 1
            self._held_bytes -= held_bytes
            self._idle.notify_all()

    def require_room(self) -> None:
        """Raise StatusError if another inference would be one too many."""
        if self._in_flight >= self.most_in_flight:
            raise StatusError(Code.UNAVAILABLE, _BUSY.format(self.most_in_flight))

    @contextmanager
    def admitted(self, connection: Any) -> Iterator[None]:
        """Hold a place among those that run or wait, and one of the threads. Raises StatusError."""
        with self._idle:
            self.require_room()
            self._in_flight += 1
        self._connections.works(connection)
        try:
            with self.slots:
                yield
        finally:
            with self._idle:
                self._in_flight -= 1

    def waits(self, connection: Any) -> None:
        """Record that the connection waits for its client."""
        self._connections.waits(connection)

    def hold(self, size: int) -> None:
        """Count bytes of a body in. Raises BodyError if all bodies together become too large."""
        with self._idle:
            self._held_bytes += size
            if self._held_bytes > _HELD_BODIES * self.most_bytes:
                self._held_bytes -= size
                message = "The bodies of all requests together are too large. Try again."
                raise http_bodies.BodyError(HTTPStatus.SERVICE_UNAVAILABLE, message)


class _Handler(BaseHTTPRequestHandler):
    server: RestServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True
    is_cut_off = False  # what the client sends of a request after its answer is unread

    def setup(self) -> None:
        """Read with a deadline, whatever is read."""
        super().setup()
        self.rfile.close()
        self.incoming = Incoming(self.connection)
        self.rfile = self.reader = io.BufferedReader(self.incoming)
        self.held_bytes = 0

    def handle_one_request(self) -> None:
        """Read a request, and answer it."""
        try:
            self.server.waits(self.connection)
            self.incoming.allow(_IDLE_CONNECTION_SECONDS)
            if not self.reader.peek(1):
                self.close_connection = True
                return
            self.incoming.allow(_HEAD_SECONDS)
            super().handle_one_request()
        except TimeoutError:
            self.close_connection = True
        finally:
            self.server.has_asked(self.connection)

    def finish(self) -> None:
        """Close; an answer to half a request is kept from being lost before."""
        super().finish()
        if self.is_cut_off:
            self._linger()

    def _linger(self) -> None:
        # Closing with unread bytes resets the connection: a client that still sends never sees the answer.
        ends = time.monotonic() + _LINGER_SECONDS
        with suppress(OSError):
            self.connection.settimeout(_LINGER_SECONDS)
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < ends and self.connection.recv(2**16):
                pass

    def do_GET(self) -> None:
        if self._path() in PROBES:
            self._probe()
            return
        if self._path() == numerics.PATH:
            self._send(200, self.server.numerics)
            return
        self._answer(lambda _: self.server.api.get(self._path()))

    def do_POST(self) -> None:
        self._answer(lambda body: self.server.api.post(self._path(), body))

    def do_other(self) -> None:
        """Answer a method that no path has."""
        self._answer(self._malformed)

    do_DELETE = do_HEAD = do_PATCH = do_PUT = do_other  # noqa: N815 (http.server looks for these names)

    def _malformed(self, _: bytes) -> bytes:
        raise invalid_argument(f"Malformed request: {self.command} {self._path()}")

    def do_OPTIONS(self) -> None:
        """Answer a browser's preflight request; only with --rest_api_enable_cors_support."""
        origin = self.headers.get("Origin", "")
        allowed = self.server.allow_cors and re.match("https?://", origin)
        self._send(200 if allowed else 400, b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class calls it so)
        """One line a request would drown the others."""

    def version_string(self) -> str:
        return "model_server"

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _probe(self) -> None:
        """Answer an orchestrator: alive while gRPC is not mute, ready from the loaded models to the drain."""
        alive = self.server.grpc_answers()
        ready = alive and self.server.ready.is_set() and not self.server.draining
        passes = alive if self._path() == LIVE else ready
        self._send(200 if passes else 503, self.server.api.probe(ready))

    def _answer(self, answer: Callable[[bytes], bytes]) -> None:
        server = self.server
        server.begin()
        try:
            if self.command == "POST":
                self._require_room()
            body = self._body()
            if self.server.metrics_path and self._path() == self.server.metrics_path:
                self._send(200, self.server.metrics_page(), metrics_page.CONTENT_TYPE)
                return
            if not self._path().lower().startswith("/v1/"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            if self.command == "POST" and not self.server.ready.is_set():
                raise self.server.api.not_ready()
            if self.command == "POST":
                with server.admitted(self.connection):
                    answered = answer(body)
            else:  # what says how the server is does not wait for those that keep it busy
                answered = answer(body)
            self._send(200, answered)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except http_bodies.BodyError as unreadable:
            self.close_connection = self.is_cut_off = True  # where the next request begins is anybody's guess
            self._send(unreadable.status, json_responses.error(str(unreadable)))
        except Exception as raised:
            error = from_exception(raised)
            if not isinstance(raised, StatusError) and error.code is Code.INTERNAL:
                guards.caught("answering over HTTP")
            self._send(_HTTP_STATUS.get(error.code, 500), json_responses.error(error.message))
        finally:
            server.end(self.held_bytes)
            self.held_bytes = 0

    def _require_room(self) -> None:
        """Refuse an inference before its body is read. Raises StatusError, or BodyError, which closes."""
        try:
            self.server.require_room()
        except StatusError as error:
            raise http_bodies.BodyError(HTTPStatus.SERVICE_UNAVAILABLE, error.message) from None

    def _body(self) -> bytes:
        self.incoming.allow(_BODY_SECONDS)
        try:
            return http_bodies.read(self.rfile, self.headers, self.server.most_bytes, self._hold)
        except TimeoutError as error:
            message = "The body did not arrive in time: 10 s, and what it takes at 32 KiB/s"
            raise http_bodies.BodyError(HTTPStatus.REQUEST_TIMEOUT, message) from error

    def _hold(self, size: int) -> None:
        self.server.hold(size)
        self.held_bytes += size

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server cannot read as a request; JSON, but for paths that are not the API's."""
        if code == HTTPStatus.NOT_FOUND:
            super().send_error(code, message, explain)
            return
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = http.client.HTTPMessage()
        self._send(code, json_responses.error(f"Malformed request: {message or HTTPStatus(code).phrase}"))

    def _send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.server.waits(self.connection)
        self.connection.settimeout(_WRITE_SECONDS)
        self.send_response(status)
        if http_bodies.takes_gzip(self.headers, body):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Vary", "Accept-Encoding")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", _RETRY_AFTER_SECONDS)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.server.allow_cors:
            for name, value in _CORS_HEADERS.items():
                self.send_header(name, value)
        if self.server.draining or self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
