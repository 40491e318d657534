"""Owns `<model_base_path>/<int>/`: the only module that makes, renames or removes versions.

A child of the base path whose name is an integer is a version, and servers may load it at any instant
(tf_serving.md, 2: leading zeros are fine, everything else is ignored). So a version appears by one
rename and leaves by one rename. Beside the versions lie, all with names that are no integers:
`.candidate-<run id>/` (exported, not yet proven), `.canary-<run id>/` (what a server that no client knows
loads), `<number>.withdrawn/` (published, found wanting, kept for inspection), `.highest_version` (no number
is ever used twice), `.published` (tasks/state/published_versions.py) and `.lock`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.schema.export import ANSWERS
from configs.schema.home import make_readable
from tasks.core.durable_files import sync
from tasks.core.errors import EnvironmentFault, VersionExists
from tasks.state import published_versions, state_files, version_checksums
from tasks.state.state_files import StateFileDamaged

WITHDRAWN = ".withdrawn"
_CANDIDATE = ".candidate-"
_CANARY = ".canary-"
_HIGHEST = ".highest_version"
_ORIGIN = ".slipway-run.json"
_LOCK_TIMEOUT_SECONDS = 30.0
_INT64_MAX = 2**63 - 1
"""The highest version number that servers load."""

_log = logging.getLogger(__name__)


def is_saved_model(folder: Path) -> bool:
    """Return whether the folder holds a SavedModel, binary or text."""
    return any((folder / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt"))


def versions(base: Path) -> dict[int, Path]:
    """Return the versions under `base`, number to folder, in rising order. A missing base has none."""
    if not base.is_dir():
        return {}
    numbered = ((int(child.name), child) for child in base.iterdir() if _is_version(child))
    return dict(sorted(numbered))


def _is_version(child: Path) -> bool:
    return _is_number(child.name) and child.is_dir()


def _is_number(name: str) -> bool:
    # Length first: int() refuses thousands of digits with a ValueError.
    if not (name.isascii() and name.isdigit()) or len(name.lstrip("0")) > len(str(_INT64_MAX)):
        return False
    return int(name) <= _INT64_MAX


def candidate_folder(base: Path, run_id: str) -> Path:
    """Return where a run exports to: beside the versions, under a name that no server loads."""
    return base / f"{_CANDIDATE}{run_id}"


def require_writable(base: Path) -> None:
    """Make sure that versions can be made under `base`, creating it. Raises EnvironmentFault."""
    probe = base / f".probe-{os.getpid()}"
    try:
        if not base.is_dir():
            make_readable(base)  # by the server's user
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
    *,
    published_only: bool = False,
) -> Path:
    """Make the candidate the highest version, visible to servers at one instant; return its folder.

    `origin` says which run published it (`run_id`), and whatever else that run wants to read there later.

    The checksums of its files are written into it (version_checksums.py). With `published_only` it is listed
    for our server (published_versions.py), with all that were there before the first listed one. All of it is
    on disk before the rename, and the rename before this returns. Numbers only rise, even if the clock goes
    back or the highest version was removed. Raises VersionExists, EnvironmentFault.
    """
    with _locked(base):
        number = _next_number(base, version_names, now)
        folder = base / (f"{number:04d}" if version_names == "sequential" else str(number))
        if folder.exists():
            raise VersionExists(f"{folder} is there already", "remove it, or let the next run number it")
        if origin is not None:
            (candidate / _ORIGIN).write_text(json.dumps(dict(origin)))
        version_checksums.write(candidate)
        _let_servers_read(candidate)
        _sync_tree(candidate)
        known = published_versions.listed(base)
        earlier = _unlisted(base) if known is None else known
        state_files.write(base / _HIGHEST, {"number": number})
        if published_only:
            published_versions.write(base, {**earlier, number: published_versions.digest(candidate)})
        else:
            published_versions.remove(base)
        os.rename(candidate, folder)
        sync(base)
    return folder


def list_published(base: Path) -> None:
    """Write the list of published versions if there is none, or it is damaged."""
    if published_versions.listed(base) is None:
        with _locked(base):
            if published_versions.listed(base) is None:
                published_versions.write(base, _unlisted(base))


def _unlisted(base: Path) -> dict[int, str]:
    """Return what a list would hold that is missing: all versions that are there.

    Numbers only rise, and only by publishing: one above the highest that was recorded is not a run's.
    """
    highest = _recorded_highest(base)
    return {
        number: published_versions.digest(folder)
        for number, folder in versions(base).items()
        if highest is None or number <= highest
    }


def published(base: Path) -> dict[int, Path]:
    """Return the versions that our server loads: those that runs published, if the base path lists them."""
    return published_versions.only(base, versions(base))


def run_id_of(folder: Path) -> str | None:
    """Return which run published the version in `folder`; None where it was published by hand."""
    try:
        return str(json.loads((folder / _ORIGIN).read_text())["run_id"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def published_by(base: Path, run_id: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the version that a run published, and its origin; None where none of that run is visible."""
    for folder in reversed(versions(base).values()):
        found = origin(folder)
        if found.get("run_id") == run_id:
            return folder, found
    return None


