"""How this server rounds: what decides which bits a float answer has (`GET /numerics`).

Two programs for which all of it is equal answer a request with the same bits. The pipeline, which proves
answers, says the same of its own processes in `tasks/answers/numerics.py`; neither imports the other.
"""

from __future__ import annotations

import os
from pathlib import Path

from model_server.base.flags import Options
from model_server.base.settings import Settings
from model_server.tensorflow_c import runtime

PATH = "/numerics"
_PREFIXES = (
    "TF_ENABLE_ONEDNN", "ONEDNN_", "DNNL_", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_NUM_", "OMP_NUM_THREADS",
)  # fmt: skip
"""Environment variables that choose kernels or threads."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def facts(options: Options, settings: Settings) -> dict[str, str]:
    """Return the machine (its boot id, which containers share), TensorFlow's version, threads and switches.

    `merges` says whether requests may share a run of the graph, which changes the batch. Without a boot id
    it is all that is returned: the conditions are unknown.
    """
    merges = {"merges": "yes" if settings.batching != "off" or options.enable_batching else "no"}
    try:
        machine = _BOOT_ID.read_text().strip()
    except OSError:
        return merges
    threads = options.tensorflow_intra_op_parallelism or options.tensorflow_session_parallelism
    chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}
    files = {
        name: str(value)
        for name in ("tensorflow_session_config_file", "platform_config_file")
        if (value := getattr(options, name))
    }
    return {
        "machine": machine, "tensorflow": runtime.tensorflow_version(), "device": "cpu",
        "threads": str(threads or len(os.sched_getaffinity(0))), **chosen, **files, **merges,
    }  # fmt: skip
