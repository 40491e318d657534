"""`report.html` of a run: one page for whoever is on call, self-contained, readable on a phone.

It is rendered from the run's folder alone, so that a run that was killed gets one from the next run, from
`slipway recover` or from `slipway report`.
"""

from __future__ import annotations

import base64
import json
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from pydantic import TypeAdapter, ValidationError

from configs.loading.pipelines import Pipeline, load_pipeline
from configs.schema.home import runs_folder
from tasks.core import durable_files, masking
from tasks.core.artifacts import Baseline, Check, Evaluation, Run, SliceMetrics, StageReport, Verdict
from tasks.core.errors import SlipwayError
from tasks.exports import extra_assets
from tasks.reports import next_commands
from tasks.reports.markdown import shown
from tasks.runs import run_folders, secret_values, tracebacks
from tasks.servers import live_service
from tasks.servers.live_service import LiveService
from tasks.state import deploy_journal

NAME = "report.html"
GOOD = ("deployed", "trained", "checked", "skipped", "restored")
_log = logging.getLogger(__name__)
_LOG_LINES = 20
_LONGEST_LINE = 400
_COUNTS = ("global_step",)
_STEP = re.compile(r'model_checkpoint_path: ".*-(\d+)"')
_PACKAGES = ("slipway", "tensorflow", "tensorflow-estimator", "prefect", "python")


@dataclass(frozen=True)
class Summary:
    """What the page says first."""

    outcome: str
    """As in `verdict.json`, or `killed`, or `under way`."""
    sentence: str
    cause: str
    """What ended the run; "" if it came to its end."""
    hint: str
    serving: str
    next: tuple[next_commands.NextCommand, ...]


@dataclass(frozen=True)
class Metric:
    """A metric tonight, and of the version that was served."""

    name: str
    tonight: str
    served: str
    difference: str


def file(run: Run) -> Path:
    """Return where the run's page is written."""
    return run.folder / NAME


def write(pipeline: Pipeline, run: Run) -> Path | None:
    """Write the run's page and return its file. A run never fails for it: None if it cannot be written."""
    try:
        page = render(pipeline, run, live_service.of(run.pipeline))
        # Log lines and slices may quote examples.
        durable_files.write(file(run), page.encode(), synced=False, mode=0o600)
    except Exception as error:
        _log.warning("%s is not written: %s: %s", file(run), type(error).__name__, error)
        return None
    return file(run)


def write_for_killed(pipeline: Pipeline, besides: str = "") -> list[Path]:
    """Write the page of each run that left no verdict, except of the run with the id `besides`.

    Only for the holder of the pipeline's lock: to anybody else, a run under way looks the same.
    """
    name, written = pipeline.config.name, []
    for config in sorted(runs_folder(name).glob("*/config.yaml")):
        run = run_folders.describe(pipeline, config.parent.name)
        if run.run_id == besides or run_folders.verdict_file(run).is_file():
            continue
        if not file(run).is_file() or file(run).stat().st_mtime < _last_sign(run.folder).timestamp():
            written += [page] if (page := write(pipeline, run)) is not None else []
    return written


def summary(pipeline: Pipeline, run: Run, live: LiveService) -> Summary:
    """Return outcome, cause, what serves and what to type next."""
    return _summary(pipeline, run, _verdict(run), live)


