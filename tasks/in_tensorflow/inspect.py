"""Program `inspect`: what a checkpoint or a SavedModel holds, as TensorFlow's own tools show it."""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.tools import inspect_checkpoint, saved_model_cli

from tasks.core.artifacts import Inspection
from tasks.core.errors import ConfigError, ModelError
from tasks.estimators.checkpoints import damage, prefix_at
from tasks.state import model_versions


def run(_progress: Callable[[Mapping[str, Any]], None], path: Path, values: Sequence[str] = ()) -> Inspection:
    """Return what is at `path`; the values of the variables that `values` names too.

    Raises ConfigError where it is neither, or has no such variable; ModelError where it is damaged.
    """
    if model_versions.is_saved_model(path):
        shown = [*_saved_model(path), *(_values(_prefix(path), values) if values else ())]
        return Inspection("SavedModel", path, "\n".join(shown))
    prefix = _prefix(path)
    if (reason := damage(prefix)) is not None:
        raise ModelError(f"{prefix} is a damaged checkpoint: {reason}", "slipway run --resume passes it over")
    listed = _printed(inspect_checkpoint.print_tensors_in_checkpoint_file, str(prefix), "", False, True)
    return Inspection("checkpoint", prefix, "\n".join([listed, *_values(prefix, values)]))


def _prefix(path: Path) -> Path:
    """Return the checkpoint at `path`, where any file of one means all of it."""
    whole = (
        path.with_suffix("") if path.is_file() and path.suffix[:5] in (".inde", ".data", ".meta") else path
    )
    try:
        return prefix_at(whole, "inspect")
    except ModelError:
        message = f"{path} is neither a checkpoint nor a SavedModel"
        raise ConfigError(message, "name a checkpoint's prefix, a model_dir or a version's folder") from None


def _saved_model(path: Path) -> Iterator[str]:
    """Yield tag sets, SignatureDefs and assets."""
    command, sys.argv = sys.argv, ["saved_model_cli", "show", "--dir", str(path), "--all"]
    try:
        yield _printed(saved_model_cli.main)
    finally:
        sys.argv = command
    for folder in ("assets", "assets.extra"):
        files = sorted(file for file in (path / folder).rglob("*") if file.is_file())
        yield f"{folder}: {', '.join(_sized(file, path / folder) for file in files) or 'none'}"


def _sized(file: Path, folder: Path) -> str:
    return f"{file.relative_to(folder)} ({file.stat().st_size:,} bytes)"


def _values(prefix: Path, names: Sequence[str]) -> Iterator[str]:
    known = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            there = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
            raise ConfigError(f"{prefix} has no variable {name!r}", there)
        text = _printed(inspect_checkpoint.print_tensors_in_checkpoint_file, str(prefix), name, False)
        yield text.partition("\n# Total")[0]


def _printed(tool: Callable[..., Any], *arguments: Any) -> str:
    """Return what a command-line tool prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tool(*arguments)
    return text.getvalue().strip("\n")
