"""What the terminal says in the field's words: status and its JSON, help, plan, rollback, what serves."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pipelines import run_of, written
from slipway_command import DIGITS

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from flows.command import plan_command, status_command, terminal
from flows.command.cli import app, main
from tasks.deploys import planning, rolling_back
from tasks.runs import run_folders
from tasks.servers import model_servers, model_status
from tasks.state import server_records
from tasks.state.server_records import ServerRecord

LIVE = 1795860000


def _verdict(home: Path, run_id: str, minute: int, **verdict: Any) -> None:
    folder = home / "runs" / "digits" / run_id
    folder.mkdir(parents=True)
    file = folder / "verdict.json"
    file.write_text(json.dumps({"run_id": run_id, "error": None, **verdict}))
    time = datetime(2026, 11, 28, 3, minute, tzinfo=timezone.utc).timestamp()
    os.utime(file, (time, time))


@pytest.fixture
def serving(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of long ago, whose version was deployed, then rejected after, then rolled back to."""
    record = ServerRecord(
        "digits", "process", "program", "identity", str(home / "models"), (), 8500, 8501, "1:1.0",
        started_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    server_records.write(record)
    for module in (model_servers,):
        monkeypatch.setattr(module, "is_alive", lambda record: True)
    monkeypatch.setattr(model_status, "live_version", lambda rest, name: LIVE)
    _verdict(home, "20261128-030000-000000", 4, outcome="deployed", version=LIVE)
    _verdict(home, "20261128-040000-000000", 5, outcome="rolled_back", version=LIVE + 1)
    _verdict(home, "20261128-050000-000000", 9, outcome="restored", version=LIVE)
    _verdict(home, "20261128-060000-000000", 11, outcome="rejected", version=None)


@pytest.mark.usefixtures("serving")
class TestStatus:
    """`slipway status`."""

    def test_since_is_the_versions(self, capsys: pytest.CaptureFixture[str]) -> None:
        """When it last began to serve, by the verdict; the server may be months older."""
        since = datetime(2026, 11, 28, 3, 9, tzinfo=timezone.utc)
        assert run_folders.serving_since("digits", LIVE) == since
        assert run_folders.serving_since("digits", LIVE + 1) is None
        shown = f"{since.astimezone():%Y-%m-%d %H:%M}"
        assert main(["status", str(DIGITS)]) == 0
        assert f"version {LIVE} since {shown}" in capsys.readouterr().out
        assert main(["status"]) == 0
        assert shown.split(maxsplit=1)[0] in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [[], [str(DIGITS)]])
    def test_as_json(self, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
        """A list, of all pipelines or of one; times are ISO 8601 with their zone."""
        assert main(["status", *arguments, "--json"]) == 0
        (digits,) = json.loads(capsys.readouterr().out)
        assert digits["pipeline"] == "digits"
        assert (digits["version"], digits["since"]) == (LIVE, "2026-11-28T03:09:00+00:00")
        assert digits["last_verdict"] == {
            "outcome": "rejected", "run_id": "20261128-060000-000000", "error": None,
        }  # fmt: skip
        assert (digits["grpc"], digits["server_answers"]) == ("127.0.0.1:8500", True)

    def test_of_a_pipeline_that_was_never_run(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Nothing serves it."""
        assert main(["status", str(written(tmp_path, {}).folder), "--json"]) == 0
        (small,) = json.loads(capsys.readouterr().out)
        assert (small["version"], small["since"], small["last_verdict"]) == (None, None, None)

    def test_a_run_that_deploys_nothing_says_what_still_serves(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Version and address, in the last line."""
        terminal._print_what_serves("digits")
        assert capsys.readouterr().out.strip() == f"Version {LIVE} still serves at 127.0.0.1:8500."


def test_where_nothing_serves(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """It says so."""
    terminal._print_what_serves("digits")
    assert capsys.readouterr().out.strip() == "No version of digits serves."


def test_help_has_groups_and_nothing_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command is in a group; no empty default, and a positional has one name."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [shown.index(title) for title in ("Make a pipeline", "Run it", "Serve and inspect", "Every night")]
    for name in app:
        if not name.startswith("-"):
            assert main([name, "--help"]) == 0
            shown = capsys.readouterr().out
            assert "[default: ()]" not in shown and "[default: False]" not in shown
            assert "--pipeline " not in shown and "--run-id" not in shown


def test_there_is_no_earlier_version(home: Path, tmp_path: Path) -> None:
    """Rollback says it in these words."""
    run = run_of(written(tmp_path, {}), tmp_path)
    (run.model_base_path / "7").mkdir(parents=True)
    (run.model_base_path / "7" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ConfigError, match="There is no earlier version of small to roll back to"):
        rolling_back._target(run, None)


def test_a_plan_says_what_preflight_does_and_what_would_be_repeated(home: Path) -> None:
    """In verbs."""
    planned = planning.plan(load_pipeline(DIGITS))
    does = {stage.name: stage.does for stage in planned.stages}
    assert does["preflight"].startswith("checks folder, ports and Docker (falls back to a local process)")
    resumed = plan_command._resumed(planning.Resumable("r1", (), None))
    assert resumed == "run r1, by --resume: every stage would be repeated"
    assert status_command.scheduled().known is False
