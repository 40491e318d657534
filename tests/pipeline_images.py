"""Images that compose.yaml can take, built once from Debian and PyPI packages, and what runs its commands."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import docker
import docker.errors
from model_server_image import BASE_IMAGE
from slipway_command import REPOSITORY

_CONTAINERS = REPOSITORY / "containers"
_INTO_THE_PIPELINE = (
    "configs", "flows", "tasks", "containers/model_server", "containers/pipeline",
    "containers/prefect.yaml", "prefect.yaml", ".dockerignore",
)  # fmt: skip
_BUILD_SECONDS = 1500


def compose_command() -> list[str] | None:
    """Return Docker's plug-in, else Debian's program of the same name; None where there is neither."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else None


def pipeline(engine: docker.DockerClient) -> str:
    """Return the tag of the image in which flows run; a change of the code builds its last layer anew."""
    files = [file for name in _INTO_THE_PIPELINE for file in _files(REPOSITORY / name)]
    return _built(engine, "slipway-pipeline-test", REPOSITORY, _CONTAINERS / "pipeline" / "Dockerfile", files)


def postgres(engine: docker.DockerClient) -> str:
    """Return the tag of the image of Debian's PostgreSQL."""
    context = _CONTAINERS / "postgres"
    return _built(engine, "slipway-postgres-test", context, context / "Dockerfile", _files(context))


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in found if file.is_file() and "__pycache__" not in file.parts]


def _built(engine: docker.DockerClient, name: str, context: Path, dockerfile: Path, files: list[Path]) -> str:
    digest = hashlib.sha256(str(engine.images.get(BASE_IMAGE).id).encode())
    for file in files:
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    tag = f"{name}:{digest.hexdigest()[:16]}"
    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        build = ["docker", "build", "--network", "host", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}",
                 "--file", dockerfile, "--tag", tag, context]  # fmt: skip
        done = subprocess.run(build, capture_output=True, text=True, timeout=_BUILD_SECONDS)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
    return tag
