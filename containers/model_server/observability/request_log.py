"""Sampled requests and their answers, as TFRecords of PredictionLog: golden requests, and warmup files.

What is in these files is what clients sent: private data. Nothing is logged unless MODEL_SERVER_REQUEST_LOG
or a model's logging_config asks for it, and only the user of the server can read what is. A file holds no
more records than a warmup file may, so that it can become one as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import logging_config_pb2

from model_server.base.settings import Settings
from model_server.base.status import invalid_argument
from model_server.observability import prediction_logs

_LOG = logging.getLogger(__name__)
_WAITING = 256  # records; what comes while so many wait for the disk is left out
_LOOK_SECONDS = 0.05
_KINDS = {
    "Predict": "predict_log",
    "Classify": "classify_log",
    "Regress": "regress_log",
    "MultiInference": "multi_inference_log",
}


@dataclass(frozen=True)
class Sampling:
    """Which requests go where: PREFIX-PROCESS-NUMBER.tfrecord, of which each process keeps `files`."""

    prefix: Path
    rate: float
    file_megabytes: float = 64.0
    files: int = 10


class RequestLog:
    """One process's files of one Sampling, written by a thread of their own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.dropped = 0
        self._numbers = itertools.count(1)
        self._written: list[Path] = []
        self._writer: prediction_logs.RecordWriter | None = None
        self._room_bytes = self._room_records = 0.0
        self._queue: queue.Queue[tuple[str, bytes, bytes] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def offer(self, api: str, request: bytes, response: bytes) -> None:
        """Log this one, or not: by chance, and never waiting for a disk."""
        if random.random() >= self.sampling.rate:  # noqa: S311 (sampling is no secret)
            return
        try:
            self._queue.put_nowait((api, request, response))
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = 5.0) -> None:
        """Write what is waiting and close the file, in `seconds` at most.

        The queue may be full and never drained: the writer ended on a full disk, or waits for a slow one.
        """
        ends = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < ends:
            try:
                self._queue.put(None, timeout=_LOOK_SECONDS)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, ends - time.monotonic()))

    def _write_all(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._write(prediction_log(*item, self.sampling.rate))
                if self._queue.empty() and self._writer:
                    self._writer.flush()
        except Exception:
            # A full disk shall cost the log, not the answers.
            _LOG.exception("requests are logged no more to %s", self.sampling.prefix)
            self.sampling = Sampling(self.sampling.prefix, 0.0)
        if self._writer:
            with contextlib.suppress(OSError):  # what it still buffers does not fit either
                self._writer.close()
        if self.dropped:
            _LOG.warning("%d sampled requests came too fast to be logged", self.dropped)

    def _write(self, record: bytes) -> None:
        if self._writer is None or self._room_records < 1 or self._room_bytes < len(record):
            self._next_file()
        assert self._writer
        self._writer.write(record)
        self._room_records -= 1
        self._room_bytes -= len(record)

    def _next_file(self) -> None:
        if self._writer:
            self._writer.close()
        path = self._free_path()
        self._writer = prediction_logs.RecordWriter(path)
        self._room_records = prediction_logs.MAX_RECORDS
        self._room_bytes = self.sampling.file_megabytes * 1e6
        self._written.append(path)
        while len(self._written) > self.sampling.files:
            self._written.pop(0).unlink(missing_ok=True)

    def _free_path(self) -> Path:
        prefix = self.sampling.prefix
        names = (f"{prefix.name}-{os.getpid()}-{number}.tfrecord" for number in self._numbers)
        return next(path for path in map(prefix.with_name, names) if not path.exists())


@dataclass
class RequestLogs:
    """The logs of this process: one for all models, or none, and those of single models instead of it."""

    everything: RequestLog | None = None
    by_model: dict[str, RequestLog] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether anything is logged."""
        return bool(self.everything or self.by_model)

    def offer(self, api: str, model: str, request: bytes, response: bytes) -> None:
        """Log a request that was answered, serialized as it came over gRPC, or not."""
        log = self.by_model.get(model, self.everything)
        if log is not None:
            log.offer(api, request, response)

    def configure(self, configs: Mapping[str, logging_config_pb2.LoggingConfig]) -> None:
        """Log as the models' logging_config says, by model; a model that is not in it, as before all that.

        Raises StatusError, and changes nothing, where one of them cannot be honoured.
        """
        wanted = {model: sampling_of(model, config) for model, config in configs.items()}
        before = dict(self.by_model)
        self.by_model = {
            model: before.pop(model)
            if model in before and before[model].sampling == sampling
            else RequestLog(sampling)
            for model, sampling in wanted.items()
        }
        for log in before.values():
            log.close()

    def close(self) -> None:
        """Write what is waiting."""
        for log in filter(None, (self.everything, *self.by_model.values())):
            log.close()


LOGS = RequestLogs()


def start(settings: Settings) -> None:
    """Log what MODEL_SERVER_REQUEST_LOG asks for, from now on."""
    if settings.request_log_rate > 1:
        raise invalid_argument(
            "MODEL_SERVER_REQUEST_LOG_RATE: expected a share from 0 to 1, "
            f"found {settings.request_log_rate:g}"
        )
    if settings.request_log:
        LOGS.everything = RequestLog(
            Sampling(
                Path(settings.request_log),
                settings.request_log_rate,
                settings.request_log_file_megabytes,
                max(1, settings.request_log_files),
            )
        )


def sampling_of(model: str, config: logging_config_pb2.LoggingConfig) -> Sampling:
    """Return what a ModelConfig's logging_config asks for. Raises StatusError where that is not possible."""
    collector, rate = config.log_collector_config, config.sampling_config.sampling_rate
    if collector.type not in ("", "tfrecord"):
        raise invalid_argument(
            f'Model {model}: log_collector_config.type must be "tfrecord", found "{collector.type}"'
        )
    if not collector.filename_prefix:
        raise invalid_argument(f"Model {model}: log_collector_config.filename_prefix is not set")
    if not 0 <= rate <= 1:
        raise invalid_argument(f"Model {model}: sampling_rate must be from 0 to 1, found {rate:g}")
    return Sampling(Path(collector.filename_prefix), rate)


def prediction_log(api: str, request: bytes, response: bytes, rate: float) -> bytes:
    """Return a PredictionLog of a request and its answer, both serialized."""
    log = prediction_log_pb2.PredictionLog()
    exchange: Any = getattr(log, _KINDS[api])
    exchange.request.ParseFromString(request)
    exchange.response.ParseFromString(response)
    answered_by = exchange.response.results[0] if api == "MultiInference" else exchange.response
    log.log_metadata.model_spec.CopyFrom(answered_by.model_spec)
    log.log_metadata.sampling_config.sampling_rate = rate
    log.log_metadata.timestamp_secs = int(time.time())
    serialized: bytes = log.SerializeToString()
    return serialized
