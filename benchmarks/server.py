"""`make bench-server`: requests/s, latency and CPU of the model server, beside others, in one run.

All servers run at once and are asked in turns, a slice of time each, so that a noisy machine is as noisy for
all; what counts are ratios within a round. The others are baseline_server.py and, where
$TENSORFLOW_MODEL_SERVER names one, an official binary. The load comes from h2load (Debian's
nghttp2-client), which takes a gRPC error for a success: so answers are counted by their DATA bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
NAME = "digits"
TWO = "2 processes"
SERVICE = "/tensorflow.serving.PredictionService"
REQUESTS = ("Classify1", "Classify32", "Predict1", "Predict32")
START_SECONDS = 180.0
LONGEST_SECONDS = 60.0
FRAME_BYTES = 5


@dataclass(frozen=True)
class Server:
    """One that runs; `answers` are the bytes that it answers each request with."""

    name: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return what its processes have used so far."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)

    def mebibytes(self) -> float:
        """Return the memory that its processes have to themselves (USS)."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_full_info().uss for each in family) / 2**20


@dataclass(frozen=True)
class Slice:
    """What was measured of one server in one slice of time."""

    per_second: float
    median_ms: float
    p99_ms: float
    cpu_us: float


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the servers' command lines, environment before them; {port} is for the port."""
    flags = ["--port={port}", f"--model_name={NAME}", f"--model_base_path={folder}/models"]
    found = {
        "ours": [sys.executable, "-m", "model_server", *flags],
        TWO: ["env", "MODEL_SERVER_PROCESSES=2", sys.executable, "-m", "model_server", *flags],
        "baseline": [sys.executable, str(HERE / "baseline_server.py"), f"{folder}/models/1", "{port}"],
    }
    official = os.environ.get("TENSORFLOW_MODEL_SERVER", "")
    if official and os.access(official, os.X_OK):
        # Its default cap of threads answers RESOURCE_EXHAUSTED at nine callers.
        found["official"] = [official, *flags, "--grpc_max_threads=64"]
    return found


