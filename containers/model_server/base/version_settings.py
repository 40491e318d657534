"""`assets.extra/serving.json` of a version: what the server cannot find out by itself, or is not to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_server.base.status import invalid_argument

FILE = "assets.extra/serving.json"
EXPECTED = 'a JSON object such as {"row_independent": true}'


def read(directory: Path) -> Mapping[str, Any]:
    """Return the settings of a version, {} if there are none. Raises StatusError if they cannot be read."""
    path = directory / FILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise invalid_argument(f"{path}: not read ({error}), expected {EXPECTED}") from None
    if not isinstance(found, dict):
        raise invalid_argument(f"{path}: found {found!r}, expected {EXPECTED}")
    return found
