"""The data slices about features: parsing specs of tf.Examples, and feature columns."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PositiveInt, Tag, model_validator
from pydantic_core import PydanticCustomError

from configs.schema.slices import Slice

_SHORTHAND = re.compile(
    r"^(?P<dtype>float|float32|int64|string)(\[(?P<shape> *([0-9]+ *(, *[0-9]+ *)*)?)\])?\Z"
)
_SHORTHAND_HELP = "float32, int64 or string, with [64] for 64 values and [] for any number of them"


class FeatureSpec(Slice):
    """How one feature of a tf.Example is parsed, as in `tf.io.parse_example`.

    A short form says most of them: `float32[64]` is 64 floats, `int64` one integer, `string[]` any
    number of strings.
    """

    # So that an editor takes the short form too: `pattern` is about strings, all else about objects.
    model_config = ConfigDict(
        json_schema_extra={
            "type": ["object", "string"],
            "pattern": r"^(float|float32|int64|string)(\[[0-9, ]*\])?$",
        }
    )

    kind: Literal["fixed_len", "var_len", "fixed_len_sequence", "sparse", "ragged"] = "fixed_len"
    """FixedLenFeature (dense, `shape` values), VarLenFeature (sparse, any number),
    FixedLenSequenceFeature (dense, padded to the longest of the batch), SparseFeature (sparse, made of
    indices and values) or RaggedFeature (ragged, any number; feature columns do not take it)."""

    dtype: Literal["float32", "int64", "string"]
    """The three types that a tf.Example holds."""

    shape: tuple[PositiveInt, ...] = ()
    """Shape of one value without the batch dimension; () is a scalar. Of a sparse feature its `size`."""

    default: float | int | str | None = None
    """Value of a fixed_len feature that an example lacks; without one a missing value is an error."""

    index_key: str | tuple[str, ...] | None = None
    """Of a sparse feature: the int64 feature(s) of the example that hold the indices, one for each
    dimension of `shape`."""

    value_key: str | None = None
    """Feature of the example that holds the values of a sparse feature; of a ragged one, where it is not
    of the same name."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _SHORTHAND.match(value)
        if match is None:
            raise PydanticCustomError(
                "feature_shorthand",
                "{value} is not a feature: expected {help}",
                {"value": repr(value), "help": _SHORTHAND_HELP},
            )
        dtype = "float32" if match["dtype"] == "float" else match["dtype"]
        if match["shape"] is None:
            return {"dtype": dtype}
        shape = [int(size) for size in match["shape"].split(",") if size.strip()]
        return {"dtype": dtype, "shape": shape} if shape else {"dtype": dtype, "kind": "var_len"}

    @model_validator(mode="after")
    def _is_consistent(self) -> FeatureSpec:
        if self.kind in ("var_len", "ragged") and self.shape:
            raise ValueError(f"a {self.kind} feature has no shape")
        self._keys_fit_kind()
        if self.default is not None:
            if self.kind not in ("fixed_len", "fixed_len_sequence"):
                raise ValueError(f"a {self.kind} feature has no default: missing is empty")
            if isinstance(self.default, str) != (self.dtype == "string"):
                raise ValueError(f"default {self.default!r} is not a {self.dtype}")
            if self.dtype == "int64" and not isinstance(self.default, int):
                raise ValueError(f"default {self.default!r} is not an int64")
        return self

    def _keys_fit_kind(self) -> None:
        if self.kind == "sparse":
            if not self.index_keys or self.value_key is None or len(self.index_keys) != len(self.shape):
                raise ValueError("a sparse feature needs value_key, index_key, and a shape of as many sizes")
        elif self.index_key is not None:
            raise ValueError(f"index_key is of sparse features, and this one is {self.kind}")
        if self.value_key is not None and self.kind not in ("sparse", "ragged"):
            raise ValueError(f"value_key is of sparse and ragged features, and this one is {self.kind}")

    @property
    def index_keys(self) -> tuple[str, ...]:
        """The features of an example that hold the indices of a sparse one."""
        return (self.index_key,) if isinstance(self.index_key, str) else self.index_key or ()

    @property
    def is_dense(self) -> bool:
        """Whether it is parsed into a plain tensor."""
        return self.kind in ("fixed_len", "fixed_len_sequence")

    def stored(self, name: str) -> dict[str, FeatureSpec]:
        """Return what an example holds for the feature `name`: it is the feature, or makes it up."""
        if self.kind not in ("sparse", "ragged"):
            return {name: self}
        values = FeatureSpec(dtype=self.dtype, kind="var_len")
        indices = {key: FeatureSpec(dtype="int64", kind="var_len") for key in self.index_keys}
        return {**indices, self.value_key or name: values}

    @property
    def size(self) -> int:
        """Number of values in one example of a fixed_len feature."""
        product = 1
        for length in self.shape:
            product *= length
        return product


