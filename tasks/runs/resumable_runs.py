"""Runs that did not come to their end, and the configuration that they go on with: their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline, load_pipeline
from configs.schema.home import runs_folder
from tasks.core.artifacts import Run
from tasks.runs import run_folders, run_order

NEWEST = "newest"
ENDED = ("deployed", "rejected", "trained", "checked", "skipped")


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    pipeline: Pipeline
    """The run's own resolved configuration, with paths relative to the YAML that it came from."""
    run: Run
    differences: tuple[str, ...]
    """A line for each key that the YAML says otherwise by now. What was given by --set is among them."""

    def told(self) -> str:
        """Return which run is resumed, and with what, in one paragraph."""
        if not self.differences:
            return f"run {self.run.run_id} goes on"
        said = "; ".join(self.differences)
        return f"run {self.run.run_id} goes on with its own configuration; {self.pipeline.file} says: {said}"


def resumption(pipeline: Path | str, which: str, overrides: Mapping[str, Any] | None = None) -> Resumption:
    """Return the run of `pipeline` with the id `which`, or with NEWEST the newest that has not ended.

    Nothing is changed. Raises ConfigError where there is no such run, where it has ended (deployed,
    rejected or trained), where a newer one than the newest was deployed, or with `overrides`.
    """
    if overrides:
        raise ConfigError(
            f"a resumed run keeps its own configuration, found --set {', '.join(overrides)}",
            "leave --set out, or start a new run",
        )
    tonight = load_pipeline(pipeline)
    name = tonight.config.name
    run_id = _newest(name) if which == NEWEST else _required(name, which)
    own = load_pipeline(_config_file(name, run_id))
    resumed = Pipeline(own.config, tonight.file)
    told = _differences(_dump(own), _dump(tonight))
    return Resumption(resumed, run_folders.describe(resumed, run_id), tuple(told))


def unfinished_run_of(pipeline: Path | str, flow_run: str) -> str | None:
    """Return the newest unfinished run that the flow run with this id worked in; None if there is none.

    Raises ConfigError for a pipeline that cannot be read.
    """
    name = load_pipeline(pipeline).config.name
    for run_id in reversed(_run_ids(name)):
        if run_folders.flow_run_of(runs_folder(name) / run_id) == flow_run:
            return run_id if _outcome(name, run_id) not in ENDED else None
    return None


def _newest(name: str) -> str:
    for run_id in reversed(_run_ids(name)):
        outcome = _outcome(name, run_id)
        if outcome not in ENDED:
            return run_id
        if outcome == "deployed":
            message = f"no run of {name} is to be resumed: run {run_id} was deployed after all that failed"
            raise ConfigError(message, _named(name))
    raise ConfigError(f"no run of {name} is to be resumed", "slipway run starts one")


def _required(name: str, run_id: str) -> str:
    if run_id not in _run_ids(name):
        raise ConfigError(f"{name} has no run {run_id!r} in {runs_folder(name)}", _named(name))
    if (outcome := _outcome(name, run_id)) in ENDED:
        raise ConfigError(f"run {run_id} of {name} has ended: {outcome}", _named(name))
    return run_id


def _named(name: str) -> str:
    found = [run_id for run_id in _run_ids(name) if _outcome(name, run_id) not in ENDED]
    return f"runs that can be named to go on: {', '.join(found)}" if found else "slipway run starts a new one"


def _run_ids(name: str) -> list[str]:
    """Return the runs that got as far as their configuration, the oldest first."""
    return [folder.name for folder in run_order.oldest_first(name, "config.yaml")]


def _config_file(name: str, run_id: str) -> Path:
    return runs_folder(name) / run_id / "config.yaml"


def _outcome(name: str, run_id: str) -> str | None:
    """Return what a run ended in; None where it was killed, or is under way."""
    verdict = run_folders.verdict_of(name, run_id)
    return None if verdict is None else str(verdict["outcome"])


def _dump(pipeline: Pipeline) -> Any:
    return pipeline.config.model_dump(mode="json", by_alias=True)


def _differences(own: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(own, dict) and isinstance(now, dict):
        for name in {**own, **now}:
            yield from _differences(own.get(name), now.get(name), f"{key}.{name}".strip("."))
    elif own != now:
        yield f"{key} {now} (the run: {own})"
