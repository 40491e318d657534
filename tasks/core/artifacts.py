"""The nouns that stages pass on: frozen dataclasses, each saying in a sentence what it proves.

They travel between processes and into `verdict.json` as JSON, so their fields are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Run:
    """One run of a pipeline, and the folders it works in."""

    pipeline: str
    """Name of the pipeline and of the served model."""
    run_id: str
    folder: Path
    """`runs/<pipeline>/<run id>/`: all that this run leaves besides the published version."""
    source: Path
    """Folder that holds the YAML: relative paths in it are relative to this."""
    model_base_path: Path
    """Folder of versions that servers watch."""
    ops: tuple[str, ...] = ()
    """`server.ops`: libraries of custom ops, by path or package."""

    @property
    def model_dir(self) -> Path:
        """The Estimator's model_dir: checkpoints and event files."""
        return self.folder / "checkpoints"

    @property
    def first_predictions(self) -> Path:
        """What `estimator.predict` answered when the model was evaluated, to be compared at export."""
        return self.folder / "first-predictions"

    def log(self, stage: str) -> Path:
        """Return the file that holds what a stage's process prints."""
        return self.folder / "logs" / f"{stage}.log"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: a rule, what was observed, and whether it passed."""

    name: str
    rule: str
    observed: float | int | str | None
    limit: float | int | str | None
    passed: bool
    baseline: float | int | str | None = None
    """The same of the version that is served, where the gate looked at it."""


@dataclass(frozen=True)
class OpLibrary:
    """A shared object with custom ops."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class ContainerLimits:
    """What a container may take of the machine."""

    memory_mb: int
    cpus: float
    pids: int


@dataclass(frozen=True)
class ServingTarget:
    """Where this run will serve, decided and checked before anything is changed."""

    kind: str
    """`docker`, `process` or `external`."""
    reason: str
    """Why it is this one, in a sentence."""
    program: str
    """What will run: an image tag, or a program's path."""
    identity: str
    """Hash of program, flags and base path: a running server of the same identity is reused."""
    grpc_port: int
    rest_port: int
    live_version: int | None
    """Version that the running server answers with; None where no server runs."""
    flags: tuple[str, ...] = ()
    """Those of `server.flags`, as tensorflow_model_server takes them."""
    network: str = "published"
    """`server.network`: how a container is reached."""
    relay: str = ""
    """Tag of the image of the relay before a container, "" without one."""
    limits: ContainerLimits | None = None
    """What a container may take of the machine."""
    address: str = "127.0.0.1"
    """What a container's ports are published on."""
    tls: str = ""
    """File of the server's key and certificate; "" where it speaks without TLS."""
    host: str = "127.0.0.1"
    """Where it listens, or for `external` where it can be reached."""
    published_only: bool = False
    """Whether the server ignores versions that no run published."""
    ops: tuple[str, ...] = ()
    """Op libraries that the server loads: absolute paths."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        serving = f"version {self.live_version} serves now" if self.live_version else "nothing serves yet"
        if self.kind == "external":
            return f"{self.reason}; {serving}"
        return f"{self.reason}; ports {self.grpc_port} and {self.rest_port} can be had; {serving}"


@dataclass(frozen=True)
class Split:
    """TFRecord files of one split, and how many examples they hold."""

    files: tuple[Path, ...]
    examples: int


@dataclass(frozen=True)
class Examples:
    """Tonight's tf.Examples, parsed once with the feature spec and split by hash."""

    train: Split
    eval: Split
    sample: Split
    digest: str
    """SHA-256 of the serialized examples, whatever their order: the same night has the same digest."""
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Number of examples in all splits."""
        return self.train.examples + self.eval.examples + self.sample.examples

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        return (
            f"{self.total:,} tf.Examples match the feature spec: "
            f"{self.train.examples:,} train, {self.eval.examples:,} eval, {self.sample.examples:,} sample"
        )


@dataclass(frozen=True)
class DataReview:
    """Tonight's examples, held against `data.gates` and what the served version was made of."""

    checks: tuple[Check, ...]
    needless: str = ""
    """Why nothing is to be trained tonight; "" where it is."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        if self.needless:
            return self.needless
        missed = sum(not check.passed for check in self.checks)
        if missed:
            return f"{missed} of {len(self.checks)} data gate(s) missed, and passed over"
        return f"{len(self.checks)} data gate(s) passed" if self.checks else "no data gates set"


@dataclass(frozen=True)
class Checkpoint:
    """What training left: a `tf.train.Saver` checkpoint in its model_dir."""

    prefix: Path
    """Path without suffix, as `tf.train.latest_checkpoint` gives it."""
    global_step: int
    loss: float | None
    """Training loss of the last step that was reported; None where no step was left to do."""
    steps_per_second: float | None
    """Over this process's own steps, hooks and checkpoints included."""
    resumed_from: int = 0
    """Global step that this process started at; 0 for a fresh model."""
    notes: tuple[str, ...] = ()
    """What else is to be known of it: which one it is, whose values it began with, what was damaged."""
    given: Path | None = None
    """The SavedModel that it is of, if it was trained elsewhere."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        if self.given is not None:
            return f"nothing to train: {self.given} was trained elsewhere"
        pace = f", {self.steps_per_second:,.0f} steps/s" if self.steps_per_second else ""
        resumed = f", resumed from step {self.resumed_from:,}" if self.resumed_from else ""
        loss = f", loss {self.loss:.4g}" if self.loss is not None else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"checkpoint at step {self.global_step:,}{loss}{pace}{resumed}{notes}"


@dataclass(frozen=True)
class Picture:
    """An SVG file for people, in the run's folder."""

    title: str
    file: Path


