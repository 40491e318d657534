"""What a run would do, stage by stage, found out without doing any of it: no TensorFlow, no Prefect.

It looks at the configuration, at what is on disk, and asks the server that runs which version answers.
Nothing is written. What only the run can know (whether an engine answers, what tonight's data hold) is not
guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from configs.schema.data_gates import DataGates
from configs.schema.pipeline import DataConfig, PipelineConfig, Threshold
from configs.schema.training import Change
from tasks.core.artifacts import Run
from tasks.deploys.interrupted_deploys import found
from tasks.runs import run_folders
from tasks.runs.resumable_runs import NEWEST, resumption
from tasks.servers import model_servers, served_versions
from tasks.state import model_versions


@dataclass(frozen=True)
class PlannedStage:
    """A stage, and what it would do."""

    name: str
    does: str


@dataclass(frozen=True)
class PlannedGate:
    """A gate: the stage that looks, the rule, and its limit where that is one value."""

    stage: str
    rule: str
    limit: Any


@dataclass(frozen=True)
class Resumable:
    """A run that did not come to its end: `slipway run --resume` goes on with it."""

    run_id: str
    finished: tuple[str, ...]
    """Stages that would not be repeated."""
    step: int | None
    """Step of its newest checkpoint."""


@dataclass(frozen=True)
class Plan:
    """What `slipway run` would do now."""

    pipeline: str
    next_version: str
    baseline: int | None
    """The version that answers, or would: what metrics and data are compared with."""
    rollback_to: int | None
    """The version that serves again should the new one disappoint, or the one before it by hand."""
    under_way: str | None
    """The run that holds the pipeline's lock."""
    resumable: Resumable | None
    stages: tuple[PlannedStage, ...]
    gates: tuple[PlannedGate, ...]


def plan(pipeline: Pipeline) -> Plan:
    """Return what a run of the pipeline would do now; nothing is changed."""
    config = pipeline.config
    run = run_folders.describe(pipeline, "planned")
    served = served_versions.served(run)
    baseline = served[0] if served else None
    upcoming = _next_version(config, run)
    return Plan(
        pipeline=config.name, next_version=upcoming, baseline=baseline, rollback_to=baseline,
        under_way=run_folders.run_under_way(config.name), resumable=_resumable(pipeline),
        stages=tuple(PlannedStage(*each) for each in _stages(config, run, upcoming, baseline)),
        gates=tuple(_gates(config, run)),
    )  # fmt: skip


def _next_version(config: PipelineConfig, run: Run) -> str:
    least = model_versions.highest_ever(run.model_base_path) + 1
    if config.export.version_names == "sequential":
        return f"{least:04d}"
    return f"seconds since 1970 when it is published, {least} at least"


