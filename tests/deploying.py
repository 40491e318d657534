"""A program for test_faults: deploys a candidate that is there already, as retrain_and_deploy does.

python tests/deploying.py PIPELINE RUN_ID [STOP] goes through the flow's stages but for those that make the
candidate; nothing is trained, and no Prefect server is asked. With STOP, such as `before published`, it stops
itself (SIGSTOP) just before or after that state of the journal is written, or with `before let in` or `after
let in` around letting clients in to a server that takes over, so that a test can kill it there. Its last line
is what it came to, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect.logging import disable_run_logger

from configs.loading.pipelines import load_pipeline
from flows.policy import deploying, undone_on_failure
from tasks import deployment
from tasks.answers import kept_answers
from tasks.canary import canary
from tasks.core.errors import CheckedError, SlipwayError
from tasks.preflight import serving_target
from tasks.processes import tensorflow_process
from tasks.publishing import publish
from tasks.recovery import recover
from tasks.retention import retire
from tasks.runs import run_folders
from tasks.servers import model_servers
from tasks.smoke_testing import smoke_test
from tasks.state import deploy_journal
from tasks.state.model_versions import candidate_folder
from tasks.state.server_records import ServerRecord


def stop_at(boundary: str) -> None:
    """Have this process stop itself at a boundary: the test that sees it stopped does the killing."""
    write, let_in = deploy_journal._write, model_servers.let_clients_in

    def stopping(path: Path, journal: deploy_journal.Journal) -> None:
        if boundary == f"before {journal.state}":
            os.kill(os.getpid(), signal.SIGSTOP)
        write(path, journal)
        if boundary == f"after {journal.state}":
            os.kill(os.getpid(), signal.SIGSTOP)

    def stopping_when_let_in(record: ServerRecord) -> None:
        if boundary == "before let in":
            os.kill(os.getpid(), signal.SIGSTOP)
        let_in(record)
        if boundary == "after let in":
            os.kill(os.getpid(), signal.SIGSTOP)

    deploy_journal._write = stopping  # type: ignore[assignment]
    model_servers.let_clients_in = stopping_when_let_in


def deployed(source: str, run_id: str) -> dict[str, Any]:
    """Go through the stages; return what was recovered, and the version that is served."""
    pipeline = load_pipeline(source)
    config, run = pipeline.config, run_folders.describe(pipeline, run_id)
    with run_folders.opened(pipeline, run):
        began = time.monotonic()
        recovery = recover.fn(config.deployment, config.smoke_test, run)
        told = {"recovery": recovery.summary(), "seconds": time.monotonic() - began}
        target = serving_target(config.deployment, config.server, run)
        folder = candidate_folder(run.model_base_path, run_id)
        if (run.folder / "candidate").is_dir():  # made by a run that waits for this one's end
            shutil.move(run.folder / "candidate", folder)
        kept = kept_answers.of_version(folder)
        assert kept is not None
        candidate = replace(kept.candidate, offline=run.folder / "offline")
        canary.fn(config.deployment, config.smoke_test, config.data, candidate, target, config.golden, run)
        with deploying(config.deployment, config.smoke_test, run):
            with undone_on_failure(config.deployment, config.smoke_test, run):
                version = publish.fn(candidate, config.export, config.data, target, run)
                endpoint = deployment.deploy.fn(version, target, config.deployment, config.smoke_test, run)
                smoke_test.fn(endpoint, candidate, config.smoke_test, config.data, config.golden, run)
            retire.fn(version, config.export, run)
    return {**told, "version": version.number, "server": endpoint.server}


def _checks(error: SlipwayError) -> dict[str, Any]:
    return {"checks": [asdict(check) for check in error.checks]} if isinstance(error, CheckedError) else {}


def main() -> int:
    """Return the exit code of the flow: 0, or 1 with the error told."""
    source, run_id, *boundary = sys.argv[1:]
    if boundary:
        stop_at(boundary[0])
    deployment.withdraw = deployment.withdraw.fn  # type: ignore[assignment,attr-defined]
    tensorflow_process.prepare()
    try:
        with disable_run_logger():
            told = deployed(source, run_id)
    except SlipwayError as error:
        told = {"error": type(error).__name__, "message": error.message, **_checks(error)}
    finally:
        tensorflow_process.close()
    sys.stdout.write(json.dumps(told) + "\n")
    return 1 if "error" in told else 0


if __name__ == "__main__":
    sys.exit(main())
