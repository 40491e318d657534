"""`training.cluster.work_pool`: each process of a cluster is a flow run, which any worker host takes."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from cluster_hosts import Training, local_workers, make_pool
from pipelines import written
from slipway_command import REPOSITORY, Slipway
from waiting import eventually

from configs.loading.errors import ConfigError
from tasks.clusters.addresses import own_address, require_reachable, seat
from tasks.clusters.relay import relays
from tasks.clusters.rendezvous import CHIEF, Over, Patience, Rendezvous
from tasks.clusters.role import play
from tasks.core.errors import EnvironmentFault, ProcessDied

TWO_WORKERS = REPOSITORY / "configs" / "two_workers"
DEADLINE_SECONDS = 500.0  # steps of seconds each; one of them has taken two minutes under a load of 24
LOOPBACK = IPv4Network("127.0.0.0/8")


@pytest.mark.timeout(1800)
class TestHosts:
    """Two hosts of a pool, here processes of one machine that reach each other on loopback."""

    @pytest.fixture(scope="class")
    def pool(self, prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        """A work pool with two workers."""
        pool = make_pool(prefect_api)
        with local_workers(pool, prefect_api, tmp_path_factory.mktemp("hosts")):
            yield pool

    def started(self, slipway: Slipway, pool: str, *settings: str) -> subprocess.Popen[str]:
        """Begin to train on that pool."""
        chosen = (f"training.cluster.work_pool={pool}", *settings)
        options = [part for setting in chosen for part in ("--set", setting)]
        return slipway.start("retrain", TWO_WORKERS, *options)

    def test_a_killed_worker_comes_back_elsewhere_and_training_goes_on(
        self, slipway: Slipway, pool: str, prefect_api: str
    ) -> None:
        """The flow run of a worker dies; another takes its place, at a new address, and makes steps.

        The chief is halted meanwhile, so that steps are left to make. At the end all flow runs are too.
        """
        command = self.started(slipway, pool, "training.max_steps=4000")
        training = Training(slipway.home, prefect_api)
        eventually(lambda: training.makes_steps("worker-0"), DEADLINE_SECONDS, every=0.5)
        chief = training.playing("chief")
        chief.suspend()
        training.playing("worker-0").parent().kill()
        eventually(
            lambda: training.log("worker-0").count("Start Tensorflow server.") == 2,
            DEADLINE_SECONDS,
            every=0.5,
        )
        eventually(lambda: training.makes_steps("worker-0"), DEADLINE_SECONDS, every=0.5)
        chief.resume()
        output, _ = command.communicate(timeout=DEADLINE_SECONDS)
        assert command.returncode == 0, output
        assert training.states() == {"worker-0": ["Crashed", "Completed"], "ps-0": ["Completed"]}
        assert "checkpoint at step 4,00" in output

    def test_runs_of_a_chief_that_was_killed_end_by_themselves(
        self, slipway: Slipway, pool: str, prefect_api: str
    ) -> None:
        """kill -9 of the flow: nobody tells them, but no sign of life does. Then a resumed run is stopped."""
        settings = ("training.max_steps=1000000", "training.save_checkpoints_steps=100",
                    "training.cluster.lease_seconds=10")  # fmt: skip
        training = Training(slipway.home, prefect_api)
        command = self.started(slipway, pool, *settings)
        eventually(lambda: training.makes_steps("worker-0"), DEADLINE_SECONDS, every=0.5)
        command.kill()
        command.communicate(timeout=DEADLINE_SECONDS)
        ended = {"worker-0": ["ProcessDied"], "ps-0": ["ProcessDied"]}
        eventually(lambda: training.states() == ended, DEADLINE_SECONDS, every=0.5)
        resumed = slipway.start("retrain", TWO_WORKERS, "--resume")
        eventually(lambda: training.states().get("ps-0", [])[1:] == ["Running"], DEADLINE_SECONDS, every=0.5)
        eventually(
            lambda: training.log("worker-0").count("Start Tensorflow server.") == 2,
            DEADLINE_SECONDS,
            every=0.5,
        )
        resumed.send_signal(signal.SIGINT)
        resumed.communicate(timeout=DEADLINE_SECONDS)
        assert training.states() == {
            "worker-0": ["ProcessDied", "Completed"],
            "ps-0": ["ProcessDied", "Completed"],
        }
        assert "Saving checkpoints for" in training.log("chief").rpartition("Start Tensorflow server.")[2]

    def test_a_pool_that_does_not_exist(self, slipway: Slipway) -> None:
        """It is told, with those that there are, before anything is submitted."""
        done = slipway.run(TWO_WORKERS, "training.cluster.work_pool=nowhere", flow="retrain")
        assert done.exit_code == 1
        assert "Prefect has no work pool 'nowhere'; it has:" in done.verdict["error"]["message"]
        assert "prefect work-pool create nowhere --type process" in done.verdict["error"]["hint"]

    def test_a_pool_without_workers(self, slipway: Slipway, prefect_api: str) -> None:
        """After the time to join it is told who nobody took; the runs are cancelled, none waits for ever."""
        lonely = make_pool(prefect_api)
        settings = (f"training.cluster.work_pool={lonely}", "training.cluster.join_timeout_seconds=2")
        done = slipway.run(TWO_WORKERS, *settings, flow="retrain")
        assert done.verdict["error"]["class"] == "EnvironmentFault"
        assert f"no worker of work pool '{lonely}' took worker-0, ps-0 in 2 s" in done.output
        states = Training(slipway.home, prefect_api).states()
        assert states == {"worker-0": ["Cancelled"], "ps-0": ["Cancelled"]}


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({"ports": [20000, 20009]}, "cluster.ports needs cluster.work_pool"),
        ({"network": "10.0.5.0/24"}, "cluster.network needs cluster.work_pool"),
        ({"work_pool": "hosts", "ports": [20009, 20000]}, "the first port is above the last"),
        ({"work_pool": "hosts", "network": "10.0.5.7/24"}, "training.cluster.network"),
        ({"work_pool": "hosts", "lease_seconds": 1}, "training.cluster.lease_seconds"),
    ],
)
def test_hosts_that_could_not_meet(tmp_path: Path, cluster: dict[str, Any], problem: str) -> None:
    """Said before anything runs, with the key."""
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, {"training": {"cluster": cluster}})
    assert problem in caught.value.message


class TestAddresses:
    """Where a process is reached."""

    def test_a_host_listens_at_its_address_in_the_network_only(self) -> None:
        """On loopback by default; while others join, that they can try it."""
        with seat(LOOPBACK, None) as address:
            assert address.startswith("127.0.0.1:")
            require_reachable([address])
        with pytest.raises(EnvironmentFault, match=f"cannot reach {address}"):
            require_reachable([address])

    def test_a_host_that_is_not_in_the_network(self) -> None:
        """The error names the host, the key, and what it has there."""
        with pytest.raises(EnvironmentFault) as caught:
            own_address(IPv4Network("240.0.0.0/8"))
        told = f"network is 240.0.0.0/8: {socket.gethostname()} has no address in it"
        assert told in caught.value.message

    def test_a_range_of_ports_that_is_taken(self) -> None:
        """Ports are taken from the range that the firewall lets pass, never others."""
        with seat(LOOPBACK, None) as taken:
            port = int(taken.rpartition(":")[2])
            none = f"none of {port} to {port} is free"
            with pytest.raises(EnvironmentFault, match=none), seat(LOOPBACK, (port, port)):
                pass


class TestRelay:
    """How parameter servers call a worker, wherever it is."""

    def test_one_that_nobody_used_ends(self) -> None:
        """Without an error, and nothing listens any more."""
        with relays([lambda: None]) as (relay,):
            require_reachable([relay])
        with relays([lambda: None]) as (unused,):
            pass
        for address in (relay, unused):
            with pytest.raises(EnvironmentFault, match="cannot reach"):
                require_reachable([address])

    def test_it_goes_on_to_where_the_worker_is_now(self) -> None:
        """A connection ends with the worker's; the next one reaches the worker that came back."""
        here: list[str] = []
        with relays([lambda: here[0] if here else None]) as (relay,):
            assert self._asked(relay) == b""  # nobody is there
            for name in (b"first", b"second" * 100_000):
                with socket.create_server(("127.0.0.1", 0)) as worker:
                    here[:] = [f"127.0.0.1:{worker.getsockname()[1]}"]
                    assert self._asked(relay, worker, name) == name

    @staticmethod
    def _asked(relay: str, worker: socket.socket | None = None, answer: bytes = b"") -> bytes:
        """What comes out of the relay when `worker` answers so to what goes in."""
        host, _, port = relay.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            if worker is not None:
                client.sendall(b"hello")
                called, _ = worker.accept()
                with called:
                    assert called.recv(5) == b"hello"
                    called.sendall(answer)
            return b"".join(iter(lambda: client.recv(1 << 16), b""))


