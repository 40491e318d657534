"""The `model.py` of a guess: a model_fn and a canned Estimator on the same feature columns."""

from __future__ import annotations

import json
from typing import Any

from tasks.samples.guesses import FeatureGuess, Guess, LabelGuess

_TEXT = '''\
"""The model, as `slipway init` began it: change it at will.

`build_estimator` wraps a model_fn of your own; `build_canned` is a canned Estimator on the same columns.
`model.factory` in pipeline.yaml names one of them.
"""

from __future__ import annotations

{imports}from typing import Any

import tensorflow as tf

{vocabularies}
def build_estimator(params: dict[str, Any], config: Any) -> Any:
    """Return an Estimator with a model_fn; `params` are those of the YAML."""
    return tf.estimator.Estimator(_model_fn, config=config, params=params)


def build_canned(params: dict[str, Any], config: Any) -> Any:
    """Return a canned Estimator on the same columns."""
    return tf.estimator.{canned},
        config=config,
    )


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    net = tf.compat.v1.feature_column.input_layer(features, _columns())
    for units in params["hidden_units"]:
        net = tf.compat.v1.layers.dense(net, units, tf.nn.relu)
    head = _head()
    logits = tf.compat.v1.layers.dense(net, head.logits_dimension)
{scaled}    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    # The head adds the loss, the metrics, and the signatures that are served.
    return head.create_estimator_spec(
        features,
        mode,
        logits,
        labels,
        train_op_fn=lambda loss: optimizer.minimize(loss, tf.compat.v1.train.get_global_step()),
    )


def _head() -> Any:
    return tf.estimator.{head}


def _columns() -> list[Any]:
    """Return how the model sees each feature; mean and std are those of the sample."""
    column = tf.feature_column
    return [
{columns}
    ]
{scaler}'''

_SCALER = """

def _scaled(mean: float, std: float) -> Any:
    return lambda values: (tf.cast(values, tf.float32) - mean) / std
"""

_CANNED_DNN = """DNNEstimator(
        _head(),
        params["hidden_units"],
        _columns(),
        optimizer=lambda: tf.keras.optimizers.legacy.Adam(params["learning_rate"])"""

_CANNED_LINEAR = """LinearEstimator(
        _head(),
        _columns(),
        # Adam's steps are about as long as this: the bias must get to the label's mean in max_steps.
        optimizer=lambda: tf.keras.optimizers.legacy.Adam({rate!r})"""


_RENAMES = '''\
"""Names that TensorFlow's feature columns take, in place of those in the data."""

from __future__ import annotations

from typing import Any

RENAMED = {{
{names}
}}


def rename(features: dict[str, Any]) -> dict[str, Any]:
    """Return the features under the names that the model sees, at training and at serving alike."""
    return {{RENAMED.get(name, name): value for name, value in features.items()}}
'''


def preprocess_py(guess: Guess) -> str:
    """Return the text of the file that `model.preprocess` names."""
    pairs = guess.renamed.items()
    return _RENAMES.format(names="\n".join(f"    {_literal(a)}: {_literal(b)}," for a, b in pairs))


def model_py(guess: Guess) -> str:
    """Return the text of the file."""
    text = [_column(feature) for feature in guess.used]
    files, scales = "HERE /" in "".join(text), "_scaled(" in "".join(text)
    regression = guess.label.task == "regression"
    return _TEXT.format(
        imports="from pathlib import Path\n" if files else "",
        vocabularies="HERE = Path(__file__).parent\n\n" if files else "",
        canned=_CANNED_LINEAR.format(rate=guess.learning_rate) if regression else _CANNED_DNN,
        scaled=_amount(guess.label) if regression else "",
        head=_head(guess.label),
        columns="\n".join(f"        {line}," for line in text),
        scaler=_SCALER if scales else "",
    )


def _amount(label: LabelGuess) -> str:
    return (
        "    # What the layers learn lies around 0: bring it to where the sample's labels lie.\n"
        f"    logits = logits * {label.std!r} + {label.mean!r}\n"
    )


def _head(label: LabelGuess) -> str:
    if label.task == "regression":
        return "RegressionHead()"
    words = f"label_vocabulary={_literal(list(label.words))}" if label.words else ""
    if label.task == "binary":
        return f"BinaryClassHead({words})"
    return f"MultiClassHead({', '.join(filter(None, [str(label.classes), words]))})"


def _column(feature: FeatureGuess) -> str:
    column, profile = feature.column, feature.profile
    assert column is not None
    if column["kind"] == "numeric":
        shape = "" if profile.is_scalar else f"shape=({profile.longest},), "
        scaled = f"{shape}normalizer_fn=_scaled({column['mean']!r}, {column['std']!r})"
        return f"column.numeric_column({_literal(feature.seen)}, {scaled})"
    of = _categorical(column["of"], profile.dtype)
    if column["kind"] == "indicator":
        return f"column.indicator_column({of})"
    return f"column.embedding_column({of}, {column['dimension']})"


def _categorical(of: dict[str, Any], dtype: str) -> str:
    key, kind = _literal(of["key"]), "column.categorical_column_with"
    if of["kind"] == "hash_bucket":
        return f"{kind}_hash_bucket({key}, {of['buckets']}, tf.{dtype})"
    if "file" in of:
        return f"{kind}_vocabulary_file({key}, str(HERE / {_literal(of['file'])}), num_oov_buckets=1)"
    return f"{kind}_vocabulary_list({key}, {_literal(of['values'])}, num_oov_buckets=1)"


def _literal(value: str | list[str]) -> str:
    """Return a Python literal: JSON's strings are such, with the double quotes that formatters prefer."""
    return json.dumps(value, ensure_ascii=False)
