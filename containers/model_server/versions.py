"""The versions of one model: finds them on disk, loads the highest, and unloads what it replaces.

A version is a child of the base path with an integer name that holds a saved_model.pb. The order of a
swap is load, then unload, and neither is ever done by a thread that answers requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from model_server import version_directories
from model_server.servable import Servable
from model_server.status import Code, StatusError, from_exception
from model_server.version_directories import Fingerprint, fingerprint

_LOG = logging.getLogger(__name__)
_REMINDER_EVERY_POLLS = 30


class State(IntEnum):
    """GetModelStatus's states, by their numbers in ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """What is known of one version. `error` is why it could not be loaded, also between two tries."""

    number: int
    state: State = State.START
    error: StatusError | None = None
    servable: Servable | None = None
    in_flight: int = 0
    tries: int = 0
    retry_at: float = 0.0
    tried_files: Fingerprint = frozenset()
    seen_files: Fingerprint = frozenset()


@dataclass(frozen=True)
class LoadPolicy:
    """How versions are looked for and how failed loads are repeated; seconds throughout."""

    poll_seconds: int
    max_retries: int
    retry_interval_seconds: float


class ModelVersions:
    """Keeps the highest version of `base_path` in service; what works is never given up for nothing.

    A base path that vanishes or holds no version unloads nothing, a broken version leaves the one before
    it in service, and is tried again as soon as its files change.
    """

    def __init__(
        self, name: str, base_path: Path, policy: LoadPolicy, load: Callable[[Path, int], Servable]
    ) -> None:
        self.name = name
        self._base_path = base_path
        self._policy = policy
        self._load = load
        self._versions: dict[int, Version] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._wanted: tuple[int, Path] | None = None
        self._loader: threading.Thread | None = None
        self._complaint = ""
        self._complaint_polls = 0
        self._stopping = False

    def start(self) -> None:
        """Begin to look for versions, in the background."""
        threading.Thread(target=self._watch, name=f"watch-{self.name}", daemon=True).start()

    def stop(self) -> None:
        """Look for no more versions; what is loaded stays loaded."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._wake.set()

    def wait_until_settled(self) -> StatusError | None:
        """Wait until a version is available (None), or the highest one has failed for good (why).

        Waits for ever while there is no version; returns None early after stop().
        """
        with self._changed:
            while not self._stopping and self._latest() is None:
                version = self._wanted_version()
                if version and version.state is State.END and version.error:
                    return version.error
                self._changed.wait()
            return None

    @contextmanager
    def use(self, number: int | None) -> Iterator[Servable]:
        """Return the version of this number (None: the highest), not unloaded before the block ends.

        Raises StatusError NOT_FOUND where it is not in service.
        """
        with self._changed:
            version = self._latest() if number is None else self._versions.get(number)
            if version is None or version.servable is None or version.state is not State.AVAILABLE:
                raise servable_not_found(self.name, number)
            version.in_flight += 1
            servable = version.servable
        try:
            yield servable
        finally:
            with self._changed:
                version.in_flight -= 1
                if version.in_flight == 0:
                    self._idle.notify_all()

    def statuses(self) -> list[tuple[int, State, StatusError | None]]:
        """Return number, state and error of every version seen since the start, highest first."""
        with self._changed:
            versions = sorted(self._versions.values(), key=lambda v: v.number, reverse=True)
            return [(version.number, version.state, version.error) for version in versions]

    def _latest(self) -> Version | None:
        available = [v for v in self._versions.values() if v.state is State.AVAILABLE]
        return max(available, key=lambda v: v.number, default=None)

    def _wanted_version(self) -> Version | None:
        return self._versions.get(self._wanted[0]) if self._wanted else None

    def _watch(self) -> None:
        next_poll = time.monotonic() if self._policy.poll_seconds >= 0 else float("inf")
        while not self._stopping:
            self._wake.clear()
            try:
                if time.monotonic() >= next_poll:
                    self._poll()
                    next_poll = time.monotonic() + (self._policy.poll_seconds or float("inf"))
                self._pursue()
            except Exception:  # a disk that fails now may answer at the next poll
                _LOG.exception("model %s: looking for versions failed", self.name)
                next_poll = time.monotonic() + max(1, self._policy.poll_seconds)
            self._wake.wait(self._seconds_until(next_poll))

    def _seconds_until(self, next_poll: float) -> float | None:
        """Until the next poll or the next try of a failed load; None is until something changes."""
        moments = [next_poll]
        version = self._wanted_version()
        if version and version.state is State.LOADING and self._loader is None:
            moments.append(version.retry_at)
        soonest = min(moments)
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())

    def _poll(self) -> None:
        try:
            found = version_directories.find(self._base_path)
        except OSError:
            self._remind(f"Could not find base path {self._base_path} for servable {self.name}.")
            return
        if not found:
            self._remind(
                f"No versions of servable {self.name} found under base path {self._base_path}. "
                f"Did you forget to name your leaf directory as a number (eg. '/1/')?"
            )
            return
        self._complaint = ""
        number = max(found)
        self._wanted = (number, found[number])

    def _remind(self, complaint: str) -> None:
        """Log what polls miss: when it is new, and now and then while no version is in service."""
        if complaint != self._complaint:
            self._complaint, self._complaint_polls = complaint, 0
        serving = self._latest()
        if self._complaint_polls == 0 or (not serving and self._complaint_polls % _REMINDER_EVERY_POLLS == 0):
            stays = f" Version {serving.number} stays in service." if serving else ""
            _LOG.warning("%s%s", complaint, stays)
        self._complaint_polls += 1

    def _pursue(self) -> None:
        """Take the next step towards serving the wanted version, and it alone."""
        if self._wanted is None:
            return
        number, path = self._wanted
        with self._changed:
            version = self._versions.setdefault(number, Version(number))
            others = [other for other in self._versions.values() if other is not version]
        if self._loader is None:
            for other in others:
                self._give_up_unwanted(other)
        if version.state is State.AVAILABLE:
            for other in others:
                if other.state is State.AVAILABLE:
                    self._unload(other)
        elif self._loader is None and self._is_due(version, path):
            self._loader = threading.Thread(
                target=self._load_version, args=(version, path), name=f"load-{self.name}", daemon=True
            )
            self._loader.start()

    def _give_up_unwanted(self, version: Version) -> None:
        """End the tries of a version that was withdrawn; should it return, it is tried afresh."""
        if version.state in (State.START, State.LOADING):
            self._set(version, State.END, version.error)
        version.tries, version.tried_files = 0, frozenset()

    def _is_due(self, version: Version, path: Path) -> bool:
        if version.state is State.UNLOADING:
            return False
        if version.state is State.START or (version.state is State.END and version.error is None):
            return True  # new, or unloaded before and back again
        if self._has_new_files(version, path):
            version.tries = 0
            return True
        return version.state is State.LOADING and time.monotonic() >= version.retry_at

    def _has_new_files(self, version: Version, path: Path) -> bool:
        """Whether the files differ from those that failed, and did not change since the last look."""
        files = fingerprint(path)
        settled, version.seen_files = files == version.seen_files, files
        return settled and files != version.tried_files

    def _load_version(self, version: Version, path: Path) -> None:
        version.tried_files = fingerprint(path)
        self._set(version, State.LOADING, version.error)
        _LOG.info("model %s version %d: loading from %s", self.name, version.number, path)
        started = time.monotonic()
        try:
            version.servable = self._load_unchanged(version, path)
        except Exception as error:
            self._failed(version, from_exception(error))
        else:
            version.tries = 0
            self._set(version, State.AVAILABLE, None)
            seconds = time.monotonic() - started
            _LOG.info("model %s version %d: available (%.2f seconds)", self.name, version.number, seconds)
        # Only now: without a loader, a version that is LOADING is one that waits for its next try.
        self._loader = None
        self._wake.set()

    def _load_unchanged(self, version: Version, path: Path) -> Servable:
        servable = self._load(path, version.number)
        if fingerprint(path) != version.tried_files:
            servable.close()
            raise StatusError(Code.ABORTED, f"{path} changed while it was being loaded")
        return servable

    def _failed(self, version: Version, error: StatusError) -> None:
        version.tries += 1
        version.retry_at = time.monotonic() + self._policy.retry_interval_seconds
        last = version.tries > self._policy.max_retries
        _LOG.error(
            "model %s version %d: failed to load, try %d of %d: %s",
            self.name,
            version.number,
            version.tries,
            self._policy.max_retries + 1,
            error,
        )
        self._set(version, State.END if last else State.LOADING, error)

    def _unload(self, version: Version) -> None:
        self._set(version, State.UNLOADING, None)
        threading.Thread(
            target=self._finish_unload, args=(version,), name=f"unload-{self.name}", daemon=True
        ).start()

    def _finish_unload(self, version: Version) -> None:
        with self._lock:
            self._idle.wait_for(lambda: version.in_flight == 0)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        self._set(version, State.END, None)
        _LOG.info("model %s version %d: unloaded", self.name, version.number)

    def _set(self, version: Version, state: State, error: StatusError | None) -> None:
        with self._changed:
            version.state, version.error = state, error
            self._changed.notify_all()
        self._wake.set()


def servable_not_found(name: str, number: int | None) -> StatusError:
    """Say what an inference request for a model or version that is not in service gets (core/manager.h)."""
    which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return StatusError(Code.NOT_FOUND, f"Servable not found for request: {which}")
