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
    Parameter(name="--set", negative="", consume_multiple=1, help="key.path=value in place of the YAML's"),
]
VerdictFile = Annotated[Path | None, Parameter(name="--json", help="Also write the verdict to this file")]
JunitFile = Annotated[
    Path | None, Parameter(name="--junit", help="Also write it as JUnit XML: a case a check")
]
RunToResume = Annotated[
    str | None, Parameter(help="With --resume: which run; by default the newest that did not come to its end")
]
Resume = Annotated[
    bool, Parameter(name="--resume", negative="", help="Go on with a run that failed, was killed or stopped")
]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="End before anything is trained or changed")
]
Force = Annotated[
    bool, Parameter(name="--force", negative="", help="Go on although gates of `evaluation` are missed")
]
Verbose = Annotated[bool, Parameter(name="--verbose", negative="", help="Show Prefect's own log too")]


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
    """Train, export, prove and deploy: the whole chain, once, now."""
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
    """Train, export and prove, but publish nothing: a candidate is left."""
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
        bool, Parameter(negative="", help="Also build the Estimator and its graphs with TensorFlow (10 s)")
    ] = False,
) -> int:
    """Check the configuration: no data and no network; without --build no TensorFlow. Writes nothing."""
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
    """Show what a run would do now, stage by stage, with every gate and its limit; nothing is changed."""
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
    """Show the serving version, since when, and the last verdict; of PIPELINE also its versions."""
    from flows.command import status_command, terminal

    loaded = None if pipeline is None else load_pipeline(pipeline)
    if as_json:
        return status_command.show_json(None if loaded is None else loaded.config.name)
    return status_command.show(Console(highlight=False)) if loaded is None else terminal.show_status(loaded)


@app.command(group=_SERVE)
def report(
    pipeline: str,
    run_id: Annotated[str | None, Parameter(help="Which run; by default the newest")] = None,
    /,
    *,
    browser: Annotated[bool, Parameter(negative="--no-browser", help="Open it, if there is a screen")] = True,
) -> int:
    """Show how a run ended, why, and what to type next; open its page, report.html, and print its path."""
    from flows.command import report_command

    return report_command.run(load_pipeline(pipeline), run_id, browser)


@app.command(group=_RUN)
def gc(
    *pipelines: str,
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="", help="Only say what would go")] = False,
) -> int:
    """Remove the runs of each PIPELINE that `runs.keep` does not keep, and compress those that stay."""
    from flows.command import gc_command

    return gc_command.run([load_pipeline(pipeline) for pipeline in pipelines], dry_run)


@app.command(group=_NIGHTLY)
def alerts(
    *pipelines: str,
    webhook: Annotated[str, Parameter(env_var="SLIPWAY_ALERT_WEBHOOK", help="URL that gets JSON")] = "",
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
        int | None, Parameter(help="Version to serve; by default the one before the live one")
    ] = None,
) -> int:
    """Serve an earlier version again, in seconds, without training; those after it are withdrawn."""
    from flows.command import rollback_command

    return rollback_command.run(load_pipeline(pipeline), to)


@app.command(group=_SERVE)
def ask(
    pipeline: str,
    /,
    *,
    examples: Annotated[Path | None, Parameter(help="TFRecord of tf.Examples to ask for")] = None,
    count: Annotated[int, Parameter(help="Ask for so many of them", validator=Number(gte=1))] = 3,
) -> int:
    """Ask the running server for predictions over gRPC, by default for held-out examples of the last run."""
    from flows.command import terminal

    return terminal.ask_server(load_pipeline(pipeline), examples, count)


@app.command(group=_BUILD)
def record(
    pipeline: str,
    /,
    *,
    requests: Annotated[
        int, Parameter(help="Record at most so many", validator=Number(gte=1, lte=1000))
    ] = 20,
    logs: Annotated[
        tuple[Path, ...],
        Parameter(name="--from", consume_multiple=True, negative="", help="Request logs of the server's"),
    ] = (),
) -> int:
    """Record golden requests, by default about sample examples; every candidate answers them from then on."""
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
        int, Parameter(help="Compare the answers about at most so many examples", validator=Number(gte=1))
    ] = 256,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print it as JSON")] = False,
) -> int:
    """Compare two versions, numbers or folders: what they were made of, metrics, answers by example."""
    from flows.command import diff_command

    return diff_command.run(load_pipeline(pipeline), first, second, samples, as_json)


@app.command(group=_SERVE)
def inspect(
    path: Path,
    /,
    *,
    values: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative="", help="Variables whose values to show")
    ] = (),
) -> int:
    """Show what a checkpoint (variables, dtypes, shapes) or a SavedModel (tags, signatures, assets) holds."""
    from flows.command import terminal

    return terminal.inspect(path, values)


@app.command(group=_NIGHTLY)
def trigger(
    pipeline: str,
    /,
    *,
    watch: Annotated[bool, Parameter(negative="", help="Show its log; exit as slipway run would")] = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    junit_file: JunitFile = None,
    cancel_on_signal: Annotated[
        bool, Parameter(negative="", help="With --watch: SIGTERM or Ctrl-C cancels the run")
    ] = False,
    start_timeout: Annotated[
        float, Parameter(validator=Number(gt=0), help="With --watch: longest wait for a worker, in seconds")
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
        Parameter(validator=Number(gt=0), help="Without PIPELINE: seconds that a worker has to begin a run"),
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
    cron: Annotated[str, Parameter(help="Minute, hour, day, month, weekday: '30 2 * * *'")],
    timezone: Annotated[str, Parameter(help="Of the IANA data base, such as Europe/Berlin")] = "Etc/UTC",
    file: Annotated[Path, Parameter(help="Where deployments are written down")] = Path("prefect.yaml"),
) -> int:
    """Add a nightly deployment of the pipeline to prefect.yaml, which keeps its comments."""
    from flows.command import deploy_nightly_command

    return deploy_nightly_command.deploy_nightly(pipeline, cron, timezone, file)


@app.command(group=_BUILD)
def init(
    name: str,
    *samples: Path,
    source: Annotated[
        Literal["tfrecord", "csv", "parquet", "estimator"] | None,
        Parameter(
            name="--from", help="What the samples are, by default by their suffix; estimator adds a model.py"
        ),
    ] = None,
    label: Annotated[str | None, Parameter(help="Feature to predict; by default guessed, and told")] = None,
    folder: Annotated[Path | None, Parameter(help="Where to make it; by default configs/NAME")] = None,
    force: Annotated[bool, Parameter(help="Replace the files that init writes")] = False,
) -> int:
    """Make a pipeline of your own from SAMPLES of the data: TFRecord, CSV or Parquet files."""
    from flows.command import init_command

    return init_command.create(name, samples, source, label, folder, force=force)


_service = App(name="service", help="Units of systemd, so that a reboot leaves nothing down.", group=_NIGHTLY)
app.command(_service)


@_service.command(name="install")
def service_install(
    *pipelines: str,
    user: Annotated[bool, Parameter(negative="", help="As units of this user; needs no root")] = False,
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535), help="Of the Prefect UI")] = 4200,
    pool: Annotated[str, Parameter(help="Work pool of the worker")] = "slipway",
) -> int:
    """Write units: Prefect's server, a worker, recovery, and the external model server of each PIPELINE."""
    from flows.command import service_command

    return service_command.install([load_pipeline(pipeline) for pipeline in pipelines], user, port, pool)


@app.command(group=_NIGHTLY)
def ui(*, port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 4200) -> int:
    """Start the Prefect server with its UI on 127.0.0.1, with this checkout's runs. Ctrl-C ends it."""
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