def render(pipeline: Pipeline, run: Run, live: LiveService) -> str:
    """Return the page. `pipeline` names the file that the reader types; the run's own YAML is on the page."""
    verdict = _verdict(run)
    head = _summary(pipeline, run, verdict, live)
    stages = verdict.stages if verdict is not None else tuple(_finished_stages(run.folder))
    evaluated = _evaluated(run.folder, verdict)
    failed = _failed_stage(run.folder, verdict)
    checks = verdict.checks if verdict is not None else _kept_checks(run.folder)
    secrets = _secrets(run.folder)
    page = _template().render(
        run=run,
        head=head,
        good=head.outcome in GOOD,
        written=_clock(datetime.now(timezone.utc)),
        began=_clock(_began(run.folder)),
        ended=_clock(_last_sign(run.folder)),
        stages=[asdict(stage) | {"clock": _time_of(stage.started)} for stage in stages],
        longest=max((stage.seconds for stage in stages), default=0) or 1,
        total=sum(stage.seconds for stage in stages),
        missed=[check for check in checks if not check.passed],
        gates=[check for check in checks if not _is_drift(check)],
        drift=[check for check in checks if _is_drift(check)],
        metrics=list(_metrics(evaluated.metrics, evaluated.baseline)),
        baseline=evaluated.baseline,
        slices=_by_feature(evaluated.slices),
        columns=[name for name in evaluated.metrics if name not in _COUNTS][:6],
        pictures=list(_pictures(run.folder, verdict)),
        failed=failed,
        log="" if head.outcome == "rejected" else masking.masked(_log_lines(run.folder, failed), secrets),
        provenance=list(_provenance(pipeline, run, verdict)),
        config=_text(run.folder / "config.yaml"),
    )
    return str(masking.masked(page, secrets))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    return environment.from_string(Path(__file__).with_name("run_report.html.jinja").read_text())


def _verdict(run: Run) -> Verdict | None:
    try:
        return TypeAdapter(Verdict).validate_json(run_folders.verdict_file(run).read_bytes())
    except (OSError, ValidationError):
        return None


def _summary(pipeline: Pipeline, run: Run, verdict: Verdict | None, live: LiveService) -> Summary:
    error = verdict.error if verdict is not None and verdict.error else {}
    outcome = verdict.outcome if verdict is not None else "killed"
    stage = _failed_stage(run.folder, verdict)
    if verdict is None and f"run {run.run_id}," in (run_folders.run_under_way(run.pipeline) or ""):
        return Summary("under way", f"Under way: {stage or 'it begins'}.", "", "", _serving(live), ())
    cause, hint = str(error.get("message", "")), str(error.get("hint", ""))
    if verdict is None:
        cause = (
            f"Its process ended without a verdict. It last wrote a file at {_clock(_last_sign(run.folder))}."
        )
        hint = _kept(run.folder)
    rejected_by = stage if outcome == "rejected" else ""
    previous = verdict.previous_version if verdict is not None else None
    following = next_commands.after(
        outcome, str(error.get("class", "")), rejected_by, previous, run.run_id, pipeline.file
    )
    sentence = _sentence(outcome, stage, verdict, run)
    return Summary(outcome, sentence, cause, hint, _serving(live), tuple(following))


def _sentence(outcome: str, stage: str, verdict: Verdict | None, run: Run) -> str:
    where = f" in {stage}" if stage else ""
    version = verdict.version if verdict is not None else None
    published = f"Version {version} was published" if version is not None else "Nothing was published"
    if outcome == "killed" and (journal := deploy_journal.conclusion(run.pipeline, run.run_id)) is not None:
        published = f"Its deploy was {'completed' if journal == 'committed' else 'rolled back'}"
    elif outcome == "killed" and _deploys(run):
        published = "Its deploy is unfinished: `slipway recover` completes it or rolls it back"
    return {
        "deployed": f"Deployed: version {version} answers.",
        "trained": "Trained: a validated candidate was left; nothing was published.",
        "checked": "Checked: a dry run; nothing was trained or changed.",
        "skipped": "Skipped: examples, configuration and code are those of the live version.",
        "restored": f"Rolled back by hand: version {version} answers again.",
        "rejected": f"Rejected{where}. Nothing was published.",
        "rolled_back": f"Version {version} was deployed, failed{where}, and was rolled back.",
        "failed": f"Failed{where}. {published}.",
        "cancelled": f"Stopped{where} by a person or a signal. {published}.",
        "killed": f"Killed{where}. {published}.",
    }.get(outcome, outcome)


