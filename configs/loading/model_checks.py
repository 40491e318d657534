"""Mistakes in `model` that need no TensorFlow to be found: names, arguments, features of columns, files."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from configs.loading import canned, given_model
from configs.loading.errors import ConfigError
from configs.loading.pipelines import Key, Pipeline, place_of
from configs.schema.features import (
    CombinedColumns,
    CrossedColumn,
    EmbeddingColumn,
    IndicatorColumn,
    VocabularyColumn,
)
from configs.schema.pipeline import PipelineConfig

_DTYPES = {
    "numeric": ("float32", "int64"), "bucketized": ("float32", "int64"), "vocabulary": ("string", "int64"),
    "hash_bucket": ("string", "int64"), "identity": ("int64",), "crossed": ("string", "int64"),
}  # fmt: skip


class Problem(NamedTuple):
    """Something wrong with the value under `keys`."""

    keys: tuple[Key, ...]
    message: str
    hint: str


def require_buildable(pipeline: Pipeline) -> None:
    """Raise ConfigError, with file, line and column, for the first mistake in `model`."""
    for keys, message, hint in _problems(pipeline):
        path = ".".join(map(str, keys))
        raise ConfigError(f"{place_of(pipeline.file, keys)}: '{path}': {message}", hint)


def _problems(pipeline: Pipeline) -> Iterator[Problem]:
    config = pipeline.config
    if config.model.estimator is not None:
        yield from _of_estimator(config)
    if config.model.saved_model is not None:
        yield from _of_saved_model(pipeline.folder / config.model.saved_model.expanduser())
    for keys, column in _columns(config):
        yield from _of_column(keys, column, pipeline)
    if "raw" in config.export.receivers:
        for name, spec in config.data.features.items():
            if not spec.is_dense:
                message = f"raw takes dense tensors, and the feature {name!r} is {spec.kind}"
                yield Problem(("export", "receivers"), message, "use [parsing], or make it fixed_len")


def _of_saved_model(path: Path) -> Iterator[Problem]:
    if given_model.found_in(path) is not None:
        return
    found = "no such folder" if not path.exists() else "no saved_model.pb in it"
    hint = "the path is relative to the YAML"
    if path.suffix in (".keras", ".h5", ".hdf5"):
        found, hint = "not a SavedModel", "tf.keras.models.load_model(FILE).export(FOLDER) writes one"
    yield Problem(("model", "saved_model"), f"{path}: {found}", hint)


def _of_estimator(config: PipelineConfig) -> Iterator[Problem]:
    model, name = config.model, str(config.model.estimator)
    if name not in canned.ESTIMATORS:
        yield Problem(
            ("model", "estimator"), f"{name!r} is not a canned Estimator", near(name, canned.ESTIMATORS)
        )
        return
    if not config.data.label:
        hint = "data.label: {NAME: int64}; a model.factory may do without, KMeans for one"
        yield Problem(("data",), f"{name} learns from a label, and data.label names none", hint)
    known = canned.ESTIMATORS[name]
    for key, value in model.params.items():
        keys: tuple[Key, ...] = ("model", "params", key)
        if key in canned.COLUMN_PARAMETERS:
            yield Problem(keys, "Slipway sets it", "write the columns under model.feature_columns")
        elif key not in known:
            yield Problem(keys, f"{name} has no such argument", near(key, known))
        elif key.endswith("optimizer") and value is not None:
            yield from _constructed(keys, value, canned.OPTIMIZERS, canned.COMMON_TO_OPTIMIZERS)
        elif key == "head":
            yield from _of_head(keys, value)
        elif key == "weight_column" and model.preprocess is None and value not in config.data.features:
            message = f"{value!r} is not one of data.features"
            yield Problem(keys, message, near(str(value), config.data.features))
    for key in canned.REQUIRED:
        if key in known and key not in model.params:
            yield Problem(("model", "params"), f"{name} needs {key!r}", f"see tf.estimator.{name}")
    yield from _of_form(config, name)


def _of_form(config: PipelineConfig, name: str) -> Iterator[Problem]:
    """Yield what is wrong with the form of `model.feature_columns` for this Estimator."""
    given, keys = config.model.feature_columns, ("model", "feature_columns")
    combined = name.startswith("DNNLinearCombined")
    if name.startswith("Baseline"):
        if given is not None:
            yield Problem(keys, f"{name} takes none", "remove them")
    elif given is None:
        dense = [spec for spec in config.data.features.values() if spec.kind == "fixed_len"]
        if config.model.preprocess is None and all(spec.dtype == "string" for spec in dense):
            message = f"none of {', '.join(config.data.features)} is numeric and of fixed length"
            yield Problem(("model",), message, "say in model.feature_columns how the model sees the features")
    elif isinstance(given, CombinedColumns) != combined:
        form = "a mapping {linear: [...], dnn: [...]}" if combined else "a list"
        yield Problem(keys, f"{name} takes {form}", "see docs/reference/pipeline.md")


def _of_head(keys: tuple[Key, ...], value: Any) -> Iterator[Problem]:
    yield from _constructed(keys, value, canned.HEADS, ())
    name = value.get("name") if isinstance(value, dict) else value
    required = canned.REQUIRED_OF_HEADS.get(str(name))
    if required is not None and not (isinstance(value, dict) and required in value):
        yield Problem(keys, f"{name} needs {required!r}", f"see tf.estimator.{name}")
    heads = value.get("heads") if isinstance(value, dict) else None
    for key, head in heads.items() if isinstance(heads, dict) else ():
        yield from _of_head((*keys, "heads", key), head)


def _constructed(
    keys: tuple[Key, ...], value: Any, known: dict[str, tuple[str, ...]], common: tuple[str, ...]
) -> Iterator[Problem]:
    """Yield what is wrong with `Adam`, or `{name: Adam, learning_rate: 0.1}`."""
    arguments = dict(value) if isinstance(value, dict) else {"name": value}
    lowered = {name.lower(): name for name in known}
    name = lowered.get(str(arguments.pop("name", None)).lower())
    if name is None:
        message = f"expected a name, or {{name: …}} and arguments, found {value!r}"
        given = value.get("name") if isinstance(value, dict) else value
        yield Problem(keys, message, near(str(given), known))
        return
    accepted = (*known[name], *common)
    for key, argument in arguments.items():
        if key not in accepted:
            yield Problem((*keys, key), f"{name} has no such argument", near(key, accepted))
        elif isinstance(argument, str) and _is_number(argument):
            hint = "YAML reads 1e-3 as text: write 0.001 or 1.0e-3"
            yield Problem((*keys, key), f"expected a number, found the text {argument!r}", hint)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(config: PipelineConfig) -> Iterator[tuple[tuple[Key, ...], Any]]:
    """Yield every column, those inside others too, and the keys that lead to it."""
    given = config.model.feature_columns
    keys: tuple[Key, ...] = ("model", "feature_columns")
    if isinstance(given, CombinedColumns):
        for part in ("linear", "dnn"):
            for index, column in enumerate(getattr(given, part)):
                yield from _nested((*keys, part, index), column)
    else:
        for index, column in enumerate(given or ()):
            yield from _nested((*keys, index), column)


def _nested(keys: tuple[Key, ...], column: Any) -> Iterator[tuple[tuple[Key, ...], Any]]:
    yield keys, column
    if isinstance(column, EmbeddingColumn | IndicatorColumn):
        yield from _nested((*keys, "of"), column.of)
    if isinstance(column, CrossedColumn):
        for index, key in enumerate(column.keys):
            if not isinstance(key, str):
                yield from _nested((*keys, "keys", index), key)


def _of_column(keys: tuple[Key, ...], column: Any, pipeline: Pipeline) -> Iterator[Problem]:
    if isinstance(column, CrossedColumn):
        for index, key in enumerate(column.keys):
            if isinstance(key, str):
                yield from _of_feature((*keys, "keys", index), key, "crossed", pipeline)
    elif not isinstance(column, EmbeddingColumn | IndicatorColumn):
        yield from _of_feature((*keys, "key"), column.key, column.kind, pipeline)
    if isinstance(column, VocabularyColumn) and column.file is not None:
        file = pipeline.folder / column.file
        if not file.is_file():
            yield Problem((*keys, "file"), f"no such file: {file}", "the path is relative to the YAML")


def _of_feature(keys: tuple[Key, ...], name: str, kind: str, pipeline: Pipeline) -> Iterator[Problem]:
    """Yield what is wrong with a column's feature. What preprocessing makes of features is not known here."""
    if pipeline.config.model.preprocess is not None:
        return
    features = pipeline.config.data.features
    spec = features.get(name)
    if spec is None:
        yield Problem(keys, f"{name!r} is not one of data.features", near(name, features))
    elif spec.kind == "ragged":
        yield Problem(keys, f"{name!r} is ragged, and feature columns take none", "make it var_len")
    elif spec.dtype not in _DTYPES[kind]:
        expected = " or ".join(_DTYPES[kind])
        message = f"kind {kind} takes a feature of {expected}, and {name!r} is {spec.dtype}"
        yield Problem(keys, message, "use another kind of column for it")


def near(name: str, known: Collection[str]) -> str:
    """Return a hint with the nearest known name, or all of them."""
    lowered = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"did you mean {lowered[found[0]]!r}?" if found else f"there are: {', '.join(known)}"
