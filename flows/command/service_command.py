"""`slipway service install --user`: units of systemd, so that a reboot leaves nothing down.

slipway-prefect.service       Prefect's server with its UI
slipway-worker.service        a worker of the work pool: it runs the deployments
slipway-recover.timer         every few minutes `slipway recover`: it resumes killed runs, settles deploys and
                              starts model servers that are gone
slipway-serving-NAME.service  the model server of a PIPELINE with deployment.target external on this machine
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from configs.schema.home import home
from flows import ui_address
from tasks.core import durable_files
from tasks.core.errors import EnvironmentFault

console = Console(highlight=False)
_HERE = ("127.0.0.1", "localhost", "::1")
_KEPT = (
    "PATH",
    "LANG",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
"""Of the caller's environment, which a service does not have."""
_RECOVER_EVERY = "5min"
_PREFECT = "slipway-prefect.service"


def install(pipelines: Sequence[Pipeline], user: bool, port: int, pool: str) -> int:
    """Write the units and say how to start them. Raises ConfigError, EnvironmentFault."""
    if not user:
        raise ConfigError(
            "only units of a user are written, which need no root", "slipway service install --user"
        )
    folder = folder_of_units()
    written = units(pipelines, port, pool)
    try:
        for name, text in written.items():
            durable_files.write(folder / name, text.encode())
    except OSError as error:
        raise EnvironmentFault(f"{folder} is not writable: {error.strerror}", "set XDG_CONFIG_HOME") from None
    for name in written:
        console.print(f"wrote {folder / name}", markup=False, soft_wrap=True)
    started = " ".join(name for name in written if name != "slipway-recover.service")
    lines = (
        "systemctl --user daemon-reload", f"systemctl --user enable --now {started}",
        "loginctl enable-linger    # they start with the machine, not with your login",
    )  # fmt: skip
    console.print("\nStart them, now and after each reboot:")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    return 0


def folder_of_units() -> Path:
    """Return where systemd looks for the user's units."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user"


def units(pipelines: Sequence[Pipeline], port: int, pool: str) -> dict[str, str]:
    """Return file name to text of every unit. Raises ConfigError for a pipeline whose server is no unit's."""
    api = f"http://127.0.0.1:{port}/api"
    environment = _environment({"SLIPWAY_HOME": str(home()), "PREFECT_API_URL": api})
    slipway = _program("slipway")
    password = shlex.quote(str(ui_address.auth_file()))
    worker = shlex.join(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    )
    # A worker that starts before the server has no password yet, on the first start, and sends no events.
    asks = f"import urllib.request; urllib.request.urlopen('{api}/health')"
    answers = shlex.join([sys.executable, "-c", asks])
    start_worker = (
        f"until {answers} 2>/dev/null; do sleep 2; done; "
        f'PREFECT_API_AUTH_STRING="$(cat {password})" exec {worker}'
    )
    always = ["Restart=always", "RestartSec=5"]
    found = {
        "slipway-prefect.service": _unit(
            "Slipway: Prefect's server and UI",
            [*environment, f"ExecStart={_line([slipway, 'ui', '--port', str(port)])}", *always],
        ),
        # KillMode=process: the worker ends its runs itself, and the model servers that they started stay up.
        "slipway-worker.service": _unit(
            "Slipway: a worker of Prefect",
            [*environment, f"ExecStart={_line(['/bin/sh', '-c', start_worker])}", *always, "KillMode=process",
             "TimeoutStopSec=300"],
            after=_PREFECT,
        ),
        "slipway-recover.service": _unit(
            "Slipway: resume killed runs, start model servers that are gone",
            [*environment, "Type=oneshot", f"ExecStart={_line([slipway, 'recover'])}", "KillMode=process",
             "TimeoutStartSec=infinity"],
            after=_PREFECT,
        ),
        "slipway-recover.timer": (
            "[Unit]\nDescription=Slipway: recover after a reboot, and every few minutes\n\n"
            f"[Timer]\nOnBootSec=30s\nOnUnitInactiveSec={_RECOVER_EVERY}\n\n[Install]\nWantedBy=timers.target\n"
        ),
    }  # fmt: skip
    return found | {
        f"slipway-serving-{each.config.name}.service": _serving(each, environment) for each in pipelines
    }


def _serving(pipeline: Pipeline, environment: Sequence[str]) -> str:
    """Return the unit of a pipeline's own model server."""
    config = pipeline.config
    deployment = config.deployment
    if deployment.target != "external" or str(deployment.host) not in _HERE:
        raise ConfigError(
            f"{config.name}: its runs start the server (deployment.target {deployment.target}), and "
            "slipway-recover starts it again after a reboot",
            "leave it out; or say deployment: {target: external, host: 127.0.0.1}: systemd keeps it running",
        )
    flags = [
        f"--port={deployment.grpc_port}", f"--rest_api_port={deployment.rest_port}",
        f"--model_name={config.name}", f"--model_base_path={pipeline.model_base_path}",
    ]  # fmt: skip
    command = [_program("model_server"), *flags]
    service = [*environment, "Environment=MODEL_SERVER_HOST=127.0.0.1", f"ExecStart={_line(command)}",
               "Restart=always", "RestartSec=2"]  # fmt: skip
    return _unit(f"Slipway: the model server of {config.name}", service)


def _unit(description: str, service: Sequence[str], after: str = "") -> str:
    unit = [f"Description={description}", *([f"After={after}", f"Wants={after}"] if after else [])]
    parts = {"Unit": unit, "Service": service, "Install": ["WantedBy=default.target"]}
    return "\n".join("\n".join([f"[{name}]", *lines, ""]) for name, lines in parts.items())


def _environment(own: Mapping[str, str]) -> list[str]:
    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    return [f"Environment={_quoted(f'{name}={value}')}" for name, value in {**kept, **own}.items()]


def _line(command: Sequence[str]) -> str:
    """Return a command line as systemd reads it: $ and % are its own."""
    return " ".join(_quoted(part.replace("$", "$$")) for part in command)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _program(name: str) -> str:
    own = Path(sys.executable).parent / name
    return str(own) if own.is_file() else shutil.which(name) or name
