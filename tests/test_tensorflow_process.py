"""Child processes in which TensorFlow runs: results, errors, logs and ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pipelines import DIGITS, run_of, written
from pydantic_core import to_jsonable_python

from configs.loading.pipelines import load_pipeline
from tasks.core.artifacts import Examples, Run
from tasks.core.errors import DataError, EnvironmentFault, ModelError, ProcessDied
from tasks.processes import tensorflow_process

INGEST = "import os, signal, time\nfrom pathlib import Path\ndef write(folder):\n    "


@pytest.fixture(autouse=True, scope="module")
def _no_spare_is_left() -> Iterator[None]:
    yield
    tensorflow_process.close()


def ingest(folder: Path, body: str, **options: Any) -> tuple[Examples, Run]:
    """Run the program `ingest` with a callable of this body."""
    data = {"ingest": "nightly.py:write", "features": {"x": "float32[2]"}, "label": {"y": "int64"}}
    pipeline = written(folder, {"data": data})
    (folder / "nightly.py").write_text(INGEST + body + "\n")
    run = run_of(pipeline, folder)
    arguments = {"data": pipeline.config.data, "run": run}
    return (
        tensorflow_process.run("ingest", Examples, log=run.log("ingest"), arguments=arguments, **options),
        run,
    )


@pytest.mark.parametrize(
    "folder", sorted(DIGITS.parent.glob("*/pipeline.yaml")), ids=lambda path: path.parent.name
)
def test_configs_survive_the_way_into_a_child(folder: Path) -> None:
    """Every slice, dumped as JSON and validated again, is equal: tagged unions, tuples, defaults and all."""
    config = load_pipeline(folder).config
    assert type(config).model_validate(to_jsonable_python(config)) == config


def test_every_kind_of_feature_and_column_survives_the_way_into_a_child(tmp_path: Path) -> None:
    """So do the forms that the digits do not use."""
    from test_estimators import COLUMNS, PEOPLE

    columns = [*COLUMNS, {"kind": "embedding", "of": COLUMNS[2], "dimension": 2}]
    sequence = {"kind": "fixed_len_sequence", "dtype": "float32", "shape": [2], "default": 0}
    config = written(tmp_path, {
        "data": {"files": ["*"], **PEOPLE, "features": {**PEOPLE["features"], "s": sequence}},
        "model": {"estimator": "DNNLinearCombinedClassifier",
                  "params": {"dnn_hidden_units": [1], "x": {"y": [1.5]}},
                  "feature_columns": {"linear": COLUMNS, "dnn": columns}},
        "answers": {"tolerance": {"ulps": 3}, "batch_sizes": [1, "all"]},
    }).config  # fmt: skip
    assert type(config).model_validate(to_jsonable_python(config)) == config


def test_what_a_program_prints_is_in_its_log_and_not_among_its_replies(tmp_path: Path) -> None:
    """Prints of users' code, from Python and below, do not disturb the artifact."""
    body = "print('hello from', folder.name); os.write(1, b'raw bytes\\n'); raise RuntimeError('no data')"
    with pytest.raises(DataError, match="RuntimeError: no data"):
        ingest(tmp_path, body)
    log = (tmp_path / "r1" / "logs" / "ingest.log").read_text()
    assert "hello from ingested" in log
    assert "raw bytes" in log
    assert "Traceback" in log


def test_warnings_are_told_as_they_appear_with_their_level(tmp_path: Path) -> None:
    """Of users' code and of TensorFlow's; what is no warning, and what is noise, is in the log only."""
    told: list[Mapping[str, Any]] = []
    body = (
        "import logging, warnings\n    logging.getLogger('tensorflow').warning('odd data')\n"
        "    logging.getLogger('tensorflow').info('fine')\n    print('a print')\n"
        "    warnings.warn('use g', DeprecationWarning)\n    raise RuntimeError('no data')"
    )
    with pytest.raises(DataError):
        ingest(tmp_path, body, on_progress=told.append)
    assert [each for each in told if "level" in each] == [
        {"message": "WARNING:tensorflow:odd data", "level": logging.WARNING}
    ]


def test_a_program_that_is_killed_is_retryable(tmp_path: Path) -> None:
    """The signal is named, and the last lines of the log are in the hint."""
    body = "print('the last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ProcessDied, match=r"killed by SIGKILL \(out of memory\?\)") as caught:
        ingest(tmp_path, body)
    assert "the last words" in caught.value.hint


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """After the deadline the process is gone, and the error names the log."""
    body = "print('pid', os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(ProcessDied, match="did not finish in 8 s") as caught:
        ingest(tmp_path, body, timeout_seconds=8, grace_seconds=5)
    log = tmp_path / "r1" / "logs" / "ingest.log"
    assert str(log) in caught.value.hint
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split("pid ")[1].split()[0]), 0)


def test_who_is_slow_to_take_progress_does_not_make_it_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one who tells a Prefect server that is gone: the program goes on meanwhile."""
    real, late = time.monotonic, [0.0]
    monkeypatch.setattr(tensorflow_process.time, "monotonic", lambda: real() + late[0])
    child = tensorflow_process.Child.__new__(tensorflow_process.Child)
    child.process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read(); print(2)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    taken = []
    with child.process:
        for reply in child.replies(None, stall_seconds=60):
            taken.append(reply)
            late[0] += 100
            if reply == 1:
                assert child.process.stdin is not None
                child.process.stdin.close()
    assert taken == [1, 2]


def _child_error(tmp_path: Path, raised: Exception) -> Mapping[str, Any]:
    return tensorflow_process._described(
        tensorflow_process._wrapped({"program": "train", "log": "/log"}, raised)
    )


def test_an_unforeseen_error_is_a_model_error_that_names_stage_and_log(tmp_path: Path) -> None:
    """`train failed: ValueError: …`, and where the traceback is."""
    found = tensorflow_process._rebuilt(_child_error(tmp_path, ValueError("logits")))
    assert isinstance(found, ModelError)
    assert found.message == "train failed: ValueError: logits"
    assert "/log" in found.hint


def test_an_operating_system_error_is_an_environment_fault(tmp_path: Path) -> None:
    """It names the file."""
    found = tensorflow_process._rebuilt(
        _child_error(tmp_path, PermissionError(13, "Permission denied", "/models"))
    )
    assert isinstance(found, EnvironmentFault)
    assert found.message == "/models: Permission denied"


def test_a_fork_server_that_died_is_replaced() -> None:
    """One that was killed while it waited forks no more."""
    server = tensorflow_process.prepare()
    server._process.kill()
    server._process.wait(10)
    assert tensorflow_process.prepare() is not server


def test_the_parent_imports_no_tensorflow() -> None:
    """Neither this module nor the artifacts, errors and configs that it needs."""
    program = "import sys, tasks.processes.tensorflow_process; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
