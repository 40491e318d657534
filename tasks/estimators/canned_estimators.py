"""Canned Estimators of tf.estimator from the YAML alone: constructor arguments by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.loading import canned
from configs.schema.features import CombinedColumns, FeatureSpecs
from configs.schema.pipeline import DataConfig, ModelConfig
from tasks.core.errors import ModelError
from tasks.estimators import feature_columns

CANNED = tuple(canned.ESTIMATORS)
_HEADS = tuple(canned.HEADS)
_COLUMNS = canned.COLUMN_PARAMETERS


def seen_in_training(model: ModelConfig, data: DataConfig) -> DataConfig:
    """Return `data` without the features that training this Estimator cannot take.

    Baseline* look at no feature but to count a batch's examples. With a sparse one among several (its
    batch size is not static) tensorflow-estimator 2.15.0 makes their bias depend on the first batch, and
    initialises it before there is one (canned/baseline.py, `_get_batch_size_and_size_checks`).
    """
    # Preprocessing may need any of them.
    if model.preprocess or model.estimator is None or not model.estimator.startswith("Baseline"):
        return data
    dense = {name: spec for name, spec in data.features.items() if spec.is_dense}
    return data.model_copy(update={"features": dense or data.features})


def build(model: ModelConfig, specs: FeatureSpecs, folder: Path, config: Any) -> Any:
    """Return the canned Estimator that `model` names; `config` is its tf.estimator.RunConfig.

    Raises ModelError that names what is wrong, and the nearest name there is.
    """
    name = model.estimator
    if name not in CANNED:
        raise ModelError(f"model.estimator = {name!r} is not a canned Estimator", _nearest(str(name), CANNED))
    constructor = getattr(tf.estimator, name)
    accepted = inspect.signature(constructor).parameters
    arguments = {
        **_arguments(model, name, accepted),
        **_columns(model, name, accepted, specs, folder),
        "config": config,
    }
    _refuse_missing(name, accepted, arguments)
    try:
        return constructor(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model.params: {name} refuses them: {error}") from error


def _arguments(model: ModelConfig, name: str, accepted: Mapping[str, Any]) -> dict[str, Any]:
    settable = [key for key in accepted if key not in ("model_dir", "config", *_COLUMNS)]
    for key in model.params:
        if key in _COLUMNS:
            raise ModelError(f"model.params.{key} is set by Slipway", "write it under model.feature_columns")
        if key not in settable:
            raise ModelError(f"model.params.{key}: {name} has no such argument", _nearest(key, settable))
    return {key: _argument(key, value) for key, value in model.params.items()}


def _refuse_missing(name: str, accepted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for key, parameter in accepted.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ModelError(f"model.params.{key} is required by {name}", f"see tf.estimator.{name}")


def _argument(key: str, value: Any) -> Any:
    """Turn the name or mapping that YAML can hold into the object that the constructor takes."""
    place = f"model.params.{key}"
    if key.endswith("optimizer") and value is not None:
        return _optimizer(place, value)
    if key.endswith("activation_fn") and value is not None:
        return _activation(place, value)
    return _head(place, value) if key == "head" else value


def _optimizer(place: str, value: Any) -> Any:
    # Estimators take the optimizers of Keras 2 before its rewrite only: tf.keras.optimizers.legacy.
    classes = {
        name.lower(): cls for name, cls in vars(tf.keras.optimizers.legacy).items() if isinstance(cls, type)
    }  # fmt: skip
    classes.pop("optimizer", None)
    checked = _constructed(place, value, classes)
    # Not the object itself: under tf.distribute each replica makes variables for an optimizer of its own.
    return lambda: type(checked).from_config(checked.get_config())


def _activation(place: str, value: Any) -> Callable[..., Any]:
    function = getattr(tf.nn, str(value), None)
    if not callable(function):
        names = [name for name in dir(tf.nn) if name in dir(tf.keras.activations)]
        raise ModelError(f"{place} = {value!r} is not a function of tf.nn", _nearest(str(value), names))
    return function  # type: ignore[no-any-return]


def _head(place: str, value: Any, name: str | None = None) -> Any:
    """Return a Head; `heads` of a MultiHead map the name of each to its own mapping."""
    classes = {head.lower(): getattr(tf.estimator, head) for head in _HEADS}
    extra: dict[str, Any] = {} if name is None else {"name": name}
    if isinstance(value, dict) and isinstance(heads := value.get("heads"), dict):
        extra["heads"] = [_head(f"{place}.heads.{key}", head, key) for key, head in heads.items()]
    return _constructed(place, value, classes, **extra)


def _constructed(place: str, value: Any, classes: Mapping[str, Any], **extra: Any) -> Any:
    """Return the object that `Adam` or `{name: Adam, learning_rate: 0.1}` stands for."""
    arguments = dict(value) if isinstance(value, dict) else {"name": value}
    name = arguments.pop("name", None)
    cls = classes.get(str(name).lower())
    if cls is None:
        known = sorted(each.__name__ for each in classes.values())
        raise ModelError(f"{place}: expected a name, or {{name: …}} and arguments, found {value!r}",
                         _nearest(str(name), known))  # fmt: skip
    parameters = [*inspect.signature(cls).parameters, *canned.COMMON_TO_OPTIMIZERS]
    for key, argument in arguments.items():
        _refuse_text_number(f"{place}.{key}", argument)
        if key not in parameters:
            raise ModelError(f"{place}.{key}: {cls.__name__} has no such argument", _nearest(key, parameters))
    try:
        return cls(**{**arguments, **extra})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{place}: {cls.__name__} refuses its arguments: {error}") from error


def _refuse_text_number(place: str, value: Any) -> None:
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return
    if number is not None:
        hint = "YAML reads 1e-3 as text: write 0.001 or 1.0e-3"
        raise ModelError(f"{place}: expected a number, found the text {value!r}", hint)


def _columns(
    model: ModelConfig, name: str, accepted: Mapping[str, Any], specs: FeatureSpecs, folder: Path
) -> dict[str, Any]:
    wanted = [key for key in _COLUMNS if key in accepted]
    given = model.feature_columns
    if given is not None and not wanted:
        raise ModelError(f"model.feature_columns: {name} takes none", "remove them")
    if given is not None and isinstance(given, CombinedColumns) != (len(wanted) > 1):
        form = "a mapping {linear: [...], dnn: [...]}" if len(wanted) > 1 else "a list"
        raise ModelError(f"model.feature_columns: {name} takes {form}", "see docs/reference/config.md")
    if isinstance(given, CombinedColumns):
        parts = {"linear_feature_columns": given.linear, "dnn_feature_columns": given.dnn}
        return {key: feature_columns.build(part, specs, folder) for key, part in parts.items() if part}
    return {key: feature_columns.build(given, specs, folder) for key in wanted}


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    lowered = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"did you mean {lowered[near[0]]!r}?" if near else f"there are: {', '.join(known)}"
