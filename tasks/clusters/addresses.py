"""The address under which a process of a cluster is reached: one of this host's, in the cluster's network."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network

import psutil

from tasks.core.errors import EnvironmentFault

_CONNECT_SECONDS = 5.0
Ports = tuple[int, int] | None


@contextmanager
def seat(network: IPv4Network, ports: Ports) -> Iterator[str]:
    """Listen at this host's address in `network`, on a free port of `ports`, while the block runs.

    Yields host:port. TensorFlow listens there afterwards; until then others can try whether they reach it.
    Raises EnvironmentFault where there is no such address, or not one alone, or no free port.
    """
    host = own_address(network)
    with _listening(host, ports) as listener:
        yield f"{host}:{listener.getsockname()[1]}"


def own_address(network: IPv4Network) -> str:
    """Return this host's address in `network`."""
    found = sorted(
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and IPv4Address(address.address) in network
    )
    if len(found) != 1:
        what = f"the addresses {', '.join(found)}" if found else "no address"
        raise EnvironmentFault(
            f"training.cluster.network is {network}: {socket.gethostname()} has {what} in it",
            "name the private network that all hosts of the work pool are in, each by one address",
        )
    return found[0]


def _listening(host: str, ports: Ports) -> socket.socket:
    first, last = ports or (0, 0)
    for port in range(first, last + 1):
        try:
            return socket.create_server((host, port))
        except OSError:
            continue
    message = f"training.cluster.ports: none of {first} to {last} is free on {host}"
    raise EnvironmentFault(message, "widen the range, or end what listens there")


def require_reachable(addresses: Sequence[str]) -> None:
    """Raise EnvironmentFault where one of `addresses` (host:port) takes no connection from this host."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise EnvironmentFault(
                f"{socket.gethostname()} cannot reach {address}: {error.strerror or error}",
                "are all hosts in training.cluster.network, and does its firewall let training.cluster.ports "
                "pass?",
            ) from None
