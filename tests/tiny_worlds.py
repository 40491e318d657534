"""A model that is deployed to a tiny server, in the test's own process: a deploy takes half a second.

With a SavedModel of a test it is deployed to the product's own server.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import tiny_server
from pipelines import written
from prefect.logging import disable_run_logger
from rich.console import Console
from waiting import eventually

from configs.loading.pipelines import Pipeline
from flows.command import status_command, terminal
from tasks.core.artifacts import ModelVersion, Run
from tasks.deployment import deploy
from tasks.deploys import interrupted_deploys, undoing
from tasks.deploys.rolling_back import roll_back
from tasks.preflight import serving_target
from tasks.runs import interrupted_runs, run_folders
from tasks.runs.run_folders import FlowRun
from tasks.runs.run_records import RunRecord
from tasks.servers import model_servers, model_status
from tasks.state import deploy_journal, model_versions, server_records
from tasks.state.deploy_journal import Journal

NAME = "small"


@dataclass
class World:
    """A deployed model, and what it takes to be as it was."""

    folder: Path
    pipeline: Pipeline
    saved_model: Path | None = None
    """What is published; None if nobody loads it."""
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
                recovery = interrupted_deploys.recover_locked(config.deployment, config.smoke_test, run)
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
        if self.saved_model is not None:
            shutil.copytree(self.saved_model, candidate)
        else:
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
        left = interrupted_deploys.left()
        config = self.pipeline.config
        with deploy_journal.held(NAME, 0):
            run = self.run("r9")
            recovery = interrupted_deploys.recover_locked(config.deployment, config.smoke_test, run)
        return f"{[str(each) for each in left.values()]} {recovery.found} {recovery.done}"

    def do(self, command: str) -> str:
        """Do what a command does; return what it reports."""
        if command == "status":
            shown = io.StringIO()
            status_command.show(Console(file=shown, width=300))
            terminal.show_status(self.pipeline)
            return shown.getvalue()
        if command == "rollback":
            return roll_back(self.pipeline).summary()
        return self.recover() if command == "recover" else self.next_run("r3")

    def live(self) -> int:
        """Return the version that the server on record answers with."""
        record = model_servers.running(NAME)
        assert record is not None, "no server is known"
        live = model_status.live_version(record.rest, NAME)
        assert live is not None, "no version answers"
        return live

    def servers(self) -> list[psutil.Process]:
        """Return the processes that serve."""
        flag = f"--model_base_path={self.base}"
        return [each for each in psutil.process_iter(["cmdline", "status"])
                if each.info["status"] != "zombie" and flag in (each.info["cmdline"] or ())]  # fmt: skip

    def save(self, name: str) -> None:
        """Keep the present state under a name."""
        for part in ("home", "models"):
            shutil.copytree(self.folder / part, self.folder / "saved" / name / part, symlinks=True)

    def restore(self, name: str) -> None:
        """Be as it was, server included: its log is its output, so that the file stays.

        The product's own server is started anew: it would meet versions whose files are half there.
        """
        if self.saved_model is not None:
            self.stop()
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
            eventually(lambda: model_status.live_version(started.rest, NAME) is not None, seconds=120)
            for each in (self.folder / "saved").iterdir():  # the handle of the new one is in every state
                shutil.copy(server_records._file(NAME), each / "home" / "servers")
        eventually(lambda: self.live() == max(model_versions.published(self.base)))

    def stop(self) -> None:
        """Kill all servers."""
        for process in self.servers():
            process.kill()
            process.wait(10)


@contextmanager
def opened(folder: Path, saved_model: Path | None = None) -> Iterator[World]:
    """Yield a world with versions 1 and 2; in state `unfinished` the second's deploy is smoke-tested only."""
    server: dict[str, object] = {}
    if saved_model is None:
        server = {"executable": str(tiny_server.write(folder / "tiny_model_server")), "insecure": True}
    pipeline = written(folder / NAME, {
        "export": {"model_base_path": str(folder / "models")},
        "deployment": {"target": "process", "grpc_port": 0, "rest_port": 0, "load_timeout_seconds": 120},
        "server": server,
    })  # fmt: skip
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("SLIPWAY_HOME", str(folder / "home"))
        patched.delenv("PREFECT_API_URL", raising=False)
        patched.setattr(undoing.served_answers, "prove_again", lambda *_, **__: "answers as it should")
        stack.enter_context(disable_run_logger())
        made = World(folder, pipeline, saved_model)
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
