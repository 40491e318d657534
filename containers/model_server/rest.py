"""The HTTP server of the REST API: connections, bodies, headers and status codes."""

from __future__ import annotations

import gzip
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from model_server import json_responses
from model_server.catalog import Catalog
from model_server.flags import Options
from model_server.rest_api import RestApi
from model_server.status import Code, StatusError, from_exception, invalid_argument

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
_IDLE_CONNECTION_SECONDS = 300
_STOP_CHECK_SECONDS = 0.1


class RestServer(ThreadingHTTPServer):
    """HTTP/1.1 with a thread a connection, of which `rest_api_num_threads` work at one time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], catalog: Catalog, options: Options) -> None:
        super().__init__(address, _Handler)
        self.api = RestApi(catalog, options)
        self.allow_cors = options.rest_api_enable_cors_support
        self.slots = threading.BoundedSemaphore(max(1, options.rest_api_num_threads))
        self.draining = False
        self._in_flight = 0
        self._idle = threading.Condition()

    def server_bind(self) -> None:
        """Bind, without HTTPServer's reverse look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)

    def start(self) -> None:
        """Accept connections, in the background."""
        threading.Thread(
            target=self.serve_forever, args=(_STOP_CHECK_SECONDS,), name="rest", daemon=True
        ).start()

    def drain(self, deadline: float) -> None:
        """Accept nothing more, and wait for the answers under way until `deadline` (time.monotonic())."""
        self.draining = True
        self.shutdown()
        self.server_close()
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0, max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a client that went away is no error of ours."""

    def begin(self) -> None:
        """Count a request in, as soon as its head is read."""
        with self._idle:
            self._in_flight += 1

    def end(self) -> None:
        """Count it out, after its answer is written."""
        with self._idle:
            self._in_flight -= 1
            self._idle.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: RestServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_CONNECTION_SECONDS
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(lambda _: self.server.api.get(self._path()))

    def do_POST(self) -> None:
        self._answer(lambda body: self.server.api.post(self._path(), body))

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

    def _answer(self, answer: Callable[[bytes], bytes]) -> None:
        self.server.begin()
        try:
            body = self._body()
            if not self._path().lower().startswith("/v1/"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            with self.server.slots:
                self._send(200, answer(body))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as raised:
            error = from_exception(raised)
            if not isinstance(raised, StatusError) and error.code is Code.INTERNAL:
                _LOG.exception("%s %s failed", self.command, self.path)
            self._send(_HTTP_STATUS.get(error.code, 500), json_responses.error(error.message))
        finally:
            self.server.end()

    def _body(self) -> bytes:
        try:
            body = self._chunked() if self._is_chunked() else self._counted()
        except ValueError:
            self.close_connection = True  # where the next request begins is anybody's guess
            raise invalid_argument(
                "Malformed request: the length of the body is not given correctly"
            ) from None
        if self.headers.get("Content-Encoding", "").lower() != "gzip":
            return body
        try:
            return gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            raise invalid_argument("Malformed request: the body is not gzip") from None

    def _is_chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _counted(self) -> bytes:
        length = int(self.headers.get("Content-Length", "0"))
        if length < 0:
            raise ValueError(length)
        return self.rfile.read(length)

    def _chunked(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(1024).split(b";")[0], 16):
            if size < 0:
                raise ValueError(size)
            chunks.append(self.rfile.read(size))
            self.rfile.readline(1024)
        while self.rfile.readline(1024).strip():  # trailers
            pass
        return b"".join(chunks)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.server.allow_cors:
            for name, value in _CORS_HEADERS.items():
                self.send_header(name, value)
        if self.server.draining:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
