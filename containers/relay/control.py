"""Orders and questions to the relay in whose container this runs, by `docker exec`.

    control.py point HOST            new connections go to HOST from now on, the container's name
    control.py status HOST MODEL     what the server at HOST says of its versions, as JSON; "" if nothing
    control.py connections HOST      how many connections the relay has to HOST
    control.py health                whether the relay is at work

Exit code 1, with a line on stderr, where it cannot be done. HAProxy's commands: management guide, 9.3.
"""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

GRPC_PORT, REST_PORT = 8500, 8501
BACKENDS = ("grpc", "rest")
ADMIN = "/tmp/admin.sock"  # noqa: S108 (inside the container)
POINT_SECONDS = 20.0
STATUS_SECONDS = 2.0
_POLL_SECONDS = 0.05
_OPEN = ("01", "02")  # ESTABLISHED and SYN_SENT, include/net/tcp_states.h
_ADDRESS = 4  # column of `show servers state`


def point(host: str) -> None:
    """Have new connections go to HOST, and return when they do; those that there are stay where they are.

    HAProxy asks the engine for the address by itself, and goes on with the one of before meanwhile. One that
    was just started may not have its socket yet.
    """
    ends = time.monotonic() + POINT_SECONDS
    while not Path(ADMIN).is_socket() and time.monotonic() < ends:
        time.sleep(_POLL_SECONDS)
    wanted = socket.gethostbyname(host)
    for backend in BACKENDS:
        _told(f"set server {backend}/server fqdn {host}")
    while any(_address(backend) != wanted for backend in BACKENDS):
        if time.monotonic() > ends:
            raise TimeoutError(f"the relay did not find {host} ({wanted}) within {POINT_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def _address(backend: str) -> str:
    """Return the address that a new connection goes to. The answer: a version, a head line, a server."""
    return _told(f"show servers state {backend}").splitlines()[2].split()[_ADDRESS]


def _told(command: str) -> str:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(POINT_SECONDS)
        admin.connect(ADMIN)
        admin.sendall(command.encode() + b"\n")
        return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


def status(host: str, model: str) -> str:
    """Return the answer of `GET /v1/models/MODEL` (200), "" where there is none (yet)."""
    try:
        url = f"http://{host}:{REST_PORT}/v1/models/{model}"
        with urllib.request.urlopen(url, timeout=STATUS_SECONDS) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def connections(host: str) -> int:
    """Return how many connections to HOST's two ports are open, or being opened. Format: proc(5)."""
    try:
        address = int.from_bytes(socket.inet_aton(socket.gethostbyname(host)), sys.byteorder)
    except socket.gaierror:  # it does not run
        return 0
    remote = {f"{address:08X}:{port:04X}" for port in (GRPC_PORT, REST_PORT)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[2] in remote and row[3] in _OPEN)


def main(what: str, *arguments: str) -> int:
    """Do what the command line says."""
    try:
        if what == "point":
            point(*arguments)
        elif what == "status":
            sys.stdout.write(status(*arguments))
        elif what == "connections":
            sys.stdout.write(f"{connections(*arguments)}\n")
        else:
            _told("show info")
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
