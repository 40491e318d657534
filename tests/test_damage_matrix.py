"""Every state file x every damage x every command: nobody has to help, and an approved version serves.

One world in this process: a model whose versions 1 and 2 are deployed to a tiny server, put back to that
state before each case. docs/reference/damage.md has the table that the tests print.
"""

from __future__ import annotations

import io
import logging
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import tiny_server
from damages import DAMAGES
from pipelines import written
from prefect.logging import disable_run_logger
from rich.console import Console
from slipway_command import REPOSITORY
from waiting import eventually

from configs.loading import Pipeline
from flows import overview, terminal
from tasks import deploy_journal, model_versions, published_versions, undoing, unfinished_deploys
from tasks.artifacts import ModelVersion, Run
from tasks.deploy_journal import Journal
from tasks.deployment import deploy
from tasks.preflight import serving_target
from tasks.rolling_back import roll_back
from tasks.runs import interrupted_runs, run_folders
from tasks.runs.run_folders import FlowRun
from tasks.runs.run_records import RunRecord
from tasks.servers import model_servers, model_status, server_records

NAME = "small"
PAGE = REPOSITORY / "docs" / "reference" / "damage.md"
Rows = dict[tuple[str, str], dict[str, str]]
"""By file and command, each damage and what it came to: `named`, nothing, or an error."""
COMMANDS = ("recover", "next run", "rollback", "status")


@dataclass
class World:
    """A deployed model, and what it takes to be as it was."""

    folder: Path
    program: Path
    pipeline: Pipeline
    saved: dict[str, Path] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Its $SLIPWAY_HOME."""
        return self.folder / "home"

    @property
    def base(self) -> Path:
        """Its model base path."""
        return self.folder / "models"

    def run(self, run_id: str) -> Run:
        """Describe a run."""
        return run_folders.describe(self.pipeline, run_id)

    def next_run(self, run_id: str, *, conclude: bool = True) -> str:
        """Recover and deploy as a run does, from its lock to its verdict; return what recovery found."""
        run, config = self.run(run_id), self.pipeline.config
        with run_folders.opened(self.pipeline, run, FlowRun("retrain-and-deploy", f"flow-{run_id}")):
            with deploy_journal.held(NAME, 10):
                recovery = unfinished_deploys.recover_locked(config.deployment, config.smoke_test, run)
                number = self._deploy(run)
                if conclude:
                    journal = deploy_journal.of_run(run)
                    assert journal is not None
                    deploy_journal.conclude(journal, "committed")
                    model_versions.prune(self.base, 5, {number})
            record = RunRecord(NAME, run_id)
            record.version = number
            run_folders.write_verdict(record.verdict(), run_folders.verdict_file(run))
        return f"{recovery.found} {recovery.done}"

    def _deploy(self, run: Run) -> int:
        config = self.pipeline.config
        target = replace(serving_target(config.deployment, config.server, run), published_only=True)
        candidate = model_versions.candidate_folder(self.base, run.run_id)
        candidate.mkdir()
        (candidate / "saved_model.pb").write_bytes(b"graph")
        previous = max(model_versions.published(self.base), default=None)
        planned = model_servers.planned(target, run)
        deploy_journal.write(Journal(NAME, run.run_id, self.base, "prepared", previous, (), planned))
        folder = model_versions.publish(
            candidate, self.base, "sequential", origin={"run_id": run.run_id}, published_only=True
        )
        number = int(folder.name)
        deploy_journal.note(run, "published", versions=(number,))
        deploy.fn(
            ModelVersion(number, folder, previous=previous), target, config.deployment, config.smoke_test, run
        )
        deploy_journal.note(run, "smoke-tested")
        return number

    def recover(self) -> str:
        """Do as `slipway recover` does where no run was killed."""
        interrupted_runs.found()
        left = unfinished_deploys.left()
        config = self.pipeline.config
        with deploy_journal.held(NAME, 0):
            run = self.run("r9")
            recovery = unfinished_deploys.recover_locked(config.deployment, config.smoke_test, run)
        return f"{[str(each) for each in left.values()]} {recovery.found} {recovery.done}"

    def do(self, command: str) -> str:
        """Do what a command does; return what it reports."""
        if command == "status":
            shown = io.StringIO()
            overview.show(Console(file=shown, width=300))
            terminal.show_status(self.pipeline)
            return shown.getvalue()
        if command == "rollback":
            return roll_back(self.pipeline).proved()
        return self.recover() if command == "recover" else self.next_run("r3")

    def servers(self) -> list[psutil.Process]:
        """Return the processes that serve."""
        children = psutil.Process().children()
        return [each for each in children
                if each.status() != "zombie" and str(self.program) in each.cmdline()]  # fmt: skip

    def save(self, name: str) -> None:
        """Keep the present state under a name."""
        for part in ("home", "models"):
            shutil.copytree(self.folder / part, self.folder / "saved" / name / part, symlinks=True)

    def restore(self, name: str) -> None:
        """Be as it was, server included: its log is its output, so that the file stays."""
        for part in ("home", "models"):
            for path in sorted((self.folder / part).rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.suffix != ".log":
                    path.unlink()
            shutil.copytree(
                self.folder / "saved" / name / part, self.folder / part, dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("*.log"),
            )  # fmt: skip
        record = server_records.read(NAME)
        assert record is not None
        if [process.pid for process in self.servers()] != [int(record.handle.split(":")[0])]:
            self.stop()
            started = model_servers.start(record)
            eventually(lambda: model_status.live_version(started.rest, NAME) is not None)
            for each in (self.folder / "saved").iterdir():  # the handle of the new one is in every state
                shutil.copy(server_records._file(NAME), each / "home" / "servers")

    def stop(self) -> None:
        """Kill all servers."""
        for process in self.servers():
            process.kill()
            process.wait(10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    """Versions 1 and 2 are deployed; state `unfinished` has the second's deploy smoke-tested only."""
    folder = tmp_path_factory.mktemp("damage")
    program = tiny_server.write(folder / "tiny_model_server")
    pipeline = written(folder / NAME, {
        "export": {"model_base_path": str(folder / "models")},
        "deployment": {"target": "process", "grpc_port": 0, "rest_port": 0, "load_timeout_seconds": 30},
        "server": {"executable": str(program), "insecure": True},
    })  # fmt: skip
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("SLIPWAY_HOME", str(folder / "home"))
        patched.delenv("PREFECT_API_URL", raising=False)
        patched.setattr(undoing.served_answers, "prove_again", lambda *_, **__: "answers as it should")
        stack.enter_context(disable_run_logger())
        made = World(folder, program, pipeline)
        stack.callback(made.stop)
        made.next_run("r1")
        made.next_run("r2", conclude=False)
        note = run_folders.runs_folder(NAME) / ".running"
        run_folders.note(note.parent, pipeline, made.run("r2"))
        made.save("unfinished")
        journal = deploy_journal.read(NAME)
        assert journal is not None
        deploy_journal.conclude(journal, "committed")
        made.save("deployed")
        yield made


