"""What is counted of each request, and of rarer events: integers in memory, summed when a page is read.

Names, labels and buckets of the official server: tensorflow_serving/servables/tensorflow/util.cc.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from model_server.base.status import Code
from model_server.observability.counters import CounterFile

# Microseconds; the last bucket, without a limit, is what takes longer than 20 minutes.
LATENCY_LIMITS = tuple(10 * 1.8**k for k in range(33))
EXAMPLE_LIMITS = tuple(float(2**k) for k in range(15))

# A block of a request: how often each status code, three sums, three histograms.
REQUEST = "request"
CODES = len(Code)
SUMS = CODES
LATENCIES = SUMS + 3
RUNTIMES = LATENCIES + len(LATENCY_LIMITS) + 1
EXAMPLES = RUNTIMES + len(LATENCY_LIMITS) + 1
REQUEST_WORDS = EXAMPLES + len(EXAMPLE_LIMITS) + 1

HISTOGRAM = "histogram"
_LIMITS_NS = tuple(1000 * limit for limit in LATENCY_LIMITS)

RequestKey = tuple[str, str, str, int, str]
"""API ("Predict"), entrypoint (GRPC or REST), model as requested, and the version and signature that answer.

The last two are 0 and "" where none does: never what a client has made up.
"""


class Recorder:
    """Counts for one process. Only models that `is_known` confirms become labels; others share a block."""

    def __init__(self, path: Path | None = None, is_known: Callable[[str], bool] = lambda _: True) -> None:
        self.file = CounterFile(path)
        self.is_known = is_known
        self._lock = threading.Lock()
        self._blocks: dict[RequestKey, int] = {}
        self._histograms: dict[tuple[str, ...], Histogram] = {}
        overflow = self.file.block((REQUEST, "", "", "", 0, ""), REQUEST_WORDS)
        assert overflow is not None
        self._overflow = overflow

    def record(self, key: RequestKey, code: int, started_ns: int, run_ns: int = 0, examples: int = 0) -> None:
        """Count one request that has ended; it costs 1.5 µs.

        `started_ns` is time.perf_counter_ns() at its beginning, `run_ns` what its graph run took. As in the
        official server, latencies are those of successful requests.
        """
        took = time.perf_counter_ns() - started_ns
        block = self._blocks.get(key)
        if block is None:
            block = self._block(key)
        words = self.file.words
        with self._lock:
            words[block + code] += 1
            if code:
                return
            words[block + SUMS] += took
            words[block + LATENCIES + bisect_right(_LIMITS_NS, took)] += 1
            if run_ns:
                words[block + SUMS + 1] += run_ns
                words[block + RUNTIMES + bisect_right(_LIMITS_NS, run_ns)] += 1
            if examples:
                words[block + SUMS + 2] += examples
                words[block + EXAMPLES + bisect_right(EXAMPLE_LIMITS, examples)] += 1

    def histogram(self, name: str, limits: Sequence[float], labels: Mapping[str, str]) -> Histogram:
        """Return the histogram of this name and these labels; the same object for the same.

        Without limits it is on the page as a counter: of how many values there were.
        """
        key = (name, *(f"{label}={value}" for label, value in labels.items()))
        with self._lock:
            if key not in self._histograms:
                block = self.file.block((HISTOGRAM, name, list(limits), dict(labels)), len(limits) + 2)
                self._histograms[key] = Histogram(self.file, block, limits)
            return self._histograms[key]

    def _block(self, key: RequestKey) -> int:
        if not self.is_known(key[2]):
            return self._overflow
        with self._lock:
            if key not in self._blocks:
                block = self.file.block((REQUEST, *key), REQUEST_WORDS)
                if block is None:
                    return self._overflow
                self._blocks[key] = block
            return self._blocks[key]


class Histogram:
    """Values by bucket, for events that are rarer than requests: a batch, a warmup."""

    def __init__(self, file: CounterFile, block: int | None, limits: Sequence[float]) -> None:
        self._words = file.words
        self._block = block
        self._limits = limits
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count one value; the sum is kept in whole units."""
        if self._block is None:
            return
        with self._lock:
            self._words[self._block] += round(value)
            self._words[self._block + 1 + bisect_right(self._limits, value)] += 1


RECORDER = Recorder()
record = RECORDER.record


def start(path: Path | None, is_known: Callable[[str], bool]) -> None:
    """Count into `path` from now on, where the process that answers for the metrics will look."""
    global RECORDER, record
    RECORDER = Recorder(path, is_known)
    record = RECORDER.record
