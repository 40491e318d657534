"""What a `pipeline.yaml` may say: `PipelineConfig` and its frozen slices.

Keys, types, units, ranges, defaults and their meaning live here and nowhere else. The docstring under
a key is what `slipway schema` and docs/reference/config.md show for it. Reading YAML is `loading.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from configs.features import FeatureColumns, FeatureSpecs
from configs.home import default_model_base_path

Port = Annotated[int, Field(ge=0, le=65535)]
Reference = Annotated[str, Field(pattern=r"^[^:\s]+:[A-Za-z_]\w*$")]
"""A callable: `file.py:function`, relative to the YAML, or `package.module:function`."""


class Slice(BaseModel):
    """A frozen part of the configuration; unknown keys are errors, and so are infinite numbers and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Ulps(Slice):
    """Accept floats that are at most so many units in the last place apart."""

    ulps: Annotated[int, Field(ge=0, le=1_000_000)]
    """Representable floats that may lie between the two numbers, plus one; 0 is `exact`."""


def _tolerance_form(value: Any) -> str:
    return "Ulps" if isinstance(value, dict | Ulps) else "exact"


Tolerance = Annotated[
    Annotated[Literal["exact"], Tag("exact")] | Annotated[Ulps, Tag("Ulps")],
    Discriminator(_tolerance_form),
]


class SplitConfig(Slice):
    """Which part of tonight's examples is held out; by a hash, so the same example always lands there."""

    eval: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the examples that evaluation sees, and training never."""

    sample: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the examples kept for validation and smoke tests; training never sees them."""

    by: str | None = None
    """Feature whose value is hashed, so that (say) all examples of one user stay together; by default
    the whole serialized example is."""

    @model_validator(mode="after")
    def _leaves_examples_for_training(self) -> SplitConfig:
        if self.eval + self.sample >= 1:
            raise ValueError(f"eval ({self.eval}) and sample ({self.sample}) leave nothing to train on")
        return self


class DataConfig(Slice):
    """Tonight's tf.Examples: where they come from and what is in them. One of `ingest` and `files`."""

    ingest: Reference | None = None
    """Callable that writes tonight's TFRecord files: `ingest.py:write_digits`, called with the folder
    (pathlib.Path) to write `*.tfrecord` into."""

    files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Glob patterns of existing files, relative to the YAML."""

    format: Literal["tfrecord", "csv"] = "tfrecord"
    """What the files hold: TFRecords of serialized tf.Examples, or CSV with a header line (a column is
    the feature of that name; several values in a cell are separated by `;`)."""

    compression: Literal["none", "gzip"] = "none"
    """Compression of the TFRecord files."""

    features: Annotated[FeatureSpecs, Field(min_length=1)]
    """What the model may see, at training and at serving: feature name to spec, without the label."""

    label: Annotated[FeatureSpecs, Field(min_length=1)]
    """What the model is to predict: label name to spec. More than one makes the labels a dict."""

    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _has_one_source(self) -> DataConfig:
        if (self.ingest is None) == (self.files is None):
            raise ValueError("give exactly one of 'ingest' (a callable) and 'files' (glob patterns)")
        if self.ingest is not None and self.format != "tfrecord":
            raise ValueError("an 'ingest' callable writes TFRecords: 'format' must be tfrecord")
        return self

    @model_validator(mode="after")
    def _label_is_not_served(self) -> DataConfig:
        both = sorted(set(self.features) & set(self.label))
        if both:
            raise ValueError(
                f"the label {both[0]!r} is also in 'features': it will not be there when the model is "
                "served; remove it from 'features'"
            )
        return self

    @model_validator(mode="after")
    def _splits_by_a_known_feature(self) -> DataConfig:
        by, known = self.split.by, [*self.features, *self.label]
        if by is not None and by not in known:
            raise ValueError(f"split.by names {by!r}, which is not one of {', '.join(known)}")
        return self


class ModelConfig(Slice):
    """The Estimator: a canned one by its name, or one that a factory builds. One of the two."""

    estimator: str | None = None
    """Name of a canned Estimator in `tf.estimator`: DNNClassifier, DNNRegressor, DNNEstimator,
    LinearClassifier, LinearRegressor, LinearEstimator, DNNLinearCombinedClassifier,
    DNNLinearCombinedRegressor, DNNLinearCombinedEstimator, BaselineClassifier, BaselineRegressor,
    BaselineEstimator. (BoostedTrees* left tensorflow-estimator before 2.15.)"""

    factory: Reference | None = None
    """Callable that returns a `tf.estimator.Estimator`: `model.py:build_estimator`, called with
    (params: dict, config: tf.estimator.RunConfig)."""

    params: dict[str, Any] = {}
    """Arguments of the canned Estimator's constructor (`optimizer` may be a name or
    `{name: Adam, learning_rate: 0.01}`; `head` a `{name: MultiClassHead, n_classes: 3}`), or what the
    factory gets as `params`."""

    feature_columns: FeatureColumns | None = None
    """Feature columns of a canned Estimator; a mapping {linear, dnn} for the combined ones. By default
    each numeric fixed-length feature is a numeric column."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        if (self.estimator is None) == (self.factory is None):
            raise ValueError("give exactly one of 'estimator' (a canned one) and 'factory' (a callable)")
        if self.factory is not None and self.feature_columns is not None:
            raise ValueError("a factory makes its own feature columns: remove 'feature_columns'")
        return self


