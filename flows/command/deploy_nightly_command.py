"""`slipway deploy-nightly`: one more entry in prefect.yaml, which keeps its comments and all else."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.mergevalue import MergeValue
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from configs.loading.deployments import PrefectFile, load_deployments, timezone_problem
from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline, load_pipeline
from tasks.core import durable_files

console = Console(highlight=False)

SHARED = "nightly"
"""The anchor under `definitions` that an entry takes all from which is not its own."""


def deploy_nightly(pipeline: str, cron: str, timezone: str, file: Path) -> int:
    """Add the deployment `nightly-<pipeline>` to `file` and say what to do next. Raises ConfigError."""
    loaded, known = load_pipeline(pipeline), load_deployments(file)
    name = deployment_name(loaded.config.name)
    _refuse_duplicate(name, known, file)
    _refuse_bad_times(cron, timezone)
    entry = _entry(name, loaded, cron, timezone, file)
    _add(entry, file)
    console.print(f"{file}: added {name}, run at {cron!r} in {timezone}", markup=False, soft_wrap=True)
    console.print(f"  tell Prefect:  prefect --no-prompt deploy --name {name}", soft_wrap=True)
    console.print(f"  run it now:    slipway trigger {pipeline} --watch", markup=False, soft_wrap=True)
    return 0


def deployment_name(pipeline_name: str) -> str:
    """Return what the deployment of a pipeline is called."""
    return f"nightly-{pipeline_name}"


def _refuse_duplicate(name: str, known: PrefectFile, file: Path) -> None:
    if name in [deployment.name for deployment in known.deployments]:
        raise ConfigError(f"{file}: has a deployment {name} already", "edit that one, or remove it first")
    if SHARED not in known.definitions:
        raise ConfigError(
            f"{file}: lacks 'definitions.{SHARED}', from which entries take what they share",
            "take it from Slipway's own prefect.yaml",
        )


def _refuse_bad_times(cron: str, timezone: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    if (problem := timezone_problem(timezone)) is not None:
        raise ConfigError(f"--timezone {timezone!r}: {problem}")
    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        hint = "minute hour day month weekday, such as '30 2 * * *' or '0 4 * * mon-fri'"
        raise ConfigError(f"--cron {cron!r}: {problem}", hint) from None


def _entry(name: str, loaded: Pipeline, cron: str, timezone: str, file: Path) -> CommentedMap:
    told = f"Train tonight's {loaded.config.name}, prove it, and serve it if every gate passes."
    schedule = CommentedMap(
        cron=DoubleQuotedScalarString(cron), timezone=timezone, slug="nightly", active=True
    )
    schedule.fa.set_flow_style()
    parameters = CommentedMap(pipeline=_as_deployed(loaded, file))
    parameters.fa.set_flow_style()
    return CommentedMap(name=name, description=told, parameters=parameters, schedules=[schedule])


def _as_deployed(loaded: Pipeline, file: Path) -> str:
    """Return the pipeline as a worker finds it: relative to prefect.yaml where it lies below it."""
    path = loaded.folder if loaded.file.name == "pipeline.yaml" else loaded.file
    folder = Path(os.path.abspath(file)).parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _add(entry: CommentedMap, file: Path) -> None:
    """Write `file` with the entry, or raise ConfigError and leave it as it is."""
    text = file.read_text(encoding="utf-8")
    written = _with(entry, text)
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_text(written, encoding="utf-8")
        load_deployments(draft)
    except ConfigError as error:
        raise ConfigError(error.message.replace(str(draft), f"{file} with the new entry")) from None
    finally:
        draft.unlink(missing_ok=True)
    durable_files.write(file, written.encode())


def _with(entry: CommentedMap, text: str) -> str:
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load(f"{text.rstrip()}\n\n")  # the empty line stays before the new entry
    shared = MergeValue()
    shared.merge_pos = 1  # after the name, as in the entries above
    shared.append(document["definitions"][SHARED])
    entry.add_yaml_merge(shared)
    document["deployments"].append(entry)
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