def _resumable(pipeline: Pipeline) -> Resumable | None:
    try:
        run = resumption(pipeline.file, NEWEST).run
    except ConfigError:
        return None  # there is none
    if (holder := run_folders.run_under_way(run.pipeline)) and run.run_id in holder:
        return None
    kept = sorted((run.folder / "stages").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return Resumable(run.run_id, tuple(file.stem for file in kept), _step(run.model_dir))


def _step(model_dir: Path) -> int | None:
    steps = [file.name.removesuffix(".index").rpartition("-")[2] for file in model_dir.glob("*-*.index")]
    return max((int(step) for step in steps if step.isdigit()), default=None)


def _stages(
    config: PipelineConfig, run: Run, upcoming: str, baseline: int | None
) -> Iterator[tuple[str, str]]:
    yield "recover", found(run).summary().replace("left as it is", "it is finished or undone first")
    yield "preflight", f"checks folder, ports and {_target(config)}; builds the model's graphs"
    yield "ingest", f"{_source(config.data, run)}; split by hash, {config.data.split.eval:g} held out"
    same = "; ends the run if nothing is new" if config.data.gates.unchanged == "skip" else ""
    against = f" and version {baseline}'s" if baseline is not None and config.data.gates.drift else ""
    yield "check-data", f"against the limits{against}{same}"
    yield "train", f"{_model(config)} from step 0 to {config.training.max_steps:,}{_begin(config)}"
    compared = config.evaluation.baseline == "served" and baseline is not None
    beside = f", beside version {baseline}" if compared else ""
    yield "evaluate", f"on the eval split{beside}{_sliced(config)}"
    yield "export", f"checkpoint {config.export.checkpoint}, receivers {', '.join(config.export.receivers)}"
    sizes = ", ".join(map(str, config.answers.batch_sizes))
    yield "validate", f"every signature on {config.answers.samples} examples, in batches of {sizes}"
    yield "canary", "in a server of its own" if config.deployment.canary else "left out"
    yield "publish", f"version {upcoming}, in {run.model_base_path}"
    yield "deploy", _deploy(config)
    asked = f"{config.answers.samples} examples and {config.smoke_test.latency_requests} timed requests"
    undone = "stops the server" if baseline is None else f"brings back version {baseline}"
    yield "smoke-test", f"{asked} over gRPC; a failure withdraws the version and {undone}"
    yield "retire", _retire(config, run, baseline)


def _target(config: PipelineConfig) -> str:
    kinds = {
        "auto": "Docker (falls back to a local process)",
        "docker": "Docker",
        "process": "the server's program",
    }
    return kinds.get(config.deployment.target, f"the server at {config.deployment.host}")


def _source(data: DataConfig, run: Run) -> str:
    if data.ingest is not None:
        return f"calls {data.ingest}"
    matched = {file for pattern in data.files or () for file in _matching(run.source, pattern)}
    size = sum(file.stat().st_size for file in matched)
    return f"{len(matched)} file(s), {size / 1e6:,.1f} MB, match {', '.join(data.files or ())}"


def _matching(source: Path, pattern: str) -> Iterator[Path]:
    path = Path(pattern).expanduser()
    base, relative = (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (
        source, pattern
    )  # fmt: skip
    return (file for file in base.glob(relative) if file.is_file())


def _model(config: PipelineConfig) -> str:
    model = config.model
    return str(model.estimator or model.factory or model.graph or model.saved_model)


def _begin(config: PipelineConfig) -> str:
    warm = config.training.warm_start
    return f", begun with values of {warm.from_}" if warm is not None else ""


def _sliced(config: PipelineConfig) -> str:
    return f", by {', '.join(config.evaluation.slices)}" if config.evaluation.slices else ""


def _deploy(config: PipelineConfig) -> str:
    record = model_servers.recorded(config.name)
    if record is not None and record.handle and model_servers.is_alive(record):
        return f"swapped into {record.describe()} at {record.grpc}, or that is replaced if its flags changed"
    return f"a server is started ({config.deployment.target})"


def _retire(config: PipelineConfig, run: Run, baseline: int | None) -> str:
    present = list(model_versions.versions(run.model_base_path))
    newest = present[-(config.export.keep_versions - 1) :]
    leaving = [number for number in present if number not in newest and number != baseline]
    return f"removes {', '.join(map(str, leaving))}" if leaving else "removes nothing"


def _gates(config: PipelineConfig, run: Run) -> Iterator[PlannedGate]:
    yield from (PlannedGate("check-data", *each) for each in _data(config.data.gates))
    evaluation = config.evaluation
    told = "" if evaluation.gate == "enforced" else " (reported only)"
    for rule, limit in (
        *_values(evaluation.thresholds), *_changes(evaluation.changes),
        *_values(evaluation.by_slice.thresholds, " in every slice"),
        *_changes(evaluation.by_slice.changes, " in every slice"),
    ):  # fmt: skip
        yield PlannedGate("evaluate", f"{rule}{told}", limit)
    if evaluation.changes or evaluation.by_slice.changes:
        yield PlannedGate("evaluate", "without a served version", evaluation.no_baseline)
    offline = "estimator.predict" if config.model.saved_model is None else "the SavedModel itself"
    yield PlannedGate("validate", f"equals {offline}", _tolerance(config.answers.tolerance))
    if config.deployment.canary:
        yield from (PlannedGate("canary", *each) for each in _canary(config, run))
    if (latency := config.deployment.latency_of_canary) is not None:
        for name, ratio in (("p50", latency.p50_ratio), ("p99", latency.p99_ratio)):
            if ratio is not None:
                yield PlannedGate("canary", f"{name} / that of the served version <=", ratio)
    yield PlannedGate("smoke-test", "equals the offline answers", _tolerance(config.answers.tolerance))
    if config.smoke_test.latency_p99_limit_ms is not None:
        yield PlannedGate("smoke-test", "p99 in ms <=", config.smoke_test.latency_p99_limit_ms)
    if config.smoke_test.watch_seconds:
        rule = "equals the offline answers for so many seconds"
        yield PlannedGate("smoke-test", rule, config.smoke_test.watch_seconds)


def _canary(config: PipelineConfig, run: Run) -> Iterator[tuple[str, Any]]:
    tolerance = _tolerance(config.answers.tolerance)
    yield "equals the offline answers", tolerance
    recorded = config.golden.recorded(run.source)
    if recorded is None:
        yield f"golden requests: none are recorded in {config.golden.path(run.source)}", None
    else:
        yield f"golden requests of {recorded} are answered as by the export", tolerance
    if config.smoke_test.latency_p99_limit_ms is not None:
        yield "p99 in ms <=", config.smoke_test.latency_p99_limit_ms


def _tolerance(tolerance: Any) -> str:
    if isinstance(tolerance, str):
        return tolerance
    return ", ".join(f"{name} {value}" for name, value in tolerance.model_dump().items())


def _data(gates: DataGates) -> Iterator[tuple[str, Any]]:
    told = "" if gates.missed == "reject" else " (reported only)"
    if gates.min_examples is not None:
        yield f"examples >={told}", gates.min_examples
    for name, limits in gates.limits.items():
        for key, value in limits.model_dump(exclude_defaults=True).items():
            yield f"{name}: {key}{told}", value
    if gates.drift is not None:
        if gates.drift.limit is not None:
            yield f"drift of every feature, {gates.drift.measure} <={told}", gates.drift.limit
        for name, limit in gates.drift.features.items():
            yield f"drift of {name}, {gates.drift.measure} <={told}", limit


def _values(thresholds: dict[str, Threshold], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, limits in thresholds.items():
        if limits.min is not None:
            yield f"{name}{where} >=", limits.min
        if limits.max is not None:
            yield f"{name}{where} <=", limits.max


def _changes(changes: dict[str, Change], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, change in changes.items():
        if change.max_drop is not None:
            yield f"{name}{where}: drop from the served version <=", change.max_drop
        if change.max_rise is not None:
            yield f"{name}{where}: rise from the served version <=", change.max_rise