@dataclass(frozen=True)
class SliceMetrics:
    """Metrics of the eval examples in which a feature, or a label, has one value."""

    feature: str
    value: str
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Baseline:
    """The version that is served now, measured on tonight's eval split."""

    version: int
    metrics: dict[str, float]
    """Empty where it could not be measured."""
    note: str
    """How it was measured, or why it could not be."""
    slices: tuple[SliceMetrics, ...] = ()
    """The same for parts of the split, where a gate looks at them."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint on the eval split, and the gate's checks of them."""

    metrics: dict[str, float]
    examples: int
    checks: tuple[Check, ...] = ()
    slices: tuple[SliceMetrics, ...] = ()
    """The same metrics for parts of the split, by `evaluation.slices`."""
    baseline: Baseline | None = None
    """What is served now, on the same examples; None where nothing is, or it was not asked for."""
    pictures: tuple[Picture, ...] = ()

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        gated = [name for name in self.metrics if any(check.name == name for check in self.checks)]
        shown = gated or [name for name in self.metrics if name not in ("global_step", "loss")]
        values = ", ".join(f"{name} {self.metrics[name]:.4g}" for name in shown[:4])
        missed = sum(not check.passed for check in self.checks)
        gate = f" within {len(self.checks)} threshold(s)" if self.checks else " (no thresholds set)"
        gate = f"; {missed} threshold(s) missed, and passed over" if missed else gate
        return f"{values} on {self.examples:,} held-out examples{gate}"


@dataclass(frozen=True)
class Signature:
    """A SignatureDef, as the SavedModel states it."""

    name: str
    method: str
    """`predict`, `classify` or `regress`, the last part of method_name."""
    inputs: dict[str, str]
    """Alias to `dtype[shape]`."""
    outputs: dict[str, str]
    """Alias to `dtype[shape]`."""
    receiver: Literal["parsing", "raw"] = "parsing"
    """What it takes in: serialized tf.Examples, or tensors of the features."""
    row_independent: bool = True
    """Whether answers about an example are the same whatever else is in the request."""

    def is_batched(self, alias: str) -> bool:
        """Return whether an output has a row for each example: its first dimension is not fixed."""
        shape = self.outputs.get(alias, "").partition("[")[2]
        return not shape[:1].isdigit() and shape != "]"


