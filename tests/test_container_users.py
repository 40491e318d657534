"""As whom the model server runs in a container: what processes of that user can read, and what not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from slipway_command import REPOSITORY

from tasks.core.errors import EnvironmentFault
from tasks.servers import server_container
from tasks.state import model_versions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Version 1, published under umask 077, with an answer that only its owner may read."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)  # as the engine, which mounts it, can pass
    umask = os.umask(0o077)
    folder = tmp_path / "models"
    model_versions.require_writable(folder)
    candidate = model_versions.candidate_folder(folder, "r1")
    answers = candidate / "assets.extra" / "answers"
    answers.mkdir(parents=True)
    (answers / "examples").write_bytes(b"private")
    (candidate / "saved_model.pb").write_bytes(b"graph")
    model_versions.publish(candidate, folder, "sequential", published_only=True)
    os.umask(umask)
    return folder


def _give(folder: Path, uid: int, gid: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid)


def _can_read(file: Path, user: str) -> bool:
    uid, gid = map(int, user.split(":"))
    done = subprocess.run(
        ["cat", str(file)], user=uid, group=gid, extra_groups=[],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("owner", [(0, 0), (1000, 1000), (65532, 65532), (1000, 0)])
def test_it_reads_the_model_and_not_the_answers(base: Path, owner: tuple[int, int]) -> None:
    """Whoever the models belong to."""
    _give(base, *owner)
    user = server_container.user(base)
    version = base / "0001"
    assert _can_read(version / "saved_model.pb", user)
    assert _can_read(version / "assets.extra" / "SHA256SUMS", user)
    assert _can_read(base / ".published", user)
    assert not _can_read(version / "assets.extra" / "answers" / "examples", user)


def test_models_may_be_open_to_their_group_alone(base: Path) -> None:
    """It is in the group."""
    _give(base, 1000, 1000)
    base.chmod(0o750)
    assert _can_read(base / "0001" / "saved_model.pb", server_container.user(base))


def test_closed_models_are_refused_with_the_command_that_opens_them(base: Path) -> None:
    """Before anything is deployed: preflight asks too."""
    _give(base, 1000, 1000)
    base.chmod(0o700)
    with pytest.raises(EnvironmentFault, match="cannot be read by the model server") as refused:
        server_container.user(base)
    assert refused.value.hint == f"chmod g+rx {base}"
    _give(base, 0, 0)
    with pytest.raises(EnvironmentFault) as refused:
        server_container.user(base)
    assert refused.value.hint == f"chmod o+rx {base}"


def test_keys_are_for_the_group(base: Path, tmp_path: Path) -> None:
    """Mode 0640 is enough; 0600 is refused with the command to type."""
    _give(base, 1000, 1000)
    keys = tmp_path / "keys.cfg"
    keys.write_text("a key")
    os.chown(keys, 1000, 1000)
    keys.chmod(0o600)
    with pytest.raises(EnvironmentFault) as refused:
        server_container.user(base, str(keys))
    assert refused.value.hint == f"chmod g+r {keys}"
    keys.chmod(0o640)
    assert _can_read(keys, server_container.user(base, str(keys)))


def test_compose_has_two_users() -> None:
    """The worker, who owns the models, and the model server, who reads them."""
    services = yaml.safe_load((REPOSITORY / "containers" / "compose.yaml").read_text())["services"]
    assert services["model-server"]["user"] == "65533:65532"
    assert "USER 65532:65532" in (REPOSITORY / "containers" / "pipeline" / "Dockerfile").read_text()
