"""What a power loss may leave of a folder: recorded system calls, replayed up to a point.

Names and contents are durable once they were synced: a file's content by fsync of the file, a name by fsync
of its folder. What was not may be lost or not: every prefix of the names that were changed since, every list
without one of them, and of contents nothing, a half or all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, int]
"""Of a folder: name to inode."""


@dataclass(frozen=True)
class Change:
    """One change of names that happens at one instant: (folder's inode, name, inode or None)."""

    entries: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Left:
    """What a power loss leaves, and what had been promised by then."""

    folders: dict[int, Names]
    contents: dict[int, bytes]
    promises: tuple[Any, ...]


@dataclass
class Disk:
    """A folder as the kernel sees it, and as it is after a power loss."""

    root: Path
    folders: dict[int, Names] = field(default_factory=dict)
    """What is durable."""
    contents: dict[int, bytes] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    unsynced: dict[int, bytes] = field(default_factory=dict)
    """Contents that were written and not synced."""
    promises: list[Any] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    _kept: dict[int, int] = field(default_factory=dict)
    """Open descriptors, by inode: the kernel gives no inode to another file meanwhile."""
    _folder_inodes: set[int] = field(default_factory=set)
    _seen: dict[int, Names] = field(default_factory=dict)
    _written: dict[int, bytes] = field(default_factory=dict)

    def begin(self) -> None:
        """Take what is there for durable."""
        self._look()
        self.folders = {inode: dict(names) for inode, names in self._seen.items()}
        self.contents = dict(self._written)
        self.pending, self.unsynced = [], {}

    def close(self) -> None:
        """Close what was kept open."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept = {}

    def promise(self, fact: Any) -> None:
        """Note what a caller relies on from now on."""
        self._look()
        self.promises.append(fact)
        self.crash()

    def _look(self) -> None:
        """Find names and contents that changed since the last look. Each name is a change for itself."""
        folders: dict[int, Names] = {}
        written: dict[int, bytes] = {}
        for folder, names, files in os.walk(self.root):
            inode = Path(folder).stat().st_ino
            entries = {name: (Path(folder) / name).lstat().st_ino for name in (*names, *files)}
            folders[inode] = entries
            self._folder_inodes.add(inode)
            for path in (Path(folder), *(Path(folder) / name for name in files)):
                if path.stat().st_ino not in self._kept:
                    self._kept[path.stat().st_ino] = os.open(path, os.O_RDONLY)
            written |= {entries[name]: (Path(folder) / name).read_bytes() for name in files}
        for inode, content in written.items():
            if self._written.get(inode) != content:
                self.unsynced[inode] = content
        for inode in {*folders, *self._seen}:
            before, after = self._seen.get(inode, {}), folders.get(inode, {})
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    self.pending.append(Change(((inode, name, after.get(name)),)))
        self._seen, self._written = folders, written

    def around(self, call: Callable[[], Any]) -> Any:
        """Make a call that changes names, as one change."""
        self._look()
        before = len(self.pending)
        try:
            return call()
        finally:
            self._look()
            made = [entry for change in self.pending[before:] for entry in change.entries]
            self.pending[before:] = [Change(tuple(made))] if made else []
            self.crash()

    def sync(self, path: Path) -> None:
        """Make a file's content, or a folder's names, durable."""
        self._look()
        self.crash()
        inode = path.stat().st_ino
        if inode in self.unsynced:
            self.contents[inode] = self.unsynced.pop(inode)
        kept = [change for change in self.pending if all(entry[0] != inode for entry in change.entries)]
        for change in (each for each in self.pending if each not in kept):
            _apply(self.folders, change)
        self.pending = kept
        self.crash()

    def crash(self) -> None:
        """Record what a power loss now may leave."""
        for chosen in _choices(self.pending):
            folders = {inode: dict(names) for inode, names in self.folders.items()}
            for change in chosen:
                _apply(folders, change)
            for part in (0.0, 0.5, 1.0) if self.unsynced else (1.0,):
                cut = {inode: data[: int(len(data) * part)] for inode, data in self.unsynced.items()}
                self.left.append(Left(folders, {**self.contents, **cut}, tuple(self.promises)))

    def replay(self, left: Left) -> None:
        """Make the folder what the power loss left, at its old path: files hold absolute paths."""
        inode = self.root.stat().st_ino
        for child in self.root.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        self._fill(self.root, inode, left)

    def _fill(self, folder: Path, inode: int, left: Left) -> None:
        for name, child in left.folders.get(inode, {}).items():
            if child in left.contents:
                (folder / name).write_bytes(left.contents[child])
            elif child in self._folder_inodes:
                (folder / name).mkdir()
                self._fill(folder / name, child, left)
            else:
                (folder / name).write_bytes(b"")


def _apply(folders: dict[int, Names], change: Change) -> None:
    for folder, name, inode in change.entries:
        names = folders.setdefault(folder, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _choices(pending: list[Change]) -> Iterator[list[Change]]:
    for count in range(len(pending) + 1):
        yield pending[:count]
    for missing in range(len(pending) - 1):
        yield [change for index, change in enumerate(pending) if index != missing]


def distinct(left: list[Left]) -> list[Left]:
    """Return each state once for each set of promises."""
    by_key = {}
    for each in left:
        names = tuple((inode, tuple(sorted(found.items()))) for inode, found in sorted(each.folders.items()))
        by_key[names, tuple(sorted(each.contents.items())), each.promises] = each
    return list(by_key.values())


@contextmanager
def recorded(disk: Disk) -> Iterator[None]:
    """Record what the block does to the disk's folder: fsync, and all that changes names."""
    real = {
        name: getattr(os, name)
        for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link")
    }
    fsync = os.fsync

    def wrapped(name: str) -> Callable[..., Any]:
        return lambda *given, **named: disk.around(lambda: real[name](*given, **named))

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        fsync(descriptor)
        if path.is_relative_to(disk.root):
            disk.sync(path)

    with pytest.MonkeyPatch.context() as patched:
        for name in real:
            patched.setattr(os, name, wrapped(name))
        patched.setattr(os, "fsync", synced)
        disk.begin()
        try:
            yield
        finally:
            disk.close()
