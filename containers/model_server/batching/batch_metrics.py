"""The batching session's metrics, by their official names.

Facts from tensorflow_serving/batching: batching_session.cc, batching_util.h.
"""

from __future__ import annotations

from model_server.observability import metrics

_PREFIX = ":tensorflow:serving:batching_session:"
_QUEUING_LIMITS = tuple(100 * 1.2**k for k in range(52))  # microseconds


def accepted(rows: int) -> None:
    """Count a request that a queue has taken in."""
    metrics.RECORDER.histogram(f"{_PREFIX}input_batch_size", metrics.EXAMPLE_LIMITS, {}).add(rows)


def taken(seconds: float, thread_pool_name: str) -> None:
    """Count a request, or a part of one, that has waited so long in its queue."""
    labels = {"thread_pool_name": thread_pool_name}
    metrics.RECORDER.histogram(f"{_PREFIX}queuing_latency", _QUEUING_LIMITS, labels).add(seconds * 1e6)


def run(rows: int, padding_rows: int | None) -> None:
    """Count a run of the graph with so many rows, padding included; None where there never is any.

    The label of paddings is a size of runs: only a list of allowed sizes keeps it from being any number.
    """
    metrics.RECORDER.histogram(f"{_PREFIX}wrapped_run_count", (), {}).add(1)
    metrics.RECORDER.histogram(f"{_PREFIX}processed_batch_size", metrics.EXAMPLE_LIMITS, {}).add(rows)
    if padding_rows is not None:
        labels = {"execution_batch_size": str(rows)}
        metrics.RECORDER.histogram(f"{_PREFIX}padding_size", metrics.EXAMPLE_LIMITS, labels).add(padding_rows)
