"""The error tree. The class says who can do something about it; the exit code follows from it.

SlipwayError                    exit 1: the run failed; the version before still serves
├── ConfigError                 exit 2: bad configuration or command line (configs/loading/errors.py)
├── Rejected                    exit 3: a gate said no; nothing was published
├── PermanentError              the same again would fail the same way: never retried
│   ├── DataError               tonight's examples are missing, corrupt, or not what the YAML says
│   ├── ModelError              the Estimator cannot be built, trained or exported as configured
│   ├── EnvironmentFault        this machine refuses: port taken, folder not writable, disk full …
│   │   ├── ImageUnavailable    the server's image cannot be had here
│   │   └── JournalUnreadable   the deploy journal exists and cannot be trusted
│   ├── AlreadyRunning          exit 4: another run of this pipeline holds its lock
│   ├── VersionExists           the version number is taken
│   ├── DeployFailed            the server did not come up with the new version, in time or at all
│   └── SmokeTestFailed         the server answered wrongly, late, or with another version
│       └── AnswersDiffer       it answered, with the right version, with other numbers than expected
└── RetryableError              the same again may well succeed: retried by the flow
    └── ProcessDied             a TensorFlow process was killed or crashed
        └── ProcessStalled      it made no step for too long, and was killed
"""

from __future__ import annotations

import errno
from pathlib import Path

from configs.loading.errors import ConfigError, SlipwayError
from tasks.core.artifacts import Check, Evaluation

__all__ = [
    "AlreadyRunning",
    "AnswersDiffer",
    "CheckedError",
    "ConfigError",
    "DataError",
    "DeployFailed",
    "EnvironmentFault",
    "ImageUnavailable",
    "JournalUnreadable",
    "ModelError",
    "PermanentError",
    "ProcessDied",
    "ProcessStalled",
    "Rejected",
    "RetryableError",
    "SlipwayError",
    "SmokeTestFailed",
    "VersionExists",
    "disk_full",
    "error_named",
    "is_disk_full",
]


class CheckedError(SlipwayError):
    """An error that follows from checks; `checks` holds all that were made, the passed ones too."""

    def __init__(self, message: str, hint: str = "", checks: tuple[Check, ...] = ()) -> None:
        super().__init__(message, hint)
        self.checks = checks


class Rejected(CheckedError):
    """A gate said no."""

    exit_code = 3
    evaluated: Evaluation | None = None
    """What was measured, if the gate is one of the evaluation: people look at it to see why."""


class PermanentError(SlipwayError):
    """Trying again cannot help."""


class RetryableError(SlipwayError):
    """Trying again may help."""


class DataError(PermanentError):
    """Tonight's examples are missing, corrupt, or not what the YAML says."""


class ModelError(PermanentError):
    """The Estimator cannot be built, trained or exported as configured."""


class EnvironmentFault(PermanentError):
    """This machine refuses: a port is taken, a folder is not writable, the disk is full …"""


class ImageUnavailable(EnvironmentFault):
    """The server's image cannot be had here: no base to build it from, no registry to pull it from."""


class JournalUnreadable(EnvironmentFault):
    """The deploy journal exists and cannot be trusted: the disk, or somebody, damaged it."""


class AlreadyRunning(PermanentError):
    """Another run of this pipeline holds its lock."""

    exit_code = 4


class VersionExists(PermanentError):
    """The version number is taken."""


class DeployFailed(PermanentError):
    """The server did not come up with the new version, in time or at all."""


class SmokeTestFailed(CheckedError, PermanentError):
    """The server answered wrongly, late, or with another version."""


class AnswersDiffer(SmokeTestFailed):
    """The right version answered every request, finitely and in the right form, but with other numbers."""


class ProcessDied(RetryableError):
    """A TensorFlow process was killed or crashed."""


class ProcessStalled(ProcessDied):
    """A TensorFlow process made no step for too long, and was killed."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether a file system had no space left, or no more of it for this user."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(place: Path | str, said: str) -> EnvironmentFault:
    """Return the error of a disk without space; `place` is what was written there."""
    hint = "free some space there; slipway run PIPELINE --resume goes on from what is finished"
    return EnvironmentFault(f"{place}: the disk is full: {said}", hint)


def error_named(name: str) -> type[SlipwayError]:
    """Return the class of the tree with this name; SlipwayError where there is none."""
    pending: list[type[SlipwayError]] = [SlipwayError]
    while pending:
        candidate = pending.pop()
        if candidate.__name__ == name:
            return candidate
        pending.extend(candidate.__subclasses__())
    return SlipwayError
