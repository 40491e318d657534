"""The slice `data`: tonight's tf.Examples."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from configs.schema.data_gates import DataGates
from configs.schema.features import FeatureSpecs, stored_in_examples
from configs.schema.slices import Reference, Slice

SecretName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
_SOURCE = r"environment|block:[a-z0-9][a-z0-9-]*"


def _names_no_secret(source: Any) -> Any:
    if isinstance(source, str) and re.fullmatch(_SOURCE, source):
        return source
    # Whatever it says may be the secret itself: it is not repeated.
    raise ValueError("say environment, or block:name of a Prefect Secret block; a secret never stands here")


SecretSource = Annotated[
    str, BeforeValidator(_names_no_secret), WithJsonSchema({"type": "string", "pattern": f"^({_SOURCE})$"})
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


MISSING_VALUES = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""What pandas.read_csv takes for a missing value."""


_OF_FORMATS = {
    "compression": ("tfrecord",),
    "delimiter": ("csv",),
    "encoding": ("csv",),
    "missing_values": ("csv", "parquet"),
}


def _encoding(name: str) -> str:
    try:
        codecs.lookup(name)
    except LookupError:
        raise ValueError(f"Python knows no encoding {name!r}: utf-8, latin-1, cp1252, utf-16 …") from None
    return name


class DataConfig(Slice):
    """Tonight's tf.Examples: where they come from and what is in them. One of `ingest` and `files`."""

    ingest: Reference | None = None
    """Callable that writes tonight's TFRecord files: `ingest.py:write_digits`, called with the folder
    (pathlib.Path) to write `*.tfrecord` into."""

    secrets: dict[SecretName, SecretSource] = {}
    """Environment variables that `ingest` reads secrets from, and where those come from: `environment`, that
    of the flow, or `block:warehouse`, a Prefect Secret block. They are masked in all that it says."""

    files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Glob patterns of existing files, relative to the YAML."""

    format: Literal["tfrecord", "csv", "parquet"] = "tfrecord"
    """What the files hold: TFRecords of serialized tf.Examples; CSV with a header line (a column is the
    feature of that name; several values in a cell are separated by `;`); or Parquet (the same; several values
    are a list; needs pyarrow: `make install-parquet`)."""

    compression: Literal["none", "gzip"] = "none"
    """Compression of the TFRecord files."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between the cells of a CSV line, such as ";" or "\\t"."""

    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    """Encoding of the CSV files, by Python's name; a byte order mark is skipped."""

    missing_values: tuple[str, ...] | None = None
    """Texts that mean a missing value: the feature's default, no values, or an error. By default, in CSV
    those of pandas.read_csv (`NA`, `NaN`, `null`, empty …; if NA is a word of yours, Namibia, say [""]); in
    Parquet none, as a null is always missing."""

    features: Annotated[FeatureSpecs, Field(min_length=1)]
    """What the model may see, at training and at serving: feature name to spec, without the label."""

    label: FeatureSpecs = {}
    """What the model is to predict: label name to spec. More than one makes the labels a dict. A model that
    learns without (clusters, embeddings) has none: its model_fn gets None."""

    split: SplitConfig = SplitConfig()

    gates: DataGates = DataGates()

    @model_validator(mode="after")
    def _has_one_source(self) -> DataConfig:
        if (self.ingest is None) == (self.files is None):
            raise ValueError("give exactly one of 'ingest' (a callable) and 'files' (glob patterns)")
        if self.ingest is not None and self.format != "tfrecord":
            raise ValueError("an 'ingest' callable writes TFRecords: 'format' must be tfrecord")
        return self

    @model_validator(mode="after")
    def _format_fits(self) -> DataConfig:
        for key, formats in _OF_FORMATS.items():
            if self.format not in formats and getattr(self, key) != DataConfig.model_fields[key].default:
                raise ValueError(f"{key} needs format: {' or '.join(formats)}, found {self.format}")
        ends = {pattern.rpartition(".")[2].lower() for pattern in self.files or ()}
        if "format" not in self.model_fields_set and len(ends) == 1 and ends <= {"csv", "parquet"}:
            raise ValueError(f"the files are named *.{min(ends)}: set format: {min(ends)}")
        return self

    @property
    def missing_words(self) -> tuple[str, ...]:
        """Texts that mean a missing value in files of this format."""
        if self.missing_values is None:
            return MISSING_VALUES if self.format == "csv" else ()
        return self.missing_values

    @model_validator(mode="after")
    def _label_is_not_served(self) -> DataConfig:
        both = sorted(set(stored_in_examples(self.features)) & set(stored_in_examples(self.label)))
        if both:
            raise ValueError(
                f"the label {both[0]!r} is also in 'features': it will not be there when the model is "
                "served; remove it from 'features'"
            )
        return self

    @model_validator(mode="after")
    def _splits_by_a_known_feature(self) -> DataConfig:
        by, known = self.split.by, list(stored_in_examples({**self.features, **self.label}))
        if by is not None and by not in known:
            raise ValueError(f"split.by names {by!r}, which is not one of {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _gates_fit_the_features(self) -> DataConfig:
        for problem in self.gates.problems(stored_in_examples({**self.features, **self.label})):
            raise ValueError(problem)
        return self
