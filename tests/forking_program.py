"""A fork server for test_fork_server: each child runs the Python program that it reads from stdin."""

from __future__ import annotations

import socket
import sys

from tasks.processes import fork_server

if __name__ == "__main__":
    fork_server.serve(socket.socket(fileno=int(sys.argv[1])))
    exec(sys.stdin.read())
