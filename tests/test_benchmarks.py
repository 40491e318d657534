"""The benchmark of training runs and prints its ratios; how fast this machine is, is no test's business."""

from __future__ import annotations

import re
import subprocess
import sys

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
    for row in ("steps/s", "examples/s", "input pipeline alone, batches/s", "peak memory, MiB"):
        assert re.search(rf"^ ?{row}.* \d+\.\d+ \(\d+\.\d+ … \d+\.\d+\)", finished.stdout, re.MULTILINE), row
    assert re.search(r"[\d,]+ MiB at 500 examples, [\d,]+ MiB at 1,000", finished.stdout)
