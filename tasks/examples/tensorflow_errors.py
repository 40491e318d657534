"""What TensorFlow's own errors mean to a user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from configs.schema.pipeline import DataConfig
from tasks.core import errors
from tasks.core.artifacts import Run
from tasks.core.errors import DataError, ModelError, disk_full
from tasks.data_quality import causes

_NO_SPACE = "no space left on device"


@contextmanager
def explained(writes_to: Path, run: Run | None = None, data: DataConfig | None = None) -> Iterator[None]:
    """Turn TensorFlow's errors for a full disk, unreadable examples and NaN into ours.

    `writes_to` is the folder to name when the disk is full. What else fails while a graph runs is a
    ModelError without the stack traces; errors that are not TensorFlow's pass as they are. With `run` and
    `data`, an example that explains the failure is named: a NaN, a label out of range.
    """
    try:
        with disk_named(writes_to):
            yield
    except tf.estimator.NanLossDuringTrainingError as error:
        _blame_examples(error, run, data)
        raise ModelError(
            f"training diverged: {error}",
            "lower the learning rate, scale the features, or look for NaN among them; the steps before it "
            "are in logs/train.log of the run",
        ) from error
    except tf.errors.DataLossError as error:
        raise DataError(
            f"the examples cannot be read any more: {error.message}", "ingest them again"
        ) from error
    except tf.errors.OpError as error:
        _blame_examples(error, run, data)
        message = f"running the model failed: {type(error).__name__}: {essence(error)}"
        raise ModelError(message, "where in the graph: see the stage's log") from error


def _blame_examples(error: Exception, run: Run | None, data: DataConfig | None) -> None:
    if run is not None and data is not None:
        cause = causes.of_failure(str(error), run.folder, data)
        if cause is not None:
            raise cause from error


@contextmanager
def disk_named(writes_to: Path) -> Iterator[None]:
    """Turn a full disk into an error that names `writes_to`; all other errors pass as they are."""
    try:
        yield
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        if not is_disk_full(error):
            raise
        raise disk_full(writes_to, essence(error)) from error


def essence(error: BaseException) -> str:
    """Return what an error says, without the stack traces that TensorFlow puts around it."""
    text = str(error).partition("\n\nOriginal stack trace")[0]
    text = re.split(r"\nNode: '[^']*'\n", text)[-1].removeprefix("Graph execution error:")
    return text.partition("\n\t [[")[0].strip()


def is_disk_full(error: BaseException) -> bool:
    """Return whether the file system had no space left; TensorFlow says so only in words."""
    # RuntimeError: what the threads that write event files raise.
    told = isinstance(error, (tf.errors.OpError, RuntimeError)) and _NO_SPACE in str(error).lower()
    return told or errors.is_disk_full(error)
