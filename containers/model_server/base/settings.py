"""What this server can do beyond the official flags: environment variables MODEL_SERVER_*, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model_server.base.status import invalid_argument

Value = bool | int | float | str

_SWITCH = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


@dataclass(frozen=True)
class Setting:
    """One variable; the type of `default` is the type of its values."""

    name: str
    default: Value
    help: str
    allowed: tuple[str, ...] = ()
    """The only texts that it may have; empty: any."""

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"MODEL_SERVER_{self.name.upper()}"


@dataclass(frozen=True)
class Settings:
    """The values, by their names in SETTINGS."""

    batching: str
    max_queued_mebibytes: float
    max_queued_requests: int
    processes: int
    host: str
    drain_seconds: float
    log_format: str
    request_log: str
    request_log_rate: float
    request_log_file_megabytes: float
    request_log_files: int
    rest_tls: bool
    rest_queue: int
    rest_connections: int
    rest_body_megabytes: float
    settle_seconds: float
    unload_when_empty: bool
    reload: bool
    share_ports: bool
    published_only: bool
    ops: str


SETTINGS: tuple[Setting, ...] = (
    Setting("host", "0.0.0.0", "Address to listen on, for gRPC and REST"),  # noqa: S104 (the official one's)
    Setting("drain_seconds", 30.0, "How long SIGTERM waits for requests in flight, in seconds"),
    Setting(
        "batching",
        "auto",
        "Requests that wait share a run: where rows are independent, always, never",
        allowed=("auto", "on", "off"),
    ),
    Setting("max_queued_requests", 10000, "Unanswered requests of a process, past which it sheds load"),
    Setting("max_queued_mebibytes", 1024.0, "Bytes of them, past which it sheds load"),
    Setting("processes", 1, "Processes that answer on the gRPC port; 0 is one for each core, at most 4"),
    Setting("log_format", "text", "How lines of the log are written", allowed=("text", "json")),
    Setting(
        "request_log",
        "",
        "Where to log sampled requests: files PREFIX-PROCESS-NUMBER.tfrecord; empty is off",
    ),
    Setting("request_log_rate", 0.01, "Share of the requests that is logged, from 0 to 1"),
    Setting("request_log_file_megabytes", 64.0, "How large a file of logged requests becomes"),
    Setting("request_log_files", 10, "How many such files each process keeps"),
    Setting("rest_tls", False, "REST and its metrics over TLS too, with the keys of --ssl_config_file"),
    Setting("rest_queue", 1000, "HTTP requests that may wait for a thread; one more gets 503 at once"),
    Setting(
        "rest_connections",
        256,
        "HTTP connections at one time; one more closes the one that has waited longest for its client",
    ),
    Setting("rest_body_megabytes", 64.0, "How large an HTTP body may be, unpacked; a larger one gets 413"),
    Setting("settle_seconds", 1.0, "How long a version's files must stand still before it is loaded"),
    Setting("unload_when_empty", False, "A base path that holds no version any more unloads the model"),
    Setting("reload", True, "HandleReloadConfigRequest replaces the models; false refuses it"),
    Setting("share_ports", False, "Listen beside a server of this user's that is about to stop"),
    Setting("published_only", False, "Serve only versions that `<base path>/.published` lists, by digest"),
    Setting("ops", "", "Op libraries to load at the start: paths of shared objects, separated by colons"),
)


def read(environment: Mapping[str, str]) -> Settings:
    """Return the settings over their defaults. Raises StatusError naming the variable and what it may be."""
    return Settings(**{setting.name: _value(setting, environment) for setting in SETTINGS})  # type: ignore[arg-type]


def _value(setting: Setting, environment: Mapping[str, str]) -> Value:
    text = environment.get(setting.variable, "")
    if not text:
        return setting.default
    reader, expected = _reader(setting)
    try:
        return reader(text)
    except (ValueError, KeyError):
        raise invalid_argument(f"{setting.variable}: expected {expected}, found {text!r}") from None


def _reader(setting: Setting) -> tuple[Callable[[str], Value], str]:
    """How to read a text, which raises ValueError or KeyError, and what it should have been."""
    if setting.allowed:
        return dict(zip(setting.allowed, setting.allowed, strict=True)).__getitem__, " or ".join(
            setting.allowed
        )
    if isinstance(setting.default, bool):
        return _SWITCH.__getitem__, "true or false"
    if isinstance(setting.default, int):
        return _count, "a whole number that is not negative"
    if isinstance(setting.default, float):
        return _not_negative, "a number that is not negative"
    return str, "text"


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number
