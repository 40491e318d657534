"""The slice `model`: the Estimator, the graph, or a SavedModel that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from configs.schema.features import FeatureColumns
from configs.schema.slices import Reference, Slice


class ModelConfig(Slice):
    """A canned Estimator, one that a factory builds, a graph, or a SavedModel. One of the four."""

    estimator: str | None = None
    """Name of a canned Estimator in `tf.estimator`: DNNClassifier, DNNRegressor, DNNEstimator,
    LinearClassifier, LinearRegressor, LinearEstimator, DNNLinearCombinedClassifier,
    DNNLinearCombinedRegressor, DNNLinearCombinedEstimator, BaselineClassifier, BaselineRegressor,
    BaselineEstimator. (BoostedTrees* left tensorflow-estimator before 2.15.)"""

    factory: Reference | None = None
    """Callable that returns a `tf.estimator.Estimator`: `model.py:build_estimator`, called with
    (params: dict, config: tf.estimator.RunConfig)."""

    graph: Reference | None = None
    """Callable that builds a TF1 graph, without an Estimator: `graph.py:build_graph`, called with
    (features: dict, labels, tags: tuple, params: dict); see `tasks/estimators/graph_pipelines.py` for what it
    returns."""

    saved_model: Path | None = None
    """Folder of a SavedModel that was trained elsewhere, relative to the YAML: TensorFlow 1's or 2's, as
    `keras.Model.export` or `save` writes it; or a folder of numbered versions, of which the highest is taken.
    Nothing is trained: it is evaluated, gated, published and proven as it is. Its signatures take serialized
    tf.Examples, or dense features by their names."""

    outputs: dict[str, str] = {}
    """With `saved_model`, which output predicts a label: `{species: "serving_default:dense_2"}`. By default
    one that has the label's name, or the name that tf.estimator gives it, or the only one."""

    params: dict[str, Any] = {}
    """Arguments of the canned Estimator's constructor (`optimizer` may be a name or
    `{name: Adam, learning_rate: 0.01}`; `head` a `{name: MultiClassHead, n_classes: 3}`), or what the
    factory or a graph's function gets as `params`."""

    feature_columns: FeatureColumns | None = None
    """Feature columns of a canned Estimator; a mapping {linear, dnn} for the combined ones. By default
    each numeric fixed-length feature is a numeric column."""

    preprocess: Reference | None = None
    """Callable from a dict of parsed features to the dict of features that the model sees, with
    TensorFlow ops: `model.py:preprocess`. The same one at training, evaluation and serving."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        origins = [self.estimator, self.factory, self.graph, self.saved_model]
        if origins.count(None) != len(origins) - 1:
            raise ValueError(
                "give exactly one of 'estimator' (canned), 'factory', 'graph' (callables) and 'saved_model'"
            )
        if self.estimator is None and self.feature_columns is not None:
            kind = "factory" if self.factory else "graph" if self.graph else "SavedModel"
            raise ValueError(f"a {kind} makes its own feature columns: remove 'feature_columns'")
        if self.saved_model is not None and (self.params or self.preprocess):
            raise ValueError("a SavedModel is taken as it is: remove 'params' and 'preprocess'")
        if self.saved_model is None and self.outputs:
            raise ValueError("'outputs' are of a SavedModel: they need 'saved_model'")
        return self
