"""Tracebacks of defects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.command import terminal
from flows.command.reports import Reports
from tasks.core.errors import DataError
from tasks.runs import tracebacks


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_only_a_defect_is_written(tmp_path: Path) -> None:
    """Errors of the tree say what to do; an interruption is none."""
    for error in (DataError("no"), KeyboardInterrupt()):
        assert tracebacks.write(_raised(error), tmp_path / "t.txt") is None
    assert not (tmp_path / "t.txt").exists()


def test_a_file_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    """The error is reported without one."""
    (tmp_path / "file").write_text("")
    assert tracebacks.write(_raised(ValueError("odd")), tmp_path / "file" / "t.txt") is None


def test_a_defect_before_the_run_has_a_folder_is_kept_in_the_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `defects/`, named by the hint; no folder is made that would count as a run."""

    def broken(_prepare: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(terminal.ephemeral_server, "require_api", broken)
    monkeypatch.setattr(terminal.tensorflow_process, "prepare", lambda: None)
    digits = Path(__file__).resolve().parents[1] / "configs" / "digits"
    code = terminal.run_flow("retrain", str(digits), {}, Reports(tmp_path / "verdict.json", None), True)
    error = json.loads((tmp_path / "verdict.json").read_text())["error"]
    (file,) = (home / "defects").iterdir()
    assert (code, error["class"]) == (1, "ZeroDivisionError")
    assert error["hint"].endswith(f"with {file}") and "in broken" in file.read_text()
    assert not (home / "runs").exists()
