"""The command `slipway`. It imports Prefect only to run a flow, and TensorFlow never."""

from __future__ import annotations

import atexit
import gc as collector
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape

from configs.loading.errors import ConfigError, SlipwayError
from configs.loading.model_checks import require_buildable
from configs.loading.overrides import given
from configs.loading.pipelines import load_pipeline, parse_override
from configs.loading.references import require_callables
from configs.schema.home import close_to_others
from flows.command.display import print_error
from flows.command.reports import Reports

app = App(
    name="slipway",
    help="Nightly train, export and serve for TensorFlow Estimators.\n\n"
    "PIPELINE is a folder that holds pipeline.yaml, or a YAML file. Exit codes: 0 done, 1 failed, "
    "2 bad usage or configuration, 3 rejected by a gate (the version before still serves), 4 cancelled, or "
    "another run of the pipeline is under way.",
    version=lambda: metadata.version("slipway"),
    version_flags=["--version"],
    # An empty tuple or False as a default says nothing.
    default_parameter=Parameter(negative="", show_default=lambda value: str(value) if value else None),
)
_BUILD = Group("Make a pipeline", sort_key=1)
_RUN = Group("Run it", sort_key=2)
_SERVE = Group("Serve and inspect", sort_key=3)
_NIGHTLY = Group("Every night, with Prefect", sort_key=4)
_WRITE_FOR_THE_USER = ("init", "deploy-nightly", "record")
"""Commands whose files are the user's own, beside the pipeline: the umask decides who reads them."""
errors = Console(stderr=True, highlight=False)

Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", negative="", consume_multiple=1, help="Override a key of the YAML: key.path=value"
    ),
]
VerdictFile = Annotated[Path | None, Parameter(name="--json", help="Write the verdict to this file as JSON")]
JunitFile = Annotated[
    Path | None, Parameter(name="--junit", help="Write the verdict as JUnit XML, one case per check")
]
RunToResume = Annotated[
    str | None, Parameter(help="With --resume: the run. Default: the newest unfinished run")
]
Resume = Annotated[
    bool, Parameter(name="--resume", negative="", help="Resume a run that failed, was killed or stopped")
]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="Check everything up to training; change nothing")
]
Force = Annotated[
    bool, Parameter(name="--force", negative="", help="Continue even if gates of `evaluation` fail")
]
Verbose = Annotated[bool, Parameter(name="--verbose", negative="", help="Show Prefect's log as well")]


@app.command(group=_RUN)
def run(  # noqa: PLR0913 (each is an option)
    pipeline: str,
    run_id: RunToResume = None,
    /,
    *,
    resume: Resume = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    junit_file: JunitFile = None,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
) -> int:
    """Train, export, validate and deploy, once, now."""
    from flows.command import terminal

    which = _to_resume(run_id, resume)
    told, reports = given(_parsed(overrides), force=force), Reports(json_file, junit_file)
    return terminal.run_flow("retrain_and_deploy", pipeline, told, reports, verbose, which, dry_run=dry_run)


@app.command(group=_RUN)
def retrain(  # noqa: PLR0913 (each is an option)
    pipeline: str,
    run_id: RunToResume = None,
    /,
    *,
    resume: Resume = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    junit_file: JunitFile = None,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
) -> int:
    """Train, export and validate a candidate without publishing it."""
    from flows.command import terminal

    which = _to_resume(run_id, resume)
    told, reports = given(_parsed(overrides), force=force), Reports(json_file, junit_file)
    return terminal.run_flow("retrain", pipeline, told, reports, verbose, which, dry_run=dry_run)


@app.command(group=_BUILD)
def check(
    pipeline: str,
    /,
    *,
    overrides: Overrides = (),
    build: Annotated[
        bool, Parameter(negative="", help="Build the Estimator and its graphs with TensorFlow (10 s)")
    ] = False,
) -> int:
    """Validate the configuration. Reads no data, needs no network, writes nothing."""
    loaded = load_pipeline(pipeline, _parsed(overrides))
    require_callables(loaded)
    require_buildable(loaded)
    built = ""
    if build:
        from flows.command import terminal

        built = f"; {terminal.build_model(loaded).summary()}"
    Console(highlight=False).print(
        f"{escape(str(loaded.file))}: pipeline [bold]{loaded.config.name}[/] is valid{built}",
        soft_wrap=True,
    )
    return 0


@app.command(group=_BUILD)
def plan(
    pipeline: str,
    /,
    *,
    overrides: Overrides = (),
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print it as JSON")] = False,
) -> int:
    """Show what a run would do now: stages, gates and limits. Changes nothing."""
    from flows.command import plan_command

    return plan_command.run(load_pipeline(pipeline, _parsed(overrides)), as_json)


@app.command(group=_BUILD)
def schema() -> int:
    """Print the JSON Schema of pipeline.yaml, for editors."""
    from configs.schema.pipeline import PipelineConfig

    sys.stdout.write(json.dumps(PipelineConfig.model_json_schema(), indent=2) + "\n")
    return 0


