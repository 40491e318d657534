"""What the commands of `slipway` do and print; `cli.py` says how they are called."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from configs.loading.errors import ConfigError, SlipwayError
from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import Pipeline, load_pipeline
from configs.loading.references import require_callables
from configs.schema.home import home
from flows.command import ephemeral_server, provenance
from flows.command.display import RunDisplay, print_error, print_verdict
from flows.command.reports import Reports
from tasks.core.artifacts import BuiltModel, Inspection, Probe, Verdict
from tasks.deploys import stopping
from tasks.exports import extra_assets
from tasks.processes import lost_output, tensorflow_process
from tasks.reports.verdicts import exit_code
from tasks.runs import run_folders, run_order, run_records, tracebacks
from tasks.runs.resumable_runs import resumption
from tasks.servers import model_servers, model_status
from tasks.state import model_versions, server_records

console = Console(highlight=False)
_EXAMPLES = "offline/examples.tfrecord"
_UNTOLD = "Prefect was not told how the run ended, and still calls it Running: its server does not answer"


def run_flow(
    flow_name: str,
    pipeline: str,
    overrides: Mapping[str, Any],
    reports: Reports,
    verbose: bool,
    resume: str | None = None,
    *,
    dry_run: bool = False,
) -> int:
    """Run the flow in this process, show it live, and return the exit code that its verdict means.

    `resume` names the run to go on with, or is `newest`; None begins a new one.
    """
    started = time.monotonic()
    lost_output.survive()
    try:
        loaded, run_id = _begun(pipeline, overrides, resume)
        require_callables(loaded)
        require_buildable(loaded)
    except ConfigError as error:
        reports.write(_refused(pipeline, error))
        raise
    tensorflow_process.prepare()  # it imports TensorFlow while Prefect starts
    resumed = None if resume is None else run_id
    with RunDisplay(console) as display, run_records.watched_by(display.watch):
        failure = _call(flow_name, (pipeline, dict(overrides), run_id, resumed, dry_run), verbose, display)
    verdict = display.verdict or _refused(loaded.config.name, failure or RuntimeError("no verdict"))
    _conclude(loaded, pipeline, verdict, time.monotonic() - started)
    if display.verdict is not None and isinstance(failure, httpx.HTTPError):
        console.print(f"\n{_UNTOLD}: {failure}", markup=False, soft_wrap=True)
    reports.write(verdict)
    return exit_code(verdict)


def _begun(pipeline: str, overrides: Mapping[str, Any], resume: str | None) -> tuple[Pipeline, str]:
    """Return what is to be run, and the id of the run."""
    if resume is None:
        loaded = load_pipeline(pipeline, overrides)
        return loaded, run_folders.new_run_id(loaded.config.name)
    found = resumption(pipeline, resume, overrides)
    console.print(found.told(), markup=False, soft_wrap=True)
    return found.pipeline, found.run.run_id


def _call(
    flow_name: str, parameters: tuple[Any, ...], verbose: bool, display: RunDisplay
) -> BaseException | None:
    """Run the flow; return what it raised. Its verdict comes by `watch`."""
    import flows.environment  # noqa: F401  (sets what Prefect reads when it is imported)

    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        flow = getattr(importlib.import_module(f"flows.{flow_name}"), flow_name)
        ephemeral_server.require_api(display.prepare)
        flow(*parameters, return_state=True)
    except (Exception, KeyboardInterrupt) as error:
        return error
    finally:
        tensorflow_process.close()
    return None


def _refused(pipeline: str, error: BaseException) -> Verdict:
    """Return the verdict of a run that never began."""
    file = home() / "defects" / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}.txt"
    record = run_records.RunRecord(pipeline=pipeline, error=error, traceback=tracebacks.write(error, file))
    return record.verdict()


def _conclude(loaded: Pipeline, pipeline: str, verdict: Verdict, seconds: float) -> None:
    print_verdict(console, verdict)
    if verdict.error is not None:
        print_error(console, verdict.error)
    folder = run_folders.describe(loaded, verdict.run_id).folder
    if folder.is_dir():
        console.print(
            f"\n[dim]{seconds:.1f} s in all; everything about this run: {escape(_short(folder))}[/]"
        )
    if verdict.endpoint is not None and verdict.outcome == "deployed":
        _print_how_to_use(loaded, pipeline, verdict)
    elif verdict.outcome not in ("trained", "checked"):
        _print_what_serves(loaded.config.name)


def _print_what_serves(name: str) -> None:
    """Print the live version. An error of Docker or the server is printed, and changes no verdict."""
    try:
        record = model_servers.running(name)
        live = model_status.live_version(record.rest, name) if record is not None else None
    except Exception as error:
        text = f"\nWhat serves is not known: {type(error).__name__}: {error}"
        console.print(text, markup=False, soft_wrap=True)
        return
    if record is not None and live is not None:
        console.print(f"\nVersion {live} still serves at {record.grpc}.", soft_wrap=True)
    else:
        console.print(f"\nNo version of {name} serves.")


def _print_how_to_use(loaded: Pipeline, pipeline: str, verdict: Verdict) -> None:
    assert verdict.endpoint is not None
    slipway, name = _command("slipway"), loaded.config.name
    request = run_folders.describe(loaded, verdict.run_id).folder / "rest_request.json"
    ask_rest = f"curl -s -d @{_short(request)} {verdict.endpoint['rest']}/v1/models/{name}:predict"
    _print_pairs(
        ("serves at", f"gRPC {verdict.endpoint['grpc']}   REST {verdict.endpoint['rest']}"),
        ("ask it (gRPC)", f"{slipway} ask {pipeline}"),
        ("ask it (REST)", ask_rest if request.is_file() else ""),
        ("Prefect UI", f"{slipway} ui"),
        ("status", f"{slipway} status {pipeline}"),
        ("stop it", f"{slipway} stop {pipeline}"),
    )


def _print_pairs(*pairs: tuple[str, str]) -> None:
    """Print a line for each pair whose second is not empty; never wrapped, so that it can be pasted."""
    console.print()
    for label, text in pairs:
        if text:
            console.print(f"[dim]{label:<14}[/] {text}", soft_wrap=True)


def _command(name: str) -> str:
    """Return how this user types the command: by its name where the shell finds it, else by its path."""
    own = Path(sys.executable).parent / name
    found = shutil.which(name)
    return name if found and Path(found).resolve() == own.resolve() else _short(own)


def _short(path: Path) -> str:
    """Return the path relative to the current folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def show_status(loaded: Pipeline) -> int:
    """Print what serves, the versions on disk, and the last verdict."""
    name = loaded.config.name
    record = model_servers.recorded(name)
    present = model_versions.versions(loaded.model_base_path)
    on_disk = ", ".join(map(str, present)) or "none"
    _print_pairs(
        ("pipeline", f"[bold]{name}[/]  [dim]{escape(_short(loaded.file))}[/]"),
        ("serving", _serving(name, record)),
        ("versions", f"{on_disk}  [dim]in {escape(_short(loaded.model_base_path))}[/]"),
        *_made_of(loaded, record),
        ("under way", run_folders.run_under_way(name) or ""),
        ("last verdict", _last_verdict(name)),
    )
    return 0


