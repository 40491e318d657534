"""`make bench-relay`: what the relay before a container costs, beside a container without one, in one run.

The same model, server image and flags, in three containers at once: relayed, published (the engine's own
proxy is passed) and in the machine's network. All are asked in turns, a slice of time each, as in server.py,
whose load and counting of answers this uses; what counts are ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker
import psutil
from rich.console import Console
from rich.table import Table
from server import NAME, Measured, Server, free_port, measure, median, ratio, run_program

NETWORKS = ("relayed", "published", "host")
LIMITS = {"memory_mb": 2048, "cpus": float(os.cpu_count() or 1), "pids": 512}
START_SECONDS = 120.0


@contextmanager
def running(network: str, base: Path) -> Iterator[Server]:
    """Have a container of ours in that network, started as a deploy starts it, in a home of its own."""
    from tasks.core.artifacts import ContainerLimits
    from tasks.servers import model_servers, server_image
    from tasks.servers.model_servers import Deadline
    from tasks.state.server_records import ServerRecord

    engine = docker.from_env()
    planned = ServerRecord(
        model_name=NAME, target="docker", program=server_image.ensure(engine, None, print), identity=network,
        model_base_path=str(base), flags=(), grpc_port=free_port(), rest_port=free_port(), network=network,
        limits=ContainerLimits(**LIMITS), relay=server_image.ensure_relay(engine, print),
    )  # fmt: skip
    home = base.parent / network
    os.environ["SLIPWAY_HOME"] = str(home)
    record = model_servers.start(planned)
    try:
        model_servers.wait_until_live(record, 1, Deadline.after(START_SECONDS), home / "server.log")
        container = engine.containers.get(record.handle)
        yield Server(network, record.grpc_port, psutil.Process(container.attrs["State"]["Pid"]))
    finally:
        os.environ["SLIPWAY_HOME"] = str(home)
        model_servers.stop(record)


def report(console: Console, measured: Measured) -> None:
    """Print a row for each request and number of connections: medians, and ratios within rounds."""
    table = Table(title="a container behind the relay", title_justify="left", show_edge=False)
    columns = ["", "requests/s", "p50 ms", "p99 ms"]
    columns += [f"{what} ÷ {other}" for other in NETWORKS[1:] for what in ("requests/s", "p50", "p99")]
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for (name, connections, network), slices in measured.items():
        if network != "relayed":
            continue
        cells = [f"{median(slices, 'per_second'):,.0f}"]
        cells += [f"{median(slices, what):.2f}" for what in ("median_ms", "p99_ms")]
        for other in NETWORKS[1:]:
            theirs = measured[name, connections, other]
            cells += [f"{ratio(slices, theirs, what):.2f}" for what in ("per_second", "median_ms", "p99_ms")]
        table.add_row(f"{name}, {connections} connections", *cells)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of a slice")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    if not shutil.which("h2load"):
        raise SystemExit("h2load is not installed: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the container is not root
        run_program("export", f"{folder}/models")
        run_program("requests", str(folder))
        servers = [stack.enter_context(running(network, folder / "models")) for network in NETWORKS]
        report(Console(width=150), measure(servers, folder, options))


if __name__ == "__main__":
    main()
