"""`slipway ui`: a Prefect server with its UI, on loopback, with the runs under `$SLIPWAY_HOME`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import FrameType

from rich.console import Console

import configs.environment  # noqa: F401  (it sets what the server is started with)
from configs import ui_address
from configs.errors import SlipwayError
from tasks.servers.model_servers import port_holder

console = Console(highlight=False)


def serve(port: int) -> int:
    """Serve until Ctrl-C or SIGTERM. Runs started meanwhile (`slipway run`) show up in it, live."""
    holder = port_holder(port)
    if holder is not None:
        raise SlipwayError(f"port {port} is in use by {holder}", "slipway ui --port names another")
    api = f"http://127.0.0.1:{port}/api"
    # PREFECT_SERVER_API_PORT, not --port: the UI asks for its API at the former (prefect.md, 3).
    variables = {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
    }
    record = ui_address.ui_record()
    record.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"Prefect UI: [bold]http://127.0.0.1:{port}[/]   (Ctrl-C ends it; the runs stay)")
    signal.signal(signal.SIGTERM, _interrupt)
    server: subprocess.Popen[bytes] | None = None
    try:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        server = subprocess.Popen(command, env={**os.environ, **variables})
        record.write_text(json.dumps({"api": api, "pid": os.getpid()}))
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        record.unlink(missing_ok=True)
        if server is not None:
            server.terminate()
            server.wait()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