@pytest.fixture(autouse=True)
def home(world: World) -> Path:
    """In place of a home for each test: all share the world's."""
    return world.home


FILES: dict[str, Callable[[World], Path]] = {
    "servers/<model>.json": lambda world: server_records._file(NAME),
    "servers/<model>.replaced.json": lambda world: server_records._file(NAME, ".replaced"),
    "runs/<pipeline>/deploy.json": lambda world: deploy_journal.file(NAME),
    "runs/<pipeline>/<run>/deploy.json": lambda world: deploy_journal.filed(NAME, "r1"),
    "runs/<pipeline>/.running": lambda world: run_folders.runs_folder(NAME) / ".running",
    "runs/<pipeline>/<run>/verdict.json": lambda world: world.run("r2").folder / "verdict.json",
    "runs/<pipeline>/<run>/config.yaml": lambda world: world.run("r2").folder / "config.yaml",
    "runs/<pipeline>/<run>/.flow_run": lambda world: world.run("r2").folder / ".flow_run",
    "runs/<pipeline>/<run>/.started": lambda world: world.run("r2").folder / ".started",
    "<model_base_path>/.highest_version": lambda world: world.base / ".highest_version",
    "<model_base_path>/.published": lambda world: world.base / ".published",
}


READ = {
    "servers/<model>.json": COMMANDS,
    "servers/<model>.replaced.json": ("rollback",),
    "runs/<pipeline>/deploy.json": ("recover", "next run", "rollback"),
    "runs/<pipeline>/.running": ("recover",),
    "runs/<pipeline>/<run>/verdict.json": ("status",),
    "<model_base_path>/.highest_version": COMMANDS,
    "<model_base_path>/.published": ("recover", "next run", "rollback"),
}
"""Which commands, with the run after them, read a file: they name one that is damaged."""
UNDETECTED = {
    "runs/<pipeline>/.running": ("one bit flipped",),
    "runs/<pipeline>/<run>/verdict.json": ("one bit flipped",),
}
"""Files without a checksum: nothing that serves depends on them."""


