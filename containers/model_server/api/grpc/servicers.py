"""The gRPC services: bytes in, bytes out, and every failure a status, never a stack trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from model_server.api.grpc import reload
from model_server.base.status import Code, StatusError, from_exception, invalid_argument, truncated
from model_server.models.catalog import Catalog
from model_server.models.servable_store import ServableStore
from model_server.observability import request_facts, request_log
from model_server.observability.request_facts import FACTS
from model_server.requests import examples, metadata, multi_inference, predict

_LOG = logging.getLogger(__name__)
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
_INFERENCE = ("Predict", "Classify", "Regress", "MultiInference")

Answer = Callable[[Any, float | None], Message]
if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Handlers = grpc.GenericRpcHandler[bytes, bytes]


def prediction_service(catalog: Catalog | ServableStore, check_method_names: bool) -> Handlers:
    """tensorflow.serving.PredictionService."""

    def inference(answer: Callable[..., Message]) -> Answer:
        def answered(request: Any, timeout_seconds: float | None) -> Message:
            spec = _required_spec(request)
            FACTS.model = spec.name
            with catalog.use(spec) as servable:
                FACTS.version = servable.version
                return answer(servable, request, timeout_seconds, check_method_names)

        return answered

    def infer_many(request: Any, timeout_seconds: float | None) -> Message:
        spec = multi_inference.spec_of(request)
        FACTS.model = spec.name
        with catalog.use(spec) as servable:
            FACTS.version = servable.version
            response: Message = multi_inference.infer(servable, request, timeout_seconds, check_method_names)
            return response

    def get_model_metadata(request: Any, _: float | None) -> Message:
        metadata.check_fields(request)
        with catalog.use(_required_spec(request)) as servable:
            response: Message = metadata.signature_defs(servable, request)
            return response

    return _service(
        PREDICTION_SERVICE,
        {
            "Predict": (predict_pb2.PredictRequest, inference(predict.predict)),
            "Classify": (classification_pb2.ClassificationRequest, inference(examples.classify)),
            "Regress": (regression_pb2.RegressionRequest, inference(examples.regress)),
            "MultiInference": (inference_pb2.MultiInferenceRequest, infer_many),
            "GetModelMetadata": (get_model_metadata_pb2.GetModelMetadataRequest, get_model_metadata),
        },
    )


def model_service(catalog: Catalog, may_reload: bool) -> Handlers:
    """tensorflow.serving.ModelService; without `may_reload` no client changes what is served."""

    def get_model_status(request: Any, _: float | None) -> Message:
        response: Message = catalog.status(_required_spec(request))
        return response

    def handle_reload_config(request: Any, timeout_seconds: float | None) -> Message:
        if not may_reload:
            message = "HandleReloadConfigRequest is turned off here (MODEL_SERVER_RELOAD=false)"
            raise StatusError(Code.PERMISSION_DENIED, message)
        response: Message = reload.handle(catalog.models, request, timeout_seconds)
        return response

    return _service(
        "tensorflow.serving.ModelService",
        {
            "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, get_model_status),
            "HandleReloadConfigRequest": (model_management_pb2.ReloadConfigRequest, handle_reload_config),
        },
    )


def _required_spec(request: Any) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec: model_pb2.ModelSpec = request.model_spec
    return spec


def _service(name: str, methods: Mapping[str, tuple[type[Message], Answer]]) -> Handlers:
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(_handler(name, method, request_type, answer))
        for method, (request_type, answer) in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _handler(
    service: str, method: str, request_type: type[Message], answer: Answer
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    counted = method in _INFERENCE

    def handle(serialized: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter_ns()
        FACTS.forget()
        code = Code.OK
        try:
            request = request_type()
            request.ParseFromString(serialized)
            answered = answer(request, context.time_remaining()).SerializeToString()
            if counted and request_log.LOGS.active:
                request_log.LOGS.offer(method, FACTS.model, serialized, answered)
            return answered
        except DecodeError:
            error = StatusError(
                Code.INTERNAL, f"Failed to parse the bytes of the request to {service}/{method}"
            )
            code = error.code
        except Exception as raised:
            error = from_exception(raised)
            code = error.code
            if not isinstance(raised, StatusError) and error.code is Code.INTERNAL:
                _LOG.exception("%s/%s failed", service, method)
        finally:
            if counted:
                request_facts.record(method, "GRPC", code, started)
        # Setting the status costs less than context.abort(), which raises; the empty answer is not sent.
        context.set_code(_GRPC_CODES[error.code])
        context.set_details(truncated(error.message))
        return b""

    return handle
