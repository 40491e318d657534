"""What is told to the world when what is served has changed against expectation."""

from __future__ import annotations

import logging

from tasks.core.artifacts import Withdrawal

_log = logging.getLogger(__name__)


def rolled_back(pipeline: str, withdrawal: Withdrawal, reason: str) -> None:
    """Tell that a version was withdrawn, by itself or by a person, and which one answers now.

    Called once for each, when it is over and proven.
    """
    _log.warning("%s: %s (%s)", pipeline, withdrawal.proved(), reason or "no reason given")