def _deploys(run: Run) -> bool:
    try:
        return deploy_journal.of_run(run) is not None
    except SlipwayError:
        return True  # it is damaged, and may be this run's


def _serving(live: LiveService) -> str:
    if live.version is None:
        return f"Nothing serves: {live.server} does not answer." if live.server else "Nothing serves."
    since = f" since {_clock(live.since)}" if live.since else ""
    return f"Version {live.version} serves at {live.grpc}{since}."


def _kept(folder: Path) -> str:
    """Return what a resumed run begins with."""
    found = _STEP.search(_text(folder / "checkpoints" / "checkpoint"))
    if (folder / "stages" / "train.json").is_file() or found is None:
        done = ", ".join(stage.name for stage in _finished_stages(folder))
        return f"Finished and kept: {done or 'nothing'}."
    return f"Its last checkpoint is of step {int(found.group(1)):,}."


def _began(folder: Path) -> datetime:
    config = folder / "config.yaml"
    return _changed(config if config.is_file() else folder)


def _last_sign(folder: Path) -> datetime:
    """Return when the run last wrote a file."""
    verdict = folder / "verdict.json"
    if verdict.is_file():
        return _changed(verdict)
    parts = [folder / name for name in ("logs", "stages", "checkpoints", "examples", "ingested")]
    files = [each for part in parts if part.is_dir() for each in part.iterdir()]
    return max(map(_changed, [folder / "config.yaml", *files]))


