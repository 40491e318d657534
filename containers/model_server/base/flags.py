"""The command line of `tensorflow_model_server` 2.15.1, its syntax included.

Only `--name=value` is understood (and bare `--name` for a bool), as in
tensorflow/core/util/command_line_flags.cc. A flag that `Options` has no field for is known, but not
supported: it may be given with its default value only, and `refused` has the reason. No flag is silently
ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from model_server.base.status import Code, StatusError, invalid_argument

Value = bool | int | float | str
_CPUS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Flag:
    """One official flag; the type of `default` is the type of its values."""

    name: str
    default: Value
    help: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Options:
    """The flags that this server implements, by their official names, units and defaults."""

    port: int
    grpc_socket_path: str
    rest_api_port: int
    rest_api_num_threads: int
    rest_api_timeout_in_ms: int
    rest_api_enable_cors_support: bool
    enable_batching: bool
    allow_version_labels_for_unavailable_models: bool
    batching_parameters_file: str
    enable_per_model_batching_parameters: bool
    model_config_file: str
    model_config_file_poll_wait_seconds: int
    model_name: str
    model_base_path: str
    num_load_threads: int
    num_unload_threads: int
    max_num_load_retries: int
    load_retry_interval_micros: int
    file_system_poll_wait_seconds: int
    flush_filesystem_caches: bool
    tensorflow_session_parallelism: int
    tensorflow_session_config_file: str
    tensorflow_intra_op_parallelism: int
    tensorflow_inter_op_parallelism: int
    ssl_config_file: str
    platform_config_file: str
    per_process_gpu_memory_fraction: float
    monitoring_config_file: str
    enable_model_warmup: bool
    num_request_iterations_for_warmup: int
    saved_model_tags: str
    grpc_channel_arguments: str
    grpc_max_threads: int
    remove_unused_fields_from_bundle_metagraph: bool
    enable_signature_method_name_check: bool
    enable_profiler: bool
    enable_grpc_healthcheck_service: bool
    version: bool


_NO_TFLITE = "TensorFlow Lite is not in the image (its interpreter is 5.8 MB): serve the SavedModel"
PER_CPU = ("rest_api_num_threads", "grpc_max_threads")
"""Flags whose defaults depend on the machine: four a CPU."""

# tensorflow_serving/model_servers/main.cc, in its order.
FLAGS: tuple[Flag, ...] = (
    Flag("port", 8500, "TCP port to listen on for gRPC; 0 is off"),
    Flag("grpc_socket_path", "", "UNIX socket to listen on for gRPC; empty is off"),
    Flag("rest_api_port", 0, "TCP port to listen on for HTTP/REST; 0 is off"),
    Flag("rest_api_num_threads", 4 * _CPUS, "HTTP requests processed at one time"),
    Flag("rest_api_timeout_in_ms", 30000, "Timeout of a graph run for HTTP/REST, in milliseconds"),
    Flag("rest_api_enable_cors_support", False, "Send CORS headers in HTTP/REST answers"),
    Flag("enable_batching", False, "Requests wait in queues, and share runs of the graph"),
    Flag("allow_version_labels_for_unavailable_models", False, "Labels for versions not yet loaded"),
    Flag("batching_parameters_file", "", "Text proto BatchingParameters, for --enable_batching"),
    Flag("enable_per_model_batching_parameters", False, "In its place, VERSION/batching_params.pbtxt"),
    Flag("model_config_file", "", "Text proto ModelServerConfig"),
    Flag("model_config_file_poll_wait_seconds", 0, "Seconds between readings of model_config_file"),
    Flag("model_name", "default", "Name of the model"),
    Flag("model_base_path", "", "Directory of the model's numbered version directories"),
    Flag("num_load_threads", 0, "Threads that load versions; 0 is 4 a CPU"),
    Flag("num_unload_threads", 0, "Threads that unload versions; 0 is 4 a CPU"),
    Flag("max_num_load_retries", 5, "How often a failed load is tried again"),
    Flag("load_retry_interval_micros", 60 * 1000 * 1000, "Microseconds between tries of a failed load"),
    Flag("file_system_poll_wait_seconds", 1, "Seconds between looks for versions; 0 looks once, <0 never"),
    Flag(
        "flush_filesystem_caches", True, "Give a version's files back from the page cache once it is loaded"
    ),
    Flag("tensorflow_session_parallelism", 0, "Threads of a session, both kinds; 0 is automatic"),
    Flag("tensorflow_session_config_file", "", "Text proto ConfigProto; flags that are given win over it"),
    Flag("tensorflow_intra_op_parallelism", 0, "Threads within an op; 0 is automatic"),
    Flag("tensorflow_inter_op_parallelism", 0, "Threads across ops; 0 is automatic"),
    Flag("use_alts_credentials", False, "ALTS", refused="ALTS is Google Cloud's own: use --ssl_config_file"),
    Flag("ssl_config_file", "", "Text proto SSLConfig (PEM text): TLS for gRPC, its UNIX socket included"),
    Flag(
        "platform_config_file",
        "",
        "Text proto PlatformConfigMap, in place of the flags for sessions",
    ),
    Flag("per_process_gpu_memory_fraction", 0.0, "Share of GPU memory to take; 0 is automatic"),
    Flag("saved_model_tags", "serve", "Comma-separated tags of the MetaGraphDef to serve"),
    Flag("grpc_channel_arguments", "", "Comma-separated key=value gRPC server arguments"),
    Flag("grpc_max_threads", 4 * _CPUS, "Threads that answer gRPC calls; further calls wait their turn"),
    Flag("enable_model_warmup", True, "Replay warmup records before a version is available"),
    Flag("num_request_iterations_for_warmup", 0, "How often each warmup record is replayed"),
    Flag("version", False, "Print the version and exit"),
    Flag("monitoring_config_file", "", "Text proto MonitoringConfig: metrics for Prometheus, over REST"),
    Flag("remove_unused_fields_from_bundle_metagraph", True, "GraphDefs are dropped after loading, always"),
    Flag("prefer_tflite_model", False, "Serve model.tflite where there is one", refused=_NO_TFLITE),
    Flag("num_tflite_pools", 1, "TFLite session pools", refused=_NO_TFLITE),
    Flag("num_tflite_interpreters_per_pool", 1, "TFLite interpreters per pool", refused=_NO_TFLITE),
    Flag("enable_signature_method_name_check", False, "Check method_name of signatures"),
    Flag("xla_cpu_compilation_enabled", False, "XLA on CPU", refused="graphs run as they were exported"),
    Flag("enable_profiler", True, "ProfilerService on the gRPC port; it writes traces where its client says"),
    Flag(
        "thread_pool_factory_config_file",
        "",
        "Text proto ThreadPoolFactoryConfig",
        refused="the official binary has no factory either, only builds of one's own: "
        "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism",
    ),
    Flag("mixed_precision", "", "Mixed precision mode", refused="graphs run as they were exported"),
    Flag("skip_initialize_tpu", False, "Do not initialize the TPU", refused="there are no TPUs here"),
    Flag("enable_grpc_healthcheck_service", False, "grpc.health.v1 (always on in this server)"),
)


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line: the options, what was not understood, and what is not supported."""

    options: Options
    unknown: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    wants_help: bool = False


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> CommandLine:
    """Return the command line read over the defaults; the last of repeated flags counts."""
    defaults = _defaults(environment)
    values = dict(defaults)
    unknown: list[str] = []
    invalid: list[str] = []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        known = argument.startswith("--") and name in values
        if not known or not (equals or isinstance(values[name], bool)):
            unknown.append(argument)
        elif (value := _value(text if equals else "true", values[name])) is None:
            invalid.append(argument)
        else:
            values[name] = value
    supported = {option.name for option in fields(Options)}
    return CommandLine(
        options=Options(**{name: values[name] for name in supported}),  # type: ignore[arg-type]
        unknown=tuple(unknown),
        invalid=tuple(invalid),
        unsupported=tuple(n for n in values if n not in supported and values[n] != defaults[n]),
        wants_help=unknown[:1] == ["--help"],
    )


