"""What is known of a version, and which versions of a model may be unloaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

from model_server.base.status import StatusError
from model_server.models.version_directories import NO_FILES, Fingerprint

_LONGEST_BACK_OFF_SECONDS = 3600.0


class State(IntEnum):
    """GetModelStatus's states, by their numbers in ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class LoadPolicy:
    """How versions are looked for and how failed loads are repeated; seconds throughout."""

    poll_seconds: int
    max_retries: int
    retry_interval_seconds: float
    settle_seconds: float = 1.0
    """For how long a version's files must not have changed before it is loaded."""
    unload_when_empty: bool = False
    """Whether a base path without any version unloads the model, as the official server does."""
    published_only: bool = False
    """Whether a version that `.published` does not list is ignored."""


@dataclass
class Version:
    """What is known of one version. `error` is why it could not be loaded, also between two tries."""

    number: int
    state: State = State.START
    error: StatusError | None = None
    loading: bool = False
    tries: int = 0
    retry_at: float = 0.0
    tried_files: Fingerprint = NO_FILES
    seen_files: Fingerprint = NO_FILES
    seen_at: float = 0.0
    changing: bool = False
    """Whether its files were once seen to change."""

    def is_idle(self) -> bool:
        """Tell whether nobody works at it and nothing of it is in memory."""
        return not self.loading and self.state not in (State.AVAILABLE, State.UNLOADING)

    def has_failed_for_good(self) -> bool:
        """Tell whether all the tries that the flags allow have failed."""
        return self.state is State.END and self.error is not None

    def fail(self, error: StatusError, policy: LoadPolicy, now: float) -> None:
        """Note a failed try: LOADING until the next, or END after the last that the flags allow.

        After END it is still tried, twice as long after each time, and stays END until one succeeds.
        """
        self.tries += 1
        self.error = error
        beyond = self.tries - policy.max_retries
        self.state = State.END if beyond > 0 else State.LOADING
        wait = policy.retry_interval_seconds
        if beyond > 0:
            wait = min(max(1.0, wait) * 2.0 ** min(beyond, 12), max(wait, _LONGEST_BACK_OFF_SECONDS))
        self.retry_at = now + wait


def to_unload(versions: Iterable[Version], wanted: Collection[int]) -> list[Version]:
    """Return the available versions that may go, lowest first (core/availability_preserving_policy.cc).

    All that are not wanted where a wanted one is available or none is wanted; else all but the highest,
    so that one stays in service until its successor is.
    """
    available = sorted((v for v in versions if v.state is State.AVAILABLE), key=lambda v: v.number)
    unwanted = [version for version in available if version.number not in wanted]
    if not wanted or len(unwanted) < len(available):
        return unwanted
    return unwanted[:-1]
