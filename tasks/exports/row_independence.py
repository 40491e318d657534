"""Whether the rows of a SavedModel's signatures are independent, as the model server finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tasks.core.errors import ModelError

_PROGRAM = "model_server.rows.row_independence"
_TIMEOUT_SECONDS = 300


def dependences(saved_model: Path) -> dict[str, str]:
    """Return, by signature, why its rows may depend on one another; "" if they are known to be independent.

    Runs the server's own program, so that both take a version for the same. Raises ModelError if it fails,
    and for ops that neither TensorFlow nor a library of `server.ops` has.
    """
    command = [sys.executable, "-m", _PROGRAM, str(saved_model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
        found = json.loads(done.stdout)
        dependent, unknown = dict(found["dependences"]), ", ".join(found["unknown_ops"])
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        message = f"cannot analyse the rows of {saved_model}: {lines[-1] if lines else error}"
        raise ModelError(
            message, "state export.row_independent: true or false, to leave the analysis out"
        ) from error
    if unknown:
        message = f"the graph of {saved_model} has ops that no declared library has: {unknown}"
        raise ModelError(message, "declare it: server.ops: [path/to/library.so or an installed package]")
    return dependent
