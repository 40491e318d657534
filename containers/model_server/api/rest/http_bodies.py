"""The bodies of HTTP/1.1 requests: counted or in chunks, plain or gzip, and never larger than a limit."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from io import BufferedIOBase

_PIECE_BYTES = 2**16
_LINE_BYTES = 1024
_MOST_TRAILERS = 100
_WORTH_PACKING_BYTES = 1024


class BodyError(Exception):
    """A body that cannot be read; `status` is what HTTP calls it. What follows on the connection is lost."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


Hold = Callable[[int], None]
"""Reserves memory for so many bytes, before they are read. Raises BodyError if there is not enough."""


def read(stream: BufferedIOBase, headers: Message, most_bytes: int, hold: Hold = lambda _: None) -> bytes:
    """Return the whole body, unpacked; empty if there is none. Raises BodyError."""
    if _is_chunked(headers):
        body = _chunked(stream, most_bytes, hold)
    else:
        body = _counted(stream, headers, most_bytes, hold)
    is_packed = headers.get("Content-Encoding", "").lower() == "gzip"
    return _unpacked(body, most_bytes, hold) if is_packed else body


def takes_gzip(headers: Message, answer: bytes) -> bool:
    """Tell whether an answer is to be packed: its client takes it so, and it is worth it."""
    if len(answer) < _WORTH_PACKING_BYTES:
        return False
    accepted = headers.get("Accept-Encoding", "").lower()
    return re.search(r"(?:^|[\s,])(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))|,|$)", accepted) is not None


def _is_chunked(headers: Message) -> bool:
    coding = headers.get("Transfer-Encoding")
    if coding is None:
        return False
    if coding.lower() != "chunked" or "Content-Length" in headers:
        raise _bad_length()
    return True


def _counted(stream: BufferedIOBase, headers: Message, most_bytes: int, hold: Hold) -> bytes:
    given = set(headers.get_all("Content-Length", ["0"]))
    text = given.pop()
    if given or not re.fullmatch("[0-9]{1,18}", text):
        raise _bad_length()
    return _exactly(stream, int(text), most_bytes, hold)


def _chunked(stream: BufferedIOBase, most_bytes: int, hold: Hold) -> bytes:
    chunks: list[bytes] = []
    left = most_bytes
    while size := _chunk_size(stream):
        chunks.append(_exactly(stream, size, left, hold))
        left -= size
        if stream.readline(_LINE_BYTES).strip():
            raise _bad_length()
    for _ in range(_MOST_TRAILERS):
        if not stream.readline(_LINE_BYTES).strip():
            return b"".join(chunks)
    raise _bad_length()


def _chunk_size(stream: BufferedIOBase) -> int:
    text = stream.readline(_LINE_BYTES).split(b";")[0].strip()
    if not re.fullmatch(b"[0-9a-fA-F]{1,15}", text):
        raise _bad_length()
    return int(text, 16)


def _exactly(stream: BufferedIOBase, size: int, most_bytes: int, hold: Hold) -> bytes:
    if size > most_bytes:
        raise _too_large()
    pieces = []
    while size:
        piece = stream.read(min(size, _PIECE_BYTES))  # what is announced may never come
        if not piece:
            raise _bad_length()
        hold(len(piece))
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _unpacked(body: bytes, most_bytes: int, hold: Hold) -> bytes:
    pieces, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as packed:
            while piece := packed.read(_PIECE_BYTES):  # a few bytes may unpack to any number
                size += len(piece)
                if size > most_bytes:
                    raise _too_large()
                hold(len(piece))
                pieces.append(piece)
    except (OSError, EOFError, zlib.error):
        raise BodyError(HTTPStatus.BAD_REQUEST, "Malformed request: the body is not gzip") from None
    return b"".join(pieces)


def _bad_length() -> BodyError:
    return BodyError(
        HTTPStatus.BAD_REQUEST, "Malformed request: the length of the body is not given correctly"
    )


def _too_large() -> BodyError:
    return BodyError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is larger than MODEL_SERVER_REST_BODY_MEGABYTES"
    )
