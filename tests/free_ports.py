"""Ports for tests: no two pytest workers pick the same one, and no connection is given it meanwhile."""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _EACH, _WORKERS = 20_000, 1_500, 8
"""Below 32768, where Linux takes the ports of outgoing connections from, and what it gives for port 0."""


def _ours() -> range:
    """Return the range of this pytest worker, which xdist calls gw0, gw1 …; without xdist, of the first."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    return range(_FIRST + worker * _EACH, _FIRST + (worker + 1) * _EACH)


def _turned(ports: range) -> list[int]:
    """Return them from anywhere on: another checkout's tests may run on this machine."""
    start = random.randrange(len(ports))
    return [*ports[start:], *ports[:start]]


_ports = itertools.cycle(_turned(_ours()))


def free_port() -> int:
    """Return a loopback port that nobody listens on, and that no caller before was given, for long."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("a cycle does not end")