@contextmanager
def running(name: str, command: Sequence[str], log: Path) -> Iterator[Server]:
    """Start a server, wait for its port, and stop it in the end."""
    port = free_port()
    environment = {**os.environ, "MODEL_SERVER_HOST": "127.0.0.1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(START_SECONDS)
        yield Server(name, port, psutil.Process(process.pid))
    except grpc.FutureTimeoutError:
        raise SystemExit(f"{name} did not start:\n{log.read_text()[-3000:]}") from None
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def answer_bytes(server: Server, request: Path) -> int:
    """Return the length of a right answer, which is every class's score for every Example."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = request.name.rstrip("0123456789")
        answered: bytes = channel.unary_unary(f"{SERVICE}/{method}", None, None)(
            request.read_bytes(), timeout=60
        )
    count = int(request.name.removeprefix(method))
    _check(method, count, answered, server.name)
    return len(answered)


def _check(method: str, count: int, answered: bytes, name: str) -> None:
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    if method == "Classify":
        rows = classification_pb2.ClassificationResponse.FromString(answered).result.classifications
        sums = [sum(each.score for each in row.classes) for row in rows]
    else:
        outputs = predict_pb2.PredictResponse.FromString(answered).outputs
        scores = list(outputs["probabilities"].float_val)
        width = len(scores) // count
        sums = [sum(scores[start : start + width]) for start in range(0, len(scores), width)]
    if len(sums) != count or any(abs(total - 1) > 1e-3 for total in sums):  # noqa: PLR2004
        raise SystemExit(f"{name} answers {method}{count} wrongly: {sums}")


def load(server: Server, request: Path, connections: int, seconds: float, expected: int) -> Slice:
    """Ask for so long over so many connections, one request at a time on each.

    For longer where nothing is answered: a machine with other work may give a server no turn.
    """
    method = request.name.rstrip("0123456789")
    with tempfile.NamedTemporaryFile() as times:
        before = server.cpu_seconds()
        finished = subprocess.run(
            ["h2load", "-D", f"{round(seconds * 1000)}ms", "-c", str(connections), "-m", "1",
             "-d", f"{request}.body", "--log-file", times.name,
             "-H", "content-type: application/grpc", "-H", "te: trailers",
             f"http://127.0.0.1:{server.port}{SERVICE}/{method}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = server.cpu_seconds() - before
        micros = sorted(int(line.split("\t")[2]) for line in Path(times.name).read_text().splitlines())
    if not micros and seconds < LONGEST_SECONDS:
        return load(server, request, connections, 2 * seconds, expected)
    data = int(re.search(r"\((\d+)\) data", finished.stdout)[1])  # type: ignore[index]
    answers = data // (expected + FRAME_BYTES)
    if not answers or answers < len(micros) - connections:  # at the end each has one under way
        raise SystemExit(f"{server.name}: of {len(micros)} answers {answers} were right\n{finished.stdout}")
    return Slice(
        answers / seconds,
        micros[len(micros) // 2] / 1000,
        micros[int(len(micros) * 0.99)] / 1000,
        used / answers * 1e6,
    )


Measured = dict[tuple[str, int, str], list[Slice]]


def measure(servers: Sequence[Server], folder: Path, options: argparse.Namespace) -> Measured:
    """Ask all servers in turns, round after round."""
    lengths = {
        (server.name, name): answer_bytes(server, folder / name) for server in servers for name in REQUESTS
    }
    measured: Measured = defaultdict(list)
    for _ in range(options.rounds):
        for name in REQUESTS:
            for connections in options.connections:
                for server in servers:
                    length = lengths[server.name, name]
                    measured[name, connections, server.name].append(
                        load(server, folder / name, connections, options.seconds, length)
                    )
    return measured


def report(console: Console, measured: Measured, bare: dict[str, float], others: Sequence[str]) -> None:
    """Print a row for each request and number of connections: medians, and ratios within rounds."""
    table = Table(title="model server", title_justify="left", show_edge=False)
    columns = ["", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "÷ bare call"]
    columns += [f"{what} ÷ {other}" for other in others for what in ("requests/s", "p50", "CPU")]
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for (name, connections, server), slices in measured.items():
        if server != "ours":
            continue
        cells = [
            f"{median(slices, 'per_second'):,.0f}", f"{median(slices, 'median_ms'):.2f}",
            f"{median(slices, 'p99_ms'):.2f}", f"{median(slices, 'cpu_us'):.0f}",
            f"{median(slices, 'cpu_us') / bare[name]:.2f}",
        ]  # fmt: skip
        for other in others:
            theirs = measured[name, connections, other]
            cells += [f"{ratio(slices, theirs, what):.2f}" for what in ("per_second", "median_ms", "cpu_us")]
        table.add_row(f"{name}, {connections} connections", *cells)
    console.print(table)


def median(slices: Sequence[Slice], what: str) -> float:
    """Return the median of what was measured in each round."""
    return statistics.median(getattr(each, what) for each in slices)


def ratio(ours: Sequence[Slice], theirs: Sequence[Slice], what: str) -> float:
    """Return the median of the ratios within a round."""
    return statistics.median(
        getattr(mine, what) / getattr(other, what) for mine, other in zip(ours, theirs, strict=True)
    )


def swaps(server: Server, folder: Path, options: argparse.Namespace, length: int) -> tuple[float, float]:
    """Return the p99 in ms of eight connections without swaps, and while versions come in."""
    request, seconds = folder / "Predict1", options.swaps * options.swap_seconds
    before = load(server, request, 8, seconds, length)
    with subprocess.Popen([sys.executable, "-c", _PUBLISH, f"{folder}/models", str(options.swaps),
                           str(options.swap_seconds)]) as publisher:  # fmt: skip
        during = load(server, request, 8, seconds, length)
        publisher.wait()
    return before.p99_ms, during.p99_ms


_PUBLISH = """
import pathlib, shutil, sys, time
base, count, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for version in range(2, count + 2):
    started = time.monotonic()
    shutil.copytree(base / "1", base / "copy")
    (base / "copy").rename(base / str(version))
    time.sleep(max(0, seconds - (time.monotonic() - started)))
"""


def main() -> None:
    """Measure and print."""
    options = _options()
    if not shutil.which("h2load"):
        raise SystemExit("h2load is not installed: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        run_program("export", f"{folder}/models")
        run_program("requests", str(folder))
        bare = json.loads(run_program("bare", f"{folder}/models", str(options.calls)).splitlines()[-1])
        servers = [
            stack.enter_context(running(name, command, folder / f"{name}.log"))
            for name, command in commands(folder).items()
        ]
        others = [server.name for server in servers if server.name != "ours"]
        console = Console(width=150)
        measured = measure(servers, folder, options)
        report(console, measured, bare, others)
        length = answer_bytes(servers[0], folder / "Predict1")
        quiet, busy = swaps(servers[0], folder, options, length)
        console.print(
            f"p99 while {options.swaps} versions are swapped in: {busy / quiet:.2f}× of before "
            f"({quiet:.2f} ms, {busy:.2f} ms), no failed answer"
        )
        console.print("memory, MiB: " + ", ".join(f"{each.name} {each.mebibytes():,.0f}" for each in servers))
        console.print("bare call, CPU µs: " + ", ".join(f"{key} {value:.0f}" for key, value in bare.items()))


def run_program(*arguments: str) -> str:
    """Have server_runs.py do something, and return what it prints."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    finished = subprocess.run([sys.executable, str(HERE / "server_runs.py"), *arguments],
                              capture_output=True, text=True, check=False, env=environment)  # fmt: skip
    if finished.returncode:
        raise SystemExit(f"{arguments} failed:\n{finished.stderr[-3000:]}")
    return finished.stdout


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of a slice")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--calls", type=int, default=2000, help="of the bare graph")
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--swap-seconds", type=float, default=3, help="between two versions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
