"""Many swaps: under load no answer fails or lies, on whatever connection, and memory returns."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from pathlib import Path

import grpc
import psutil
import pytest
from model_server_fixtures import NAME, Models, RunningServer, StartServer, expected

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import config, entry, reload, wait_for_available
from model_server_requests import TIMEOUT, classify_request, floats, predict_request, regress_request, stub
from tensorflow_serving.apis import prediction_service_pb2_grpc

REQUESTS = 20_000
CALLERS = 32
CONNECTIONS = 16
SWAPS = 10
MANY_SWAPS = 50
EXPORTED = 5
LONGEST_SECONDS = 240.0
"""What only a server that hangs takes; on two quiet cores the load takes some 15 s."""


def content(version: int) -> int:
    """Which of the exported versions is published as `version`; neighbours differ."""
    return (version - 1) % EXPORTED + 1


def publish(models: Models, base_path: Path, version: int) -> None:
    """Put the version in place at once."""
    candidate = base_path / f"{version}.candidate"
    shutil.copytree(models.store / str(content(version)), candidate)
    candidate.rename(base_path / str(version))


@pytest.fixture
def pair(models: Models, start_server: StartServer, tmp_path: Path) -> RunningServer:
    """A lead and one worker, which serve version 1 of tmp_path/models."""
    base_path = tmp_path / "models"
    base_path.mkdir()
    publish(models, base_path, 1)
    server = start_server(base_path, MODEL_SERVER_PROCESSES="2", MODEL_SERVER_SETTLE_SECONDS="0")
    server.wait_for_log("listening")
    return server


class Load:
    """Callers of one event loop, each of which asks one question after the other over all connections."""

    def __init__(self, port: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CONNECTIONS)
        ]
        self._stubs = [prediction_service_pb2_grpc.PredictionServiceStub(each) for each in self._channels]
        self._ends = time.monotonic() + LONGEST_SECONDS
        self._questions = itertools.count()
        self.answers = 0
        self.latest = 1
        self.wrong: list[str] = []

    async def run(self, models: Models, base_path: Path) -> None:
        """Ask until there are so many answers and the last version has been seen; swap meanwhile."""
        callers = [self._ask(offset) for offset in range(CALLERS)]
        try:
            await asyncio.gather(self._swap(models, base_path), *callers)
        finally:
            for channel in self._channels:
                await channel.close()

    async def _swap(self, models: Models, base_path: Path) -> None:
        for version in range(2, SWAPS + 2):
            while self.answers < REQUESTS * (version - 1) // (SWAPS + 1) or self.latest < version - 1:
                self._check_time()
                await asyncio.sleep(0.01)
            await asyncio.to_thread(publish, models, base_path, version)

    async def _ask(self, offset: int) -> None:
        for turn in itertools.count(offset):
            if self.answers >= REQUESTS and self.latest == SWAPS + 1:
                return
            self._check_time()
            await self._ask_once(turn % CONNECTIONS, float(next(self._questions) % 1000))

    async def _ask_once(self, connection: int, x: float) -> None:
        # Whatever version anybody has seen before this question was asked is the oldest that may answer it.
        oldest = self.latest
        try:
            said = await self._stubs[connection].Predict(predict_request(x=floats(x)), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            self.wrong.append(f"{error.code()}: {error.details()}")
            return
        version, values = said.model_spec.version.value, list(said.outputs["y"].float_val)
        if version < oldest or values != [expected(x, content(version))]:
            self.wrong.append(f"{x} to {version} after {oldest}: {values}")
        self.latest = max(self.latest, version)
        self.answers += 1

    def _check_time(self) -> None:
        text = f"{self.answers} answers, version {self.latest}, {len(self.wrong)} wrong: {self.wrong[:5]}"
        assert time.monotonic() < self._ends and len(self.wrong) < CALLERS, text


def test_no_answer_fails_or_lies_through_ten_swaps(
    pair: RunningServer, models: Models, tmp_path: Path
) -> None:
    """20,000 requests of 32 callers to two processes: each is answered by the version that it names.

    That is never an older one than anybody has seen before.
    """

    async def run() -> Load:
        load = Load(pair.port)
        await load.run(models, tmp_path / "models")
        return load

    load = asyncio.run(run())
    assert load.wrong == [], pair.log
    assert load.answers >= REQUESTS
    assert load.latest == SWAPS + 1


def test_memory_returns_after_swaps(pair: RunningServer, models: Models, tmp_path: Path) -> None:
    """After 50 swaps each process holds within 10% of what it held after the fifth."""
    base_path = tmp_path / "models"
    lead = psutil.Process(pair.process.pid)
    processes = [lead, *lead.children()]
    assert len(processes) == 2
    with_config = config(entry(NAME, base_path))
    resident: dict[int, list[int]] = {}
    for swap in range(1, MANY_SWAPS + 1):
        publish(models, base_path, swap + 1)
        reload(pair, with_config)  # looks at once
        wait_for_available(pair, [swap + 1])
        shutil.rmtree(base_path / str(swap))
        ask_all(pair)
        resident[swap] = [each.memory_info().rss for each in processes]
    grown = [after / before for before, after in zip(resident[5], resident[MANY_SWAPS], strict=True)]
    assert max(grown) <= 1.1, resident


def ask_all(server: RunningServer) -> None:
    """Let a version prepare what it prepares for each kind of request."""
    for _ in range(5):
        stub(server).Predict(predict_request(x=floats(1, 2)), timeout=TIMEOUT)
        stub(server).Classify(classify_request("classify", 1, 2), timeout=TIMEOUT)
        stub(server).Regress(regress_request("regress", 1, 2), timeout=TIMEOUT)
