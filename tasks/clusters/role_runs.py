"""A cluster across machines, seen from its chief: each other process is a flow run on a work pool.

The flow that trains submits the runs, meets them in the run's folder, and looks after them from a thread
while the chief trains in its child. However it ends, so do they: it tells them, or its silence does.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Crashed
from pydantic_core import to_jsonable_python

from configs.schema.cluster import ClusterConfig
from configs.schema.pipeline import TrainingConfig
from tasks.clusters import flow_runs
from tasks.clusters.addresses import require_reachable, seat
from tasks.clusters.cluster import SECONDS_TO_END, SECONDS_TO_EVALUATE, RemoteCluster, Task, parts
from tasks.clusters.rendezvous import CHIEF, SECONDS_BETWEEN_LOOKS, Rendezvous, Watch
from tasks.core.artifacts import Run
from tasks.core.errors import EnvironmentFault, ProcessDied, RetryableError, SlipwayError
from tasks.runs.stages import report

_SECONDS_BETWEEN_QUESTIONS = 1.0
_SECONDS_TO_CANCEL = 15.0
_log = logging.getLogger(__name__)


@contextmanager
def joined(
    training: TrainingConfig, arguments: Mapping[str, Any], run: Run
) -> Iterator[RemoteCluster | None]:
    """Start the other processes of the cluster for the duration of the block; yield what the chief joins.

    That is None where `training.cluster` names no work pool. Afterwards no flow run of the cluster is left
    running. Raises EnvironmentFault (no such pool, nobody takes a run, nothing shared, out of reach), or what
    a process of the cluster died of that cannot be, or was too often, started again.
    """
    cluster = training.cluster
    if cluster is None or cluster.work_pool is None:
        yield None
        return
    runs = _RoleRuns(training, cluster, run)
    grace: Mapping[str, float] = {}
    try:
        with runs.meeting.alive(CHIEF, cluster.lease_seconds):
            task = runs.meet(arguments)
            try:
                with runs.kept():
                    yield RemoteCluster(task, runs.meeting.folder)
            except ProcessDied as death:
                raise runs.failure or death from death
            grace = {"worker": SECONDS_TO_END, "evaluator": SECONDS_TO_EVALUATE}
    finally:
        runs.end(grace)


@dataclass
class _Player:
    """A process of the cluster: the flow run that is it now, and how often another may be it."""

    kind: str
    index: int
    restarts: int
    flow_run: str = ""
    watch: Watch = field(init=False)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.index}"


class _RoleRuns:
    """The flow runs of one attempt."""

    def __init__(self, training: TrainingConfig, cluster: ClusterConfig, run: Run) -> None:
        self.meeting = Rendezvous(run.folder / "cluster" / uuid.uuid4().hex[:8])
        self.failure: SlipwayError | None = None
        self._cluster, self._run = cluster, run
        self._waits_for_nobody = training.strategy != "multi_worker_mirrored"
        self._seen: Mapping[str, State[Any]] = {}
        self._players = [_Player(kind, index, cluster.restarts) for kind, index in parts(cluster)[1:]]

    def meet(self, arguments: Mapping[str, Any]) -> Task:
        """Submit all runs, and return the chief's part once all have joined, agreed and seen each other."""
        deadline = time.monotonic() + self._cluster.join_timeout_seconds
        self.meeting.say("request.json", to_jsonable_python(dict(arguments)))
        flow_runs.deploy(str(self._cluster.work_pool))
        with seat(self._cluster.network, self._cluster.ports) as own:
            for player in self._players:
                self._submit(player)
            self._until("joined", self._has_joined, deadline)
            addresses = self._addresses(own)
            require_reachable([each for kind in addresses.values() for each in kind])
            self.meeting.say("agreed.json", addresses)
            self._until("reached the others", self._is_ready, deadline)
            self.meeting.say("go")
        return Task(CHIEF, 0, addresses)

    def _has_joined(self, player: _Player) -> bool:
        return self.meeting.member(player.flow_run) is not None

    def _is_ready(self, player: _Player) -> bool:
        return self.meeting.said(f"ready/{player.flow_run}")

    def _until(self, what: str, has: Callable[[_Player], bool], deadline: float) -> None:
        """Wait until that is so of all players."""
        while absent := [player for player in self._players if not has(player)]:
            waiting = ", ".join(player.name for player in absent)
            report({"message": f"cluster: {waiting} of {self._cluster.work_pool} not yet {what}"})
            states = self.look()
            if time.monotonic() > deadline:
                raise self._nobody(absent, states, what)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _nobody(self, absent: list[_Player], states: Mapping[str, State[Any]], what: str) -> EnvironmentFault:
        """Return the error of those that let others wait too long."""
        pool, seconds = self._cluster.work_pool, self._cluster.join_timeout_seconds
        untaken = [each.name for each in absent if states[each.flow_run].type == StateType.SCHEDULED]
        if untaken:
            return EnvironmentFault(
                f"no worker of work pool {pool!r} took {', '.join(untaken)} in {seconds:g} s",
                f"on as many hosts as needed: prefect worker start --pool {pool}; or raise "
                "training.cluster.join_timeout_seconds",
            )
        names = ", ".join(f"{each.name} (flow run {each.flow_run})" for each in absent)
        return EnvironmentFault(
            f"{names} started, but have not {what} in {seconds:g} s",
            f"do all hosts of work pool {pool!r} see {self.meeting.folder}, and the same files in it?",
        )

    def _addresses(self, own: str) -> dict[str, tuple[str, ...]]:
        """Return the addresses of all that are in the cluster: type to those of each index."""
        found: dict[str, tuple[str, ...]] = {CHIEF: (own,)}
        for player in self._players:
            address = self.meeting.address_of(player.name)
            if address is not None:
                found[player.kind] = (*found.get(player.kind, ()), address)
        return found

    def _submit(self, player: _Player) -> None:
        """Make a new flow run for the process."""
        player.flow_run = flow_runs.submit(
            str(self._cluster.work_pool), f"{self._run.pipeline} {self._run.run_id} {player.name}",
            folder=str(self.meeting.folder), process=player.name,
        )  # fmt: skip
        player.watch = self.meeting.watch(player.flow_run, self._cluster.lease_seconds)
        self.meeting.say("players.json", {each.name: each.flow_run for each in self._players})

    def look(self) -> Mapping[str, State[Any]]:
        """Start again who has died, and return all states; raise where this attempt is not to go on."""
        states = self._states()
        for player in self._players:
            state = states[player.flow_run]
            if state.is_completed():
                continue  # it has made all its steps
            if state.is_final():
                self._lose(player, flow_runs.problem(state))
            elif self._has_joined(player) and player.watch.is_lost():
                silence = f"showed no sign of life for {self._cluster.lease_seconds:g} s"
                flow_runs.put(player.flow_run, Crashed(message=silence))
                self._lose(player, ProcessDied(silence))
        return states

    def _states(self) -> Mapping[str, State[Any]]:
        """Return the state of each flow run; as last seen while Prefect's server is away."""
        self._seen = flow_runs.states([player.flow_run for player in self._players], self._seen)
        return self._seen

    def _lose(self, player: _Player, problem: SlipwayError) -> None:
        """Start the process again, by a new flow run, or raise what it died of."""
        message = f"{player.name} ended: {problem.message}"
        if not (isinstance(problem, RetryableError) and player.restarts and self._can_miss(player)):
            raise type(problem)(message, problem.hint)
        self._submit(player)
        player.restarts -= 1
        report({"message": f"cluster: {message}; started again", "logged": True})

    def _can_miss(self, player: _Player) -> bool:
        """Return whether the others can continue without it in the meantime."""
        if not self.meeting.said("agreed.json"):
            return True
        return self.meeting.said("go") and player.kind != "ps" and self._waits_for_nobody

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Watch all flow runs during the block; record why, and tell the chief, if training cannot go on."""
        ended = threading.Event()

        def keep() -> None:
            while self.failure is None and not ended.wait(_SECONDS_BETWEEN_QUESTIONS):
                try:
                    self.look()
                except SlipwayError as error:
                    self.failure = error
                    self.meeting.say("given_up", error.message)
                except Exception as error:  # making a new run, say: the next look tries again
                    _log.warning("a process of the cluster could not be looked after: %s", error)

        thread = threading.Thread(target=copy_context().run, args=(keep,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def end(self, grace: Mapping[str, float]) -> None:
        """Announce the end of training, and wait until every flow run has ended."""
        self.meeting.say("over", dict(grace))
        begun = [player for player in self._players if player.flow_run]
        deadline = time.monotonic() + max(grace.values(), default=0.0) + _SECONDS_TO_CANCEL
        try:
            while left := self._unfinished(begun):
                for player, state in left:
                    if state.type == StateType.SCHEDULED:
                        flow_runs.put(player.flow_run, Cancelled(message="training is over"))
                    elif time.monotonic() > deadline:
                        flow_runs.put(
                            player.flow_run, Crashed(message="training is over, and it did not end")
                        )
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except Exception as error:  # what ended training is to be told, not this
            _log.warning("the runs of the cluster could not be ended: %s", error)

    def _unfinished(self, begun: list[_Player]) -> list[tuple[_Player, State[Any]]]:
        states = self._states() if begun else {}
        return [(each, states[each.flow_run]) for each in begun if not states[each.flow_run].is_final()]
