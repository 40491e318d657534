"""`slipway rollback`, as it is told in the terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from configs.loading.pipelines import Pipeline
from tasks.deploys.rolling_back import roll_back
from tasks.processes import tensorflow_process

console = Console(highlight=False)


def run(loaded: Pipeline, to: int | None) -> int:
    """Roll back, say what answers now and in how many seconds."""
    began = time.monotonic()
    tensorflow_process.prepare()  # it imports TensorFlow while the server loads the version
    try:
        done = roll_back(loaded, to)
    finally:
        tensorflow_process.close()
    seconds = time.monotonic() - began
    console.print(f"{escape(loaded.config.name)}: {escape(done.summary())}", soft_wrap=True)
    console.print(f"[dim]{seconds:.1f} s; {done.number}.withdrawn is kept for inspection[/]")
    return 0
