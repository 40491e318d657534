"""What went wrong, as a gRPC code and a message; every layer raises StatusError and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

# tensorflow_serving/model_servers/grpc_status_util.cc: longer messages could exceed the HTTP/2 header limit.
_MAX_MESSAGE_CHARACTERS = 1024
_TRUNCATION_MARK = "...TRUNCATED"
_MAX_NAMES = 10


class Code(IntEnum):
    """The canonical status codes, numbered alike in gRPC, TensorFlow and absl."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """An answer other than OK: `code` and the `message` that the client reads."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def invalid_argument(message: str) -> StatusError:
    """Return the most frequent error, ready to raise."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def naming(official: str, what: str, names: Sequence[object]) -> str:
    """Return the official text and, on a line of its own, the names that there are, at most ten.

    Clients that look for the official text find it, at the beginning and as a line.
    """
    shown = ", ".join(str(name) for name in names[:_MAX_NAMES]) or "none"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{official}\n{what}: {shown}{more}"


def from_exception(error: BaseException) -> StatusError:
    """Return any exception's status: TensorFlow's keep their code and raw text, the rest are INTERNAL."""
    if isinstance(error, StatusError):
        return error
    code, message = getattr(error, "error_code", None), getattr(error, "message", None)
    if isinstance(code, int) and isinstance(message, str):
        return StatusError(Code(code), message)
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def truncated(message: str) -> str:
    """`message` as it fits into gRPC trailers, cut as the official server cuts it."""
    if len(message) <= _MAX_MESSAGE_CHARACTERS:
        return message
    return message[:_MAX_MESSAGE_CHARACTERS] + _TRUNCATION_MARK
