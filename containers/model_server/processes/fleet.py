"""The lead's workers: processes that answer inference on the same port, with the same versions.

The lead decides everything, once. What it loads, the workers load after it; a routing table is sent to
all, and takes effect everywhere by one write to shared memory (generations.py). A worker that ends is
replaced by one that has loaded everything before it listens; when the lead ends, so do all workers.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tensorflow_serving.config import logging_config_pb2

from model_server.base.status import StatusError
from model_server.models.generations import Generation
from model_server.models.routing import RoutingTable
from model_server.processes import control
from model_server.processes.control import Connection, Gone

_LOG = logging.getLogger(__name__)
_ISOLATED = ["-P"] if getattr(sys.flags, "safe_path", False) else []  # since Python 3.11
WORKER = "MODEL_SERVER_WORKER"
"""The variable that makes a process a worker: its socket's descriptor, the generation's, a directory."""

_START_SECONDS = 120.0
_RESTART_SECONDS = (0.1, 30.0)  # the first pause and the longest; each is twice the one before
_STABLE_SECONDS = 60.0


class Worker:
    """One process, which carries out any number of orders at a time."""

    def __init__(self, index: int, generation: Generation, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), generation.descriptor)
        environment = {**os.environ, WORKER: f"{descriptors[0]}:{descriptors[1]}:{directory}"}
        self.index = index
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *_ISOLATED, "-m", "model_server", *sys.argv[1:]],
            env=environment,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection = Connection(ours)
        self._numbers = itertools.count()
        self._answers: dict[int, Future[dict[str, Any]]] = {}

    def wait_until_started(self) -> None:
        """Wait for the process's first message. Raises Gone where it ends instead."""
        self._connection.receive()
        threading.Thread(target=self._listen, name=f"worker-{self.index}-answers", daemon=True).start()

    def order(self, **order: Any) -> None:
        """Wait until it is done. Raises Gone where the process has ended, StatusError where it cannot."""
        number, answer = next(self._numbers), Future[dict[str, Any]]()
        self._answers[number] = answer
        self._connection.send({"number": number, "order": order})
        control.check(answer.result())

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.receive()
                self._answers.pop(message["number"]).set_result(message)
        except Gone:
            self._hang_up()

    def _hang_up(self) -> None:
        """Let nobody wait for an answer that does not come; what is sent later raises Gone by itself."""
        self._connection.close()
        while self._answers:
            _, answer = self._answers.popitem()
            answer.set_exception(Gone())

    def kill(self) -> None:
        """End the process, if it still runs, and take its last breath."""
        self.process.kill()
        self.process.wait()
        self._hang_up()


