"""The conditions that decide how floats are rounded: equal conditions, equal bits.

The model server reports the same facts about itself (`GET /numerics`): its module `numerics`. Neither imports
the other.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

_PREFIXES = (
    "TF_ENABLE_ONEDNN", "ONEDNN_", "DNNL_", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_NUM_", "OMP_NUM_THREADS",
)  # fmt: skip
"""Environment variables that choose kernels or threads."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def conditions(device: str = "cpu") -> dict[str, str]:
    """Return the machine (its boot id, which containers share), TensorFlow's version, threads and switches.

    Empty on a machine that does not say which one it is.
    """
    try:
        machine = _BOOT_ID.read_text().strip()
    except OSError:
        return {}
    chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}
    threads = str(len(os.sched_getaffinity(0)))
    return {
        "machine": machine,
        "tensorflow": metadata.version("tensorflow"),
        "device": device,
        "threads": threads,
        **chosen,
    }


def alike(first: dict[str, str], second: dict[str, str]) -> bool:
    """Return whether both are known and equal."""
    return bool(first) and first == second


def difference(first: dict[str, str], second: dict[str, str]) -> str:
    """Return what differs, in a few words, for a person."""
    if not first or not second:
        return "conditions unknown"
    names = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    return f"another {', '.join(names)}" if names else ""