@dataclass(frozen=True)
class Candidate:
    """An exported SavedModel that no server would load, and what it should answer."""

    path: Path
    """Folder beside the versions, on their file system; its name is not an integer."""
    signatures: tuple[Signature, ...]
    offline: Path
    """Folder of `estimator.predict`'s answers for the sample examples: `examples.tfrecord` with the
    serialized examples asked, in order, and `<signature>.npz` with an array of each output."""
    samples: int
    tag_sets: tuple[str, ...] = ("serve",)
    """MetaGraphs by their tags, joined by commas; servers load `serve`."""
    assets: tuple[str, ...] = ()
    """Files that the graph reads when it is loaded, such as vocabularies: names in `assets/`."""
    answered_by: str = "estimator.predict"
    """Whose answers `offline` holds."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        names = ", ".join(signature.name for signature in self.signatures)
        tags = f", MetaGraphs {'; '.join(self.tag_sets)}" if len(self.tag_sets) > 1 else ""
        assets = f", assets {', '.join(self.assets)}" if self.assets else ""
        mixed = ", ".join(each.name for each in self.signatures if not each.row_independent)
        rows = f", rows may depend on one another: {mixed}" if mixed else ""
        return f"SavedModel with {len(self.signatures)} signature(s): {names}{tags}{assets}{rows}"


@dataclass(frozen=True)
class Difference:
    """A key path or a metric, and what it is in either of two versions; None where it is not there."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class AnswerDifference:
    """What two versions say of one example, as text."""

    example: int
    first: str
    second: str


@dataclass(frozen=True)
class OutputDifference:
    """How far an output of a signature lies apart in two versions."""

    signature: str
    output: str
    examples: int
    differing: int
    """Examples whose answers differ by more than rounding (the limits of the second version)."""
    largest: float | None
    """Largest absolute difference of any number; None where they are no numbers."""
    furthest: tuple[AnswerDifference, ...]
    """Those that differ most, the furthest first."""
    note: str = ""
    """Why they could not be compared; empty where they were."""


@dataclass(frozen=True)
class VersionDifferences:
    """What two versions differ in."""

    first: str
    second: str
    origin: tuple[Difference, ...]
    """What their manifests say they were made of, where that differs."""
    config: tuple[Difference, ...]
    """Keys of the configuration that differ."""
    metrics: tuple[Difference, ...]
    """All metrics, side by side."""
    outputs: tuple[OutputDifference, ...]
    note: str = ""
    """Why answers were not compared; empty where they were."""


@dataclass(frozen=True)
class Validation:
    """A candidate whose every signature was run in a fresh process."""

    checks: tuple[Check, ...]
    numbers: int
    """Number of output values compared with those of `estimator.predict`."""
    answers: str
    """How far they are from them, and how far they may be."""
    answered_by: str = "estimator.predict"
    """What they are compared with."""

    def summary(self) -> str:
        """Return the stage's result in a sentence."""
        own = sum(check.name.startswith("validation.inputs") for check in self.checks)
        also = f"; {own} check(s) of validation.inputs" if own else ""
        return f"{self.answered_by}: {self.answers}{also}"


@dataclass(frozen=True)
class Canary:
    """A candidate that was asked in a server of its own, before anything was published."""

    checks: tuple[Check, ...] = ()
    numbers: int = 0
    """Number of served values compared."""
    answers: str = ""
    """How far they are from the offline ones, and how far they may be."""
    skipped: str = ""
    """Why there was no canary; empty if there was one."""

    def summary(self) -> str:
        """Return the stage's result in a sentence."""
        return self.skipped or f"in a separate server: {self.answers}"


@dataclass(frozen=True)
class Recording:
    """Golden requests that were recorded."""

    file: Path
    requests: int
    changed: tuple[str, ...]
    """Features that were dropped or hashed."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        changed = f"; dropped or hashed: {', '.join(self.changed)}" if self.changed else ""
        return f"{self.requests} requests in {self.file}{changed}; keep it under version control"


@dataclass(frozen=True)
class Latencies:
    """How fast a candidate answers beside the version that serves."""

    checks: tuple[Check, ...]

    @classmethod
    def not_compared(cls, why: str) -> Latencies:
        """Return what is told, and rejects nothing, where there is nothing to compare with."""
        name, rule = "canary latency", "is compared with what serves"
        return cls((Check(name, rule, f"not compared: {why}", None, passed=True),))


@dataclass(frozen=True)
class ModelVersion:
    """A published version: `<base>/<number>/`."""

    number: int
    path: Path
    previous: int | None = None
    """The version that the live server answered with before this one, or where none ran the highest on
    disk: what is served again should this one be withdrawn. None for the first."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        before = f", after {self.previous}" if self.previous is not None else ", the first one"
        return f"version {self.number} is visible, whole and on disk{before}"


