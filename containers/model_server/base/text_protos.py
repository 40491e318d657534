"""Configuration files in protobuf's text format, and the messages that tensorflow-serving-api leaves out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from model_server.base.status import Code, StatusError, invalid_argument

_LOG = logging.getLogger(__name__)
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "double": _FIELD.TYPE_DOUBLE,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Field:
    """One field of a message; `kind` is a scalar's name, or a message's, such as "tensorflow.ConfigProto"."""

    number: int
    name: str
    kind: str
    repeated: bool = False


def declare(
    file: str, package: str, messages: Mapping[str, Sequence[Field]], imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Return classes for proto3 messages of the default pool, by their names within `package`."""
    proto = descriptor_pb2.FileDescriptorProto(
        name=file, package=package, syntax="proto3", dependency=imports
    )
    for name, message_fields in messages.items():
        declared = proto.message_type.add(name=name)
        for each in message_fields:
            _add_field(declared, each)
    pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    pool.AddSerializedFile(proto.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


def read(path: str, message_type: type[M]) -> M:
    """Parse a file in text format. Raises StatusError, in the official words; the log says where."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise StatusError(Code.NOT_FOUND, f"{path}; No such file or directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise invalid_argument(f"Cannot read protobuf file: '{path}': {error}") from None
    return parse(text, message_type, path)


def parse(text: str, message_type: type[M], path: str) -> M:
    """Parse text format; `path` is where it is said to come from."""
    message = message_type()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        # The line that protobuf's C++ parser writes, and that people look for.
        _LOG.error("Error parsing text-format %s: %s", message.DESCRIPTOR.full_name, error)
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from None
    return message


def _add_field(declared: descriptor_pb2.DescriptorProto, each: Field) -> None:
    label = _FIELD.LABEL_REPEATED if each.repeated else _FIELD.LABEL_OPTIONAL
    added = declared.field.add(name=each.name, number=each.number, label=label)
    if each.kind in _SCALARS:
        added.type = _SCALARS[each.kind]
    else:
        added.type = _FIELD.TYPE_MESSAGE
        added.type_name = f".{each.kind}"
