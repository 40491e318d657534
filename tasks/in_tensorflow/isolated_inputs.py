"""A script, not a program of a stage: TensorFlow's own saved_model_cli on inputs that a user gave.

    python -I isolated_inputs.py REQUEST.json RESULT.json FILES

Expressions in the inputs are evaluated, so it runs without our environment, in an empty folder, and
imports nothing of ours. The request is {"model", "source", "inputs": [{"signature", "tag_set", "inputs",
"input_exprs", "input_examples", "allow_pickle", "outdir", "overwrite"}]}; the result a list, for each of
them {"outputs": [alias]}, {"wrong": text} where it cannot be asked, or {"failed": text} where the model
fails. FILES is an empty folder.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(request_file: str, result_file: str, links: str) -> None:
    """Run each input of the request, and write what came of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    request = json.loads(Path(request_file).read_text())
    results = [
        _outcome(each, request["model"], Path(request["source"]), Path(links)) for each in request["inputs"]
    ]
    Path(result_file).write_text(json.dumps(results))


def _outcome(each: Mapping[str, Any], model: str, source: Path, links: Path) -> dict[str, Any]:
    import tensorflow as tf
    from tensorflow.python.tools import saved_model_cli

    try:
        feeds = _feeds(saved_model_cli, each, source, links)
        saved_model_cli.run_saved_model_with_feed_dict(
            model, each["tag_set"], each["signature"], feeds, each["outdir"], each["overwrite"]
        )
    except tf.errors.OpError as error:
        return {"failed": str(error.message)}
    except Exception as error:
        return {"wrong": f"{type(error).__name__}: {error}"}
    aliases = sorted(saved_model_cli.get_signature_def_map(model, each["tag_set"])[each["signature"]].outputs)
    for alias in aliases:
        _without_pickle(Path(each["outdir"]) / f"{alias}.npy")
    return {"outputs": aliases}


def _feeds(tool: Any, each: Mapping[str, Any], source: Path, links: Path) -> dict[str, Any]:
    files = ";".join(_linked(tool, each, source, links))
    feeds: dict[str, Any] = tool.load_inputs_from_input_arg_string(
        files, "", ";".join(each["input_examples"])
    )
    # As the tool once did itself, and the guide shows: its `run` of TensorFlow 2.15 takes literals only.
    feeds |= tool.preprocess_input_exprs_arg_string(";".join(each["input_exprs"]), safe=False)
    return feeds


def _linked(tool: Any, each: Mapping[str, Any], source: Path, links: Path) -> Iterator[str]:
    """Yield the inputs from files, relative to `source`, as absolute ones without odd characters."""
    for key, (name, variable) in tool.preprocess_inputs_arg_string(";".join(each["inputs"])).items():
        file = source / name
        if not file.is_file():
            raise FileNotFoundError(f"{key}: no such file: {file} (the path is relative to the YAML)")
        if key not in each["allow_pickle"]:
            _refuse_pickle(key, file)
        link = links / f"{len(list(links.iterdir()))}.npy"
        link.symlink_to(file.resolve())
        yield f"{key}={link}" + (f"[{variable}]" if variable else "")


def _refuse_pickle(key: str, file: Path) -> None:
    """Raise ValueError where loading the file would run a pickle; the tool itself would run it."""
    import numpy as np

    try:
        loaded = np.load(file, allow_pickle=False)
        for name in getattr(loaded, "files", ()):
            loaded[name]
    except ValueError as error:
        raise ValueError(f"{key}: {file}: {error}: name {key} in allow_pickle if you trust it") from None


def _without_pickle(file: Path) -> None:
    """Make the strings that the tool saved as pickled objects an array that any reader takes."""
    import numpy as np

    array = np.load(file, allow_pickle=True)
    if array.dtype == object:
        np.save(file, array.astype("S"))


if __name__ == "__main__":
    main(*sys.argv[1:])
