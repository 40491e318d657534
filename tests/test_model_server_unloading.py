"""Loading is behind serving, and unloading waits for what is being answered."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import grpc
import pytest
from model_server_fixtures import Models, RunningServer, StartServer, wait_until

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import AVAILABLE, UNLOADING, answer, statuses
from model_server_requests import stub, turns_request


@pytest.fixture(scope="module")
def shared(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunningServer, Path]:
    """A server with one thread to load and one to unload, and its base path."""
    base_path = tmp_path_factory.mktemp("unloading")
    models.publish(base_path, 1)
    return start_server(base_path, "--num_load_threads=1", "--num_unload_threads=1"), base_path


def test_a_version_is_unloaded_after_its_last_answer(
    shared: tuple[RunningServer, Path], models: Models
) -> None:
    """New requests are the next version's at once; the old one is UNLOADING until its request has ended."""
    server, base_path = shared
    slow = stub(server).Predict.future(turns_request(10**12), timeout=60)
    answer(server)  # the slow one is on its way by now
    models.publish(base_path, 2)
    wait_until(
        lambda: statuses(server) == [(2, AVAILABLE, ""), (1, UNLOADING, "")],
        "version 1 to be kept",
        lambda: f"{statuses(server)}\n{server.log}",
    )
    assert answer(server) == 2
    assert not slow.done()
    with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Specific\(half_plus_two, 1\)"):
        answer(server, version=1)
    slow.cancel()
    one_more = stub(server).Predict.future(turns_request(10**12), timeout=0.2)
    assert one_more.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_threads_that_load_have_a_lower_priority(shared: tuple[RunningServer, Path], models: Models) -> None:
    """They, and none of TensorFlow's own, which run graphs for requests too."""
    server, base_path = shared
    models.publish(base_path, 3)
    wait_until(lambda: statuses(server)[0] == (3, AVAILABLE, ""), "version 3", lambda: server.log)
    ours = os.getpriority(os.PRIO_PROCESS, server.process.pid)

    def niceness() -> Counter[int]:
        tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
        return Counter(os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks)

    # The one that loads, the one that unloads, and one that TensorFlow starts for itself at a first load; its
    # pools have at least two threads, and would come on top.
    low = min(19, ours + 10)
    wait_until(lambda: 2 <= niceness()[low] <= 3, "two or three threads", lambda: str(niceness()))
    assert set(niceness()) == {ours, low}
