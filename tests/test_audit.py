"""`make audit`: which reports of pip-audit fail, and how long it waits for the package index."""

from __future__ import annotations

import importlib.util
import stat
import subprocess
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / ".ci" / "audit.py"
FINE = {"name": "rich", "version": "13.9.4", "vulns": []}
SKIPPED = {"name": "rich", "skip_reason": "not found"}


def package(name: str, *fixed: str) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": list(fixed)}]}


@pytest.fixture
def audit() -> ModuleType:
    """The program."""
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: ModuleType) -> Path:
    """A program in pip-audit's place; each test writes it."""
    program = tmp_path / "python"
    monkeypatch.setattr(audit.sys, "executable", str(program))
    return program


def written(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("packages", "code", "line"),
    [
        (
            [FINE, SKIPPED],
            0,
            "NOT CHECKED, unknown to the package index: rich\naudit: 1 packages checked, 0 to fix",
        ),
        ([package("tensorflow")], 0, "tensorflow 1: CVE-1, fixed in no release (2.15 is the last"),
        ([FINE, package("rich", "2", "3")], 1, "rich 1: CVE-1, fixed in 2, 3 (NOT ACCEPTED)"),
    ],
    ids=["some unknown", "accepted", "refused"],
)
def test_only_a_known_vulnerability_that_is_not_accepted_fails(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]], code: int, line: str,
) -> None:  # fmt: skip
    """Packages that the index does not know are named."""
    monkeypatch.setattr(audit, "report", lambda _: packages)
    assert audit.main() == code
    assert line in capsys.readouterr().out


def test_an_index_without_vulnerabilities_is_probed_once(
    audit: ModuleType, pip_audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One package is enough to see it; the locks are reported as not checked."""
    calls = tmp_path / "calls"
    written(
        pip_audit,
        f"echo call >> {calls}\n"
        """echo '{"dependencies": [{"name": "tensorflow", "skip_reason": "not found"}]}'""",
    )
    assert audit.main() == 0
    assert calls.read_text().count("call") == 1
    out = capsys.readouterr().out
    assert "audit: NOT CHECKED, " in out and "the package index reports no vulnerabilities" in out


def test_an_index_that_does_not_answer_is_given_up(
    audit: ModuleType, pip_audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the probe's timeout; nothing fails."""
    written(pip_audit, "exec sleep 600")
    monkeypatch.setattr(audit, "PROBE_SECONDS", 0.2)
    assert audit.main() == 0
    assert "no answer from the package index" in capsys.readouterr().out


def test_the_deadline_is_for_everything(
    audit: ModuleType, pip_audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An index that answers the probe, and then nothing."""
    written(
        pip_audit,
        """case "$*" in *0.txt*1.txt*) exec sleep 600; esac\n"""
        """echo '{"dependencies": [{"name": "tensorflow", "version": "1", "vulns": []}]}'""",
    )
    monkeypatch.setattr(audit, "DEADLINE_SECONDS", 0.5)
    assert audit.main() == 0
    assert "no answer from the package index" in capsys.readouterr().out


def test_a_failure_of_pip_audit_is_reported(
    audit: ModuleType, pip_audit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its last line."""
    written(pip_audit, "echo 'ConnectionError: refused' >&2; exit 1")
    assert audit.main() == 0
    assert "pip-audit failed: ConnectionError: refused" in capsys.readouterr().out


def test_every_pin_of_every_lock_is_audited(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both of two versions of a package, in files that pip-audit takes; markers are not evaluated."""
    tracked = subprocess.run(
        ["git", "ls-files", "*requirements*.lock"],
        cwd=FILE.parent.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert {str(lock.relative_to(FILE.parents[1])) for lock in audit.LOCKS} == set(tracked.stdout.split())
    lock = tmp_path / "requirements.lock"
    lock.write_text("a==1 ; python_version < '3.11' \\\n    --hash=x\na==2 \\\n    # via b\nb==3\n")
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        files = [word for flag, word in pairwise(command) if flag == "--requirement"]
        seen.append([Path(file).read_text() for file in files])
        return subprocess.CompletedProcess(command, 0, '{"dependencies": []}', "")

    monkeypatch.setattr(audit.subprocess, "run", run)
    audit.pip_audit(audit.pins([lock]), 1.0)
    assert seen == [["a==1\nb==3\n", "a==2\n"]]
