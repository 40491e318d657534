"""What it takes to make a version ready: its graph in memory, and what the flags ask for besides."""

from __future__ import annotations

from pathlib import Path

from model_server import batching_parameters, checksums, page_cache, servable, warmup
from model_server.batching import BatchingSession
from model_server.flags import Options
from model_server.servable import Servable


def load(directory: Path, version: int, options: Options) -> Servable:
    """Load a version whose files are those of its list, where it has one.

    Raises StatusError or TensorFlow's own errors; then nothing stays in memory.
    """
    checksums.verify(directory)
    parameters = batching_parameters.of_version(directory, options)
    loaded = servable.load(directory, version, options)
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