FeatureSpecs = dict[str, FeatureSpec]


def stored_in_examples(specs: FeatureSpecs) -> FeatureSpecs:
    """Return the specs of what a tf.Example holds, by the names that it has there."""
    return {key: stored for name, spec in specs.items() for key, stored in spec.stored(name).items()}


class NumericColumn(Slice):
    """`tf.feature_column.numeric_column`."""

    kind: Literal["numeric"]
    key: str
    shape: tuple[PositiveInt, ...] = ()
    """Shape of one value; by default that of the feature."""
    mean: float = 0.0
    """Subtracted from every value, at training and at serving."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Divides every value, after `mean` was subtracted."""


class BucketizedColumn(Slice):
    """`tf.feature_column.bucketized_column` of a numeric feature."""

    kind: Literal["bucketized"]
    key: str
    boundaries: Annotated[tuple[float, ...], Field(min_length=1)]
    """Rising bounds: n of them make n + 1 buckets."""

    @model_validator(mode="after")
    def _rises(self) -> BucketizedColumn:
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError("boundaries must rise")
        return self


class VocabularyColumn(Slice):
    """`categorical_column_with_vocabulary_list` or `_file`. One of `values` and `file`."""

    kind: Literal["vocabulary"]
    key: str
    values: tuple[str, ...] | tuple[int, ...] | None = None
    """The vocabulary itself."""
    file: str | None = None
    """A file with a word a line, relative to the YAML; it travels with the model as an asset."""
    num_oov_buckets: Annotated[int, Field(ge=0)] = 0
    """Extra ids for words that are not in the vocabulary."""

    @model_validator(mode="after")
    def _has_one_vocabulary(self) -> VocabularyColumn:
        if (self.values is None) == (self.file is None):
            raise ValueError("give exactly one of 'values' and 'file'")
        return self


class HashBucketColumn(Slice):
    """`tf.feature_column.categorical_column_with_hash_bucket`."""

    kind: Literal["hash_bucket"]
    key: str
    buckets: Annotated[int, Field(ge=2)]
    """Ids that words are hashed into."""


class IdentityColumn(Slice):
    """`tf.feature_column.categorical_column_with_identity`: the feature is the id."""

    kind: Literal["identity"]
    key: str
    buckets: PositiveInt
    """Ids run from 0 to this, exclusive."""
    default: int | None = None
    """Id of a value out of range; without one that is an error."""


def _key_form(value: Any) -> str:
    return "name" if isinstance(value, str) else "column"


_CrossableColumn = Annotated[
    BucketizedColumn | VocabularyColumn | IdentityColumn, Field(discriminator="kind")
]
_CrossedKey = Annotated[
    Annotated[str, Tag("name")] | Annotated[_CrossableColumn, Tag("column")], Discriminator(_key_form)
]


class CrossedColumn(Slice):
    """`tf.feature_column.crossed_column`."""

    kind: Literal["crossed"]
    keys: Annotated[tuple[_CrossedKey, ...], Field(min_length=2)]
    """Names of string or integer features, or categorical columns."""
    buckets: Annotated[int, Field(ge=2)]
    """Ids that combinations are hashed into."""


CategoricalColumn = Annotated[
    BucketizedColumn | VocabularyColumn | HashBucketColumn | IdentityColumn | CrossedColumn,
    Field(discriminator="kind"),
]


class EmbeddingColumn(Slice):
    """`tf.feature_column.embedding_column`."""

    kind: Literal["embedding"]
    of: CategoricalColumn
    dimension: PositiveInt
    """Floats that each id becomes."""
    combiner: Literal["mean", "sqrtn", "sum"] = "mean"


class IndicatorColumn(Slice):
    """`tf.feature_column.indicator_column`: one-hot or multi-hot."""

    kind: Literal["indicator"]
    of: CategoricalColumn


FeatureColumn = Annotated[
    NumericColumn | BucketizedColumn | VocabularyColumn | HashBucketColumn | IdentityColumn
    | CrossedColumn | EmbeddingColumn | IndicatorColumn,
    Field(discriminator="kind"),
]  # fmt: skip


class CombinedColumns(Slice):
    """Feature columns of a DNNLinearCombined* Estimator."""

    linear: tuple[FeatureColumn, ...] = ()
    dnn: tuple[FeatureColumn, ...] = ()


def _columns_form(value: Any) -> str:
    return "CombinedColumns" if isinstance(value, dict | CombinedColumns) else "list"


FeatureColumns = Annotated[
    Annotated[tuple[FeatureColumn, ...], Tag("list")] | Annotated[CombinedColumns, Tag("CombinedColumns")],
    Discriminator(_columns_form),
]
