"""Thread pools whose threads all exist from the start, so that a request never needs a new one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from model_server.base.status import Code, StatusError


def started(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool with all its threads running. Raises StatusError if the system refuses one.

    A limit on processes (`docker run --pids-limit`) then ends the start of the server, not its service.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    all_run = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(all_run.wait)
        all_run.wait()
    except RuntimeError as error:
        all_run.abort()
        pool.shutdown(wait=False)
        message = f"{threads} threads for {name} cannot be started: {error}. Raise the limit of processes."
        raise StatusError(Code.RESOURCE_EXHAUSTED, message) from error
    return pool
