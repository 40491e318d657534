"""Where everything that Slipway writes lives: `$SLIPWAY_HOME`, by default `var/` in the checkout."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_OWNER_ONLY = 0o700
_ENTERED_BY_ALL = 0o711
_READ_BY_ALL = 0o755
_PRIVATE = ("prefect", "runs", "servers", "defects")
_user_umask: int | None = None
"""The umask before `close_to_others` was called."""


def home() -> Path:
    """Return the absolute folder under which all state lives; it need not exist yet."""
    return Path(os.environ.get("SLIPWAY_HOME") or _CHECKOUT / "var").expanduser().absolute()


def close_to_others() -> None:
    """Keep what this process and its children write from other users, whatever the umask was.

    Folders in the home that an earlier release left open are closed.
    """
    global _user_umask
    previous = os.umask(0o077)
    if _user_umask is None:
        _user_umask = previous
    for name in _PRIVATE:
        folder = home() / name
        with suppress(OSError):  # missing, or another user's
            if folder.stat().st_mode & 0o077:
                folder.chmod(_OWNER_ONLY)


def make() -> None:
    """Create the home, if there is none, with mode 0711.

    The collector of metrics and a server of another user pass through it to `metrics` and `models`. An
    existing home keeps its mode, for it may hold other files.
    """
    with suppress(OSError):  # whoever writes there reports it, with what to do
        if not home().exists():
            missing = [each for each in (home(), *home().parents) if not each.exists()]
            home().mkdir(parents=True)
            home().chmod(_ENTERED_BY_ALL)
            _sync_parents(missing)


def make_readable(folder: Path) -> None:
    """Create a folder that other users may read, and the missing ones above it, whatever the umask."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        each.chmod(_ENTERED_BY_ALL if each == home() else _READ_BY_ALL)
    _sync_parents(missing)


def _sync_parents(folders: list[Path]) -> None:
    """Put the names of new folders on disk: a power loss would take all that is in them."""
    for each in reversed(folders):
        descriptor = os.open(each.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def give_user_mode(file: Path) -> None:
    """Set the mode of a file that the user named to what it would be without `close_to_others`."""
    if _user_umask is not None:
        file.chmod(0o666 & ~_user_umask)


def runs_folder(pipeline: str) -> Path:
    """Return the folder that holds one folder for each run of `pipeline`."""
    return home() / "runs" / pipeline


def servers_folder() -> Path:
    """Return the folder that holds the record and the log of each server."""
    return home() / "servers"


def default_model_base_path(model_name: str) -> Path:
    """Return the `model_base_path` of a model whose pipeline names none."""
    return home() / "models" / model_name
