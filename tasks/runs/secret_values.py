"""Secrets that a pipeline's own code needs, from the environment or Prefect; masking.py masks them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tasks.core.errors import EnvironmentFault

_SHORTEST = 4
_BLOCK = "block:"


def resolved(secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the values of `data.secrets`, by name. Raises EnvironmentFault for one that cannot be had."""
    return {name: _value(name, source) for name, source in secrets.items()}


def _value(name: str, source: str) -> str:
    block = source.removeprefix(_BLOCK) if source.startswith(_BLOCK) else None
    value = os.environ.get(name, "") if block is None else _in_block(name, block)
    if len(value) < _SHORTEST:
        where = "in the environment" if block is None else f"in the Prefect block {block}"
        message = f"data.secrets.{name}: {where} it is not set, or shorter than {_SHORTEST} characters"
        raise EnvironmentFault(
            message, "set it where the flow runs: in the service, or the work pool's variables"
        )
    return value


def _in_block(name: str, block: str) -> str:
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(block).get())  # type: ignore[union-attr]
    except ValueError:
        message = f"data.secrets.{name}: there is no Prefect block secret/{block}"
        raise EnvironmentFault(message, "make one in the Prefect UI: Blocks, Secret") from None
