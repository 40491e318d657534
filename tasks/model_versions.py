"""Owns `<model_base_path>/<int>/`: the only module that makes, renames or removes versions.

A child of the base path whose name is an integer is a version, and servers may load it at any instant
(tf_serving.md, 2: leading zeros are fine, everything else is ignored). So a version appears by one
rename and leaves by one rename. Beside the versions lie, all with names that are no integers:
`.candidate-<run id>/` (exported, not yet proven), `<number>.withdrawn/` (published, found wanting, kept
for inspection), `.highest_version` (no number is ever used twice) and `.lock`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks import durable_files
from tasks.durable_files import sync
from tasks.errors import EnvironmentFault, VersionExists

WITHDRAWN = ".withdrawn"
_CANDIDATE = ".candidate-"
_HIGHEST = ".highest_version"
_ORIGIN = ".slipway-run.json"
_LOCK_TIMEOUT_SECONDS = 30.0


def versions(base: Path) -> dict[int, Path]:
    """Return the versions under `base`, number to folder, in rising order. A missing base has none."""
    if not base.is_dir():
        return {}
    numbered = ((int(child.name), child) for child in base.iterdir() if _is_version(child))
    return dict(sorted(numbered))


def _is_version(child: Path) -> bool:
    return child.name.isascii() and child.name.isdigit() and child.is_dir()


def candidate_folder(base: Path, run_id: str) -> Path:
    """Return where a run exports to: beside the versions, under a name that no server loads."""
    return base / f"{_CANDIDATE}{run_id}"


def require_writable(base: Path) -> None:
    """Make sure that versions can be made under `base`, creating it. Raises EnvironmentFault."""
    probe = base / f".probe-{os.getpid()}"
    try:
        if not base.is_dir():
            base.mkdir(parents=True)
            base.chmod(0o755)  # whatever the umask: the server's user must read it
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise EnvironmentFault(
            f"model_base_path {base} is not writable: {error.strerror}",
            "give this user the right to write there, or set export.model_base_path",
        ) from None


def publish(
    candidate: Path,
    base: Path,
    version_names: str,
    now: Callable[[], float] = time.time,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Make the candidate the highest version, visible to servers at one instant; return its folder.

    `origin` says which run published it (`run_id`), and whatever else that run wants to read there later.

    All of it is on disk before the rename, and the rename before this returns. Numbers only rise, even
    if the clock goes back or the highest version was removed. Raises VersionExists, EnvironmentFault.
    """
    with _locked(base), _full_disk_named(base):
        number = _next_number(base, version_names, now)
        folder = base / (f"{number:04d}" if version_names == "sequential" else str(number))
        if folder.exists():
            raise VersionExists(f"{folder} is there already", "remove it, or let the next run number it")
        if origin is not None:
            (candidate / _ORIGIN).write_text(json.dumps(dict(origin)))
        _let_servers_read(candidate)
        _sync_tree(candidate)
        durable_files.write(base / _HIGHEST, f"{number}\n".encode())
        os.rename(candidate, folder)
        sync(base)
    return folder


def published_by(base: Path, run_id: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the version that a run published, and its origin; None where none of that run is visible."""
    for folder in reversed(versions(base).values()):
        try:
            origin = json.loads((folder / _ORIGIN).read_text())
        except FileNotFoundError:
            continue  # published by hand
        if origin["run_id"] == run_id:
            return folder, origin
    return None


def _next_number(base: Path, version_names: str, now: Callable[[], float]) -> int:
    after_last = _highest_ever(base) + 1
    return after_last if version_names == "sequential" else max(int(now()), after_last)


def _highest_ever(base: Path) -> int:
    """Return the highest number that is or was in use under `base`; 0 where none was."""
    withdrawn = (child.name.removesuffix(WITHDRAWN) for child in base.glob(f"*{WITHDRAWN}*"))
    numbers = [*versions(base), *(int(name) for name in withdrawn if name.isascii() and name.isdigit())]
    recorded = base / _HIGHEST
    if recorded.is_file() and (text := recorded.read_text().strip()).isdigit():
        numbers.append(int(text))
    return max(numbers, default=0)


def _let_servers_read(folder: Path) -> None:
    """Servers run as another user: whatever the umask, folders are r-x and files r-- for all."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def withdraw(base: Path, number: int) -> Path | None:
    """Hide a version from servers, at one instant, and keep it for inspection; return where it is now.

    Returns None where there is no such version (it was withdrawn before). Servers then load the next
    lower version and unload this one.
    """
    with _locked(base):
        folder = versions(base).get(number)
        if folder is None:
            return None
        hidden = base / f"{number}{WITHDRAWN}"
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        sync(base)
    return hidden


def prune(base: Path, keep: int, protected: set[int]) -> tuple[int, ...]:
    """Remove all but the `keep` newest versions and the `protected` ones; return the removed numbers.

    A version leaves by a rename first, so that no server sees half of it. Withdrawn versions, and
    candidates that runs left, go when they are older than the oldest version that stays.
    """
    with _locked(base):
        present = versions(base)
        newest = set(list(present)[-keep:])
        doomed = tuple(number for number in present if number not in newest | protected)
        for number in doomed:
            _remove(present[number])
        _remove_leftovers(base, oldest_kept=min(versions(base), default=0))
    return doomed


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".removing-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _remove_leftovers(base: Path, oldest_kept: int) -> None:
    for child in base.glob(f"*{WITHDRAWN}"):
        name = child.name.removesuffix(WITHDRAWN)
        if name.isdigit() and int(name) < oldest_kept:
            shutil.rmtree(child)
    for child in (*base.glob(f"{_CANDIDATE}*"), *base.glob(".removing-*")):
        shutil.rmtree(child)


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Hold the base path's lock, which the operating system frees when its holder dies."""
    lock = FileLock(base / ".lock", timeout=_LOCK_TIMEOUT_SECONDS)
    try:
        with lock:
            yield
    except Timeout:
        raise EnvironmentFault(
            f"{base / '.lock'} was held by another process for {_LOCK_TIMEOUT_SECONDS:.0f} s",
            "two pipelines share this model_base_path: give each its own",
        ) from None


@contextmanager
def _full_disk_named(base: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EnvironmentFault(f"no space left under {base}", "free some; nothing was published") from None
