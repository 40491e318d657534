"""Ports that this server is to listen on, looked at before TensorFlow and a model are loaded for nothing."""

from __future__ import annotations

import socket

from model_server.base.flags import Options
from model_server.base.status import Code, StatusError


def require_free(options: Options, host: str) -> None:
    """Raise StatusError naming the port, and its flag, that cannot be listened on."""
    for flag, port in (("--port", options.port), ("--rest_api_port", options.rest_api_port)):
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise unavailable(flag, f"{host}:{port}", error) from error


def unavailable(flag: str, address: str, error: BaseException) -> StatusError:
    """Say that an address cannot be listened on, and which flag asked for it."""
    return StatusError(Code.UNAVAILABLE, f"cannot listen on {address} ({flag}): {error}")
