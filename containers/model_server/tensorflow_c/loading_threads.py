"""The threads that load and unload versions: apart from those that answer requests, and behind them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

from tensorflow.core.protobuf import config_pb2

from model_server.tensorflow_c import tf_session

_PER_CPU = 4  # as many as the official server loads with when it starts
_NICENESS = 10


def make(count: int, name: str, config: config_pb2.ConfigProto) -> Executor:
    """Return an executor of `count` threads, or of so many that one slow version holds up no other model.

    They run at low priority where sessions with `config` share TensorFlow's thread pools. Those are started
    here, by a thread of ordinary priority: their threads inherit it, and serve later.
    """
    threads = count or _PER_CPU * len(os.sched_getaffinity(0))
    if config.use_per_session_threads or config.session_inter_op_thread_pool:
        return ThreadPoolExecutor(threads, thread_name_prefix=name)
    tf_session.start_thread_pools(config)
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=step_back)


def step_back() -> None:
    """Lower the priority of the calling thread, for good, and that of the threads that it starts."""
    thread = threading.get_native_id()
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
    os.setpriority(os.PRIO_PROCESS, thread, niceness)
