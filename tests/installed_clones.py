"""Clones of this repository in which `make install` has nothing to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from slipway_command import REPOSITORY


def without_install(clone: Path) -> None:
    """Give a clone the environment that the tests run in, and the files that it was installed from.

    Raise unless `make install` takes it as it is: it would install the clone into that environment.
    """
    (clone / ".venv").symlink_to(sys.prefix)
    for path in (
        REPOSITORY / ".ci" / "install.py",
        REPOSITORY / "pyproject.toml",
        *REPOSITORY.glob("*.lock"),
    ):
        shutil.copy(path, clone / path.relative_to(REPOSITORY))
    check = [sys.executable, ".ci/install.py", "--check"]
    ended = subprocess.run(check, cwd=clone, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{sys.prefix} is not as the locks say: run `make install-dev`. {ended.stderr}")
