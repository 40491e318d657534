"""What a flow run does that is a process of a cluster: it takes an address, meets the others, and trains."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from configs.schema.cluster import ClusterConfig
from configs.schema.pipeline import TrainingConfig
from tasks.clusters.addresses import require_reachable, seat
from tasks.clusters.cluster import Task
from tasks.clusters.relay import relays
from tasks.clusters.rendezvous import SECONDS_BETWEEN_LOOKS, Over, Patience, Rendezvous
from tasks.core.artifacts import Examples, Run
from tasks.core.errors import EnvironmentFault
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import Child

_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class _Part:
    """The part of this flow run in one attempt."""

    meeting: Rendezvous
    flow_run: str
    name: str
    cluster: ClusterConfig
    arguments: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def log(self) -> Path:
        return TypeAdapter(Run).validate_python(self.arguments["run"]).log(f"train-{self.name}")


def play(folder: Path, name: str, flow_run: str) -> str:
    """Run the role `name` (such as `worker-0`) until training ends; return how it ended, in a sentence.

    Afterwards nothing of it runs. Raises EnvironmentFault (the folder is not shared, no address, others out
    of reach), ProcessDied (also where the chief is gone), or what the process itself raised.
    """
    part = _part(Rendezvous(folder), name, flow_run)
    lease = part.cluster.lease_seconds
    child = Child()  # it imports TensorFlow while the others come
    try:
        with part.meeting.alive(flow_run, lease), ExitStack() as kept:
            patience = Patience(part.meeting, name, flow_run, lease)
            task = _met(part, patience, kept)
            _begin(part, task, child, patience)
            return _watched(part, child, patience)
    except Over:
        return f"{name}: training ended before it began"
    finally:
        child.close(_GRACE_SECONDS)


def _part(meeting: Rendezvous, name: str, flow_run: str) -> _Part:
    arguments = meeting.read("request.json")
    if arguments is None:
        raise _not_shared(meeting.folder)
    run = TypeAdapter(Run).validate_python(arguments["run"])
    examples = TypeAdapter(Examples).validate_python(arguments["examples"])
    for path in (run.source, *examples.train.files, *examples.eval.files):
        if not path.exists():
            raise _not_shared(path)
    cluster = TrainingConfig.model_validate(arguments["training"]).cluster
    assert cluster is not None
    return _Part(meeting, flow_run, name, cluster, arguments)


def _not_shared(path: Path) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} is not there on {socket.gethostname()}",
        "all hosts of training.cluster.work_pool share $SLIPWAY_HOME, pipeline and data, at the same paths",
    )


def _met(part: _Part, patience: Patience, kept: ExitStack) -> Task:
    """Join, wait for all addresses, and see that the others can be reached from here."""
    alone = part.kind == "evaluator"  # in no cluster: nobody calls it, and it calls nobody
    with nullcontext() if alone else seat(part.cluster.network, part.cluster.ports) as own:
        part.meeting.join(part.flow_run, own)
        patience.until(partial(part.meeting.read, "agreed.json"))
        task = _task(part, own)
        require_reachable([] if alone else _others(part, task))
        part.meeting.say(f"ready/{part.flow_run}")
        patience.until(partial(part.meeting.said, "go"))
    return _relayed(part, task, kept) if part.kind == "ps" else task


def _task(part: _Part, own: str | None) -> Task:
    """Return the part that TF_CONFIG is to state; a process that came back has an address of its own."""
    kind, _, number = part.name.rpartition("-")
    agreed = {each: tuple(found) for each, found in part.meeting.read("agreed.json").items()}
    if own is not None:
        agreed[kind] = tuple(
            own if index == int(number) else address for index, address in enumerate(agreed[kind])
        )
    return Task(kind, int(number), agreed)


def _others(part: _Part, task: Task) -> list[str]:
    """Return whom to try to reach; one that came back needs parameter servers only."""
    came_back = part.meeting.said("go")
    kinds = {"ps"} if came_back else set(task.addresses)
    return [
        address
        for kind in kinds
        for index, address in enumerate(task.addresses.get(kind, ()))
        if (kind, index) != (task.type, task.index)
    ]


def _relayed(part: _Part, task: Task, kept: ExitStack) -> Task:
    """Return the task of a parameter server: it calls workers through relays, kept open until `kept` ends."""
    workers = range(len(task.addresses.get("worker", ())))
    calls = [partial(part.meeting.address_of, f"worker-{index}") for index in workers]
    through = kept.enter_context(relays(calls))
    return replace(task, addresses={**task.addresses, **({"worker": through} if through else {})})


def _begin(part: _Part, task: Task, child: Child, patience: Patience) -> None:
    """Start the role. A worker that finds no variables would retry only after 30 s."""
    if part.cluster.parameter_servers and task.type != "ps":
        patience.until(partial(part.meeting.said, "begun"))
    arguments = {**part.arguments, "task": asdict(task)}
    child.send(tensorflow_process.request_for("cluster_role", part.log, arguments))


def _watched(part: _Part, child: Child, patience: Patience) -> str:
    """Wait for the process to end, or for training to be over; raise what it died of."""
    try:
        while child.process.poll() is None:
            patience.check()
            _wait(child, SECONDS_BETWEEN_LOOKS)
    except Over as over:
        _wait(child, over.seconds.get(part.kind, 0.0))
        return f"{part.name}: training is over"
    tensorflow_process.raise_failure("cluster_role", child, part.log)
    return f"{part.name}: trained up to max_steps"


def _wait(child: Child, seconds: float) -> None:
    try:
        child.process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
