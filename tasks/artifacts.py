"""The nouns that stages pass on: frozen dataclasses, each saying in a sentence what it proves.

They travel between processes and into `verdict.json` as JSON, so their fields are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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

    @property
    def model_dir(self) -> Path:
        """The Estimator's model_dir: checkpoints and event files."""
        return self.folder / "checkpoints"

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


@dataclass(frozen=True)
class ServingTarget:
    """Where this run will serve, decided and checked before anything is changed."""

    kind: str
    """`docker` or `process`."""
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

    def proved(self) -> str:
        """Say what this proves."""
        serving = f"version {self.live_version} serves now" if self.live_version else "nothing serves yet"
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

    def proved(self) -> str:
        """Say what this proves."""
        return (
            f"{self.total:,} tf.Examples match the feature spec: "
            f"{self.train.examples:,} train, {self.eval.examples:,} eval, {self.sample.examples:,} sample"
        )


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

    def proved(self) -> str:
        """Say what this proves."""
        pace = f", {self.steps_per_second:,.0f} steps/s" if self.steps_per_second else ""
        resumed = f", resumed from step {self.resumed_from:,}" if self.resumed_from else ""
        loss = f", loss {self.loss:.4g}" if self.loss is not None else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"checkpoint at step {self.global_step:,}{loss}{pace}{resumed}{notes}"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint on the eval split, and the gate's checks of them."""

    metrics: dict[str, float]
    examples: int
    checks: tuple[Check, ...] = ()

    def proved(self) -> str:
        """Say what this proves."""
        gated = [check.name for check in self.checks]
        shown = gated or [name for name in self.metrics if name not in ("global_step", "loss")]
        values = ", ".join(f"{name} {self.metrics[name]:.4g}" for name in shown[:4])
        gate = f" within {len(gated)} threshold(s)" if gated else " (no thresholds set)"
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

    def proved(self) -> str:
        """Say what this proves."""
        names = ", ".join(signature.name for signature in self.signatures)
        tags = f", MetaGraphs {'; '.join(self.tag_sets)}" if len(self.tag_sets) > 1 else ""
        assets = f", assets {', '.join(self.assets)}" if self.assets else ""
        return f"SavedModel with {len(self.signatures)} signature(s): {names}{tags}{assets}"


@dataclass(frozen=True)
class Validation:
    """A candidate whose every signature was run in a fresh process."""

    checks: tuple[Check, ...]
    numbers: int
    """How many output numbers were compared with `estimator.predict`'s."""

    def proved(self) -> str:
        """Say what this proves."""
        own = sum(check.name.startswith("validation.inputs") for check in self.checks)
        runs = len(self.checks) - own
        also = f"; {own} check(s) of validation.inputs" if own else ""
        return f"{self.numbers:,} numbers of {runs} signature runs equal estimator.predict's{also}"


@dataclass(frozen=True)
class ModelVersion:
    """A published version: `<base>/<number>/`."""

    number: int
    path: Path
    previous: int | None = None
    """The version that the live server answered with before this one, or where none ran the highest on
    disk: what is served again should this one be withdrawn. None for the first."""

    def proved(self) -> str:
        """Say what this proves."""
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

    def proved(self) -> str:
        """Say what this proves."""
        how = "started" if self.started else "hot-swapped in the running server"
        return f"{self.server} reports version {self.version} AVAILABLE ({how})"


@dataclass(frozen=True)
class SmokeTest:
    """Answers of the new version over gRPC, compared with the offline ones."""

    checks: tuple[Check, ...]
    numbers: int
    """How many served numbers were compared."""
    latency_p50_ms: float
    latency_p99_ms: float

    def proved(self) -> str:
        """Say what this proves."""
        return (
            f"{self.numbers:,} served numbers equal the offline ones; "
            f"p50 {self.latency_p50_ms:.1f} ms, p99 {self.latency_p99_ms:.1f} ms"
        )


@dataclass(frozen=True)
class Probe:
    """A version that was asked and answered, its numbers not compared with any."""

    version: int
    shown: tuple[str, ...]
    """A line for each example asked: what the default signature answered."""


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
    """The version that answers now; None where there was none before, and the server was stopped."""

    def proved(self) -> str:
        """Say what this proves."""
        if self.serving is None:
            return f"version {self.number} is withdrawn; there was none before, so the server is stopped"
        return f"version {self.number} is withdrawn; version {self.serving} answers"


@dataclass(frozen=True)
class Retention:
    """Which versions stay on disk."""

    kept: tuple[int, ...]
    removed: tuple[int, ...]

    def proved(self) -> str:
        """Say what this proves."""
        return f"{len(self.kept)} version(s) on disk, {len(self.removed)} removed"


@dataclass(frozen=True)
class StageReport:
    """A line of the verdict: a stage, its wall-clock seconds and how it ended."""

    name: str
    seconds: float
    outcome: str
    """`passed`, `rejected`, `failed` or `interrupted`."""
    proved: str


@dataclass(frozen=True)
class Verdict:
    """What a run came to; `verdict.json` is this as JSON, and a contract with users' tools."""

    pipeline: str
    run_id: str
    outcome: str
    """`deployed`, `trained` (a candidate was left, nothing published), `rejected` (by a gate), `failed`,
    or `rolled_back` (published, found wanting, and withdrawn: the version before answers)."""
    version: int | None
    previous_version: int | None
    endpoint: dict[str, str] | None
    """{grpc, rest} of the server that answers."""
    stages: tuple[StageReport, ...]
    checks: tuple[Check, ...]
    metrics: dict[str, float]
    error: dict[str, str] | None
    """{class, message, hint} of what ended the run; None where nothing did."""
