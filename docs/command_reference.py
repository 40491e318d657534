"""The page docs/reference/command.md, from the command itself: what `slipway --help` knows, as one page."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from flows.command.cli import app

_HEAD = """\
# The command

Generated from `flows/command/cli.py` by `make docs`; do not edit. `slipway COMMAND --help` prints the same.
PIPELINE is a folder that holds `pipeline.yaml`, or a YAML file. Exit codes: 0 done, 1 failed, 2 bad usage
or configuration, 3 rejected by a gate, with the version before still serving, 4 cancelled, or another run
of the pipeline is under way ([verdict.json](verdict.md)).
"""


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield _HEAD
    for name in app:
        if not name.startswith("-"):
            yield from _command(f"slipway {name}", app[name])


def _command(name: str, command: Any) -> Iterator[str]:
    if command.default_command is None:
        for below in command:
            if not below.startswith("-"):
                yield from _command(f"{name} {below}", command[below])
        return
    arguments = list(command.assemble_argument_collection())
    positional = [argument for argument in arguments if _is_positional(argument)]
    usage = " ".join([name, *map(_place, positional)])
    yield f"## `{usage}`\n"
    yield f"{_flat(command.help)}\n"
    options = [argument for argument in arguments if argument not in positional or argument.parameter.help]
    if options:
        yield "| argument | type | default | meaning |\n|---|---|---|---|"
        yield from (_row(argument, argument in positional) for argument in options)
        yield ""


def _is_positional(argument: Any) -> bool:
    return argument.field_info.kind is not inspect.Parameter.KEYWORD_ONLY


def _place(argument: Any) -> str:
    name = argument.names[0].lstrip("-").replace("-", "_").upper()
    if argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"[{name}…]"
    return name if argument.required else f"[{name}]"


def _row(argument: Any, positional: bool) -> str:
    name = _place(argument).strip("[]…") if positional else ", ".join(argument.names)
    default = argument.field_info.default
    shown = "" if default in (None, (), False, inspect.Parameter.empty) else f"`{default}`"
    shown = "**required**" if argument.required else shown
    return f"| `{name}` | {_type(argument.hint)} | {shown} | {_flat(argument.parameter.help)} |"


def _type(hint: Any) -> str:
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each not in (type(None), ...)]
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"{_type(inner[0])}, several"
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return _type(inner[0])
    names = {str: "text", int: "integer", float: "number", bool: "flag", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