def origin(version: Path) -> dict[str, Any]:
    """Return what the run that published the version noted in it; {} where it was published by hand."""
    try:
        return dict(json.loads((version / _ORIGIN).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _next_number(base: Path, version_names: str, now: Callable[[], float]) -> int:
    after_last = highest_ever(base) + 1
    if after_last > _INT64_MAX:
        message = f"{base}: version {after_last - 1} is the highest number that servers load"
        raise EnvironmentFault(message, f"remove that folder and {base / _HIGHEST}, then run again")
    return after_last if version_names == "sequential" else max(int(now()), after_last)


def highest_ever(base: Path) -> int:
    """Return the highest number that is or was in use under `base`; 0 where none was."""
    return max([*versions(base), *withdrawn(base), _recorded_highest(base) or 0])


def _recorded_highest(base: Path) -> int | None:
    try:
        recorded = (state_files.read(base / _HIGHEST) or {}).get("number")
    except StateFileDamaged as error:
        _log.warning("%s: continuing from the version folders", error)
        return None
    return recorded if isinstance(recorded, int) and 0 <= recorded <= _INT64_MAX else None


def _let_servers_read(folder: Path) -> None:
    """Servers run as another user: whatever the umask, folders are r-x and files r-- for all.

    What the version should answer holds examples: no server reads it, and nobody else may.
    """
    private = folder / "assets.extra" / ANSWERS
    for path in (folder, *folder.rglob("*")):
        if path == private or private in path.parents:
            continue
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
        _remove_tree(hidden)
        os.rename(folder, hidden)
        sync(base)
        _forget(base, {number})
    return hidden


def _forget(base: Path, numbers: set[int]) -> None:
    """Remove versions from the list, so that no copy under such a number is served."""
    known = published_versions.listed(base)
    if known is not None and numbers & set(known):
        published_versions.write(base, {each: known[each] for each in known if each not in numbers})


def prune(base: Path, keep: int, protected: set[int]) -> tuple[int, ...]:
    """Remove all but the `keep` newest versions and the `protected` ones; return the removed numbers.

    A version leaves by a rename first, so that no server sees half of it. Of the withdrawn ones stay the
    `keep` newest, while they are newer than the oldest version that stays. Candidates that runs left go.
    """
    with _locked(base):
        present = versions(base)
        newest = set(list(present)[-keep:])
        doomed = tuple(number for number in present if number not in newest | protected)
        for number in doomed:
            _remove(present[number])
        _forget(base, set(doomed))
        _remove_leftovers(base, keep, oldest_kept=min(versions(base), default=0))
    return doomed


def withdrawn(base: Path) -> dict[int, Path]:
    """Return the withdrawn versions that are kept for inspection, in rising order."""
    named = ((child.name.removesuffix(WITHDRAWN), child) for child in base.glob(f"*{WITHDRAWN}"))
    return dict(sorted((int(name), child) for name, child in named if _is_number(name)))


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".removing-{folder.name}")
    _remove_tree(hidden)
    os.rename(folder, hidden)
    _remove_tree(hidden)


def _remove_tree(path: Path) -> None:
    """Remove a folder, or a link or file that somebody put in its place; a link's target stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _remove_leftovers(base: Path, keep: int, oldest_kept: int) -> None:
    hidden = withdrawn(base)
    for number in [number for number in hidden if number < oldest_kept or number not in list(hidden)[-keep:]]:
        _remove_tree(hidden[number])
    for child in (*base.glob(f"{_CANDIDATE}*"), *base.glob(f"{_CANARY}*"), *base.glob(".removing-*")):
        _remove_tree(child)


@contextmanager
def lent_to_canary(base: Path, run_id: str) -> Iterator[Path]:
    """Create an empty folder beside the versions, as the base path of a rehearsal server.

    `lend` puts versions into it. It is gone afterwards; what a run that was killed left is removed first.
    """
    folder = base / f"{_CANARY}{run_id}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with faults_named(base):
            folder.mkdir()
            folder.chmod(0o755)  # whatever the umask: the server's user must read it
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lend(saved_model: Path, base: Path, number: int) -> None:
    """Publish the SavedModel as version `number` under `base` too, atomically, by hard links.

    What it should answer stays behind: it holds examples.
    """
    partial = base / f".{number}"
    with faults_named(base):
        shutil.copytree(saved_model, partial, copy_function=_linked, ignore=shutil.ignore_patterns(ANSWERS))
        _let_servers_read(partial)
        os.rename(partial, base / str(number))


def _linked(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copy2(source, destination)  # a file system without links


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Hold the base path's lock, which the operating system frees when its holder dies."""
    lock = FileLock(base / ".lock", timeout=_LOCK_TIMEOUT_SECONDS)
    try:
        with faults_named(base), lock:
            yield
    except Timeout:
        raise EnvironmentFault(
            f"{base / '.lock'} was held by another process for {_LOCK_TIMEOUT_SECONDS:.0f} s",
            "two pipelines share this model_base_path: give each its own",
        ) from None


@contextmanager
def faults_named(base: Path) -> Iterator[None]:
    """Raise EnvironmentFault where the block finds the base path's disk full, or not writable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message, hint = f"no space left under {base}", "free some"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            message, hint = f"{base} is not writable: {error.strerror}", "give this user the right to write"
        else:
            raise
        raise EnvironmentFault(message, hint) from None
