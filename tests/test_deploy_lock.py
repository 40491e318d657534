"""What the deploy lock covers in the flow: a rollback must not find its version removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipelines import run_of, written

from configs.loading.pipelines import Pipeline
from flows import policy, retrain_and_deploy
from tasks.core.errors import AlreadyRunning
from tasks.state import deploy_journal

BEFORE = ("recover", "preflight", "ingest", "check_data", "train", "evaluate", "export", "validate", "canary")
UNDER_THE_LOCK = ("publish", "deploy", "smoke_test", "retire")


@pytest.fixture
def pipeline(tmp_path: Path, home: Path) -> Pipeline:
    """A pipeline named `small`."""
    return written(tmp_path / "pipeline", {})


@pytest.fixture
def flow(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The flow, with stages that do nothing but try to roll back; returns those in which that was refused."""
    refused: list[str] = []
    run = run_of(pipeline, tmp_path)

    def stage(name: str) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            try:
                with deploy_journal.held(run.pipeline, timeout_seconds=0):
                    pass
            except AlreadyRunning:
                refused.append(name)
            return SimpleNamespace()

        return called

    @contextmanager
    def recorded(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(config=pipeline.config, run=run, ends_here=lambda _: None,
                              ends_if_needless=lambda _: None, state=lambda: None)  # fmt: skip

    monkeypatch.setattr(retrain_and_deploy, "recorded_run", recorded)
    monkeypatch.setattr(policy, "settle", lambda *_: None)
    for name in (*BEFORE, *UNDER_THE_LOCK):
        monkeypatch.setattr(retrain_and_deploy, name, stage(name))

    def call() -> list[str]:
        retrain_and_deploy.retrain_and_deploy.fn(str(pipeline.file))
        return refused

    return call


def test_no_version_retires_while_a_rollback_may_begin(flow: Callable[[], list[str]]) -> None:
    """From publish to retire the lock is held without a gap; training does not hold it."""
    assert flow() == [*UNDER_THE_LOCK]


def test_a_failure_of_retire_undoes_no_deploy(
    flow: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is proven, and stays."""
    undone: list[BaseException] = []
    monkeypatch.setattr(policy, "abandon", lambda error, *_: undone.append(error))

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(retrain_and_deploy, "retire", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        flow()
    assert not undone
