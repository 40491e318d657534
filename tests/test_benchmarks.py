"""The benchmark of training runs and prints its ratios; how fast this machine is, is no test's business."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from slipway_command import REPOSITORY


def test_training_beside_the_bare_estimator_is_measured() -> None:
    """A round of few steps gives a ratio for steps/s, for the input alone, and memory at both sizes."""
    options = {
        "rounds": 1, "steps": 300, "warm-up": 100, "input-batches": 20, "examples": 500,
        "large-examples": 1000,
    }  # fmt: skip
    finished = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "training.py",
         *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    for row in (
        "steps/s",
        "examples/s",
        "input pipeline alone, batches/s",
        "peak memory, MiB",
    ):
        assert re.search(rf"^ ?{row}.* \d+\.\d+ \(\d+\.\d+ … \d+\.\d+\)", finished.stdout, re.MULTILINE), row
    assert re.search(r"[\d,]+ MiB at 500 examples, [\d,]+ MiB at 1,000", finished.stdout)


@pytest.mark.timeout(900)
def test_the_model_server_beside_a_plain_one_is_measured() -> None:
    """Every server answers every request rightly; a row of ratios each, p99 during a swap, and memory."""
    if shutil.which("h2load") is None and not os.environ.get("SLIPWAY_REQUIRE_H2LOAD"):
        pytest.skip("h2load is not installed (Debian: nghttp2-client)")
    options = {"rounds": 1, "seconds": 0.3, "connections": 2, "calls": 50, "swaps": 1, "swap-seconds": 3}
    finished = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "server.py",
         *(part for name, value in options.items() for part in (f"--{name}", str(value)))],
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    for request in ("Classify1", "Classify32", "Predict1", "Predict32"):
        assert re.search(rf"^ ?{request}, 2 connections(.+\d+\.\d\d){{8}}", finished.stdout, re.MULTILINE), (
            finished.stdout
        )
    assert re.search(r"p99 while 1 versions are swapped in: \d+\.\d\d× of before", finished.stdout)
    assert re.search(r"memory, MiB: ours \d+, 2 processes \d+, baseline \d+", finished.stdout)
