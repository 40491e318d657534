"""Where everything that Slipway writes lives: `$SLIPWAY_HOME`, by default `var/` in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]


def home() -> Path:
    """Return the absolute folder under which all state lives; it need not exist yet."""
    return Path(os.environ.get("SLIPWAY_HOME") or _CHECKOUT / "var").expanduser().absolute()


def runs_folder(pipeline: str) -> Path:
    """Return the folder that holds one folder for each run of `pipeline`."""
    return home() / "runs" / pipeline


def servers_folder() -> Path:
    """Return the folder that holds the record and the log of each server."""
    return home() / "servers"


def default_model_base_path(model_name: str) -> Path:
    """Return the `model_base_path` of a model whose pipeline names none."""
    return home() / "models" / model_name
