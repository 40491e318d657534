"""Who may read `$SLIPWAY_HOME`: folders of other releases are closed, folders of other people are left alone.

test_machines.py looks at every mode of a home after a run under umask 000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import home as homes
from flows.command.reports import Reports
from tasks.runs.run_records import RunRecord
from tasks.state import model_versions


@pytest.fixture(autouse=True)
def _umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that starts under umask 000."""
    before = os.umask(0o000)
    monkeypatch.setattr(homes, "_user_umask", None)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_an_existing_home_stays_as_it_is_and_what_was_open_in_it_is_closed(home: Path) -> None:
    """The home may be a folder with other things in it."""
    for name in ("prefect", "runs", "servers", "other"):
        (home / name).mkdir(parents=True)
    homes.close_to_others()
    assert {child.name: _mode(child) for child in home.iterdir()} == {
        "prefect": 0o700, "runs": 0o700, "servers": 0o700, "other": 0o777,
    }  # fmt: skip
    assert _mode(home) == 0o777


def test_a_new_home_is_passed_through_and_not_listed(home: Path) -> None:
    """On the way to the versions, which a container's user reads."""
    homes.close_to_others()
    homes.make()
    model_versions.require_writable(homes.default_model_base_path("small"))
    assert [_mode(home / each) for each in ("", "models", "models/small")] == [0o711, 0o755, 0o755]


def test_reports_have_the_mode_that_the_user_wants(home: Path, tmp_path: Path) -> None:
    """A CI system reads them as another user; called twice, as by two flows in one process, too."""
    homes.close_to_others()
    homes.close_to_others()
    reports = Reports(tmp_path / "verdict.json", tmp_path / "junit.xml")
    reports.write(RunRecord(pipeline="small").verdict())
    assert (_mode(tmp_path / "verdict.json"), _mode(tmp_path / "junit.xml")) == (0o666, 0o666)