@dataclass(frozen=True)
class Endpoint:
    """A server that answers."""

    model_name: str
    version: int
    grpc: str
    """host:port."""
    rest: str
    """http://host:port."""
    target: str
    """`docker` or `process`."""
    server: str
    """What runs: image tag or program, and its container name or pid."""
    started: bool
    """True where this run started the server, False where it was there before."""
    tls: bool = False
    """Whether gRPC is spoken over TLS."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        how = "started" if self.started else "hot-swapped in the running server"
        return f"{self.server} reports version {self.version} AVAILABLE ({how})"


@dataclass(frozen=True)
class SmokeTest:
    """Answers of the new version over gRPC, compared with the offline ones."""

    checks: tuple[Check, ...]
    numbers: int
    """Number of served values compared."""
    answers: str
    """How far they are from the offline ones, and how far they may be."""
    latency_p50_ms: float
    latency_p99_ms: float
    pictures: tuple[Picture, ...] = ()

    def summary(self) -> str:
        """Return the stage's result in a sentence."""
        return f"{self.answers}; p50 {self.latency_p50_ms:.1f} ms, p99 {self.latency_p99_ms:.1f} ms"


@dataclass(frozen=True)
class Probe:
    """A version that was asked and answered, its numbers not compared with any."""

    version: int
    shown: tuple[str, ...]
    """A line for each example asked: what the default signature answered."""


@dataclass(frozen=True)
class BuiltModel:
    """What is known of a model whose graphs were built, without data."""

    variables: int
    """Trainable variables of the training graph."""
    metrics: tuple[str, ...]
    """Metrics that an evaluation reports, sorted."""
    signatures: tuple[str, ...]
    """Signatures that could be served."""

    def summary(self) -> str:
        """Return the summary in a part of a sentence."""
        return f"the model builds: {self.variables} variables, {len(self.signatures)} signatures"


@dataclass(frozen=True)
class Inspection:
    """What a file or folder holds."""

    kind: str
    """`checkpoint` or `SavedModel`."""
    path: Path
    """The checkpoint's prefix, or the SavedModel's folder."""
    text: str
    """What TensorFlow's own tools print of it."""


@dataclass(frozen=True)
class Withdrawal:
    """A published version was hidden from servers again."""

    number: int
    serving: int | None
    """The version that answers now; None where there was none before, and the server was stopped, unless
    it is somebody else's."""
    proof: str = ""
    """What its answers were found to be."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        if self.serving is None:
            left = self.proof or "the server is stopped"
            return f"version {self.number} is withdrawn; there was none before, so {left}"
        found = f": {self.proof}" if self.proof else ""
        return f"version {self.number} is withdrawn; version {self.serving} answers{found}"


@dataclass(frozen=True)
class Recovery:
    """What was done about a deploy, or a rollback, that an earlier run did not live to end."""

    found: str = ""
    """What was found, a sentence; "" where nothing was left unfinished."""
    done: str = ""
    """What was done about it, and why that is safe."""

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        return f"{self.found}: {self.done}" if self.found else "no deploy was left unfinished"


@dataclass(frozen=True)
class Retention:
    """Which versions stay on disk."""

    kept: tuple[int, ...]
    removed: tuple[int, ...]

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        return f"{len(self.kept)} version(s) on disk, {len(self.removed)} removed"


@dataclass(frozen=True)
class StageReport:
    """A line of the verdict: a stage, its wall-clock seconds and how it ended."""

    name: str
    seconds: float
    outcome: str
    """`passed`, `rejected`, `failed` or `interrupted`."""
    summary: str
    started: str = ""
    """When it began: ISO 8601, UTC."""


@dataclass(frozen=True)
class Verdict:
    """What a run came to; `verdict.json` is this as JSON, and a contract with users' tools."""

    pipeline: str
    run_id: str
    outcome: str
    """`deployed`, `trained` (a candidate was left, nothing published), `checked` (a dry run), `skipped` (the
    examples and the configuration are those of the version served), `rejected` (by a gate), `failed`,
    `rolled_back` (published, found wanting, withdrawn: the version before answers), or `restored` (rolled
    back by hand: `version` answers, `previous_version` is withdrawn)."""
    version: int | None
    previous_version: int | None
    endpoint: dict[str, str] | None
    """{grpc, rest} of the server that answers."""
    stages: tuple[StageReport, ...]
    checks: tuple[Check, ...]
    metrics: dict[str, float]
    error: dict[str, str] | None
    """{class, message, hint} of what ended the run; None where nothing did."""
    baseline: Baseline | None = None
    slices: tuple[SliceMetrics, ...] = ()
    pictures: tuple[Picture, ...] = ()
