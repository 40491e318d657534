"""The command `slipway`. It imports Prefect only to run a flow, and TensorFlow never."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape

from configs.errors import ConfigError, SlipwayError
from configs.loading import load_pipeline, parse_override
from configs.references import require_callables
from flows.display import print_error

app = App(
    name="slipway",
    help="Nightly train, export and serve for TensorFlow Estimators.\n\n"
    "PIPELINE is a folder that holds pipeline.yaml, or a YAML file. Exit codes: 0 done, 1 failed, "
    "2 bad usage or configuration, 3 rejected by a gate (the version before still serves).",
    version=lambda: metadata.version("slipway"),
    version_flags=["--version"],
)
errors = Console(stderr=True, highlight=False)

Overrides = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", consume_multiple=1, help="key.path=value in place of the YAML's"),
]
VerdictFile = Annotated[Path | None, Parameter(name="--json", help="Also write the verdict to this file")]
RunToResume = Annotated[
    str | None, Parameter(help="With --resume: which run; by default the newest that did not come to its end")
]
Resume = Annotated[
    bool, Parameter(name="--resume", negative="", help="Go on with a run that failed, was killed or stopped")
]
Verbose = Annotated[bool, Parameter(name="--verbose", negative="", help="Show Prefect's own log too")]


@app.command
def run(
    pipeline: str,
    run_id: RunToResume = None,
    *,
    resume: Resume = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    verbose: Verbose = False,
) -> int:
    """Train, export, prove and deploy: the whole chain, once, now."""
    from flows import terminal

    which = _to_resume(run_id, resume)
    return terminal.run_flow("retrain_and_deploy", pipeline, _parsed(overrides), json_file, verbose, which)


@app.command
def retrain(
    pipeline: str,
    run_id: RunToResume = None,
    *,
    resume: Resume = False,
    overrides: Overrides = (),
    json_file: VerdictFile = None,
    verbose: Verbose = False,
) -> int:
    """Train, export and prove, but publish nothing: a candidate is left."""
    from flows import terminal

    which = _to_resume(run_id, resume)
    return terminal.run_flow("retrain", pipeline, _parsed(overrides), json_file, verbose, which)


@app.command
def check(pipeline: str, *, overrides: Overrides = ()) -> int:
    """Check the configuration, and nothing else: no TensorFlow, no network, nothing is written."""
    loaded = load_pipeline(pipeline, _parsed(overrides))
    require_callables(loaded)
    Console(highlight=False).print(
        f"{escape(str(loaded.file))}: pipeline [bold]{loaded.config.name}[/] is valid"
    )
    return 0


@app.command
def schema() -> int:
    """Print the JSON Schema of pipeline.yaml, for editors."""
    from configs.schema import PipelineConfig

    sys.stdout.write(json.dumps(PipelineConfig.model_json_schema(), indent=2) + "\n")
    return 0


@app.command
def status(pipeline: str) -> int:
    """Show what serves, since when, which versions there are, and the last verdict."""
    from flows import terminal

    return terminal.show_status(load_pipeline(pipeline))


@app.command
def stop(pipeline: str) -> int:
    """Drain and stop the server of the pipeline's model. Versions and runs stay."""
    from flows import terminal

    return terminal.stop_server(load_pipeline(pipeline))


@app.command
def ask(
    pipeline: str,
    *,
    examples: Annotated[Path | None, Parameter(help="TFRecord of tf.Examples to ask for")] = None,
    count: Annotated[int, Parameter(help="Ask for so many of them", validator=Number(gte=1))] = 3,
) -> int:
    """Ask the running server for predictions over gRPC, by default for held-out examples of the last run."""
    from flows import terminal

    return terminal.ask_server(load_pipeline(pipeline), examples, count)


@app.command
def inspect(
    path: Path,
    *,
    values: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative="", help="Variables whose values to show")
    ] = (),
) -> int:
    """Show what a checkpoint (variables, dtypes, shapes) or a SavedModel (tags, signatures, assets) holds."""
    from flows import terminal

    return terminal.inspect(path, values)


@app.command
def ui(*, port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 4200) -> int:
    """Start the Prefect server with its UI on 127.0.0.1, with this checkout's runs. Ctrl-C ends it."""
    from flows import prefect_server

    return prefect_server.serve(port)


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    return dict(parse_override(text) for text in overrides)


def _to_resume(run_id: str | None, resume: bool) -> str | None:
    """Return what `recorded_run` takes as `resume`."""
    if run_id is not None and not resume:
        raise ConfigError(f"{run_id!r}: a run is named only to be resumed", "add --resume, or leave it out")
    return (run_id or "newest") if resume else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors are printed as what, where and what to do."""
    try:
        result = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
        return int(result or 0)
    except CycloptsError:
        return ConfigError.exit_code
    except SlipwayError as error:
        print_error(errors, {"class": type(error).__name__, "message": error.message, "hint": error.hint})
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 1


def run_module(command: str) -> None:
    """Be `python -m flows.<flow> PIPELINE …`: the same as the command line."""
    raise SystemExit(main([command, *sys.argv[1:]]))
