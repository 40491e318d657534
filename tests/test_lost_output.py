"""A run goes on when nobody reads its output any more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from slipway_command import DIGITS, Slipway

PROGRAM = """
import flows.environment
import logging, sys
from pathlib import Path
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from tasks.processes import lost_output

console = Console(stderr=True)
log = logging.getLogger("told")
log.addHandler(PrefectConsoleHandler(stream=sys.stderr))
lost_output.survive()
lost_output.survive()
sys.stdin.readline()  # from here on nobody reads
for stream in (sys.stdout, sys.stderr):
    print("a line " * 10_000, file=stream, flush=True)
    print("buffered", file=stream)
console.print("a line of rich's")
log.error("a line of Prefect's log")
Path(sys.argv[1]).write_text("came to its end")
"""


def test_nothing_that_prints_ends_the_process(tmp_path: Path) -> None:
    """Plain prints, rich's console, Prefect's log lines, and the last flush: the exit code is 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "end")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "came to its end"


def test_a_run_comes_to_its_end(slipway: Slipway) -> None:
    """`slipway run | head -1`, as it were: the verdict is written, the exit code is that of the verdict."""
    file = slipway.home / "verdict.json"
    options = ("--dry-run", "--verbose", "--json", file, "--set", "deployment.target=process")
    process = slipway.start("run", DIGITS, *options)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(300) == 0
    assert json.loads(file.read_text())["outcome"] == "checked"