class TestPatience:
    """How long a process of a cluster waits."""

    def test_no_longer_than_its_chief_lives(self, tmp_path: Path) -> None:
        """By signs of life, not by clocks, as those of hosts differ."""
        meeting = Rendezvous(tmp_path)
        with meeting.alive(CHIEF, 5):
            patience = Patience(meeting, "ps-0", "this", 60)
            patience.check()
            meeting.say("go")
            assert patience.until(lambda: meeting.said("go"))
        with pytest.raises(ProcessDied, match="the chief has shown no sign of life"):
            Patience(meeting, "ps-0", "this", 0.1).until(lambda: False)

    def test_not_after_training(self, tmp_path: Path) -> None:
        """It is told how long it may take to end."""
        meeting = Rendezvous(tmp_path)
        meeting.say("over", {"evaluator": 60})
        with pytest.raises(Over) as caught:
            Patience(meeting, "evaluator-0", "this", 5).until(lambda: False)
        assert caught.value.seconds == {"evaluator": 60}

    def test_not_when_another_took_its_place(self, tmp_path: Path) -> None:
        """A host that was only slow, and was taken for dead, does not train beside the one that came."""
        meeting = Rendezvous(tmp_path)
        meeting.say("players.json", {"worker-0": "another"})
        with pytest.raises(ProcessDied, match="another run is worker-0 now"):
            Patience(meeting, "worker-0", "this", 5).check()


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    """A role that does not find what its chief wrote says what hosts must share."""
    with pytest.raises(EnvironmentFault) as caught:
        play(tmp_path / "not-here", "worker-0", "a-flow-run")
    assert f"{tmp_path / 'not-here'} is not there on {socket.gethostname()}" in caught.value.message
    assert "share $SLIPWAY_HOME" in caught.value.hint
