"""Which models to serve, from the flags, a file or a reload request: checked, in the official words.

Errors are those of tensorflow_serving/model_servers/server_core.cc.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import logging_config_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from model_server.base.flags import Options
from model_server.base.status import Code, StatusError, invalid_argument
from model_server.models import version_policies
from model_server.models.version_policies import Latest, VersionPolicy
from model_server.observability import request_log

PLATFORM = "tensorflow"
_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_TYPE_OR_PLATFORM = "ModelServerConfig::model_type (deprecated) {} ModelServerConfig::model_platform"


@dataclass(frozen=True)
class ModelConfig:
    """One model: where its versions are, which of them are wanted, and names for some of them."""

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=dict)
    logging: logging_config_pb2.LoggingConfig | None = None


def from_options(options: Options) -> config_pb2.ModelServerConfig:
    """Return what the flags ask for: the config file, or the one model of --model_base_path."""
    if options.model_config_file:
        return read_file(options.model_config_file)
    config = config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=options.model_name, base_path=options.model_base_path, model_platform=PLATFORM
    )
    return config


def read_file(path: str) -> config_pb2.ModelServerConfig:
    """Return the text proto. Raises StatusError; where a text is wrong also goes to standard error."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        code = Code.NOT_FOUND if isinstance(error, FileNotFoundError) else Code.FAILED_PRECONDITION
        raise StatusError(code, f"{path}; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from error
    config = config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        sys.stderr.write(f"Error parsing text-format {config.DESCRIPTOR.full_name}: {error}\n")
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from error
    return config


def check(config: config_pb2.ModelServerConfig, served: Collection[str]) -> tuple[ModelConfig, ...]:
    """Return the models of `config`; those `served` must keep their platform.

    Raises StatusError where the official server refuses the config, and where this one cannot serve it.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("ModelServer does not yet support custom model config.")
    models = config.model_config_list.config
    _require_unique_names(models)
    paths = [_local_path(model) for model in models]
    for model in models:
        _require_platform(model, served)
        if model.HasField("logging_config"):
            request_log.sampling_of(model.name, model.logging_config)
    return tuple(
        ModelConfig(
            model.name,
            path,
            version_policies.from_proto(model.model_version_policy),
            dict(model.version_labels),
            model.logging_config if model.HasField("logging_config") else None,
        )
        for model, path in zip(models, paths, strict=True)
    )


def _require_unique_names(models: Collection[config_pb2.ModelConfig]) -> None:
    names: set[str] = set()
    for model in models:
        if not model.name:
            raise invalid_argument(f"Expected every model to have a name; got none for {model.base_path!r}")
        if model.name in names:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)


def _local_path(model: config_pb2.ModelConfig) -> Path:
    uri = _URI.fullmatch(model.base_path)
    if uri and uri[1].lower() != "file":
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Model {model.name} has base_path {model.base_path}: only local directories are served here",
        )
    path = Path(uri[2] if uri else model.base_path)
    if not path.is_absolute():
        raise invalid_argument(
            f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        )
    return path


def _require_platform(model: config_pb2.ModelConfig, served: Collection[str]) -> None:
    platform = _platform(model)
    if platform == PLATFORM:
        return
    if model.name in served:
        raise invalid_argument(
            f"Illegal to change a model's platform. For model {model.name} platform was {PLATFORM} "
            f"and new platform requested is {platform}"
        )
    raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _platform(model: config_pb2.ModelConfig) -> str:
    if model.model_type == config_pb2.MODEL_TYPE_UNSPECIFIED:
        if not model.model_platform:
            text = "Illegal setting neither " + _TYPE_OR_PLATFORM.format("nor")
            raise invalid_argument(f"{text}, model name is {model.name}")
        return str(model.model_platform)
    if model.model_platform:
        text = "Illegal setting both " + _TYPE_OR_PLATFORM.format("and")
        raise invalid_argument(f"{text}, model name is {model.name}")
    if model.model_type != config_pb2.TENSORFLOW:
        raise invalid_argument(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    return PLATFORM
