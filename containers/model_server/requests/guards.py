"""Failures that a loop survives: logged at a bounded rate, and counted on the page of metrics."""

from __future__ import annotations

import logging
import threading
import time

from model_server.observability import metrics

_LOG = logging.getLogger(__name__)
_LOG_SECONDS = 1.0
_METRIC = "model_server_guarded_errors_total"
_last_logged: dict[str, float] = {}
_lock = threading.Lock()


def caught(where: str) -> None:
    """Count the exception that is being handled, and log it unless another one from `where` just was.

    A client that causes it a thousand times a second must not fill the log.
    """
    metrics.RECORDER.histogram(_METRIC, (), {"where": where}).add(0)
    now = time.monotonic()
    with _lock:
        if now - _last_logged.get(where, -_LOG_SECONDS) < _LOG_SECONDS:
            return
        _last_logged[where] = now
    _LOG.exception("unexpected error in %s", where)
