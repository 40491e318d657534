"""The units that `slipway service install --user` writes, under a real systemd: in a container of Debian."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from slipway_command import REPOSITORY
from waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

IMAGE = "slipway-test-systemd:bookworm"
DOCKERFILE = """
FROM slipway-base:bookworm
RUN apt-get update && \\
    apt-get install -y --no-install-recommends systemd systemd-sysv dbus-user-session libpam-systemd
CMD ["/sbin/init"]
"""
ENVIRONMENT = {
    "XDG_RUNTIME_DIR": "/run/user/0", "SLIPWAY_HOME": "/srv/home", "PYTHONDONTWRITEBYTECODE": "1",
    "PREFECT_API_URL": "http://127.0.0.1:4200/api", "TZ": "Etc/UTC",
}  # fmt: skip
SETTINGS = ("--set", "deployment.target=process", "--set", "training.save_checkpoints_steps=500")


class Machine:
    """A container in which systemd is the first process, with this checkout and its Python, read-only."""

    def __init__(self) -> None:
        self.name = f"slipway-test-{uuid.uuid4().hex[:8]}"
        python = Path(sys.base_prefix)
        mounts = [f"{path}:{path}:ro" for path in (REPOSITORY, python)]
        mounts.append("/sys/fs/cgroup:/sys/fs/cgroup:rw")
        _docker(
            "run", "--detach", "--name", self.name, "--security-opt", "seccomp=unconfined",
            "--cgroupns", "host", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--env", "container=docker",
            *(part for mount in mounts for part in ("--volume", mount)), IMAGE,
        )  # fmt: skip

    def __call__(self, script: str, check: bool = True) -> str:
        """Run a script of the shell in the checkout, as the user of the units; return what it printed."""
        options = [part for pair in ENVIRONMENT.items() for part in ("--env", "=".join(pair))]
        path = f'PATH="{Path(sys.executable).parent}:$PATH"'
        auth = 'PREFECT_API_AUTH_STRING="$(cat /srv/home/prefect/api-auth-string 2>/dev/null)"'
        command = f"export {path} {auth}; cd {REPOSITORY}; {script}"
        return _docker("exec", *options, self.name, "bash", "-c", command, check=check)

    def serves(self) -> str:
        """Return which version `slipway status` calls served; "" if none is."""
        told = self("slipway status configs/digits", check=False)
        (line,) = [line for line in told.splitlines() if line.startswith("serving")] or [""]
        return line.split("version ")[1].split()[0] if "version " in line else ""

    def newest_run(self) -> str:
        """Return the folder of the run that began last."""
        return self("ls -d /srv/home/runs/digits/2* | tail -1", check=False).strip()

    def has(self, file: str) -> bool:
        """Return whether a file is there; its name may be a pattern."""
        return bool(self(f"ls {file} 2>/dev/null", check=False))

    def lose_power(self) -> None:
        """End all of it at once, and start it again."""
        _docker("kill", self.name)
        _docker("start", self.name)


def _docker(*arguments: str, given: str | None = None, check: bool = True) -> str:
    done = subprocess.run(
        ["docker", *arguments], input=given, capture_output=True, text=True, timeout=900, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Installed and started as the command says; the deployment of the digits is there."""
    _docker("build", "--network", "host", "--tag", IMAGE, "-", given=DOCKERFILE)
    there = Machine()
    try:
        eventually(lambda: there("loginctl enable-linger root && echo yes", check=False), seconds=60, every=1)
        eventually(lambda: there.has("/run/user/0/bus"), seconds=60, every=1)
        said = there("slipway service install --user")
        lines = [line.strip() for line in said.splitlines() if line.startswith("  systemctl")]
        there("; ".join(lines))
        answers = "python -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:4200/api/health')\""
        eventually(lambda: there(f"{answers} && echo yes", check=False), seconds=600, every=1)
        deploy = "prefect --no-prompt deploy --name nightly-digits"  # the worker makes the pool
        eventually(lambda: there(f"{deploy} >/dev/null && echo yes", check=False), seconds=300, every=2)
        yield there
    finally:
        _docker("rm", "--force", there.name)


def test_the_first_start_runs_a_night(machine: Machine) -> None:
    """The worker has the password that the server made meanwhile."""
    settings = " ".join((*SETTINGS, "--set", "training.max_steps=500"))
    told = machine(f"slipway trigger configs/digits --watch {settings}", check=False)
    assert ": deployed" in told, told
    assert machine.serves()


def test_after_a_power_loss_the_run_goes_on_to_its_end(machine: Machine) -> None:
    """Server, worker, model server and the run that was training, without anyone typing anything."""
    before = machine.serves(), machine.newest_run()
    settings = " ".join((*SETTINGS, "--set", "training.max_steps=30000"))
    machine(f"slipway trigger configs/digits {settings}")
    folder = eventually(lambda: (new := machine.newest_run()) != before[1] and new, seconds=300, every=1)
    eventually(lambda: machine.has(f"{folder}/checkpoints/*.index"), seconds=300, every=1)
    machine.lose_power()
    eventually(lambda: machine.has(f"{folder}/verdict.json"), seconds=900, every=2)
    assert "resumed from step" in machine(f"cat {folder}/verdict.json")
    assert eventually(machine.serves, seconds=60, every=1) >= before[0]
    failed = machine("systemctl --user list-units --failed --no-legend 'slipway*'")
    assert failed == ""
