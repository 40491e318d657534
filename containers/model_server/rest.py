"""The REST API, its paths and its status codes (tensorflow_serving/model_servers/http_rest_api_*.cc)."""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from model_server import examples, json_requests, json_responses, metadata, predict
from model_server.catalog import Catalog
from model_server.flags import Options
from model_server.status import Code, StatusError, from_exception, invalid_argument

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_INFERENCE_PATH = re.compile(_MODEL + r":(classify|regress|predict)", re.IGNORECASE)
_STATUS_PATH = re.compile(_MODEL + r"(/metadata)?", re.IGNORECASE)
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


class RestApi:
    """Answers paths and bodies; knows nothing of sockets. Errors are raised as StatusError."""

    def __init__(self, catalog: Catalog, options: Options) -> None:
        self._catalog = catalog
        self._check_method_names = options.enable_signature_method_name_check
        milliseconds = options.rest_api_timeout_in_ms
        self._timeout_seconds = milliseconds / 1000 if milliseconds > 0 else None

    def get(self, path: str) -> bytes:
        """Status or metadata of a model, a version or a label."""
        if path.rstrip("/").lower() == "/v1/models":
            raise invalid_argument("Missing model name in request.")
        match = _STATUS_PATH.fullmatch(path)
        if match is None:
            raise invalid_argument(f"Malformed request: GET {path}")
        spec = _model_spec(*match.groups()[:3])
        return self._metadata(spec) if match[4] else self._status(spec)

    def post(self, path: str, body: bytes) -> bytes:
        """Answer an inference."""
        match = _INFERENCE_PATH.fullmatch(path)
        if match is None:
            raise invalid_argument(f"Malformed request: POST {path}")
        spec = _model_spec(*match.groups()[:3])
        methods: dict[str, Callable[[model_pb2.ModelSpec, bytes], bytes]] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }
        return methods[match[4].lower()](spec, body)

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        response: get_model_status_pb2.GetModelStatusResponse = self._catalog.status(spec)
        return _json(_with_defaults(response))

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        with self._catalog.use(spec) as servable:
            resolved = model_pb2.ModelSpec(name=spec.name)
            resolved.version.value = servable.version
            signatures = _with_defaults(metadata.signature_map(servable))
        return _json(
            {"model_spec": _with_defaults(resolved), "metadata": {metadata.SIGNATURE_DEF: signatures}}
        )

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        document = json_requests.parse(body)
        key = json_requests.signature_name(document)
        with self._catalog.use(spec) as servable:
            signature = servable.signatures.get(key or predict.DEFAULT_SIGNATURE)
            if signature is None:
                raise invalid_argument(
                    f'Serving signature name: "{key or predict.DEFAULT_SIGNATURE}" not found in signature def'
                )
            asked = json_requests.predict_body(document, signature.inputs, key)
            if self._check_method_names:
                predict.check_method_name_of(signature)
            outputs = predict.run(servable, signature, asked.arrays, (), self._timeout_seconds)
        return json_responses.predictions(outputs) if asked.by_row else json_responses.outputs(outputs)

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        self._fill(request, body)
        with self._catalog.use(spec) as servable:
            response = examples.classify(servable, request, self._timeout_seconds, self._check_method_names)
        return json_responses.classifications(response.result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = regression_pb2.RegressionRequest(model_spec=spec)
        self._fill(request, body)
        with self._catalog.use(spec) as servable:
            response = examples.regress(servable, request, self._timeout_seconds, self._check_method_names)
        return json_responses.regressions(response.result)

    def _fill(
        self,
        request: classification_pb2.ClassificationRequest | regression_pb2.RegressionRequest,
        body: bytes,
    ) -> None:
        document = json_requests.parse(body)
        request.model_spec.signature_name = json_requests.signature_name(document)
        request.input.CopyFrom(json_requests.examples_input(document))


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


def _model_spec(name: str, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(name))
    if version is not None:
        if int(version) >= 2**63:
            raise invalid_argument(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if label is not None:
        spec.version_label = unquote(label)
    return spec


def _with_defaults(message: Message) -> Any:
    return json_format.MessageToDict(
        message, including_default_value_fields=True, preserving_proto_field_name=True
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