@app.command(group=_SERVE)
def status(
    pipeline: str | None = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="Print it as JSON")] = False,
) -> int:
    """Show the live version, since when, and the last verdict; with PIPELINE, its versions too."""
    from flows.command import status_command, terminal

    loaded = None if pipeline is None else load_pipeline(pipeline)
    if as_json:
        return status_command.show_json(None if loaded is None else loaded.config.name)
    return status_command.show(Console(highlight=False)) if loaded is None else terminal.show_status(loaded)


@app.command(group=_SERVE)
def report(
    pipeline: str,
    run_id: Annotated[str | None, Parameter(help="Run id. Default: the newest run")] = None,
    /,
    *,
    browser: Annotated[bool, Parameter(negative="--no-browser", help="Open it in a browser")] = True,
) -> int:
    """Show how a run ended, why, and the next command; open its report.html."""
    from flows.command import report_command

    return report_command.run(load_pipeline(pipeline), run_id, browser)


@app.command(group=_RUN)
def gc(
    *pipelines: str,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative="", help="Only list what would be removed")
    ] = False,
) -> int:
    """Remove runs beyond `runs.keep` of each PIPELINE, and compress the rest."""
    from flows.command import gc_command

    return gc_command.run([load_pipeline(pipeline) for pipeline in pipelines], dry_run)


@app.command(group=_NIGHTLY)
def alerts(
    *pipelines: str,
    webhook: Annotated[str, Parameter(env_var="SLIPWAY_ALERT_WEBHOOK", help="URL to post JSON to")] = "",
    apprise: Annotated[
        str, Parameter(env_var="SLIPWAY_ALERT_APPRISE", help="Apprise URL: mailto://…, slack://…")
    ] = "",
    no_deploy_hours: Annotated[float, Parameter(validator=Number(gt=0))] = 26.0,
) -> int:
    """Create Prefect automations that alert on rejected, failed and missing runs of each PIPELINE."""
    from flows.command.alerts import apply

    names = [load_pipeline(pipeline).config.name for pipeline in pipelines]
    for name in apply(names, webhook, apprise, no_deploy_hours):
        Console(highlight=False).print(f"applied: {escape(name)}")
    return 0


@app.command(group=_SERVE)
def stop(pipeline: str, /) -> int:
    """Drain and stop the server of the pipeline's model. Versions and runs stay."""
    from flows.command import terminal

    return terminal.stop_server(load_pipeline(pipeline))


@app.command(group=_RUN)
def rollback(
    pipeline: str,
    /,
    *,
    to: Annotated[
        int | None, Parameter(help="Version to serve. Default: the one before the live version")
    ] = None,
) -> int:
    """Serve an earlier version again, in seconds; withdraw the versions after it."""
    from flows.command import rollback_command

    return rollback_command.run(load_pipeline(pipeline), to)


@app.command(group=_SERVE)
def ask(
    pipeline: str,
    /,
    *,
    examples: Annotated[Path | None, Parameter(help="TFRecord of tf.Examples")] = None,
    count: Annotated[int, Parameter(help="Number of examples", validator=Number(gte=1))] = 3,
) -> int:
    """Request predictions from the running server over gRPC. Default: held-out examples of the last run."""
    from flows.command import terminal

    return terminal.ask_server(load_pipeline(pipeline), examples, count)


@app.command(group=_BUILD)
def record(
    pipeline: str,
    /,
    *,
    requests: Annotated[
        int, Parameter(help="Maximum number of requests", validator=Number(gte=1, lte=1000))
    ] = 20,
    logs: Annotated[
        tuple[Path, ...],
        Parameter(name="--from", consume_multiple=True, negative="", help="Request logs of the server"),
    ] = (),
) -> int:
    """Record golden requests, by default from sample examples, for the canary to replay."""
    from flows.command import record_command

    return record_command.run(load_pipeline(pipeline), requests, logs)


@app.command(group=_SERVE)
def diff(
    pipeline: str,
    first: str,
    second: str,
    /,
    *,
    samples: Annotated[
        int, Parameter(help="Maximum number of examples to compare", validator=Number(gte=1))
    ] = 256,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print it as JSON")] = False,
) -> int:
    """Compare two versions (numbers or folders): provenance, metrics, answers by example."""
    from flows.command import diff_command

    return diff_command.run(load_pipeline(pipeline), first, second, samples, as_json)


@app.command(group=_SERVE)
def inspect(
    path: Path,
    /,
    *,
    values: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, negative="", help="Variables to print the values of"),
    ] = (),
) -> int:
    """Show a checkpoint's variables, or a SavedModel's tag sets, signatures and assets."""
    from flows.command import terminal

    return terminal.inspect(path, values)


