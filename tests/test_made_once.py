"""What pytest workers share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import made_once

_MAKES = """
import pathlib, sys, time
from made_once import made_once

def make(folder):
    time.sleep(0.05)  # long enough for the other process to ask
    with pathlib.Path(sys.argv[1]).open("a") as calls:
        calls.write("called ")
    return folder

print(made_once("thing", make))
"""


def test_it_is_made_once_for_all_workers(tmp_path: Path) -> None:
    """Of two processes that need it at the same time, one makes it, and both have it."""
    shared, calls = tmp_path / "shared", tmp_path / "calls"
    shared.mkdir()
    environment = {**os.environ, made_once.SHARED: str(shared), "PYTHONPATH": str(Path(__file__).parent)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _MAKES, str(calls)], env=environment, text=True, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [each.communicate(timeout=60)[0].strip() for each in workers] == [str(shared / "thing")] * 2
    assert calls.read_text() == "called "
