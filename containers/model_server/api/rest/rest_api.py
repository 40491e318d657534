"""What the REST API answers to which path (tensorflow_serving/model_servers/http_rest_api_*.cc)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import classification_pb2, model_pb2, regression_pb2

from model_server.api.rest import json_requests, json_responses
from model_server.base.flags import Options
from model_server.base.status import Code, StatusError, from_exception, invalid_argument, naming
from model_server.models.catalog import Catalog
from model_server.observability import request_facts
from model_server.observability.request_facts import FACTS
from model_server.requests import examples, metadata, predict

_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_INFERENCE_PATH = re.compile(_MODEL + r":(classify|regress|predict)", re.IGNORECASE)
_STATUS_PATH = re.compile(_MODEL + r"(/metadata)?", re.IGNORECASE)

_VERSION_DIGITS = 64  # with zeros in front; Python refuses to read thousands
_QUOTED = 100


class RestApi:
    """Answers paths and bodies; knows nothing of sockets. Errors are raised as StatusError."""

    def __init__(self, catalog: Catalog, options: Options) -> None:
        self._catalog = catalog
        self._check_method_names = options.enable_signature_method_name_check
        milliseconds = options.rest_api_timeout_in_ms
        self._timeout_seconds = milliseconds / 1000 if milliseconds > 0 else None

    def get(self, path: str) -> bytes:
        """Status or metadata of a model, a version or a label, or what there is of all models.

        The official server has no list, and answers "Missing model name in request." to its path.
        """
        if path.rstrip("/").lower() == "/v1/models":
            return _json({"models": [self._listed(name) for name in self._catalog.models.names()]})
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
        FACTS.forget()
        FACTS.model = spec.name
        methods: dict[str, Callable[[model_pb2.ModelSpec, bytes], bytes]] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }
        method = match[4].lower()
        started, code = time.perf_counter_ns(), Code.OK
        try:
            return methods[method](spec, body)
        except Exception as error:
            code = from_exception(error).code
            raise
        finally:
            request_facts.record(method.capitalize(), "REST", code, started)

    def probe(self, ready: bool) -> bytes:
        """Return what /livez and /readyz say besides their code: the models that are waited for."""
        return _json({"ready": ready, "waiting_for": [] if ready else self._catalog.models.waited_for()})

    def not_ready(self) -> StatusError:
        """Return what an inference gets while the server starts."""
        missing = ", ".join(self._catalog.models.waited_for())
        return StatusError(Code.UNAVAILABLE, f"The server is starting and waits for models: {missing}")

    def _listed(self, name: str) -> dict[str, Any]:
        status = _with_defaults(self._catalog.statuses(name))
        return {"name": name, "version_labels": self._catalog.models.labels(name), **status}

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        return _json(_with_defaults(self._catalog.status(spec)))

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
            FACTS.version = servable.version
            signature = servable.signatures.get(key or predict.DEFAULT_SIGNATURE)
            if signature is None:
                text = (
                    f'Serving signature name: "{key or predict.DEFAULT_SIGNATURE}" not found in signature def'
                )
                raise invalid_argument(naming(text, "Signatures", sorted(servable.signatures)))
            FACTS.signature = key or predict.DEFAULT_SIGNATURE
            asked = json_requests.predict_body(document, signature.inputs, key)
            if self._check_method_names:
                predict.check_method_name_of(signature)
            outputs = predict.run(servable, signature, asked.arrays, (), self._timeout_seconds)
        return json_responses.predictions(outputs) if asked.by_row else json_responses.outputs(outputs)

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        return json_responses.classifications(self._of_examples(examples.classify, request, body))

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = regression_pb2.RegressionRequest(model_spec=spec)
        return json_responses.regressions(self._of_examples(examples.regress, request, body))

    def _of_examples(self, answer: Callable[..., Any], request: Any, body: bytes) -> Any:
        document = json_requests.parse(body)
        request.model_spec.signature_name = json_requests.signature_name(document)
        request.input.CopyFrom(json_requests.examples_input(document))
        with self._catalog.use(request.model_spec) as servable:
            FACTS.version = servable.version
            return answer(servable, request, self._timeout_seconds, self._check_method_names).result


def _model_spec(name: str, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(name))
    if version is not None:
        if len(version) > _VERSION_DIGITS or int(version) >= 2**63:
            raise invalid_argument(f"Failed to convert version: {version[:_QUOTED]} to numeric.")
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