class Fleet:
    """Keeps `size` workers going, which have loaded what load() was told and serve when serve() says so."""

    def __init__(self, size: int) -> None:
        self.generation = Generation()
        self.directory = Path(tempfile.mkdtemp(prefix="model_server-"))
        self.size = size
        self._workers: dict[int, Worker] = {}
        self._loaded: dict[tuple[str, int], Path] = {}
        self._table = RoutingTable()
        self._logging: dict[str, logging_config_pb2.LoggingConfig] = {}
        self._serving = self._stopping = False
        self._lock = threading.RLock()
        self._joined = threading.Condition(self._lock)

    @property
    def lead_address(self) -> str:
        """The gRPC address at which the lead answers what workers pass on."""
        return f"unix:{self.directory}/lead.sock"

    def counters(self) -> list[Path]:
        """Return the files in which workers count, those of workers that have ended included."""
        return sorted(self.directory.glob("*.counters"))

    def pids(self) -> list[int]:
        """Return the processes of the workers that have joined."""
        with self._lock:
            return [worker.process.pid for worker in self._workers.values()]

    def start(self) -> None:
        """Begin to start the workers, in the background."""
        for index in range(self.size):
            threading.Thread(target=self._keep, args=(index,), name=f"worker-{index}", daemon=True).start()

    def wait_until_joined(self) -> None:
        """Wait until all workers have loaded what there is; after two minutes, go on without the missing."""
        with self._joined:
            if not self._joined.wait_for(lambda: len(self._workers) == self.size, _START_SECONDS):
                _LOG.error("%d of %d workers have not started", self.size - len(self._workers), self.size)

    def load(self, name: str, number: int, directory: Path) -> None:
        """Have the version in every worker. Raises StatusError where one cannot, and then none has it."""
        with self._lock:
            self._loaded[name, number] = directory
            workers = list(self._workers.values())
        try:
            self._order(workers, load=[name, number, str(directory)])
        except StatusError:
            self.unload(name, number)
            raise

    def publish(self, table: RoutingTable) -> None:
        """Tell every worker of the table; it takes effect when `generation` is written."""
        with self._lock:
            self._table = table
            self._order(self._workers.values(), table=control.table_message(table))

    def unload(self, name: str, number: int) -> None:
        """Free the version in every worker, after its last request there."""
        with self._lock:
            self._loaded.pop((name, number), None)
            workers = list(self._workers.values())
        self._order(workers, unload=[name, number])

    def log_requests(self, configs: Mapping[str, logging_config_pb2.LoggingConfig]) -> None:
        """Tell every worker how the models' requests are logged."""
        with self._lock:
            self._logging = dict(configs)
            self._order(self._workers.values(), logging=control.logging_message(self._logging))

    def serve(self) -> None:
        """Let the workers listen."""
        with self._lock:
            self._serving = True
            self._order(self._workers.values(), serve=True)

    def hand_over(self) -> None:
        """Have the workers take no more connections; return when those that they have are gone."""
        self._stop_each(lambda worker: self._order([worker], hand_over=True))

    def drain(self, seconds: float) -> None:
        """End all workers, after the requests that they have, or after so long."""
        self._stop_each(lambda worker: _drain(worker, seconds))
        shutil.rmtree(self.directory, ignore_errors=True)

    def _stop_each(self, stop: Callable[[Worker], None]) -> None:
        """Stop all workers at once, and wait; one that ends from now on is not started again."""
        with self._lock:
            self._stopping = True
            workers = list(self._workers.values())
        threads = [threading.Thread(target=stop, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _order(self, workers: Iterable[Worker], **order: Any) -> None:
        """Give an order to each; one that has ended meanwhile will be told when its successor joins."""
        for worker in workers:
            try:
                worker.order(**order)
            except Gone:
                _LOG.warning("worker %d has ended before it was told: %s", worker.index, ", ".join(order))

    def _keep(self, index: int) -> None:
        first, longest = _RESTART_SECONDS
        pause = first
        while not self._stopping:
            worker = Worker(index, self.generation, self.directory)
            try:
                worker.wait_until_started()
                self._join(worker)
            except (Gone, StatusError) as error:
                _LOG.error("worker %d (process %d) did not start: %s", index, worker.process.pid, error)
                worker.process.kill()
            code = worker.process.wait()
            with self._lock:
                if self._workers.get(index) is worker:
                    del self._workers[index]
            if self._stopping:
                return
            pause = first if time.monotonic() - worker.started > _STABLE_SECONDS else min(2 * pause, longest)
            _LOG.error(
                "worker %d (process %d) has ended (%d): a new one starts", index, worker.process.pid, code
            )
            worker.kill()
            time.sleep(pause)

    def _join(self, worker: Worker) -> None:
        """Bring a worker to where the others are; nothing changes while it gets there."""
        with self._joined:
            for (name, number), directory in self._loaded.items():
                worker.order(load=[name, number, str(directory)])
            worker.order(logging=control.logging_message(self._logging))
            worker.order(table=control.table_message(self._table))
            if self._serving:
                worker.order(serve=True)
            self._workers[worker.index] = worker
            self._joined.notify_all()


def _drain(worker: Worker, seconds: float) -> None:
    try:
        worker.order(drain=seconds)
        worker.process.wait(seconds + 1)
    except (Gone, StatusError, subprocess.TimeoutExpired):
        worker.kill()
