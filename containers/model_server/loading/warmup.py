"""Warmup: recorded requests that a version answers before it is available.

Facts from tensorflow_serving/servables/tensorflow: saved_model_warmup.cc, saved_model_warmup_util.cc.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from model_server.base.flags import Options
from model_server.base.status import Code, StatusError, from_exception, invalid_argument
from model_server.models.servable import Servable
from model_server.observability import metrics, prediction_logs
from model_server.requests import examples, multi_inference, predict

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
LATENCY = ":tensorflow:serving:model_warmup_latency"
_LOG = logging.getLogger(__name__)
_ANSWERS: dict[str, Callable[..., Any]] = {
    "predict_log": predict.predict,
    "classify_log": examples.classify,
    "regress_log": examples.regress,
    "multi_inference_log": multi_inference.infer,
}


def replay(servable: Servable, directory: Path, options: Options) -> None:
    """Let `servable` answer what is in its version's warmup file; without a file nothing happens.

    The names and versions that the requests give are ignored, their signatures are not. Raises StatusError
    or TensorFlow's own errors where the file is not readable or one of its requests fails.
    """
    path = directory / WARMUP_FILE
    if not path.exists():
        _LOG.info("No warmup data file found at %s", path)
        return
    started = time.perf_counter_ns()
    code = Code.OK
    try:
        count = _replay(servable, path, options)
    except Exception as error:
        code = from_exception(error).code
        raise
    finally:
        micros = (time.perf_counter_ns() - started) / 1000
        labels = {"model_path": str(directory), "status": code.name}
        metrics.RECORDER.histogram(LATENCY, metrics.LATENCY_LIMITS, labels).add(micros)
    _LOG.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.",
        path,
        count,
        micros,
    )


def _replay(servable: Servable, path: Path, options: Options) -> int:
    from tensorflow.python.framework import errors_impl

    count = 0
    try:
        for record in prediction_logs.records(path):
            count += 1
            if count > prediction_logs.MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({prediction_logs.MAX_RECORDS}) at {path}"
                )
            for _ in range(max(1, options.num_request_iterations_for_warmup)):
                _answer(servable, _parsed(record, path), options.enable_signature_method_name_check)
    except errors_impl.DataLossError as error:
        raise StatusError(
            Code.DATA_LOSS, f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from None
    return count


def _parsed(record: bytes, path: Path) -> prediction_log_pb2.PredictionLog:
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        shown = record[:100].decode("utf-8", "backslashreplace")
        raise invalid_argument(f"Failed to parse warmup record: {shown} from {path}") from None


def _answer(servable: Servable, log: prediction_log_pb2.PredictionLog, check_method_name: bool) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _ANSWERS:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    _ANSWERS[kind](servable, getattr(log, kind).request, None, check_method_name)
