"""The versions of one model: looks for them on disk, has the wanted ones loaded and the others unloaded.

One thread a model looks and decides, so that a base path that hangs or is missing holds up no other model;
loading and unloading are other threads' work, and none of them answers requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from model_server.base.status import StatusError, from_exception
from model_server.models import published, version_directories
from model_server.models.model_config import ModelConfig
from model_server.models.routing import Route
from model_server.models.servable_store import ServableStore
from model_server.models.version_directories import fingerprint
from model_server.models.version_policies import Specific
from model_server.models.version_states import LoadPolicy, State, Version, to_unload

_LOG = logging.getLogger(__name__)
_REMINDER_EVERY_POLLS = 30
_NEVER = float("inf")


@dataclass(frozen=True)
class Workshop:
    """What models share: where servables live, who loads and unloads them, and the one lock.

    `publish` is called with the lock held, whenever a version has entered or is to leave service.
    """

    store: ServableStore
    loaders: Executor
    unloaders: Executor
    changed: threading.Condition
    publish: Callable[[], None]


class ModelVersions:
    """Keeps the wanted versions of a model in service; what works is never given up for nothing.

    A base path that vanishes or holds no version unloads nothing, a broken version leaves the one before
    it in service, and is tried again as soon as its files change.
    """

    def __init__(self, name: str, policy: LoadPolicy, workshop: Workshop) -> None:
        self.name = name
        self.config: ModelConfig | None = None
        self.load_attempts = 0
        self._policy = policy
        self._workshop = workshop
        self._changed = workshop.changed
        self._versions: dict[int, Version] = {}
        self._wanted: Mapping[int, Path] = {}
        self._wake = threading.Event()
        self._next_poll = _NEVER
        self._complaint = ""
        self._complaint_polls = 0
        self._stopping = False

    def start(self) -> None:
        """Begin to look for versions, in the background."""
        threading.Thread(target=self._watch, name=f"watch-{self.name}", daemon=True).start()

    def configure(self, config: ModelConfig | None) -> None:
        """Serve by this config from now on; None: serve nothing of this model. Called with the lock held."""
        self.config = config
        if config is None:
            self._wanted = {}
        elif self._policy.poll_seconds >= 0:
            self._next_poll = time.monotonic()
        self._wake.set()

    def stop(self) -> None:
        """Look for no more versions; what is loaded stays loaded."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._wake.set()

    def route(self) -> Route:
        """Return what requests may reach. Called with the lock held."""
        available = frozenset(v.number for v in self._versions.values() if v.state is State.AVAILABLE)
        return Route(available, self.config.labels if self.config else {})

    def failures(self) -> list[tuple[int, StatusError]]:
        """Return the wanted versions and their errors, if every one has failed for good and none is left."""
        wanted = [self._versions.get(number) for number in self._wanted]
        failed = [version for version in wanted if version and version.has_failed_for_good()]
        if not failed or len(failed) < len(wanted) or self.route().versions:
            return []
        return [(version.number, version.error) for version in failed if version.error]

    def statuses(self) -> list[tuple[int, State, StatusError | None]]:
        """Return number, state and error of every version seen since the start, highest first."""
        with self._changed:
            versions = sorted(self._versions.values(), key=lambda v: v.number, reverse=True)
            return [(version.number, version.state, version.error) for version in versions]

    def _watch(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                if time.monotonic() >= self._next_poll:
                    self._next_poll = time.monotonic() + (self._policy.poll_seconds or _NEVER)
                    self._poll()
                soonest = min(self._next_poll, self._pursue())
            except Exception:  # a disk that fails now may answer at the next poll
                _LOG.exception("model %s: looking for versions failed", self.name)
                soonest = time.monotonic() + max(1, self._policy.poll_seconds)
            self._wake.wait(None if soonest == _NEVER else max(0.0, soonest - time.monotonic()))

    def _poll(self) -> None:
        config = self.config
        if config is None:
            return
        try:
            found = version_directories.find(config.base_path)
            found, complaints = self._published(config.base_path, found)
        except published.NoList as error:
            # After a reboot nothing else would bring back what was served before the list was damaged.
            found = {} if self._wanted else published.sealed(found)
            if not found:
                self._remind(str(error))
                return
            complaints = {config.base_path: f"{error} This start takes the versions that have a SHA256SUMS."}
        except OSError:
            self._remind(f"Could not find base path {config.base_path} for servable {self.name}.")
            return
        wanted = config.policy.choose({number: paths[-1] for number, paths in found.items()})
        self._remind(" ".join([*complaints.values(), *_complaints(config, found, wanted)]), bool(wanted))
        if not wanted and not self._policy.unload_when_empty:
            return
        with self._changed:
            if self.config is config:
                self._wanted = wanted

    def _published(
        self, base_path: Path, found: dict[int, list[Path]]
    ) -> tuple[dict[int, list[Path]], dict[Path, str]]:
        """Return the versions that may be served, and a complaint for each other. Raises NoList."""
        return published.only(base_path, found) if self._policy.published_only else (found, {})

    def _remind(self, complaint: str, anything_wanted: bool = False) -> None:
        """Log what polls miss: when it is new, and now and then while nothing is in service."""
        if complaint != self._complaint:
            self._complaint, self._complaint_polls = complaint, 0
        serving = self.route().latest
        again = serving is None and self._complaint_polls % _REMINDER_EVERY_POLLS == 0
        if complaint and (self._complaint_polls == 0 or again):
            keeps = serving is not None and not anything_wanted and not self._policy.unload_when_empty
            _LOG.warning("%s%s", complaint, f" Version {serving} stays in service." if keeps else "")
        self._complaint_polls += 1

    def _pursue(self) -> float:
        """Start what there is to do now; return the moment (time.monotonic()) when there will be more."""
        with self._changed:
            wanted = dict(self._wanted)
            for number in wanted:
                self._versions.setdefault(number, Version(number))
            for version in self._versions.values():
                if version.number not in wanted and version.is_idle():
                    self._give_up(version)
            self._unload(to_unload(self._versions.values(), wanted))
            idle = [self._versions[n] for n in sorted(wanted, reverse=True) if self._versions[n].is_idle()]
        soonest = _NEVER
        for version in idle:
            due = self._due_at(version, wanted[version.number])
            if due <= time.monotonic():
                self._start_to_load(version, wanted[version.number])
            else:
                soonest = min(soonest, due)
        return soonest

    def _give_up(self, version: Version) -> None:
        """End the tries of a version that was withdrawn; should it return, it is tried afresh."""
        if version.state is not State.END:
            version.state = State.END
            self._changed.notify_all()
        version.tries, version.tried_files = 0, version_directories.NO_FILES

    def _due_at(self, version: Version, path: Path) -> float:
        """When to load it: once its files have stood still; a failed one later, unless they are new."""
        now = time.monotonic()
        files = fingerprint(path)
        if files != version.seen_files or not version.seen_at:
            version.changing = version.seen_at > 0
            version.seen_files, version.seen_at = files, now
        settled_at = version.seen_at + self._policy.settle_seconds
        if not version.changing:  # the file system may know that they have stood still for longer
            settled_at -= max(0.0, version_directories.age(files) - (now - version.seen_at))
        if version.error is None or files != version.tried_files:
            return settled_at
        return max(settled_at, version.retry_at)

    def _start_to_load(self, version: Version, path: Path) -> None:
        with self._changed:
            if version.error and version.seen_files != version.tried_files:
                version.tries = 0
            version.tried_files = version.seen_files
            version.loading = True
            self.load_attempts += 1
            if version.tries <= self._policy.max_retries:
                version.state = State.LOADING
        self._workshop.loaders.submit(self._load, version, path)

    def _load(self, version: Version, path: Path) -> None:
        _LOG.info("model %s version %d: loading from %s", self.name, version.number, path)
        started = time.monotonic()
        try:
            self._workshop.store.load(self.name, version.number, path)
            if fingerprint(path) == version.tried_files:
                self._loaded(version, time.monotonic() - started)
            else:
                self._changed_meanwhile(version)
        except Exception as error:
            self._failed(version, from_exception(error))
        self._wake.set()

    def _loaded(self, version: Version, seconds: float) -> None:
        with self._changed:
            version.loading, version.error, version.tries, version.seen_at = False, None, 0, 0.0
            version.state = State.AVAILABLE
            if version.number in self._wanted:
                self._workshop.publish()
                _LOG.info("model %s version %d: available (%.2f seconds)", self.name, version.number, seconds)
            else:
                self._unload([version])
            self._changed.notify_all()

    def _changed_meanwhile(self, version: Version) -> None:
        """Forget what was loaded of files that somebody was still writing; this is no failed try."""
        self._workshop.store.unload(self.name, version.number)
        with self._changed:
            version.loading = False
        _LOG.info("model %s version %d: its files changed while it was loaded", self.name, version.number)

    def _failed(self, version: Version, error: StatusError) -> None:
        with self._changed:
            version.loading = False
            version.fail(error, self._policy, time.monotonic())
            self._changed.notify_all()
        _LOG.error(
            "model %s version %d: failed to load, try %d of %d: %s",
            self.name,
            version.number,
            version.tries,
            max(version.tries, self._policy.max_retries + 1),
            error,
        )

    def _unload(self, versions: list[Version]) -> None:
        """Take versions out of service, then free their memory. Called with the lock held."""
        if not versions:
            return
        for version in versions:
            version.state = State.UNLOADING
        self._workshop.publish()
        self._changed.notify_all()
        for version in versions:
            self._workshop.unloaders.submit(self._finish_unload, version)

    def _finish_unload(self, version: Version) -> None:
        try:
            self._workshop.store.unload(self.name, version.number)
        except Exception:
            _LOG.exception("model %s version %d: unloading failed", self.name, version.number)
        with self._changed:
            version.state = State.END
            self._changed.notify_all()
        _LOG.info("model %s version %d: unloaded", self.name, version.number)
        self._wake.set()


def _complaints(
    config: ModelConfig, found: Mapping[int, list[Path]], wanted: Mapping[int, Path]
) -> list[str]:
    """Return what the official server warns of at each poll, in its words."""
    lines = [
        f"Duplicate version directories detected. Version {number} will be loaded from {paths[-1].name}, "
        f"{', '.join(path.name for path in paths[:-1])} will be ignored."
        for number, paths in found.items()
        if len(paths) > 1
    ]
    if isinstance(config.policy, Specific):
        lines += [
            f"Version {number} of servable {config.name}, which was requested to be served as a 'specific' "
            "version in the servable's version policy, was not found in the file system"
            for number in sorted(config.policy.numbers - wanted.keys())
        ]
    if not wanted:
        lines.append(
            f"No versions of servable {config.name} found under base path {config.base_path}. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        )
    return lines