def check(options: Options) -> None:
    """Raise StatusError, in the official words, where the options cannot start a server."""
    if options.port == 0 and not options.grpc_socket_path:
        raise invalid_argument(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    if not options.model_base_path and not options.model_config_file:
        raise invalid_argument(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    if options.batching_parameters_file and not options.enable_batching:
        raise invalid_argument(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )


def unsupported_error(command_line: CommandLine) -> StatusError:
    """Why a server with these flags does not start: no flag is silently ignored."""
    names = command_line.unsupported
    if "use_alts_credentials" in names and command_line.options.ssl_config_file:
        return invalid_argument("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    reasons = {flag.name: flag.refused for flag in FLAGS}
    return StatusError(
        Code.UNIMPLEMENTED,
        "not supported here: " + "; ".join(f"--{name} ({reasons[name]})" for name in names),
    )


def usage(program: str) -> str:
    """Return the list of flags, in the official layout."""
    lines = [f"usage: {program}", "Flags:"]
    for flag in FLAGS:
        default = f'"{flag.default}"' if isinstance(flag.default, str) else str(flag.default).lower()
        lines.append(f"\t--{flag.name}={default:<20}\t{_type_name(flag.default)}\t{flag.help}")
    return "\n".join(lines)


def _defaults(environment: Mapping[str, str]) -> dict[str, Value]:
    """Return the official defaults, and where the environment has them, the two of the official image."""
    values: dict[str, Value] = {flag.name: flag.default for flag in FLAGS}
    if name := environment.get("MODEL_NAME"):
        values["model_name"] = name
    if base := environment.get("MODEL_BASE_PATH"):
        values["model_base_path"] = f"{base}/{values['model_name']}"
    return values


def _value(text: str, default: Value) -> Value | None:
    """`text` as a value of the type of `default`; None if it is not one."""
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text)
    if isinstance(default, int):
        return int(text) if re.fullmatch(r"\s*[-+]?[0-9]+\s*", text) else None
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            return None
    return text


def _type_name(default: Value) -> str:
    names: dict[type, str] = {bool: "bool", int: "int32", float: "float", str: "string"}
    return names[type(default)]