def _changed(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except OSError:
        return datetime.fromtimestamp(0, timezone.utc)


def _clock(instant: datetime) -> str:
    return f"{instant.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _time_of(iso: str) -> str:
    return f"{datetime.fromisoformat(iso).astimezone():%H:%M:%S}" if iso else ""


def _finished_stages(folder: Path) -> Iterator[StageReport]:
    """Yield what a run without a verdict kept of its stages, timed by their files."""
    before = _began(folder)
    for kept in sorted((folder / "stages").glob("*.json"), key=_changed):
        ended = _changed(kept)
        seconds = max(0.0, (ended - before).total_seconds())
        started = before.isoformat(timespec="seconds")
        yield StageReport(kept.stem, seconds, "passed", "kept for --resume", started)
        before = ended


def _failed_stage(folder: Path, verdict: Verdict | None) -> str:
    """Return the stage that the run ended in, "" if it ended after its last, or none is known."""
    if verdict is not None:
        ended = [stage.name for stage in verdict.stages if stage.outcome != "passed"]
        return ended[-1] if ended else ""
    finished = max(map(_changed, (folder / "stages").glob("*.json")), default=_began(folder))
    logs = sorted((folder / "logs").glob("*.log"), key=_changed)
    open_logs = [log for log in logs if not (folder / "stages" / f"{log.stem}.json").is_file()]
    return open_logs[-1].stem if open_logs and _changed(open_logs[-1]) >= finished else ""


def _kept_checks(folder: Path) -> tuple[Check, ...]:
    """Return the checks that a run without a verdict kept."""
    found: list[Check] = []
    for kept in sorted((folder / "stages").glob("*.json"), key=_changed):
        try:
            found += TypeAdapter(list[Check]).validate_python(json.loads(kept.read_text()).get("checks", []))
        except (OSError, ValueError):
            continue
    return tuple(found)


def _evaluated(folder: Path, verdict: Verdict | None) -> Evaluation:
    if verdict is not None:
        return Evaluation(verdict.metrics, 0, slices=verdict.slices, baseline=verdict.baseline)
    try:
        kept = (folder / "stages" / "evaluate.json").read_bytes()
        return TypeAdapter(Evaluation).validate_json(kept)
    except (OSError, ValidationError):
        return Evaluation({}, 0)


def _is_drift(check: Check) -> bool:
    return check.name.startswith("data.") and check.name.endswith("drift")


def _metrics(metrics: Mapping[str, float], baseline: Baseline | None) -> Iterator[Metric]:
    before = baseline.metrics if baseline is not None else {}
    for name, value in metrics.items():
        if name not in _COUNTS:
            then = before.get(name)
            difference = "" if then is None else f"{value - then:+.4g}"
            yield Metric(name, shown(value), shown(then), difference)


def _by_feature(parts: Sequence[SliceMetrics]) -> dict[str, list[SliceMetrics]]:
    return {
        feature: [part for part in parts if part.feature == feature]
        for feature in dict.fromkeys(part.feature for part in parts)
    }


def _pictures(folder: Path, verdict: Verdict | None) -> Iterator[tuple[str, str]]:
    """Yield title and data: URI of each picture in the run's folder."""
    titles = {each.file.name: each.title for each in verdict.pictures} if verdict is not None else {}
    drawn = {each.name: each for each in sorted((folder / "pictures").glob("*.svg"))}
    for name in (*filter(drawn.__contains__, titles), *(name for name in drawn if name not in titles)):
        encoded = base64.b64encode(drawn[name].read_bytes()).decode()
        yield titles.get(name, drawn[name].stem), f"data:image/svg+xml;base64,{encoded}"


def _log_lines(folder: Path, stage: str) -> str:
    """Return the last lines that the failed stage printed, or of the traceback of a defect."""
    traceback = folder / "logs" / tracebacks.NAME
    file = traceback if traceback.is_file() else folder / "logs" / f"{stage}.log"
    lines = [line[:_LONGEST_LINE] for line in _text(file).splitlines()[-_LOG_LINES:]] if stage else []
    return "\n".join(lines)


def _provenance(pipeline: Pipeline, run: Run, verdict: Verdict | None) -> Iterator[tuple[str, str]]:
    yield "pipeline", str(pipeline.file)
    yield "run", run.run_id
    yield "folder", str(run.folder)
    yield "machine", platform.node()
    if flow_run := run_folders.flow_run_of(run.folder):
        yield "Prefect flow run", flow_run
    made_of = _manifest(run, verdict)
    examples = _json(run.folder / "stages" / "ingest.json")
    if digest := examples.get("digest"):
        counts = {split: examples[split]["examples"] for split in ("train", "eval", "sample")}
        parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        yield "examples", f"{parts}; SHA-256 {digest}"
    for label, key in (("configuration", "config_sha256"), ("code beside the YAML", "code_sha256")):
        if made_of.get(key):
            yield label, f"SHA-256 {made_of[key]}"
    if commit := made_of.get("git_commit"):
        yield "commit", f"{commit}{', with changes' if made_of.get('git_changes') else ''}"
    for key in ("seed", "checkpoint_step", "parent_version"):
        if made_of.get(key) is not None:
            yield key.replace("_", " "), str(made_of[key])
    packages = made_of.get("packages") or {}
    if named := [f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)]:
        yield "packages", ", ".join(named)


def _manifest(run: Run, verdict: Verdict | None) -> dict[str, Any]:
    """Return the manifest of the run's export, wherever it is by now; {} if there is none."""
    number = verdict.version if verdict is not None and verdict.outcome != "restored" else None
    folders = [Path(str(_json(run.folder / "stages" / "export.json").get("path", "")))]
    if number is not None:
        folders += [run.model_base_path / f"{number}", run.model_base_path / f"{number}.withdrawn"]
    manifests = (extra_assets.read_manifest(folder) for folder in folders if folder.is_absolute())
    return next((found for found in manifests if found), {})


def _secrets(folder: Path) -> list[str]:
    """Return the values that no page may show: a killed run could not mask its logs."""
    try:
        secrets = load_pipeline(folder / "config.yaml").config.data.secrets
        return list(secret_values.resolved(secrets).values())
    except (SlipwayError, OSError):
        return []


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
