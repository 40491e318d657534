"""The roles of `training.cluster`, as child processes of the chief, on loopback ports agreed beforehand.

The chief is the process of `train` itself: its progress, checkpoints and end are those of any training. It
starts the others, restarts one that dies, and takes all of them along when it ends, however it ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.schema.cluster import ClusterConfig
from configs.schema.pipeline import TrainingConfig
from tasks.clusters.rendezvous import SECONDS_BETWEEN_LOOKS, Rendezvous
from tasks.core.artifacts import Run
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import Child

SECONDS_TO_END = 5.0
SECONDS_TO_EVALUATE = 60.0


@dataclass(frozen=True)
class Task:
    """A process of the cluster: its part, and the addresses of all."""

    type: str
    """`chief`, `worker`, `ps` or `evaluator`, as TF_CONFIG has them."""
    index: int
    addresses: Mapping[str, tuple[str, ...]]
    """Type to host:port of each index; the evaluator is in no cluster and has none."""

    @property
    def name(self) -> str:
        """Name it, for its log and for people."""
        return f"{self.type}-{self.index}"

    def join(self) -> None:
        """Set TF_CONFIG, which tf.estimator.RunConfig and tf.distribute read, for this process."""
        task = {"type": self.type, "index": self.index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": self.addresses, "task": task})

    def device_filters(self) -> list[str]:
        """Return the devices that its sessions talk to: a worker that is gone then stops nobody else.

        As tf.estimator.RunConfig has them where it is given no session_config.
        """
        return {
            "chief": ["/job:ps", "/job:chief"],
            "worker": ["/job:ps", f"/job:worker/task:{self.index}"],
        }.get(self.type, [])


@dataclass(frozen=True)
class RemoteCluster:
    """A cluster across machines whose other processes have joined."""

    chief: Task
    meeting: Path
    """Folder of its `tasks.clusters.rendezvous.Rendezvous`."""


def parts(cluster: ClusterConfig) -> list[tuple[str, int]]:
    """Return type and index of each process, the chief first."""
    counts = {
        "chief": 1, "worker": cluster.workers - 1, "ps": cluster.parameter_servers,
        "evaluator": int(cluster.evaluator),
    }  # fmt: skip
    return [(kind, index) for kind, count in counts.items() for index in range(count)]


def agree(cluster: ClusterConfig) -> list[Task]:
    """Return a task for each process, the chief first, on loopback ports that nobody listens on."""
    addresses: dict[str, tuple[str, ...]] = {}
    with ExitStack() as open_sockets:
        for kind, _ in parts(cluster):
            if kind != "evaluator":
                addresses[kind] = (*addresses.get(kind, ()), _free_address(open_sockets))
    return [Task(kind, index, addresses) for kind, index in parts(cluster)]


def _free_address(open_sockets: ExitStack) -> str:
    probe = open_sockets.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{probe.getsockname()[1]}"


class _Role:
    """A child that plays one part; a thread of its own watches it, and starts it again when it dies."""

    def __init__(self, task: Task, request: Mapping[str, Any], restarts: int) -> None:
        self.task = task
        self._request, self._restarts = request, restarts
        self._begun = self._over = False
        self._child = Child()  # it imports TensorFlow while the chief builds its graph
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Start the role, unless it has started."""
        if not self._begun:
            self._begun = True
            self._child.send(self._request)
            self._watcher.start()

    def _watch(self) -> None:
        while not self._ended_well():
            if self._restarts == 0:
                _tell(f"{self.task.name} is not started again: this attempt ends; see {self._request['log']}")
                os._exit(1)  # the flow tries again, from the last checkpoint
            self._restarts -= 1
            # From this thread, which stays until the child has ended: PR_SET_PDEATHSIG is about threads.
            self._child = Child()
            self._child.send(self._request)

    def _ended_well(self) -> bool:
        """Wait for its end; say whether that is as it should be."""
        problems = [reply["error"]["message"] for reply in self._child.replies(None) if "error" in reply]
        exit_code = self._child.process.wait()
        self._child.close(0)
        if self._over or (exit_code == 0 and not problems):
            return True
        _tell(f"{self.task.name} ended with {exit_code}: {'; '.join(problems) or 'killed?'}")
        return False

    def dismiss(self) -> None:
        """Accept any exit from now on: training has ended."""
        self._over = True

    def wait(self, seconds: float) -> None:
        """Wait for it to end by itself, at most so long."""
        if self._begun:
            self._watcher.join(seconds)

    def end(self) -> None:
        """End it, if it has not ended: it has nothing to save."""
        self.dismiss()
        if not self._begun:
            self._child.close(0)
        kills = time.monotonic() + SECONDS_TO_END
        while self._begun and self._watcher.is_alive():
            process = self._child.process  # asked each time: it may just have been started again
            (process.kill if time.monotonic() > kills else process.terminate)()
            self._watcher.join(0.1)


def _tell(line: str) -> None:
    sys.stderr.write(f"cluster: {line}\n")
    sys.stderr.flush()


class Roles:
    """All processes of a cluster but the chief."""

    def __init__(self, training: TrainingConfig, arguments: Mapping[str, Any], run: Run) -> None:
        """Join as the chief, and start the others; `arguments` go to the program `cluster_role`."""
        assert training.cluster is not None
        self._synchronous = training.strategy == "multi_worker_mirrored"
        restarts = 0 if self._synchronous else training.cluster.restarts
        self.chief, *others = agree(training.cluster)
        self.chief.join()
        self._roles = [_Role(task, _request(task, arguments, run), restarts) for task in others]
        for role in self._roles:
            if role.task.type == "ps" or self._synchronous:
                role.begin()

    def begin(self) -> None:
        """Start the delayed roles: a worker that finds no variables retries only after 30 s."""
        for role in self._roles:
            role.begin()

    def wait(self) -> None:
        """Wait for workers to see that training is over, and for the evaluation of its last checkpoint."""
        waits = {"worker": SECONDS_TO_END, "evaluator": SECONDS_TO_EVALUATE}
        for role in self._roles:
            role.dismiss()
        for role in self._roles:
            role.wait(waits.get(role.task.type, 0.0))

    def end(self) -> None:
        """End all, parameter servers last: who trains would wait for one that is gone."""
        for role in sorted(self._roles, key=lambda role: role.task.type == "ps"):
            role.end()


class RemoteRoles:
    """The same, where each is a flow run on another host: whoever submitted them looks after them."""

    def __init__(self, joined: RemoteCluster) -> None:
        """Join as the chief; this process ends when the attempt is given up."""
        self.chief, self._meeting = joined.chief, Rendezvous(joined.meeting)
        self.chief.join()
        threading.Thread(target=self._end_when_given_up, daemon=True).start()

    def _end_when_given_up(self) -> None:
        while (reason := self._meeting.read("given_up")) is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        _tell(f"this attempt ends: {reason}")
        os._exit(1)  # the flow tries again, from the last checkpoint

    def begin(self) -> None:
        """Start the workers: the variables exist."""
        self._meeting.say("begun")

    def wait(self) -> None:
        """Wait for nobody: the flow does."""

    def end(self) -> None:
        """End nobody: the flow does, when this process has ended."""


def _request(task: Task, arguments: Mapping[str, Any], run: Run) -> dict[str, Any]:
    given = {**arguments, "task": asdict(task)}
    return tensorflow_process.request_for("cluster_role", run.log(f"train-{task.name}"), given)
