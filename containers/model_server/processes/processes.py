"""How many processes answer on the gRPC port."""

from __future__ import annotations

import os

from model_server.base.flags import Options
from model_server.base.settings import Settings

_MOST_BY_ITSELF = 4  # each holds its own copy of every model


def number(options: Options, settings: Settings) -> int:
    """Return MODEL_SERVER_PROCESSES; where that is 0, one for each core, at most four.

    One where there is no port to share.
    """
    if not options.port:
        return 1
    return settings.processes or min(len(os.sched_getaffinity(0)), _MOST_BY_ITSELF)
