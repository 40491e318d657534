"""What is told to the world when what is served has changed against expectation."""

from __future__ import annotations

import logging

from tasks.core.artifacts import Withdrawal

_log = logging.getLogger(__name__)


def rolled_back(pipeline: str, withdrawal: Withdrawal, reason: str) -> None:
    """Emit the event that a version was withdrawn, and which one is live now.

    Called once for each, when it is over and proven.
    """
    _log.warning("%s: %s (%s)", pipeline, withdrawal.summary(), reason or "no reason given")
