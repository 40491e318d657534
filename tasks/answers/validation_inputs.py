"""`validation.inputs`: a user's own inputs, run through the candidate by TensorFlow's saved_model_cli.

It runs in a process that has none of our environment (expressions are evaluated in it); outputs are
compared here with the expected ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow.python.tools import saved_model_cli

from configs.schema.pipeline import ValidationConfig, ValidationInput
from tasks.answers import comparison, limits
from tasks.answers.comparison import Limit
from tasks.core.artifacts import Candidate, Check, Run
from tasks.core.errors import ModelError

TIMEOUT_SECONDS = 600
_SCRIPT = Path(__file__).parents[1] / "in_tensorflow" / "isolated_inputs.py"
_LOG_CHARACTERS = 2000


def checks(validation: ValidationConfig, candidate: Candidate, run: Run) -> list[Check]:
    """Run every input, leave its outputs on disk, and return a check that it ran and one an expectation.

    Raises ModelError where an input, or what is expected, cannot be read, or is not of the signature.
    """
    if not validation.inputs:
        return []
    folders = [_outdir(each, index, run) for index, each in enumerate(validation.inputs)]
    results = _isolated(validation.inputs, folders, candidate, run)
    return [
        check
        for index, each in enumerate(validation.inputs)
        for check in _checked(
            f"validation.inputs[{index}] {each.signature}", each, results[index], folders[index],
            limits.read(candidate.offline).of(each.signature), run,
        )
    ]  # fmt: skip


def _outdir(each: ValidationInput, index: int, run: Run) -> Path:
    """Return where the outputs go; the run's own folder for them is made anew when it is tried again."""
    if each.outdir is not None:
        return run.source / each.outdir
    folder = run.folder / "outputs" / str(index)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _isolated(
    inputs: Sequence[ValidationInput], folders: Sequence[Path], candidate: Candidate, run: Run
) -> list[dict[str, Any]]:
    """Return what came of each input, in a process without our environment and in an empty folder."""
    asked = [
        {**each.model_dump(mode="json"), "outdir": str(folder)}
        for each, folder in zip(inputs, folders, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="slipway-inputs-") as temporary:
        request, result = Path(temporary, "request.json"), Path(temporary, "result.json")
        working, links = Path(temporary, "empty"), Path(temporary, "files")
        working.mkdir()
        links.mkdir()
        request.write_text(
            json.dumps({"model": str(candidate.path), "source": str(run.source), "inputs": asked})
        )
        ended = subprocess.run(
            [sys.executable, "-I", str(_SCRIPT), str(request), str(result), str(links)],
            env={"PATH": os.defpath, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
            cwd=working, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS, check=False, text=True, errors="replace",
        )  # fmt: skip
        print(ended.stdout)  # noqa: T201 (the stage's log)
        if not result.is_file():
            message = f"validation.inputs: the process that ran them ended with exit code {ended.returncode}"
            raise ModelError(message, f"the last that it said:\n{ended.stdout[-_LOG_CHARACTERS:]}")
        return list(json.loads(result.read_text()))


def _checked(
    name: str,
    each: ValidationInput,
    result: Mapping[str, Any],
    outdir: Path,
    known: Mapping[str, Limit],
    run: Run,
) -> Iterator[Check]:
    if "wrong" in result:
        hint = "inputs are as saved_model_cli takes them; see docs/how-to/validation-inputs.md"
        raise ModelError(f"{name}: {result['wrong']}", hint)
    if "failed" in result:
        yield Check(name, "runs", result["failed"], None, passed=False)
        return
    yield Check(name, "runs", f"{len(result['outputs'])} output(s) in {outdir}", None, passed=True)
    for alias, file in each.expected.items():
        if alias not in result["outputs"]:
            there = ", ".join(result["outputs"])
            raise ModelError(f"{name}: expected.{alias} is not an output", f"the outputs are {there}")
        wanted = _array(f"{name}: expected.{alias}", alias, file, run.source)
        own = limits.derive(each.tolerance or "auto", {1: wanted}, None)
        limit = own if each.tolerance is not None else known.get(alias, own)
        answered = {alias: np.load(outdir / f"{alias}.npy", allow_pickle=False)}
        found = comparison.compare({alias: wanted}, answered, {alias: limit}, bits=False)
        yield Check(f"{name} {alias}", f"equals the file {file}", found.observed, str(limit), found.equal)


def _array(place: str, alias: str, file: str, source: Path) -> NDArray[Any]:
    """Return the array in `file.npy` or `file.npz[key]`. Raises ModelError."""
    try:
        ((name, key),) = saved_model_cli.preprocess_inputs_arg_string(f"{alias}={file}").values()
        loaded = np.load(source / name, allow_pickle=False)
        if not hasattr(loaded, "files"):
            return np.asarray(loaded)
        return np.asarray(loaded[key if key is not None else loaded.files[0]])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        message = f"{place} = {file!r} cannot be read: {type(error).__name__}: {error}"
        raise ModelError(
            message, "file.npy or file.npz[key], relative to the YAML, without pickle"
        ) from error
