"""The command `slipway` as a user runs it: a process of its own, exit code, output, verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DIGITS = REPOSITORY / "configs" / "digits"
QUICK = ("training.max_steps=500",)
"""Enough to pass the digits' threshold of 0.95, in a second or two."""


# Started from a script in the background, a test run ignores SIGINT, and so would its children; a user's
# terminal does not.
_MAIN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from flows.command.cli import main; sys.exit(main())"
)


def user_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user with this $SLIPWAY_HOME and no settings of Prefect's."""
    # Importing a flow into the test's process has set PREFECT_HOME there.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**inherited, "SLIPWAY_HOME": str(home), "COLUMNS": "200"}


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    output: str
    verdict: dict[str, Any]

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        """The verdict's checks by name."""
        return {check["name"]: check for check in self.verdict["checks"]}


class Slipway:
    """Runs the command with a home and a Prefect server that are not the user's."""

    def __init__(self, home: Path, prefect_api: str | None) -> None:
        self.home = home
        self.environment = user_environment(home)
        if prefect_api is not None:
            self.environment["PREFECT_API_URL"] = prefect_api
        self._pipelines: set[str] = set()

    def __call__(self, *arguments: str | Path, **environment: str) -> Finished:
        """Run `slipway <arguments>` to its end."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=600)
        file = self.home / "verdict.json"
        verdict = json.loads(file.read_text()) if file.is_file() else {}
        return Finished(process.returncode, output, verdict)

    def run(self, pipeline: Path, *settings: str, flow: str = "run", **environment: str) -> Finished:
        """Run a pipeline, by default as a local process and without a canary (5 s), with its verdict."""
        file = self.home / "verdict.json"
        file.unlink(missing_ok=True)
        chosen = ("deployment.target=process", "deployment.canary=false", *settings)
        options = [part for setting in chosen for part in ("--set", setting)]
        return self(flow, pipeline, *options, "--json", file, **environment)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start `slipway <arguments>` and return the process."""
        if len(arguments) > 1 and arguments[0] in ("run", "retrain"):
            self._pipelines.add(str(arguments[1]))
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, *map(str, arguments)],
            env={**self.environment, **environment}, cwd=REPOSITORY, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def record(self, model_name: str) -> dict[str, Any]:
        """Return the record of the model's server."""
        return dict(json.loads((self.home / "servers" / f"{model_name}.json").read_text()))

    def versions(self, model_name: str) -> list[int]:
        """Return the published versions on disk."""
        base = self.home / "models" / model_name
        return sorted(int(child.name) for child in base.iterdir() if child.name.isdigit())

    def stop_servers(self) -> None:
        """Stop every server that was started."""
        for pipeline in self._pipelines:
            self("stop", pipeline)
