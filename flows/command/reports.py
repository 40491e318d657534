"""Files that a command writes a verdict to, for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.schema.home import give_user_mode
from tasks.core.artifacts import Verdict
from tasks.reports import junit
from tasks.runs import run_folders


@dataclass(frozen=True)
class Reports:
    """Where the verdict goes besides the run's own folder; None where it does not."""

    json_file: Path | None = None
    junit_file: Path | None = None

    def write(self, verdict: Verdict) -> None:
        """Write the verdict to each file that was asked for, each at one instant."""
        if self.json_file is not None:
            run_folders.write_verdict(verdict, self.json_file)
            give_user_mode(self.json_file)
        if self.junit_file is not None:
            junit.write(verdict, self.junit_file)
            give_user_mode(self.junit_file)
