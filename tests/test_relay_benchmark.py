"""The benchmark of the relay runs and prints its ratios; how fast this machine is, is no test's business."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from slipway_command import REPOSITORY


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_container_behind_the_relay_is_measured() -> None:
    """Beside one that is published and one in the machine's network: ratios for every request."""
    if shutil.which("h2load") is None and not os.environ.get("SLIPWAY_REQUIRE_H2LOAD"):
        pytest.skip("h2load is not installed (Debian: nghttp2-client)")
    finished = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "relay.py",
         "--rounds", "1", "--seconds", "0.3", "--connections", "2"],
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    for request in ("Classify1", "Classify32", "Predict1", "Predict32"):
        assert re.search(rf"^ ?{request}, 2 connections(.+\d+\.\d\d){{8}}", finished.stdout, re.MULTILINE), (
            finished.stdout
        )
