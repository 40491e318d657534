"""The slices `export` and `validation`: the SavedModel, and what it must answer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from configs.schema.answers import Tolerance
from configs.schema.slices import Reference, Slice


def _receiver_form(value: Any) -> str:
    return "function" if isinstance(value, str) and ":" in value else "name"


Receiver = Annotated[
    Annotated[Literal["parsing", "raw"], Tag("name")] | Annotated[Reference, Tag("function")],
    Discriminator(_receiver_form),
]


TagSet = Annotated[tuple[Annotated[str, Field(pattern=r"^[^,\s]+$")], ...], Field(min_length=1)]
MANIFEST = "manifest.json"
ANSWERS = "answers"
"""Folder in assets.extra: what the version should answer and what it was made of, for its owner's eyes."""


SERVING = "serving.json"
"""File in assets.extra: what the model server cannot find out by itself, or is not to."""

CHECKSUMS = "SHA256SUMS"
"""File in assets.extra: a digest of every other file of the version."""


def _stays_inside(destination: str) -> str:
    path = PurePosixPath(destination)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath() or "\0" in destination:
        raise ValueError("a destination is a path inside assets.extra, without '..'")
    if path.parts[0] in (MANIFEST, ANSWERS, SERVING, CHECKSUMS):
        raise ValueError(f"{path.parts[0]} is written by Slipway: choose another name")
    return str(path)


ExtraAsset = Annotated[str, AfterValidator(_stays_inside)]


class ExportConfig(Slice):
    """The SavedModel and the folder of versions that servers watch."""

    model_base_path: Path | None = None
    """Folder whose children are versions. By default `$SLIPWAY_HOME/models/<name>`; a relative path is
    relative to the YAML."""

    receivers: Annotated[tuple[Receiver, ...], Field(min_length=1, max_length=2)] = ("parsing",)
    """Serving input receivers: `parsing` takes serialized tf.Examples (Predict, Classify, Regress), `raw`
    takes feature tensors (Predict). With both, the raw signatures are named `raw:<signature>`. Or a
    function of your own, `model.py:serving_input_receiver_fn`, that returns a ServingInputReceiver; it is
    called with no argument, or, if it takes one, with the parsing spec of data.features."""

    meta_graphs: Annotated[tuple[TagSet, ...], Field(min_length=1)] = (("serve",),)
    """MetaGraphs of a graph pipeline (`model.graph`), each by its tags: `[[serve], [serve, gpu], [train]]`.
    They share one set of variables and assets. `[serve]` is the one that servers load by default; those
    without the tag `serve` have the tag `train`."""

    assets_extra: dict[ExtraAsset, str] = {}
    """Files that travel with the model in `assets.extra`: destination there to file, relative to the YAML.
    Always there is `manifest.json`. Warmup requests are `tf_serving_warmup_requests`."""

    row_independent: bool | None = None
    """Whether row i of every output depends on row i of the inputs alone. The model server lets requests
    share a run only then, and a model whose rows depend on one another is validated in whole requests only,
    not in several batch sizes. By default the exported graph is analysed, and what isn't understood counts
    as dependent; state it for graphs that the analysis doesn't understand."""

    as_text: bool = False
    """Write `saved_model.pbtxt`, which people can read, in place of `saved_model.pb`."""

    version_names: Literal["timestamp", "sequential"] = "timestamp"
    """Number of the next version: seconds since 1970, or one more than the last (`0001`, `0002` …).
    Either way it only rises."""

    checkpoint: str | Annotated[int, Field(ge=1)] = "latest"
    """Checkpoint that is evaluated and exported: `latest`, `best` (by training.best_checkpoint), a step,
    or a checkpoint's path relative to the YAML."""

    keep_versions: Annotated[int, Field(ge=2)] = 5
    """Newest versions that stay on disk. The live one and the one before it always do."""

    @model_validator(mode="after")
    def _is_consistent(self) -> ExportConfig:
        if len(set(self.receivers)) != len(self.receivers):
            raise ValueError("name each receiver once")
        tag_sets = [frozenset(tags) for tags in self.meta_graphs]
        if len(set(tag_sets)) != len(tag_sets) or frozenset({"serve"}) not in tag_sets:
            raise ValueError("meta_graphs: name each tag set once, and [serve] among them")
        if not all(tags & {"serve", "train"} for tags in tag_sets):
            raise ValueError("meta_graphs: each has the tag serve or the tag train")
        if len(self.receivers) > 1 and not {"parsing", "raw"}.issuperset(self.receivers):
            raise ValueError(
                "a receiver function stands alone: let it return receiver_tensors_alternatives for more"
            )
        return self


class ValidationInput(Slice):
    """An input of your own for one signature, in the forms of `saved_model_cli run`, and its answer."""

    signature: str = "serving_default"
    """Name of the signature."""

    tag_set: str = "serve"
    """Tags of the MetaGraph, joined by commas."""

    inputs: tuple[str, ...] = ()
    """`x=file.npy` or `x=file.npz[key]`, relative to the YAML."""

    input_exprs: tuple[str, ...] = ()
    """`x=np.ones((2, 3))`: Python, evaluated in a process without your environment, in an empty folder."""

    input_examples: tuple[str, ...] = ()
    """`examples=[{"age": [22.0], "city": ["Rome"]}]`: tf.Examples."""

    allow_pickle: tuple[str, ...] = ()
    """Inputs whose files may hold pickled objects. Loading those runs what code they hold."""

    expected: dict[str, str] = {}
    """Output to the array that it must equal: `file.npy` or `file.npz[key]`, relative to the YAML."""

    tolerance: Tolerance | None = None
    """How far an output may lie from that. Default: that of `answers`, without demanding the same bits."""

    outdir: str | None = None
    """Folder that outputs are saved in as `<output>.npy`, relative to the YAML; by default in the run's."""

    overwrite: bool = False
    """Whether files that are in `outdir` already may be replaced."""

    @model_validator(mode="after")
    def _asks_something(self) -> ValidationInput:
        if not (self.inputs or self.input_exprs or self.input_examples):
            raise ValueError("give 'inputs', 'input_exprs' or 'input_examples'")
        if self.overwrite and self.outdir is None:
            raise ValueError("'overwrite' is about an 'outdir' of yours: name it, or leave both out")
        return self


class ValidationConfig(Slice):
    """The exported SavedModel, run in a fresh process on held-out tf.Examples."""

    inputs: tuple[ValidationInput, ...] = ()
    """Inputs of your own, and what they must answer, in the forms of `saved_model_cli run`."""

    allow_ops: tuple[str, ...] = ()
    """Ops that the exported graph may hold although they reach files, the network or Python: `[ReadFile]`.
    A server runs them for anyone who sends requests."""
