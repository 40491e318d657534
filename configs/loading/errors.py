"""The root of Slipway's errors, and the one that reading a configuration raises.

The rest of the tree is drawn in `tasks/core/errors.py`.
"""

from __future__ import annotations


class SlipwayError(Exception):
    """An error that a user can act on: `message` says what and where, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Render message and hint, a line each."""
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(SlipwayError):
    """The configuration or the command line is wrong; nothing has been changed."""

    exit_code = 2
