"""Progress of a stage in a line: for the terminal, and for the run's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOG_EVERY_SECONDS = 30.0
"""Between two lines of progress in a log, where each line stays."""


def line(progress: Mapping[str, Any]) -> str:
    """Return what `tasks.runs.stages.report` takes as text: numbers with their units."""
    parts = [str(progress["message"])] if "message" in progress else []
    if "step" in progress:
        parts.append(f"step {progress['step']:,}/{progress.get('max_steps', 0):,}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4g}")
    if progress.get("steps_per_second"):
        parts.append(f"{progress['steps_per_second']:,.0f} steps/s")
    if "examples" in progress:
        parts.append(f"{progress['examples']:,} examples")
    if progress.get("examples_per_second"):
        parts.append(f"{progress['examples_per_second']:,.0f} examples/s")
    if "bytes" in progress:
        parts.append(f"{progress['bytes'] / 1e6:,.1f} MB")
    return "  ".join(parts)