QUICK = {
    ("servers/<model>.json", "next run"), ("runs/<pipeline>/deploy.json", "recover"),
    ("runs/<pipeline>/.running", "next run"), ("<model_base_path>/.highest_version", "next run"),
    ("<model_base_path>/.published", "rollback"),
}  # fmt: skip
"""Cases that `make test` has time for."""


class TestEveryFile:
    """The file is damaged before the command; then the next run deploys all the same."""

    @pytest.fixture(scope="class")
    def rows(self) -> Iterator[Rows]:
        """What the cases came to; the table is printed at the end."""
        rows: Rows = {}
        yield rows
        sys.stdout.write(f"\n\n{_table(rows)}\n")

    @pytest.mark.parametrize(
        ("name", "command"),
        [pytest.param(name, command, marks=() if (name, command) in QUICK else pytest.mark.extended)
         for name in FILES for command in COMMANDS],
    )  # fmt: skip
    def test_every_damage(
        self, world: World, name: str, command: str, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One server answers with an approved version; the file is named if the command reads it."""
        rows[name, command] = {damage: _outcome(world, name, command, damage, caplog) for damage in DAMAGES}
        assert {key: told for key, told in rows[name, command].items() if told not in ("named", "")} == {}
        if command in READ.get(name, ()):
            due = set(DAMAGES) - {"missing", "newer"} - set(UNDETECTED.get(name, ()))
            assert {key for key, told in rows[name, command].items() if told == "named"} >= due

    def test_the_page_has_the_table(self, rows: Rows) -> None:
        """docs/reference/damage.md, row by row, as far as the cases ran."""
        page = PAGE.read_text()
        assert [line for line in _table(rows).splitlines()[2:] if "—" not in line and line not in page] == []


def _outcome(world: World, name: str, command: str, damage: str, caplog: pytest.LogCaptureFixture) -> str:
    try:
        return _case(world, name, command, damage, caplog)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _table(rows: Rows) -> str:
    """Return the number of damages that were survived, and of those named, by file and command."""
    lines = [f"| file | {' | '.join(COMMANDS)} |", f"|---|{'---|' * len(COMMANDS)}"]
    for name in FILES:
        cells = []
        for command in COMMANDS:
            told = rows.get((name, command))
            survived = [each for each in (told or {}).values() if each in ("named", "")]
            by_chance = UNDETECTED.get(name, ())
            named = sum(each == "named" for key, each in (told or {}).items() if key not in by_chance)
            shown = f"{len(survived)} of {len(told or {})}{f', {named} named' if named else ''}"
            cells.append("—" if told is None else shown)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _case(world: World, name: str, command: str, damage: str, caplog: pytest.LogCaptureFixture) -> str:
    world.restore("unfinished" if name == "runs/<pipeline>/deploy.json" else "deployed")
    file = FILES[name](world)
    if not file.exists():
        record = server_records.read(NAME)
        assert record is not None
        server_records.set_aside(replace(record, handle="999999999:0"))
    caplog.clear()
    DAMAGES[damage](file, random.Random(f"{name} {command} {damage}"))
    with caplog.at_level(logging.WARNING):
        told = world.do(command)
    live = _live(world)
    expected = {"rollback": (1,), "next run": (3,)}.get(command, (1, 2))
    assert live in expected, f"version {live} serves, expected {expected}"
    if command != "status":
        assert live in (published_versions.listed(world.base) or ()), "the list of published versions is lost"
    world.next_run("r4")
    assert _live(world) > max(expected)
    assert len(world.servers()) == 1, world.servers()
    return "named" if str(file) in f"{told}\n{caplog.text}" else ""


def _live(world: World) -> int:
    record = model_servers.running(NAME)
    assert record is not None, "no server is known"
    live = model_status.live_version(record.rest, NAME)
    assert live is not None
    return live
