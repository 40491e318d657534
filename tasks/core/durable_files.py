"""Files that are whole or not there, whatever is killed and whenever the power goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(file: Path, content: bytes, *, synced: bool = True, mode: int | None = None) -> None:
    """Make `file` hold `content`, at one instant, and where `synced` on disk. Makes its folder.

    Its mode is `mode`, or what the umask leaves.
    """
    make_folder(file.parent)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        if mode is not None:
            partial.chmod(mode)
        if synced:
            sync(partial)
        partial.replace(file)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(file)  # write() says only that there is no space, not where
        raise
    if synced:
        sync(file.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create a folder, and those above it, so that a power loss does not take it and what is in it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def move_folder_aside(file: Path) -> None:
    """Rename a folder that is in the place of a file of ours to `<name>.damaged`."""
    if file.is_dir() and not file.is_symlink():
        aside = file.with_name(f"{file.name}.damaged")  # kept: nobody knows what it holds
        shutil.rmtree(aside, ignore_errors=True)
        file.rename(aside)


def sync(path: Path) -> None:
    """Return once a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