def _made_of(loaded: Pipeline, record: server_records.ServerRecord | None) -> Iterator[tuple[str, str]]:
    """Yield what the manifest says of the version that answers, or where none does of the highest."""
    present = model_versions.versions(loaded.model_base_path)
    live = model_status.live_version(record.rest, loaded.config.name) if record and record.handle else None
    number = live or max(present, default=0)
    told = extra_assets.read_manifest(present[number]) if number in present else {}
    yield from provenance.lines(number, told)


def _serving(name: str, record: server_records.ServerRecord | None) -> str:
    if record is None or not record.handle:
        return "nothing: no server was started" if record is None else "nothing: the server was stopped"
    if not model_servers.is_alive(record) and record.target == "external":
        return f"[red]nothing[/]: {record.describe()} does not answer"
    if not model_servers.is_alive(record):
        return f"[red]nothing[/]: the server ({record.describe()}) is gone; slipway run starts it again"
    live = model_status.live_version(record.rest, name)
    version = f"version [bold green]{live}[/]" if live is not None else "[yellow]no version yet[/]"
    since = None if live is None else run_folders.serving_since(name, live)
    when = "" if since is None else f" since {since.astimezone():%Y-%m-%d %H:%M}"
    return f"{version}{when}  gRPC {record.grpc}  REST {record.rest}  {record.describe()}"


def _last_verdict(name: str) -> str:
    verdict = run_folders.last_verdict(name)
    if verdict is None:
        return "none: no run has ended"
    error = f": {escape(verdict['error']['message'].splitlines()[0])}" if verdict.get("error") else ""
    return f"{verdict['outcome'].replace('_', ' ')} (run {verdict['run_id']}){error}"


def stop_server(loaded: Pipeline) -> int:
    """Drain and stop the server; say what was stopped."""
    name = loaded.config.name
    stopped = stopping.stop(loaded)
    if not stopped:
        console.print(f"{name}: no server runs")
    for record in stopped:
        console.print(f"{name}: stopped {record.describe()}; versions and runs stay")
    return 0


def ask_server(loaded: Pipeline, examples: Path | None, count: int) -> int:
    """Ask the running server over gRPC and print its answers, a line an example."""
    name = loaded.config.name
    record = model_servers.running(name)
    if record is None:
        raise SlipwayError(f"no server of {name} runs", f"{_command('slipway')} run starts one")
    file = examples or _last_examples(name)
    answered = tensorflow_process.run(
        "probe",
        Probe,
        log=home() / "servers" / f"{name}.ask.log",
        arguments={
            "grpc": record.grpc,
            "tls": bool(record.tls),
            "model_name": name,
            "version": None,
            "examples": file,
            "data": loaded.config.data,
            "count": count,
            "timeout_seconds": loaded.config.smoke_test.request_timeout_seconds,
        },
    )
    console.print(f"{name} version [bold green]{answered.version}[/] at {record.grpc}")
    for line in answered.shown:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def build_model(loaded: Pipeline) -> BuiltModel:
    """Build the model's graphs, without data."""
    from tasks import preflight

    with tempfile.TemporaryDirectory(prefix="slipway-check-") as folder:
        run = replace(run_folders.describe(loaded, "check"), folder=Path(folder))
        try:
            return preflight.build_model(loaded.config.recipe, loaded.config.export, run, run.log("check"))
        finally:
            tensorflow_process.close()


def inspect(path: Path, values: Sequence[str]) -> int:
    """Print what a checkpoint or a SavedModel holds."""
    with tempfile.TemporaryDirectory(prefix="slipway-inspect-") as folder:
        found = tensorflow_process.run(
            "inspect",
            Inspection,
            log=Path(folder) / "inspect.log",
            arguments={"path": Path(os.path.abspath(path.expanduser())), "values": list(values)},
        )
    console.print(f"{found.path} is a {found.kind}", markup=False, soft_wrap=True)
    console.print(found.text, markup=False, soft_wrap=True)
    return 0


def _last_examples(name: str) -> Path:
    verdict = run_folders.last_verdict(name)
    found = run_order.oldest_first(name, _EXAMPLES)
    if verdict is None or not found:
        raise SlipwayError(f"no run of {name} left examples to ask for", "name a TFRecord by --examples")
    return found[-1] / _EXAMPLES
