"""A program for test_every_estimator: `retrain` of each PIPELINE, TensorFlow's programs in this process.

python tests/flows_in_one_process.py PIPELINE… prints, as JSON, the verdict of each. Prefect's engine, the
stages and what goes between processes (JSON, both ways) are the real ones; TensorFlow is imported once, not
five times for each pipeline.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from pydantic import TypeAdapter, validate_call
from pydantic_core import to_jsonable_python

from configs.schema.home import runs_folder
from flows.retrain import retrain
from tasks.processes import tensorflow_process


def run_here(
    program: str, returns: type[Any], *, log: Path, arguments: Mapping[str, Any],
    on_progress: tensorflow_process.Progress = tensorflow_process.ignore_progress, **_limits: Any,
) -> Any:  # fmt: skip
    """Run a program of tasks.in_tensorflow in this process, on what a child process would be sent."""
    sent = json.loads(json.dumps(tensorflow_process.request_for(program, log, arguments)))
    function = importlib.import_module(f"tasks.in_tensorflow.{program}").run
    result = validate_call(config={"arbitrary_types_allowed": True})(function)(
        lambda progress: on_progress(json.loads(json.dumps(to_jsonable_python(progress)))),
        **sent["arguments"],
    )
    return TypeAdapter(returns).validate_python(json.loads(json.dumps(to_jsonable_python(result))))


if __name__ == "__main__":
    tensorflow_process.prepare = lambda: None
    tensorflow_process.run = run_here
    verdicts = {}
    for folder in sys.argv[1:]:
        retrain(folder, run_id="r1", return_state=True)
        file = runs_folder(Path(folder).name) / "r1" / "verdict.json"
        verdicts[Path(folder).name] = json.loads(file.read_text())
    sys.stdout.write("\n" + json.dumps(verdicts) + "\n")