class TrainingConfig(Slice):
    """How long to train, on what, and how often to save."""

    max_steps: PositiveInt = 1000
    """Global step at which training ends. A total: resumed training goes on up to it."""

    batch_size: PositiveInt = 128
    """Examples a step."""

    save_checkpoints_steps: PositiveInt | None = None
    """Steps between checkpoints. By default a tenth of max_steps, unless save_checkpoints_secs is set."""

    save_checkpoints_secs: PositiveInt | None = None
    """Seconds between checkpoints, instead of steps."""

    keep_checkpoint_max: Annotated[int, Field(ge=0)] = 5
    """Newest checkpoints that stay on disk; 0 keeps all."""

    keep_checkpoint_every_n_hours: PositiveFloat = 10_000.0
    """Besides these, one checkpoint that stays for every so many hours of training."""

    log_every_steps: PositiveInt = 100
    """Steps between two reports of loss and steps/s."""

    shuffle_buffer: PositiveInt = 10_000
    """Examples among which the next batch is drawn."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """`gpu` fails before training starts where there is none; `auto` takes one where there is."""

    gpu_memory_growth: bool = True
    """Let TensorFlow take GPU memory as it needs it, instead of all of it at once."""

    seed: int = 1
    """Seed of TensorFlow's random numbers and of the order of the examples."""

    @model_validator(mode="after")
    def _saves_by_one_clock(self) -> TrainingConfig:
        if self.save_checkpoints_steps is not None and self.save_checkpoints_secs is not None:
            raise ValueError("give one of 'save_checkpoints_steps' and 'save_checkpoints_secs'")
        return self

    @property
    def checkpoint_steps(self) -> int | None:
        """Steps between two checkpoints; None where seconds are counted instead."""
        if self.save_checkpoints_secs is not None:
            return None
        return self.save_checkpoints_steps or max(1, self.max_steps // 10)


class Threshold(Slice):
    """The range in which a metric must lie, ends included."""

    min: float | None = None
    """Least acceptable value."""

    max: float | None = None
    """Largest acceptable value."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Threshold:
        if self.min is None and self.max is None:
            raise ValueError("give 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing could pass")
        return self


class EvaluationConfig(Slice):
    """The gate that a trained model must pass on the eval split."""

    thresholds: dict[str, Threshold] = {}
    """Metric name (as the Estimator reports it: accuracy, average_loss …) to the range it must lie in."""

    batch_size: PositiveInt = 256
    """Examples an evaluation step."""


class ExportConfig(Slice):
    """The SavedModel and the folder of versions that servers watch."""

    model_base_path: Path | None = None
    """Folder whose children are versions. By default `$SLIPWAY_HOME/models/<name>`; a relative path is
    relative to the YAML."""

    receivers: Annotated[tuple[Literal["parsing", "raw"], ...], Field(min_length=1, max_length=2)] = (
        "parsing",
    )
    """Serving input receivers: `parsing` takes serialized tf.Examples (Predict, Classify, Regress), `raw`
    takes feature tensors (Predict). With both, the raw signatures are named `raw:<signature>`."""

    version_names: Literal["timestamp", "sequential"] = "timestamp"
    """Number of the next version: seconds since 1970, or one more than the last (`0001`, `0002` …).
    Either way it only rises."""

    keep_versions: Annotated[int, Field(ge=2)] = 5
    """Newest versions that stay on disk. The live one and the one before it always do."""

    @model_validator(mode="after")
    def _names_a_receiver_once(self) -> ExportConfig:
        if len(set(self.receivers)) != len(self.receivers):
            raise ValueError("name each receiver once")
        return self


class ValidationConfig(Slice):
    """The exported SavedModel, run in a fresh process on held-out tf.Examples."""

    samples: PositiveInt = 64
    """Most examples of the sample split that are run."""

    batch_sizes: Annotated[tuple[PositiveInt | Literal["all"], ...], Field(min_length=1)] = (1, 2, "all")
    """Batch sizes in which every signature runs over the samples."""

    tolerance: Tolerance = "exact"
    """How far an output may lie from what `estimator.predict` says: `exact`, or `{ulps: 4}`."""


class DeploymentConfig(Slice):
    """Where and how the model is served."""

    target: Literal["auto", "docker", "process"] = "auto"
    """`docker`: a container. `process`: the same server as a local process. `auto`: a container where a
    Docker engine answers and its image can be had, else a process."""

    grpc_port: Port = 8500
    """Port of the gRPC API on 127.0.0.1; 0 picks a free one and keeps it."""

    rest_port: Port = 8501
    """Port of the REST API on 127.0.0.1; 0 picks a free one and keeps it."""

    load_timeout_seconds: PositiveFloat = 120.0
    """Longest time from asking for the new version to its being AVAILABLE, server start included."""

    @model_validator(mode="after")
    def _ports_differ(self) -> DeploymentConfig:
        if self.grpc_port == self.rest_port != 0:
            raise ValueError(f"grpc_port and rest_port are both {self.grpc_port}")
        return self


OWN_FLAGS = frozenset({"port", "rest_api_port", "model_name", "model_base_path"})


class ServerConfig(Slice):
    """Which model server to run; by default Slipway's own. At most one of `image` and `executable`."""

    image: str | None = None
    """Docker image to run in place of ours, `tensorflow/serving:2.15.1` for one."""

    executable: Path | None = None
    """Program to run in place of ours, a `tensorflow_model_server` for one."""

    flags: dict[str, str | bool | int | float] = {}
    """Further flags, as tensorflow_model_server names them: `{tensorflow_intra_op_parallelism: 2}`."""

    @model_validator(mode="after")
    def _is_one_server(self) -> ServerConfig:
        if self.image is not None and self.executable is not None:
            raise ValueError("give at most one of 'image' and 'executable'")
        owned = sorted(OWN_FLAGS & set(self.flags))
        if owned:
            raise ValueError(f"the flag {owned[0]!r} is set by Slipway (see 'deployment' and 'export')")
        return self


class SmokeTestConfig(Slice):
    """Questions put to the new version over real gRPC, before it is trusted."""

    samples: PositiveInt = 64
    """Most examples of the sample split that are asked for."""

    tolerance: Tolerance = "exact"
    """How far a served number may lie from the offline one: `exact`, or `{ulps: 4}`."""

    latency_requests: Annotated[int, Field(ge=20)] = 200
    """Requests of one example, one after the other, from which p50 and p99 are taken."""

    latency_p99_limit_ms: PositiveFloat | None = None
    """Largest acceptable p99 of these, in milliseconds."""

    request_timeout_seconds: PositiveFloat = 10.0
    """Deadline of each request."""


class PipelineConfig(Slice):
    """All of a `pipeline.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """Name of the pipeline and of the served model: lower-case letters, digits, `-` and `_`."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    validation: ValidationConfig = ValidationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    server: ServerConfig = ServerConfig()
    smoke_test: SmokeTestConfig = SmokeTestConfig()

    @model_validator(mode="after")
    def _server_fits_target(self) -> PipelineConfig:
        if self.server.image is not None and self.deployment.target == "process":
            raise ValueError("server.image needs deployment.target docker or auto, not process")
        if self.server.executable is not None and self.deployment.target == "docker":
            raise ValueError("server.executable needs deployment.target process or auto, not docker")
        return self

    @property
    def samples(self) -> int:
        """Most examples of the sample split that any stage asks about."""
        return max(self.validation.samples, self.smoke_test.samples)

    def model_base_path(self, folder: Path) -> Path:
        """Return the absolute folder of versions; `folder` is the one that holds the YAML."""
        configured = self.export.model_base_path
        return folder / configured.expanduser() if configured else default_model_base_path(self.name)
