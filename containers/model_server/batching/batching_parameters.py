"""--batching_parameters_file and a version's own batching_params.pbtxt, read, checked and with defaults.

Facts from tensorflow_serving/servables/tensorflow: bundle_factory_util.h, saved_model_bundle_factory.cc.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_server.base import platform_config, text_protos
from model_server.base.flags import Options
from model_server.base.status import invalid_argument

PER_MODEL_FILE = "batching_params.pbtxt"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are batched, by the official names, units and defaults; sizes are in rows."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = len(os.sched_getaffinity(0))
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    @property
    def largest_run(self) -> int:
        """The most rows that a run of the graph takes, before padding."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def run_size(self, rows: int) -> int:
        """Return the smallest allowed size of a run for so many rows."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


@lru_cache(maxsize=1)
def common(options: Options) -> BatchingParameters | None:
    """Return what the flags ask for all models, of a file that is read once; None without batching.

    With --platform_config_file, its batching_parameters alone count, as in the official server.
    Raises StatusError where the file cannot be read, or cannot be meant.
    """
    if options.platform_config_file:
        bundle = platform_config.bundle_config(options.platform_config_file)
        if not bundle.HasField("batching_parameters"):
            return None
        return _checked(bundle.batching_parameters, options.platform_config_file)
    if not options.enable_batching:
        if options.enable_per_model_batching_parameters:
            _LOG.warning("--enable_per_model_batching_parameters does nothing without --enable_batching")
        return None
    if not options.batching_parameters_file:
        return BatchingParameters(thread_pool_name="model_server_batch_threads")
    return _read(options.batching_parameters_file)


def of_version(directory: Path, options: Options) -> BatchingParameters | None:
    """Return how a version's requests are batched; None where they are not.

    With --enable_per_model_batching_parameters a version's own file says so, all but the threads, which
    all models share; a version without a file is not batched. Raises StatusError.
    """
    shared = common(options)
    if shared is None or not options.enable_per_model_batching_parameters:
        return shared
    file = directory / PER_MODEL_FILE
    if not file.exists():
        return None
    return replace(
        _read(str(file)),
        num_batch_threads=shared.num_batch_threads,
        thread_pool_name=shared.thread_pool_name,
    )


def _read(path: str) -> BatchingParameters:
    return _checked(text_protos.read(path, platform_config.BATCHING_PARAMETERS), path)


def _checked(message: Any, path: str) -> BatchingParameters:
    """Return the parameters of a message. Raises StatusError, the official text first, then where it is."""
    parameters = BatchingParameters(
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        **{field.name: value.value for field, value in message.ListFields() if hasattr(value, "value")},
    )
    wrong = _what_is_wrong(parameters)
    if wrong:
        raise invalid_argument(f"{wrong}\nFile: {path}")
    return parameters


def _what_is_wrong(given: BatchingParameters) -> str:
    for name in ("max_batch_size", "num_batch_threads", "largest_run"):
        if getattr(given, name) < 1:
            shown = "max_execution_batch_size" if name == "largest_run" else name
            return f"{shown} must be positive; was {getattr(given, name)}"
    for name in ("batch_timeout_micros", "max_enqueued_batches"):
        if getattr(given, name) < 0:
            return f"{name} must be non-negative; was {getattr(given, name)}"
    if given.largest_run > given.max_batch_size:
        return (
            f"max_execution_batch_size must not be larger than max_batch_size; was {given.largest_run}; "
            f"max_batch_size is {given.max_batch_size}"
        )
    return _what_is_wrong_with_sizes(given.allowed_batch_sizes, given)


def _what_is_wrong_with_sizes(sizes: Sequence[int], given: BatchingParameters) -> str:
    if not sizes:
        return ""
    if sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        return "allowed_batch_sizes entries must be monotonically increasing"
    # Of requests that are split, versions of the official server want the one or the other.
    if sizes[-1] not in (given.max_batch_size, given.largest_run):
        return (
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; expected {given.max_batch_size}"
        )
    return ""
