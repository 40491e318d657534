"""No traceback for an outcome that is no defect: a gate's rejection, a full disk, a wrong configuration.

Prefect's engine logs every exception that ends a task or a flow with all its frames, dozens of them. For an
error of Slipway's tree they say nothing: its message and hint do.
"""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

from configs.loading.errors import SlipwayError

_LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine", "prefect.task_engine")


def install() -> None:
    """Filter what Prefect's engine logs in this process; again and again it is done once."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(without_frames)


def without_frames(record: logging.LogRecord) -> bool:
    """Replace the frames of a SlipwayError by what it says; drop the engine's report of a Failed state.

    That one, FailedRun, repeats a reason that was logged, and it is the last line of a worker's log.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, SlipwayError):
        record.msg, record.args = "%s: %s", (type(error).__name__, error)
        record.exc_info = record.exc_text = None
    return not isinstance(error, FailedRun)
