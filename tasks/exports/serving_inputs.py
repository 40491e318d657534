"""Serving input receivers: what a served model takes in, without the label."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from configs.schema.features import FeatureSpecs
from configs.schema.pipeline import ExportConfig
from tasks.core.artifacts import Run
from tasks.core.errors import ModelError
from tasks.core.references import resolve
from tasks.examples.tf_examples import Preprocess, parsing_spec
from tasks.exports.saved_models import form

PARSING, RAW = "parsing", "raw"


def receiver_for(
    export: ExportConfig, features: FeatureSpecs, run: Run, preprocess: Preprocess | None = None
) -> Callable[[], Any]:
    """Return the serving_input_receiver_fn of `export`: a function of the user's, or one of ours.

    Raises ModelError, also when it is called.
    """
    (first, *_) = export.receivers
    if first in (PARSING, RAW):
        return receiver_fn(export.receivers, features, preprocess)
    return lambda: _from_user(first, features, run, preprocess)


def receiver_fn(
    receivers: Sequence[str], features: FeatureSpecs, preprocess: Preprocess | None = None
) -> Callable[[], Any]:
    """Return the serving_input_receiver_fn for one export with all of `receivers`.

    With both, the parsing one is the default, and the signatures of the raw one are named
    `raw:<signature>`, its inputs being the parsed tensors. Raises ModelError.
    """
    if RAW in receivers:
        _refuse_sparse(features)
    build = _raw if tuple(receivers) == (RAW,) else _parsing
    return lambda: build(features, preprocess or dict, RAW in receivers)


def _refuse_sparse(features: FeatureSpecs) -> None:
    for name, spec in features.items():
        if not spec.is_dense:
            message = f"export.receivers: raw takes dense tensors, and the feature {name!r} is {spec.kind}"
            raise ModelError(message, "make it fixed_len or fixed_len_sequence, or use receivers: [parsing]")


def _raw(features: FeatureSpecs, preprocess: Preprocess, _also: bool) -> Any:
    tensors = {
        name: tf.compat.v1.placeholder(spec.dtype, _batched_shape(spec.kind, spec.shape), name=name)
        for name, spec in features.items()
    }
    return tf.estimator.export.ServingInputReceiver(preprocess(tensors), tensors)


def _batched_shape(kind: str, shape: tuple[int, ...]) -> list[int | None]:
    return [None, None, *shape] if kind == "fixed_len_sequence" else [None, *shape]


def _parsing(features: FeatureSpecs, preprocess: Preprocess, also_raw: bool) -> Any:
    examples = tf.compat.v1.placeholder(tf.string, [None], name="input_example_tensor")
    parsed = tf.io.parse_example(examples, parsing_spec(features))
    return tf.estimator.export.ServingInputReceiver(
        preprocess(parsed), {"examples": examples}, {RAW: dict(parsed)} if also_raw else None
    )


def _from_user(reference: str, features: FeatureSpecs, run: Run, preprocess: Preprocess | None) -> Any:
    """Call the user's function; preprocess what it returns as features."""
    place = f"export.receivers = [{reference!r}]"
    function = resolve(reference, run.source, "export.receivers", ModelError)
    try:
        takes_spec = bool(inspect.signature(function).parameters)
        receiver = function(parsing_spec(features)) if takes_spec else function()
    except Exception as error:
        message = f"{place} failed: {type(error).__name__}: {error}"
        hint = "it is called with no argument, or with the parsing spec of data.features if it takes one"
        raise ModelError(message, hint) from error
    if not isinstance(receiver, tf.estimator.export.ServingInputReceiver):
        message = f"{place}: expected a ServingInputReceiver, found {type(receiver).__name__}"
        raise ModelError(message, "return tf.estimator.export.ServingInputReceiver(features, tensors)")
    return receiver._replace(features=preprocess(receiver.features)) if preprocess else receiver


def takes_features(name: str, definition: Any, export: ExportConfig, features: FeatureSpecs) -> bool:
    """Return whether a SignatureDef takes tensors of features, and not serialized tf.Examples.

    Of what a user's function receives that is guessed: tf.Examples are one string each, under an alias
    that no feature has.
    """
    if PARSING in export.receivers:
        return name.startswith(f"{RAW}:")
    if export.receivers == (RAW,):
        return True
    ((alias, info), *more) = definition.inputs.items()
    return bool(more) or alias in features or form(info) not in ("string[?]", "string[...]")


def require_askable(name: str, inputs: Mapping[str, str], features: FeatureSpecs) -> None:
    """Raise ModelError unless what a signature takes can be made of tf.Examples, to prove it."""
    for alias, found in inputs.items():
        spec = features.get(alias)
        if spec is None or not spec.is_dense or not found.startswith(f"{spec.dtype}["):
            known = ", ".join(f"{key} ({each.dtype})" for key, each in features.items())
            message = f"the signature {name!r} takes {alias} ({found}), which is not one of {known}"
            hint = "it could not be validated: take serialized tf.Examples, or dense features by their names"
            raise ModelError(message, hint)
