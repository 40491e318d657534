"""The SHA-256 list of a version's files: written when it is published, checked before it is served."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from model_server_fixtures import NAME, Models, StartServer, expected, wait_until
from pipelines import written
from prefect.logging import disable_run_logger

from model_server.base.status import Code, StatusError
from model_server.models import checksums
from tasks.core.artifacts import ModelVersion
from tasks.core.errors import EnvironmentFault
from tasks.deployment import deploy
from tasks.deploys.rolling_back import roll_back
from tasks.state import model_versions, version_checksums

pytest_plugins = ["model_server_fixtures"]


def published(base: Path, run_id: str = "r1") -> Path:
    """A version with a graph, variables, and answers that are its owner's."""
    folder = model_versions.candidate_folder(base, run_id)
    for name in ("saved_model.pb", "variables/variables.index", "assets.extra/answers/candidate.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return model_versions.publish(folder, base, "sequential", origin={"run_id": run_id, "previous": None})


def edit(folder: Path) -> None:
    (folder / "variables" / "variables.index").write_bytes(b"other")


def remove(folder: Path) -> None:
    (folder / "variables" / "variables.index").unlink()


def add(folder: Path) -> None:
    (folder / "variables" / "more").write_bytes(b"")


DAMAGES = [
    (edit, "variables.index.* changed"),
    (remove, "variables.index is missing"),
    (add, "variables/more"),
]


def test_sha256sum_reads_the_list(tmp_path: Path) -> None:
    """It is in the form that every system's own tool checks, and names every file but itself."""
    folder = published(tmp_path)
    told = subprocess.run(
        ["sha256sum", "--check", "--strict", str(version_checksums.FILE)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    listed = {line.removesuffix(": OK") for line in told.stdout.splitlines()}
    assert listed == files - {str(version_checksums.FILE)}


def test_what_was_published_is_unchanged(tmp_path: Path) -> None:
    """By the pipeline's own eyes, and the server's; copied elsewhere too."""
    copied = shutil.copytree(published(tmp_path / "base"), tmp_path / "copy")
    version_checksums.require_unchanged(copied)
    checksums.verify(copied)


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_changed_version_is_told(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """A file edited, removed or added: by name, with what to do."""
    folder = published(tmp_path)
    damage(folder)
    with pytest.raises(EnvironmentFault, match=said) as caught:
        version_checksums.require_unchanged(folder)
    assert "sha256sum -c assets.extra/SHA256SUMS" in caught.value.hint
    with pytest.raises(StatusError, match=said) as refused:
        checksums.verify(folder)
    assert refused.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("name", ["with a space", "back\\slash", "new\nline", "\\new", "ümlaut"])
def test_odd_names_are_listed(tmp_path: Path, name: str) -> None:
    """As sha256sum escapes them."""
    (tmp_path / name).write_bytes(b"1")
    version_checksums.write(tmp_path)
    version_checksums.require_unchanged(tmp_path)
    checksums.verify(tmp_path)
    command = ["sha256sum", "--check", "--strict", "--quiet", str(version_checksums.FILE)]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_a_version_without_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    """Versions may be put there by hand, or by another release."""
    folder = published(tmp_path)
    (folder / version_checksums.FILE).unlink()
    edit(folder)
    version_checksums.require_unchanged(folder)
    checksums.verify(folder)


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    """Cut short, it would say that files were added."""
    folder = published(tmp_path)
    (folder / version_checksums.FILE).write_text("half a li")
    with pytest.raises(EnvironmentFault, match="SHA256SUMS is damaged"):
        version_checksums.require_unchanged(folder)
    with pytest.raises(StatusError, match="is no list"):
        checksums.verify(folder)


def test_the_server_needs_no_right_to_read_the_answers(tmp_path: Path) -> None:
    """They are their owner's; what they hold is not looked at."""
    folder = published(tmp_path)
    shutil.rmtree(folder / "assets.extra" / "answers")
    checksums.verify(folder)
    with pytest.raises(EnvironmentFault, match=r"answers/candidate\.json is missing"):
        version_checksums.require_unchanged(folder)


def test_a_changed_version_is_not_deployed(tmp_path: Path) -> None:
    """Before any server is started or asked."""
    folder = published(tmp_path)
    edit(folder)
    with disable_run_logger(), pytest.raises(EnvironmentFault, match="is not what was published"):
        deploy.fn(ModelVersion(1, folder), None, None, None, None)


def test_a_rollback_to_a_changed_version_changes_nothing(tmp_path: Path) -> None:
    """The version that serves is not given up for one that no server would load."""
    base = tmp_path / "models"
    edit(published(base))
    published(base, "r2")
    pipeline = written(tmp_path / "small", {"export": {"model_base_path": str(base)}})
    with pytest.raises(EnvironmentFault, match="0001 is not what was published"):
        roll_back(pipeline)
    assert list(model_versions.versions(base)) == [1, 2]


def test_what_a_rollback_leaves_is_its_owners_alone(tmp_path: Path, home: Path) -> None:
    """As with any run: the request that it proves the version by is an example."""
    base = tmp_path / "models"
    published(base)
    published(base, "r2")
    roll_back(written(tmp_path / "small", {"export": {"model_base_path": str(base)}}))
    (verdict,) = (home / "runs" / "small").glob("*/verdict.json")
    assert verdict.parent.stat().st_mode & 0o777 == 0o700


def test_the_server_keeps_the_version_before_a_changed_one(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """It is not loaded, its state says which file, and the one before answers; put right, it is served."""
    from tasks.servers.model_status import version_statuses

    models.publish(tmp_path, 1)
    server = start_server(tmp_path)
    changed = models.publish(tmp_path / "elsewhere", 2)
    version_checksums.write(changed)
    kept = (changed / "saved_model.pb").read_bytes()
    (changed / "saved_model.pb").write_bytes(kept + b"\x00")
    changed.rename(tmp_path / "2")

    def said(version: int) -> str:
        found = version_statuses(f"http://127.0.0.1:{server.rest_port}", NAME)
        return next((f"{each.state} {each.error}" for each in found if each.version == version), "")

    wait_until(
        lambda: "saved_model.pb has changed since assets.extra/SHA256SUMS" in said(2),
        "the refusal",
        server.log,
    )
    assert said(1) == "AVAILABLE "
    _, answer = server.post(f"/v1/models/{NAME}:predict", {"instances": [5.0]})
    assert answer["predictions"] == [expected(5.0, 1)]
    (tmp_path / "2" / "saved_model.pb").write_bytes(kept)
    wait_until(lambda: said(2).startswith("AVAILABLE"), "version 2", server.log)
