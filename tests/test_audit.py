"""`make audit`: what comes of what pip-audit says of the locks."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([], 0, "nothing was audited"),
        ([SKIPPED], 0, "nothing was audited"),
        ([FINE, SKIPPED], 0, "could not be; 0 to mend"),
        (
            [package("tensorflow")],
            0,
            "tensorflow 1: CVE-1, fixed in no release (2.15 is the last",
        ),
        ([FINE, package("rich", "2", "3")], 1, "rich 1: CVE-1, fixed in 2, 3 (NOT ACCEPTED)"),
    ],
    ids=["no answer", "unknown packages", "some unknown", "accepted", "refused"],
)
def test_only_what_is_known_and_not_accepted_fails(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]], code: int, told: str,
) -> None:  # fmt: skip
    """An index that says nothing is told, and is no reason to fail."""
    monkeypatch.setattr(audit, "asked", lambda _: packages)
    assert audit.main() == code
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("told", [[], [SKIPPED]], ids=["no answer", "unknown packages"])
def test_a_lock_that_nothing_is_told_of_is_named(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    told: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Else two locks would look like three. It fails nothing, and the others are not named."""
    silent = FILE.parents[1] / "containers" / "pipeline" / "requirements.lock"
    monkeypatch.setattr(audit, "asked", lambda lock: told if lock == silent else [FINE])
    assert audit.main() == 0
    out = capsys.readouterr().out
    assert "audit: nothing was told of containers/pipeline/requirements.lock: it was NOT AUDITED" in out
    assert out.count("NOT AUDITED") == 1


def test_every_lock_is_audited(audit: ModuleType) -> None:
    """The checkout's and those of the images."""
    assert set(audit.LOCKS) == set(FILE.parents[1].rglob("requirements.lock")) - _in_venv()


def _in_venv() -> set[Path]:
    return set((FILE.parents[1] / ".venv").rglob("requirements.lock"))