@app.command(group=_NIGHTLY)
def trigger(
    pipeline: str,
    /,
    *,
    watch: Annotated[bool, Parameter(negative="", help="Follow its log; exit with its exit code")] = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    junit_file: JunitFile = None,
    cancel_on_signal: Annotated[
        bool, Parameter(negative="", help="With --watch: cancel the run on SIGTERM or Ctrl-C")
    ] = False,
    start_timeout: Annotated[
        float, Parameter(validator=Number(gt=0), help="With --watch: maximum wait for a worker, in seconds")
    ] = 300.0,
) -> int:
    """Run the pipeline's Prefect deployment now, on a worker. PIPELINE may also be FLOW/DEPLOYMENT."""
    from flows.command import trigger as triggering

    reports = Reports(json_file, junit_file)
    watching = triggering.Watching(reports, cancel_on_signal, start_timeout) if watch else None
    if watching is None and (reports != Reports() or cancel_on_signal):
        raise ConfigError("--json, --junit and --cancel-on-signal need the end of the run", "add --watch")
    return triggering.trigger(pipeline, _parsed(overrides), watching)


@app.command(group=_RUN)
def recover(
    pipeline: str | None = None,
    /,
    *,
    start_timeout: Annotated[
        float,
        Parameter(validator=Number(gt=0), help="Without PIPELINE: seconds a worker has to start a run"),
    ] = 900.0,
) -> int:
    """Resume killed runs, settle interrupted deploys and restart servers, of PIPELINE or of all pipelines."""
    from flows.command import recover as recovering

    return recovering.recover(pipeline, start_timeout)


@app.command(group=_NIGHTLY)
def deploy_nightly(
    pipeline: str,
    /,
    *,
    cron: Annotated[str, Parameter(help="Cron expression, such as '30 2 * * *'")],
    timezone: Annotated[str, Parameter(help="IANA time zone, such as Europe/Berlin")] = "Etc/UTC",
    file: Annotated[Path, Parameter(help="File of deployments")] = Path("prefect.yaml"),
) -> int:
    """Add a nightly deployment of the pipeline to prefect.yaml, keeping its comments."""
    from flows.command import deploy_nightly_command

    return deploy_nightly_command.deploy_nightly(pipeline, cron, timezone, file)


@app.command(group=_BUILD)
def init(
    name: str,
    *samples: Path,
    source: Annotated[
        Literal["tfrecord", "csv", "parquet", "estimator"] | None,
        Parameter(name="--from", help="Format of the samples. Default: by suffix; estimator adds a model.py"),
    ] = None,
    label: Annotated[
        str | None, Parameter(help="Feature to predict. Default: guessed, with the reason")
    ] = None,
    folder: Annotated[Path | None, Parameter(help="Folder to create. Default: configs/NAME")] = None,
    force: Annotated[bool, Parameter(help="Overwrite existing files")] = False,
) -> int:
    """Create a pipeline from SAMPLES of the data: TFRecord, CSV or Parquet files."""
    from flows.command import init_command

    return init_command.create(name, samples, source, label, folder, force=force)


_service = App(name="service", help="systemd units, to start everything after a reboot.", group=_NIGHTLY)
app.command(_service)


@_service.command(name="install")
def service_install(
    *pipelines: str,
    user: Annotated[bool, Parameter(negative="", help="Install user units; needs no root")] = False,
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535), help="Port of the Prefect UI")] = 4200,
    pool: Annotated[str, Parameter(help="The worker's work pool")] = "slipway",
) -> int:
    """Write units for Prefect's server, a worker, recovery, and each PIPELINE's external server."""
    from flows.command import service_command

    return service_command.install([load_pipeline(pipeline) for pipeline in pipelines], user, port, pool)


@app.command(group=_NIGHTLY)
def ui(*, port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 4200) -> int:
    """Start the Prefect server and UI on 127.0.0.1. Stop it with Ctrl-C."""
    from flows.command import ui_command

    return ui_command.serve(port)


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    return dict(parse_override(text) for text in overrides)


def _to_resume(run_id: str | None, resume: bool) -> str | None:
    """Return what `recorded_run` takes as `resume`."""
    if run_id is not None and not resume:
        raise ConfigError(f"{run_id!r}: a run is named only to be resumed", "add --resume, or leave it out")
    return (run_id or "newest") if resume else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors are printed as what, where and what to do."""
    _spare_the_collector()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] and given[0] not in _WRITE_FOR_THE_USER:
        close_to_others()
    try:
        result = app(given, exit_on_error=False, print_error=True, result_action="return_value")
        return int(result or 0)
    except CycloptsError:
        return ConfigError.exit_code
    except SlipwayError as error:
        print_error(errors, {"class": type(error).__name__, "message": error.message, "hint": error.hint})
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 1


def _spare_the_collector() -> None:
    """Run the garbage collector less often: a short command's objects are mostly modules, which stay.

    With Prefect imported, looking took a quarter of a start, and once more half a second at the exit.
    """
    collector.set_threshold(100_000)
    atexit.register(collector.freeze)


def run_module(command: str) -> None:
    """Run `python -m flows.<flow> PIPELINE …` as the command line does."""
    raise SystemExit(main([command, *sys.argv[1:]]))
