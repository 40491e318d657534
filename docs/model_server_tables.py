"""The tables of docs/reference/model-server.md: the program's own words on its flags and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from model_server.base import flags, settings


def filled(page: str) -> str:
    """Return the page with each table anew, between its marks `<!-- name -->` and `<!-- /name -->`."""
    for name, rows in (("flags", _flag_rows()), ("settings", _setting_rows())):
        before, _, after = re.split(f"(?<=<!-- {name} -->\n)(.*)(?=<!-- /{name} -->)", page, flags=re.DOTALL)
        page = "".join((before, *(f"{row}\n" for row in rows), after))
    return page


def _flag_rows() -> Iterator[str]:
    yield "| flag | default | meaning |\n|---|---|---|"
    implemented = {option.name for option in fields(flags.Options)}
    for flag in flags.FLAGS:
        default = "4 × CPUs" if flag.name in flags.PER_CPU else _value(flag.default)
        refused = "" if flag.name in implemented else f": not supported here ({flag.refused or 'not yet'})"
        yield f"| `--{flag.name}` | {default} | {flag.help}{refused} |"


def _setting_rows() -> Iterator[str]:
    yield "| variable | default | meaning |\n|---|---|---|"
    for setting in settings.SETTINGS:
        choice = f": {' or '.join(setting.allowed)}" if setting.allowed else ""
        yield f"| `{setting.variable}` | {_value(setting.default)} | {setting.help}{choice} |"


def _value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    text = format(value, "g") if isinstance(value, float) else str(value)
    return f"`{text}`" if text else ""
