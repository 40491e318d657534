"""What it takes to make a version ready: its graph in memory, and what the flags ask for besides."""

from __future__ import annotations

import logging
from pathlib import Path

from model_server.base.flags import Options
from model_server.batching import batching_parameters
from model_server.batching.batching import BatchingSession
from model_server.loading import page_cache, warmup
from model_server.models import checksums, servable
from model_server.models.servable import Servable
from model_server.tensorflow_c import op_libraries

_LOG = logging.getLogger(__name__)
_INIT_OP = "__saved_model_init_op"


def load(directory: Path, version: int, options: Options) -> Servable:
    """Load a version whose files are those of its list, where it has one.

    Raises StatusError or TensorFlow's own errors; then nothing stays in memory.
    """
    checksums.verify(directory)
    op_libraries.require(directory)
    parameters = batching_parameters.of_version(directory, options)
    loaded = servable.load(directory, version, options)
    _report_rows(loaded, directory, is_queued=parameters is not None)
    if parameters:
        loaded.batched = BatchingSession(loaded.run_now, parameters).run
    if options.enable_model_warmup:
        try:
            warmup.replay(loaded, directory, options)
        except BaseException:
            loaded.close()
            raise
    if options.flush_filesystem_caches:
        page_cache.drop(directory)
    return loaded


def _report_rows(loaded: Servable, directory: Path, *, is_queued: bool) -> None:
    """Log which signatures' rows are independent, and why the others' may not be."""
    found = {key: reason for key, reason in sorted(loaded.dependences.items()) if key != _INIT_OP}
    if independent := [key for key, reason in found.items() if not reason]:
        _LOG.info("%s: independent rows: %s", directory, ", ".join(independent))
    for key, reason in found.items():
        if reason:
            _LOG.info("%s: rows of %s may depend on one another: %s", directory, key, reason)
    if is_queued and any(found.values()):
        _LOG.warning(
            "%s: --enable_batching lets requests share runs whose rows may depend on one another: %s",
            directory,
            ", ".join(key for key, reason in found.items() if reason),
        )
